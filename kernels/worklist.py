"""The list of tiles that a kernel reads, one word for each, built on device.

Query blocks of all heads of all sequences are numbered in one run of *rows*.
Each row reads up to four runs of tiles (corejax.kernels.tiles), of which only
the hole needs no mask; the list holds these tiles and nothing else:

    row      0      1          2                 b n block, flattened
    tiles    0      0 1        0 2 3 4           sink, band, hole, edge
    flags    MFL    MF ML      MF M . ML         masked, first, last
    word     one int32: flags, row, tile

A kernel with scalar prefetch takes one grid step a word. Rows are cut into
chunks whose longest possible list fits in scalar memory; within a chunk the
length is data, so that one executable serves every set of heads.
"""

import dataclasses

import jax
import jax.numpy as jnp

from corejax.kernels import limits as limits_lib
from corejax.kernels import tiles

# A word's bits, from the low end: tile, row, flags.
TILE_BITS = 14
ROW_BITS = 14
MASKED = 1 << (TILE_BITS + ROW_BITS)
FIRST = MASKED << 1
LAST = MASKED << 2
# Heads of all sequences whose limits lie in scalar memory beside a list.
MOST_HEADS = 1 << 15


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a problem is cut; static.

  Attributes:
    causal: of the mask.
    block_q: query rows a block.
    block_k: keys a tile.
    batch: B.
    n_heads: N.
    n_rows: T before padding.
    n_keys: S before padding.
    room: words that a chunk's list may have.
  """

  causal: bool
  block_q: int
  block_k: int
  batch: int
  n_heads: int
  n_rows: int
  n_keys: int
  room: int

  @property
  def n_blocks(self) -> int:
    """Query blocks of one head."""
    return -(-self.n_rows // self.block_q)

  @property
  def n_tiles(self) -> int:
    """Tiles of one head's keys."""
    return -(-self.n_keys // self.block_k)

  @property
  def total(self) -> int:
    """Rows of all heads of all sequences."""
    return self.batch * self.n_heads * self.n_blocks

  @property
  def n_chunks(self) -> int:
    """Chunks that the rows are cut into."""
    most = max(min(self.room // self.n_tiles, 1 << ROW_BITS), 1)
    return -(-self.total // most)

  @property
  def held(self) -> int:
    """Rows of one chunk; the last may hold fewer."""
    return -(-self.total // self.n_chunks)

  @property
  def longest(self) -> int:
    """Words of a chunk's list if every row reads every tile."""
    return self.held * self.n_tiles

  def too_long(self) -> str | None:
    """Why this does not fit in scalar memory, or None."""
    most = min(self.room, 1 << TILE_BITS)
    if self.n_tiles > most:
      return (
        f'{self.n_keys} keys are {self.n_tiles} tiles of {self.block_k}, more '
        f'than the {most} of one list; give larger tiles'
      )
    if self.batch * self.n_heads > MOST_HEADS:
      return (
        f'{self.batch} sequences of {self.n_heads} heads have more than '
        f'{MOST_HEADS} limits; give fewer sequences at once'
      )
    return None

  def place(self, row):
    """(sequence, head, block) of a row; a row past the end is the last."""
    row = jnp.minimum(row, self.total - 1)
    lane, index = (
      jax.lax.div(row, self.n_blocks),
      jax.lax.rem(row, self.n_blocks),
    )
    return (
      jax.lax.div(lane, self.n_heads),
      jax.lax.rem(lane, self.n_heads),
      index,
    )

  def rows(self, limits: limits_lib.Limits, row) -> tiles.Rows:
    """The same as tiles.Rows."""
    b, n, index = self.place(row)
    return tiles.block(limits, b, n, index, self.block_q, self.n_rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
  """The list of one chunk, W = layout.longest words for R = layout.held rows.

  Attributes:
    word_W: int32; beyond `count` they mean nothing.
    count: int32 scalar, words that hold a tile.
    empty_R: bool, rows without any tile.
  """

  word_W: jax.Array
  count: jax.Array
  empty_R: jax.Array


def row_of(word):
  """Row within the chunk."""
  return (word >> TILE_BITS) & ((1 << ROW_BITS) - 1)


def tile_of(word):
  """Tile of keys."""
  return word & ((1 << TILE_BITS) - 1)


def build(layout: Layout, limits: limits_lib.Limits, first_row) -> Chunk:
  """The list of the chunk that begins at this row.

  A run's words differ by one from step to step, so the list is the index plus
  a base that changes at each run: one running sum over the words and a few
  scattered numbers a row, without a gather.

  Args:
    layout: static.
    limits: without segments and regions.
    first_row: int32 scalar.
  """
  assert limits.kv_segment_BS is None and limits.barred_BNR is None
  index_R = jnp.arange(layout.held, dtype=jnp.int32)
  row_R = first_row + index_R
  rows = layout.rows(limits, row_R)
  hole_first, hole_stop = tiles.hole(
    limits, rows, layout.block_q, layout.block_k, layout.causal
  )
  walk = tiles.walk(
    limits, rows, layout.block_k, layout.causal, hole_first, hole_stop
  )
  first_RX = jnp.stack([walk.sink, walk.band, hole_first, walk.edge], 1)
  stop_RX = jnp.stack(
    [walk.sink_stop, walk.band_stop, hole_stop, walk.edge_stop], 1
  )
  size_RX = jnp.maximum(stop_RX - first_RX, 0)
  size_RX = jnp.where(row_R[:, None] < layout.total, size_RX, 0)
  stop_at = jnp.cumsum(size_RX.ravel())
  at = stop_at - size_RX.ravel()
  # Runs: sink, band, hole, edge.
  flags_X = jnp.array([MASKED, MASKED, 0, MASKED], jnp.int32)
  base = (first_RX + (index_R[:, None] << TILE_BITS) + flags_X).ravel() - at
  change = jnp.diff(base, prepend=0)
  # An empty run begins where the next does, and their changes add up; what
  # begins past the end is dropped.
  change_W = jnp.zeros(layout.longest, jnp.int32)
  change_W = change_W.at[at].add(change, mode='drop', indices_are_sorted=True)
  word_W = jnp.arange(layout.longest, dtype=jnp.int32) + jnp.cumsum(change_W)
  size_R = size_RX.sum(1)
  stop_R = stop_at.reshape(size_RX.shape)[:, -1]
  nowhere = layout.longest
  for flag, place_R in ((FIRST, stop_R - size_R), (LAST, stop_R - 1)):
    place_R = jnp.where(size_R > 0, place_R, nowhere)
    word_W = word_W.at[place_R].add(flag, mode='drop')
  return Chunk(word_W, stop_at[-1], size_R == 0)
