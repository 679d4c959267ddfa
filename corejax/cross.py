"""Heads of several data sets, cut on each of them: a table of both.

    heads cut \\ data    a       b
    all of a            .41     .77     the first heads by a's ranking
    own of a            .52     .99     those that no other data set chose
    all of b            .80     .35
    own of b            .98     .48
    shared              .90     .91     those that every data set chose

A set counts for what it costs beyond as many random heads of the same layers,
where something must be looked up and not where nothing must: ablate's endpoint,
cell by cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from corejax import effects as effects_lib
from corejax import groups as groups_lib
from corejax import heads as heads_lib

ALL, OWN, SHARED = 'all', 'own', 'shared'


@dataclasses.dataclass(frozen=True)
class Cut:
  """One set of heads.

  Attributes:
    kind: ALL, OWN or SHARED.
    of: the data set; '' of SHARED.
    heads: at least one.
  """

  kind: str
  of: str
  heads: heads_lib.HeadSet

  @property
  def name(self) -> str:
    return f'{self.kind} of {self.of}' if self.of else self.kind


def cuts(tops: Mapping[str, heads_lib.HeadSet]) -> list[Cut]:
  """The sets that are not empty, SHARED last.

  Args:
    tops: data set -> its first heads; two or more.
  """
  found = []
  for name, heads in tops.items():
    others = heads_lib.HeadSet()
    for other, theirs in tops.items():
      if other != name:
        others |= theirs
    found += [Cut(ALL, name, heads), Cut(OWN, name, heads - others)]
  first, *rest = tops.values()
  for heads in rest:
    first &= heads
  return [cut for cut in (*found, Cut(SHARED, '', first)) if len(cut.heads)]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is cut, every set of heads once.

  Attributes:
    groups: the intact model first.
    members: name of a Cut -> indices of its heads and of their controls.
  """

  groups: tuple[groups_lib.Group, ...]
  members: Mapping[str, tuple[int, ...]]


def plan(
  chosen: Sequence[Cut], shape: tuple[int, int], draws: Sequence[int]
) -> Plan:
  """The sets and their layer-matched controls.

  Args:
    chosen: of `cuts`.
    shape: (L, N).
    draws: seeds of the controls.

  Raises:
    UserError: too few other heads for the controls.
  """
  groups = [groups_lib.Group('top', 0, heads_lib.HeadSet())]
  place: dict[tuple, int] = {}
  members = {}
  usable_LN = np.ones(shape, bool)
  for cut in chosen:
    k = len(cut.heads)
    wanted = [groups_lib.Group(groups_lib.GIVEN, k, cut.heads, n_top=k)]
    wanted += [
      groups_lib.control(effects_lib.CONTROL, cut.heads, usable_LN, seed)
      for seed in draws
    ]
    for group in wanted:
      # Controls of other sets may hold the same heads; they stay apart, so that
      # each set keeps draws of its own.
      key = cut.heads, group.name, group.seed
      if key not in place:
        place[key] = len(groups)
        groups.append(group)
    members[cut.name] = tuple(
      place[cut.heads, group.name, group.seed] for group in wanted
    )
  return Plan(tuple(groups), members)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One set of heads on one data set.

  Attributes:
    heads_of, kind, k, heads: of the Cut.
    data: that is answered.
    n: look-ups.
    intact: accuracy on them with all heads.
    accuracy, low, high: with the set cut.
    control: with as many random heads of the same layers cut; nan without
      draws.
    twin_intact, twin: the same of twins; nan without any.
    cost, cost_low, cost_high: on look-ups, the set minus its control; nan
      without draws.
    endpoint, endpoint_low, endpoint_high: look-ups minus twins of that; the
      cost itself where there are no twins.
  """

  heads_of: str
  kind: str
  k: int
  heads: str
  data: str
  n: int
  intact: float
  accuracy: float
  low: float
  high: float
  control: float
  twin_intact: float
  twin: float
  cost: float
  cost_low: float
  cost_high: float
  endpoint: float
  endpoint_low: float
  endpoint_high: float

  @property
  def name(self) -> str:
    return f'{self.kind} of {self.heads_of}' if self.heads_of else self.kind

  @property
  def shown(self) -> bool:
    """Does cutting the set cost more, and look-ups in particular?"""
    return self.cost_high < 0 and self.endpoint_high < 0


def cells(
  chosen: Sequence[Cut],
  planned: Plan,
  outcomes: effects_lib.Outcomes,
  data: str,
) -> list[Cell]:
  """Every set on one data set.

  Args:
    chosen, planned: as `cuts` and `plan` gave them.
    outcomes: of planned.groups on the data.
    data: name of the data set.
  """
  found = []
  for cut in chosen:
    at = [0, *planned.members[cut.name]]
    part = dataclasses.replace(
      outcomes,
      groups=[planned.groups[x] for x in at],
      score_XE=outcomes.score_XE[at],
      logprob_XE=outcomes.logprob_XE[at],
    )
    rows, k = effects_lib.curve(part), len(cut.heads)

    def row(name, k, twin, part=part, rows=rows):
      return effects_lib.of_kind(part, rows, name, k, twin)

    retrieval = row(groups_lib.GIVEN, k, False)
    twin, twin_intact = row(groups_lib.GIVEN, k, True), row('top', 0, True)
    intact, control = row('top', 0, False), row(effects_lib.CONTROL, k, False)
    if retrieval is None or intact is None:
      raise ValueError(f'cells: no look-up among the outcomes of {data}')
    endpoint = effects_lib.endpoint(part, k)
    cost = endpoint and endpoint.retrieval
    value = endpoint and (endpoint.value or endpoint.retrieval)
    found.append(
      Cell(
        heads_of=cut.of,
        kind=cut.kind,
        k=k,
        heads=str(cut.heads),
        data=data,
        n=retrieval.accuracy.n,
        intact=intact.accuracy.value,
        accuracy=retrieval.accuracy.value,
        low=retrieval.accuracy.low,
        high=retrieval.accuracy.high,
        control=control.accuracy.value if control else math.nan,
        twin_intact=twin_intact.accuracy.value if twin_intact else math.nan,
        twin=twin.accuracy.value if twin else math.nan,
        cost=cost.value if cost else math.nan,
        cost_low=cost.low if cost else math.nan,
        cost_high=cost.high if cost else math.nan,
        endpoint=value.value if value else math.nan,
        endpoint_low=value.low if value else math.nan,
        endpoint_high=value.high if value else math.nan,
      )
    )
  return found
