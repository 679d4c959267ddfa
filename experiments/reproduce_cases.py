"""Results of the protocol's runs -> cases of its claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math
from typing import TYPE_CHECKING, Any

from corejax import claims
from corejax import compare as compare_lib
from corejax import effects
from corejax import groups
from corejax import judge
from corejax import structure
from corejax.experiments import reproduce_runs

if TYPE_CHECKING:
  from corejax.experiments import ablate

# In the order in which they are told; those of claim 8 follow, a ranking each.
TITLES = {
  '1': 'a sparse set of heads reads the evidence',
  '2': 'cutting the top 5% wrecks retrieval',
  '3': 'it is those heads, and it is retrieval (primary endpoint)',
  '4 bottom': 'the bottom 5% hardly matter',
  '4 median': 'the median 5% hardly matter',
  '5 of 2': 'claim 2 holds over scales',
  '5 of 3': 'claim 3 holds over scales',
  '6 shared': 'data sets rank the heads alike',
  '6 own': 'and each has heads of its own',
  '7': 'whatever a cut head writes or reads instead',
}
RANKINGS = '8'
# Cases over several families, told apart from each family's own.
ACROSS = {
  '10 of 2': 'claim 2 holds across families',
  '10 of 3': 'claim 3 holds across families',
}
FAMILIES = 'families'


def all_cases(made: Sequence[reproduce_runs.Made]) -> list[claims.Case]:
  """Every claim on every model and data set."""
  cases = [case for each in made for case in _of_model(each)]
  return [*cases, *_scales(made, cases), *_families(made, cases)]


def by_family(
  made: Sequence[reproduce_runs.Made], cases: Sequence[claims.Case]
) -> dict[str, list[claims.Case]]:
  """Family -> its cases: LLaVA's first; FAMILIES last if there are several."""
  of_model = {each.name: each.family for each in made if each.size}
  llava = reproduce_runs.LLAVA
  families = sorted(
    set(of_model.values()) or {llava}, key=lambda f: (f != llava, f)
  )
  if len(families) > 1:
    families.append(FAMILIES)
  parts: dict[str, list[claims.Case]] = {family: [] for family in families}
  for case in cases:
    across = case.claim in ACROSS
    family = of_model[case.model.split(' and ')[0]]
    parts[FAMILIES if across else family].append(case)
  return parts


def verdicts(cases: Sequence[claims.Case], part: str = '') -> dict[str, str]:
  """Claim -> what its cases come to, in the order of the titles.

  Args:
    cases: those that count.
    part: FAMILIES where they are its.
  """
  found: dict[str, list[claims.Case]] = {
    claim: [] for claim in (ACROSS if part == FAMILIES else TITLES)
  }
  for case in cases:
    found.setdefault(case.claim, []).append(case)
  return {claim: claims.verdict(each) for claim, each in found.items()}


def title(claim: str) -> str:
  """What a claim says."""
  if claim in TITLES or claim in ACROSS:
    return {**TITLES, **ACROSS}[claim]
  return f'heads are found by {claim.removeprefix(RANKINGS).strip()}'


def intact(result: ablate.Result) -> dict[str, float]:
  """Task -> accuracy with all heads."""
  outcomes = result.outcomes
  return {
    task: float(outcomes.score_XE[0, used_E].mean())
    for task, used_E in outcomes.parts().items()
    if task in outcomes.tasks
  }


def cut(
  result: ablate.Result, group: str, twin: bool = False
) -> effects.Effect | None:
  """The row of a group at the endpoint's k; None if it was not cut."""
  k = end_k(result)
  return effects.of_kind(result.outcomes, result.effects, group, k, twin)


def end_k(result: ablate.Result) -> int:
  """Heads that are cut at the endpoint."""
  outcomes = result.outcomes
  (k,) = groups.resolve(
    [reproduce_runs.ENDPOINT], outcomes.n_layers, outcomes.n_heads
  )
  return k


def _case(claim, model, data, what, estimate: Any, decided: str):
  value, low, high = (
    (estimate.value, estimate.low, estimate.high)
    if estimate is not None
    else (math.nan,) * 3
  )
  return claims.Case(claim, model, data, what, value, low, high, decided)


def _of_model(made: reproduce_runs.Made) -> Iterator[claims.Case]:
  able = {
    data: min(intact(result).values()) >= claims.LEAST_INTACT
    for data, result in made.cut.items()
  }

  def judged(case: claims.Case, *data: str) -> claims.Case:
    return case if all(able[d] for d in data) else case.untestable()

  for data, result in made.cut.items():
    for case in _of_data(made, data, result):
      yield judged(case, data)
  for case in _two_data_sets(made):
    yield judged(case, *reproduce_runs.DATA)
  pages = reproduce_runs.PAGES
  for what, result in made.reduced.items():
    value = result.endpoint and result.endpoint.value
    decided = claims.specific(value) if value else claims.UNDECIDED
    case = _case('7', made.name, pages, what, value, decided)
    yield judged(case, pages)
  for each in made.judged.judged:
    if each.name in (judge.RAM, judge.RANDOM):
      continue
    value = each.endpoint and each.endpoint.value
    case = claims.Case(
      claim=f'{RANKINGS} {each.name}',
      model=made.name,
      data=pages,
      what=each.needs,
      value=each.share,
      low=math.nan,
      high=math.nan,
      verdict=claims.found(each.share, value),
    )
    yield judged(case, pages)


def _of_data(made, data: str, result: ablate.Result) -> Iterator[claims.Case]:
  """Claims 1 to 4."""
  half = _half(made, data)
  decided = claims.sparse(half) if half else claims.UNDECIDED
  yield _case('1', made.name, data, 'half-mass share', half, decided)
  whole = effects.of_kind(result.outcomes, result.effects, 'top', 0, False)
  top = cut(result, 'top')
  if top and whole:
    decided = claims.wrecked(top.accuracy, whole.accuracy.value)
    yield _case('2', made.name, data, 'accuracy', top.accuracy, decided)
  end = result.endpoint
  if end and end.value:
    decided = claims.specific(end.value, end.retrieval)
    yield _case('3', made.name, data, 'endpoint', end.value, decided)
  for group in ('bottom', 'median'):
    low = cut(result, group)
    if low:
      decided = claims.harmless(low.delta)
      yield _case(f'4 {group}', made.name, data, 'change', low.delta, decided)


def _half(made, data: str):
  """Share of the heads that hold half of the RAM, with its interval."""
  label = made.ranked[data].out.name
  comparison = made.compared.comparison
  rows = comparison.structures if comparison else ()
  return next(
    (
      row
      for row in rows
      if row.measure == structure.HALF
      and row.ranking.partition('/')[0] == label
    ),
    None,
  )


def _two_data_sets(made) -> Iterator[claims.Case]:
  """Claim 6."""
  comparison, both = made.compared.comparison, ' and '.join(reproduce_runs.DATA)
  if comparison is None:
    return
  for row in comparison.agreements:
    if row.measure == compare_lib.SPEARMAN:
      decided = claims.shared(row)
      yield _case('6 shared', made.name, both, 'Spearman', row, decided)
  first, second = comparison.selected.values()
  overlap = len(first & second) / max(1, len(first))
  yield claims.Case(
    '6 own',
    made.name,
    both,
    'overlap',
    overlap,
    math.nan,
    math.nan,
    claims.own(first != second),
  )


def _scales(made, cases: Sequence[claims.Case]) -> Iterator[claims.Case]:
  """Claim 5: the same family and seed in two sizes."""
  groups_of: dict[tuple[str, int], list[str]] = {}
  for each in made:
    if each.size:
      groups_of.setdefault((each.family, each.seed), []).append(each.name)
  for _, names in sorted(groups_of.items(), key=lambda item: item[0][1]):
    if len(names) == 2:
      yield from _alike('5', names, cases)


def _families(made, cases: Sequence[claims.Case]) -> Iterator[claims.Case]:
  """Claim 10: the same size and seed, as LLaVA and in another family."""
  trained = {(e.family, e.size, e.seed): e.name for e in made if e.size}
  for (family, *same), name in trained.items():
    base = trained.get((reproduce_runs.LLAVA, *same))
    if family != reproduce_runs.LLAVA and base is not None:
      yield from _alike('10', [base, name], cases)


def _alike(
  number: str, names: Sequence[str], cases: Sequence[claims.Case]
) -> Iterator[claims.Case]:
  """Do claims 2 and 3 come out the same way for two models?"""
  found = {(c.claim, c.model, c.data): c.verdict for c in cases}
  for claim in ('2', '3'):
    for data in reproduce_runs.DATA:
      both = [
        found.get((claim, name, data), claims.UNDECIDED) for name in names
      ]
      yield claims.Case(
        f'{number} of {claim}',
        ' and '.join(names),
        data,
        ', '.join(both),
        math.nan,
        math.nan,
        math.nan,
        claims.same(both),
      )
