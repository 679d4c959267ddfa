"""Rankings side by side: do they agree, and what does each look like?

    a, b = sides.of_scores('a', scores_a), sides.of_scores('b', scores_b)
    found = compare.compare([a, b])
    found.agreements        every pair of rankings of one shape
    found.structures        Gini, ... and RAM by relative depth, for any shapes
    found.shared('ab')      HeadSet, heads that both select

Rankings of one shape are compared head by head. That says something where a
head of one is a head of the other: on other data or rows, or in models that
were tuned from one. Heads of models that were trained apart have no
counterpart, and agree by chance alone but for their layers.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools
import math

import numpy as np

from corejax import errors
from corejax import heads as heads_lib
from corejax import selection as selection_lib
from corejax import sides as sides_lib
from corejax import structure
from corejax.stats import agreement
from corejax.stats import multiple
from corejax.stats import reliability

SECOND_TOP = 30  # SCIENCE: the paper's other cut
Q = 0.01
SPEARMAN, OVERLAP, RBO = 'spearman', 'overlap', 'rbo'


@dataclasses.dataclass(frozen=True)
class Agreement:
  """One measure of one pair.

  Attributes:
    a, b: names of the rankings.
    measure: 'spearman', 'overlap' of the first k heads, or 'rbo'.
    k: of overlap; 0 for the others.
    value: the agreement.
    low, high: 95% interval, see stats.agreement; nan where nothing can be
      drawn again.
    chance: what random orders reach on average.
    p: how likely they reach the value.
    q: the same as a false discovery rate over the pairs of this measure and k.
    ceiling: of spearman, what noise lets two such rankings show; nan for the
      others.
    n_a, n_b: examples.
    clusters_a, clusters_b, clusters_shared: clusters, and how many of them are
      the same ones.
  """

  a: str
  b: str
  measure: str
  k: int
  value: float
  low: float
  high: float
  chance: float
  p: float
  q: float
  ceiling: float
  n_a: int
  n_b: int
  clusters_a: int
  clusters_b: int
  clusters_shared: int

  @property
  def beyond_chance(self) -> bool:
    """q < Q; and where there is an interval, chance lies below it."""
    return self.q < Q and not self.low <= self.chance


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """Everything that `compare` finds.

  Attributes:
    sides: the rankings.
    agreements: of pairs of one shape.
    structures: of every ranking that has a mass.
    selected: name -> heads that the rule takes.
    reliability: name -> Spearman-Brown reliability, nan with one cluster.
  """

  sides: tuple[sides_lib.Side, ...]
  agreements: tuple[Agreement, ...]
  structures: tuple[structure.Structure, ...]
  selected: dict[str, heads_lib.HeadSet]
  reliability: dict[str, float]

  @property
  def shapes(self) -> dict[tuple[int, int], tuple[str, ...]]:
    """(L, N) -> names of the rankings of this shape."""
    result: dict[tuple[int, int], tuple[str, ...]] = {}
    for side in self.sides:
      result[side.shape] = (*result.get(side.shape, ()), side.name)
    return result

  def find(self, a: str, b: str, measure: str, k: int = 0) -> Agreement:
    """One of the agreements, of either order of the names.

    Raises:
      KeyError: there is none.
    """
    for row in self.agreements:
      if {row.a, row.b} == {a, b} and (row.measure, row.k) == (measure, k):
        return row
    raise KeyError(f'{measure} {k} of {a} and {b}')

  def selected_shape(self, names: Sequence[str]) -> tuple[int, int]:
    """(L, N) of rankings of one shape.

    Raises:
      ValueError: they have several.
    """
    ((shape, _),) = [
      (shape, known)
      for shape, known in self.shapes.items()
      if set(names) & set(known)
    ]
    return shape

  def shared(self, names: Sequence[str]) -> heads_lib.HeadSet:
    """Heads that all of these select."""
    return heads_lib.HeadSet(
      frozenset.intersection(*(self.selected[name].heads for name in names))
    )

  def united(self, names: Sequence[str]) -> heads_lib.HeadSet:
    """Heads that any of these selects."""
    return heads_lib.HeadSet(
      frozenset().union(*(self.selected[name].heads for name in names))
    )

  def own(self, name: str, names: Sequence[str]) -> heads_lib.HeadSet:
    """Heads that this one selects and no other of `names`."""
    others = [other for other in names if other != name]
    return self.selected[name] - self.united(others)


def check_rule(
  select: selection_lib.Selection | str,
) -> selection_lib.Selection:
  """The rule that cuts every ranking; the same number of heads each.

  Raises:
    UserError: a rule that is no top number or share.
  """
  if isinstance(select, str):
    select = selection_lib.Selection.parse(select)
  if select.kind not in ('top_fraction', 'top_k'):
    raise errors.UserError(
      f'selection {select}: rankings are compared by their first heads; write '
      'top5% or top30'
    )
  return select


def compare(
  sides: Sequence[sides_lib.Side],
  *,
  select: selection_lib.Selection | str = selection_lib.DEFAULT,
  bootstrap: int = 1000,
  permutations: int = 2000,
  seed: int = 0,
) -> Comparison:
  """Compares rankings.

  Args:
    sides: the rankings, of any shapes.
    select: which heads are the set of each; overlap is also measured of the
      first 30 where they are at most half of the heads.
    bootstrap: resamples of the clusters; 0 leaves the intervals nan.
    permutations: of the heads, for p; 0 leaves that of spearman and rbo nan.
    seed: same seed, same numbers.

  Raises:
    UserError: see `check_rule`; more heads asked for than there are.
    ValueError: two rankings of one name.
  """
  select = check_rule(select)
  if len({side.name for side in sides}) < len(sides):
    raise ValueError(f'compare: names stand twice: {[s.name for s in sides]}')
  top = {side.name: select.count(*side.shape) for side in sides}
  ceilings = {
    side.name: reliability.split_half(
      side.score, top[side.name] or 1, seed
    ).spearman_brown
    if side.aligned
    else math.nan
    for side in sides
  }
  agreements = []
  for a, b in itertools.combinations(sides, 2):
    if a.shape == b.shape:
      # By pairs, so that a third ranking has no part in their numbers.
      drawn_a, drawn_b = sides_lib.draw([a, b], bootstrap, seed)
      agreements += _agree(
        drawn_a,
        drawn_b,
        _rules(select, a.shape),
        agreement.noise_ceiling(ceilings[a.name], ceilings[b.name]),
        permutations,
        seed,
      )
  return Comparison(
    sides=tuple(sides),
    agreements=tuple(_with_q(agreements)),
    structures=tuple(
      row
      for side in sides
      for row in structure.measure(*sides_lib.draw([side], bootstrap, seed))
    ),
    selected={
      side.name: heads_lib.HeadSet.from_mask(select.mask(side.score_LN))
      for side in sides
    },
    reliability=ceilings,
  )


def _rules(
  select: selection_lib.Selection, shape: tuple[int, int]
) -> dict[int, selection_lib.Selection]:
  """k -> rule of the cuts that overlap is measured at."""
  count = select.count(*shape)
  assert count is not None, 'only fdr has no count'
  rules = {count: select}
  if 2 * SECOND_TOP <= math.prod(shape):
    rules.setdefault(SECOND_TOP, selection_lib.Selection('top_k', SECOND_TOP))
  return rules


def _agree(
  a: sides_lib.Drawn,
  b: sides_lib.Drawn,
  rules: dict[int, selection_lib.Selection],
  ceiling: float,
  n_permutations: int,
  seed: int,
) -> list[Agreement]:
  """Every measure of one pair, q still nan."""
  left, right = a.side, b.side
  n_columns = len(a.score_X)
  n_clusters = min(len(left.clusters), len(right.clusters))
  n_resamples = min(len(a.known_Z), len(b.known_Z))
  known_Z = a.known_Z[:n_resamples] & b.known_Z[:n_resamples]
  a_ZX, b_ZX = (each.score_ZX[:n_resamples][known_Z] for each in (a, b))
  # The data first, then the resamples.
  a_ZX, b_ZX = np.vstack([a.score_X, a_ZX]), np.vstack([b.score_X, b_ZX])

  def row(measure, k, value, interval, chance, p, ceiling=math.nan):
    return Agreement(
      a=left.name,
      b=right.name,
      measure=measure,
      k=k,
      value=float(value),
      low=interval[0],
      high=interval[1],
      chance=chance,
      p=p,
      q=math.nan,
      ceiling=ceiling,
      n_a=left.n_examples,
      n_b=right.n_examples,
      clusters_a=len(left.clusters),
      clusters_b=len(right.clusters),
      clusters_shared=len(set(left.clusters) & set(right.clusters)),
    )

  def by_permutation(measure):
    return agreement.permutation_p(
      measure, a.score_X, b.score_X, n_permutations, seed
    )

  value_Z = reliability.spearman(a_ZX, b_ZX)
  rows = [
    row(
      SPEARMAN,
      0,
      value_Z[0],
      agreement.correlation_interval(
        value_Z[0], value_Z[1:], n_clusters, n_columns
      ),
      0.0,
      by_permutation(reliability.spearman),
      ceiling,
    )
  ]
  for k, rule in rules.items():
    a_chosen_ZX, b_chosen_ZX = (
      rule.mask(x_ZX.reshape(-1, *left.shape)).reshape(x_ZX.shape)
      for x_ZX in (a_ZX, b_ZX)
    )
    common_Z = (a_chosen_ZX & b_chosen_ZX).sum(1)
    rows.append(
      row(
        OVERLAP,
        k,
        common_Z[0] / k,
        agreement.share_interval(
          common_Z[0] / k, common_Z[1:] / k, n_clusters, step=1 / k
        ),
        k / n_columns,
        agreement.set_overlap_p(
          int(common_Z[0]),
          int(a_chosen_ZX[0].sum()),
          int(b_chosen_ZX[0].sum()),
          n_columns,
        ),
      )
    )
  value_Z = reliability.rbo(a_ZX, b_ZX)
  rows.append(
    row(
      RBO,
      0,
      value_Z[0],
      agreement.share_interval(value_Z[0], value_Z[1:], n_clusters),
      reliability.rbo_chance(n_columns),
      by_permutation(reliability.rbo),
    )
  )
  return rows


def _with_q(rows: Sequence[Agreement]) -> list[Agreement]:
  """Fills in q, within each measure and k."""
  q = np.full(len(rows), np.nan)
  for family in {(row.measure, row.k) for row in rows}:
    at = [i for i, row in enumerate(rows) if (row.measure, row.k) == family]
    q[at] = multiple.benjamini_hochberg(np.array([rows[i].p for i in at]))
  return [
    dataclasses.replace(row, q=float(value)) for row, value in zip(rows, q)
  ]
