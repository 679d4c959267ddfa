"""Command line of every experiment: flags, exit codes, signals.

Exit codes: 0 done; 2 user error, one line; 75 preempted, state saved; 1 a bug,
with its traceback in the run folder.
"""

from collections.abc import Callable
import signal
import sys
import threading
from typing import Any

from corejax import errors
from corejax.experiments import config as config_lib

EX_USER = 2
EX_PREEMPTED = 75


class Preempted(BaseException):
  """Raised between batches after SIGTERM or Ctrl-C; the state is saved.

  Not an Exception: it is no fault, and nothing on its way up may swallow it.
  """


class Stop:
  """Turns SIGTERM and SIGINT into a flag that a loop looks at.

  A second signal acts as usual. Outside the main thread nothing is caught.
  """

  def __init__(self):
    self.asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    self._restore()

  def _note(self, number, _):
    self.asked = True
    self._restore()

  def _restore(self):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def check(self, go_on: Callable[[bool], bool] = bool):
    """Raises Preempted if a signal came.

    Args:
      go_on: turns this process's wish to go on into everybody's.
    """
    if not go_on(not self.asked):
      raise Preempted


def main(
  argv: list[str] | None,
  config_class: type[Any],
  run: Callable[[Any], Any],
  title: str,
) -> int:
  """Flags -> config -> run -> exit code.

  Args:
    argv: command line with the program's name first; None is sys.argv.
    config_class: the experiment's config, a dataclass of settings.
    run: the experiment; what it returns is ignored here.
    title: first lines of --help.
  """
  argv = sys.argv if argv is None else argv
  if any(a in ('-h', '--h', '-help', '--help') for a in argv[1:]):
    print(config_lib.help_text(config_class, title))
    return 0
  try:
    config = config_lib.parse(config_class, argv)
    if isinstance(config, config_lib.Shared) and (
      config.list_models or config.list_data
    ):
      from corejax.experiments import listing

      print(listing.models() if config.list_models else listing.data())
      return 0
    run(config)
  except errors.UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return EX_USER
  except Preempted:
    print('preempted; the same command again continues', file=sys.stderr)
    return EX_PREEMPTED
  except KeyboardInterrupt:
    print('interrupted; the same command again continues', file=sys.stderr)
    return EX_PREEMPTED
  return 0
