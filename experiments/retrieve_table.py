"""How well sets of heads rank pages and layouts: rows, CSV and words.

Every value is a mean over questions (micro) with an interval over clusters
(documents): Wilson's on the effective number of questions, and for controls
that were drawn several times the spread of the draws too
(corejax.stats.accuracy). The mean of the domains' means (macro) stands beside.
What any order comes to is computed, not estimated, and has no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import io
import math

import numpy as np

from corejax import groups as groups_lib
from corejax import recall
from corejax.experiments import timed_table
from corejax.stats import accuracy

PAGES, LAYOUTS = 'pages', 'layouts'
KS = {PAGES: recall.PAGE_KS, LAYOUTS: recall.LAYOUT_KS}
ANY_ORDER, ALL, LARGEST = 'any order', 'all heads', 'largest first'
ALL_DRAWS = 'all'
SCORES = ('mass', 'density')

NAMES = {
  groups_lib.GIVEN: 'given heads',
  'layer_matched': 'layer-matched',
  'random': 'random',
}
_COLUMNS = (
  *('what', 'group', 'seed', 'heads', 'k', 'micro', 'low', 'high', 'macro'),
  'beyond_one',
)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """What one order of the pages or layouts came to.

  Attributes:
    what: PAGES or LAYOUTS.
    name: 'given', a control's name of corejax.groups, ALL, LARGEST, ANY_ORDER.
    seed: of a random group, else None.
    heads: how many.
    share_KE: float64, of every question at every k of KS; of layouts beyond 1
      where one piece of evidence was found twice.
  """

  what: str
  name: str
  seed: int | None
  heads: int
  share_KE: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of retrieval.csv.

  Attributes:
    what, name, heads: as of Found.
    seed: '' of what is not drawn, ALL_DRAWS of the mean over draws.
    k: how many count.
    micro: mean over questions, each at most 1.
    macro: mean of the domains' means of the same.
    beyond_one: micro as the benchmark computes it, without that limit.
  """

  what: str
  name: str
  seed: str
  heads: int
  k: int
  micro: accuracy.Estimate
  macro: float
  beyond_one: float

  @property
  def whole(self) -> bool:
    """Is it no single draw of several?"""
    return self.seed in ('', ALL_DRAWS)


@dataclasses.dataclass(frozen=True)
class Ranked:
  """Evidence and candidates of one question, for `shares`.

  Attributes:
    pages: on which the answer lies.
    n_pages: of the document.
    evidence: rectangles in which it lies; empty without layouts.
    layouts: the candidates.
  """

  pages: Sequence[int]
  n_pages: int
  evidence: Sequence[recall.Layout] = ()
  layouts: Sequence[recall.Layout] = ()


def page_shares(question: Ranked, score_P: np.ndarray) -> list[float]:
  """Page recall at every k, by the mass on each page."""
  ranked = recall.first(score_P, max(KS[PAGES]))
  return [recall.page_recall(ranked, question.pages, k) for k in KS[PAGES]]


def layout_shares(question: Ranked, score_J: np.ndarray) -> list[float]:
  """Layout recall at every k, by a score of each layout."""
  ranked = recall.first(score_J, max(KS[LAYOUTS]))
  layouts = [question.layouts[j] for j in ranked]
  return [
    recall.layout_share(layouts, question.evidence, k) for k in KS[LAYOUTS]
  ]


def layout_scores(
  mass_J: np.ndarray, tokens_J: np.ndarray, score: str
) -> np.ndarray:
  """What layouts are ranked by.

  Args:
    mass_J: attention on each one's tokens.
    tokens_J: how many those are; a layout without any comes last.
    score: 'mass' as it is, 'density' by token.
  """
  value_J = np.asarray(mass_J, np.float64)
  if score == 'density':
    value_J = value_J / np.maximum(tokens_J, 1)
  return np.where(tokens_J > 0, value_J, -np.inf)


def any_order(questions: Sequence[Ranked], what: str) -> Found:
  """What any order comes to on average.

  Of n pages k hold k / n of the evidence, wherever it is. Of n layouts k share
  k / n of what all share with it (exact where layouts do not overlap).
  """
  shares = []
  for each in questions:
    if what == PAGES:
      total, n = 1.0, each.n_pages
    else:
      n = len(each.layouts)
      total = recall.layout_share(each.layouts, each.evidence, n)
    shares.append([min(k / n, 1.0) * total for k in KS[what]])
  return Found(what, ANY_ORDER, None, 0, np.array(shares).T)


def sizes_differ(questions: Sequence[Ranked]) -> bool:
  """Is any document's layout larger than another of it?"""
  return any(
    not np.allclose(areas, areas[0])
    for areas in ([one.area for one in each.layouts] for each in questions)
  )


def largest_first(questions: Sequence[Ranked]) -> Found:
  """Layouts by their area alone: what looking nowhere in particular finds."""
  shares = [
    layout_shares(each, np.array([layout.area for layout in each.layouts]))
    for each in questions
  ]
  return Found(LAYOUTS, LARGEST, None, 0, np.array(shares).T)


def _mean(
  founds: Sequence[Found], place: int, clusters: Sequence[str]
) -> accuracy.Estimate:
  value_SE = np.stack([np.minimum(f.share_KE[place], 1.0) for f in founds])
  made = accuracy.wilson(value_SE.mean(0), clusters)
  if founds[0].name == ANY_ORDER:  # known, not estimated
    return dataclasses.replace(made, low=math.nan, high=math.nan)
  if len(founds) > 1:
    made = _within(accuracy.over_draws(made, value_SE.mean(1)), 0.0)
  return made


def _within(estimate: accuracy.Estimate, least: float) -> accuracy.Estimate:
  low, high = np.clip([estimate.low, estimate.high], least, 1.0)
  return dataclasses.replace(estimate, low=float(low), high=float(high))


def rows(
  founds: Sequence[Found], clusters: Sequence[str], domains: Sequence[str]
) -> list[Row]:
  """All rows; draws one by one and together.

  Args:
    founds: in the order of the table.
    clusters, domains: of every question.
  """
  made = []
  groups: dict[tuple[str, str], list[Found]] = {}
  for found in founds:
    groups.setdefault((found.what, found.name), []).append(found)
  for of in groups.values():
    drawn = of[0].seed is not None
    for part in [[f] for f in of] + ([of] if drawn else []):
      whole = part is of
      seed = ALL_DRAWS if whole else '' if not drawn else str(part[0].seed)
      for place, k in enumerate(KS[of[0].what]):
        share_E = np.mean([f.share_KE[place] for f in part], 0)
        value_E = np.mean([np.minimum(f.share_KE[place], 1) for f in part], 0)
        made.append(
          Row(
            of[0].what,
            of[0].name,
            seed,
            of[0].heads,
            k,
            _mean(part, place, clusters),
            recall.means(value_E.tolist(), domains)['macro'],
            float(share_E.mean()),
          )
        )
  return made


def compared(
  founds: Sequence[Found], clusters: Sequence[str], what: str, k: int
) -> dict[str, accuracy.Estimate]:
  """Group -> recall@k of the given heads minus its, paired by question."""
  place = KS[what].index(k)

  def values(name):
    return np.array(
      [
        np.minimum(f.share_KE[place], 1.0)
        for f in founds
        if (f.what, f.name) == (what, name)
      ]
    )

  given_SE = values(groups_lib.GIVEN)
  made = {}
  for name in (*groups_lib.RANDOM, ALL):
    other_SE = values(name)
    found = accuracy.difference(given_SE[0], other_SE.mean(0), clusters)
    if len(other_SE) > 1:
      spread_S = given_SE[0].mean() - other_SE.mean(1)
      found = accuracy.over_draws(found, spread_S)
    made[name] = _within(found, -1.0)
  return made


def to_csv(table: Sequence[Row]) -> str:
  """retrieval.csv."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(_COLUMNS)
  for row in table:
    level = row.micro
    numbers = (level.value, level.low, level.high, row.macro, row.beyond_one)
    writer.writerow(
      [
        *(row.what, row.name, row.seed, row.heads, row.k),
        *(f'{x:.6g}' if math.isfinite(x) else '' for x in numbers),
      ]
    )
  return text.getvalue()


def at(table: Sequence[Row], what: str) -> dict[str, list[Row]]:
  """Group -> its rows of pages or layouts, draws together, by k."""
  found: dict[str, list[Row]] = {}
  for row in table:
    if row.what == what and row.whole:
      found.setdefault(row.name, []).append(row)
  return found


def summary(
  table: Sequence[Row],
  founds: Sequence[Found],
  clusters: Sequence[str],
  draws: int,
  score: str,
) -> list[str]:
  """What is printed: a table of pages, one of layouts, and what follows."""
  lines = []
  for what in KS:
    groups = at(table, what)
    if not groups:
      continue
    ks = ', '.join(map(str, KS[what]))
    how = '' if what == PAGES else f', by {score}'
    lines.append(
      f'{what.removesuffix("s")} recall of {len(clusters)} questions in '
      f'{len(set(clusters))} clusters at {ks}{how} (mean over questions, 95% '
      'interval):'
    )
    for name, of in groups.items():
      told = '  '.join(f'{timed_table.told(row.micro):20}' for row in of)
      heads = f'{of[0].heads} heads' if of[0].heads else ''
      if of[0].seed == ALL_DRAWS:
        heads += f', {draws} draws'
      lines.append(f'  {NAMES.get(name, name):14} {told}  {heads}'.rstrip())
    against = compared(founds, clusters, what, 1)
    matched = against['layer_matched']
    told = ', '.join(
      f'{NAMES.get(name, name)} {timed_table.signed(estimate)}'
      for name, estimate in against.items()
    )
    lines.append(f'  given heads minus others at 1: {told}')
    lines.append(f'so: {_verdict(matched, what)}')
  return lines


def _verdict(matched: accuracy.Estimate, what: str) -> str:
  if not math.isfinite(matched.low):
    return f'nothing is said about {what}: one cluster has no interval'
  if matched.low > 0:
    return f'the given heads find {what} that others of their layers do not'
  if matched.high < 0:
    return f'the given heads find fewer {what} than others of their layers'
  return (
    f'no difference is shown between the given heads and others of their '
    f'layers at finding {what}'
  )
