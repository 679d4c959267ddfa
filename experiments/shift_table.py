"""What became of the heads at every level of `shift`: numbers and words.

side        a level's ranking, as it is compared
points      one Point a level: accuracy, RAM, agreement, endpoint
changes     each of them against the usual scenes
summary     in plain words, also where nothing shifts
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import io
import math
from typing import Any

import numpy as np

from corejax import compare as compare_lib
from corejax import describe
from corejax import effects as effects_lib
from corejax import errors
from corejax import groups as groups_lib
from corejax import heads as heads_lib
from corejax import ram as ram_lib
from corejax import scores as scores_lib
from corejax import sides as sides_lib
from corejax.experiments import shift_levels
from corejax.experiments import shift_run
from corejax.stats import accuracy
from corejax.stats import bootstrap as bootstrap_lib
from corejax.stats import estimand as estimand_lib
from corejax.stats import multiple

Estimate = accuracy.Estimate


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
  """One level.

  Attributes:
    level: which.
    lookups, twins: accuracy of the intact model; twins None without any.
    chance: |Ev| / |Vis|, what even looking would give as RAM.
    reference_ram, own_ram: mean RAM of the heads of a set, on examples that
      neither set was chosen on.
    overlap, spearman: of the level's ranking with the usual one, on the split
      that ranks; None of the usual scenes themselves.
    reference, own: what cutting the set does, against layer-matched heads;
      None without draws. Of the usual scenes both are the reference's.
    reference_cut, own_cut: accuracy on look-ups with the set cut.
    control_cut: with the reference's layer-matched heads cut; None without
      draws.
    own_heads: the level's own set.
  """

  level: shift_levels.Level
  lookups: Estimate
  twins: Estimate | None
  chance: float
  reference_ram: Estimate
  own_ram: Estimate
  overlap: compare_lib.Agreement | None
  spearman: compare_lib.Agreement | None
  reference: effects_lib.Endpoint | None
  own: effects_lib.Endpoint | None
  reference_cut: Estimate
  own_cut: Estimate
  control_cut: Estimate | None
  own_heads: heads_lib.HeadSet


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """All levels.

  Attributes:
    usual: the usual scenes.
    points: the levels, by axis.
    again_overlap, again_spearman: of the usual scenes drawn anew: what no
      shift at all looks like.
    heads: the reference set.
    changes: (level name, measure) -> change against the usual scenes.
  """

  usual: Point
  points: Sequence[Point]
  again_overlap: compare_lib.Agreement
  again_spearman: compare_lib.Agreement
  heads: heads_lib.HeadSet
  changes: dict[tuple[str, str], Estimate]

  @property
  def axes(self) -> list[str]:
    return list(dict.fromkeys(point.level.axis for point in self.points))

  def of(self, axis: str) -> list[Point]:
    return [point for point in self.points if point.level.axis == axis]


def side(
  name: str, scores: scores_lib.Scores, query: str, apart: str = ''
) -> sides_lib.Side:
  """A ranking by RAM.

  Args:
    name: of the ranking.
    scores: what it is of.
    query: rows whose reading counts.
    apart: tells its clusters from those of another level that has the same
      names for other scenes; '' for the same scenes.
  """
  return sides_lib.of_scores(
    name,
    scores,
    ram_lib.Options(query=query),
    [f'{apart}{cluster}' for cluster in scores.clusters],
  )


def build(
  measured: Sequence[shift_run.Measured],
  *,
  query: str,
  select: str,
  bootstrap: int,
  permutations: int,
  seed: int,
) -> Table:
  """The table of everything that was measured.

  Args:
    measured: the usual scenes, the same drawn anew, then the levels.
    query: rows by which heads are ranked.
    select: which heads are the set.
    bootstrap, permutations, seed: as compare.compare takes them.
  """
  usual, *others = measured
  reference = side(shift_levels.USUAL, usual.ranked, query)
  rule = compare_lib.check_rule(select)
  heads = heads_lib.HeadSet.from_mask(rule.mask(reference.score_LN))
  agreed = []
  for each in others:
    same = each.level.axis in shift_levels.PICTURES
    other = side(
      each.level.name,
      each.ranked,
      query,
      '' if same else f'{each.level.name} ',
    )
    agreed.append(
      compare_lib.compare(
        [reference, other],
        select=select,
        bootstrap=bootstrap,
        permutations=permutations,
        seed=seed,
      )
    )
  k = rule.count(*reference.shape)
  assert k is not None, 'only fdr has no count'
  overlaps = _of(agreed, compare_lib.OVERLAP, k)
  spearmans = _of(agreed, compare_lib.SPEARMAN, 0)

  def point(each, overlap=None, spearman=None):
    return _point(
      each, overlap, spearman, heads, query, select, bootstrap, seed
    )

  first = point(usual)
  points = [
    point(each, overlap, spearman)
    for each, overlap, spearman in zip(others, overlaps, spearmans)
    if each.outcomes is not None
  ]
  changes = {}
  for each, found in zip(
    [each for each in others if each.outcomes is not None], points
  ):
    for measure, change in _changes(
      usual, each, first, found, heads, query, bootstrap, seed
    ).items():
      changes[found.level.name, measure] = change
  (again,) = [i for i, each in enumerate(others) if each.outcomes is None]
  return Table(first, points, overlaps[again], spearmans[again], heads, changes)


def _of(
  compared: Sequence[compare_lib.Comparison], measure: str, k: int
) -> list[compare_lib.Agreement]:
  """One measure of each, q over all of them."""
  rows = [
    next(r for r in each.agreements if (r.measure, r.k) == (measure, k))
    for each in compared
  ]
  q_X = multiple.benjamini_hochberg(np.array([row.p for row in rows]))
  return [dataclasses.replace(r, q=float(q)) for r, q in zip(rows, q_X)]


def _point(
  each, overlap, spearman, heads, query, select, bootstrap, seed
) -> Point:
  own_side = side('own', each.ranked, query)
  rule = compare_lib.check_rule(select)
  own = heads_lib.HeadSet.from_mask(rule.mask(own_side.score_LN))
  parts = {
    name: each.sets.of(each.outcomes, name) for name in each.sets.members
  }
  reference = parts[shift_run.REFERENCE]
  mine = parts.get(shift_run.OWN, reference)
  ram = ram_lib.measure(each.judged, ram_lib.Options(query=query))
  k = len(heads)
  control = _cut(reference, effects_lib.CONTROL, k)
  return Point(
    level=each.level,
    lookups=_needed(_intact(each.outcomes, False)),
    twins=_intact(each.outcomes, True),
    chance=ram.chance,
    reference_ram=_set_ram(ram, heads, bootstrap, seed),
    own_ram=_set_ram(ram, own, bootstrap, seed),
    overlap=overlap,
    spearman=spearman,
    reference=effects_lib.endpoint(reference, k),
    own=effects_lib.endpoint(mine, k),
    reference_cut=_needed(_cut(reference, groups_lib.GIVEN, k)),
    own_cut=_needed(_cut(mine, groups_lib.GIVEN, k)),
    control_cut=control,
    own_heads=own,
  )


def _needed(estimate: Estimate | None) -> Estimate:
  if estimate is None:
    raise ValueError('shift: no look-up among the outcomes')
  return estimate


def _intact(outcomes: effects_lib.Outcomes, twin: bool) -> Estimate | None:
  used_E = outcomes.kind(twin)
  if not used_E.any():
    return None
  clusters = np.asarray(outcomes.clusters)[used_E]
  return accuracy.wilson(outcomes.score_XE[0, used_E], clusters)


def _cut(outcomes: effects_lib.Outcomes, name: str, k: int) -> Estimate | None:
  """Accuracy on look-ups with a group cut, over all of its draws."""
  row = effects_lib.of_kind(
    outcomes, effects_lib.curve(outcomes), name, k, twin=False
  )
  return row.accuracy if row else None


def _set_ram(
  ram: ram_lib.Ram,
  heads: heads_lib.HeadSet,
  bootstrap: int,
  seed: int,
  minus: ram_lib.Ram | None = None,
) -> Estimate:
  """Mean RAM of some heads, with a studentised interval over clusters.

  With `minus`, of the same examples, the difference to it, paired.
  """
  mask_X = heads.mask(*ram.ram_LN.shape).ravel()

  def mean_E1(ram):
    return ram.mass.plus.num_UX[:, mask_X].mean(1, keepdims=True)

  value_E1, bounds = mean_E1(ram), (0.0, 1.0)
  if minus is not None:
    value_E1, bounds = value_E1 - mean_E1(minus), (-1.0, 1.0)
  score = estimand_lib.Estimand(
    estimand_lib.Ratio(value_E1), bounds=bounds
  ).group(ram.cluster_E)
  n_clusters = len(ram.cluster_names)
  low = high = math.nan
  if bootstrap:
    drawn = bootstrap_lib.studentised(
      score, bootstrap_lib.resample(n_clusters, bootstrap, seed)
    )
    low, high = float(drawn.low[0]), float(drawn.high[0])
  value = float(score.value()[0])
  return Estimate(value, low, high, len(value_E1), n_clusters, 1.0)


LOOKUPS, TWINS, RAM, EFFECT = 'lookups', 'twins', 'ram', 'effect'


def effect(endpoint: effects_lib.Endpoint | None) -> Estimate | None:
  """The endpoint's number: against twins where there are any."""
  return endpoint and (endpoint.value or endpoint.retrieval)


def _changes(
  usual, each, first: Point, found: Point, heads, query, bootstrap, seed
) -> dict[str, Estimate]:
  """Level minus usual scenes; paired where the examples are the same."""
  changes = {}
  before, after = usual.outcomes, each.outcomes
  assert before is not None and after is not None, 'not drawn anew'
  paired = (
    each.level.axis in shift_levels.PICTURES
    and before.clusters == after.clusters
    and before.tasks == after.tasks
  )
  for name, twin in ((LOOKUPS, False), (TWINS, True)):
    old, new = getattr(first, name), getattr(found, name)
    if old is None or new is None:
      continue
    if paired:
      used_E = before.kind(twin)
      changes[name] = accuracy.difference(
        after.score_XE[0, used_E],
        before.score_XE[0, used_E],
        np.asarray(before.clusters)[used_E],
      )
    else:
      changes[name] = accuracy.interaction(new, old)
  if paired and usual.judged.ids == each.judged.ids:
    old, new = (
      ram_lib.measure(side.judged, ram_lib.Options(query=query))
      for side in (usual, each)
    )
    changes[RAM] = _set_ram(new, heads, bootstrap, seed, minus=old)
  else:
    changes[RAM] = accuracy.interaction(
      found.reference_ram, first.reference_ram
    )
  old, new = effect(first.reference), effect(found.reference)
  if old is not None and new is not None:
    changes[EFFECT] = accuracy.interaction(new, old)
  return changes


COLUMNS = (
  'axis value usual chance lookups lookups_low lookups_high twins twins_low '
  'twins_high reference_ram reference_ram_low reference_ram_high own_ram '
  'own_ram_low own_ram_high overlap overlap_low overlap_high overlap_chance '
  'overlap_q spearman spearman_low spearman_high spearman_q '
  'reference_effect reference_effect_low reference_effect_high own_effect '
  'own_effect_low own_effect_high reference_cut own_cut layer_matched_cut '
  'k n_lookups n_clusters reference_heads own_heads'
).split()


def to_csv(table: Table) -> str:
  """shift.csv: a row a level, the usual scenes first, without an axis."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(COLUMNS)
  for point in (table.usual, *table.points):
    level, is_usual = point.level, point is table.usual
    ends = [
      point.lookups,
      point.twins,
      point.reference_ram,
      point.own_ram,
    ]
    agreements = []
    for row in (point.overlap, point.spearman):
      if row is None:  # with itself
        agreements.append([1.0, 1.0, 1.0, math.nan, math.nan])
      else:
        agreements.append([row.value, row.low, row.high, row.chance, row.q])
    effects = [effect(point.reference), effect(point.own)]
    cuts = [point.reference_cut, point.own_cut, point.control_cut]
    writer.writerow(
      [
        level.axis,
        '' if is_usual else level.text,
        int(is_usual),
        _digits(point.chance),
        *(x for e in ends for x in _ends(e)),
        *map(_digits, agreements[0]),
        *map(_digits, (*agreements[1][:3], agreements[1][4])),
        *(x for e in effects for x in _ends(e)),
        *(_digits(e.value) if e else '' for e in cuts),
        len(table.heads),
        point.lookups.n,
        point.lookups.n_clusters,
        table.heads,
        point.own_heads,
      ]
    )
  return buffer.getvalue()


def _digits(value: float) -> str:
  return f'{value:.6g}' if math.isfinite(value) else ''


def _ends(e: Estimate | None) -> list[str]:
  if e is None:
    return ['', '', '']
  return [_digits(e.value), _digits(e.low), _digits(e.high)]


def told(e: Any, digits: int = 3) -> str:
  """value [low, high], of an estimate or an agreement."""
  if e is None:
    return '-'
  if not math.isfinite(e.low):
    return f'{e.value:.{digits}f}'
  return f'{e.value:.{digits}f} [{e.low:.{digits}f}, {e.high:.{digits}f}]'


_WHAT = {
  LOOKUPS: 'look-ups',
  TWINS: 'twins',
  RAM: 'RAM of the reference heads',
  EFFECT: 'what cutting them costs',
}


def verdict(table: Table, axis: str) -> str:
  """What an axis does, in one sentence, whatever it is."""
  points = table.of(axis)
  parts: list[str] = []
  none: list[str] = []
  unsure: list[str] = []
  for measure, what in _WHAT.items():
    changes = [
      (p.level.text, table.changes[p.level.name, measure])
      for p in points
      if (p.level.name, measure) in table.changes
    ]
    sized = [(f'{text} ({c.value:+.3f})', c) for text, c in changes]
    down = [text for text, c in sized if c.high < 0]
    up = [text for text, c in sized if c.low > 0]
    if measure == EFFECT:  # more negative is a greater cost
      down, up = up, down
    plural = '' if measure in (LOOKUPS, TWINS) else 's'
    said = [
      f'{word}{plural} at {", ".join(texts)}'
      for word, texts in (('fall', down), ('rise', up))
      if texts
    ]
    if said:
      parts.append(f'{what} {" and ".join(said)}')
    elif changes and all(math.isnan(c.low) for _, c in changes):
      unsure.append(what)
    elif changes:
      none.append(what)
  if none:
    parts.append(f'no change is shown in {describe.listed(none)}')
  if unsure:
    parts.append(f'no interval of {describe.listed(unsure)}')
  lost = [
    p.level.text for p in points if p.overlap and not p.overlap.beyond_chance
  ]
  if all(p.own_heads == table.heads for p in points):
    parts.append('the first heads are the same at every level')
  elif not lost:
    parts.append('the first heads are shared beyond chance at every level')
  else:
    parts.append(
      'no overlap of the first heads beyond chance is shown at '
      + describe.listed(lost)
    )
  return f'{axis}: ' + '; '.join(parts)


def summary(table: Table) -> list[str]:
  """What was found, in lines of plain text."""
  usual, k = table.usual, len(table.heads)
  lines = [
    f'usual scenes: look-ups {told(usual.lookups)} of {usual.lookups.n}, twins '
    f'{told(usual.twins)}',
    f'reference heads ({k}): {table.heads}; RAM {told(usual.reference_ram)} '
    f'(even looking: {usual.chance:.3f}); cut: look-ups '
    f'{told(usual.reference_cut)}, layer-matched {told(usual.control_cut)}, '
    f'endpoint {told(effect(usual.reference))}',
    f'usual scenes drawn anew, for comparison: top-{k} overlap '
    f'{told(table.again_overlap, 2)} (chance '
    f'{table.again_overlap.chance:.2f}), '
    f'Spearman {told(table.again_spearman, 2)}',
  ]
  if usual.lookups.n_clusters < bootstrap_lib.FEW_CLUSTERS:
    lines.append(
      f'note     fewer than {bootstrap_lib.FEW_CLUSTERS} clusters; intervals '
      'may cover less than the 95% aimed at'
    )
  for axis in table.axes:
    lines.append(f'{axis} ({shift_levels.TITLES[axis]}):')
    for point in table.of(axis):
      lines.append(
        f'  {point.level.text:>7}  look-ups {told(point.lookups)}, twins '
        f'{told(point.twins)}; RAM {told(point.reference_ram)} (even '
        f'{point.chance:.3f}), own {point.own_ram.value:.3f}; overlap '
        f'{told(point.overlap, 2)}, Spearman {told(point.spearman, 2)}; '
        f'endpoint {told(effect(point.reference))}, own '
        f'{told(effect(point.own))}'
      )
  lines += [f'so: {verdict(table, axis)}' for axis in table.axes]
  return [errors.one_line(line) for line in lines]
