"""Competing rankings: their columns and how far they agree."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from corejax import competing
from corejax import ranking
from corejax import regions
from corejax import table
from helpers import fake_scores

PLANTED, SALIENT = (1, 2), (2, 0)


@pytest.fixture(scope='module')
def scores():
  return fake_scores.make(
    n_clusters=20, planted=[PLANTED], salient=[SALIENT], baseline=True
  )


def quick(scores, **options):
  return ranking.rank(scores, **{'bootstrap': 0, 'permutations': 0, **options})


def test_competing_rankings_by_hand(scores):
  rng = np.random.default_rng(0)
  shape = scores.mass_ELNQR.shape[:-1]
  both = dataclasses.replace(
    scores,
    clusters=['first', 'first', *scores.ids[2:]],
    written_ELNQ=rng.random(shape).astype(np.float32),
    gradient_ELN=rng.standard_normal(shape[:-1]).astype(np.float32),
  )
  found = quick(both, query='last', correct_only=True)
  sums = {}
  for e, cluster in enumerate(both.clusters):
    if both.correct_E[e]:
      written = float(both.written_ELNQ[e, 1, 2, 1])
      gradient = float(both.gradient_ELN[e, 1, 2])
      mass = float(both.mass_ELNQR[e, 1, 2, 1, regions.EVIDENCE])
      row = written, mass * written, gradient, abs(gradient)
      sums.setdefault(cluster, []).append(row)
  means = np.mean([np.mean(rows, axis=0) for rows in sums.values()], axis=0)
  names = table.COLUMNS[-4:]
  assert names == competing.NAMES
  np.testing.assert_allclose(
    [found.grid(name)[1, 2] for name in names], means, rtol=1e-6
  )
  for name in names:
    agreement = found.findings.competing[name]
    assert agreement.spearman == pytest.approx(
      stats.spearmanr(found.columns['ram'], found.columns[name])[0]
    )
    best = np.argmax(found.columns[name]) == 0
    assert agreement.overlap == best
  (line,) = [t for t in found.summary() if t.startswith('competing rankings')]
  assert '(Spearman with RAM, ' in line
  assert all(f'{name} ' in line for name in names)
  said = found.findings.to_dict()['competing']
  assert set(said) == set(names)
  assert set(said['written']) == {'spearman', 'overlap'}


def test_competing_rankings_that_were_not_measured(scores):
  shape = scores.mass_ELNQR.shape[:3]
  found = quick(dataclasses.replace(scores, gradient_ELN=np.ones(shape)))
  assert np.isnan(found.columns['written']).all()
  assert np.isnan(found.columns['contribution']).all()
  assert set(found.findings.competing) == {
    'gate_gradient',
    'gate_gradient_abs',
  }
  plain = quick(scores)
  assert plain.findings.competing == {}
  assert not any('competing' in line for line in plain.summary())
