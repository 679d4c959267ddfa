"""The run folder: its lock, its identity, its record, its progress line."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import socket
import sys
import time
import traceback
from typing import Any

from corejax import errors
from corejax import store

_PACKAGES = ('jax', 'jaxlib', 'flax', 'transformers', 'numpy', 'pillow')


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _holder(path: pathlib.Path) -> str:
  try:
    return path.read_text().strip() or 'an unnamed process'
  except OSError:
    return 'an unnamed process'


class RunFolder:
  """One run's folder, locked while it is open.

  Attributes:
    path: the folder.
    record: what run.json says.
  """

  def __init__(self, path: pathlib.Path, record: dict[str, Any]):
    self.path = path
    self.record = record

  def write(self, name: str, data: str | bytes) -> pathlib.Path:
    """Writes one result file, whole or not at all."""
    path = self.path / name
    store.write_atomic(path, data.encode() if isinstance(data, str) else data)
    return path

  def write_lines(self, name: str, rows: Iterable[Mapping]) -> pathlib.Path:
    """Writes one JSON object a line."""
    return self.write(name, ''.join(json.dumps(r) + '\n' for r in rows))

  def save_record(self, state: str, **more: Any) -> None:
    """Writes run.json with this state and these additions."""
    self.record.update(more, state=state, updated=_now())
    self.write('run.json', json.dumps(self.record, indent=2) + '\n')


def versions() -> dict[str, str]:
  """Versions of corejax, Python and the packages that decide a result."""
  import corejax

  found = {'corejax': corejax.__version__, 'python': sys.version.split()[0]}
  for name in _PACKAGES:
    found[name] = importlib.metadata.version(name)
  return found


def folder_path(text: str) -> pathlib.Path:
  """--out as a path.

  Raises:
    UserError: it is a URL: a run is locked and renamed into place, which object
      stores cannot do.
  """
  if '://' in text:
    raise errors.UserError(
      f'--out={text}: a run needs a file system; mount the bucket (gcsfuse, '
      's3fs) and give its path'
    )
  return pathlib.Path(text)


def fingerprint(identity: Mapping[str, Any]) -> str:
  """12 hex digits of an identity; what a run's parts are marked with."""
  text = json.dumps(identity, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextlib.contextmanager
def open_run(
  path: pathlib.Path,
  identity: Mapping[str, Any],
  record: Mapping[str, Any],
  resume: bool,
  clear: Callable[[], None] = lambda: None,
) -> Iterator[RunFolder]:
  """Locks a run folder and checks that what it holds is this run.

  Args:
    path: the folder, made if absent.
    identity: whatever decides the result (settings, fingerprints, hashes); a
      folder that holds another identity is refused.
    record: what else run.json should say (device, mesh, versions, ...).
    resume: False forgets what the folder holds.
    clear: removes it, behind the lock and before run.json says otherwise.

  Yields:
    The open RunFolder; run.json says 'running' meanwhile.

  Raises:
    UserError: the folder cannot be made, is held by another run, or holds a
      run that differs (the message names what differs).
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / '.lock', 'a+')
  except OSError as e:
    raise errors.UserError(
      f'--out={path}: cannot be used as a run folder ({e.strerror}); choose '
      'another folder'
    ) from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      raise errors.UserError(
        f'--out={path}: held by {_holder(path / ".lock")}; wait for it or '
        'choose another --out'
      ) from e
    lock.seek(0)
    lock.truncate()
    lock.write(
      f'process {os.getpid()} on {socket.gethostname()} since {_now()}'
    )
    lock.flush()
    identity = json.loads(json.dumps(identity))
    known = path / 'run.json'
    started = _now()
    if not resume:
      known.unlink(missing_ok=True)
      clear()
    elif known.exists():
      try:
        told = json.loads(known.read_text())
        before, started = dict(told['identity']), told['started']
      except (ValueError, KeyError, TypeError) as e:
        raise errors.UserError(
          f'{known}: unreadable ({e}); --noresume starts this folder over'
        ) from e
      differing = [
        f'{name} was {before.get(name)!r}, is {identity.get(name)!r}'
        for name in sorted(before.keys() | identity.keys())
        if before.get(name) != identity.get(name)
      ]
      if differing:
        raise errors.UserError(
          f'--out={path} holds another run: {"; ".join(differing)}; choose '
          'another --out, or --noresume to start it over'
        )
    folder = RunFolder(
      path,
      {'identity': identity, 'versions': versions(), 'started': started}
      | dict(record),
    )
    folder.save_record('running')
    try:
      yield folder
    except errors.UserError as e:
      # A full disk must not hide the error that is on its way up.
      with contextlib.suppress(errors.UserError):
        folder.save_record('failed', error=str(e))
      raise
    except Exception:
      with contextlib.suppress(errors.UserError):
        folder.write('traceback.txt', traceback.format_exc())
        folder.save_record('bug')
      raise
    except BaseException:
      with contextlib.suppress(errors.UserError):
        folder.save_record('preempted')
      raise
    folder.save_record('done')


class Progress:
  """Rich bar on a terminal, a plain line every 30 s elsewhere."""

  def __init__(
    self, title: str, total: int, done: int = 0, quiet: bool = False
  ):
    self._title, self._total, self._done = title, total, done
    self._quiet = quiet
    self._next_line = time.monotonic() + 30
    self._bar = None

  def __enter__(self):
    if not self._quiet and sys.stderr.isatty():
      import rich.console
      import rich.progress

      self._bar = rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
      )
      self._bar.start()
      self._task = self._bar.add_task(
        self._title, total=self._total, completed=self._done
      )
    return self

  def advance(self, n: int) -> None:
    self._done += n
    if self._bar is not None:
      self._bar.update(self._task, completed=self._done)
    elif not self._quiet and time.monotonic() >= self._next_line:
      self._next_line = time.monotonic() + 30
      print(f'{self._title}: {self._done}/{self._total}', file=sys.stderr)

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.stop()
