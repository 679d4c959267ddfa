"""Answers and the time that they took, out of the same calls.

    batch -> Ready        padded, with pixels, on the device
    prefill               pixels and tokens -> the forced answer judged
    attention             the attention of all layers alone, on random numbers

One call of `prefill` is what a user waits for: the vision tower, the whole
prompt, and the logits of the first answer token (the tokens of a longer forced
answer but the last are read with it). The control is an array, so that every
set of heads runs the same executable. Calls that are compared take turns within
a batch, in an order drawn anew, and are waited for one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention as attention_lib
from corejax import control as control_lib
from corejax import inputs as inputs_lib
from corejax import likelihood
from corejax import masks
from corejax import regions
from corejax import routing
from corejax.experiments import buckets
from corejax.experiments import resources as resources_lib
from corejax.experiments import sweep
from corejax.kernels import dispatch


@functools.partial(jax.jit, static_argnames=('forward', 'attend', 'mesh'))
def prefill(
  model: Any,
  inputs: inputs_lib.Inputs,
  control: control_lib.HeadControl,
  answer_rows_BA: jax.Array,
  answer_BA: jax.Array,
  *,
  forward: Any,
  attend: attention_lib.Attend,
  mesh: jax.sharding.Mesh | None,
) -> jax.Array:
  """float32 [2, B]: is the forced answer right, and its log p in nats."""
  out = forward(
    model,
    inputs,
    attend=attend,
    control=control,
    logit_rows_BP=jnp.maximum(answer_rows_BA, 0),
  )
  forced = likelihood.forced(out.logits_BPV, answer_BA)
  found = jnp.stack([forced.correct_B.astype(jnp.float32), forced.logprob_B])
  if mesh is None:
    return found
  return jax.lax.with_sharding_constraint(
    found, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )


@functools.partial(jax.jit, static_argnames='attend')
def attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl,
  *,
  attend: attention_lib.Attend,
) -> jax.Array:
  """The attention of all layers, one after the other.

  Args:
    q_BTNH, k_BSKH, v_BSKH: any numbers; each layer's output is the next one's
      q, so that none can be left out or done early.
    mask: who may read whom.
    control: stacked on layers.
    attend: static.
  """

  def layer(q_BTNH, control):
    return attend(q_BTNH, k_BSKH, v_BSKH, mask, control).out_BTNH, None

  stacked = dataclasses.replace(control, region_BS=None, rows_BT=None)
  return jax.lax.scan(layer, q_BTNH, stacked)[0]


@dataclasses.dataclass(frozen=True)
class Ready:
  """A batch as the model takes it, on the device.

  Attributes:
    inputs: with pixels.
    answer_BA, answer_rows_BA: int32, -1 unused.
    region_BS: int8, region of every key, as corejax.routing takes it.
    n: examples; the rest are copies of the first.
  """

  inputs: inputs_lib.Inputs
  answer_BA: jax.Array
  answer_rows_BA: jax.Array
  region_BS: jax.Array
  n: int

  @property
  def length(self) -> int:
    """Tokens of each sequence, padding included."""
    return self.inputs.tokens_BT.shape[1]

  @property
  def shapes(self) -> tuple[tuple[int, ...], ...]:
    """What an executable is compiled for, longer answers included."""
    taken = self.inputs, self.answer_BA, self.answer_rows_BA
    return tuple(x.shape for x in jax.tree.leaves(taken))


def ready(
  resources: resources_lib.Resources, batch: sweep.Batch, size: int
) -> Ready:
  """Pads a batch that has examples and puts it where it runs.

  Args:
    resources: the model and where it runs.
    batch: as `sweep.read` reads it.
    size: examples of the padded batch.
  """
  fill = [0] * (size - len(batch.encoded))
  encoded = [*batch.encoded, *(batch.encoded[i] for i in fill)]
  annotated = [*batch.annotated, *(batch.annotated[i] for i in fill)]
  most = max(e.n_pictures for e in encoded)
  bucket = buckets.Bucket.of(
    [len(e.tokens_T) for e in encoded],
    [len(a.rows['answer']) for a in annotated],
  )
  inputs = resources.loaded.processor.collate(
    encoded, bucket.length, size * most
  )
  region_BS = np.full((size, bucket.length), regions.OTHER_TEXT, np.int8)
  answer_BA = np.full((size, bucket.rows), -1, np.int32)
  answer_rows_BA = np.full((size, bucket.rows), -1, np.int32)
  for b, (e, a) in enumerate(zip(encoded, annotated)):
    region_BS[b, : len(a.region_T)] = a.region_T
    region_BS[b, e.prompt_len : len(e.tokens_T)] = routing.BEHIND
    answer_BA[b, : len(e.answer_A)] = e.answer_A
    answer_rows_BA[b, : len(a.rows['answer'])] = a.rows['answer']
  arrays = (inputs, answer_BA, answer_rows_BA, region_BS)
  if resources.mesh is not None:
    arrays = resources_lib.spread(arrays, resources.mesh, 'data')
  else:
    arrays = jax.tree.map(jnp.asarray, arrays)
  inputs, answers, rows, regions_BS = jax.block_until_ready(arrays)
  return Ready(inputs, answers, rows, regions_BS, len(batch.encoded))


@dataclasses.dataclass(frozen=True)
class Geometry:
  """What an attention call of a model is like.

  Attributes:
    n_layers, n_heads, n_kv_heads, head_dim: L, N, K, H.
    dtype: of keys and values.
  """

  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  dtype: Any

  @classmethod
  def of(cls, resources: resources_lib.Resources) -> Geometry:
    """Read off an empty cache; makes none."""
    loaded = resources.loaded
    cache = jax.eval_shape(lambda: loaded.new_cache(loaded.model, 1, 1))
    n_layers, _, _, n_kv_heads, head_dim = cache.k_LBSKH.shape
    return cls(
      n_layers, loaded.n_heads, n_kv_heads, head_dim, cache.k_LBSKH.dtype
    )

  def picked(self, batch: int, length: int) -> str:
    """Which kernel serves such calls here: dtypes and devices decide."""
    q, kv = (
      jax.ShapeDtypeStruct((batch, length, n, self.head_dim), self.dtype)
      for n in (self.n_heads, self.n_kv_heads)
    )
    return dispatch.picked(q, kv, kv, masks.AttnMask())

  def random(
    self, batch: int, length: int, mesh: jax.sharding.Mesh | None = None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(q, k, v) of standard normal numbers, the same at every call."""
    rng = np.random.default_rng(0)

    def draw(n_heads):
      shape = (batch, length, n_heads, self.head_dim)
      array = rng.standard_normal(shape, np.float32).astype(self.dtype)
      if mesh is not None:
        return resources_lib.spread(array, mesh, 'data')
      return jnp.asarray(array)

    return jax.block_until_ready(
      (draw(self.n_heads), draw(self.n_kv_heads), draw(self.n_kv_heads))
    )


def control_of(
  window_LBN: Any, sink_LBN: Any, region_BS: jax.Array | None = None
) -> control_lib.HeadControl:
  """A control of windows and sinks alone.

  Args:
    window_LBN, sink_LBN: int32 [L, 1|B, N].
    region_BS: regions of the keys, for an attention that asks for them.
  """
  n_layers, _, n_heads = window_LBN.shape
  intact = control_lib.HeadControl.intact(n_layers, n_heads)
  shape = window_LBN.shape
  attend = control_lib.AttendControl(
    jnp.asarray(window_LBN, jnp.int32),
    jnp.asarray(sink_LBN, jnp.int32),
    jnp.ones(shape, jnp.float32),
    region_BS=region_BS,
  )
  return dataclasses.replace(intact, attend=attend)


def clock(call: Callable[[], Any]) -> tuple[Any, float]:
  """(what the call returns, seconds until it is there)."""
  began = time.perf_counter()
  found = jax.block_until_ready(call())
  return found, time.perf_counter() - began


def take_turns(
  calls: Sequence[Callable[[], Any]], turn: int, repeats: int
) -> tuple[list[Any], np.ndarray]:
  """Every call `repeats` times, in turns.

  Args:
    calls: what is compared; compiled before.
    turn: number of the batch; the order is drawn anew for each round, so that
      whatever else the machine does meets all calls alike.
    repeats: rounds.

  Returns:
    (what each call returned at last, float64 [X, repeats] seconds).
  """
  n = len(calls)
  found: list[Any] = [None] * n
  seconds_XR = np.zeros((n, repeats))
  for r in range(repeats):
    for x in np.random.default_rng([turn, r]).permutation(n):
      found[x], seconds_XR[x, r] = clock(calls[x])
  return found, seconds_XR
