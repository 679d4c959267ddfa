"""What cutting heads did, in words and tiles, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math

from corejax import effects as effects_lib
from corejax import groups as groups_lib
from corejax.experiments import report
from corejax.stats import accuracy

# In the order in which they are drawn and told.
DEFINITIONS = {
  groups_lib.GIVEN: 'the heads that were named on the command line',
  'top': 'the best heads of the ranking',
  'layer_matched': 'drawn from the heads outside the top, as many of each '
  'layer as the top has: the fair control, as a top set may matter for the '
  'layers it sits in and not for what it reads',
  'random': 'drawn from all heads outside the top',
  'median': 'around the middle rank',
  'bottom': 'the worst heads of the ranking',
}
_LITTLE = 0.2  # an intact accuracy from which little can fall
_KINDS = {
  effects_lib.RETRIEVAL: 'questions that need a look-up',
  effects_lib.TWIN: 'twin questions, which need none',
}
SHORT = {effects_lib.RETRIEVAL: 'look-ups', effects_lib.TWIN: 'twins'}


class Found:
  """Outcomes and curve, as the parts of the page ask for them.

  Attributes:
    outcomes, endpoint: as given.
    k: of the primary endpoint, else the smallest; 0 if nothing was cut.
    top: the group that is judged, 'top' or 'given'.
    groups: names of the groups there are, in the order of DEFINITIONS.
    kinds: 'retrieval' and 'twin', as far as they are asked, -> their part.
  """

  def __init__(
    self,
    outcomes: effects_lib.Outcomes,
    curve: Sequence[effects_lib.Effect],
    endpoint: effects_lib.Endpoint | None,
  ):
    self.outcomes, self.endpoint = outcomes, endpoint
    self._rows = {(r.group, r.k, r.task, r.seed): r for r in curve}
    ks = outcomes.ks
    self.k: int = endpoint.k if endpoint else ks[0] if ks else 0
    names = {g.name for g in outcomes.groups[1:]}
    self.groups = [name for name in DEFINITIONS if name in names]
    self.top = groups_lib.GIVEN if groups_lib.GIVEN in names else 'top'
    self.kinds = {}
    for name, twin in (
      (effects_lib.RETRIEVAL, False),
      (effects_lib.TWIN, True),
    ):
      tasks = {
        task
        for task, is_twin in zip(outcomes.tasks, outcomes.twin_E)
        if is_twin == twin
      }
      if tasks:
        self.kinds[name] = name if len(tasks) > 1 else tasks.pop()

  def row(self, group: str, k: int, part: str) -> effects_lib.Effect | None:
    """Over all draws; None where the group was not cut so."""
    if k == 0:
      return self._rows['top', 0, part, '']
    for seed in ('', effects_lib.ALL_DRAWS):
      if (group, k, part, seed) in self._rows:
        return self._rows[group, k, part, seed]
    drawn = self.draws(group, k, part)
    return drawn[0] if drawn else None

  def draws(self, group: str, k: int, part: str) -> list[effects_lib.Effect]:
    """One a draw; none where nothing is drawn."""
    seeds = [
      str(g.seed)
      for g in self.outcomes.groups
      if (g.name, g.k) == (group, k) and g.seed is not None
    ]
    return [self._rows[group, k, part, seed] for seed in seeds]

  @property
  def these(self) -> str:
    """'the top 3 heads'."""
    if self.k == 1:
      return f'the {self.top} head'
    if self.top == groups_lib.GIVEN:
      return f'the {self.k} given heads'
    return f'the top {self.k} heads'

  @property
  def of_all(self) -> str:
    """'the top 3 heads of 64 (4.7%)'."""
    total = self.outcomes.n_layers * self.outcomes.n_heads
    return f'{self.these} of {total} ({report.percent(self.k / total)})'


def signed(value: float, digits: int) -> str:
  """With its sign; no sign where it rounds to 0."""
  # Halves go away from 0, as the page's script rounds them.
  text = f'{abs(value) + 1e-9:.{digits}f}'
  if not float(text):
    return text
  return f'{"−" if value < 0 else "+"}{text}'


def points(value: float) -> str:
  """A difference of accuracies, in points."""
  return signed(100 * value, 1)


def _change(estimate: accuracy.Estimate) -> str:
  return f'{points(estimate.value)} points, {_interval(estimate, points)}'


def _interval(
  estimate: accuracy.Estimate, written: Callable[[float], str] = report.percent
) -> str:
  if not math.isfinite(estimate.low):
    return 'no interval'
  return f'95% interval {written(estimate.low)} to {written(estimate.high)}'


def lead(found: Found) -> list[str]:
  """What was cut and what fell, in plain words."""
  if not found.k:
    return ['No head was cut, so that there is nothing to tell.']
  lines = []
  for kind, part in found.kinds.items():
    top = found.row(found.top, found.k, part)
    intact = found.row(found.top, 0, part)
    if top is None or intact is None:
      continue
    lines.append(_effect(kind, found.of_all, intact, top))
    control = found.row(effects_lib.CONTROL, found.k, part)
    if control is not None:
      n = len(found.draws(effects_lib.CONTROL, found.k, part))
      lines[-1] += (
        f' With as many other heads of the same layers cut instead '
        f'({_drawn(n)}) it changes by {_change(control.delta)}.'
      )
    if intact.accuracy.value < _LITTLE:
      lines.append(
        f'The intact model is right on {report.percent(intact.accuracy.value)} '
        f'of the {SHORT[kind]}: there is little that could fall.'
      )
  verdict = (
    'the primary endpoint cannot be said, as the top group or the '
    'layer-matched one was not cut'
    if found.endpoint is None
    else effects_lib.verdict(found.endpoint)
  )
  return [*lines, f'So: {verdict}.']


def _drawn(n: int) -> str:
  return 'one draw' if n == 1 else f'mean of {n} draws'


def _effect(
  kind: str,
  heads: str,
  intact: effects_lib.Effect,
  after: effects_lib.Effect,
) -> str:
  """One change of an accuracy as a sentence that says what is known of it."""
  if not math.isfinite(after.delta.low):
    verb = 'is seen to change'
  elif after.delta.high < 0:
    verb = 'lowers'
  elif after.delta.low > 0:
    verb = 'raises'
  else:
    verb = 'is not shown to change'
  return (
    f'Cutting {heads} {verb} accuracy on {_KINDS[kind]}: from '
    f'{report.percent(intact.accuracy.value)} to '
    f'{report.percent(after.accuracy.value)}, {_change(after.delta)}.'
  )


def tiles(found: Found) -> list[tuple[str, str, str]]:
  """(number, what it is, what to compare it with)."""
  made = []
  endpoint = found.endpoint
  if endpoint is not None:
    value = endpoint.value or endpoint.retrieval
    what = (
      '(top − layer-matched) × (look-ups − twins)'
      if endpoint.value
      else 'top − layer-matched, there being no twins'
    )
    made.append(
      (
        f'{points(value.value)} points',
        f'primary endpoint: {what}',
        f'{_interval(value, points)}; {endpoint.k} heads, '
        f'{_drawn(endpoint.n_draws)}',
      )
    )
  for kind, part in found.kinds.items() if found.k else ():
    intact = found.row(found.top, 0, part)
    name = SHORT[kind]
    for group in (found.top, effects_lib.CONTROL):
      row = found.row(group, found.k, part)
      if row is None or intact is None:
        continue
      what = (
        f'of {name} right with {found.these} cut'
        if group == found.top
        else f'of {name} right with others of their layers cut'
      )
      made.append(
        (
          report.percent(row.accuracy.value),
          what,
          f'{_interval(row.accuracy)}; intact '
          f'{report.percent(intact.accuracy.value)}',
        )
      )
  return made
