"""Sparsity measures against their definitions."""

import numpy as np
import pytest

from corejax.stats import sparsity


@pytest.fixture(scope='module')
def masses():
  return np.random.default_rng(0).lognormal(0, 1.5, 57)


def test_gini_by_pairs(masses):
  pairs = np.abs(masses[:, None] - masses[None]).sum()
  expected = pairs / (2 * len(masses) * masses.sum())
  assert sparsity.gini(masses) == pytest.approx(expected, rel=1e-12)


def test_extremes():
  one = np.eye(8)[3]
  assert sparsity.gini(one) == pytest.approx(7 / 8)
  assert sparsity.gini(np.ones(8)) == pytest.approx(0, abs=1e-15)
  assert sparsity.effective_number(one) == 1
  assert sparsity.effective_number(np.ones(8)) == pytest.approx(8)
  assert sparsity.half_count(one) == 1
  assert sparsity.half_count(np.ones(8)) == 4
  assert sparsity.half_count(np.array([0.1, 0.1, 0.3])) == 1


def test_nothing_at_all():
  found = sparsity.measure(np.zeros((2, 3)))
  assert np.isnan(found.gini) and np.isnan(found.effective)
  assert found.half == 0 and np.isnan(found.by_depth).all()


def test_half_count_by_hand(masses):
  total, held, n = masses.sum(), 0.0, 0
  for value in sorted(masses, reverse=True):
    if held >= total / 2:
      break
    held, n = held + value, n + 1
  assert sparsity.half_count(masses) == n


def test_by_depth():
  mass_LN = np.zeros((20, 4))
  mass_LN[0, 0], mass_LN[1, 1], mass_LN[19, 2] = 0.2, 0.3, 0.5
  found = sparsity.measure(mass_LN)
  np.testing.assert_allclose(found.by_depth[[0, 9]], [0.5, 0.5])
  assert found.by_depth.sum() == pytest.approx(1)
  assert found.mean_by_depth[0] == pytest.approx(0.5 / 8)
  assert found.high_share == 3 / 80
  assert found.half_share == found.half / 80
  shallow = sparsity.measure(np.ones((2, 4)))
  assert np.isnan(shallow.mean_by_depth).sum() == 8
  assert shallow.by_depth[2] == shallow.by_depth[7] == 0.5
