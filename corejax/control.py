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
    rows_BT: bool [1|B, T] or None (all rows), the query rows that the limits
      hold for; no leading L.
  """

  window_BN: jax.Array
  sink_BN: jax.Array
  score_scale_BN: jax.Array
  blocked_BNR: jax.Array | None = None
  region_BS: jax.Array | None = None
  rows_BT: jax.Array | None = None

  __repr__ = describe.fields

  def of_head(self, n: jax.Array | int) -> 'AttendControl':
    """The same of one head: N is 1."""
    per_head = ('window_BN', 'sink_BN', 'score_scale_BN', 'blocked_BNR')
    taken = {
      name: jax.lax.dynamic_slice_in_dim(value, n, 1, axis=1)
      for name in per_head
      if (value := getattr(self, name)) is not None
    }
    return dataclasses.replace(self, **taken)

  @property
  def scale_BNTS(self) -> jax.Array:
    """float32 [1|B, N, 1|T, 1], what scores are multiplied by, row by row."""
    scale_BNTS = self.score_scale_BN[..., None, None]
    if self.rows_BT is None:
      return scale_BNTS
    return jnp.where(self.rows_BT[:, None, :, None], scale_BNTS, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputControl:
  """Per-head edit of what is written; in a HeadControl with a leading L.

      out <- gate * out + (1 - gate) * replacement     on the chosen rows

  A term whose factor is exactly 0 is dropped even where it is not finite: a
  gate of 0 removes a head that overflowed, a gate of 1 never looks at the
  replacement. Slopes by the gate stay those of the formula, with 0 for what
  was dropped. (Backwards through the attention that made a NaN it still
  spreads, as in any softmax.)

  Attributes:
    gate_BN: float32 [1|B, N]: 1 keep, 0 ablate; differentiable.
    replacement_BTNH: [1|B, 1|T, N, H] or None (zeros); with source_BT any
      number of rows.
    rows_BT: bool [1|B, T] or None (all rows); no leading L.
    source_BT: int32 [1|B, T] or None, the row of replacement_BTNH that each
      row takes (its class's mean, its place in another example); no leading L.
  """

  gate_BN: jax.Array
  replacement_BTNH: jax.Array | None = None
  rows_BT: jax.Array | None = None
  source_BT: jax.Array | None = None

  __repr__ = describe.fields


# The same for all layers, so they do not lead with L.
_SHARED_ATTEND = ('region_BS', 'rows_BT')
_SHARED_OUTPUT = ('rows_BT', 'source_BT')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadControl:
  """Both controls of all layers.

  Every array leads with L, but for region_BS, rows_BT and source_BT.
  """

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
      dataclasses.replace(self.attend, **dict.fromkeys(_SHARED_ATTEND)),
      dataclasses.replace(self.output, **dict.fromkeys(_SHARED_OUTPUT)),
    )
    shared = (
      {name: getattr(self.attend, name) for name in _SHARED_ATTEND},
      {name: getattr(self.output, name) for name in _SHARED_OUTPUT},
    )
    return stacked, shared

  def join(self, shared) -> 'HeadControl':
    """Inverse of `per_layer` on one slice of `stacked`."""
    of_attend, of_output = shared
    return HeadControl(
      dataclasses.replace(self.attend, **of_attend),
      dataclasses.replace(self.output, **of_output),
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
  edited = gate * _dropped(out_BTNH, gate == 0)
  if control.replacement_BTNH is not None:
    replacement = control.replacement_BTNH
    if control.source_BT is not None:
      source = control.source_BT[..., None, None]
      replacement = jnp.take_along_axis(replacement, source, axis=1)
    edited = edited + (1.0 - gate) * _dropped(replacement, gate == 1)
  edited = edited.astype(out_BTNH.dtype)
  if control.rows_BT is None:
    return edited
  return jnp.where(control.rows_BT[:, :, None, None], edited, out_BTNH)


def _dropped(x_BTNH: jax.Array, unused: jax.Array) -> jax.Array:
  """x with 0 for what is both unused and not finite, as 0 * NaN is NaN.

  Zeroing all that is unused would take its slope by the gate away.
  """
  return jnp.where(unused & ~jnp.isfinite(x_BTNH), 0, x_BTNH)
