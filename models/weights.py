"""From safetensors files into a model's (sharded) arrays.

Every parameter is made by `jax.make_array_from_callback`: a process copies the
slices its devices hold out of the memory map, casts them, and stacks layers on
the way. Beyond the arrays themselves the host needs room for one parameter a
thread.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import dataclasses
import itertools
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
    tensors: one, or one a layer; with parts, n_parts an expert (and a layer),
      the parts of an expert next to each other.
    stacked: does the parameter lead with a layer axis?
    shape: of one layer as the parameter sees it (heads split, no L).
    swapped: the tensors hold the last two axes in the other order.
    n_parts: tensors that hold an expert; 0: a tensor holds a layer.
  """

  tensors: tuple[tensors_lib.Tensor, ...]
  stacked: bool
  shape: tuple[int, ...]
  swapped: bool = False
  n_parts: int = 0

  def pieces(
    self, index: tuple[slice, ...], values: np.ndarray
  ) -> Iterator[tuple[tensors_lib.Tensor, np.ndarray, np.ndarray]]:
    """Which tensor fills what of a part of the parameter.

    Args:
      index: the part.
      values: of its shape.

    Yields:
      A tensor, what of it is wanted as the parameter sees it, not yet copied,
      and where in `values` it goes.
    """
    if not self.stacked:
      yield from self._layer(self.tensors, index, values)
      return
    each = self.n_parts * self.shape[0] or 1
    n_layers = len(self.tensors) // each
    for to, layer in enumerate(range(n_layers)[index[0]]):
      mine = self.tensors[layer * each : (layer + 1) * each]
      yield from self._layer(mine, index[1:], values[to])

  def _layer(self, tensors, index, values):
    if not self.n_parts:
      (tensor,) = tensors
      if self.swapped:
        yield tensor, np.swapaxes(tensor.open(), -1, -2)[index], values
      else:
        yield tensor, tensor.open().reshape(self.shape)[index], values
      return
    n_experts, _, n_out = self.shape
    size = n_out // self.n_parts
    first, last, _ = index[2].indices(n_out)
    for to, expert in enumerate(range(n_experts)[index[0]]):
      for part in range(self.n_parts):
        start = max(first, part * size)
        stop = min(last, (part + 1) * size)
        if start < stop:
          tensor = tensors[expert * self.n_parts + part]
          mine = slice(start - part * size, stop - part * size)
          yield (
            tensor,
            tensor.open()[mine, index[1]].T,
            values[to, :, start - first : stop - first],
          )


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
    swapped, n_parts, names = False, 0, (entry.name,)
    if entry.parts and first is None:
      n_parts = len(entry.parts)
      n_experts, n_in, n_out = single
      expected = (n_out // n_parts, n_in)
      names = tuple(
        part.replace(map_lib.EXPERT, str(x))
        for x in range(n_experts)
        for part in entry.parts
      )
    elif entry.swap and first is not None and first.shape != expected:
      expected, swapped = (*expected[:-2], *expected[:-3:-1]), True
    found = []
    for layer, name in itertools.product(range(count), names):
      name = name.replace(map_lib.LAYER, str(layer))
      tensor = left.pop(name, None)
      if tensor is None:
        missing.append(name)
      elif tensor.shape != expected:
        misshapen.append(f'{name} is {tensor.shape}, not {expected}')
      elif tensor.dtype not in tensors_lib.FLOATS:
        wrong_type.append(f'{name} is {tensor.dtype}')
      else:
        found.append(tensor)
    sources[path] = Source(
      tuple(found), entry.stacked, single, swapped, n_parts
    )
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
  whole = source.shape
  if source.stacked:
    whole = (len(source.tensors), *whole)
    if source.n_parts:
      whole = (whole[0] // (source.n_parts * source.shape[0]), *whole[1:])
  sizes = tuple(
    len(range(*part.indices(size))) for part, size in zip(index, whole)
  )
  values = _aligned(sizes, dtype)
  with np.errstate(over='ignore'):  # an overflow is found as an infinity
    for _, wanted, to in source.pieces(index, values):
      to[...] = wanted
  return values


def _not_finite(
  source: Source, index: tuple[slice, ...], values: np.ndarray
) -> list[tensors_lib.Tensor]:
  """Of a part that `_read` gave: the tensors whose share is not finite."""
  if _is_finite(values):
    return []
  pieces = source.pieces(index, values)
  return [tensor for tensor, _, mine in pieces if not _is_finite(mine)]


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
