"""Dense attention by cuDNN on Hopper (sm90) and later.

The fastest dense attention there is on those cards, and no more than that: no
control, no log-sum-exp, no chunks. It is taken by name only: were it picked for
calls without a control, ablating nothing would no longer be bit-equal to the
intact model.
"""

import jax
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import limits as limits_lib
from corejax.kernels import targets
from corejax.kernels import triton

_MAX_HEAD_DIM = 128
_LOWEST_CAPABILITY = 90


def unsupported(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None,
  *,
  target: targets.Target | None = None,
) -> str | None:
  """Why this call cannot be served on this machine (or target), or None."""
  return _call_refused(
    q_BTNH, k_BSKH, v_BSKH, mask, control
  ) or triton.device_refused(_LOWEST_CAPABILITY, target)


def _call_refused(q_BTNH, k_BSKH, v_BSKH, mask, control) -> str | None:
  if control is not None:
    return "is dense: it serves no control; 'triton' and 'xla' do"
  for name in ('q_offset_B', 'kv_start_B', 'window'):
    if getattr(mask, name) is not None:
      return f"serves no mask with {name}; 'triton' and 'xla' do"
  if mask.kv_segment_BS is not None:
    return "serves no segments (packed questions, windows, frames); 'xla' does"
  n_rows, n_keys = q_BTNH.shape[1], k_BSKH.shape[1]
  if mask.causal and n_rows > n_keys:
    return f'{n_rows} causal rows on {n_keys} keys; give as many keys'
  reason = triton.dtypes_refused(q_BTNH, k_BSKH, v_BSKH)
  if reason is not None:
    return reason
  head_dim = q_BTNH.shape[-1]
  if head_dim > _MAX_HEAD_DIM or head_dim % 8:
    return f'head dim {head_dim}; it serves multiples of 8 up to 128'
  return None


def head_sparse_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  *,
  return_lse: bool = False,
):
  """Dense attention of one layer through jax.nn.dot_product_attention.

  Differentiable and batched by vmap, both as jax does it.

  Args:
    q_BTNH: queries, after RoPE and norms; bfloat16 or float16.
    k_BSKH: keys; query head n reads kv head n // (N / K).
    v_BSKH: values.
    mask: causal or not, with or without kv_len_B.
    control: None.
    return_lse: refused. jax rounds cuDNN's float32 log-sum-exp to the output's
      dtype, and its gradient leaves the log-sum-exp out.

  Returns:
    out_BTNH in v's dtype; 0 for sequences without keys.

  Raises:
    NotImplementedError: cuDNN does not serve such a call.
    UserError: shapes or dtypes that do not belong together.
  """
  limits_lib.check(q_BTNH, k_BSKH, v_BSKH, mask, control)
  reason = _call_refused(q_BTNH, k_BSKH, v_BSKH, mask, control)
  if return_lse:
    reason = "returns no float32 log-sum-exp; 'triton' and 'xla' do"
  if reason is not None:
    raise NotImplementedError(f"attention 'cudnn': {reason}")
  length_B = mask.kv_len_B
  if length_B is not None:
    length_B = jnp.clip(length_B, 0, k_BSKH.shape[1]).astype(jnp.int32)
  out_BTNH = jax.nn.dot_product_attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    is_causal=mask.causal,
    key_value_seq_lengths=length_B,
    implementation='cudnn',
  )
  if length_B is None:
    return out_BTNH
  return jnp.where(length_B[:, None, None, None] > 0, out_BTNH, 0)
