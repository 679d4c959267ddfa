"""The work list holds every tile that some row sees, once, and no other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import masks
from corejax.kernels import limits as limits_lib
from corejax.kernels import worklist
from helpers import attention_cases as cases


def _layout(spec, block_q, block_k, room):
  sizes = spec.batch, spec.n_heads, spec.n_rows, spec.n_keys
  return worklist.Layout(spec.causal, block_q, block_k, *sizes, room)


def _builder(layout):
  """Jitted: (mask, control) -> the chunks, stacked."""

  @jax.jit
  def build(mask, control):
    limits = limits_lib.make(
      mask, control, layout.batch, layout.n_heads, layout.n_keys
    )
    starts = jnp.arange(layout.n_chunks, dtype=jnp.int32) * layout.held
    return jax.lax.map(lambda at: worklist.build(layout, limits, at), starts)

  return build


@pytest.mark.parametrize(
  ('name', 'room'),
  [
    ('left_right_padding', 40),
    ('chunk_7_to_1', 40),
    ('model_window', 10**6),
    ('vision', 25),
    ('decode', 40),
  ],
)
def test_it_is_exactly_the_tiles_that_are_seen(name, room):
  spec = cases.SPECS[name]
  layout = _layout(spec, 5, 3, room)
  assert layout.longest <= room
  assert layout.n_chunks == 1 or room < 10**6
  build = _builder(layout)
  n_unmasked = 0
  for seed in range(6):
    problem = cases.draw(spec, seed)
    chunks = jax.tree.map(np.asarray, build(problem.mask, problem.control))
    seen = cases.seen(problem)
    want, empty = [], []
    for b, n, index in np.ndindex(spec.batch, spec.n_heads, layout.n_blocks):
      rows = seen[b, n, index * 5 : (index + 1) * 5]
      parts = [rows[:, 3 * tile : 3 * tile + 3] for tile in range(99)]
      want.append({t for t, part in enumerate(parts) if part.any()})
      empty.append(not want[-1])
    got = []
    for start, words, count in zip(
      range(0, layout.total, layout.held), chunks.word_W, chunks.count
    ):
      words = words[:count]
      row, tile = worklist.row_of(words), worklist.tile_of(words)
      assert (np.diff(row) >= 0).all()
      first = np.diff(row, prepend=-1) > 0
      np.testing.assert_array_equal((words & worklist.FIRST) != 0, first)
      last = np.diff(row, append=layout.held) > 0
      np.testing.assert_array_equal((words & worklist.LAST) != 0, last)
      got += zip(start + row, tile, (words & worklist.MASKED) != 0)
    pairs = [(int(row), int(tile)) for row, tile, _ in got]
    assert len(pairs) == len(set(pairs)) == chunks.count.sum()
    assert set(pairs) == {(r, t) for r, tiles in enumerate(want) for t in tiles}
    assert chunks.empty_R.ravel()[: layout.total].tolist() == empty
    assert chunks.empty_R.ravel()[layout.total :].all()
    for row, tile, masked in got:
      b, n, index = np.unravel_index(
        row, (spec.batch, spec.n_heads, layout.n_blocks)
      )
      part = seen[b, n, index * 5 : index * 5 + 5, tile * 3 : tile * 3 + 3]
      assert masked or (part.size == 15 and part.all())
      n_unmasked += not masked
  assert n_unmasked or name in ('model_window', 'decode')


def test_at_128k_with_two_dense_heads_of_28():
  """The count in closed form, and 14 lists instead of one of 4 MB."""
  length = 2**17
  spec = dataclasses.replace(
    cases.SPECS['plain'], batch=1, n_rows=length, n_keys=length, n_heads=28
  )
  layout = _layout(spec, 512, 512, 2**17)
  assert (layout.n_chunks, layout.n_blocks) == (14, 256)
  control = cases.controls(28, [masks.DENSE] * 2 + [1024] * 26, 128)
  chunks = _builder(layout)(masks.AttnMask(), control)
  # Dense: 1 + 2 + ... + 256. Sparse: three of the band and one of the sinks,
  # but 1, 2, 3 of the first three blocks.
  assert int(chunks.count.sum()) == 2 * 256 * 257 // 2 + 26 * (253 * 4 + 6)


def test_more_tiles_than_a_list_can_name():
  spec = dataclasses.replace(cases.SPECS['plain'], n_keys=2**20)
  assert _layout(spec, 512, 512, 2**17).too_long() is None
  assert 'more than the 16384 of one list' in str(
    _layout(spec, 512, 32, 2**17).too_long()
  )
  assert 'more than the 100 of' in str(_layout(spec, 512, 512, 100).too_long())


def test_more_heads_than_fit_beside_a_list():
  spec = dataclasses.replace(cases.SPECS['plain'], batch=1024, n_heads=32)
  assert _layout(spec, 512, 512, 2**17).too_long() is None
  spec = dataclasses.replace(spec, batch=1025)
  assert '1025 sequences of 32 heads have more than 32768 limits' in str(
    _layout(spec, 512, 512, 2**17).too_long()
  )
