"""Attention in which each head costs only the tiles it reads, in plain XLA.

The default on CPU and the fallback everywhere. No [T, S] buffer exists,
forwards or backwards: temporaries are the float32 output, the log-sum-exp, a
few tiles and, in a gradient, float32 accumulators of the size of q, k and v.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import blockwise
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
  batch, n_rows, n_heads, head_dim = q_BTNH.shape
  n_keys = k_BSKH.shape[1]
  blocks = (block_sizes or blockwise.BlockSizes()).fit(n_rows, n_keys)
  limits = limits_lib.make(mask, control, batch, n_heads, n_keys)
  scale_BN = jnp.full((batch, n_heads), 1 / math.sqrt(head_dim), jnp.float32)
  if control is not None:
    scale_BN = scale_BN * control.score_scale_BN

  pad_q = functools.partial(_pad, size=-n_rows % blocks.q)
  pad_k = functools.partial(_pad, size=-n_keys % blocks.k)
  if limits.q_segment_BT is not None and limits.kv_segment_BS is not None:
    # 'edge' adds no new segment: the tiles' ranges of ids stay as narrow.
    limits = dataclasses.replace(
      limits,
      q_segment_BT=pad_q(limits.q_segment_BT, mode='edge'),
      kv_segment_BS=pad_k(limits.kv_segment_BS, mode='edge'),
    )
  if limits.region_BS is not None:
    limits = dataclasses.replace(limits, region_BS=pad_k(limits.region_BS))
  attention = _attention(blockwise.Static(mask.causal, blocks, n_rows))
  with jax.named_scope('head_sparse_attention'):
    out_BTNH, lse_BNT = attention(
      pad_q(q_BTNH), pad_k(k_BSKH), pad_k(v_BSKH), scale_BN, limits
    )
  out_BTNH = out_BTNH[:, :n_rows].astype(v_BSKH.dtype)
  return (out_BTNH, lse_BNT[..., :n_rows]) if return_lse else out_BTNH


def _pad(x, size, mode='constant'):
  """Lengthens axis 1."""
  if not size:
    return x
  return jnp.pad(x, [(0, 0), (0, size)] + [(0, 0)] * (x.ndim - 2), mode=mode)


def _attention(static: blockwise.Static):
  """The differentiable function of (q, k, v, scale, limits), all padded."""
  forward = _fold_vmap(functools.partial(blockwise.forward, static))
  backward = _fold_vmap(functools.partial(blockwise.backward, static))

  @jax.custom_vjp
  def attention(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits):
    return forward(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits)

  def attention_fwd(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits):
    out, lse = forward(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits)
    return (out, lse), (q_BTNH, k_BSKH, v_BSKH, scale_BN, limits, out, lse)

  def attention_bwd(kept, cotangents):
    q_BTNH, k_BSKH, v_BSKH, scale_BN, limits, out_BTNH, lse_BNT = kept
    d_out_BTNH, d_lse_BNT = cotangents
    highest = lax.Precision.HIGHEST
    delta_BNT = jnp.einsum(
      'BTNH,BTNH->BNT', d_out_BTNH, out_BTNH, precision=highest
    )
    empty_BNT = jnp.isneginf(lse_BNT)
    delta_BNT = delta_BNT - jnp.where(empty_BNT, 0.0, d_lse_BNT)
    lse_BNT = jnp.where(empty_BNT, 0.0, lse_BNT)
    g_BTNH, dk_BSKH, dv_BSKH = backward(
      q_BTNH, k_BSKH, v_BSKH, scale_BN, limits, lse_BNT, delta_BNT, d_out_BTNH
    )
    d_scale_BN = jnp.einsum(
      'BTNH,BTNH->BN', g_BTNH, q_BTNH.astype(jnp.float32), precision=highest
    )
    dq_BTNH = g_BTNH * scale_BN[:, None, :, None]
    return (
      dq_BTNH.astype(q_BTNH.dtype),
      dk_BSKH.astype(k_BSKH.dtype),
      dv_BSKH.astype(v_BSKH.dtype),
      d_scale_BN,
      None,  # integers
    )

  attention.defvjp(attention_fwd, attention_bwd)
  return attention


def _fold_vmap(fun):
  """`fun`, whose arrays all lead with B, with vmap folded into B.

  Batching the loops themselves would run every sequence for as long as the
  one that reads most, and select between whole accumulators at each step.
  """
  folded = jax.custom_batching.custom_vmap(fun)

  @folded.def_vmap
  def rule(axis_size, is_batched, *args):
    def fold(x, batched):
      if not batched:
        x = jnp.broadcast_to(x, (axis_size, *x.shape))
      return x.reshape(-1, *x.shape[2:])

    out = folded(*jax.tree.map(fold, args, tuple(is_batched)))
    out = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
    return out, jax.tree.map(lambda _: True, out)

  return folded
