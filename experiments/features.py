"""Pictures through the vision tower, each of them once.

    records   picture a, q1 | picture a, q2 | picture b, q3
    tower     a, b                          b is kept for the next batch
    features  a | b | 0 0 ..                as many rows as the batch has tokens

A picture's features do not depend on what stands beside it or on what is kept
already: each call of the tower takes one picture (on a mesh, one for each row
of its data axis), so that all of a size go through one program, and a run that
is resumed gives the bytes of one that was not. Where pictures differ in size,
each is padded to one of a few (`inputs.Shares`), by its own size alone.
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import inputs as inputs_lib
from corejax.experiments import buckets
from corejax.experiments import resources as resources_lib

MAX_BYTES = 256 * 2**20  # kept on each device, beside those of the batch


def keys(encoded: inputs_lib.Encoded) -> tuple[str, ...]:
  """What tells an example's pictures from others: a hash of their pixels."""
  digests = []
  for m in range(encoded.n_pictures):
    digest = hashlib.sha256()
    for name, array in sorted(encoded.picture(m).items()):
      digest.update(f'{name} {array.dtype} {array.shape}'.encode())
      digest.update(np.ascontiguousarray(array).data)
    digests.append(digest.hexdigest())
  return tuple(digests)


def _whole(x: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
  """On every device of the mesh, whole."""
  if mesh is None:
    return x
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.lax.with_sharding_constraint(x, sharding)


@functools.partial(jax.jit, static_argnames=('see', 'attend', 'mesh'))
def look_at(
  model: Any, vision: dict[str, jax.Array], *, see, attend, mesh
) -> tuple[jax.Array, ...]:
  """[I, D] of each picture, whole on every device."""
  features_MID = see(model, vision, attend=attend)
  if mesh is not None:
    # First where they are made: XLA must not be free to let every device look
    # at the whole group, where bits could depend on a picture's place in it.
    spec = jax.sharding.PartitionSpec('data')
    sharding = jax.sharding.NamedSharding(mesh, spec)
    features_MID = jax.lax.with_sharding_constraint(features_MID, sharding)
  return tuple(_whole(features_MID, mesh))


@functools.partial(jax.jit, static_argnames=('n_rows', 'mesh'))
def _empty(features_ID: jax.Array, *, n_rows: int, mesh) -> jax.Array:
  """Zeros [n_rows, D]."""
  shape = (n_rows, features_ID.shape[1])
  return _whole(jnp.zeros(shape, features_ID.dtype), mesh)


@functools.partial(jax.jit, static_argnames='mesh', donate_argnums=0)
def _put(
  table_ID: jax.Array, features_ID: jax.Array, start, count, *, mesh
) -> jax.Array:
  """The table with the first `count` of the features from row `start` on."""
  n_rows = table_ID.shape[0]
  i_I = jnp.arange(features_ID.shape[0])
  row_I = jnp.where(i_I < count, start + i_I, n_rows + i_I)
  table_ID = table_ID.at[row_I].set(
    features_ID, mode='drop', indices_are_sorted=True, unique_indices=True
  )
  return _whole(table_ID, mesh)


class FeatureCache:
  """The features of the pictures that were seen last.

  In several processes all must ask for the same pictures in the same order.
  """

  def __init__(
    self, resources: resources_lib.Resources, max_bytes: int = MAX_BYTES
  ):
    """Holds nothing yet.

    Args:
      resources: the model and where it runs.
      max_bytes: kept between two calls, on each device.
    """
    self._resources = resources
    self._max_bytes = max_bytes
    self._kept: collections.OrderedDict[str, jax.Array] = (
      collections.OrderedDict()
    )
    self.n_looked = 0  # pictures that went through the tower

  def look(
    self,
    encoded: Sequence[inputs_lib.Encoded],
    pictures: Sequence[Sequence[str]],
    n_tokens: int,
  ) -> tuple[list[inputs_lib.Encoded], jax.Array]:
    """The examples without pixels, and what takes their place.

    Args:
      encoded: the examples of a batch.
      pictures: `keys` of each.
      n_tokens: of the padded batch; there is room for as many features, or
        for more where tiles are shown in part or scaled down.

    Returns:
      The examples with an empty `vision` and a `feature_T` that counts rows
      of the second, features_ID [n_tokens, D], which `Inputs` takes; with more
      rows, one of a few numbers, where that is too little.
    """
    first = {}  # each picture, and how many features it has
    for example, names in zip(encoded, pictures, strict=True):
      for m, name in enumerate(names):
        first.setdefault(name, (example, m))
    self._see({n: place for n, place in first.items() if n not in self._kept})
    count = {}
    for name, (example, m) in first.items():
      self._kept.move_to_end(name)
      count[name] = self._kept[name].shape[0]
      if example.shares is not None:
        count[name] = int(example.shares.features_M[m])
    n_rows = n_tokens
    if sum(count.values()) > n_tokens:
      if not any(
        _shows_less(example, sum(count[name] for name in names))
        for example, names in zip(encoded, pictures)
      ):
        raise ValueError(
          f'look: {len(first)} pictures of {sum(count.values())} features in '
          f'{n_tokens} tokens'
        )
      n_rows = buckets.tokens(sum(count.values()))
    row, used, mesh = {}, 0, self._resources.mesh
    seen = [self._kept[name] for name in first]
    table_ID = _empty(seen[0], n_rows=n_rows, mesh=mesh)
    for name, features_ID in zip(first, seen):
      row[name], used = used, used + count[name]
      table_ID = _put(
        table_ID,
        features_ID,
        np.int32(row[name]),
        np.int32(count[name]),
        mesh=mesh,
      )
    self._forget()
    return [
      _moved(
        example, [row[name] for name in names], [count[name] for name in names]
      )
      for example, names in zip(encoded, pictures, strict=True)
    ], table_ID

  def _see(self, new: dict[str, tuple[inputs_lib.Encoded, int]]) -> None:
    """Runs the tower on pictures, given by key as (example, number)."""
    by_shape = collections.defaultdict(list)
    for name, (example, m) in new.items():
      picture = example.picture(m)
      shape = tuple(array.shape for array in picture.values())
      by_shape[shape].append((name, picture))
    for alike in by_shape.values():
      self._see_alike(alike)

  def _see_alike(self, new: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    """Runs the tower on (key, picture)s of one shape."""
    loaded, mesh = self._resources.loaded, self._resources.mesh
    size = 1 if mesh is None else mesh.shape['data']
    for start in range(0, len(new), size):
      group = new[start : start + size]
      full = group + [group[0]] * (size - len(group))
      vision = {
        name: np.stack([picture[name] for _, picture in full])
        for name in full[0][1]
      }
      if mesh is not None:
        vision = resources_lib.spread(vision, mesh, 'data')
      with jax.default_matmul_precision(self._resources.precision):
        features = look_at(
          loaded.model,
          vision,
          see=loaded.see,
          attend=self._resources.tower_attend,
          mesh=mesh,
        )
      for (name, _), features_ID in zip(group, features):
        self._kept[name] = features_ID
      self.n_looked += len(group)

  def _forget(self) -> None:
    """Drops those used longest ago until max_bytes hold the rest."""
    total = sum(features_ID.nbytes for features_ID in self._kept.values())
    while total > self._max_bytes:
      total -= self._kept.popitem(last=False)[1].nbytes


def _shows_less(encoded: inputs_lib.Encoded, n_features: int) -> bool:
  """Has it fewer visual tokens than its pictures have features?"""
  rows = encoded.feature_T.reshape(len(encoded.feature_T), -1)[:, 0]
  return bool((rows >= 0).sum() < n_features)


def _moved(
  encoded: inputs_lib.Encoded, rows: Sequence[int], counts: Sequence[int]
) -> inputs_lib.Encoded:
  """The example with picture m's counts[m] features at rows[m] and up."""
  at_F = np.concatenate([r + np.arange(n) for r, n in zip(rows, counts)])
  feature_T = at_F[np.maximum(encoded.feature_T, 0)]
  return dataclasses.replace(
    encoded,
    vision={},
    shares=None,
    feature_T=np.where(encoded.feature_T >= 0, feature_T, -1).astype(np.int32),
  )
