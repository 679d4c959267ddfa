"""Parts of a run: one immutable file per batch, and which exist is the state.

    <run>/scores/part-00000.npz
                 part-00001.npz        absent = still to be measured
                 .part-00002.npz.tmp   a write that was cut off; overwritten

A part is a head (JSON: which run it belongs to, what was measured, what was
rejected) and arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import json
import os
import pathlib
import struct
from typing import Any
import zipfile
import zlib

import numpy as np

from corejax import errors

# What zipfile, numpy and json say of bytes that are no part.
_UNREADABLE = (
  OSError,
  ValueError,
  LookupError,
  TypeError,
  EOFError,
  RuntimeError,
  struct.error,
  zipfile.BadZipFile,
  zlib.error,
)


@contextlib.contextmanager
def changing(path: os.PathLike | str) -> Iterator[None]:
  """Says what the file system refuses as a UserError that names `path`."""
  try:
    yield
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot be written ({e.strerror or e}); what was measured is '
      'kept: make room or mend the folder and run the same command again'
    ) from e


def write_atomic(path: os.PathLike | str, data: bytes) -> None:
  """Writes a file that is either whole or absent.

  Raises:
    UserError: the disk is full or the folder cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.parent / f'.{path.name}.tmp'
  try:
    with changing(path):
      with open(temporary, 'wb') as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
      os.replace(temporary, path)
  finally:
    # Still there after a failed or an interrupted write alone.
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
  """Says what is wrong with a part as a UserError that names it."""
  try:
    yield
  except _UNREADABLE as e:
    raise errors.UserError(
      f'{path}: not a readable store part ({type(e).__name__}: '
      f'{" ".join(str(e).split())[:200]}); remove this file and run the same '
      'command again'
    ) from e


class PartStore:
  """The parts of one run.

  Attributes:
    folder: where they lie.
    n_parts: how many there will be.
    run: what the parts belong to; a part of another run is not read.
  """

  def __init__(self, folder: os.PathLike | str, n_parts: int, run: str = ''):
    self.folder = pathlib.Path(folder)
    self.n_parts = n_parts
    self.run = run

  def path(self, index: int) -> pathlib.Path:
    return self.folder / f'part-{index:05d}.npz'

  def missing(self) -> list[int]:
    """Indices of the parts that are still to be measured."""
    return [i for i in range(self.n_parts) if not self.path(i).exists()]

  def clear(self) -> None:
    """Removes every part.

    Raises:
      UserError: one cannot be removed.
    """
    for path in self.folder.glob('*part-*.npz*'):  # cut-off writes too
      with changing(path):
        path.unlink()

  def check(self) -> None:
    """Looks at the parts that are there, before others are measured.

    Reads their heads alone, so a damaged array shows in `read` only.

    Raises:
      UserError: one is cut off, is no part, or is a part of another run.
    """
    for index in range(self.n_parts):
      if self.path(index).exists():
        self.open(index, ('head',))

  def n_rejected(self) -> int:
    """Records that the parts which are there leave out; reads heads alone.

    Raises:
      UserError: as `check`.
    """
    return sum(
      len(self.open(index, ('head',))[0]['rejected'])
      for index in range(self.n_parts)
      if self.path(index).exists()
    )

  def put(
    self, index: int, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Writes one part, whole or not at all.

    Args:
      index: of the part.
      head: JSON-able; its 'rejected' lists the records left out.
      arrays: any but 'head'.

    Raises:
      UserError: it cannot be written.
    """
    told = json.dumps({'run': self.run, **head})
    members: dict[str, Any] = {'head': np.array(told), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **members)
    with changing(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(self.path(index), buffer.getvalue())

  def open(
    self, index: int, names: Sequence[str] | None = None
  ) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """(head, arrays) of one part; `names` leaves the other arrays unread.

    Raises:
      UserError: it is unreadable (the message says to remove it), or a part of
        another run.
    """
    path = self.path(index)
    with readable(path):
      with zipfile.ZipFile(path) as f:
        names = names or [n.removesuffix('.npy') for n in f.namelist()]
        # Whole members, whose checksum is looked at before their shape is
        # believed; np.load does it the other way round.
        data = {name: io.BytesIO(f.read(f'{name}.npy')) for name in names}
      arrays = {
        name: np.lib.format.read_array(member, allow_pickle=False)
        for name, member in data.items()
      }
      head = json.loads(str(arrays['head']))
      run = head['run']
    if run != self.run:
      raise errors.UserError(
        f'{path}: a part of another run ({run}, this is {self.run}); choose '
        'another --out, or --noresume to start this one over'
      )
    return head, arrays
