"""Comparing rankings: against brute force, and what is drawn together."""

import math

import numpy as np
import pytest
from scipy import stats

from corejax import compare
from corejax import errors
from corejax import heads as heads_lib
from corejax import ram as ram_lib
from corejax import regions
from corejax import sides as sides_lib
from corejax import structure
from corejax.stats import agreement
from corejax.stats import bootstrap
from corejax.stats import estimand
from corejax.stats import multiple
from corejax.stats import reliability
from helpers import fake_scores

SMALL = dict(bootstrap=40, permutations=60)


def side(name, seed=0, suffix=None, query='question', **options):
  made = fake_scores.make(seed=seed, profiles=False, **options)
  keys = [f'{c}{suffix or name}' for c in made.clusters]
  return sides_lib.of_scores(name, made, ram_lib.Options(query=query), keys)


def ram(seed, query=0, weights=None, **options):
  """[X], cluster means by loops; weights: cluster -> weight."""
  made = fake_scores.make(seed=seed, profiles=False, **options)
  # In the order of the names that `side` makes: c10a is before c1a.
  names = sorted(set(made.clusters), key=lambda name: f'{name}a')
  means = []
  for name in names:
    members = [e for e, c in enumerate(made.clusters) if c == name]
    mass = np.float64(made.mass_ELNQR[members, :, :, query, regions.EVIDENCE])
    means.append(mass.mean(0).ravel())
  if weights is None:
    weights = np.full(len(names), 1 / len(names))
  return weights @ np.array(means)


def brute_rbo(left, right, p=reliability.PERSISTENCE):
  a, b = np.argsort(-left, kind='stable'), np.argsort(-right, kind='stable')
  n = len(a)
  common = [len(set(a[:d]) & set(b[:d])) for d in range(1, n + 1)]
  total = sum((1 - p) / p * common[d - 1] / d * p**d for d in range(1, n + 1))
  return total + common[-1] / n * p**n


@pytest.fixture(scope='module')
def found():
  a = side('a', 1, planted=((0, 1), (2, 2)))
  b = side('b', 2, planted=((0, 1), (1, 2)))
  return compare.compare([a, b], select='top2', **SMALL)


def test_measures_by_brute_force(found):
  a = ram(1, planted=((0, 1), (2, 2)))
  b = ram(2, planted=((0, 1), (1, 2)))
  row = found.find('a', 'b', compare.SPEARMAN)
  assert row.value == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
  assert row.chance == 0
  row = found.find('b', 'a', compare.OVERLAP, 2)
  top_a, top_b = (set(np.argsort(-x)[:2]) for x in (a, b))
  assert row.value == pytest.approx(len(top_a & top_b) / 2, abs=1e-9)
  assert row.chance == pytest.approx(2 / 12)
  assert row.p == pytest.approx(
    1 - math.comb(10, 2) / math.comb(12, 2), abs=1e-9
  )
  row = found.find('a', 'b', compare.RBO)
  assert row.value == pytest.approx(brute_rbo(a, b), abs=1e-9)
  assert row.chance == reliability.rbo_chance(12)
  with pytest.raises(KeyError):
    found.find('a', 'b', compare.OVERLAP, 30)


def test_intervals_by_brute_force():
  """Two data sets: resampled apart, each by its clusters."""
  a, b = side('a', 1), side('b', 2)
  found = compare.compare([a, b], select='top2', **SMALL)
  drawn = sides_lib.draw([a, b], 40, 0)
  assert not np.array_equal(drawn[0].weights_ZU, drawn[1].weights_ZU)
  left, right = (
    [ram(seed, weights=w) for w in d.weights_ZU]
    for seed, d in zip((1, 2), drawn)
  )
  for measure, k, one, interval in (
    (
      compare.SPEARMAN,
      0,
      lambda x, y: stats.spearmanr(x, y).statistic,
      lambda v, vs: agreement.correlation_interval(v, vs, 12, 12),
    ),
    (
      compare.RBO,
      0,
      brute_rbo,
      lambda v, vs: agreement.share_interval(v, vs, 12),
    ),
    (
      compare.OVERLAP,
      2,
      lambda x, y: len(set(np.argsort(-x)[:2]) & set(np.argsort(-y)[:2])) / 2,
      lambda v, vs: agreement.share_interval(v, vs, 12, 1 / 2),
    ),
  ):
    values = np.array([one(x, y) for x, y in zip(left, right)])
    row = found.find('a', 'b', measure, k)
    assert (row.low, row.high) == pytest.approx(
      interval(one(ram(1), ram(2)), values), abs=1e-9
    )


def test_query_sets_of_one_run_are_drawn_together():
  one = side('x/question', 1, suffix='x')
  two = side('x/last', 1, suffix='x', query='last')
  drawn = sides_lib.draw([one, two], 20, 0)
  np.testing.assert_array_equal(drawn[0].weights_ZU, drawn[1].weights_ZU)
  np.testing.assert_allclose(
    drawn[1].score_ZX[3], ram(1, 1, drawn[1].weights_ZU[3]), atol=1e-9
  )
  row = compare.compare([one, two], **SMALL).agreements[0]
  assert (row.clusters_a, row.clusters_b, row.clusters_shared) == (12, 12, 12)


def test_partly_shared_clusters():
  """Drawn from the union; each keeps its own, weighted to 1."""
  small = sides_lib.of_samples('s', np.ones((2, 1, 2)))
  large = sides_lib.of_samples('l', np.ones((3, 1, 2)))
  sides = [
    sides_lib.Side(**vars(small) | {'clusters': ('p', 'q')}),
    sides_lib.Side(**vars(large) | {'clusters': ('p', 'q', 'r')}),
  ]
  few, many = sides_lib.draw(sides, 200, 0)
  np.testing.assert_allclose(many.weights_ZU.sum(1), 1)
  np.testing.assert_allclose(few.weights_ZU[few.known_Z].sum(1), 1)
  for z in range(200):
    own = many.weights_ZU[z, :2]
    if own.sum() == 0:
      assert np.isnan(few.weights_ZU[z]).all() and not few.known_Z[z]
    else:
      np.testing.assert_allclose(few.weights_ZU[z], own / own.sum())
  assert not few.known_Z.all()  # 1 in 27
  third = sides_lib.of_samples('t', np.ones((3, 1, 2)))
  groups = sides_lib.draw([*sides, third], 9, 0)
  np.testing.assert_array_equal(groups[0].weights_ZU, few.weights_ZU[:9])


def test_a_third_ranking_changes_nothing_of_a_pair():
  # It holds the clusters of a, and others.
  a, b = side('a', 1), side('b', 2)
  c = side('c', 3, suffix='a', n_clusters=20)
  two = compare.compare([a, b], **SMALL)
  three = compare.compare([a, b, c], **SMALL)
  for row in two.agreements:
    other = three.find('a', 'b', row.measure, row.k)
    assert (row.value, row.low, row.high, row.p) == (
      other.value,
      other.low,
      other.high,
      other.p,
    )
  family = [r for r in three.agreements if r.measure == compare.SPEARMAN]
  np.testing.assert_allclose(
    [r.q for r in family],
    multiple.benjamini_hochberg(np.array([r.p for r in family])),
  )


def test_noise_ceiling_is_that_of_split_halves(found):
  halves = [
    reliability.split_half(s.score, 2, 0).spearman_brown for s in found.sides
  ]
  assert [found.reliability[n] for n in 'ab'] == halves
  assert found.find('a', 'b', compare.SPEARMAN).ceiling == pytest.approx(
    math.sqrt(halves[0] * halves[1])
  )
  assert math.isnan(found.find('a', 'b', compare.RBO).ceiling)


def test_the_second_cut_where_it_fits():
  big = dict(n_layers=6, n_heads=10)
  rows = compare.compare(
    [side('a', 1, **big), side('b', 2, **big)], **SMALL
  ).agreements
  assert [r.k for r in rows if r.measure == compare.OVERLAP] == [3, 30]
  less = dict(n_layers=59, n_heads=1)
  rows = compare.compare(
    [side('a', 1, **less), side('b', 2, **less)], **SMALL
  ).agreements
  assert [r.k for r in rows if r.measure == compare.OVERLAP] == [3]


def test_sets(found):
  assert found.selected['a'] == heads_lib.HeadSet.parse('0-1,2-2')
  assert str(found.shared(['a', 'b'])) == '0-1'
  assert str(found.united(['a', 'b'])) == '0-1,1-2,2-2'
  assert str(found.own('a', ['a', 'b'])) == '2-2'
  assert found.own('a', ['a']) == found.selected['a']


def test_beyond_chance():
  same = {
    'planted': ((0, 1), (2, 2), (3, 0), (1, 3)),
    'n_layers': 5,
    'n_heads': 8,
  }
  rows = compare.compare(
    [side('a', 1, **same), side('b', 2, **same)],
    select='top4',
    bootstrap=100,
    permutations=200,
  )
  assert rows.find('a', 'b', compare.OVERLAP, 4).beyond_chance
  row = rows.find('a', 'b', compare.OVERLAP, 4)
  for change in ({'q': 0.02}, {'low': row.chance}, {'q': math.nan}):
    assert not compare.Agreement(**vars(row) | change).beyond_chance
  assert compare.Agreement(**vars(row) | {'low': math.nan}).beyond_chance


def test_shapes_are_kept_apart():
  found = compare.compare([side('a'), side('b', n_layers=5)], **SMALL)
  assert not found.agreements
  assert found.shapes == {(3, 4): ('a',), (5, 4): ('b',)}
  assert {r.ranking for r in found.structures} == {'a', 'b'}


def test_nothing_drawn_gives_no_interval():
  found = compare.compare(
    [side('a', 1), side('b', 2)], bootstrap=0, permutations=0
  )
  for row in found.agreements:
    assert math.isnan(row.low)
    assert math.isnan(row.p) == (row.measure != compare.OVERLAP)
  assert all(math.isnan(r.low) for r in found.structures)
  one = [side('a', 1, n_clusters=1), side('b', 2, n_clusters=1)]
  found = compare.compare(one, **SMALL)
  assert all(math.isnan(r.low) for r in found.agreements)
  assert math.isnan(found.reliability['a'])


def test_refusals():
  for rule in ('bottom5', 'per_layer2', 'fdr0.01'):
    with pytest.raises(errors.UserError, match='top5% or top30'):
      compare.compare([side('a'), side('b')], select=rule)
  with pytest.raises(errors.UserError, match='12 heads'):
    compare.compare([side('a'), side('b')], select='top13')
  with pytest.raises(ValueError, match='twice'):
    compare.compare([side('a'), side('a')])


def test_samples_with_holes_are_means_of_what_is_there():
  value_ELN = np.array([[[1.0, np.nan]], [[2.0, 5.0]], [[6.0, np.nan]]])
  ranked = sides_lib.of_samples('x', value_ELN)
  np.testing.assert_allclose(ranked.score.value(), [3, 5], atol=1e-12)
  assert ranked.n_examples == 3 and ranked.mass is not None
  negative = sides_lib.of_samples('x', -value_ELN)
  assert negative.mass is None
  other = sides_lib.of_samples('y', value_ELN, aligned=False)
  found = compare.compare([ranked, other], **SMALL)
  assert math.isnan(found.find('x', 'y', compare.SPEARMAN).low)
  assert math.isnan(found.reliability['y'])


def quadratic_gini(x):
  return sum(abs(a - b) for a in x for b in x) / (2 * len(x) * sum(x))


def test_structure_by_brute_force():
  made = side('a', 1, planted=((0, 1), (2, 2)))
  (drawn,) = sides_lib.draw([made], 40, 0)
  rows = {r.measure: r for r in structure.measure(drawn)}
  mass = ram(1, planted=((0, 1), (2, 2)))
  values = [
    quadratic_gini(ram(1, weights=w, planted=((0, 1), (2, 2))))
    for w in drawn.weights_ZU
  ]
  row = rows[structure.GINI]
  assert row.value == pytest.approx(quadratic_gini(mass), abs=1e-9)
  assert (row.low, row.high) == pytest.approx(
    agreement.share_interval(row.value, np.array(values), 12), abs=1e-9
  )
  share = mass / mass.sum()
  assert rows[structure.EFFECTIVE].value == pytest.approx(
    1 / (share**2).sum() / 12, abs=1e-9
  )
  count = next(k for k in range(1, 13) if np.sort(share)[::-1][:k].sum() >= 0.5)
  assert rows[structure.HALF].value == pytest.approx(count / 12, abs=1e-9)
  assert (row.n, row.n_clusters) == (48, 12)


@pytest.mark.parametrize('n_layers', [1, 3, 10, 12, 28])
def test_depth_by_a_fine_grid(n_layers):
  """Any number of layers: the share of each bin that each layer fills."""
  fine = 840 * 10
  at = (np.arange(fine) + 0.5) / fine
  layer, bin_ = (at * n_layers).astype(int), (at * structure.N_BINS).astype(int)
  expected = np.zeros((n_layers, structure.N_BINS))
  np.add.at(expected, (layer, bin_), n_layers / fine)
  np.testing.assert_allclose(
    structure.depth_overlap(n_layers), expected, atol=1e-9
  )


def test_mass_by_depth():
  made = side('a', 1, planted=((0, 1), (2, 2)))
  (drawn,) = sides_lib.draw([made], 60, 0)
  rows = structure.measure(drawn)
  mean = [r for r in rows if r.measure == structure.DEPTH_MEAN]
  share = [r for r in rows if r.measure == structure.DEPTH_SHARE]
  mass_LN = ram(1, planted=((0, 1), (2, 2))).reshape(3, 4)
  into = structure.depth_overlap(3)
  assert [r.depth for r in mean] == pytest.approx(np.arange(0.05, 1, 0.1))
  np.testing.assert_allclose(
    [r.value for r in mean],
    mass_LN.mean(1) @ into / into.sum(0),
    atol=1e-9,
  )
  np.testing.assert_allclose(
    [r.value for r in share], mass_LN.sum(1) @ into / mass_LN.sum(), atol=1e-9
  )
  assert sum(r.value for r in share) == pytest.approx(1)
  # Bins inside of one layer: the studentised interval of its mean.
  layer_UX = made.mass.plus.num_UX[:, :4].mean(1, keepdims=True)
  plain = bootstrap.studentised(
    estimand.Estimand(estimand.Ratio(layer_UX), bounds=(0, math.inf)),
    drawn.weights_ZU,
  )
  assert (mean[0].low, mean[0].high) == pytest.approx(
    (plain.low[0], plain.high[0]), abs=1e-9
  )
