"""Intervals, p values and the noise ceiling of agreement."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from corejax.stats import agreement
from corejax.stats import reliability
from corejax.stats import simulate_agreement


def _brute(value, values, clusters, forth, back):
  moved = [forth(v) for v in values]
  mean = sum(moved) / len(moved)
  sd = math.sqrt(sum((v - mean) ** 2 for v in moved) / (len(moved) - 1))
  half = sd * stats.t(clusters - 1).ppf(0.975)
  return back(forth(value) - half), back(forth(value) + half)


def test_correlation_interval():
  values = [0.5, 0.61, 0.55, 0.7, 0.42]
  found = agreement.correlation_interval(0.6, np.array(values), 12, 20)
  expected = _brute(0.6, values, 12, math.atanh, math.tanh)
  assert found == pytest.approx(expected, abs=1e-9)


def test_share_interval():
  values = [0.2, 0.4, 0.3, 0.3, 0.1]
  expected = _brute(
    0.3,
    values,
    40,
    lambda v: math.asin(math.sqrt(v)),
    lambda a: math.sin(a) ** 2,
  )
  found = agreement.share_interval(0.3, np.array(values), 40)
  assert found == pytest.approx(expected, abs=1e-9)


def test_half_a_step_is_added_to_both_sides():
  values = np.array([0.2, 0.4, 0.4])
  low, high = agreement.share_interval(0.4, values, 9)
  found = agreement.share_interval(0.4, values, 9, step=0.1)
  assert found == pytest.approx((low - 0.05, high + 0.05), abs=1e-9)
  found = agreement.share_interval(0.0, np.zeros(9), 9, step=0.2)
  assert found == pytest.approx((0, 0.1), abs=1e-9)


def test_intervals_stay_in_bounds_and_hold_the_value():
  wide = np.array([0.0, 1.0, 0.5, 1.0])
  assert agreement.share_interval(1.0, wide, 5)[1] == 1.0
  assert agreement.share_interval(0.0, wide, 5)[0] == 0.0
  low, high = agreement.correlation_interval(1.0, np.array([1, 0.9]), 9, 16)
  assert -1 <= low < 0.99 and high == 1.0


def test_a_perfect_correlation_is_no_infinity():
  # Resamples that reach 1 count as half a step from it, 1 - 6 / (X^3 - X).
  found = agreement.correlation_interval(0.5, np.array([1.0, 0.5]), 9, 4)
  expected = _brute(0.5, [1 - 6 / 60, 0.5], 9, math.atanh, math.tanh)
  assert found == pytest.approx(expected, abs=1e-9)


def test_no_spread_is_the_value_itself():
  same = np.ones(5)
  assert agreement.correlation_interval(1.0, same, 9, 16) == (1.0, 1.0)
  assert agreement.share_interval(1.0, same, 9) == (1.0, 1.0)


@pytest.mark.parametrize(
  ('value', 'values', 'clusters'),
  [(math.nan, [1, 0.5], 9), (0.5, [1, 0.5], 1), (0.5, [math.nan, 1], 9)],
)
def test_no_interval(value, values, clusters):
  found = agreement.share_interval(value, np.array(values), clusters)
  assert np.isnan(found).all()


def test_set_overlap_p_by_counting():
  for n, left, right in ((6, 2, 3), (5, 2, 2)):
    sets = list(itertools.combinations(range(n), right))
    for common in range(min(left, right) + 1):
      reached = sum(len(set(s) & set(range(left))) >= common for s in sets)
      assert agreement.set_overlap_p(common, left, right, n) == pytest.approx(
        reached / len(sets), abs=1e-9
      )


def test_what_several_sets_have_in_common_by_counting():
  n, sizes = 5, (2, 3, 2)
  drawn = [
    set.intersection(*map(set, sets))
    for sets in itertools.product(
      *(itertools.combinations(range(n), size) for size in sizes)
    )
  ]
  counts = np.array([len(each) for each in drawn])
  assert agreement.common_chance(sizes, n) == pytest.approx(counts.mean())
  for common in range(4):
    assert agreement.common_p(common, sizes, n) == pytest.approx(
      (counts >= common).mean(), abs=1e-12
    )
  for common in range(3):
    assert agreement.common_p(common, (2, 3), 6) == pytest.approx(
      agreement.set_overlap_p(common, 2, 3, 6)
    )


def test_permutation_p_by_counting():
  left = np.array([1.0, 2, 3, 4, 5])
  right = np.array([2.0, 1, 3, 5, 4])
  value = stats.spearmanr(left, right).statistic
  orders = list(itertools.permutations(right))
  exact = np.mean(
    [stats.spearmanr(left, o).statistic >= value - 1e-12 for o in orders]
  )
  found = agreement.permutation_p(reliability.spearman, left, right, 4000, 0)
  assert found == pytest.approx(exact, abs=0.02)
  assert found == agreement.permutation_p(
    reliability.spearman, left, right, 4000, 0
  )


def test_permutation_p_is_never_0_and_nan_without_permutations():
  order = np.arange(50.0)
  assert agreement.permutation_p(reliability.rbo, order, order, 99, 0) == 0.01
  assert math.isnan(
    agreement.permutation_p(reliability.rbo, order, order, 0, 0)
  )


def test_noise_ceiling():
  assert agreement.noise_ceiling(0.9, 0.4) == pytest.approx(0.6)
  assert math.isnan(agreement.noise_ceiling(-0.1, 0.9))
  assert math.isnan(agreement.noise_ceiling(math.nan, 0.9))


def test_spearman_of_many_rows_is_scipys():
  rng = np.random.default_rng(0)
  left = rng.integers(0, 6, (7, 12)).astype(float)  # ties
  right = rng.integers(0, 6, (7, 12)).astype(float)
  left[3] = 1.0  # constant
  found = reliability.spearman(left, right)
  assert math.isnan(found[3])
  for z in (0, 1, 2, 4, 5, 6):
    expected = stats.spearmanr(left[z], right[z]).statistic
    assert found[z] == pytest.approx(expected, abs=1e-9)
  one = reliability.spearman(left[:1], right)
  assert one[5] == pytest.approx(
    stats.spearmanr(left[0], right[5]).statistic, abs=1e-9
  )
  right[:, 4] = np.nan
  one = reliability.spearman(left[:1], right)
  known = np.arange(12) != 4
  assert one[5] == pytest.approx(
    stats.spearmanr(left[0, known], right[5, known]).statistic, abs=1e-9
  )


@pytest.mark.parametrize('correlation', [0.7, 0.98])
def test_intervals_cover_the_expected_agreement(correlation):
  found = simulate_agreement.coverage(
    64, 50, correlation, top=6, n_simulations=100, n_resamples=200
  )
  in_use = found[simulate_agreement.IN_USE]
  assert set(in_use) == set(simulate_agreement.MEASURES)
  assert min(in_use.values()) >= 0.85
  if correlation > 0.9:  # which is why percentile intervals are not in use
    assert found[simulate_agreement.PERCENTILE]['spearman'] < 0.8
