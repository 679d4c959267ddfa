"""RAM by brute force from its definition; guards; who takes part."""

import dataclasses

import numpy as np
import pytest

from corejax import errors
from corejax import ram
from corejax import regions
from helpers import fake_scores

UNEVEN = [1, 2, 3, 1] * 6  # evidence tokens


@pytest.fixture(scope='module')
def scores():
  made = fake_scores.make(
    n_clusters=6, planted=[(1, 2)], sizes=UNEVEN, baseline=True
  )
  # Clusters of unequal size, and one example without a distractor.
  clusters = list(made.clusters)
  clusters[1] = clusters[0] = 'lone'
  made.mass_ELNQR[5, ..., regions.OTHER_VISUAL] += made.mass_ELNQR[
    5, ..., 1:4
  ].sum(-1)
  made.mass_ELNQR[5, ..., 1:4] = 0
  made.count_ER[5, regions.OTHER_VISUAL] += made.count_ER[5, 1:4].sum()
  made.count_ER[5, 1:4] = 0
  return dataclasses.replace(made, clusters=clusters)


def by_hand(scores, layer, head, options, baseline=False):
  """One head's score, example by example in plain Python."""
  q = regions.QUERY_SETS.index(options.query)
  mass = scores.baseline_ELNQR if baseline else scores.mass_ELNQR
  sums = {}
  for e, cluster in enumerate(scores.clusters):
    if options.correct_only and not scores.correct_E[e]:
      continue
    m = [float(x) for x in mass[e, layer, head, q]]
    count = [int(x) for x in scores.count_ER[e]]
    visual, n_visual = sum(m[:6]), sum(count[:6])
    num, even = m[0], visual * count[0] / n_visual
    if options.contrast:
      if count[1] == 0:
        continue
      num, even = m[0] / count[0] - m[1] / count[1], visual / n_visual
    if options.norm == 'excess' and not options.contrast:
      num -= even
    den = {'share': visual, 'lift': even}.get(options.norm, 1.0)
    sums.setdefault(cluster, []).append((num, den))
  means = [np.mean(pairs, axis=0) for pairs in sums.values()]
  num, den = np.mean(means, axis=0)
  return num / den


@pytest.mark.parametrize('norm', ram.NORMS)
@pytest.mark.parametrize(
  'extra',
  [{}, {'contrast': True}, {'calibrate': True}, {'correct_only': True}],
  ids=str,
)
def test_score_by_hand(scores, norm, extra):
  options = ram.Options(query='last', norm=norm, **extra)
  found = ram.measure(scores, options)
  for layer, head in ((0, 0), (1, 2), (2, 3)):
    expected = by_hand(scores, layer, head, options)
    if options.calibrate:
      expected -= by_hand(scores, layer, head, options, baseline=True)
    np.testing.assert_allclose(found.score_LN[layer, head], expected, rtol=1e-9)


def test_ram_is_the_mass_whatever_the_score(scores):
  plain = ram.measure(scores, ram.Options())
  other = ram.measure(scores, ram.Options(norm='lift', calibrate=True))
  np.testing.assert_array_equal(plain.score_LN, plain.ram_LN)
  np.testing.assert_array_equal(other.ram_LN, plain.ram_LN)
  np.testing.assert_allclose(
    plain.region_LNR[..., regions.EVIDENCE], plain.ram_LN, rtol=1e-12
  )
  np.testing.assert_allclose(plain.region_LNR.sum(-1), 1, atol=1e-6)


def test_lift_is_share_over_chance_where_chance_is_constant():
  scores = fake_scores.make(planted=[(0, 1)])
  found = ram.measure(scores, ram.Options(norm='lift'))
  assert found.chance == 1 / fake_scores.N_TOKENS
  np.testing.assert_allclose(
    found.score_LN, found.by_norm['share'] / found.chance, rtol=1e-12
  )


def test_a_head_that_looks_evenly_has_lift_one_and_excess_zero(scores):
  mass = scores.mass_ELNQR.copy()
  visual = list(regions.VISUAL)
  even = scores.count_ER[:, visual] / scores.count_ER[:, visual].sum(
    -1, keepdims=True
  )
  level = mass[:, 0, 0][..., visual].sum(-1, keepdims=True)
  mass[:, 0, 0, :, : len(visual)] = level * even[:, None]
  found = ram.measure(dataclasses.replace(scores, mass_ELNQR=mass))
  np.testing.assert_allclose(found.by_norm['lift'][0, 0], 1, rtol=1e-6)
  np.testing.assert_allclose(found.by_norm['excess'][0, 0], 0, atol=1e-8)
  assert found.by_norm['mass'][0, 0] > 0.02


def test_clusters_weigh_alike(scores):
  """A cluster of many questions is one picture, not many."""
  doubled = [*range(len(scores)), *range(4, 8)]
  again = dataclasses.replace(
    scores,
    mass_ELNQR=scores.mass_ELNQR[doubled],
    count_ER=scores.count_ER[doubled],
    baseline_ELNQR=None,
    correct_E=scores.correct_E[doubled],
    **{
      name: [getattr(scores, name)[e] for e in doubled]
      for name in ('ids', 'clusters', 'layouts', 'evidence', 'shifted')
    },
  )
  np.testing.assert_allclose(
    ram.measure(again).ram_LN, ram.measure(scores).ram_LN, rtol=1e-12
  )


def test_per_example_values(scores):
  found = ram.measure(scores, ram.Options(norm='share'))
  m = scores.mass_ELNQR[7, 1, 2, 0].astype(np.float64)
  np.testing.assert_allclose(found.value_ELN[7, 1, 2], m[0] / m[:6].sum())


def test_dropped_examples_are_counted(scores):
  found = ram.measure(scores, ram.Options(contrast=True, correct_only=True))
  wrong = int((~scores.correct_E).sum())
  assert found.dropped[ram.WRONG] == wrong
  assert 5 not in found.used_E
  expected = len(scores) - wrong - bool(scores.correct_E[5])
  assert len(found.used_E) == len(found.chance_E) == expected


def test_an_example_without_rows_is_left_out_not_counted_as_zero(scores):
  mass = scores.mass_ELNQR.copy()
  mass[3, :, :, 0] = 0
  found = ram.measure(dataclasses.replace(scores, mass_ELNQR=mass))
  assert found.dropped == {ram.NO_ROWS: 1}
  assert 3 not in found.used_E
  assert set(ram.by_query(scores)) == set(regions.QUERY_SETS)
  mass[..., 0, :] = 0
  empty = dataclasses.replace(scores, mass_ELNQR=mass)
  assert set(ram.by_query(empty)) == {'last', 'answer'}
  with pytest.raises(errors.UserError, match='24 no row in the query set'):
    ram.measure(empty)


def test_undefined_share_is_not_finite(scores):
  mass = scores.mass_ELNQR.copy()
  mass[:, 0, 0, :, regions.OTHER_TEXT] += mass[:, 0, 0][..., :6].sum(-1)
  mass[:, 0, 0, :, :6] = 0
  found = ram.measure(
    dataclasses.replace(scores, mass_ELNQR=mass), ram.Options(norm='share')
  )
  assert np.isnan(found.score_LN[0, 0])
  assert np.isnan(found.value_ELN[:, 0, 0]).all()
  assert np.isfinite(found.score_LN).sum() == found.score_LN.size - 1


@pytest.mark.parametrize(
  'value, message',
  [
    (np.nan, 'nan on question is outside 0..1'),
    (np.inf, 'inf on question is outside 0..1'),
    (2.28, '2.28.* on question is outside 0..1'),
    (-0.002, '-0.002.* on question is outside 0..1'),
  ],
)
def test_impossible_masses_are_errors(scores, value, message):
  mass = scores.mass_ELNQR.copy()
  mass[4, 2, 1, 1, regions.QUESTION] = value
  with pytest.raises(
    errors.UserError, match=f'fake/test/4, head 2-1, query set last: {message}'
  ):
    ram.measure(dataclasses.replace(scores, mass_ELNQR=mass))


@pytest.mark.parametrize('off, good', [(0.0009, True), (0.0011, False)])
def test_regions_sum_to_one(scores, off, good):
  mass = scores.mass_ELNQR.copy()
  mass[4, 2, 1, 1, regions.QUESTION] += off
  wrong = dataclasses.replace(scores, mass_ELNQR=mass)
  if good:
    ram.measure(wrong)
    return
  with pytest.raises(errors.UserError, match='the regions sum to 1.0011'):
    ram.measure(wrong)


def test_one_head_of_zeros_is_an_error(scores):
  mass = scores.mass_ELNQR.copy()
  mass[4, 2, 1, 1] = 0
  with pytest.raises(errors.UserError, match='the regions sum to 0.0000'):
    ram.measure(dataclasses.replace(scores, mass_ELNQR=mass))


def test_the_baseline_is_guarded_too(scores):
  base = scores.baseline_ELNQR.copy()
  base[0, 0, 0, 0, 0] = np.nan
  wrong = dataclasses.replace(scores, baseline_ELNQR=base)
  ram.measure(wrong)  # not asked for
  with pytest.raises(errors.UserError, match='content-free mass of example'):
    ram.measure(wrong, ram.Options(calibrate=True))
  with pytest.raises(errors.UserError, match='measure again with --calibrate'):
    ram.measure(
      dataclasses.replace(scores, baseline_ELNQR=None),
      ram.Options(calibrate=True),
    )


def test_evidence_is_needed(scores):
  count = scores.count_ER.copy()
  count[2, regions.EVIDENCE] = 0
  with pytest.raises(errors.UserError, match='fake/test/2 has no evidence'):
    ram.measure(dataclasses.replace(scores, count_ER=count))


@pytest.mark.parametrize('wrong', [{'query': 'all'}, {'norm': 'sum'}], ids=str)
def test_unknown_options(wrong):
  with pytest.raises(errors.UserError, match='is unknown; choose one of'):
    ram.Options(**wrong)


def test_kv_groups():
  score = np.array([[1.0, 5, 2, np.nan], [0, -1, np.nan, np.nan]])
  np.testing.assert_array_equal(ram.kv_groups(score, 2), [[5, 2], [0, np.nan]])
  np.testing.assert_array_equal(ram.kv_groups(score, 4), score)
  with pytest.raises(errors.UserError, match='3 key/value heads'):
    ram.kv_groups(score, 3)
