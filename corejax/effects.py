"""What cutting heads did to the answers: curves and the primary endpoint.

    outcomes    score [X sets of heads, E examples], the intact model first
    curve       accuracy and its change, by group, k, draw and task
    endpoint    (top - layer-matched) x (retrieval - twin), at one k

A twin is a question on the same pictures that needs no look-up. The top heads
are CoRe heads in the causal sense if cutting them costs more than cutting as
many others of the same layers (first difference), and costs it where something
must be looked up (second difference). Both are paired: the same examples, the
same pictures. Intervals: corejax/stats/accuracy.py, by cluster; rows over all
draws of a random group also cover the choice of the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import io

import numpy as np

from corejax import describe
from corejax import groups as groups_lib
from corejax.stats import accuracy

RETRIEVAL, TWIN = 'retrieval', 'twin'  # all tasks of the kind together
ALL_DRAWS = 'all'
CONTROL = 'layer_matched'
COLUMNS = (
  'group',
  'k',
  'fraction',
  'seed',
  'mode',
  'phase',
  'rows',
  'task',
  'n',
  'accuracy',
  'ci_low',
  'ci_high',
  'delta',
  'delta_ci_low',
  'delta_ci_high',
  'logprob_delta',
  'heads',
)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
  """What every set of heads did to every example.

  Attributes:
    groups: X groups; the first has no head.
    score_XE: float, 0 to 1: how right the answer is.
    logprob_XE: float, log p of the forced answer in nats.
    tasks, clusters: E names.
    twin_E: bool, is the example one without a look-up?
    n_layers, n_heads: of the model.
  """

  groups: Sequence[groups_lib.Group]
  score_XE: np.ndarray
  logprob_XE: np.ndarray
  tasks: Sequence[str]
  clusters: Sequence[str]
  twin_E: np.ndarray
  n_layers: int
  n_heads: int

  __repr__ = describe.fields

  def __post_init__(self):
    shape = len(self.groups), len(self.tasks)
    for name in ('score_XE', 'logprob_XE'):
      if getattr(self, name).shape != shape:
        raise ValueError(
          f'Outcomes: {name} {getattr(self, name).shape}, expected {shape}'
        )
    if not self.groups or self.groups[0].k:
      raise ValueError('Outcomes: the first group must be the intact model')
    if not ((self.score_XE >= 0) & (self.score_XE <= 1)).all():
      raise ValueError('Outcomes: a score outside 0 to 1')

  def parts(self) -> dict[str, np.ndarray]:
    """Name -> bool [E]: every task, then the kinds of several tasks."""
    tasks_E = np.asarray(self.tasks)
    found = {task: tasks_E == task for task in dict.fromkeys(self.tasks)}
    for name, kind_E in ((RETRIEVAL, ~self.twin_E), (TWIN, self.twin_E)):
      if len(set(tasks_E[kind_E])) > 1:
        found[name] = kind_E
    return found

  def kind(self, twin: bool) -> np.ndarray:
    """bool [E]."""
    return self.twin_E if twin else ~self.twin_E

  def of(self, name: str, k: int) -> np.ndarray:
    """Indices of the sets of this group; several where it was drawn."""
    if k == 0:
      return np.array([0])
    return np.array(
      [x for x, g in enumerate(self.groups) if (g.name, g.k) == (name, k)], int
    )

  @property
  def ks(self) -> list[int]:
    """Numbers of heads cut, ascending, without 0."""
    return sorted({g.k for g in self.groups} - {0})


@dataclasses.dataclass(frozen=True)
class Effect:
  """One row of the curve.

  Attributes:
    group, k: which heads; seed: which draw, 'all' for the mean over draws, ''
      where nothing is drawn.
    task: a task, or 'retrieval' or 'twin' for all of a kind.
    accuracy: over the examples of the task.
    delta: accuracy minus that of the intact model, paired.
    logprob_delta: mean change of log p(forced answer), nats.
    heads: in the head grammar; '' for the mean over draws.
  """

  group: str
  k: int
  seed: str
  task: str
  accuracy: accuracy.Estimate
  delta: accuracy.Estimate
  logprob_delta: float
  heads: str


def curve(outcomes: Outcomes) -> list[Effect]:
  """All rows, by k, group, draw and task."""
  rows = []
  for k in (0, *outcomes.ks):
    names = ('top',) if k == 0 else (groups_lib.GIVEN, *groups_lib.NAMES)
    for name in names:
      which = outcomes.of(name, k)
      for task, used_E in outcomes.parts().items():
        for x in which:
          rows.append(_effect(outcomes, [x], task, used_E))
        if len(which) > 1:
          rows.append(_effect(outcomes, which, task, used_E))
  return rows


def _effect(outcomes, which, task, used_E) -> Effect:
  group = outcomes.groups[which[0]]
  clusters = np.asarray(outcomes.clusters)[used_E]
  score_SE = outcomes.score_XE[which][:, used_E]
  intact_E = outcomes.score_XE[0, used_E]
  logprob_SE = outcomes.logprob_XE[which][:, used_E]
  level = accuracy.wilson(score_SE.mean(0), clusters)
  delta = accuracy.difference(score_SE.mean(0), intact_E, clusters)
  seed = '' if group.seed is None else str(group.seed)
  if len(which) > 1:
    level = accuracy.over_draws(level, score_SE.mean(1))
    delta = accuracy.over_draws(delta, score_SE.mean(1) - intact_E.mean())
    seed = ALL_DRAWS
  return Effect(
    group=group.name,
    k=group.k,
    seed=seed,
    task=task,
    accuracy=_within(level, 0.0),
    delta=_within(delta, -1.0),
    logprob_delta=float((logprob_SE - outcomes.logprob_XE[0, used_E]).mean()),
    heads='' if seed == ALL_DRAWS else str(group.heads),
  )


def of_kind(
  outcomes: Outcomes, rows: Sequence[Effect], group: str, k: int, twin: bool
) -> Effect | None:
  """The row of a group for all tasks of a kind, over all draws; or None.

  Args:
    outcomes: of the sweep.
    rows: of `curve`.
    group, k: which heads; k = 0 is the intact model whatever the group.
    twin: of the twins, else of the look-ups.
  """
  tasks = {
    task
    for task, is_twin in zip(outcomes.tasks, outcomes.twin_E)
    if is_twin == twin
  }
  part = (TWIN if twin else RETRIEVAL) if len(tasks) > 1 else None
  part = part or next(iter(tasks), None)
  group = group if k else 'top'
  found = [r for r in rows if (r.group, r.k, r.task) == (group, k, part)]
  whole = [r for r in found if r.seed in ('', ALL_DRAWS)]
  return next(iter(whole or found), None)


def _within(estimate: accuracy.Estimate, least: float) -> accuracy.Estimate:
  return dataclasses.replace(
    estimate,
    low=float(np.clip(estimate.low, least, 1.0)),
    high=float(np.clip(estimate.high, least, 1.0)),
  )


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """The primary endpoint at one k.

  Attributes:
    k: heads cut.
    retrieval: accuracy with the top cut minus with the control cut, on
      questions that need a look-up.
    twin: the same on their twins; None without twins.
    value: retrieval minus twin; None without twins. Negative: the top heads
      serve looking up in particular.
    n_draws: of the control.
  """

  k: int
  retrieval: accuracy.Estimate
  twin: accuracy.Estimate | None
  value: accuracy.Estimate | None
  n_draws: int


def endpoint(
  outcomes: Outcomes, k: int, control: str = CONTROL
) -> Endpoint | None:
  """The primary endpoint; None where the top or the control is not there.

  Args:
    outcomes: of the sweep.
    k: heads cut.
    control: the group that the top is held against.
  """
  top = [*outcomes.of(groups_lib.GIVEN, k), *outcomes.of('top', k)]
  others = outcomes.of(control, k)
  if not len(top) or not len(others) or not (~outcomes.twin_E).any():
    return None

  def one(twin: bool):
    used_E = outcomes.kind(twin)
    clusters = np.asarray(outcomes.clusters)[used_E]
    top_E = outcomes.score_XE[top[0], used_E]
    control_SE = outcomes.score_XE[others][:, used_E]
    estimate = accuracy.difference(top_E, control_SE.mean(0), clusters)
    return (
      estimate,
      top_E - control_SE.mean(0),
      clusters,
      (top_E - control_SE).mean(1),
    )

  retrieval, retrieval_E, clusters_E, retrieval_S = one(False)
  widened = retrieval
  if len(others) > 1:
    widened = accuracy.over_draws(retrieval, retrieval_S)
  if not outcomes.twin_E.any():
    return Endpoint(k, _within(widened, -1.0), None, None, len(others))
  twin, twin_E, twin_clusters_E, twin_S = one(True)
  value = accuracy.interaction(
    retrieval,
    twin,
    accuracy.correlation(retrieval_E, clusters_E, twin_E, twin_clusters_E),
  )
  if len(others) > 1:
    twin = accuracy.over_draws(twin, twin_S)
    # The same draws on both sides: what they share goes out.
    value = accuracy.over_draws(value, retrieval_S - twin_S)
  return Endpoint(
    k, _within(widened, -1.0), _within(twin, -1.0), value, len(others)
  )


TITLES = {
  'top': 'top',
  groups_lib.GIVEN: 'given heads',
  'bottom': 'bottom',
  'median': 'median',
  'random': 'random',
  'layer_matched': 'layer-matched',
}


def _range(e: accuracy.Estimate) -> str:
  return f'{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]'


def summary(
  outcomes: Outcomes, rows: Sequence[Effect], primary: Endpoint | None
) -> list[str]:
  """What was found, in lines of plain text.

  Args:
    outcomes: of the sweep.
    rows: of `curve`.
    primary: the primary endpoint.
  """
  n_clusters = len(set(outcomes.clusters))
  lines = [
    f'measured on {len(outcomes.tasks)} examples in {n_clusters} clusters, '
    f'under {len(outcomes.groups)} sets of heads'
  ]
  if n_clusters < 50:
    lines.append(
      'intervals: fewer than 50 clusters; they may cover less than the 95% '
      'aimed at'
    )
  intact = [row for row in rows if row.k == 0]
  lines.append(
    'intact: '
    + '; '.join(f'{row.task} {_range(row.accuracy)}' for row in intact)
  )
  k = primary.k if primary else outcomes.ks[0] if outcomes.ks else 0
  share = 100 * k / (outcomes.n_layers * outcomes.n_heads)
  for task in outcomes.parts() if k else ():
    at_k = [
      row
      for row in rows
      if (row.k, row.task) == (k, task)
      and (row.seed in ('', ALL_DRAWS) or len(outcomes.of(row.group, k)) == 1)
    ]
    told = ', '.join(
      f'{TITLES[row.group]} {row.accuracy.value:.3f} (change '
      f'{_range(row.delta)})'
      for row in at_k
    )
    lines.append(f'{k} heads cut ({share:.1f}%), {task}: {told}')
  for x, group in enumerate(outcomes.groups):
    first = [g.note for g in outcomes.groups].index(group.note) == x
    if group.note and group.k == k and first:
      lines.append(f'note: {TITLES[group.name]}, {k} heads: {group.note}')
  return [*lines, *_told(primary)]


def _told(primary: Endpoint | None) -> list[str]:
  """The primary endpoint in words, whatever it is."""
  if primary is None:
    return [
      'endpoint: none, as the top group or the layer-matched one was not cut'
    ]
  k, draws = primary.k, f'{primary.n_draws} draws'
  lines = [
    f'top minus layer-matched at {k} heads ({draws}): '
    f'{_range(primary.retrieval)} where something must be looked up'
    + (f', {_range(primary.twin)} on twins' if primary.twin else '')
  ]
  value = primary.value or primary.retrieval
  name = '(top - layer-matched) x (retrieval - twin)'
  if primary.value is None:
    name = 'top - layer-matched, there being no twins'
  lines.append(f'primary endpoint, {name}: {_range(value)}')
  lines.append(f'so: {verdict(primary)}')
  return lines


def verdict(primary: Endpoint) -> str:
  """What the primary endpoint shows, whatever it is."""
  value = primary.value or primary.retrieval
  costs = primary.retrieval.high < 0
  if np.isnan(value.low):
    return 'no interval: more clusters and at least 2 draws are needed'
  if value.high < 0 and not costs:
    return (
      'the difference between look-ups and twins is not one of look-ups alone: '
      'for these the interval holds 0'
    )
  if value.high < 0:
    return (
      'cutting the top heads costs more than cutting others of their layers'
      + (
        ', and costs it where something must be looked up'
        if primary.value
        else ''
      )
    )
  if costs and value.low > 0:
    return (
      'cutting the top heads costs more than cutting others of their layers, '
      'but twins more than look-ups: what they serve is not looking up alone'
    )
  if costs:
    return (
      'cutting the top heads costs look-ups more than cutting others of their '
      'layers, but it is not shown to spare the twins: the interval of the '
      'difference holds 0'
    )
  if value.low > 0:
    return (
      'held against others of their layers, the top heads matter less where '
      'something must be looked up'
      + (' than where nothing must' if primary.value else '')
    )
  return (
    'no effect is shown: the interval holds 0, so these data do not tell '
    'the top heads from others of their layers'
  )


def write_csv(
  rows: Sequence[Effect],
  n_heads_in_all: int,
  mode: str,
  phase: str,
  which_rows: str,
) -> str:
  """curve.csv.

  Args:
    rows: of `curve`.
    n_heads_in_all: L * N.
    mode, phase, which_rows: of the ablation.
  """
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(COLUMNS)
  for row in rows:
    writer.writerow(
      [
        'intact' if row.k == 0 else row.group,
        row.k,
        f'{row.k / n_heads_in_all:.6g}',
        row.seed,
        mode,
        phase,
        which_rows,
        row.task,
        row.accuracy.n,
        *(
          f'{x:.6g}'
          for e in (row.accuracy, row.delta)
          for x in (e.value, e.low, e.high)
        ),
        f'{row.logprob_delta:.6g}',
        row.heads,
      ]
    )
  return buffer.getvalue()
