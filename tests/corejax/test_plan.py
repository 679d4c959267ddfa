"""Plans of sparse prefill: costs against brute force, heads, arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import control
from corejax import errors
from corejax import heads
from corejax import masks
from corejax import plan
from corejax.kernels import dispatch

L, N, K = 3, 8, 2
RNG = np.random.default_rng(0)
SCORE_LN = RNG.permutation(L * N).reshape(L, N).astype(float)


def _seen(length, window, sink):
  """bool [T, S] of one sparse head, by the mask that kernels are tested by."""
  one = plan.HeadPlan(heads.HeadSet(), window, sink).expand(1, 1).attend
  layer = control.AttendControl(
    one.window_BN[0], one.sink_BN[0], one.score_scale_BN[0]
  )
  rows = masks.row_positions(masks.AttnMask(), 1, length)
  return np.asarray(masks.visible(masks.AttnMask(), rows, length, layer)[0, 0])


def _tiles(seen, block):
  """Blocks in which anything is seen, one by one."""
  n = -(-len(seen) // block)
  return sum(
    seen[a * block : (a + 1) * block, b * block : (b + 1) * block].any()
    for a in range(n)
    for b in range(n)
  )


SIZES = [
  # length, window, sink, block
  (1, 1, 0, 4),
  (16, 4, 0, 4),
  (16, 5, 3, 4),
  (23, 1, 0, 4),
  (23, 3, 6, 5),
  (23, 7, 16, 8),
  (31, 30, 1, 8),
  (31, 40, 40, 8),
  (40, 9, 40, 7),
  (37, 8, 9, 64),
]


@pytest.mark.parametrize('length, window, sink, block', SIZES)
def test_costs_are_those_counted_one_by_one(length, window, sink, block):
  dense = heads.HeadSet([(0, 1), (2, 7), (2, 0)])
  cost = plan.HeadPlan(dense, window, sink, block).cost(length, L, N)
  seen, whole = _seen(length, window, sink), np.tri(length, dtype=bool)
  n, n_dense = L * N, len(dense)
  pairs = n_dense * whole.sum() + (n - n_dense) * seen.sum()
  assert cost.rho == n_dense / n
  assert cost.attended == pytest.approx(pairs / (n * whole.sum()))
  assert cost.element_ideal == pytest.approx(n * whole.sum() / pairs)
  n_tiles, all_tiles = _tiles(seen, block), _tiles(whole, block)
  assert plan.tiles(length, window, sink, block) == n_tiles
  read = n_dense * all_tiles + (n - n_dense) * n_tiles
  assert cost.tile_ideal == pytest.approx(n * all_tiles / read)


def test_the_figures_of_the_protocol():
  """SCIENCE: rho .05, c = 2176: 2.05x at 8K, 5.8x at 32K, 12.3x at 128K."""
  layers, n_heads = 20, 20
  for fraction, length, aim in (
    (0.05, 8192, 2.05),
    (0.05, 32768, 5.8),
    (0.05, 131072, 12.3),
    (0.50, 131072, 1.9),
  ):
    score_LN = np.arange(400.0).reshape(layers, n_heads)
    made = plan.HeadPlan.top_fraction(score_LN, fraction, 2048, 128)
    cost = made.cost(length, layers, n_heads)
    assert cost.element_ideal == pytest.approx(aim, rel=0.03)
    # Tiles are coarser than pairs: never better.
    assert 0.85 * cost.element_ideal < cost.tile_ideal < cost.element_ideal


def test_kv_bytes_are_those_no_dense_head_reads():
  dense = heads.HeadSet([(0, 0), (0, 3), (1, 4)])  # groups 0-0, 1-1
  found = plan.HeadPlan(dense, 10, 5).kv_bytes(100, L, N, K, 16, 2)
  one_key = 2 * 16 * 2
  assert found.whole == L * K * 100 * one_key
  assert found.dropped == (L * K - 2) * (100 - 15) * one_key
  short = plan.HeadPlan(dense, 10, 5).kv_bytes(12, L, N, K, 16, 2)
  assert short.dropped == 0


def test_report_says_it_in_one_line():
  made = plan.HeadPlan(heads.HeadSet([(0, 0)]), 10, 5, 8)
  line = made.report(100, L, N, K, 16, 2)
  assert '\n' not in line
  cost = made.cost(100, L, N)
  for part in (
    '1 of 24 heads dense (4.2%), sink 5, window 10',
    f'{100 * cost.attended:.1f}% of the pairs',
    f'{cost.element_ideal:.2f}x by elements',
    f'{cost.tile_ideal:.2f}x by tiles of 8',
    'MiB of keys and values',
  ):
    assert part in line


def test_heads_come_from_the_top_of_the_ranking():
  made = plan.HeadPlan.top_k(SCORE_LN, 5)
  assert made.heads == heads.HeadSet.from_mask(SCORE_LN >= L * N - 5)
  share = plan.HeadPlan.top_fraction(SCORE_LN, 5 / 24)
  assert share == made and hash(share) == hash(made)
  assert not len(plan.HeadPlan.top_fraction(SCORE_LN, 0).heads)
  assert len(plan.HeadPlan.top_fraction(SCORE_LN, 0.001).heads) == 1
  assert len(plan.HeadPlan.top_fraction(SCORE_LN, 1).heads) == L * N


def test_heads_without_a_score_stay_sparse():
  score_LN = SCORE_LN.copy()
  best = np.unravel_index(SCORE_LN.argmax(), SCORE_LN.shape)
  score_LN[best] = np.nan
  assert best not in plan.HeadPlan.top_k(score_LN, 24).heads
  assert len(plan.HeadPlan.top_k(score_LN, 24).heads) == 23


@pytest.mark.parametrize('k', [0, 4, 5, 7, 8, 23, 24])
def test_snapped_takes_the_best_whole_groups_within_the_budget(k):
  made = plan.HeadPlan.top_k(SCORE_LN, k, n_kv_heads=K)
  group_LK = SCORE_LN.reshape(L, K, N // K).max(-1)
  order = np.argsort(-group_LK.ravel())
  assert len(made.heads) == k // 4 * 4 <= k
  groups = {(layer, head // 4) for layer, head in made.heads}
  assert groups == {(int(x) // K, int(x) % K) for x in order[: k // 4]}


def test_a_group_without_any_score_is_not_taken():
  score_LN = SCORE_LN.copy()
  score_LN[1, :4] = np.nan  # a whole group
  score_LN[0, :3] = np.nan  # most of one
  taken = plan.snapped(score_LN, 24, K)
  assert len(taken) == 20 and (1, 0) not in taken and (0, 0) in taken


def test_arrays_are_windows_and_sinks():
  made = plan.HeadPlan(heads.HeadSet([(0, 1), (2, 7)]), 9, 4)
  expanded = made.expand(L, N)
  window_LN = np.asarray(expanded.attend.window_BN)[:, 0]
  assert expanded.attend.window_BN.dtype == jnp.int32
  assert window_LN.shape == (L, N)
  dense_LN = made.heads.mask(L, N)
  assert (window_LN[dense_LN] == masks.DENSE).all()
  assert (window_LN[~dense_LN] == 9).all()
  sink_LN = np.asarray(expanded.attend.sink_BN)[:, 0]
  assert (sink_LN == np.where(dense_LN, 0, 4)).all()


def test_all_heads_are_the_intact_control():
  everything = heads.HeadSet((l, n) for l in range(L) for n in range(N))
  made = plan.HeadPlan(everything, 9, 4).expand(L, N)
  intact = control.HeadControl.intact(L, N)
  for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(intact)):
    np.testing.assert_array_equal(ours, theirs)


def test_a_plan_is_a_static_argument_and_its_arrays_share_a_program():
  q, k, v = (
    jnp.asarray(RNG.normal(size=(1, 20, n, 8)), jnp.float32) for n in (N, K, K)
  )

  def attend(window_BN, sink_BN):
    layer = control.AttendControl(window_BN, sink_BN, jnp.ones((1, N)))
    return dispatch.head_sparse_attention(q, k, v, masks.AttnMask(), layer)

  @functools.partial(jax.jit, static_argnames='made')
  def static(made):
    arrays = made.expand(1, N).attend
    return attend(arrays.window_BN[0], arrays.sink_BN[0])

  arrays = jax.jit(attend)
  for pair in ((0, 1), (0, 6), (0, 3)):
    made = plan.HeadPlan(heads.HeadSet([pair]), 5, 2)
    layer = made.expand(1, N).attend
    np.testing.assert_allclose(
      static(made), arrays(layer.window_BN[0], layer.sink_BN[0]), atol=2e-6
    )
  assert static._cache_size() == 3 and arrays._cache_size() == 1
  static(dataclasses.replace(made, heads=heads.HeadSet([(0, 3)])))
  assert static._cache_size() == 3  # equal plans are one


@pytest.mark.parametrize(
  'make, said',
  [
    (lambda: plan.HeadPlan(heads.HeadSet(), 0), 'window=0; give 1'),
    (lambda: plan.HeadPlan(heads.HeadSet(), 4, -1), 'sink=-1; give 0'),
    (lambda: plan.HeadPlan(heads.HeadSet(), 4, 1, 0), 'block=0; give 1'),
    (lambda: plan.HeadPlan(heads.HeadSet(), 2**31), 'window=2147483648'),
    (lambda: plan.HeadPlan.top_k(SCORE_LN, 25), r'k=25; .* give 0 to 24'),
    (lambda: plan.HeadPlan.top_k(SCORE_LN, -1), 'k=-1'),
    (lambda: plan.HeadPlan.top_fraction(SCORE_LN, 1.2), '1.2; give a share'),
    (lambda: plan.HeadPlan.top_fraction(SCORE_LN, float('nan')), 'nan'),
    (lambda: plan.snapped(SCORE_LN, 3, K), 'less than one key/value group'),
    (lambda: plan.snapped(SCORE_LN, 8, 3), '3 key/value heads do not divide'),
    (lambda: plan.HeadPlan(heads.HeadSet()).cost(0, L, N), 'length 0'),
    (
      lambda: plan.HeadPlan(heads.HeadSet([(3, 0)])).expand(L, N),
      'layer 3 is outside 0..2',
    ),
  ],
)
def test_what_is_wrong_is_said_in_one_line(make, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    make()
  assert '\n' not in str(caught.value)
