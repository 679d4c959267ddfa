"""Attention in which each head costs only the tiles it reads, in plain XLA.

The default on CPU and the fallback everywhere. No [T, S] buffer exists,
forwards or backwards: temporaries are k and v in another order, the float32
output, the log-sum-exp, a few tiles and, in a gradient, float32 accumulators of
the size of q, k and v.
"""

import functools
import math

import jax
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import blockwise
from corejax.kernels import differentiable
from corejax.kernels import limits as limits_lib
from corejax.kernels import rows as rows_lib


@rows_lib.by_rows
def head_sparse_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  *,
  return_lse: bool = False,
  block_sizes: blockwise.BlockSizes | None = None,
):
  """Blockwise attention of one layer.

  Works under jit, vmap (folded into the batch), reverse-mode grad and scan;
  differentiable in q, k, v and the control's score_scale.

  Args:
    q_BTNH: queries, after RoPE and norms; float32, bfloat16 or float16. All
      sums are float32.
    k_BSKH: keys; query head n reads kv head n // (N / K), nothing is repeated.
    v_BSKH: values.
    mask: who may read whom.
    control: one layer's control.
    return_lse: also return the log-sum-exp of the scores.
    block_sizes: tiling; None is BlockSizes().

  Returns:
    out_BTNH in v's dtype, or (out_BTNH, lse_BNT) with lse_BNT float32, natural
    logarithm, -inf at rows that may read nothing (their output is 0).

  Raises:
    UserError: shapes or dtypes that do not belong together.
  """
  limits_lib.check(q_BTNH, k_BSKH, v_BSKH, mask, control)
  batch, _, n_heads, head_dim = q_BTNH.shape
  limits = limits_lib.make(mask, control, batch, n_heads, k_BSKH.shape[1])
  scale_BN = jnp.full((batch, n_heads), 1 / math.sqrt(head_dim), jnp.float32)
  if control is not None:
    scale_BN = scale_BN * control.score_scale_BN

  attention = differentiable.attention(
    functools.partial(_forward, mask.causal, block_sizes),
    differentiable.blockwise_backward(mask.causal, block_sizes),
  )
  with jax.named_scope('head_sparse_attention'):
    out_BTNH, lse_BNT = attention(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits)
  out_BTNH = out_BTNH.astype(v_BSKH.dtype)
  return (out_BTNH, lse_BNT) if return_lse else out_BTNH


def _forward(causal, block_sizes, q_BTNH, k_BSKH, v_BSKH, scale_BN, limits):
  """`blockwise.forward` on arrays that are not padded."""
  n_rows, n_keys = q_BTNH.shape[1], k_BSKH.shape[1]
  blocks = (block_sizes or blockwise.BlockSizes()).fit(n_rows, n_keys)
  pad_q, pad_k = -n_rows % blocks.q, -n_keys % blocks.k
  out_BTNH, lse_BNT = blockwise.forward(
    blockwise.Static(causal, blocks, n_rows),
    differentiable.pad(q_BTNH, pad_q),
    differentiable.pad(k_BSKH, pad_k),
    differentiable.pad(v_BSKH, pad_k),
    scale_BN,
    differentiable.pad_limits(limits, pad_q, pad_k),
  )
  return out_BTNH[:, :n_rows], lse_BNT[..., :n_rows]
