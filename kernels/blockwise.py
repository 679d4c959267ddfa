"""Attention by blocks in plain XLA, forwards and backwards.

For every (sequence, head, group of query blocks) loops with data-dependent
bounds walk the tiles of `corejax.kernels.tiles`. Windows and sinks are arrays,
so one executable serves every set of heads. Online softmax in float32 (Milakov
& Gimelshein, arXiv 1805.02867); the backward pass recomputes each tile's
weights from the log-sum-exp (FlashAttention-2, arXiv 2307.08691).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from corejax.kernels import limits as limits_lib
from corejax.kernels import tiles

# Scores that a row may not read, and where its running maximum begins. The
# first lies so far below the second that exp(_UNSEEN - m) is 0 even for a row
# that sees nothing yet; -inf would make that NaN, and one value for both
# would make it 1.
_UNSEEN = float(jnp.finfo(jnp.float32).min)
_LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """How the rows and keys are cut.

  On CPU a product of 128-blocks stays on one thread and costs the fewest CPU
  seconds, and small tiles follow a window closely; from 512 x 512 on XLA
  spreads a product over all cores at hardly more CPU time. So edges are done
  in tiles of q x k and what lies inside, where every row sees every key, in
  tiles `wide` times as large both ways.

  Attributes:
    q: query rows a block.
    k: keys a tile.
    wide: blocks and tiles that a wide one holds; 1 is none.
  """

  q: int = 128
  k: int = 128
  wide: int = 4

  def __post_init__(self):
    if min(self.q, self.k, self.wide) < 1:
      raise ValueError(f'{self}: all three must be positive')

  def fit(self, n_rows: int, n_keys: int) -> 'BlockSizes':
    """The same, but no larger than the problem."""
    q, k = min(self.q, n_rows), min(self.k, n_keys)
    return BlockSizes(q, k, min(self.wide, -(-n_rows // q), -(-n_keys // k)))


@dataclasses.dataclass(frozen=True)
class Static:
  """What one executable is compiled for, besides shapes and dtypes.

  Attributes:
    causal: of the mask.
    blocks: sizes that fit the problem.
    n_rows: T before padding.
  """

  causal: bool
  blocks: BlockSizes
  n_rows: int


@dataclasses.dataclass(frozen=True)
class _Pass:
  """What a sweep does at each place.

  Attributes:
    load: (rows, n) -> what the n rows bring along.
    resume: (rows, n, carry) -> the n rows' running state, a tuple of arrays.
    update: (loaded, rows, n, tile, width, masked, state, carry) -> (state,
      carry): one tile of `width` keys; `masked` as `_on_seen` takes it.
    keep: (rows, state, carry) -> carry, from which `resume` goes on.
    finish: (rows, state, carry) -> carry, after the last tile.
  """

  load: Callable[..., Any]
  resume: Callable[..., Any]
  update: Callable[..., Any]
  keep: Callable[..., Any]
  finish: Callable[..., Any]


def _sweep(
  static: Static,
  limits: limits_lib.Limits,
  batch: int,
  n_heads: int,
  do: _Pass,
  carry,
):
  """Every head's every block of rows over every tile that it reads.

  Wide tiles of all heads come first, so that the threads that share them are
  not woken and sent to rest between tiles for one: 1.5 to 3% of CPU seconds.
  """
  blocks, causal, n_rows = static.blocks, static.causal, static.n_rows
  wide_q, wide_k = blocks.q * blocks.wide, blocks.k * blocks.wide
  n_blocks = -(-n_rows // blocks.q)
  has_segments = limits.kv_segment_BS is not None
  plain = not has_segments and limits.barred_BNR is None
  has_wide = plain and blocks.wide > 1

  def hole(b, n, group):
    rows = tiles.block(limits, b, n, group, wide_q, n_rows)
    return rows, *tiles.hole(limits, rows, wide_q, wide_k, causal)

  def one_group(flat, carry):
    rows, first, stop = hole(*_split(flat, n_heads, n_blocks // blocks.wide))

    def walk_hole(_, carry):
      loaded = do.load(rows, wide_q)

      def wide_tile(tile, both):
        return do.update(loaded, rows, wide_q, tile, wide_k, False, *both)

      state = do.resume(rows, wide_q, carry)
      state, carry = lax.fori_loop(first, stop, wide_tile, (state, carry))
      return do.keep(rows, state, carry)

    # No row is touched for an empty hole.
    return lax.fori_loop(0, jnp.minimum(stop - first, 1), walk_hole, carry)

  def one_block(flat, carry):
    b, n, index = _split(flat, n_heads, n_blocks)
    rows = tiles.block(limits, b, n, index, blocks.q, n_rows)
    loaded = do.load(rows, blocks.q)
    hole_first = hole_stop = jnp.int32(0)
    if has_wide:
      _, hole_first, hole_stop = hole(b, n, index // blocks.wide)
    walk = tiles.walk(
      limits,
      rows,
      blocks.k,
      causal,
      hole_first * blocks.wide,
      hole_stop * blocks.wide,
    )

    def one_tile(step, both):
      tile = walk.tile(step)

      def update(both):
        return do.update(loaded, rows, blocks.q, tile, blocks.k, True, *both)

      if not has_segments:
        return update(both)
      meet = tiles.segments_meet(limits, rows, tile, blocks.q, blocks.k)
      return lax.cond(meet, update, lambda both: both, both)

    state = do.resume(rows, blocks.q, carry)
    state, carry = lax.fori_loop(0, walk.count, one_tile, (state, carry))
    return do.finish(rows, state, carry)

  n_items = batch * n_heads
  if has_wide:
    n_groups = n_items * (n_blocks // blocks.wide)
    carry = lax.fori_loop(0, n_groups, one_group, carry)
  return lax.fori_loop(0, n_items * n_blocks, one_block, carry)


def _split(flat, n_heads: int, n: int):
  """(sequence, head, index among n) of a running number."""
  return flat // (n_heads * n), flat // n % n_heads, flat % n


def _on_seen(static, limits, rows, n, tile, width, masked, fun, scores, *rest):
  """`fun(scores, ...)` with what is not seen at _UNSEEN.

  A branch, since most tiles of a wide window are seen by all rows.
  """
  if not masked:
    return fun(scores, *rest)

  def hide(scores, *rest):
    seen = tiles.seen(limits, rows, tile, n, width, static.causal)
    return fun(jnp.where(seen, scores, _UNSEEN), *rest)

  if limits.kv_segment_BS is not None or limits.barred_BNR is not None:
    return hide(scores, *rest)
  every = tiles.sees_all(limits, rows, tile, width, static.causal)
  return lax.cond(every, fun, hide, scores, *rest)


def _get(x_BXYH, b, start, head, size):
  """Float32 [size, H]: rows of one head, read in place."""
  x = lax.dynamic_slice(
    x_BXYH, (b, start, head, 0), (1, size, 1, x_BXYH.shape[3])
  )
  return x[0, :, 0].astype(jnp.float32)


def _put(x_BXYH, rows, b, start, head):
  return lax.dynamic_update_slice(
    x_BXYH, rows[None, :, None], (b, start, head, 0)
  )


def _dot(x, y, contract_x, contract_y):
  dims = (((contract_x,), (contract_y,)), ((), ()))
  return lax.dot_general(x, y, dims, precision=lax.Precision.HIGHEST)


def forward(
  static: Static,
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  scale_BN: jax.Array,
  limits: limits_lib.Limits,
) -> tuple[jax.Array, jax.Array]:
  """Attention and its log-sum-exp.

  Args:
    static: what is compiled in.
    q_BTNH: queries, T padded to a multiple of static.blocks.q.
    k_BSKH: keys, S padded to a multiple of static.blocks.k.
    v_BSKH: values likewise.
    scale_BN: float32, factor on q k^T.
    limits: a limits.Limits, segments and regions padded too.

  Returns:
    out_BTNH and lse_BNT, float32, padded as q is.
  """
  batch, padded, n_heads, head_dim = q_BTNH.shape
  group = n_heads // k_BSKH.shape[2]
  # A tile is read once a block of rows: in one piece it takes 7% less of a
  # small tile's time than row by row from [B, S, K, H].
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)

  def load(rows, n):
    q = _get(q_BTNH, rows.b, rows.t, rows.n, n)
    return q * scale_BN[rows.b, rows.n]

  def resume(rows, n, carry):
    acc_BTNH, top_BNT, total_BNT = carry
    at = rows.b, rows.n, rows.t
    top, total = (
      lax.dynamic_slice(x, at, (1, 1, n))[0, 0] for x in (top_BNT, total_BNT)
    )
    return top, total, _get(acc_BTNH, rows.b, rows.t, rows.n, n)

  def keep(rows, state, carry):
    acc_BTNH, top_BNT, total_BNT = carry
    top, total, acc = state
    at = rows.b, rows.n, rows.t
    return (
      _put(acc_BTNH, acc, rows.b, rows.t, rows.n),
      lax.dynamic_update_slice(top_BNT, top[None, None], at),
      lax.dynamic_update_slice(total_BNT, total[None, None], at),
    )

  def soften(scores, top, total):
    new_top = jnp.maximum(top, scores.max(1))
    p = jnp.exp(scores - new_top[:, None])
    shrink = jnp.exp(top - new_top)
    return p, shrink, new_top, total * shrink + p.sum(1)

  def update(q, rows, n, tile, width, masked, state, carry):
    top, total, acc = state
    at = rows.b, rows.n // group, tile * width, 0
    k, v = (
      lax.dynamic_slice(x, at, (1, 1, width, head_dim))[0, 0]
      for x in (k_BKSH, v_BKSH)
    )
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    p, shrink, top, total = _on_seen(
      static,
      limits,
      rows,
      n,
      tile,
      width,
      masked,
      soften,
      _dot(q, k, 1, 1),
      top,
      total,
    )
    return (top, total, acc * shrink[:, None] + _dot(p, v, 1, 0)), carry

  def finish(rows, state, carry):
    top, total, acc = state
    # Not `total > 0`: a NaN must stay one, not become a row that sees nothing.
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    lse = jnp.where(empty, -jnp.inf, top + jnp.log(total))
    return keep(rows, (lse, total, acc / total[:, None]), carry)

  rows_BNT = batch, n_heads, padded
  carry = (
    jnp.zeros(q_BTNH.shape, jnp.float32),
    jnp.full(rows_BNT, _LOWEST),
    jnp.zeros(rows_BNT),
  )
  do = _Pass(load, resume, update, keep, finish)
  out_BTNH, lse_BNT, _ = _sweep(static, limits, batch, n_heads, do, carry)
  return out_BTNH, lse_BNT


def backward(
  static: Static,
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  scale_BN: jax.Array,
  limits: limits_lib.Limits,
  lse_BNT: jax.Array,
  delta_BNT: jax.Array,
  d_out_BTNH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients, skipping what the forward pass skips.

  Args:
    static, q_BTNH, k_BSKH, v_BSKH, scale_BN, limits: as in `forward`.
    lse_BNT: the log-sum-exp, finite.
    delta_BNT: sum over H of d_out * out, minus the cotangent of lse.
    d_out_BTNH: float32, cotangent of out.

  Returns:
    g_BTNH (gradient of scale * q), dk_BSKH, dv_BSKH; float32, padded.
  """
  batch, _, n_heads, _ = q_BTNH.shape
  group = n_heads // k_BSKH.shape[2]

  def load(rows, n):
    q = _get(q_BTNH, rows.b, rows.t, rows.n, n) * scale_BN[rows.b, rows.n]
    lse, delta = (
      lax.dynamic_slice(x, (rows.b, rows.n, rows.t), (1, 1, n))[0, 0][:, None]
      for x in (lse_BNT, delta_BNT)
    )
    return q, _get(d_out_BTNH, rows.b, rows.t, rows.n, n), lse, delta

  def resume(rows, n, carry):
    return (_get(carry[0], rows.b, rows.t, rows.n, n),)

  def update(loaded, rows, n, tile, width, masked, state, carry):
    q, d_out, lse, delta = loaded
    (g,) = state
    g_BTNH, dk_BSKH, dv_BSKH = carry
    at, kv = tile * width, rows.n // group
    k, v, dk, dv = (
      _get(x, rows.b, at, kv, width) for x in (k_BSKH, v_BSKH, dk_BSKH, dv_BSKH)
    )
    p = _on_seen(
      static,
      limits,
      rows,
      n,
      tile,
      width,
      masked,
      lambda scores: jnp.exp(scores - lse),
      _dot(q, k, 1, 1),
    )
    ds = p * (_dot(d_out, v, 1, 1) - delta)
    dk_BSKH = _put(dk_BSKH, dk + _dot(ds, q, 0, 0), rows.b, at, kv)
    dv_BSKH = _put(dv_BSKH, dv + _dot(p, d_out, 0, 0), rows.b, at, kv)
    return (g + _dot(ds, k, 1, 0),), (g_BTNH, dk_BSKH, dv_BSKH)

  def keep(rows, state, carry):
    g_BTNH, dk_BSKH, dv_BSKH = carry
    g_BTNH = _put(g_BTNH, state[0], rows.b, rows.t, rows.n)
    return g_BTNH, dk_BSKH, dv_BSKH

  carry = tuple(
    jnp.zeros(x.shape, jnp.float32) for x in (q_BTNH, k_BSKH, v_BSKH)
  )
  do = _Pass(load, resume, update, keep, keep)
  return _sweep(static, limits, batch, n_heads, do, carry)
