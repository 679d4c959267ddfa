"""Rankings judged against RAM, on scores and outcomes that no model made."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from corejax import competing
from corejax import effects
from corejax import errors
from corejax import groups
from corejax import heads as heads_lib
from corejax import judge
from corejax import proxies
from corejax import regions
from helpers import fake_scores

SHAPE = 4, 8
TOP = [(1, 2), (2, 5)]


@pytest.fixture(scope='module')
def scores():
  rng = np.random.default_rng(3)
  made = fake_scores.make(*SHAPE, n_clusters=20, planted=TOP)
  shape = made.mass_ELNQR.shape[:-1]
  return dataclasses.replace(
    made,
    written_ELNQ=rng.random(shape).astype(np.float32),
    gradient_ELN=rng.standard_normal(shape[:-1]).astype(np.float32),
    baseline_profiles=[p * np.float16(0.5) for p in made.profiles],
  )


@pytest.fixture(scope='module')
def sides(scores):
  row = np.arange(fake_scores.N_TOKENS)
  pairs = np.stack([row[:-1], row[1:]], 1)
  return judge.rankings(scores, dict.fromkeys(scores.layouts, pairs))


def plan(sides, select='top2', draws=range(3)):
  return judge.plan({s.name: s.score_LN for s in sides}, select, draws)


def outcomes(sets, breaking, n_clusters=60):
  """Look-ups fail with probability .9 once two of these heads are cut."""
  rng = np.random.default_rng(0)
  n = 4 * n_clusters
  twin_E = np.arange(n) % 2 == 1
  right_XE = np.ones((len(sets.groups), n))
  for x, group in enumerate(sets.groups):
    if len(set(group.heads) & set(breaking)) > 1:
      right_XE[x] = np.where(twin_E, 1.0, rng.random(n) < 0.1)
  return effects.Outcomes(
    groups=sets.groups,
    score_XE=right_XE,
    logprob_XE=np.zeros_like(right_XE),
    tasks=['colour_twin' if twin else 'colour' for twin in twin_E],
    clusters=[f'c{e // 4}' for e in range(n)],
    twin_E=twin_E,
    n_layers=SHAPE[0],
    n_heads=SHAPE[1],
  )


def test_every_ranking_is_named_once(sides):
  names = [side.name for side in sides]
  assert names[0] == judge.RAM
  assert names == list(judge.NEEDS)
  assert set(names) == {judge.RAM, *proxies.NAMES, *competing.NAMES}


def test_rankings_are_means_over_clusters(scores, sides):
  by_name = {side.name: side for side in sides}
  mass_ELN = scores.mass_ELNQR[:, :, :, 0, regions.EVIDENCE]
  np.testing.assert_allclose(
    by_name['ram'].score_LN, mass_ELN.mean(0), rtol=1e-6
  )
  np.testing.assert_allclose(
    by_name['contribution'].score_LN,
    (mass_ELN * scores.written_ELNQ[..., 0]).mean(0),
    rtol=1e-5,
  )


def test_an_example_without_a_value_is_left_out(scores):
  alone = dataclasses.replace(scores, media=['own', *scores.media[1:]])
  row = np.zeros((0, 2), int)
  (side,) = (
    s
    for s in judge.rankings(alone, dict.fromkeys(scores.layouts, row))
    if s.name == 'question_variance'
  )
  assert side.n_examples == len(scores) - 1
  assert np.isfinite(side.score_LN).all()


def test_a_set_that_several_rankings_choose_is_cut_once(sides):
  sets = plan(sides)
  assert not len(sets.groups[0].heads)
  keys = [(g.name, g.heads, g.seed) for g in sets.groups]
  assert len(set(keys)) == len(keys)
  assert list(sets.members)[-1] == judge.RANDOM
  own = sets.members['question_variance']
  assert own == sets.members['ram']  # both find the planted heads
  assert sets.groups[own[0]].heads == heads_lib.HeadSet(TOP)
  for name, at in sets.members.items():
    top, *controls = [sets.groups[x] for x in at]
    if name == judge.RANDOM:
      continue
    assert top.name == groups.GIVEN and len(top.heads) == 2
    for control in controls:
      assert control.name == 'layer_matched'
      assert not set(control.heads) & set(top.heads)


def test_judgement(sides):
  sets = plan(sides)
  found = {
    each.name: each
    for each in judge.judge(
      sides, sets, outcomes(sets, TOP), bootstrap=50, permutations=200
    )
  }
  assert list(found) == list(sets.members)
  ram, proxy = found['ram'], found['question_variance']
  assert ram.share == proxy.share == 1
  assert ram.spearman is None
  assert ram.retrieval.accuracy.value < 0.2 and ram.twin.accuracy.value == 1
  assert ram.control.accuracy.value == 1
  assert ram.endpoint.value.high < -0.5
  by_name = {side.name: side for side in sides}
  for name in ('question_variance', 'written', 'gate_gradient_abs'):
    wanted = stats.spearmanr(
      by_name['ram'].score_LN.ravel(), by_name[name].score_LN.ravel()
    )[0]
    assert found[name].spearman.value == pytest.approx(wanted)
  assert proxy.overlap.value == 1 and proxy.overlap.beyond_chance
  # Random values agree with nothing, and their heads do nothing.
  written = found['written']
  assert abs(written.spearman.value) < 0.5
  assert not written.spearman.beyond_chance
  assert written.share == 0
  random = found[judge.RANDOM]
  assert random.share == 0 and random.endpoint is None
  assert len(random.heads) == 0


def test_share_is_of_what_rams_heads_take(sides):
  sets = plan(sides)
  harmless = outcomes(sets, ())
  for each in judge.judge(sides, sets, harmless, bootstrap=0, permutations=0):
    assert math.isnan(each.share)


def test_without_draws_there_is_no_control(sides):
  sets = plan(sides, draws=())
  assert judge.RANDOM not in sets.members
  for each in judge.judge(
    sides, sets, outcomes(sets, TOP), bootstrap=0, permutations=0
  ):
    assert each.control is None and each.endpoint is None


def test_only_a_number_of_heads_can_be_cut(sides):
  with pytest.raises(errors.UserError, match='top5%'):
    plan(sides, 'fdr0.01')


def test_profiles_are_needed(scores):
  bare = dataclasses.replace(scores, profiles=None, profile_set=None)
  with pytest.raises(errors.UserError, match='--profiles'):
    judge.rankings(bare, {})
