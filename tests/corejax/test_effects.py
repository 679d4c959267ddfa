"""Effects of ablations: curves, pairing, the primary endpoint."""

import csv
import io

import numpy as np
import pytest

from corejax import effects
from corejax import groups
from corejax import heads
from corejax.stats import accuracy

N_SCENES, N_DRAWS, K = 40, 5, 3
SCORE_LN = np.arange(32, dtype=float).reshape(4, 8)


def _groups():
  return groups.plan(SCORE_LN, (0, K), range(N_DRAWS))


def _outcomes(top_right, control_right, twins=True, seed=0):
  """Intact all right; per set of heads the chance of a right answer.

  Args:
    top_right: (retrieval, twin) with the top cut.
    control_right: likewise with any other group cut.
    twins: every look-up is followed by its twin.
    seed: of the answers.
  """
  rng = np.random.default_rng(seed)
  made = _groups()
  twin_E = np.tile([False, True], 2 * N_SCENES)
  if not twins:
    twin_E[:] = False
  tasks = np.where(twin_E, 'colour_twin', 'colour').tolist()
  clusters = np.repeat([f's{i}' for i in range(N_SCENES)], 4)
  score_XE = np.ones((len(made), len(twin_E)))
  for x, group in enumerate(made):
    if not group.k:
      continue
    right = top_right if group.name == 'top' else control_right
    chance_E = np.where(twin_E, right[1], right[0])
    score_XE[x] = rng.random(len(twin_E)) < chance_E
  return effects.Outcomes(
    groups=made,
    score_XE=score_XE,
    logprob_XE=np.log(np.maximum(score_XE, 1e-3)),
    tasks=tasks,
    clusters=clusters.tolist(),
    twin_E=twin_E,
    n_layers=4,
    n_heads=8,
  )


def _row(rows, **wanted):
  found = [
    row
    for row in rows
    if all(getattr(row, name) == value for name, value in wanted.items())
  ]
  assert len(found) == 1, (wanted, len(found))
  return found[0]


def test_rows_of_a_curve_against_brute_force():
  outcomes = _outcomes((0.2, 0.9), (0.9, 0.95))
  rows = effects.curve(outcomes)
  top = _row(rows, group='top', k=K, task='colour')
  x = outcomes.of('top', K)[0]
  used = ~outcomes.twin_E
  assert top.accuracy.value == pytest.approx(
    outcomes.score_XE[x, used].mean(), abs=1e-12
  )
  clusters = np.array(outcomes.clusters)[used]
  alone = accuracy.difference(
    outcomes.score_XE[x, used] == 1, np.ones(used.sum(), bool), clusters
  )
  assert (top.delta.value, top.delta.low, top.delta.high) == pytest.approx(
    (alone.value, alone.low, alone.high), abs=1e-12
  )
  assert heads.HeadSet.parse(top.heads) == outcomes.groups[x].heads
  draws = [
    _row(rows, group='random', k=K, task='colour', seed=str(s)).accuracy.value
    for s in range(N_DRAWS)
  ]
  mean = _row(rows, group='random', k=K, task='colour', seed='all')
  assert mean.accuracy.value == pytest.approx(np.mean(draws), abs=1e-12)
  assert mean.accuracy.low < min(draws) or mean.accuracy.low < np.mean(draws)
  assert mean.heads == ''


def test_intact_rows_come_first_and_change_nothing():
  rows = effects.curve(_outcomes((0.5, 0.5), (0.5, 0.5)))
  assert [r.k for r in rows[:2]] == [0, 0]
  assert {r.task for r in rows[:2]} == {'colour', 'colour_twin'}
  for row in rows[:2]:
    assert row.delta.value == 0 and row.delta.low < 0 < row.delta.high
    assert row.logprob_delta == 0


def test_kinds_are_pooled_only_over_several_tasks():
  outcomes = _outcomes((0.5, 0.5), (0.5, 0.5))
  assert set(outcomes.parts()) == {'colour', 'colour_twin'}
  outcomes.tasks[0] = 'shape'
  assert set(outcomes.parts()) == {
    'colour',
    'colour_twin',
    'shape',
    'retrieval',
  }
  np.testing.assert_array_equal(outcomes.parts()['retrieval'], ~outcomes.twin_E)


def test_the_endpoint_is_a_difference_of_differences():
  outcomes = _outcomes((0.2, 0.9), (0.9, 0.95))
  found = effects.endpoint(outcomes, K)
  x, others = outcomes.of('top', K)[0], outcomes.of('layer_matched', K)
  by_kind = [
    outcomes.score_XE[x, kind].mean()
    - outcomes.score_XE[others][:, kind].mean()
    for kind in (~outcomes.twin_E, outcomes.twin_E)
  ]
  assert found.retrieval.value == pytest.approx(by_kind[0], abs=1e-12)
  assert found.twin.value == pytest.approx(by_kind[1], abs=1e-12)
  assert found.value.value == pytest.approx(by_kind[0] - by_kind[1], abs=1e-12)
  assert found.value.high < -0.4  # far from chance
  assert found.n_draws == N_DRAWS


def test_a_total_effect_keeps_a_width():
  found = effects.endpoint(_outcomes((0, 1), (1, 1)), K)
  assert found.value.value == -1
  assert -1.1 < found.value.low < -1 < found.value.high < -0.8
  none = effects.endpoint(_outcomes((1, 1), (1, 1)), K)
  assert none.value.value == 0 and none.value.low < 0 < none.value.high


def test_without_twins_there_is_no_interaction():
  found = effects.endpoint(_outcomes((0.2, 0), (0.9, 0), twins=False), K)
  assert found.twin is None and found.value is None
  assert found.retrieval.value < -0.5


def test_no_endpoint_where_a_group_is_missing():
  outcomes = _outcomes((0.2, 0.9), (0.9, 0.95))
  assert effects.endpoint(outcomes, K + 1) is None


@pytest.mark.parametrize('n_clusters', [50, 200])
def test_endpoint_intervals_cover(n_clusters):
  """At least 93% where the truth is -.3, questions of a scene alike."""
  hits, n_runs = 0, 400
  for run in range(n_runs):
    rng = np.random.default_rng([run, n_clusters])
    made = [g for g in _groups() if g.name in ('top', 'layer_matched')]
    twin_E = np.tile([False, True], 2 * n_clusters)
    cluster_E = np.repeat(np.arange(n_clusters), 4)
    easy_E = rng.beta(2, 1, n_clusters)[cluster_E]
    score_XE = np.ones((len(made), len(twin_E)))
    for x, group in enumerate(made):
      if group.k:
        # Each draw has an effect of its own, mean 0.
        drop = 0.45 if group.name == 'top' else 0.0
        own = 0 if group.name == 'top' else rng.normal(0, 0.05)
        chance_E = np.where(
          twin_E, 0.9, np.clip(easy_E * (1 - drop) + own, 0, 1)
        )
        score_XE[x] = rng.random(len(twin_E)) < chance_E
    # beta(2, 1) has mean 2/3, so the top loses .3; clipping moves the control.
    truth = -0.3
    found = effects.endpoint(
      effects.Outcomes(
        made,
        score_XE,
        np.zeros_like(score_XE),
        np.where(twin_E, 'a_twin', 'a').tolist(),
        cluster_E.tolist(),
        twin_E,
        4,
        8,
      ),
      K,
    )
    hits += found.value.low <= truth <= found.value.high
  assert hits / n_runs >= 0.93


@pytest.mark.parametrize(
  'retrieval, twin, value, words',
  [
    (-0.5, 0.0, -0.5, 'and costs it where something must be looked up'),
    (-0.5, None, None, 'costs more than cutting others of their layers'),
    (0.0, 0.3, -0.3, 'is not one of look-ups alone'),
    (-0.5, -0.45, -0.05, 'not shown to spare the twins'),
    (-0.3, -0.6, 0.3, 'twins more than look-ups'),
    (0.3, 0.0, 0.3, 'less where something must be looked up than'),
    (0.3, None, None, 'matter less where something must be looked up'),
    (-0.05, 0.0, -0.05, 'no effect is shown'),
    (-0.05, None, None, 'no effect is shown'),
  ],
)
def test_verdicts(retrieval, twin, value, words):
  ends = [
    None if v is None else accuracy.Estimate(v, v - 0.1, v + 0.1, 80, 40, 1.0)
    for v in (retrieval, twin, value)
  ]
  assert words in effects.verdict(effects.Endpoint(K, *ends, 5))


def test_csv(tmp_path):
  outcomes = _outcomes((0.2, 0.9), (0.9, 0.95))
  text = effects.write_csv(
    effects.curve(outcomes), 32, 'zero', 'prefill+decode', 'all'
  )
  rows = list(csv.DictReader(io.StringIO(text)))
  assert tuple(rows[0]) == effects.COLUMNS
  assert rows[0]['group'] == 'intact' and rows[0]['fraction'] == '0'
  top = [r for r in rows if (r['group'], r['task']) == ('top', 'colour')]
  assert len(top) == 1 and float(top[0]['fraction']) == pytest.approx(3 / 32)
  assert len(rows) == 2 * (1 + 3 + 2 * (N_DRAWS + 1))


def test_bad_outcomes_are_refused():
  good = _outcomes((0.2, 0.9), (0.9, 0.95))
  fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
  for name, value, words in (
    ('score_XE', good.score_XE[:, 1:], 'score_XE'),
    ('groups', good.groups[1:] + good.groups[:1], 'intact'),
    ('score_XE', good.score_XE + 1, '0 to 1'),
  ):
    with pytest.raises(ValueError, match=words):
      effects.Outcomes(**fields | {name: value})
