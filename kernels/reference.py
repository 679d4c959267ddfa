"""What attention is: in float64 without JAX, and dense in plain jnp.

`oracle` spells the visibility of every single (row, key) out of the words of
AttnMask and AttendControl; it shares no code with corejax.masks or
corejax.probe and so tests them too.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention
from corejax import control as control_lib
from corejax import masks


def _array(x, default: int, *shape: int) -> np.ndarray:
  return np.broadcast_to(default if x is None else np.asarray(x), shape)


def oracle(
  q_BTNH: np.ndarray,
  k_BSKH: np.ndarray,
  v_BSKH: np.ndarray,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Attention in float64, row by row.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; query head n reads kv head n // (N / K).
    v_BSKH: values.
    mask: who may read whom.
    control: one layer's control.

  Returns:
    out_BTNH and lse_BNT, float64; rows that may read nothing have out 0 and
    lse -inf.
  """
  q, k, v = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
  # Once, as numpy: reading single elements of jax arrays is slow.
  mask, control = jax.tree.map(np.asarray, (mask, control))
  batch, length, n_heads, head_dim = q.shape
  n_keys, n_kv = k.shape[1:3]
  offset = _array(mask.q_offset_B, 0, batch)
  start = _array(mask.kv_start_B, 0, batch)
  stop = _array(mask.kv_len_B, n_keys, batch)
  # Segment 0 everywhere is one that all may read.
  q_segment = _array(mask.q_segment_BT, 0, batch, length)
  kv_segment = _array(mask.kv_segment_BS, 0, batch, n_keys)
  window = _array(None, masks.DENSE, batch, n_heads)
  sink = _array(None, 0, batch, n_heads)
  scale = np.ones((batch, n_heads))
  barred = np.zeros((batch, n_heads, 1), bool)
  region = _array(None, 0, batch, n_keys)
  limited = np.ones((batch, length), bool)
  if control is not None:
    window = _array(control.window_BN, 0, batch, n_heads)
    sink = _array(control.sink_BN, 0, batch, n_heads)
    scale = _array(control.score_scale_BN, 1, batch, n_heads)
    if control.blocked_BNR is not None:
      shape = (batch, n_heads, control.blocked_BNR.shape[-1])
      barred = _array(control.blocked_BNR, 0, *shape)
      region = _array(control.region_BS, 0, batch, n_keys)
    limited = _array(control.rows_BT, True, batch, length)
  out = np.zeros(q.shape)
  lse = np.full((batch, n_heads, length), -np.inf)
  for b, n, t in np.ndindex(batch, n_heads, length):
    i = t + offset[b]
    keys = []
    for j in range(max(start[b], 0), min(stop[b], n_keys)):
      if mask.causal and j > i:
        continue
      if mask.window is not None and i - j >= mask.window:
        continue
      if kv_segment[b, j] not in (0, q_segment[b, t]):
        continue
      if limited[b, t]:
        if i - j >= window[b, n] and j - start[b] >= sink[b, n]:
          continue
        if barred[b, n, region[b, j]]:
          continue
      keys.append(j)
    if not keys:
      continue
    kv = n // (n_heads // n_kv)
    scores = k[b, keys, kv] @ q[b, t, n] / math.sqrt(head_dim)
    if limited[b, t]:
      scores = scores * scale[b, n]
    lse[b, n, t] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
    out[b, t, n] = np.exp(scores - lse[b, n, t]) @ v[b, keys, kv]
  return out, lse


def head_sparse_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  *,
  return_lse: bool = False,
):
  """Dense attention by corejax.attention.reference, with its log-sum-exp.

  Serves every mask and control and is differentiable in q, k, v and the
  control's score_scale. Stores 4 * B * N * T * S bytes.

  Args:
    q_BTNH: queries, after RoPE and norms.
    k_BSKH: keys; query head n reads kv head n // (N / K).
    v_BSKH: values.
    mask: who may read whom.
    control: one layer's control.
    return_lse: also return the log-sum-exp of the scores.

  Returns:
    out_BTNH in v's dtype, or (out_BTNH, lse_BNT) with lse_BNT float32, natural
    logarithm, -inf at rows that may read nothing.
  """
  out = attention.reference(q_BTNH, k_BSKH, v_BSKH, mask, control).out_BTNH
  if not return_lse:
    return out
  batch, length, n_heads, head_dim = q_BTNH.shape
  n_kv = k_BSKH.shape[2]
  q_BTKGH = q_BTNH.astype(jnp.float32).reshape(
    batch, length, n_kv, n_heads // n_kv, head_dim
  )
  s_BKGTS = jnp.einsum(
    'BTKGH,BSKH->BKGTS',
    q_BTKGH,
    k_BSKH.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  s_BNTS = s_BKGTS.reshape(batch, n_heads, length, -1) / math.sqrt(head_dim)
  if control is not None:
    s_BNTS = s_BNTS * control.scale_BNTS
  i_BT = masks.row_positions(mask, batch, length)
  seen = masks.visible(mask, i_BT, k_BSKH.shape[1], control, mask.q_segment_BT)
  return out, jax.nn.logsumexp(s_BNTS, axis=-1, where=seen)
