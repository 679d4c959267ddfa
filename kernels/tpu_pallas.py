"""Attention in which each head costs only the tiles it reads, for TPU.

One grid step a tile of the work list (corejax.kernels.worklist), which is built
on the device and prefetched into scalar memory; the grid's length is traced, so
that one executable serves every set of heads, a scan over layers and sequences
with sets of their own. Online softmax in float32; products of bfloat16 inputs
are bfloat16 with float32 sums, those of float32 inputs float32.

Gradients are those of the blockwise kernel (corejax.kernels.blockwise): right
everywhere, and made for a CPU.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import differentiable
from corejax.kernels import limits as limits_lib
from corejax.kernels import rows as rows_lib
from corejax.kernels import targets
from corejax.kernels import tiles
from corejax.kernels import worklist

_LANES = 128
_MOST_HEAD_DIM = 256
# As in blockwise: so far apart that exp(_UNSEEN - _LOWEST) is 0.
_UNSEEN = float(jnp.finfo(jnp.float32).min)
_LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """How the rows and keys are cut.

  Attributes:
    q: query rows a block.
    k: keys a tile.
    words: length of a work list; scalar memory holds 4 bytes for each.
  """

  q: int = 512
  k: int = 512
  words: int = 1 << 17

  def __post_init__(self):
    if min(self.q, self.k, self.words) < 1:
      raise ValueError(f'{self}: all three must be positive')

  def fit(self, n_rows: int, n_keys: int) -> 'BlockSizes':
    """The same, but hardly larger than the problem: by whole lanes."""
    q, k = (-(-n // _LANES) * _LANES for n in (n_rows, n_keys))
    return BlockSizes(min(self.q, q), min(self.k, k), self.words)


def unsupported(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  *,
  platform: str | None = None,
  target: targets.Target | None = None,
) -> str | None:
  """Why this kernel cannot serve the call, or None.

  Args:
    q_BTNH, k_BSKH, v_BSKH, mask, control: of `head_sparse_attention`.
    platform: what it is to run on; None is what this process computes on.
    target: what it is to be compiled for, in place of platform.
  """
  if target is not None:
    platform = target.platform
  platform = platform or _platform()
  if platform != 'tpu':
    return f'needs a TPU; this process computes on {platform}'
  dtypes = {x.dtype.name for x in (q_BTNH, k_BSKH, v_BSKH)}
  if len(dtypes) > 1 or not dtypes <= {'bfloat16', 'float32'}:
    return (
      'needs q, k and v all bfloat16 or all float32, and they are '
      f'{", ".join(sorted(dtypes))}'
    )
  if q_BTNH.shape[3] > _MOST_HEAD_DIM or q_BTNH.shape[3] % 8:
    return (
      f'needs a head_dim that is a multiple of 8 up to {_MOST_HEAD_DIM}, and it'
      f' is {q_BTNH.shape[3]}'
    )
  if mask.kv_segment_BS is not None:
    return "serves no segments (packed questions, windows, frames); 'xla' does"
  if control is not None and control.blocked_BNR is not None:
    return "serves no blocked regions; 'xla' does"
  layout = _layout(q_BTNH.shape, k_BSKH.shape[1], mask.causal, BlockSizes())
  return layout.too_long()


def _platform() -> str:
  config: Any = jax.config  # its contents are not declared
  device = config.jax_default_device or jax.devices()[0]
  return device if isinstance(device, str) else device.platform


@rows_lib.by_rows
def head_sparse_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  *,
  return_lse: bool = False,
  block_sizes: BlockSizes | None = None,
  interpret: Any = False,
):
  """Work-list attention of one layer; `unsupported` says what it serves.

  Works under jit, vmap (folded into the batch), scan, shard_map over heads and
  once in reverse-mode grad, in q, k, v and the control's score_scale.

  Args:
    q_BTNH: queries, after RoPE and norms; float32 or bfloat16.
    k_BSKH: keys; query head n reads kv head n // (N / K), nothing is repeated.
    v_BSKH: values.
    mask: who may read whom, without segments.
    control: one layer's control, without blocked regions.
    return_lse: also return the log-sum-exp of the scores.
    block_sizes: tiling; None is BlockSizes().
    interpret: as of pallas_call: True, or pltpu.InterpretParams, computes the
      same on any device, slowly, with any block sizes.

  Returns:
    out_BTNH in v's dtype, or (out_BTNH, lse_BNT) with lse_BNT float32, natural
    logarithm, -inf at rows that may read nothing (their output is 0).

  Raises:
    UserError: shapes or dtypes that do not belong together.
    NotImplementedError: what `unsupported` says.
    ValueError: block sizes that a TPU does not take.
  """
  limits_lib.check(q_BTNH, k_BSKH, v_BSKH, mask, control)
  reason = unsupported(q_BTNH, k_BSKH, v_BSKH, mask, control, platform='tpu')
  if reason is not None:
    raise NotImplementedError(f'tpu_pallas: {reason}')
  blocks = block_sizes or BlockSizes()
  if not interpret and (blocks.q % _LANES or blocks.k % _LANES):
    raise ValueError(
      f'{blocks}: on a TPU q and k must be multiples of {_LANES}'
    )
  batch, _, n_heads, head_dim = q_BTNH.shape
  limits = limits_lib.make(mask, control, batch, n_heads, k_BSKH.shape[1])
  scale_BN = jnp.full((batch, n_heads), 1 / math.sqrt(head_dim), jnp.float32)
  if control is not None:
    scale_BN = scale_BN * control.score_scale_BN
  attention = differentiable.attention(
    functools.partial(_forward, mask.causal, blocks, interpret),
    differentiable.blockwise_backward(mask.causal),
  )
  with jax.named_scope('head_sparse_attention'):
    out_BTNH, lse_BNT = attention(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits)
  return (out_BTNH, lse_BNT) if return_lse else out_BTNH


def _layout(q_shape, n_keys: int, causal: bool, blocks: BlockSizes):
  batch, n_rows, n_heads, _ = q_shape
  blocks = blocks.fit(n_rows, n_keys)
  return worklist.Layout(
    causal, blocks.q, blocks.k, batch, n_heads, n_rows, n_keys, blocks.words
  )


def _forward(
  causal, blocks, interpret, q_BTNH, k_BSKH, v_BSKH, scale_BN, limits
):
  """(out_BTNH, lse_BNT): chunk after chunk of the work list."""
  batch, n_rows, n_heads, head_dim = q_BTNH.shape
  layout = _layout(q_BTNH.shape, k_BSKH.shape[1], causal, blocks)
  reason = layout.too_long()  # again, since a vmap has lengthened the batch
  if reason is not None:
    raise NotImplementedError(f'tpu_pallas: {reason}')

  def cut(x_BXYH, size):
    """[rows or tiles of all heads, size, H]."""
    x_BXYH = differentiable.pad(x_BXYH, -x_BXYH.shape[1] % size)
    return x_BXYH.swapaxes(1, 2).reshape(-1, size, head_dim)

  q, k, v = (
    cut(x, size)
    for x, size in (
      (q_BTNH, layout.block_q),
      (k_BSKH, layout.block_k),
      (v_BSKH, layout.block_k),
    )
  )
  group = n_heads // k_BSKH.shape[2]

  def chunk(first_row):
    listed = worklist.build(layout, limits, first_row)
    out, lse = _call(
      layout, group, interpret, first_row, listed, limits, scale_BN, q, k, v
    )
    empty = listed.empty_R[:, None]
    # No step has written these.
    return (
      jnp.where(empty[..., None], jnp.zeros_like(out), out),
      jnp.where(empty, -jnp.inf, lse[:, 0]),
    )

  if layout.n_chunks == 1:
    out, lse = chunk(jnp.int32(0))
  else:
    starts = jnp.arange(layout.n_chunks, dtype=jnp.int32) * layout.held
    out, lse = lax.map(chunk, starts)
  out = out.reshape(-1, layout.block_q, head_dim)[: layout.total]
  out_BNTH = out.reshape(batch, n_heads, -1, head_dim)
  lse = lse.reshape(-1, layout.block_q)[: layout.total]
  lse_BNT = lse.reshape(batch, n_heads, -1)
  return out_BNTH[:, :, :n_rows].swapaxes(1, 2), lse_BNT[..., :n_rows]


def _call(
  layout, group, interpret, first_row, listed, limits, scale_BN, q, k, v
):
  """One chunk: out [R, block_q, H] and lse [R, 1, block_q]."""
  head_dim = q.shape[2]
  row_R = first_row + jnp.arange(layout.held, dtype=jnp.int32)
  b, n, _ = layout.place(row_R)
  n_kv = layout.n_heads // group
  # Where each row's tiles begin in k; looked up, since a step has no time to
  # divide.
  tiles_R = (b * n_kv + lax.div(n, group)) * layout.n_tiles
  last = layout.total - 1

  def q_at(step, word, tiles_at, first, *_):
    del tiles_at
    row = worklist.row_of(word[step])
    return jnp.minimum(first[0] + row, last), 0, 0

  def kv_at(step, word, tiles_at, *_):
    row, tile = worklist.row_of(word[step]), worklist.tile_of(word[step])
    return tiles_at[row] + tile, 0, 0

  def out_at(step, word, *_):
    return worklist.row_of(word[step]), 0, 0

  prefetched = (
    listed.word_W,
    tiles_R,
    first_row[None],
    limits.offset_B,
    limits.start_B,
    limits.end_B,
    limits.model_window_B,
    limits.window_BN.ravel(),
    limits.sink_BN.ravel(),
    scale_BN.ravel(),
  )
  block_q, block_k = layout.block_q, layout.block_k
  of_keys = pl.BlockSpec((1, block_k, head_dim), kv_at)
  return pl.pallas_call(
    functools.partial(_kernel, layout),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(prefetched),
      # Never empty: a list of no tile has one step that writes what `empty_R`
      # throws away.
      grid=(jnp.maximum(listed.count, 1),),
      in_specs=[
        pl.BlockSpec((1, block_q, head_dim), q_at),
        of_keys,
        of_keys,
      ],
      out_specs=[
        pl.BlockSpec((1, block_q, head_dim), out_at),
        pl.BlockSpec((1, 1, block_q), out_at),
      ],
      scratch_shapes=[
        pltpu.VMEM((block_q, _LANES), jnp.float32),
        pltpu.VMEM((block_q, _LANES), jnp.float32),
        pltpu.VMEM((block_q, head_dim), jnp.float32),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct((layout.held, block_q, head_dim), v.dtype),
      jax.ShapeDtypeStruct((layout.held, 1, block_q), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
    interpret=interpret,
    name='head_sparse_attention',
  )(*prefetched, q, k, v)


@dataclasses.dataclass(frozen=True)
class _PerHead:
  """A flat [B * N] reference that is read by [b, n]."""

  ref: Any
  n_heads: int

  def __getitem__(self, at):
    b, n = at
    return self.ref[b * self.n_heads + n]


def _kernel(
  layout,
  word_ref,
  tiles_ref,
  first_ref,
  offset_ref,
  start_ref,
  end_ref,
  model_window_ref,
  window_ref,
  sink_ref,
  scale_ref,
  q_ref,
  k_ref,
  v_ref,
  out_ref,
  lse_ref,
  top_ref,
  total_ref,
  acc_ref,
):
  """One tile: scores, running softmax, and at the last one the output.

  Statistics are kept 128 lanes wide, all alike: a column of one lane would be
  laid out so anyway.
  """
  del tiles_ref
  word = word_ref[pl.program_id(0)]
  limits: Any = limits_lib.Limits(
    offset_ref,
    start_ref,
    end_ref,
    model_window_ref,
    _PerHead(window_ref, layout.n_heads),  # pyright: ignore
    _PerHead(sink_ref, layout.n_heads),  # pyright: ignore
  )
  rows = layout.rows(limits, first_ref[0] + worklist.row_of(word))
  scale = scale_ref[rows.b * layout.n_heads + rows.n]
  q, k, v = q_ref[0], k_ref[0], v_ref[0]
  exact = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

  def dot(x, y, contract_y):
    dims = (((1,), (contract_y,)), ((), ()))
    return lax.dot_general(
      x, y, dims, precision=exact, preferred_element_type=jnp.float32
    )

  @pl.when((word & worklist.FIRST) != 0)
  def _():
    top_ref[...] = jnp.full_like(top_ref, _LOWEST)
    total_ref[...] = jnp.zeros_like(total_ref)
    acc_ref[...] = jnp.zeros_like(acc_ref)

  def add(masked):
    scores = dot(q, k, 1) * scale
    if masked:
      seen = tiles.seen(
        limits,
        rows,
        worklist.tile_of(word),
        layout.block_q,
        layout.block_k,
        layout.causal,
      )
      scores = jnp.where(seen, scores, _UNSEEN)
    top = top_ref[...]
    new_top = jnp.maximum(top, scores.max(1, keepdims=True))
    p = jnp.exp(scores - new_top[:, :1])
    shrink = jnp.exp(top - new_top)
    top_ref[...] = new_top
    total_ref[...] = total_ref[...] * shrink + p.sum(1, keepdims=True)
    acc_ref[...] = acc_ref[...] * shrink[:, :1] + dot(p.astype(v.dtype), v, 0)

  masked = (word & worklist.MASKED) != 0
  pl.when(masked)(lambda: add(True))
  pl.when(~masked)(lambda: add(False))

  @pl.when((word & worklist.LAST) != 0)
  def _():
    # Not `total > 0`: a NaN must stay one, not become a row that sees nothing.
    empty = total_ref[...] == 0
    total = jnp.where(empty, 1.0, total_ref[...])
    out_ref[0] = (acc_ref[...] / total[:, :1]).astype(out_ref.dtype)
    lse = jnp.where(empty, -jnp.inf, top_ref[...] + jnp.log(total))
    lse_ref[0] = lse.T[:1]
