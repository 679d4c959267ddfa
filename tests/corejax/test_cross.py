"""Heads of several data sets, cut on each: which sets, and what they cost."""

import math

import numpy as np
import pytest

from corejax import cross
from corejax import effects
from corejax import heads as heads_lib

TOPS = {
  name: heads_lib.HeadSet.parse(text)
  for name, text in (('a', '0-0,0-1,1-0'), ('b', '0-0,1-0,1-1'), ('c', '0-0'))
}


def test_sets():
  found = {cut.name: str(cut.heads) for cut in cross.cuts(TOPS)}
  assert found == {
    'all of a': '0-0,0-1,1-0',
    'own of a': '0-1',
    'all of b': '0-0,1-0,1-1',
    'own of b': '1-1',
    'all of c': '0-0',
    'shared': '0-0',
  }
  apart = {name: TOPS[name] for name in 'ab'} | {
    'b': heads_lib.HeadSet.parse('2-2')
  }
  assert 'shared' not in {cut.name for cut in cross.cuts(apart)}


def test_every_set_is_cut_once_with_controls_of_its_layers():
  chosen = cross.cuts(TOPS)
  planned = cross.plan(chosen, (3, 6), range(2))
  assert not planned.groups[0].k
  # 'all of c' and 'shared' are one set.
  assert len(planned.groups) == 1 + 5 * 3
  assert planned.members['all of c'] == planned.members['shared']
  for cut in chosen:
    own, *controls = (planned.groups[x] for x in planned.members[cut.name])
    assert own.heads == cut.heads and len(controls) == 2
    for control in controls:
      assert not len(control.heads & cut.heads)
      np.testing.assert_array_equal(
        control.heads.mask(3, 6).sum(1), cut.heads.mask(3, 6).sum(1)
      )


def _outcomes(planned, right, twins=True, n=120):
  """`right`: name of a set -> (look-ups, twins) that stay right."""
  rng = np.random.default_rng(0)
  twin_E = np.arange(n) % 2 == 1 if twins else np.zeros(n, bool)
  score_XE = np.ones((len(planned.groups), n))
  for name, shares in right.items():
    x = planned.members[name][0]
    for kind, share in zip((~twin_E, twin_E), shares):
      score_XE[x, kind] = rng.random(kind.sum()) < share
  return effects.Outcomes(
    groups=planned.groups,
    score_XE=score_XE,
    logprob_XE=np.zeros_like(score_XE),
    tasks=np.where(twin_E, 'colour_twin', 'colour').tolist(),
    clusters=[str(e // 2) for e in range(n)],
    twin_E=twin_E,
    n_layers=3,
    n_heads=6,
  )


def test_what_a_set_costs():
  chosen = cross.cuts(TOPS)
  planned = cross.plan(chosen, (3, 6), range(2))
  right = {'all of a': (0.3, 1), 'own of b': (0.3, 0.3)}
  found = {
    cell.name: cell
    for cell in cross.cells(chosen, planned, _outcomes(planned, right), 'd')
  }
  assert list(found) == [cut.name for cut in chosen]
  first = found['all of a']
  assert (first.k, first.heads_of, first.data) == (3, 'a', 'd')
  assert first.intact == first.control == first.twin == 1 and first.n == 60
  assert first.low < first.accuracy < first.high < 0.6
  assert first.cost == pytest.approx(first.accuracy - 1)
  assert first.endpoint == pytest.approx(first.cost)
  assert first.shown
  # What costs twins as much is no look-up's affair.
  assert found['own of b'].cost_high < 0 and not found['own of b'].shown
  assert found['shared'].cost == 0 and not found['shared'].shown


def test_without_draws_or_twins():
  chosen = cross.cuts(TOPS)
  planned = cross.plan(chosen, (3, 6), [])
  cell, *_ = cross.cells(
    chosen, planned, _outcomes(planned, {'all of a': (0.3, 1)}), 'd'
  )
  assert cell.accuracy < 0.6 and math.isnan(cell.control)
  assert math.isnan(cell.endpoint) and not cell.shown
  planned = cross.plan(chosen, (3, 6), range(2))
  right = {'all of a': (0.3, 1)}
  cell, *_ = cross.cells(
    chosen, planned, _outcomes(planned, right, twins=False), 'd'
  )
  assert math.isnan(cell.twin) and cell.endpoint == cell.cost and cell.shown
