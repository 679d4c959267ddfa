"""Outcomes of ablations that no model made, and their pages."""

import numpy as np

from corejax import effects
from corejax import groups
from corejax import heads as heads_lib
from corejax.experiments import ablate_report
from corejax.experiments import report
from helpers import report_cases

N_LAYERS, N_HEADS, N_DRAWS, K = 4, 8, 3, 3
SCORE_LN = np.arange(32, dtype=float).reshape(N_LAYERS, N_HEADS)
CUT = ablate_report.Cut('zero', 'prefill+decode', 'all', 'forced', 'a ranking')
GIVEN = heads_lib.HeadSet.parse('0-1,2-5')
FALLEN, EVEN = (0.2, 0.9), (0.9, 0.95)


def make(
  top_right=FALLEN,
  control_right=EVEN,
  tasks=('colour', 'shape'),
  twins=True,
  n_scenes=30,
  made=None,
  intact_right=1.0,
  shape=(N_LAYERS, N_HEADS),
) -> effects.Outcomes:
  """Answers drawn by the chance that they are right.

  Args:
    top_right, control_right: (look-ups, twins) with the top and others cut.
    tasks: of the look-ups.
    twins: does a twin follow every look-up?
    n_scenes: clusters, each with one question of every task.
    made: the groups.
    intact_right: of all questions.
    shape: (layers, heads).
  """
  rng = np.random.default_rng(0)
  if made is None:
    made = groups.plan(SCORE_LN, (0, 1, K), range(N_DRAWS))
  asked = [
    (task, twin) for task in tasks for twin in (False, True)[: 1 + twins]
  ]
  names = [task + '_twin' * twin for task, twin in asked] * n_scenes
  twin_E = np.array([twin for _, twin in asked] * n_scenes)
  score_XE = np.ones((len(made), len(names)))
  score_XE[0] = rng.random(len(names)) < intact_right
  for x, group in enumerate(made[1:], 1):
    right = top_right if group.name in ('top', 'given') else control_right
    chance_E = np.where(twin_E, right[1], right[0])
    score_XE[x] = rng.random(len(names)) < chance_E
  return effects.Outcomes(
    groups=made,
    score_XE=score_XE,
    logprob_XE=np.log(np.maximum(score_XE, 0.1)),
    tasks=names,
    clusters=np.repeat(np.arange(n_scenes), len(asked)).astype(str).tolist(),
    twin_E=twin_E,
    n_layers=shape[0],
    n_heads=shape[1],
  )


def rows_of(
  outcomes: effects.Outcomes, question: str = 'Which colour?'
) -> list[dict]:
  """As examples.jsonl has them; every question ends in its number."""
  return [
    {'id': f'fake/test/{e}', 'question': f'{question} {e}', 'answer': 'red'}
    for e in range(len(outcomes.tasks))
  ]


def page_of(outcomes: effects.Outcomes, k=K, rows=None, cut=CUT) -> str:
  """The report, its endpoint at k; questions hold markup if not given."""
  curve = effects.curve(outcomes)
  endpoint = effects.endpoint(outcomes, k)
  return ablate_report.page(
    outcomes,
    curve,
    endpoint,
    effects.summary(outcomes, curve, endpoint),
    report.About('<model>', 'fake/test', 'stand-in & more'),
    rows or rows_of(outcomes, report_cases.EVIL),
    cut,
  )
