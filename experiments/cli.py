"""Command line of every experiment: flags, exit codes, signals.

Exit codes: 0 done; 2 user error, one line; 75 preempted, state saved; 1 a bug,
with its traceback in the run folder.
"""

from collections.abc import Callable, Iterator
import contextlib
import gc
import os
import select
import signal
import sys
import threading
import types
from typing import Any

from corejax import errors
from corejax.experiments import config as config_lib

EX_USER = 2
EX_PREEMPTED = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_S = 0.5


class Preempted(BaseException):
  """Raised after SIGTERM or Ctrl-C; the state is saved.

  Not an Exception: it is no fault, and nothing on its way up may swallow it.
  """


class Stop:
  """Turns SIGTERM and Ctrl-C into Preempted, and the next one into an end.

      first, within `at_once()`   Preempted is raised wherever the program is
      first, elsewhere            Preempted is raised by the next `check()`
      second                      the process ends at once with exit code 75

  Every file of a run is whole at any moment, so even the last loses no more
  than what was being computed. Outside the main thread nothing is caught.
  """

  def __init__(self):
    self.asked = False
    self._at_once = False
    self._before: dict[int, Any] = {}
    self._watched: tuple[int, int, int, threading.Thread] | None = None

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      read, write = os.pipe()
      os.set_blocking(write, False)
      wakeup = signal.set_wakeup_fd(write)
      thread = threading.Thread(target=self._watch, args=(read,), daemon=True)
      self._watched = read, write, wakeup, thread
      thread.start()
      for number in _SIGNALS:
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    # The thread first: it signals only to a handler of ours.
    if self._watched is not None:
      read, write, wakeup, thread = self._watched
      signal.set_wakeup_fd(wakeup)
      os.close(write)
      thread.join()
      os.close(read)
      self._watched = None
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _note(self, _, frame: types.FrameType | None):
    self.asked = True
    if self._at_once and not _collecting(frame):
      raise Preempted

  def _watch(self, read: int) -> None:
    """Ends the process at the second signal; sees to it that the first works.

    In a thread: the main one may be compiling, for minutes, and Python runs a
    signal's handler only when such a call returns.
    """
    main = threading.main_thread().ident or 0
    patience, own = None, False
    while True:
      if not select.select([read], [], [], patience)[0]:
        if self._at_once and not own:  # what the handler raised was dropped
          own = True
          signal.pthread_kill(main, signal.SIGTERM)
      elif not (number := os.read(read, 1)):
        return
      elif number[0] not in _SIGNALS:
        continue
      elif own:
        own = False
      elif patience is None:
        patience = _AGAIN_S
        os.write(2, b'stopping; a second signal ends this at once\n')
      else:
        os.write(2, b'stopped; the same command again continues\n')
        os._exit(EX_PREEMPTED)

  @contextlib.contextmanager
  def at_once(self, alone: bool = True) -> Iterator[None]:
    """Where nothing needs to be saved: a signal does not wait for `check`.

    Args:
      alone: False where other processes wait for this one; changes nothing
        then, since all must stop together.
    """
    if not alone:
      yield
      return
    self._at_once = True
    try:
      self.check()
      with _Interrupted(self):
        yield
      self.check()  # what was interrupted may have swallowed it
    finally:
      self._at_once = False

  def check(self, go_on: Callable[[bool], bool] = bool):
    """Raises Preempted if a signal came.

    Args:
      go_on: turns this process's wish to go on into everybody's.
    """
    if not go_on(not self.asked):
      raise Preempted


class _Interrupted:
  """Makes of what an interrupted library raised instead a Preempted again.

  numpy, for one, lets no exception out of a comparison of structured arrays: it
  says that they cannot be compared.
  """

  def __init__(self, stop: Stop):
    self._stop = stop

  def __enter__(self):
    return self

  def __exit__(self, kind, error: BaseException | None, traceback):
    if isinstance(error, Exception) and self._stop.asked:
      raise Preempted from error


def _collecting(frame: types.FrameType | None) -> bool:
  """Is Python collecting garbage? It drops what is raised meanwhile."""
  codes = {getattr(callback, '__code__', None) for callback in gc.callbacks}
  while frame is not None:
    if frame.f_code in codes:
      return True
    frame = frame.f_back
  return False


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
