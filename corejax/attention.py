"""The attention contract: the one function a model is handed.

    attend(q_BTNH, k_BSKH, v_BSKH, mask, control=None, probe=None) -> AttendOut

Any function of this signature serves: `reference` below (plain jnp, stores the
[T, S] scores), an implementation of `corejax.kernels`, one of those wrapped in
`corejax.kernels.dispatch.sharded`, or a user's own router.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import describe
from corejax import masks
from corejax import probe as probe_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttendOut:
  """Result of one layer's attention.

  Attributes:
    out_BTNH: head outputs before the output projection, dtype of v; 0 at rows
      that may read nothing.
    measured: what the probe saw, None without a probe.
  """

  out_BTNH: jax.Array
  measured: probe_lib.Measured | None = None

  __repr__ = describe.fields


Attend = Callable[..., AttendOut]


def reference(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  probe: probe_lib.Probe | None = None,
) -> AttendOut:
  """The specification: softmax(q k^T / sqrt(H)) v with every mask and control.

  Grouped-query attention without repeating k and v; softmax in float32. Stores
  4 * B * N * T * S bytes.

  Args:
    q_BTNH: queries, after RoPE and norms.
    k_BSKH: keys; query head n reads kv head n // (N / K).
    v_BSKH: values.
    mask: who may read whom.
    control: one layer's AttendControl.
    probe: what to measure on the way.

  Returns:
    AttendOut, out_BTNH in v's dtype.
  """
  batch, length, n_heads, head_dim = q_BTNH.shape
  n_kv = k_BSKH.shape[2]
  a_BNTS = probe_lib.attention_weights(
    q_BTNH,
    k_BSKH,
    masks.row_positions(mask, batch, length),
    mask,
    control,
    mask.q_segment_BT,
  )
  a_BKGTS = a_BNTS.reshape(batch, n_kv, n_heads // n_kv, length, -1)
  out = jnp.einsum(
    'BKGTS,BSKH->BTKGH',
    a_BKGTS,
    v_BSKH.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  ).reshape(batch, length, n_heads, head_dim)
  measured = None
  if probe is not None:
    measured = probe_lib.measure(q_BTNH, k_BSKH, mask, control, probe)
  return AttendOut(out.astype(v_BSKH.dtype), measured)
