"""Rank agreement against scipy and direct formulas."""

import numpy as np
import pytest
from scipy import stats

from corejax.stats import estimand
from corejax.stats import reliability


@pytest.fixture(scope='module')
def pair():
  rng = np.random.default_rng(1)
  left = rng.integers(0, 12, 40).astype(float)  # ties
  return left, left + rng.normal(0, 3, 40)


def test_order_breaks_ties_by_column_and_puts_nan_last():
  values = [1.0, np.nan, 3.0, 1.0, -np.inf, np.inf, 3.0]
  assert reliability.order(np.array(values)).tolist() == [2, 6, 0, 3, 1, 4, 5]
  assert reliability.positions(np.array(values)).tolist() == [
    2, 4, 0, 3, 5, 6, 1
  ]  # fmt: skip


def test_spearman_is_scipys(pair):
  expected = stats.spearmanr(*pair).statistic
  found = reliability.spearman(*pair)
  np.testing.assert_allclose(found, [expected], atol=1e-9)


def test_spearman_leaves_out_what_is_not_finite(pair):
  left, right = (np.append(side, 5.0) for side in pair)
  left[-1] = np.nan
  np.testing.assert_allclose(
    reliability.spearman(left, right), reliability.spearman(*pair), atol=1e-12
  )
  assert np.isnan(reliability.spearman(np.ones(5), np.arange(5.0)))[0]


def test_rbo_by_sets(pair):
  """The published formula, with sets and a loop."""
  left, right = (reliability.order(side).tolist() for side in pair)
  p, n = 0.9, len(left)
  total = 0.0
  for d in range(1, n + 1):
    total += len(set(left[:d]) & set(right[:d])) / d * p**d
  expected = (1 - p) / p * total + p**n
  found = reliability.rbo(*pair, p=p)
  assert found == pytest.approx(expected, abs=1e-9)


def test_rbo_bounds_and_chance():
  up = np.arange(30.0)
  assert reliability.rbo(up, up) == pytest.approx(1, abs=1e-12)
  assert reliability.rbo(up, -up) < reliability.rbo_chance(30)
  rng = np.random.default_rng(0)
  random_ZX = rng.random((2, 4000, 30))
  assert reliability.rbo(*random_ZX).mean() == pytest.approx(
    reliability.rbo_chance(30), abs=0.005
  )


def test_top_overlap():
  left = np.array([5.0, 4, 3, 2, 1])
  right = np.array([5.0, 1, 4, 2, 3])
  assert reliability.top_overlap(left, right, 2) == 0.5
  assert reliability.top_overlap(left, right, 5) == 1


def score(n_clusters, n_columns, noise, seed=0):
  rng = np.random.default_rng(seed)
  truth_X = np.linspace(0, 1, n_columns)
  return estimand.Estimand(
    estimand.Ratio(truth_X + noise * rng.normal(size=(n_clusters, n_columns)))
  )


def test_split_half_sees_signal_and_noise():
  good = reliability.split_half(score(30, 50, 0.01), 5, seed=0)
  assert good.spearman > 0.99 and good.overlap > 0.9 and good.rbo > 0.9
  noise = reliability.split_half(score(30, 50, 1e6), 5, seed=0)
  assert abs(noise.spearman) < 0.25
  assert abs(noise.overlap - 0.1) < 0.1 and noise.overlap_chance == 0.1
  assert good == reliability.split_half(score(30, 50, 0.01), 5, seed=0)
  assert good.spearman_brown == pytest.approx(
    2 * good.spearman / (1 + good.spearman)
  )


def test_split_half_by_hand():
  """Two clusters: one way to split."""
  values = np.array([[1.0, 2, 3, 4], [1, 3, 2, 4]])
  found = reliability.split_half(
    estimand.Estimand(estimand.Ratio(values)), 2, seed=3, n_splits=7
  )
  assert found.spearman == pytest.approx(stats.spearmanr(*values).statistic)
  assert found.overlap == 0.5
  one = reliability.split_half(
    estimand.Estimand(estimand.Ratio(values[:1])), 2, seed=3
  )
  assert one.n_splits == 0 and np.isnan(one.spearman)


def test_sample_size_grows_to_one():
  rng = np.random.default_rng(0)
  cluster_E = np.repeat(np.arange(40), 3)
  examples = score(120, 60, 0.15)
  found = reliability.sample_size(examples, cluster_E, 6, seed=0)
  assert list(found) == [5, 10, 20, 40, 80]
  values = list(found.values())
  assert values == sorted(values)
  assert values[0] < 0.8 < 0.9 < values[-1]
  order = rng.permutation(120)  # the examples' order does not matter much
  again = reliability.sample_size(
    estimand.Estimand(estimand.Ratio(examples.plus.num_UX[order])),
    cluster_E[order],
    6,
    seed=0,
  )
  assert all(abs(again[n] - found[n]) < 0.1 for n in found)


def test_sample_size_takes_whole_clusters():
  """Copies of a cluster's example bring nothing: n = 10 is one cluster."""
  single = score(20, 60, 0.15)
  copies = estimand.Estimand(
    estimand.Ratio(np.repeat(single.plus.num_UX, 10, axis=0))
  )
  found = reliability.sample_size(
    copies, np.repeat(np.arange(20), 10), 6, seed=0, sizes=[10, 100]
  )
  alone = reliability.sample_size(
    single, np.arange(20), 6, seed=0, sizes=[1, 10]
  )
  assert found[10] == pytest.approx(alone[1], abs=0.1)
  assert found[100] == pytest.approx(alone[10], abs=0.1)
  assert found[10] + 0.2 < found[100]


def test_group_weights_make_means_of_means():
  cluster_E = np.array([0, 1, 0, 2, 1, 0])
  values = np.random.default_rng(0).random((6, 3))
  grouped = estimand.means(values, cluster_E)
  for u in range(3):
    np.testing.assert_allclose(grouped[u], values[cluster_E == u].mean(0))
  np.testing.assert_allclose(
    estimand.group_weights(cluster_E) @ values, grouped.mean(0)
  )
