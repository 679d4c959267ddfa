"""What the nulls of a ranking exchange and test, and when there is none."""

import dataclasses
import itertools

import numpy as np
import pytest

from corejax import errors
from corejax import ranking
from helpers import fake_scores

PLANTED, SALIENT = (1, 2), (2, 0)


@pytest.fixture(scope='module')
def scores():
  return fake_scores.make(
    n_clusters=20, planted=[PLANTED], salient=[SALIENT], baseline=True
  )


def quick(scores, **options):
  return ranking.rank(scores, **{'bootstrap': 0, 'permutations': 0, **options})


def test_the_null_follows_the_score(scores):
  """Whatever the score, it is tested, and finds the same head."""
  for options in (
    {'norm': 'excess'},
    {'norm': 'lift'},
    {'norm': 'lift', 'contrast': True},
    {'norm': 'share'},
  ):
    found = ranking.rank(scores, bootstrap=0, permutations=2000, **options)
    assert found.heads[0] == PLANTED
    assert found.grid('q_value')[PLANTED] < 0.01
    assert found.grid('q_value')[SALIENT] > 0.05


def test_a_calibrated_score_is_not_tested(scores):
  """A head that reads the same without a question scores 0: no q for it."""
  same = dataclasses.replace(scores, baseline_ELNQR=scores.mass_ELNQR)
  found = quick(same, calibrate=True, permutations=200)
  np.testing.assert_array_equal(found.columns['score'], 0)
  for name in ('p_value', 'q_value', 'p_shift', 'q_shift', 'null_mean'):
    assert np.isnan(found.columns[name]).all(), name
  assert any(
    line.startswith('over the null: not tested, a calibrated score has no null')
    for line in found.summary()
  )
  with pytest.raises(
    errors.UserError, match='fdr0.01: there are no q values: a calibrated score'
  ) as info:
    quick(same, calibrate=True, permutations=200, select='fdr0.01')
  assert '--calibrate' in str(info.value) and '\n' not in str(info.value)


def test_lift_is_permuted_as_a_ratio():
  """By enumeration: evidence of another size moves the denominator too."""
  scores = fake_scores.make(
    n_clusters=2, per_cluster=3, sizes=[1, 2, 4, 1, 3, 2], salient=[SALIENT]
  )
  found = quick(scores, norm='lift', permutations=5000)
  profiles = np.array(scores.profiles, np.float64)  # [E, L, N, I]
  lifts = []
  for first in itertools.permutations(range(3)):
    for second in itertools.permutations(range(3, 6)):
      cover = np.array([scores.evidence[c] for c in (*first, *second)], float)
      reading = np.einsum('elni,ei->ln', profiles, cover)
      even = np.einsum('elni,e->ln', profiles, cover.mean(1))
      lifts.append(reading / even)
  exact = np.mean(np.array(lifts) >= lifts[0] - 1e-9, axis=0)
  np.testing.assert_allclose(found.grid('p_value'), exact, atol=0.03)
  mass = quick(scores, permutations=5000)
  assert np.abs(mass.grid('p_value') - exact).max() > 0.06
  # The expectation is that of the numerator.
  np.testing.assert_array_equal(found.grid('null_mean'), mass.grid('null_mean'))
  assert any('(lift, against evidence' in line for line in found.summary())


def test_windows_of_a_document_do_not_exchange(scores):
  """One cluster, two windows of pages: only who sees the same pages swaps."""
  media = [f'{m}/{e % 2}' for e, m in enumerate(scores.media)]
  windows = dataclasses.replace(
    scores, media=media, clusters=['document'] * len(scores)
  )
  tests = quick(windows, permutations=50).findings.tests
  assert (tests.n_media, tests.n_layout, tests.n_fixed) == (len(scores), 0, 0)
  lone = dataclasses.replace(windows, media=scores.ids)
  tests = quick(lone, permutations=50).findings.tests
  assert (tests.n_media, tests.n_layout, tests.n_fixed) == (0, len(scores), 0)
  # A head that always reads the same place of a window knows nothing of the
  # question; against another window's evidence it would seem to.
  fixed = fake_scores.make(n_clusters=40, per_cluster=2, salient=[SALIENT])
  whole = dataclasses.replace(fixed, clusters=['document'] * len(fixed))
  found = quick(whole, permutations=1000)
  assert found.grid('q_value')[SALIENT] > 0.05
  mixed = dataclasses.replace(whole, media=['document'] * len(fixed))
  found = quick(mixed, permutations=1000)
  assert found.grid('q_value')[SALIENT] < 0.05


def test_the_excess_null_subtracts_chance(scores):
  """Evidence of other sizes: an even look is worth nothing at any size."""
  uneven = fake_scores.make(
    n_clusters=10, planted=[PLANTED], sizes=[1, 2, 3, 4] * 10
  )
  mass = ranking.rank(uneven, bootstrap=0, permutations=500)
  excess = ranking.rank(uneven, bootstrap=0, permutations=500, norm='excess')
  fair = mass.grid('null_mean') - excess.grid('null_mean')
  expected = (uneven.mass_ELNQR[:, :, :, 0, :6].sum(-1) * 2.5 / 16).mean(0)
  np.testing.assert_allclose(fair, expected, rtol=0.02)


def test_the_contrast_null_reads_per_token():
  sizes = [1, 2, 3, 4] * 10
  uneven = fake_scores.make(n_clusters=10, planted=[PLANTED], sizes=sizes)
  found = quick(uneven, permutations=500, contrast=True)
  # The planted head puts 0.6 on the objects asked for; the other questions'
  # are read by chance alone, and a quarter of permutations keep one's own.
  own = uneven.mass_ELNQR[:, *PLANTED, 0, 0] / np.array(sizes)
  null_mean = found.grid('null_mean')[PLANTED]
  assert 0.25 * own.mean() < null_mean < 0.6 * own.mean()
  other = quick(uneven, permutations=500)
  assert null_mean < 0.8 * other.grid('null_mean')[PLANTED]


def test_lone_examples_exchange_with_their_layout():
  scores = fake_scores.make(n_clusters=60, planted=[PLANTED], alone=True)
  found = ranking.rank(scores, bootstrap=0, permutations=2000)
  assert found.findings.tests.n_layout == 60
  assert found.grid('q_value')[PLANTED] < 0.01
  assert found.grid('q_value').min() == found.grid('q_value')[PLANTED]


@pytest.mark.parametrize(
  'options, message',
  [
    ({'permutations': 0}, 'asked for; give --permutations=5000'),
    (
      {'query': 'last'},
      'kept for the query set question, not for last; measure again with '
      '--query=last --noresume',
    ),
    (
      {'profiles': None},
      'no profiles were kept; measure again with --profiles --noresume',
    ),
  ],
)
def test_without_a_test_q_is_nan_and_said_so(scores, options, message):
  options = {'permutations': 50, **options}
  if 'profiles' in options:
    scores = dataclasses.replace(scores, profiles=options.pop('profiles'))
  found = quick(scores, **options)
  assert np.isnan(found.columns['q_value']).all()
  assert any(message in line for line in found.summary())
  with pytest.raises(errors.UserError, match=message):
    quick(scores, select='fdr0.01', **options)


def test_examples_without_partner_are_counted(scores):
  layouts = [str(e) for e in range(len(scores))]
  layouts[1] = layouts[0]
  found = quick(dataclasses.replace(scores, layouts=layouts), permutations=50)
  tests = found.findings.tests
  assert (tests.n_media, tests.n_fixed) == (2, len(scores) - 2)
  # Two examples can be exchanged in two ways: nothing can be shown.
  assert (found.columns['p_value'] > 0.2).all()


def test_profiles_that_do_not_belong_to_the_masses(scores):
  shuffled = [*scores.profiles[1:], scores.profiles[0]]
  with pytest.raises(ValueError, match='the profile holds'):
    quick(dataclasses.replace(scores, profiles=shuffled), permutations=5)
