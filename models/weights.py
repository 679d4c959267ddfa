"""From safetensors files into a model's (sharded) arrays.

Every parameter is made by `jax.make_array_from_callback`: a process copies the
slices its devices hold out of the memory map, casts them, and stacks layers on
the way. Beyond the arrays themselves the host needs room for one parameter a
thread.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from corejax import errors
from corejax.models import tensors as tensors_lib
from corejax.models import weight_map as map_lib

# (parameter path, shape) -> where it lives
Place = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
_SHOWN = 10
# Parameters read at a time: copying, and waiting for a disk, overlap.
_THREADS = 4
_BLOCK = 1 << 16  # values checked at a time; they stay in the cache


@dataclasses.dataclass(frozen=True)
class Source:
  """The tensors of one parameter.

  Attributes:
    tensors: one, or one a layer.
    stacked: does the parameter lead with a layer axis?
    shape: of one tensor as the parameter sees it (heads split, no L).
    swapped: the tensors hold the last two axes in the other order.
  """

  tensors: tuple[tensors_lib.Tensor, ...]
  stacked: bool
  shape: tuple[int, ...]
  swapped: bool = False

  def read(self, tensor: tensors_lib.Tensor) -> np.ndarray:
    """One tensor as the parameter sees it, not yet copied."""
    if self.swapped:
      return np.swapaxes(tensor.open(), -1, -2)
    return tensor.open().reshape(self.shape)


def open_renamed(
  folder: pathlib.Path, weight_map: map_lib.WeightMap
) -> dict[str, tensors_lib.Tensor]:
  """A folder's tensors under the map's one spelling.

  Raises:
    UserError: unreadable files, or one parameter under two spellings.
  """
  renamed: dict[str, tensors_lib.Tensor] = {}
  for name, tensor in tensors_lib.open_folder(folder).items():
    new = weight_map.rename(name)
    if new in renamed:
      raise errors.UserError(
        f'{folder}: {new} stands twice, under two spellings; keep one'
      )
    renamed[new] = tensor
  return renamed


def match(
  renamed: Mapping[str, tensors_lib.Tensor],
  shapes: Mapping[str, tuple[int, ...]],
  weight_map: map_lib.WeightMap,
  where: str,
) -> dict[str, Source]:
  """Which tensors become which parameter; strict both ways.

  Args:
    renamed: of `open_renamed`.
    shapes: parameter path -> shape, all parameters of the model.
    weight_map: the map.
    where: for the message.

  Returns:
    Parameter path -> Source.

  Raises:
    UserError: listing missing, unknown, misshapen and non-float tensors.
  """
  entries = {entry.path: entry for entry in weight_map.entries}
  left = dict(renamed)
  sources = {}
  missing, misshapen, wrong_type = [], [], []
  for path, shape in shapes.items():
    entry = entries[path]
    single = shape[1:] if entry.stacked else shape
    count = shape[0] if entry.stacked else 1
    expected = entry.file_shape(single)
    first = left.get(entry.name.replace(map_lib.LAYER, '0'))
    swapped = False
    if entry.swap and first is not None and first.shape != expected:
      expected, swapped = (*expected[:-2], *expected[:-3:-1]), True
    found = []
    for layer in range(count):
      name = entry.name.replace(map_lib.LAYER, str(layer))
      tensor = left.pop(name, None)
      if tensor is None:
        missing.append(name)
      elif tensor.shape != expected:
        misshapen.append(f'{name} is {tensor.shape}, not {expected}')
      elif tensor.dtype not in tensors_lib.FLOATS:
        wrong_type.append(f'{name} is {tensor.dtype}')
      else:
        found.append(tensor)
    sources[path] = Source(tuple(found), entry.stacked, single, swapped)
  unknown = [name for name in left if not weight_map.is_ignored(name)]
  problems = [
    f'{len(names)} {what}: {", ".join(names[:_SHOWN])}'
    for what, names in (
      ('missing', missing),
      ('not in the model', unknown),
      ('misshapen', misshapen),
      (f'not of {"/".join(tensors_lib.FLOATS)}', wrong_type),
    )
    if names
  ]
  if problems:
    raise errors.UserError(
      f'{where}: the weights do not fit config.json: {"; ".join(problems)}; '
      'fetch config and weights of one revision'
    )
  return sources


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Uninitialised, on a 64-byte boundary: the CPU device then takes it over
  without a copy."""
  n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
  raw = np.empty(n_bytes + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + n_bytes].view(dtype).reshape(shape)


def _is_finite(values: np.ndarray) -> bool:
  """No NaN and no infinity: no exponent of ones only.

  Such a value with a sign is among the largest of its bits, and one without
  among the largest of those read as signed: two maxima, no temporary array.
  """
  info = jnp.finfo(values.dtype)
  ones = ((1 << info.nexp) - 1) << info.nmant
  sign = 1 << (info.bits - 1)
  bits = values.reshape(-1).view(f'u{values.dtype.itemsize}')
  signed = bits.view(f'i{values.dtype.itemsize}')
  return not any(
    signed[start : start + _BLOCK].max() >= ones
    or bits[start : start + _BLOCK].max() >= sign | ones
    for start in range(0, bits.size, _BLOCK)
  )


def _read(source: Source, index: tuple[slice, ...], dtype: np.dtype):
  """One device's part of a parameter, cast."""
  if not source.stacked:
    part = source.read(source.tensors[0])[index]
    values = _aligned(part.shape, dtype)
    with np.errstate(over='ignore'):  # an overflow is found as an infinity
      values[...] = part
    return values
  picked = source.tensors[index[0]]
  inner = index[1:]
  sizes = tuple(
    len(range(*part.indices(size))) for part, size in zip(inner, source.shape)
  )
  values = _aligned((len(picked), *sizes), dtype)
  for layer, tensor in enumerate(picked):
    with np.errstate(over='ignore'):
      values[layer] = source.read(tensor)[inner]
  return values


def _not_finite(
  source: Source, index: tuple[slice, ...], values: np.ndarray
) -> list[tensors_lib.Tensor]:
  """Of a part that `_read` gave: the tensors whose share is not finite."""
  if _is_finite(values):
    return []
  if not source.stacked:
    return [source.tensors[0]]
  layers = zip(source.tensors[index[0]], values)
  return [tensor for tensor, layer in layers if not _is_finite(layer)]


def fill(
  model: Any,
  sources: Mapping[str, Source],
  place: Place,
  where: str,
) -> Any:
  """The model with arrays in place of shapes.

  Args:
    model: abstract nnx.Module, its parameters ShapeDtypeStruct in the wanted
      dtype.
    sources: of `match`.
    place: where each parameter lives.
    where: for the message.

  Returns:
    The nnx.Module.

  Raises:
    UserError: weights that are not finite (in the file, or once cast).
  """
  graph, state = nnx.split(model)
  bad = set()

  def made(item):
    keys, param = item
    path = '.'.join(map(str, keys))
    dtype = np.dtype(param.dtype)

    def callback(index):
      values = _read(sources[path], index, dtype)
      for tensor in _not_finite(sources[path], index, values):
        bad.add(f'{tensor.name} ({tensor.path.name})')
      return values

    array = jax.make_array_from_callback(
      param.shape, place(path, param.shape), callback
    )
    return keys, param.replace(array)

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    filled = list(pool.map(made, nnx.to_flat_state(state)))
  if bad:
    names = sorted(bad)
    dtype = np.dtype(filled[0][1].dtype).name
    raise errors.UserError(
      f'{where}: {len(names)} tensors hold NaN or infinity as {dtype}: '
      f'{", ".join(names[:_SHOWN])}; fetch the weights again, or load them as '
      'float32'
    )
  return nnx.merge(graph, nnx.from_flat_state(filled))


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
  """Parameter path -> shape, of an abstract or a real model."""
  flat = nnx.to_flat_state(nnx.state(model))
  return {'.'.join(map(str, keys)): tuple(param.shape) for keys, param in flat}
