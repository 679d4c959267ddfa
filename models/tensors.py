"""Safetensors files as memory maps, read with suspicion.

The format (github.com/huggingface/safetensors, README "Format"):

    8 bytes  N, little-endian uint64
    N bytes  JSON: name -> {"dtype", "shape", "data_offsets": [start, stop]}
    rest     the tensors' bytes, offsets counted from here, without gaps

Nothing is trusted: sizes, offsets and names are checked against the file
before a byte of a tensor is touched, and no path leaves the folder.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib

import ml_dtypes
import numpy as np

from corejax import errors
from corejax.models import checkpoint

# Weights come in these; the others are known, so that a file which holds an
# ignorable integer buffer still opens.
FLOATS: Mapping[str, np.dtype] = {
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F16': np.dtype('<f2'),
  'F32': np.dtype('<f4'),
}
_SIZES = {
  **{name: dtype.itemsize for name, dtype in FLOATS.items()},
  **{'F64': 8, 'I64': 8, 'U64': 8, 'I32': 4, 'U32': 4, 'I16': 2, 'U16': 2},
  **{'I8': 1, 'U8': 1, 'BOOL': 1, 'F8_E4M3': 1, 'F8_E5M2': 1},
}
_MAX_HEADER = 100_000_000  # the limit of the reference implementation
_MAX_AXES = 32
SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor lies.

  Attributes:
    path: the file.
    name: in the file.
    dtype: name in safetensors' spelling.
    shape: its shape.
    start: first byte, from the beginning of the file.
    n_bytes: length.
  """

  path: pathlib.Path
  name: str
  dtype: str
  shape: tuple[int, ...]
  start: int
  n_bytes: int

  def open(self) -> np.ndarray:
    """A read-only view of the file; bytes are read where it is indexed.

    The dtype must be one of FLOATS.
    """
    if not self.n_bytes:
      return np.zeros(self.shape, FLOATS[self.dtype])
    raw = np.memmap(
      self.path, np.uint8, 'r', offset=self.start, shape=(self.n_bytes,)
    )
    return raw.view(np.ndarray).view(FLOATS[self.dtype]).reshape(self.shape)


def open_folder(folder: pathlib.Path) -> dict[str, Tensor]:
  """All tensors of a checkpoint folder, by name.

  Args:
    folder: holds model.safetensors, or model.safetensors.index.json and the
      files that it names.

  Raises:
    UserError: no such files, only pickles, or a malformed file.
  """
  if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
    return read_header(_inside(folder, SINGLE))
  if (folder / INDEX).exists():
    return _open_index(folder)
  pickles = sorted(
    path.name
    for pattern in ('*.bin', '*.pt', '*.pth', '*.ckpt')
    for path in folder.glob(pattern)
  )
  if pickles:
    raise errors.UserError(
      f'{folder}: only pickled weights ({pickles[0]}), which can run code when '
      'they are opened and are not read; convert them where they are trusted: '
      'from_pretrained(...).save_pretrained(..., safe_serialization=True)'
    )
  raise errors.UserError(
    f'{folder}: holds neither {SINGLE} nor {INDEX}; fetch the weights'
  )


def _open_index(folder: pathlib.Path) -> dict[str, Tensor]:
  path = folder / INDEX
  where = checkpoint.read_json(path).get('weight_map')
  if not isinstance(where, dict) or not all(
    isinstance(file, str) for file in where.values()
  ):
    raise errors.UserError(
      f'{path}: has no weight_map of names to files; fetch it again'
    )
  found: dict[str, Tensor] = {}
  problems = []
  for file in sorted(set(where.values())):
    header = read_header(_inside(folder, file))
    for name, tensor in header.items():
      if where.get(name) == file:
        found[name] = tensor
      else:
        problems.append(f'{name} lies in {file}, not in {where.get(name)}')
    problems += [
      f'{name} is not in {file}'
      for name, other in where.items()
      if other == file and name not in header
    ]
  if problems:
    raise errors.UserError(
      f'{path}: does not fit its files: {"; ".join(problems[:10])} '
      f'({len(problems)} in all); fetch index and files of one revision'
    )
  return found


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file, which must lie in the folder itself.

  The hub's cache keeps a snapshot's files as links into the repository's
  `blobs` beside it; those are the only links out that are followed.
  """
  pure = pathlib.PurePosixPath(name)
  if pure.is_absolute() or '..' in pure.parts or '\\' in name or '\0' in name:
    raise errors.UserError(
      f'{folder}: weight file {name!r} points out of the folder; refused'
    )
  path = folder / name
  home = folder.resolve()
  roots = [home]
  if home.parent.name == 'snapshots':
    roots.append(home.parent.parent / 'blobs')
  try:
    real = path.resolve()
  except (OSError, RuntimeError, ValueError) as error:  # a loop, no Unicode
    raise errors.UserError(f'{path}: {error}') from error
  if not any(real.is_relative_to(root) for root in roots):
    raise errors.UserError(
      f'{path}: links to {real}, outside of the folder; refused (copy the file)'
    )
  return path


def _refuse_repeats(pairs):
  value = dict(pairs)
  if len(value) != len(pairs):
    raise ValueError('a name stands twice')
  return value


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of one file, by name.

  Raises:
    UserError: absent, empty, not safetensors, truncated or inconsistent.
  """
  try:
    text, size = _header_text(path)
  except OSError as error:
    raise errors.UserError(
      f'{path}: cannot be read ({error.strerror}); fetch all weight files and '
      'let them be read'
    ) from error
  base = 8 + len(text)
  try:
    header = json.loads(text, object_pairs_hook=_refuse_repeats)
    if not isinstance(header, dict):
      raise ValueError(f'a {type(header).__name__}, not an object')
    header.pop('__metadata__', None)
    tensors = {
      name: _entry(path, name, entry, base) for name, entry in header.items()
    }
    _check_cover(tensors, base, size)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f'{path}: bad safetensors header: {error}; fetch the file again'
    ) from error
  return tensors


def _header_text(path: pathlib.Path) -> tuple[bytes, int]:
  """The header's bytes and the size of the file.

  Raises:
    OSError: it cannot be read.
    UserError: it cannot be safetensors.
  """
  if path.is_dir():
    raise errors.UserError(f'{path}: a folder, not a file of weights')
  if not path.is_file():
    raise errors.UserError(f'{path}: no such file; fetch all weight files')
  size = path.stat().st_size
  with path.open('rb') as file:
    head = file.read(checkpoint.HEAD)
    _check_kind(path, head, size)
    length = int.from_bytes(head[:8], 'little')
    if length > min(_MAX_HEADER, size - 8):
      raise errors.UserError(
        f'{path}: its header claims {length} bytes and the file has {size}: '
        'truncated, or not safetensors; fetch it again'
      )
    file.seek(8)
    return file.read(length), size


def _check_kind(path: pathlib.Path, head: bytes, size: int):
  """Names what else lies in a weight file's place more often than not."""
  if not size:
    raise errors.UserError(f'{path}: empty file; fetch it again')
  if head[8:9] == b'{':  # the JSON header; any 8 bytes may come before it
    return
  checkpoint.refuse_stand_in(path, head)
  if head[:2] == b'PK' or head[:1] == b'\x80':
    raise errors.UserError(
      f'{path}: a pickle under another name; refused, it can run code'
    )
  if size < 8:
    raise errors.UserError(f'{path}: {size} bytes; truncated, fetch it again')


def _entry(path, name: str, entry, base: int) -> Tensor:
  """One checked header entry.

  Raises:
    ValueError: what is wrong with it.
  """
  if (
    not isinstance(entry, dict)
    or not {
      'dtype',
      'shape',
      'data_offsets',
    }
    <= entry.keys()
  ):
    raise ValueError(f'{name} lacks dtype, shape or data_offsets')
  dtype, shape, span = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or dtype not in _SIZES:
    raise ValueError(f'{name} has the unknown dtype {dtype!r}')
  for field, value in (('shape', shape), ('data_offsets', span)):
    if not isinstance(value, list) or not all(
      type(n) is int and 0 <= n < 1 << 62 for n in value
    ):
      raise ValueError(f'{name} has {field} {value!r}')
  if len(shape) > _MAX_AXES:
    raise ValueError(f'{name} has {len(shape)} axes')
  n_bytes = math.prod(shape) * _SIZES[dtype]
  if len(span) != 2 or span[1] - span[0] != n_bytes:
    raise ValueError(
      f'{name} {dtype} {shape} takes {n_bytes} bytes, its offsets are {span}'
    )
  return Tensor(path, name, dtype, tuple(shape), base + span[0], n_bytes)


def _check_cover(tensors: Mapping[str, Tensor], base: int, size: int):
  """Tensors must fill the file: no overlap, no gap, nothing beyond its end.

  Raises:
    ValueError: they do not.
  """
  end = base
  for name, tensor in sorted(
    tensors.items(), key=lambda item: (item[1].start, item[1].n_bytes)
  ):
    if tensor.start != end:
      raise ValueError(f'{name} starts at byte {tensor.start}, not at {end}')
    end = tensor.start + tensor.n_bytes
  if end != size:
    raise ValueError(
      f'tensors end at byte {end}, the file at {size}'
      + (' (truncated)' if end > size else '')
    )
