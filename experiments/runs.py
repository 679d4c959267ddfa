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
from corejax import parts

_PACKAGES = ('jax', 'jaxlib', 'flax', 'transformers', 'numpy', 'pillow')


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


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
    parts.write_atomic(path, data.encode() if isinstance(data, str) else data)
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
def locked(path: pathlib.Path) -> Iterator[None]:
  """Makes a folder if need be and keeps other runs out of it.

  The lock is the system's: it ends with the process, however that ends.

  Raises:
    UserError: the folder cannot be made or written, or another run holds it
      (the message says which process on which host since when).
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
    # Unbuffered: what does not fit on the disk is not tried again on closing.
    lock = open(path / '.lock', 'a+b', buffering=0)
  except OSError as e:
    raise _unusable(path, e) from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      lock.seek(0)
      holder = lock.read().decode(errors='replace').strip()
      raise errors.UserError(
        f'--out={path}: held by {holder or "an unnamed process"}; wait for it '
        'or choose another --out'
      ) from e
    except OSError as e:
      raise _unusable(path, e) from e
    me = f'process {os.getpid()} on {socket.gethostname()} since {_now()}'
    try:
      lock.truncate(0)
      lock.write(me.encode())
    except OSError as e:
      raise _unusable(path, e) from e
    yield


def _unusable(path: pathlib.Path, e: OSError) -> errors.UserError:
  return errors.UserError(
    f'--out={path}: cannot be used as a run folder ({e.strerror or e}); mend '
    'it or choose another folder'
  )


def _differences(
  before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ''
) -> Iterator[str]:
  """`name was this, is that` for every entry, of inner mappings too."""
  for name in sorted(before.keys() | now.keys()):
    a, b = before.get(name), now.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      yield from _differences(a, b, f'{prefix}{name}.')
    elif a != b:
      yield f'{prefix}{name} was {a!r}, is {b!r}'


def _held_run(path: pathlib.Path) -> tuple[dict[str, Any], str] | None:
  """(identity, start) of the run in a folder; None if it holds none.

  Raises:
    UserError: run.json cannot be read.
  """
  known = path / 'run.json'
  try:
    text = known.read_text()
    if not text.strip():
      return None  # made, and never written: some disks lose the rest
    told = json.loads(text)
    return dict(told['identity']), str(told['started'])
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise errors.UserError(
      f'{known}: unreadable ({e}); --noresume starts this folder over'
    ) from e


@contextlib.contextmanager
def open_run(
  path: pathlib.Path,
  identity: Mapping[str, Any],
  record: Mapping[str, Any],
  resume: bool,
  clear: Callable[[], None] = lambda: None,
  state: str = '',
) -> Iterator[RunFolder]:
  """Locks a run folder and checks that what it holds is this run.

  Args:
    path: the folder, made if absent.
    identity: whatever decides the result (settings, fingerprints, hashes); a
      folder that holds another identity is refused.
    record: what else run.json should say (device, mesh, versions, ...).
    resume: False forgets what the folder holds.
    clear: removes it, behind the lock and before run.json says otherwise.
    state: what the run continues from, a name in the folder, where only
      run.json tells whose it is: without run.json it is then refused.

  Yields:
    The open RunFolder; run.json says 'running' meanwhile.

  Raises:
    UserError: the folder cannot be made or written, is held by another run, or
      holds a run that differs (the message names what differs).
  """
  with locked(path):
    identity = json.loads(json.dumps(identity))
    started = _now()
    if not resume:
      clear()
    elif held := _held_run(path):
      before, started = held
      differing = '; '.join(_differences(before, identity))
      if differing:
        raise errors.UserError(
          f'--out={path} holds another run: {differing}; choose another --out, '
          'or --noresume to start it over'
        )
    elif state and (path / state).exists():
      raise errors.UserError(
        f'--out={path}: holds {state} but no run.json that says of which run; '
        'choose another --out, or --noresume to start it over'
      )
    with parts.changing(path):
      (path / 'traceback.txt').unlink(missing_ok=True)
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
