"""Questions that begin alike: what they begin with is read once.

    records     pictures a, q1 | pictures a, q2 | pictures a, q3 | ..
    prefixes    pictures a
    suffixes    q1 | q2 | q3 | ..      each sees its prefix's keys and values

A prefix is all of a prompt before the question's first token; two are one if
tokens, positions and pictures' features are the same throughout. No row of it
can see the question, so its keys and values are those of the whole prompt,
and all rows that are measured come later. A batch is read in this way where

- its prefixes are at most a quarter of its records, an eighth where it is read
  more than once (so many are run, whatever the batch has, so that each shape
  has one program more and not several),
- no prefix is shorter than the longest suffix,
- keys and values fit into 64 MiB or a quarter of the model's own size, and
- the model's parameters, times how often a batch is read (a sweep reads it once
  for each set of heads), come to LEAST_PARAMETERS.

All of that is known of the batch and the model alone.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import evidence
from corejax import inputs as inputs_lib
from corejax import regions
from corejax import rows as rows_lib
from corejax.experiments import buckets
from corejax.experiments import resources as resources_lib
from corejax.models import registry

# The second program costs about 2.5 CPU seconds to compile. It saves 0.02 s a
# batch with 1.4 million parameters, and 0.1 to 0.3 s with 28 million.
LEAST_PARAMETERS = 10_000_000
_FREE_BYTES = 64 * 2**20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
  """The device's part of a plan.

  Attributes:
    inputs: the prefixes, padded to U of them.
    index_B: int32 [B], each example's prefix.
  """

  inputs: inputs_lib.Inputs
  index_B: jax.Array

  def read(
    self,
    model: Any,
    n_more: int,
    *,
    forward: registry.Forward,
    attend: attention.Attend,
    new_cache: registry.NewCache,
    control: control_lib.HeadControl | None = None,
  ) -> cache_lib.Cache:
    """The cache from which the examples go on, with n_more empty slots.

    A control must hold for all examples that share a prefix.
    """
    n_prefixes, length = self.inputs.tokens_BT.shape
    out = forward(
      model,
      self.inputs,
      attend=attend,
      control=control,
      logit_rows_BP=jnp.zeros((n_prefixes, 1), jnp.int32),
      cache=new_cache(model, n_prefixes, length + n_more),
    )
    assert out.cache is not None
    return out.cache.take(self.index_B)


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a batch is cut.

  Attributes:
    prefixes: with copies of the first up to the number of slots.
    length: tokens to which they are padded.
    suffixes: what is left of each example.
    annotated: the examples' rows, counted from their suffixes' starts.
    suffix: bucket of the suffixes.
    index: each example's prefix.
    starts: each example's tokens in its prefix.
  """

  prefixes: list[inputs_lib.Encoded]
  length: int
  suffixes: list[inputs_lib.Encoded]
  annotated: list[evidence.Annotated]
  suffix: buckets.Bucket
  index: list[int]
  starts: list[int]

  def rows(self, whole: rows_lib.Rows) -> tuple[rows_lib.Rows, rows_lib.Rows]:
    """(prefixes' rows, suffixes' rows), of those of the examples read whole."""
    first_U = [self.index.index(u) for u in range(max(self.index) + 1)]
    first_U += first_U[:1] * (len(self.prefixes) - len(first_U))
    starts_B = np.array(self.starts)

    def cut(x_BT, fill):
      x_BT = np.asarray(x_BT)
      # Room for the rows of suffixes that are padding.
      x_BT = np.pad(
        x_BT, ((0, 0), (0, self.suffix.length)), constant_values=fill
      )
      before_UT = x_BT[first_U, : self.length]
      own_UT = np.arange(self.length) < starts_B[first_U, None]
      after_BT = np.take_along_axis(
        x_BT, starts_B[:, None] + np.arange(self.suffix.length), axis=1
      )
      return np.where(own_UT, before_UT, fill), after_BT

    cuts: dict[str, Any] = {
      field.name: cut(
        getattr(whole, field.name),
        regions.PADDING_ROW if field.name == 'class_BT' else False,
      )
      for field in dataclasses.fields(whole)
    }
    before, after = (
      rows_lib.Rows(**{name: pair[i] for name, pair in cuts.items()})
      for i in (0, 1)
    )
    return before, after


def _size(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _cut(encoded: inputs_lib.Encoded, rows: slice) -> inputs_lib.Encoded:
  return dataclasses.replace(
    encoded,
    tokens_T=encoded.tokens_T[rows],
    positions_T=encoded.positions_T[..., rows],
    feature_T=encoded.feature_T[rows],
    blend_TK=None if encoded.blend_TK is None else encoded.blend_TK[rows],
  )


class Sharing:
  """Decides how batches of one model are cut."""

  def __init__(
    self,
    resources: resources_lib.Resources,
    batch_size: int,
    n_passes: int = 1,
  ):
    """Reads sizes only.

    Args:
      resources: the model and where it runs.
      batch_size: examples of a full batch.
      n_passes: how often each batch is read.
    """
    loaded = resources.loaded
    n_data = 1 if resources.mesh is None else resources.mesh.shape['data']
    n_slots = batch_size // (8 if n_passes > 1 else 4)
    n_slots = -(-max(1, n_slots) // n_data) * n_data
    n_read = n_passes * sum(x.size for x in jax.tree.leaves(loaded.model))
    worth = n_read >= LEAST_PARAMETERS and n_slots <= batch_size // 2
    self._n_slots = n_slots if worth else 0
    self._n_passes = n_passes
    one = jax.eval_shape(lambda m: loaded.new_cache(m, 1, 1), loaded.model)
    self._most_keys = max(_FREE_BYTES, _size(loaded.model) // 4) // _size(one)

  def plan(
    self,
    encoded: Sequence[inputs_lib.Encoded],
    annotated: Sequence[evidence.Annotated],
  ) -> Plan | None:
    """How to cut a batch; None where each prompt is to be read by itself.

    Args:
      encoded: a full batch; feature_T counts the batch's features, so that the
        same picture has the same rows (features.FeatureCache.look).
      annotated: the same examples.
    """
    starts = [e.question[0] for e in encoded]
    suffixes = [_cut(e, slice(n, None)) for e, n in zip(encoded, starts)]
    longest = max(len(e.tokens_T) for e in suffixes)
    if not self._n_slots or min(starts) < longest:
      return None
    found: dict[tuple[bytes, ...], int] = {}
    firsts, index = [], []
    for e, n in zip(encoded, starts):
      prefix = _cut(e, slice(n))
      arrays = [prefix.tokens_T, prefix.positions_T, prefix.feature_T]
      if prefix.blend_TK is not None:
        arrays.append(prefix.blend_TK)
      key = tuple(array.tobytes() for array in arrays)
      if key not in found:
        found[key] = len(found)
        firsts.append(prefix)
      index.append(found[key])
    length, n_rows = buckets.tokens(max(starts)), buckets.rows(longest)
    # A program more is cheap beside many passes over rows that are padding.
    n_more = n_rows if self._n_passes == 1 else buckets.tokens(longest)
    n_keys = (self._n_slots + len(encoded)) * (length + n_more)
    if len(firsts) > self._n_slots or n_keys > self._most_keys:
      return None
    return Plan(
      prefixes=firsts + [firsts[0]] * (self._n_slots - len(firsts)),
      length=length,
      suffixes=suffixes,
      annotated=[
        dataclasses.replace(
          a, rows={name: rows - n for name, rows in a.rows.items()}
        )
        for a, n in zip(annotated, starts)
      ],
      suffix=buckets.Bucket(n_more, n_rows),
      index=index,
      starts=starts,
    )
