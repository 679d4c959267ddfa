"""Closed forms of accuracy intervals, and what clusters do to them."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats

from corejax.stats import accuracy


@pytest.mark.parametrize('k, n', [(0, 10), (3, 10), (81, 263), (48, 48)])
def test_wilson_solves_its_equation(k, n):
  """Its ends are where (p_hat - p)^2 = z^2 p (1 - p) / n."""
  z, p = 1.959964, k / n
  low, high = accuracy.wilson_interval(p, n, z)

  def gap(x):
    return (p - x) ** 2 - z * z * x * (1 - x) / n

  if k:
    assert low == pytest.approx(optimize.brentq(gap, 0, p - 1e-9), abs=1e-9)
  if k < n:
    assert high == pytest.approx(optimize.brentq(gap, p + 1e-9, 1), abs=1e-9)
  assert (low == 0) == (k == 0) and (high == 1) == (k == n)


def test_published_wilson_example():
  """81 of 263, Newcombe (1998a): 0.2553 to 0.3662."""
  low, high = accuracy.wilson_interval(81 / 263, 263, 1.959964)
  assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_a_perfect_score_keeps_a_width():
  found = accuracy.wilson(np.ones(100, bool), np.arange(100))
  assert found.value == found.high == 1 and 0.95 < found.low < 0.97
  both = accuracy.difference(
    np.ones(100, bool), np.ones(100, bool), np.arange(100)
  )
  assert both.value == 0 and -0.06 < both.low < 0 < both.high < 0.06


def test_design_effect_of_copies():
  """Ten copies of each example carry no more than the example."""
  rng = np.random.default_rng(0)
  once = rng.random(60) < 0.7
  copies = accuracy.wilson(np.repeat(once, 10), np.repeat(np.arange(60), 10))
  single = accuracy.wilson(once, np.arange(60))
  assert copies.deff == pytest.approx(10, rel=0.02)
  assert (copies.low, copies.high) == pytest.approx(
    (single.low, single.high), abs=2e-3
  )
  independent = accuracy.wilson(rng.random(600) < 0.7, np.repeat(range(60), 10))
  assert 1 <= independent.deff < 1.6
  assert independent.high - independent.low < copies.high - copies.low


def test_all_right_is_no_better_than_its_clusters():
  many = accuracy.wilson(np.ones(400, bool), np.repeat(np.arange(40), 10))
  few = accuracy.wilson(np.ones(40, bool), np.arange(40))
  assert many.low == pytest.approx(few.low)


def test_agresti_min_by_hand():
  low, high = accuracy.agresti_min_interval(0.5, 0.14, 0.04, 50, 1.96)
  gained, lost, n = 7.5, 2.5, 52
  d = (gained - lost) / n
  se = math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
  assert (low, high) == pytest.approx((d - 1.96 * se, d + 1.96 * se), abs=1e-12)


def test_newcombe_by_hand():
  """Counts 36, 12, 2, 0 of 50, worked out step by step."""
  a, b, c, d = 36, 12, 2, 0  # both, after only, before only, neither
  n, z = 50, 1.959964
  l1, u1 = accuracy.wilson_interval((a + b) / n, n, z)
  l2, u2 = accuracy.wilson_interval((a + c) / n, n, z)
  phi = (a * d - b * c) / math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
  x, y = (a + b) / n - l1, u2 - (a + c) / n
  low = (b - c) / n - math.sqrt(x * x - 2 * phi * x * y + y * y)
  x, y = u1 - (a + b) / n, (a + c) / n - l2
  high = (b - c) / n + math.sqrt(x * x - 2 * phi * x * y + y * y)
  found = accuracy.newcombe_interval(a / n, b / n, c / n, n, z)
  assert found == pytest.approx((low, high), abs=1e-9)


def test_newcombe_takes_half_a_pair_off_a_positive_covariance():
  n, z = 50, 1.96
  low, high = accuracy.wilson_interval(0.7, n, z)
  x, y = 0.7 - low, high - 0.7
  phi = (0.6 * 0.2 - 0.1 * 0.1 - 0.5 / n) / (0.7 * 0.3)
  expected = math.sqrt(x * x - 2 * phi * x * y + y * y)
  found = accuracy.newcombe_interval(0.6, 0.1, 0.1, n, z)
  assert found == pytest.approx((-expected, expected), abs=1e-12)


def test_difference_is_antisymmetric():
  rng = np.random.default_rng(2)
  a, b = rng.random((2, 120)) < [[0.9], [0.6]]
  clusters = np.repeat(np.arange(40), 3)
  there = accuracy.difference(a, b, clusters)
  back = accuracy.difference(b, a, clusters)
  assert there.value == -back.value > 0.1
  assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_one_cluster_says_nothing():
  found = accuracy.wilson(np.array([True, False]), ['a', 'a'])
  assert math.isnan(found.low) and math.isnan(found.high)


def test_no_examples():
  with pytest.raises(ValueError, match='0 values'):
    accuracy.wilson(np.zeros(0, bool), [])


def test_shares_count_as_chances():
  """Of fractions the four cells of the table are expected counts."""
  clusters = np.arange(40)
  after_E = np.tile([0.25, 0.75], 20)
  found = accuracy.difference(after_E, np.ones(40), clusters)
  assert found.value == pytest.approx(-0.5)
  sure = accuracy.difference(np.tile([0, 1], 20), np.ones(40), clusters)
  assert (found.low, found.high) == pytest.approx((sure.low, sure.high))
  with pytest.raises(ValueError, match='values from'):
    accuracy.difference(after_E + 1, np.ones(40), clusters)


def test_draws_widen_by_their_own_error():
  base = accuracy.difference(np.ones(100), np.ones(100), np.arange(100))
  value_S = np.array([-0.1, 0.0, 0.1])
  wide = accuracy.over_draws(base, value_S)
  half = stats.t.ppf(0.975, 2) * value_S.std(ddof=1) / 3**0.5
  assert wide.high == pytest.approx(math.hypot(base.high, half), abs=1e-12)
  assert wide.low == pytest.approx(-math.hypot(base.low, half), abs=1e-12)
  assert math.isnan(accuracy.over_draws(base, value_S[:1]).low)


def test_interaction_of_normal_intervals_is_the_usual_one():
  """Symmetric intervals: half^2 = a^2 + b^2 - 2 rho a b."""
  a = accuracy.Estimate(-0.5, -0.6, -0.4, 100, 50, 1.0)
  b = accuracy.Estimate(0.1, -0.1, 0.3, 100, 50, 1.0)
  for rho in (-0.5, 0.0, 0.5):
    found = accuracy.interaction(a, b, rho)
    half = math.sqrt(0.01 + 0.04 - 2 * rho * 0.02)
    assert (found.value, found.low, found.high) == pytest.approx(
      (-0.6, -0.6 - half, -0.6 + half), abs=1e-12
    )


def test_correlation_by_cluster():
  rng = np.random.default_rng(0)
  level_U = rng.normal(size=30)
  names = [f'c{i}' for i in range(30)]
  assert accuracy.correlation(
    level_U, names, 2 * level_U + 1, names
  ) == pytest.approx(1)
  other_U = rng.normal(size=30)
  assert accuracy.correlation(level_U, names, other_U, names) == pytest.approx(
    np.corrcoef(level_U, other_U)[0, 1]
  )
  order = rng.permutation(30)
  assert accuracy.correlation(
    level_U, names, other_U[order], [names[i] for i in order]
  ) == pytest.approx(np.corrcoef(level_U, other_U)[0, 1])
  assert accuracy.correlation(np.ones(30), names, other_U, names) == 0
