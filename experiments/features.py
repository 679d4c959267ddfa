"""Pictures through the vision tower, each of them once.

    records   picture a, q1 | picture a, q2 | picture b, q3
    tower     a, b                          b is kept for the next batch
    features  a | b | a | a ..              filled up to the bucket's pictures

A picture's features do not depend on what stands beside it or on what is kept
already: each call of the tower takes one picture (on a mesh, one for each row
of its data axis), so that they all go through one program, and a run that is
resumed gives the bytes of one that was not.
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
from corejax.experiments import resources as resources_lib

MAX_BYTES = 256 * 2**20  # kept on each device, beside those of the batch


def keys(encoded: inputs_lib.Encoded) -> tuple[str, ...]:
  """What tells an example's pictures from others: a hash of their pixels."""
  n_pictures = {len(array) for array in encoded.vision.values()}
  if len(n_pictures) != 1:
    raise ValueError(f'keys: one row a picture expected, {encoded.vision=}')
  digests = []
  for m in range(n_pictures.pop()):
    digest = hashlib.sha256()
    for name, array in sorted(encoded.vision.items()):
      digest.update(f'{name} {array.dtype} {array.shape[1:]}'.encode())
      digest.update(np.ascontiguousarray(array[m]).data)
    digests.append(digest.hexdigest())
  return tuple(digests)


@functools.partial(jax.jit, static_argnames=('see', 'attend', 'mesh'))
def _look(
  model: Any, vision: dict[str, jax.Array], *, see, attend, mesh
) -> tuple[jax.Array, ...]:
  """[I, D] of each picture, whole on every device."""
  features_MID = see(model, vision, attend=attend)
  if mesh is not None:
    # First where they are made: XLA must not be free to let every device look
    # at the whole group, where bits could depend on a picture's place in it.
    for axis in ('data', None):
      spec = jax.sharding.PartitionSpec(axis)
      sharding = jax.sharding.NamedSharding(mesh, spec)
      features_MID = jax.lax.with_sharding_constraint(features_MID, sharding)
  return tuple(features_MID)


_join = jax.jit(lambda pictures: jnp.concatenate(pictures))


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
      n_tokens: of the padded batch; there is room for as many features.

    Returns:
      The examples with an empty `vision` and a `feature_T` that counts rows
      of the second, features_ID [pictures * I, D], which `Inputs` takes. Its
      shape depends on n_tokens alone.
    """
    first = {}  # where each picture is found
    for example, names in zip(encoded, pictures, strict=True):
      for m, name in enumerate(names):
        first.setdefault(name, (example.vision, m))
    self._see(
      [(name, *first[name]) for name in first if name not in self._kept]
    )
    seen = []
    for name in first:
      self._kept.move_to_end(name)
      seen.append(self._kept[name])
    n_features = seen[0].shape[0]
    n_pictures = max(1, n_tokens // n_features)
    if len(seen) > n_pictures:
      raise ValueError(
        f'look: {len(seen)} pictures of {n_features} features in '
        f'{n_tokens} tokens'
      )
    self._forget()
    row = {name: n_features * i for i, name in enumerate(first)}
    return [
      _moved(example, [row[name] for name in names], n_features)
      for example, names in zip(encoded, pictures, strict=True)
    ], _join(seen + [seen[0]] * (n_pictures - len(seen)))

  def _see(self, new: list[tuple[str, dict[str, np.ndarray], int]]) -> None:
    """Runs the tower on (key, vision, row of vision)s."""
    loaded, mesh = self._resources.loaded, self._resources.mesh
    size = 1 if mesh is None else mesh.shape['data']
    for start in range(0, len(new), size):
      group = new[start : start + size]
      full = group + [group[0]] * (size - len(group))
      vision = {
        name: np.stack([vision[name][m] for _, vision, m in full])
        for name in full[0][1]
      }
      if mesh is not None:
        vision = resources_lib.spread(vision, mesh, 'data')
      with jax.default_matmul_precision(self._resources.precision):
        features = _look(
          loaded.model,
          vision,
          see=loaded.see,
          attend=self._resources.attend,
          mesh=mesh,
        )
      for (name, _, _), features_ID in zip(group, features):
        self._kept[name] = features_ID
      self.n_looked += len(group)

  def _forget(self) -> None:
    """Drops those used longest ago until max_bytes hold the rest."""
    total = sum(features_ID.nbytes for features_ID in self._kept.values())
    while total > self._max_bytes:
      total -= self._kept.popitem(last=False)[1].nbytes


def _moved(
  encoded: inputs_lib.Encoded, rows: Sequence[int], n_features: int
) -> inputs_lib.Encoded:
  """The example with picture m's features at rows[m] and up."""
  media_T, within_T = np.divmod(np.maximum(encoded.feature_T, 0), n_features)
  feature_T = np.asarray(rows, np.int32)[media_T] + within_T
  return dataclasses.replace(
    encoded,
    vision={},
    feature_T=np.where(encoded.feature_T >= 0, feature_T, -1).astype(np.int32),
  )
