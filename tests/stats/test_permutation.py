"""Nulls against full enumeration, their level and their power."""

import itertools

import numpy as np
import pytest
from scipy import stats

from corejax.stats import multiple
from corejax.stats import permutation

N_TOKENS = 12


def examples(n, n_columns, seed=0):
  rng = np.random.default_rng(seed)
  profiles = [
    rng.random((n_columns, N_TOKENS)).astype(np.float16) for _ in range(n)
  ]
  covers = [
    np.isin(np.arange(N_TOKENS), rng.choice(N_TOKENS, 2, False)) * 1.0
    for _ in range(n)
  ]
  return profiles, covers


def test_groups():
  found = permutation.groups(
    ['a', 'a', 'b', 'a', 'c', 'd', 'd', 'e'],
    ['x', 'x', 'x', 'y', 'x', 'y', 'y', 'z'],
    seed=0,
  )
  members = sorted(sorted(m.tolist()) for m in found.members)
  # 3 is alone on a's layout y, where no other is alone.
  assert members == [[0, 1], [2, 4], [5, 6]]
  assert (found.n_media, found.n_layout, found.n_fixed) == (4, 2, 2)


def test_lone_examples_are_pooled_in_even_blocks():
  found = permutation.groups(list(range(70)), ['x'] * 70, seed=0)
  assert [len(m) for m in found.members] == [24, 23, 23]
  assert sorted(np.concatenate(found.members).tolist()) == list(range(70))


def test_exchange_by_enumeration():
  """Two groups of three: 36 permutations, all tried by hand."""
  profiles, covers = examples(6, 5)
  weights = np.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1])
  groups = permutation.groups(list('aaabbb'), ['x'] * 6, 0)
  found = permutation.exchange(profiles, covers, weights, groups, 20000, 0)
  readings = [
    np.array(
      [
        sum(
          weights[e] * profiles[e][x].astype(float) @ covers[c]
          for e, c in enumerate([*first, *second])
        )
        for x in range(5)
      ]
    )
    for first in itertools.permutations((0, 1, 2))
    for second in itertools.permutations((3, 4, 5))
  ]
  np.testing.assert_allclose(found.observed_X, readings[0], rtol=1e-6)
  exact = np.mean(np.array(readings) >= readings[0] - 1e-9, axis=0)
  # Four standard errors of 20000 draws.
  np.testing.assert_allclose(found.p_X, exact, atol=0.015)
  np.testing.assert_allclose(
    found.expected_X, np.mean(readings, axis=0), atol=0.01
  )


def test_windows_of_one_document_are_other_media():
  """Pages 1-2 and 3-4 of a document: evidence moves within a window first."""
  found = permutation.groups(
    ['doc/1-2', 'doc/1-2', 'doc/3-4', 'doc/3-4', 'doc/5-6', 'other/1-2'],
    ['x'] * 6,
    seed=0,
  )
  members = sorted(sorted(m.tolist()) for m in found.members)
  assert members == [[0, 1], [2, 3], [4, 5]]
  assert (found.n_media, found.n_layout, found.n_fixed) == (4, 2, 0)


@pytest.mark.parametrize('alone', [False, True])
def test_a_ratio_is_permuted_as_one(alone):
  """Lift by enumeration: evidence of other sizes moves the denominator.

  With one example more that has no partner: it is in both means all the same.
  """
  rng = np.random.default_rng(2)
  n = 6 + alone
  profiles, covers = examples(n, 8)
  covers = [
    np.isin(np.arange(N_TOKENS), rng.choice(N_TOKENS, size, False)) * 1.0
    for size in [1, 3, 6, 2, 5, 1, 4][:n]
  ]
  weights = np.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1, 0.4])[:n]
  groups = permutation.groups(list('aaabbbc')[:n], ['x'] * n, 0)

  def lift(choices):
    looks = [(w, p.astype(float)) for w, p in zip(weights, profiles)]
    num = sum(w * p @ covers[c] for (w, p), c in zip(looks, choices))
    den = sum(
      w * p.sum(1) * covers[c].mean() for (w, p), c in zip(looks, choices)
    )
    return num / den

  lone = [6] * alone
  observed = lift(range(n))
  found = permutation.exchange(
    profiles, covers, weights, groups, 20000, 0, slope_X=observed
  )
  lifts = [
    lift([*first, *second, *lone])
    for first in itertools.permutations((0, 1, 2))
    for second in itertools.permutations((3, 4, 5))
  ]
  exact = np.mean(np.array(lifts) >= observed - 1e-9, axis=0)
  np.testing.assert_allclose(found.p_X, exact, atol=0.015)
  plain = permutation.exchange(profiles, covers, weights, groups, 20000, 0)
  assert np.abs(plain.p_X - exact).max() > 0.05
  # What is reported is the reading, of all examples.
  reading = sum(w * p @ c for w, p, c in zip(weights, profiles, covers))
  np.testing.assert_allclose(found.observed_X, reading, rtol=1e-3)
  np.testing.assert_array_equal(found.expected_X, plain.expected_X)


def test_equal_evidence_ties_in_a_ratio():
  profiles, covers = examples(20, 30)
  groups = permutation.groups(np.repeat(range(5), 4).tolist(), ['x'] * 20, 0)
  for slope in (0.0, 2.5):
    found = permutation.exchange(
      profiles,
      [covers[0]] * 20,
      np.full(20, 1 / 20),
      groups,
      200,
      0,
      slope_X=np.full(30, slope),
    )
    assert (found.p_X == 1).all()


def test_shift_by_enumeration():
  profiles, covers = examples(3, 4)
  weights = np.array([0.5, 0.3, 0.2])
  shifted = [
    np.stack([np.roll(covers[0], 2), np.roll(covers[0], 5)]),
    np.zeros((0, N_TOKENS)),
    np.roll(covers[2], 3)[None],
  ]
  found = permutation.shift(profiles, covers, shifted, weights, 20000, 0)
  choices = [np.concatenate([covers[e][None], shifted[e]]) for e in (0, 2)]
  # Example 1 has no other place and reads the same in every permutation.
  readings = np.array(
    [
      weights[1] * profiles[1].astype(float) @ covers[1]
      + sum(
        weights[e] * profiles[e].astype(float) @ c
        for e, c in zip((0, 2), chosen)
      )
      for chosen in itertools.product(*choices)
    ]
  )
  np.testing.assert_allclose(found.observed_X, readings[0], rtol=1e-6)
  exact = np.mean(readings >= readings[0] - 1e-9, axis=0)
  np.testing.assert_allclose(found.p_X, exact, atol=0.015)
  np.testing.assert_allclose(found.expected_X, readings.mean(0), atol=0.01)


def test_chunks_do_not_matter(monkeypatch):
  profiles, covers = examples(12, 40)
  groups = permutation.groups(np.repeat(range(4), 3).tolist(), ['x'] * 12, 0)
  weights = np.full(12, 1 / 12)
  whole = permutation.exchange(profiles, covers, weights, groups, 333, 5)
  monkeypatch.setattr(permutation, '_TABLE_BYTES', 1)
  monkeypatch.setattr(permutation, '_PERMUTATIONS', 50)
  parts = permutation.exchange(profiles, covers, weights, groups, 333, 5)
  np.testing.assert_array_equal(parts.p_X, whole.p_X)
  np.testing.assert_allclose(parts.expected_X, whole.expected_X, rtol=1e-12)


def test_equal_evidence_ties():
  """Questions about one box: whatever a head reads, nothing is shown."""
  profiles, covers = examples(40, 30)
  covers = [covers[0]] * 40
  groups = permutation.groups(np.repeat(range(10), 4).tolist(), ['x'] * 40, 0)
  found = permutation.exchange(
    profiles, covers, np.full(40, 1 / 40), groups, 500, 0
  )
  assert (found.p_X == 1).all()


def test_equal_profiles_tie():
  """A head that looks the same way whatever is asked shows nothing."""
  profiles, covers = examples(40, 30)
  profiles = [profiles[0]] * 40
  groups = permutation.groups(np.repeat(range(10), 4).tolist(), ['x'] * 40, 0)
  found = permutation.exchange(
    profiles, covers, np.full(40, 1 / 40), groups, 500, 0
  )
  assert (found.p_X == 1).all()


def test_level_and_power():
  """p is uniform under exchangeable evidence and small under a planted effect.

  The heads look at the objects of their picture, more at salient ones, which
  a test against shifted evidence would take for retrieval.
  """
  rng = np.random.default_rng(0)
  n_clusters, n_null, n_planted = 20, 600, 5
  profiles, covers, clusters, shifted = [], [], [], []
  for cluster in range(n_clusters):
    objects = rng.choice(N_TOKENS, 6, replace=False)
    salience = rng.dirichlet(np.ones(6), n_null + n_planted)
    for _ in range(4):
      target = rng.choice(objects)
      profile = 0.01 * rng.random((n_null + n_planted, N_TOKENS))
      profile[:, objects] += salience * rng.uniform(0.5, 1, salience.shape)
      profile[n_null:, target] += 0.2
      profiles.append(profile.astype(np.float16))
      covers.append((np.arange(N_TOKENS) == target) * 1.0)
      clusters.append(cluster)
      shifted.append(np.stack([np.roll(covers[-1], j) for j in (1, 5, 9)]))
  groups = permutation.groups(clusters, ['x'] * len(covers), 0)
  weights = np.full(len(covers), 1 / len(covers))
  found = permutation.exchange(profiles, covers, weights, groups, 999, 0)
  null_p = found.p_X[:n_null]
  # Heads share the evidence, so these are not quite 600 independent p values.
  assert stats.kstest(null_p, 'uniform').pvalue > 1e-3
  assert 0.03 < (null_p <= 0.05).mean() < 0.07
  assert (found.p_X[n_null:] == 1 / 1000).all()
  fooled = permutation.shift(profiles, covers, shifted, weights, 999, 0)
  assert (fooled.p_X[:n_null] <= 0.05).mean() > 0.5


def test_level_over_data_sets():
  """The same head over many data sets: the promise of an exact test."""
  rejected = 0
  n_sets = 400
  for seed in range(n_sets):
    profiles, covers = examples(9, 1, seed)
    groups = permutation.groups(
      np.repeat(range(3), 3).tolist(), ['x'] * 9, seed
    )
    found = permutation.exchange(
      profiles, covers, np.full(9, 1 / 9), groups, 99, seed
    )
    rejected += found.p_X[0] <= 0.1
  # 4 standard errors; ties make the test a little conservative.
  assert rejected / n_sets < 0.1 + 4 * np.sqrt(0.09 / n_sets)
  assert rejected / n_sets > 0.04


def test_nobody_to_exchange_with():
  profiles, covers = examples(3, 2)
  groups = permutation.groups(['a', 'b', 'c'], ['x', 'y', 'z'], 0)
  assert groups.n_fixed == 3
  weights = np.full(3, 1 / 3)
  assert permutation.exchange(profiles, covers, weights, groups, 9, 0) is None
  none = [np.zeros((0, N_TOKENS))] * 3
  assert permutation.shift(profiles, covers, none, weights, 9, 0) is None


def test_layouts_that_are_not_the_same():
  profiles, covers = examples(2, 2)
  groups = permutation.groups(['a', 'a'], ['x', 'x'], 0)
  with pytest.raises(ValueError, match=r'have \[11, 12\] tokens'):
    permutation.exchange(
      profiles, [covers[0], covers[1][:-1]], np.ones(2) / 2, groups, 9, 0
    )


def test_benjamini_hochberg_is_scipys():
  p = np.random.default_rng(0).random(200) ** 2
  p[:5] = p[5]  # ties
  np.testing.assert_allclose(
    multiple.benjamini_hochberg(p), stats.false_discovery_control(p), atol=1e-12
  )


def test_benjamini_hochberg_leaves_nan_out():
  p = np.array([0.01, np.nan, 0.04])
  q = multiple.benjamini_hochberg(p)
  np.testing.assert_allclose(q[[0, 2]], [0.02, 0.04])
  assert np.isnan(q[1])
  assert np.isnan(multiple.benjamini_hochberg(np.full(2, np.nan))).all()


@pytest.mark.parametrize('n_permutations', [99, 999, 5000, 200000])
def test_least_discoveries(n_permutations):
  """k heads at the smallest p pass, k - 1 do not."""
  k = multiple.least_discoveries(1024, n_permutations, 0.01)
  for n, passes in ((k, True), (k - 1, False)):
    if 0 < n <= 1024:
      p = np.ones(1024)
      p[:n] = 1 / (1 + n_permutations)
      assert (multiple.benjamini_hochberg(p)[0] < 0.01) == passes
