"""Which tiles of keys a block of query rows reads, and what it sees in one.

Of the keys, a block of rows needs the tiles that hold the sinks and those that
the window's band crosses; nothing else is loaded.

    tiles of keys ->   0   1   2   3   4   5   6   7   8
    block of rows     [p]  .   .  [p][f   f   f   f] [p]  .
                      sinks        band    hole      edge

`p` is partly seen and needs the mask, `f` is seen by every row. The run of `f`
is the hole: it is done for several blocks of rows at once, in wide tiles, and
left out of the walk of each. All is integer arithmetic on scalars of one
(sequence, head, block of rows), for any kernel that walks tiles.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from corejax.kernels import limits as limits_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """One block of query rows of one head, all int32 scalars.

  Attributes:
    b, n: sequence and head.
    t: first row, an index into T.
    first, last: key positions of its first and last real row.
  """

  b: jax.Array
  n: jax.Array
  t: jax.Array
  first: jax.Array
  last: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walk:
  """The tiles to visit, three ascending runs [first, stop); int32 scalars.

  Attributes:
    sink, sink_stop: tiles that hold sinks.
    band, band_stop: tiles of the window's band before the hole.
    edge, edge_stop: tiles of the band behind it.
  """

  sink: jax.Array
  sink_stop: jax.Array
  band: jax.Array
  band_stop: jax.Array
  edge: jax.Array
  edge_stop: jax.Array

  @property
  def count(self) -> jax.Array:
    return (
      jnp.maximum(self.sink_stop - self.sink, 0)
      + jnp.maximum(self.band_stop - self.band, 0)
      + jnp.maximum(self.edge_stop - self.edge, 0)
    )

  def tile(self, step: jax.Array) -> jax.Array:
    """Index of the tile visited at this step."""
    sinks = jnp.maximum(self.sink_stop - self.sink, 0)
    band = jnp.maximum(self.band_stop - self.band, 0)
    return jnp.where(
      step < sinks,
      self.sink + step,
      jnp.where(
        step - sinks < band,
        self.band + step - sinks,
        self.edge + step - sinks - band,
      ),
    )


def block(
  limits: limits_lib.Limits, b, n, index, block_q: int, n_rows: int
) -> Rows:
  """The rows of one query block; rows past n_rows - 1 are padding."""
  t = index * block_q
  offset = limits.offset_B[b]
  return Rows(
    b, n, t, offset + t, offset + jnp.minimum(t + block_q, n_rows) - 1
  )


def hole(
  limits: limits_lib.Limits,
  rows: Rows,
  block_q: int,
  block_k: int,
  causal: bool,
) -> tuple[jax.Array, jax.Array]:
  """Tiles [first, stop) of the band that all of the rows see wholly.

  Segments and regions are not looked at. A block with padding rows has none.
  """
  start, stop = limits.start_B[rows.b], limits.end_B[rows.b]
  if causal:
    stop = jnp.minimum(stop, rows.first + 1)
  window = jnp.minimum(
    limits.window_BN[rows.b, rows.n], limits.model_window_B[rows.b]
  )
  low = jnp.maximum(start, rows.last - window + 1)
  first = -(-low // block_k)
  whole = rows.last - rows.first + 1 == block_q
  return first, jnp.where(whole, jnp.maximum(stop // block_k, first), first)


def walk(
  limits: limits_lib.Limits,
  rows: Rows,
  block_k: int,
  causal: bool,
  hole_first: jax.Array,
  hole_stop: jax.Array,
) -> Walk:
  """All tiles in which some row may see some key, but for those of the hole.

  Segments and regions are not looked at.

  Args:
    limits: who may read whom.
    rows: a block of query rows.
    block_k: keys a tile.
    causal: static.
    hole_first, hole_stop: tiles [first, stop) of the band to leave out.
  """
  start = limits.start_B[rows.b]
  stop = limits.end_B[rows.b]
  if causal:
    stop = jnp.minimum(stop, rows.last + 1)
  low = jnp.maximum(start, rows.first - limits.model_window_B[rows.b] + 1)
  sink_key_stop = jnp.minimum(start + limits.sink_BN[rows.b, rows.n], stop)
  band_low = jnp.maximum(low, rows.first - limits.window_BN[rows.b, rows.n] + 1)
  sink = low // block_k
  sink_stop = jnp.where(sink_key_stop > low, -(-sink_key_stop // block_k), sink)
  band_stop = jnp.where(stop > band_low, -(-stop // block_k), 0)
  # Without a hole the third run is empty; with one, all keys behind it are the
  # band's, so that sinks that reach beyond it are met there.
  empty = hole_stop <= hole_first
  hole_first = jnp.where(empty, band_stop, hole_first)
  hole_stop = jnp.where(empty, band_stop, hole_stop)
  return Walk(
    sink=sink,
    sink_stop=jnp.where(empty, sink_stop, jnp.minimum(sink_stop, hole_first)),
    band=jnp.maximum(sink_stop, band_low // block_k),
    band_stop=jnp.minimum(band_stop, hole_first),
    edge=jnp.where(empty, band_stop, hole_stop),
    edge_stop=band_stop,
  )


def sees_all(
  limits: limits_lib.Limits, rows: Rows, tile, block_k: int, causal: bool
) -> jax.Array:
  """Does every real row of the block see every key of the tile? (scalar)"""
  low, high = tile * block_k, (tile + 1) * block_k - 1
  start = limits.start_B[rows.b]
  back = rows.last - low  # the longest way back in this tile
  every = (low >= start) & (high < limits.end_B[rows.b])
  if causal:
    every &= high <= rows.first
  every &= back < limits.model_window_B[rows.b]
  every &= (back < limits.window_BN[rows.b, rows.n]) | (
    high < start + limits.sink_BN[rows.b, rows.n]
  )
  if limits.kv_segment_BS is not None or limits.barred_BNR is not None:
    every = jnp.zeros_like(every)
  return every


def seen(
  limits: limits_lib.Limits,
  rows: Rows,
  tile,
  block_q: int,
  block_k: int,
  causal: bool,
) -> jax.Array:
  """bool [block_q, block_k]: which keys of the tile each row may read."""
  b, n = rows.b, rows.n
  i = rows.first + lax.broadcasted_iota(jnp.int32, (block_q, 1), 0)
  j = tile * block_k + lax.broadcasted_iota(jnp.int32, (1, block_k), 1)
  # Bounds by row, so that the square takes four comparisons; with a distance
  # i - j it takes eight steps and as long as the exponentials of its scores.
  start = limits.start_B[b]
  low = jnp.maximum(start, i - limits.model_window_B[b] + 1)
  high = limits.end_B[b]
  if causal:
    high = jnp.minimum(high, i + 1)
  band_low = i - limits.window_BN[b, n] + 1
  sink_stop = start + limits.sink_BN[b, n]
  allowed = (j >= low) & (j < high) & ((j >= band_low) | (j < sink_stop))
  if limits.q_segment_BT is not None and limits.kv_segment_BS is not None:
    kv_segment = _part(limits.kv_segment_BS, b, tile * block_k, block_k)
    q_segment = _part(limits.q_segment_BT, b, rows.t, block_q)
    allowed &= (kv_segment == 0) | (kv_segment == q_segment[:, None])
  if limits.barred_BNR is not None and limits.region_BS is not None:
    region = _part(limits.region_BS, b, tile * block_k, block_k)
    allowed &= ~limits.barred_BNR[b, n][region]
  return allowed


def segments_meet(
  limits: limits_lib.Limits, rows: Rows, tile, block_q: int, block_k: int
) -> jax.Array:
  """May any row read any key of the tile, by segments? (scalar)

  By the range of the ids only: exact where ids ascend, as packed questions,
  windows and frames do, and never false where a pair is allowed.
  """
  assert limits.kv_segment_BS is not None and limits.q_segment_BT is not None
  kv = _part(limits.kv_segment_BS, rows.b, tile * block_k, block_k)
  q = _part(limits.q_segment_BT, rows.b, rows.t, block_q)
  overlap = (kv.max() >= q.min()) & (kv.min() <= q.max())
  return overlap | (kv == 0).any()


def _part(x_BX: jax.Array, b, start, size: int) -> jax.Array:
  return jax.lax.dynamic_slice(x_BX, (b, start), (1, size))[0]
