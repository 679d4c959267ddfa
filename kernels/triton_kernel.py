"""Head-sparse attention for one GPU in Triton; the kernel alone, without JAX.

A program computes one block of query rows of one head. What it may read is a
row of the work list, so that one executable serves every set of heads:

    tiles of keys ->   0   1   2   3   4   5   6   7   8   9
    block of rows     [f][p]   .   . [p][f   f   f   f] [p]  .
                      sinks          band     hole      edge

Tiles `.` are neither loaded nor computed. `f` is seen by every row: a loop that
knows no mask walks those two runs in wide tiles. `p` is partly seen: a second
loop walks up to four runs of narrow ones, which follow an edge more closely and
leave registers for the mask.

Programs start in the order of the work list, whose heads are sorted by what
they cost, and in a head from the last block of rows, which reads most: the long
ones are under way first and the short ones fill the end.

Softmax online in float32, base 2 (Milakov & Gimelshein, arXiv 1805.02867;
FlashAttention-2, arXiv 2307.08691). A head dim that is no power of two is two
slices of one each (80 = 64 + 16), so that nothing is padded.
"""

import dataclasses

import triton
import triton.language as tl

HEAD_DIMS = {64: (64, 0), 80: (64, 16), 96: (64, 32), 128: (128, 0)}

# Columns of the work list, int32.
WORK = (
  'b',  # sequence
  'n',  # query head
  'offset',  # key position of query row 0
  'start',  # first real key
  'end',  # end of the real keys
  'window',  # keys back that a row sees, of the head and the model together
  'model_window',  # the same of the model alone: it bounds the sinks too
  'sink',  # keys from `start` on that every row sees
)
N_COLUMNS = tl.constexpr(len(WORK))

# Where a row's running maximum begins; what it may not see is at -inf, so that
# exp2(-inf - _LOWEST) is 0 even before it has seen anything.
_LOWEST = tl.constexpr(-1e30)
# What a factor of 0 becomes: times any score that is a number, still 0.
_LEAST = tl.constexpr(1e-37)
_LN2 = tl.constexpr(0.6931471805599453)


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """How the work is cut, and how the compiler lays it out.

  Attributes:
    q: query rows a program.
    k: keys a narrow tile, where a mask is needed.
    wide: narrow tiles that a wide one holds.
    warps: of 32 threads, a program.
    stages: tiles in flight.
  """

  q: int
  k: int
  wide: int
  warps: int
  stages: int

  def __post_init__(self):
    for size in (self.q, self.k, self.wide, self.warps):
      if size < 1 or size & (size - 1):
        raise ValueError(f'{self}: all but stages must be powers of two')


def block_sizes(compute_capability: int) -> BlockSizes:
  """The sizes that are shipped.

  On Hopper (sm90) two warp groups of 64 rows each, whose products read tiles
  of 128 keys from shared memory, loaded two ahead: at head dim 128 that takes
  224 of its 227 KiB and 249 of 255 registers. The masked loop spilled until its
  tiles were halved. Other cards have as little as 99 KiB.

  Args:
    compute_capability: 80, 86, 89, 90, ...

  Returns:
    The same for all of HEAD_DIMS.
  """
  if compute_capability in (100, 103):
    return BlockSizes(128, 64, 2, 8, 2)  # its products' sums take memory too
  if compute_capability == 90:
    return BlockSizes(128, 64, 2, 8, 3)
  return BlockSizes(128, 64, 1, 8, 3)


def constants(
  blocks: BlockSizes,
  n_heads: int,
  n_kv: int,
  slices: tuple[int, int],
  causal: bool,
) -> dict[str, int]:
  """The compile-time arguments of `attention`.

  Args:
    blocks: the tiling.
    n_heads: N.
    n_kv: K.
    slices: of HEAD_DIMS.
    causal: of the mask.
  """
  return {
    'N_HEADS': n_heads,
    'N_KV': n_kv,
    'SLICE_0': slices[0],
    'SLICE_1': slices[1],
    'BLOCK_Q': blocks.q,
    'BLOCK_K': blocks.k,
    'WIDE': blocks.wide,
    'CAUSAL': causal,
  }


@triton.jit
def _product(x0, x1, y0, y1, SLICE_1: tl.constexpr):
  """x @ y^T, float32; over both slices of the head dim."""
  # 'ieee': no TF32 where inputs are float32; half precision knows no other.
  out = tl.dot(x0, tl.trans(y0), input_precision='ieee')
  if SLICE_1 > 0:
    out = tl.dot(x1, tl.trans(y1), out, input_precision='ieee')
  return out


@triton.jit
def _load(x, at, real, d0, d1, STRIDE, SLICE_1, MASKED):
  """Rows `at` of x [., H] in two slices; if MASKED, 0 where not `real`."""
  rows = x + at[:, None] * STRIDE
  if MASKED:
    x0 = tl.load(rows + d0[None, :], mask=real[:, None], other=0.0)
    x1 = x0
    if SLICE_1 > 0:
      x1 = tl.load(rows + d1[None, :], mask=real[:, None], other=0.0)
  else:
    x0 = tl.load(rows + d0[None, :])
    x1 = x0
    if SLICE_1 > 0:
      x1 = tl.load(rows + d1[None, :])
  return x0, x1


@triton.jit
def _tile(
  tile,
  q0,
  q1,
  k,
  v,
  scale,
  sign,
  low_i,
  n_i,
  start,
  end,
  top,
  total,
  out0,
  out1,
  KV_STRIDE: tl.constexpr,
  SLICE_0: tl.constexpr,
  SLICE_1: tl.constexpr,
  WIDTH: tl.constexpr,
  MASKED,
):
  """One tile of WIDTH keys: the running (top, total, out) after it.

  MASKED, a constant as all in capitals: does row i see keys from low_i on, n_i
  of them, and not every key of the tile, or with `sign` -1?
  """
  d0 = tl.arange(0, SLICE_0)
  d1 = SLICE_0 + tl.arange(0, SLICE_1 if SLICE_1 > 0 else 16)
  at = tl.arange(0, WIDTH)
  j = tile * WIDTH + at
  # 64 bit: a sequence of a million keys passes 2**31 elements.
  first = tile.to(tl.int64) * (WIDTH * KV_STRIDE)
  real = (j >= start) & (j < end)
  k0, k1 = _load(k + first, at, real, d0, d1, KV_STRIDE, SLICE_1, MASKED)
  s = _product(q0, q1, k0, k1, SLICE_1)
  if MASKED:
    # One comparison for both ends: without a sign, what is too low is high.
    past = (j[None, :] - low_i[:, None]).to(tl.uint32, bitcast=True)
    s = tl.where(past < n_i[:, None], s * sign, float('-inf'))
  new_top = tl.maximum(top, tl.max(s, 1) * scale)
  p = tl.exp2(s * scale - new_top[:, None])
  shrink = tl.exp2(top - new_top)
  total = total * shrink + tl.sum(p, 1)
  v0, v1 = _load(v + first, at, real, d0, d1, KV_STRIDE, SLICE_1, MASKED)
  p = p.to(v0.dtype)
  out0 = out0 * shrink[:, None]
  out0 = tl.dot(p, v0, out0, input_precision='ieee')
  if SLICE_1 > 0:
    out1 = out1 * shrink[:, None]
    out1 = tl.dot(p, v1, out1, input_precision='ieee')
  return new_top, total, out0, out1


@triton.jit
def attention(
  q_BTNH,
  k_BSKH,
  v_BSKH,
  work_WX,
  scale_BN,
  n_rows,
  n_keys,
  out_BTNH,
  lse_BNT,
  N_HEADS: tl.constexpr,
  N_KV: tl.constexpr,
  SLICE_0: tl.constexpr,
  SLICE_1: tl.constexpr,
  BLOCK_Q: tl.constexpr,
  BLOCK_K: tl.constexpr,
  WIDE: tl.constexpr,
  CAUSAL: tl.constexpr,
):
  """Attention of one block of rows of one head.

  Args:
    q_BTNH, k_BSKH, v_BSKH: contiguous; query head n reads kv head n // (N / K).
    work_WX: int32 [B * N, len(WORK)], see WORK; each (b, n) once, the first
      starts first.
    scale_BN: float32, what scores are multiplied by, with log2(e) in it.
    n_rows, n_keys: T and S.
    out_BTNH: written, in its own dtype; 0 for rows that see nothing.
    lse_BNT: written, float32, natural logarithm, -inf there.
    N_HEADS, N_KV: N and K.
    SLICE_0, SLICE_1: of HEAD_DIMS.
    BLOCK_Q, BLOCK_K, WIDE: of BlockSizes.
    CAUSAL: of the mask.

  Grid: (B * N * ceil(T / BLOCK_Q),).
  """
  HEAD_DIM: tl.constexpr = SLICE_0 + SLICE_1
  Q_STRIDE: tl.constexpr = N_HEADS * HEAD_DIM
  KV_STRIDE: tl.constexpr = N_KV * HEAD_DIM
  program = tl.program_id(0)
  n_blocks = tl.cdiv(n_rows, BLOCK_Q)
  block = n_blocks - 1 - program % n_blocks
  work = work_WX + program // n_blocks * N_COLUMNS
  b = tl.load(work)
  n = tl.load(work + 1)
  offset = tl.load(work + 2)
  start = tl.load(work + 3)
  end = tl.load(work + 4)
  window = tl.load(work + 5)
  model_window = tl.load(work + 6)
  sink = tl.load(work + 7)
  scale = tl.load(scale_BN + b * N_HEADS + n)

  # The block's rows are t, their key positions i, of which the real ones are
  # first..last.
  row = block * BLOCK_Q
  t = row + tl.arange(0, BLOCK_Q)
  in_q = t < n_rows
  i = offset + t
  first = offset + row
  last = offset + tl.minimum(row + BLOCK_Q, n_rows) - 1

  d0 = tl.arange(0, SLICE_0)
  d1 = SLICE_0 + tl.arange(0, SLICE_1 if SLICE_1 > 0 else 16)
  at_q = (b * n_rows + row).to(tl.int64) * Q_STRIDE + n * HEAD_DIM
  rows = tl.arange(0, BLOCK_Q)
  q0, q1 = _load(q_BTNH + at_q, rows, in_q, d0, d1, Q_STRIDE, SLICE_1, True)
  # |scale| and its sign, as tiles want them; 0 becomes a factor so small that
  # every score is 0 and only -inf stays -inf. (A sign given to q would cost its
  # place in shared memory.)
  sign = tl.where(scale < 0, -1.0, 1.0)
  scale = tl.abs(scale)
  scale = tl.where(scale < _LEAST, _LEAST, scale)  # NaN stays
  kv = n // (N_HEADS // N_KV)
  at_kv = (b * n_keys).to(tl.int64) * KV_STRIDE + kv * HEAD_DIM
  k = k_BSKH + at_kv
  v = v_BSKH + at_kv

  # Row i sees sinks [low_i, sink_end_i) and a band [band_i, stop_i), disjoint.
  low_i = tl.maximum(start, i - model_window + 1)
  stop_i = tl.zeros_like(i) + end
  if CAUSAL:
    stop_i = tl.minimum(stop_i, i + 1)
  sink_end_i = tl.minimum(start + sink, stop_i)
  band_i = tl.maximum(tl.maximum(low_i, i - window + 1), sink_end_i)

  # Keys that some row sees: sinks [low, sink_end), band [band_low, stop).
  # Keys that all rows see: sinks [full_low, full_sink), band [hole_low, full).
  stop = end
  full = end
  if CAUSAL:
    stop = tl.minimum(stop, last + 1)
    full = tl.maximum(tl.minimum(full, first + 1), 0)
  low = tl.maximum(start, first - model_window + 1)
  sink_end = tl.minimum(start + sink, stop)
  band_low = tl.maximum(low, first - window + 1)
  full_low = tl.maximum(start, last - model_window + 1)
  full_sink = tl.minimum(start + sink, full)
  hole_low = tl.maximum(start, last - window + 1)

  # As narrow tiles, each run [x0, x1). A tile may hold sinks and band: it is
  # in both runs.
  WIDTH: tl.constexpr = BLOCK_K * WIDE
  sink0 = low // BLOCK_K
  sink1 = tl.where(sink_end > low, tl.cdiv(sink_end, BLOCK_K), sink0)
  band0 = tl.maximum(band_low, sink_end) // BLOCK_K
  band1 = tl.where(stop > band_low, tl.cdiv(stop, BLOCK_K), 0)
  hole0 = tl.cdiv(hole_low, WIDTH) * WIDE
  hole1 = full // WIDTH * WIDE
  # Wide tiles take the largest product for the largest score: with a negative
  # factor it is not, and all is done in narrow ones.
  if (hole1 <= hole0) | (sign < 0):
    hole0 = tl.maximum(sink1, band1)
    hole1 = hole0
  # What is in both is done as the hole's.
  seen0 = tl.minimum(tl.cdiv(full_low, WIDTH) * WIDE, hole0)
  seen1 = tl.minimum(full_sink // WIDTH * WIDE, hole0)
  if (seen1 <= seen0) | (sign < 0):
    seen0 = sink0
    seen1 = sink0

  top = tl.full([BLOCK_Q], _LOWEST, tl.float32)
  total = tl.zeros([BLOCK_Q], tl.float32)
  out0 = tl.zeros([BLOCK_Q, SLICE_0], tl.float32)
  out1 = tl.zeros([BLOCK_Q, SLICE_1 if SLICE_1 > 0 else 16], tl.float32)
  # Partly seen: sinks [sink0, seen0), [seen1, sink1), band [band0, hole0),
  # [hole1, band1); past a hole every row sees all until its end.
  n_0 = seen0 - sink0
  n_1 = n_0 + tl.maximum(tl.minimum(sink1, hole0) - seen1, 0)
  n_2 = n_1 + tl.maximum(tl.minimum(band1, hole0) - band0, 0)
  n_3 = n_2 + tl.maximum(band1 - hole1, 0)
  for step in range(0, n_3):
    tile = tl.where(
      step < n_1,
      tl.where(step < n_0, sink0 + step, seen1 + step - n_0),
      tl.where(step < n_2, band0 + step - n_1, hole1 + step - n_2),
    )
    end_i = tl.where(step < n_1, sink_end_i, stop_i)
    from_i = tl.where((step >= n_1) & (step < n_2), band_i, low_i)
    top, total, out0, out1 = _tile(
      tile,
      q0,
      q1,
      k,
      v,
      scale,
      sign,
      from_i,
      tl.maximum(end_i - from_i, 0).to(tl.uint32),
      start,
      end,
      top,
      total,
      out0,
      out1,
      KV_STRIDE,
      SLICE_0,
      SLICE_1,
      BLOCK_K,
      True,
    )

  # Wide tiles last: they need all registers, and no more of the above.
  n_seen = (seen1 - seen0) // WIDE
  for step in range(0, n_seen + (hole1 - hole0) // WIDE):
    tile = tl.where(
      step < n_seen, seen0 // WIDE + step, hole0 // WIDE + step - n_seen
    )
    top, total, out0, out1 = _tile(
      tile,
      q0,
      q1,
      k,
      v,
      scale,
      sign,
      low_i,
      low_i,
      start,
      end,
      top,
      total,
      out0,
      out1,
      KV_STRIDE,
      SLICE_0,
      SLICE_1,
      WIDTH,
      False,
    )

  # Not `total > 0`: a NaN must stay one, not become a row that sees nothing.
  empty = total == 0
  total = tl.where(empty, 1.0, total)
  lse = tl.where(empty, float('-inf'), (top + tl.log2(total)) * _LN2)
  at_out = out_BTNH + at_q + rows[:, None] * Q_STRIDE
  share = 1.0 / total  # one division a row, not one a number
  out0 = (out0 * share[:, None]).to(out_BTNH.dtype.element_ty)
  tl.store(at_out + d0[None, :], out0, mask=in_q[:, None])
  if SLICE_1 > 0:
    out1 = (out1 * share[:, None]).to(out_BTNH.dtype.element_ty)
    tl.store(at_out + d1[None, :], out1, mask=in_q[:, None])
  at_lse = (b * N_HEADS + n).to(tl.int64) * n_rows + t
  tl.store(lse_BNT + at_lse, lse, mask=in_q)
