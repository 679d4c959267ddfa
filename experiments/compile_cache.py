"""Compiled programs on disk: the same command again compiles nothing.

They lie in `.jax_cache` beside the run folder, so that the runs of one folder
share them; the least recently used go once there are MAX_BYTES of them. A
user's own JAX_COMPILATION_CACHE_DIR (or jax.config) is left as it is, and
JAX_ENABLE_COMPILATION_CACHE=false does without. It is an aid: where the folder
cannot be used, programs are compiled as ever.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import pathlib
import platform
import tempfile
from typing import Any
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = '.jax_cache'
MAX_BYTES = 4 * 2**30
_ENTRY, _STAMP = '-cache', '-atime'  # jax writes a program, then its stamp


def _host() -> str:
  """12 hex digits of what the processor can do.

  XLA compiles for the processor at hand; in a home directory that unlike
  machines share, one's programs would be illegal instructions to another.
  """
  told = [platform.system(), platform.machine()]
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    told += sorted({x for x in lines if x.startswith(('flags', 'Features'))})
  return hashlib.sha256('\n'.join(told).encode()).hexdigest()[:12]


def _setting(name: str) -> Any:
  return getattr(jax.config, name)


def _usable(folder: pathlib.Path) -> bool:
  """Makes the folder and removes what a killed run left half-written.

  Programs are run as they are found: a folder that somebody else owns or may
  write to is not used.
  """
  try:
    top = folder.parent
    top.mkdir(mode=0o700, exist_ok=True)
    told = top.lstat()
    if told.st_uid != os.geteuid() or told.st_mode & 0o022:
      return False
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
    for entry in folder.glob(f'*{_ENTRY}'):
      name = entry.name.removesuffix(_ENTRY)
      if not (folder / f'{name}{_STAMP}').exists():
        entry.unlink(missing_ok=True)
  except OSError:
    return False
  return True


@contextlib.contextmanager
def beside(out: pathlib.Path) -> Iterator[str]:
  """Keeps what is compiled meanwhile in the run folder's parent.

  Args:
    out: the run folder.

  Yields:
    The folder that is used; '' for none.
  """
  if not _setting('jax_enable_compilation_cache'):
    yield ''
    return
  if _setting('jax_compilation_cache_dir'):
    yield _setting('jax_compilation_cache_dir')
    return
  folder = out.absolute().parent / FOLDER / _host()
  if not _usable(folder):
    yield ''
    return
  settings = {
    'jax_compilation_cache_dir': str(folder),
    'jax_compilation_cache_max_size': MAX_BYTES,
    # All of them: the many small ones take a second together.
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: _setting(name) for name in settings}
  with warnings.catch_warnings():
    # A full disk, say: one such line for each program helps nobody.
    warnings.filterwarnings(
      'ignore', 'Error (reading|writing) persistent compilation cache entry'
    )
    try:
      for name, value in settings.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
      yield str(folder)
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
