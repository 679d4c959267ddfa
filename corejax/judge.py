"""Rankings of one pass held against RAM: do they agree, do they cut as deep?

    sides = rankings(scores, pairs)          RAM first, then every other one
    sets = plan({name: score_LN}, rule, ..)  what is to be cut, each set once
    judge(sides, sets, outcomes)             one Judged a ranking

A ranking that needs no boxes is worth having if its first heads are RAM's, or
if cutting them does what cutting RAM's does; rank agreement alone would not
tell, as most heads of a model do nothing either way. Each ranking has its own
layer-matched control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from corejax import compare as compare_lib
from corejax import competing
from corejax import describe
from corejax import effects as effects_lib
from corejax import errors
from corejax import groups as groups_lib
from corejax import heads as heads_lib
from corejax import proxies
from corejax import ram as ram_lib
from corejax import scores as scores_lib
from corejax import selection as selection_lib
from corejax import sides as sides_lib
from corejax.stats import multiple

RAM = 'ram'
RANDOM = 'random'
BOXES, ANSWERS, NOTHING = 'boxes', 'answers', 'nothing'
NEEDS = {
  RAM: BOXES,
  **dict.fromkeys(proxies.NAMES, NOTHING),
  'written': NOTHING,
  'contribution': BOXES,
  'gate_gradient': ANSWERS,
  'gate_gradient_abs': ANSWERS,
}


def rankings(
  scores: scores_lib.Scores, pairs: Mapping[str, np.ndarray]
) -> list[sides_lib.Side]:
  """Every ranking that the pass allows, RAM first.

  Args:
    scores: with profiles; their query set is that of all rankings.
    pairs: as proxies.measure takes them.

  Raises:
    UserError: no profiles were kept, or no example has rows of their query set.
  """
  if scores.profile_set is None:
    raise errors.UserError(
      'proxies are measured on profiles, and none were kept; rank with '
      '--profiles'
    )
  query = scores.profile_set
  ram = sides_lib.of_scores(RAM, scores, ram_lib.Options(query=query))
  values = {
    **proxies.measure(scores, pairs),
    **competing.per_example(scores, query),
  }
  return [
    ram,
    *(
      sides_lib.of_values(name, values[name], scores.clusters)
      for name in NEEDS
      if name in values and np.isfinite(values[name]).any()
    ),
  ]


@dataclasses.dataclass(frozen=True)
class Sets:
  """What is cut: every set of heads once, however many rankings choose it.

  Attributes:
    groups: X groups, the intact model first.
    rule: that cut the rankings.
    members: ranking (or RANDOM) -> indices of its groups: its own heads, then
      their controls; of RANDOM draws outside RAM's heads alone.
  """

  groups: tuple[groups_lib.Group, ...]
  rule: selection_lib.Selection
  members: Mapping[str, tuple[int, ...]]

  def of(
    self, outcomes: effects_lib.Outcomes, name: str
  ) -> effects_lib.Outcomes:
    """The outcomes of one ranking's sets, the intact model first."""
    at = [0, *self.members[name]]
    return dataclasses.replace(
      outcomes,
      groups=[self.groups[x] for x in at],
      score_XE=outcomes.score_XE[at],
      logprob_XE=outcomes.logprob_XE[at],
    )


def plan(
  scores: Mapping[str, np.ndarray],
  select: selection_lib.Selection | str,
  draws: Sequence[int],
) -> Sets:
  """The sets to cut.

  Args:
    scores: ranking -> float64 [L, N]; RAM is among them.
    select: how many heads of each.
    draws: seeds of the controls.

  Raises:
    UserError: a rule that is no top number or share; too few heads for the
      controls.
  """
  rule = compare_lib.check_rule(select)
  groups = [groups_lib.Group('top', 0, heads_lib.HeadSet())]
  place: dict[tuple, int] = {}
  members: dict[str, tuple[int, ...]] = {}

  def add(group: groups_lib.Group) -> int:
    key = group.name, group.heads, group.seed
    if key not in place:
      place[key] = len(groups)
      groups.append(group)
    return place[key]

  for name, score_LN in scores.items():
    usable_LN = np.isfinite(score_LN)
    heads = heads_lib.HeadSet.from_mask(rule.mask(score_LN))
    own = groups_lib.Group(
      groups_lib.GIVEN, len(heads), heads, n_top=len(heads)
    )
    controls = [
      groups_lib.control(effects_lib.CONTROL, heads, usable_LN, seed)
      for seed in draws
    ]
    members[name] = tuple(add(group) for group in (own, *controls))
    if name == RAM and draws:
      members[RANDOM] = tuple(
        add(groups_lib.control(RANDOM, heads, usable_LN, seed))
        for seed in draws
      )
  if RANDOM in members:
    members[RANDOM] = members.pop(RANDOM)  # the last one
  return Sets(tuple(groups), rule, members)


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
  """One ranking.

  Attributes:
    name, needs: the ranking, and what it has to be told: BOXES, ANSWERS or
      NOTHING.
    heads: that are cut.
    spearman, overlap: agreement with RAM; None of RAM itself, of RANDOM, and
      of a ranking that has no score for some head.
    retrieval, twin: accuracy with the heads cut, and its change; over all
      draws of RANDOM. None where nothing of the kind is asked.
    control: the same as `retrieval` with the layer-matched heads cut, over all
      draws; None without draws.
    endpoint: with these heads as the top; None without draws.
    share: change on look-ups over the change that cutting RAM's heads makes;
      nan where that is no loss.
  """

  name: str
  needs: str
  heads: heads_lib.HeadSet
  spearman: compare_lib.Agreement | None
  overlap: compare_lib.Agreement | None
  retrieval: effects_lib.Effect | None
  twin: effects_lib.Effect | None
  control: effects_lib.Effect | None
  endpoint: effects_lib.Endpoint | None
  share: float

  __repr__ = describe.fields


def judge(
  sides: Sequence[sides_lib.Side],
  sets: Sets,
  outcomes: effects_lib.Outcomes,
  *,
  bootstrap: int = 1000,
  permutations: int = 2000,
  seed: int = 0,
) -> list[Judged]:
  """Judges every ranking, and random heads.

  Args:
    sides: the rankings, RAM first.
    sets: as `plan` made them.
    outcomes: of all of its groups.
    bootstrap, permutations, seed: as compare.compare takes them.
  """
  ram, *others = sides
  agreed = {
    side.name: compare_lib.compare(
      [ram, side],
      select=sets.rule,
      bootstrap=bootstrap,
      permutations=permutations,
      seed=seed,
    )
    for side in others
    if np.isfinite(side.score_LN).all()
  }
  k = sets.rule.count(*ram.shape)
  assert k is not None, 'only fdr has no count'

  def agreements(measure, at):
    rows = {
      name: found.find(RAM, name, measure, at) for name, found in agreed.items()
    }
    # One family of tests: the rankings.
    q = multiple.benjamini_hochberg(np.array([r.p for r in rows.values()]))
    return {
      name: dataclasses.replace(row, q=float(value))
      for (name, row), value in zip(rows.items(), q)
    }

  spearman = agreements(compare_lib.SPEARMAN, 0)
  overlap = agreements(compare_lib.OVERLAP, k)
  found: list[Judged] = []
  for name in sets.members:
    part = sets.of(outcomes, name)
    group = RANDOM if name == RANDOM else groups_lib.GIVEN
    rows, own = effects_lib.curve(part), part.groups[1]
    retrieval = effects_lib.of_kind(part, rows, group, own.k, False)
    lost = -retrieval.delta.value if retrieval else math.nan
    first = found[0].retrieval if found else retrieval
    whole = -first.delta.value if first else math.nan
    found.append(
      Judged(
        name=name,
        needs=NEEDS.get(name, NOTHING),
        heads=heads_lib.HeadSet() if name == RANDOM else own.heads,
        spearman=spearman.get(name),
        overlap=overlap.get(name),
        retrieval=retrieval,
        twin=effects_lib.of_kind(part, rows, group, own.k, True),
        control=effects_lib.of_kind(
          part, rows, effects_lib.CONTROL, own.k, False
        ),
        endpoint=effects_lib.endpoint(part, own.k),
        share=lost / whole if whole > 0 else math.nan,
      )
    )
  return found
