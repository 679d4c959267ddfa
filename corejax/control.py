"""What an experiment may do to a head, as arrays that need no recompilation.

`AttendControl` is what a kernel is told: where a head may look. `OutputControl`
is applied once in the decoder, before the output projection: what a head may
write. `HeadControl` is both, stacked on layers, and travels through the layer
scan; a sweep over head sets, a `vmap` over ablations and per-example sets in
a batch all run the same executable.
"""

import dataclasses

import jax
import jax.numpy as jnp

from corejax import describe
from corejax import heads as heads_lib
from corejax import masks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttendControl:
  """Per-head limits on reading; in a HeadControl each has a leading L.

  Attributes:
    window_BN: int32 [1|B, N]; key j is seen iff j <= i and (i - j < window or
      j < sink). masks.DENSE is dense.
    sink_BN: int32 [1|B, N], counted from the first real key.
    score_scale_BN: float32 [1|B, N] on the scores, after 1/sqrt(H); 1 leaves
      them, 0 gives causal uniform attention.
    blocked_BNR: bool [1|B, N, R] or None, regions a head may not read.
    region_BS: int8 [B, S] or None, region of every key; with blocked_BNR
      only. The same for all layers: it has no leading L.
  """

  window_BN: jax.Array
  sink_BN: jax.Array
  score_scale_BN: jax.Array
  blocked_BNR: jax.Array | None = None
  region_BS: jax.Array | None = None

  __repr__ = describe.fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputControl:
  """Per-head edit of what is written; in a HeadControl with a leading L.

      out <- gate * out + (1 - gate) * replacement     on the chosen rows

  Attributes:
    gate_BN: float32 [1|B, N]: 1 keep, 0 ablate; differentiable.
    replacement_BTNH: [1|B, 1|T, N, H] or None (zeros).
    rows_BT: bool [1|B, T] or None (all rows); no leading L.
  """

  gate_BN: jax.Array
  replacement_BTNH: jax.Array | None = None
  rows_BT: jax.Array | None = None

  __repr__ = describe.fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadControl:
  """Both controls of all layers: every array but region/rows leads with L."""

  attend: AttendControl
  output: OutputControl

  __repr__ = describe.fields

  @classmethod
  def intact(cls, n_layers: int, n_heads: int) -> 'HeadControl':
    """Changes nothing: the output is bit-equal to that without a control."""
    shape = (n_layers, 1, n_heads)
    return cls(
      AttendControl(
        jnp.full(shape, masks.DENSE, jnp.int32),
        jnp.zeros(shape, jnp.int32),
        jnp.ones(shape, jnp.float32),
      ),
      OutputControl(jnp.ones(shape, jnp.float32)),
    )

  def with_gate(self, gate_LN: jax.Array) -> 'HeadControl':
    """The same with these gates, float32 [L, N]."""
    gate_LBN = jnp.asarray(gate_LN, jnp.float32)[:, None]
    return dataclasses.replace(
      self, output=dataclasses.replace(self.output, gate_BN=gate_LBN)
    )

  def per_layer(self):
    """(stacked, shared): what `lax.scan` slices and what every layer sees."""
    stacked = HeadControl(
      dataclasses.replace(self.attend, region_BS=None),
      dataclasses.replace(self.output, rows_BT=None),
    )
    return stacked, (self.attend.region_BS, self.output.rows_BT)

  def join(self, shared) -> 'HeadControl':
    """Inverse of `per_layer` on one slice of `stacked`."""
    region_BS, rows_BT = shared
    return HeadControl(
      dataclasses.replace(self.attend, region_BS=region_BS),
      dataclasses.replace(self.output, rows_BT=rows_BT),
    )


def gates(
  head_set: heads_lib.HeadSet, n_layers: int, n_heads: int
) -> jax.Array:
  """float32 [L, N]: 0 at the heads of the set, 1 elsewhere.

  Raises:
    UserError: a head is outside the model.
  """
  return 1.0 - jnp.asarray(head_set.mask(n_layers, n_heads), jnp.float32)


def apply_output(
  out_BTNH: jax.Array, control: OutputControl | None
) -> jax.Array:
  """The edited head outputs; float32 gates, the dtype of `out` is kept."""
  if control is None:
    return out_BTNH
  # astype drops a weak type too, which would compute in the output's bfloat16.
  gate = control.gate_BN.astype(jnp.float32)[:, None, :, None]
  edited = gate * out_BTNH
  if control.replacement_BTNH is not None:
    edited = edited + (1.0 - gate) * control.replacement_BTNH
  edited = edited.astype(out_BTNH.dtype)
  if control.rows_BT is None:
    return edited
  return jnp.where(control.rows_BT[:, :, None, None], edited, out_BTNH)
