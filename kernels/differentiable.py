"""A forward and a backward pass as one function: gradient, vmap, padding.

What every block kernel needs around its two passes, which know float32 sums,
a padded problem and a batch only.
"""

from collections.abc import Callable
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from corejax.kernels import blockwise
from corejax.kernels import limits as limits_lib


def pad(x: jax.Array, size: int, mode: str = 'constant') -> jax.Array:
  """Lengthens axis 1 by `size`."""
  if not size:
    return x
  return jnp.pad(x, [(0, 0), (0, size)] + [(0, 0)] * (x.ndim - 2), mode=mode)


def pad_limits(
  limits: limits_lib.Limits, pad_q: int, pad_k: int
) -> limits_lib.Limits:
  """The limits of rows and keys that were lengthened by so many."""
  if limits.q_segment_BT is not None and limits.kv_segment_BS is not None:
    # 'edge' adds no new segment: the tiles' ranges of ids stay as narrow.
    limits = dataclasses.replace(
      limits,
      q_segment_BT=pad(limits.q_segment_BT, pad_q, 'edge'),
      kv_segment_BS=pad(limits.kv_segment_BS, pad_k, 'edge'),
    )
  if limits.region_BS is not None:
    region_BS = pad(limits.region_BS, pad_k)
    limits = dataclasses.replace(limits, region_BS=region_BS)
  return limits


def blockwise_backward(causal: bool, sizes: blockwise.BlockSizes | None = None):
  """`blockwise.backward` on arrays that are not padded.

  Args:
    causal: of the mask.
    sizes: tiling; None is BlockSizes().

  Returns:
    (q, k, v, scale, limits, lse, delta, d_out) -> (g, dk, dv), as there.
  """

  def backward(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits, lse, delta, d_out):
    n_rows, n_keys = q_BTNH.shape[1], k_BSKH.shape[1]
    blocks = (sizes or blockwise.BlockSizes()).fit(n_rows, n_keys)
    pad_q, pad_k = -n_rows % blocks.q, -n_keys % blocks.k
    at_end = [(0, 0), (0, 0), (0, pad_q)]
    g_BTNH, dk_BSKH, dv_BSKH = blockwise.backward(
      blockwise.Static(causal, blocks, n_rows),
      pad(q_BTNH, pad_q),
      pad(k_BSKH, pad_k),
      pad(v_BSKH, pad_k),
      scale_BN,
      pad_limits(limits, pad_q, pad_k),
      jnp.pad(lse, at_end),
      jnp.pad(delta, at_end),
      pad(d_out, pad_q),
    )
    return g_BTNH[:, :n_rows], dk_BSKH[:, :n_keys], dv_BSKH[:, :n_keys]

  return backward


def attention(forward: Callable, backward: Callable) -> Callable:
  """The differentiable function of (q, k, v, scale, limits).

  Differentiable once, in q, k, v and scale; a vmap is folded into the batch.

  Args:
    forward: (q, k, v, scale_BN, limits) -> (out_BTNH, float32 lse_BNT).
    backward: (q, k, v, scale_BN, limits, lse_BNT, delta_BNT, d_out_BTNH) ->
      (g_BTNH, dk_BSKH, dv_BSKH) as of `blockwise.backward`.

  Returns:
    The same signature as `forward`.
  """
  forward, backward = _fold_vmap(forward), _fold_vmap(backward)

  @jax.custom_vjp
  def attend(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits):
    return forward(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits)

  def attend_fwd(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits):
    out, lse = forward(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits)
    return (out, lse), (q_BTNH, k_BSKH, v_BSKH, scale_BN, limits, out, lse)

  def attend_bwd(kept, cotangents):
    q_BTNH, k_BSKH, v_BSKH, scale_BN, limits, out_BTNH, lse_BNT = kept
    d_out_BTNH, d_lse_BNT = cotangents
    d_out_BTNH = d_out_BTNH.astype(jnp.float32)
    highest = lax.Precision.HIGHEST
    delta_BNT = jnp.einsum(
      'BTNH,BTNH->BNT',
      d_out_BTNH,
      out_BTNH.astype(jnp.float32),
      precision=highest,
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

  attend.defvjp(attend_fwd, attend_bwd)
  return attend


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
