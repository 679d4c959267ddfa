"""Bootstrap intervals against scipy and against loops."""

import numpy as np
import pytest
from scipy import stats

from corejax.stats import bootstrap
from corejax.stats import estimand


def plain(num_UX, den_UX=None, **kw):
  return estimand.Estimand(estimand.Ratio(num_UX, den_UX), **kw)


@pytest.fixture(scope='module')
def skewed():
  rng = np.random.default_rng(0)
  num = rng.lognormal(-3, 1, (30, 5))
  return num, num + rng.lognormal(-2, 0.5, (30, 5))


def test_bca_is_scipys(skewed):
  """scipy given our very resamples, so that nothing is left to chance."""
  num, den = skewed
  weights = bootstrap.resample(30, 999, 0)
  ours = bootstrap.bca(plain(num), weights)
  for x in range(3):
    base = stats.bootstrap(
      (num[:, x],), np.mean, n_resamples=2, rng=0, method='percentile'
    )
    base.bootstrap_distribution = weights @ num[:, x]
    theirs = stats.bootstrap(
      (num[:, x],), np.mean, n_resamples=0, bootstrap_result=base, method='BCa'
    ).confidence_interval
    assert ours.low[x] == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high[x] == pytest.approx(theirs.high, abs=1e-9)


def loop_t(pieces, weights, level=0.95):
  """Bootstrap-t of one column of sum sign * num / den, resample by resample."""
  n = len(pieces[0][1])

  def estimate(w):
    value, linear = 0.0, np.zeros(n)
    for sign, num, den in pieces:
      r = (w @ num) / (w @ den)
      value += sign * r
      linear += sign * (num - r * den) / (w @ den)
    return value, np.sqrt((w @ linear**2) / (n - 1))

  value, se = estimate(np.full(n, 1 / n))
  t = []
  for w in weights:
    value_w, se_w = estimate(w)
    t.append((value_w - value) / se_w)
  t = np.sort(t)
  k = int(np.ceil(len(t) * (1 - level) / 2)) - 1
  return value, se, value - se * t[-1 - k], value - se * t[k]


@pytest.mark.parametrize('kind', ['mean', 'ratio', 'difference'])
def test_studentised_by_loop(skewed, kind):
  num, den = skewed
  weights = bootstrap.resample(30, 200, 1)
  one = np.ones(30)
  score = plain(num, None if kind == 'mean' else den)
  if kind == 'difference':
    score = estimand.Estimand(
      score.plus, estimand.Ratio(num[::-1], den[::-1] + num)
    )
  found = bootstrap.studentised(score, weights)
  for x in (0, 4):
    pieces = [(1, num[:, x], one if kind == 'mean' else den[:, x])]
    if kind == 'difference':
      pieces.append((-1, num[::-1, x], den[::-1, x] + num[:, x]))
    expected = loop_t(pieces, weights)
    got = (found.value[x], found.se[x], found.low[x], found.high[x])
    assert got == pytest.approx(expected, rel=1e-9)


def test_se_of_a_mean_is_the_textbooks(skewed):
  num, _ = skewed
  found = bootstrap.studentised(plain(num), bootstrap.resample(30, 50, 0))
  np.testing.assert_allclose(
    found.se, num.std(0, ddof=1) / np.sqrt(30), rtol=1e-12
  )


def test_chunks_of_columns_do_not_matter(monkeypatch, skewed):
  num, _ = skewed
  weights = bootstrap.resample(30, 100, 0)
  whole = bootstrap.studentised(plain(num), weights)
  monkeypatch.setattr(bootstrap, '_COLUMNS', 2)
  parts = bootstrap.studentised(plain(num), weights)
  np.testing.assert_allclose(parts.low, whole.low, rtol=1e-12)


def test_same_seed_same_resamples():
  first = bootstrap.resample(7, 20, 3)
  np.testing.assert_array_equal(first, bootstrap.resample(7, 20, 3))
  assert (first != bootstrap.resample(7, 20, 4)).any()
  np.testing.assert_allclose(first.sum(1), 1)


@pytest.mark.parametrize('method', [bootstrap.studentised, bootstrap.bca])
def test_degenerate_columns(method):
  """Constant, all zero, constant but for rounding; then never all right."""
  num = np.tile([0.3, 0.0, 0.1, 0.5], (20, 1))
  num[::2, 2] = 0.3 - 0.2
  num[:, 3] += np.linspace(-0.1, 0.1, 20)
  found = method(plain(num, bounds=(0, 1)), bootstrap.resample(20, 500, 0))
  np.testing.assert_array_equal(found.low[:3], found.value[:3])
  np.testing.assert_array_equal(found.high[:3], found.value[:3])
  np.testing.assert_allclose(found.value, [0.3, 0, 0.1, 0.5], atol=1e-12)
  assert found.low[3] < 0.5 < found.high[3]


def test_one_cluster_has_no_interval():
  found = bootstrap.studentised(
    plain(np.full((1, 2), 0.4)), bootstrap.resample(1, 50, 0)
  )
  assert found.value.tolist() == [0.4, 0.4]
  assert np.isnan(found.low).all() and np.isnan(found.high).all()


def test_a_resample_that_is_the_score_without_spread():
  """All three draws the middle cluster: 0 / 0, which says nothing."""
  found = bootstrap.studentised(
    plain(np.array([[0.0], [0.5], [1.0]]), bounds=(-2, 3)),
    bootstrap.resample(3, 2000, 0),
  )
  # More than 2.5% of resamples have no spread on either side of the score.
  assert (found.low[0], found.high[0]) == (-2, 3)


def test_undefined_scores_have_no_interval():
  num = np.ones((10, 3))
  den = np.ones((10, 3))
  den[:, 0] = 0  # the score itself is undefined
  den[1:, 1] = 0  # some resamples are
  den[:, 2] = np.linspace(1, 2, 10)
  num[:, 0] = 0
  found = bootstrap.studentised(plain(num, den), bootstrap.resample(10, 300, 0))
  assert np.isnan(found.low).tolist() == [True, True, False]


def test_ends_stay_within_the_bounds():
  """One cluster of 40 holds everything: the mean is hardly known."""
  num = np.zeros((40, 1))
  num[0] = 0.9
  found = bootstrap.studentised(
    plain(num, bounds=(0, 1)), bootstrap.resample(40, 1000, 0)
  )
  assert 0 <= found.low[0] < found.value[0] < found.high[0] <= 1
