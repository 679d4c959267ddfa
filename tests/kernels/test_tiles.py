"""The walk visits every tile that some row sees, once, and no other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax.kernels import blockwise
from corejax.kernels import limits as limits_lib
from corejax.kernels import tiles
from helpers import attention_cases as cases

_BLOCKS = blockwise.BlockSizes(5, 3, 2)


@pytest.mark.parametrize(
  'name', ['left_right_padding', 'chunk_7_to_1', 'model_window', 'vision']
)
def test_walk_and_hole_are_exactly_the_seen_tiles(name):
  spec = cases.SPECS[name]
  n_blocks = -(-spec.n_rows // _BLOCKS.q)
  n_tiles = -(-spec.n_keys // _BLOCKS.k)
  at = np.array(list(np.ndindex(spec.batch, spec.n_heads, n_blocks)), np.int32)
  tile_C = jnp.arange(n_tiles)

  @jax.jit
  def visits(mask, control):
    limits = limits_lib.make(
      mask, control, spec.batch, spec.n_heads, spec.n_keys
    )

    def one(b, n, index):
      wide_q, wide_k = _BLOCKS.q * _BLOCKS.wide, _BLOCKS.k * _BLOCKS.wide
      group = tiles.block(
        limits, b, n, index // _BLOCKS.wide, wide_q, spec.n_rows
      )
      hole = tiles.hole(limits, group, wide_q, wide_k, spec.causal)
      first, stop = (x * _BLOCKS.wide for x in hole)
      rows = tiles.block(limits, b, n, index, _BLOCKS.q, spec.n_rows)
      walk = tiles.walk(limits, rows, _BLOCKS.k, spec.causal, first, stop)
      steps = jnp.arange(2 * n_tiles)
      counts = (
        jnp.zeros(n_tiles, jnp.int32)
        .at[walk.tile(steps)]
        .add(steps < walk.count)
      )
      whole = jax.vmap(
        lambda tile: tiles.sees_all(limits, rows, tile, _BLOCKS.k, spec.causal)
      )(tile_C)
      return counts, (tile_C >= first) & (tile_C < stop), whole

    return jax.vmap(one)(*at.T)

  n_holes = 0
  for seed in range(8):
    problem = cases.draw(spec, seed)
    counts, in_hole, whole = map(
      np.asarray, visits(problem.mask, problem.control)
    )
    seen = cases.seen(problem)
    for (b, n, index), count, hole, every in zip(at, counts, in_hole, whole):
      rows = seen[b, n, index * _BLOCKS.q : (index + 1) * _BLOCKS.q]
      for tile in range(n_tiles):
        part = rows[:, tile * _BLOCKS.k : (tile + 1) * _BLOCKS.k]
        assert count[tile] + hole[tile] == part.any(), (seed, b, n, index)
        assert not hole[tile] or part.all()
        complete = part.all() and part.shape[1] == _BLOCKS.k
        # A tile may be seen half as sink and half as window: then it is masked
        # in vain.
        assert complete or not every[tile]
        if not problem.control.sink_BN[..., n].any():
          assert every[tile] == complete
    n_holes += in_hole.sum()
  assert n_holes > 0 or name == 'model_window'


def test_segments_that_do_not_meet_are_skipped():
  spec = dataclasses.replace(cases.SPECS['packed'], padding=False)
  problem = cases.draw(spec, 0)
  segment_BT = np.repeat([[1, 2, 3], [1, 1, 2]], 12, axis=1).astype(np.int32)
  mask = dataclasses.replace(
    problem.mask, q_segment_BT=segment_BT, kv_segment_BS=segment_BT
  )
  limits = limits_lib.make(mask, None, 2, spec.n_heads, 36)

  def meet(b, block, tile):
    rows = tiles.block(limits, jnp.int32(b), jnp.int32(0), block, 12, 36)
    return bool(tiles.segments_meet(limits, rows, tile, 12, 12))

  assert [meet(0, 1, tile) for tile in range(3)] == [False, True, False]
  assert [meet(1, 0, tile) for tile in range(3)] == [True, True, False]
