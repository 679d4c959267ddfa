"""MMDocIR's measures: how much of the evidence do the first k retrieved hold?

Nothing is generated: what ranks pages may be a retriever, or the attention mass
of some heads. Both are means over questions, all of them (micro), and the mean
of the domains' means (macro), as the benchmark reports them:

page recall@k    |first k pages and evidence pages| / |evidence pages|; k is 1,
                 3, 5, over ALL pages of the document
layout recall@k  area that the first k rectangles share with evidence rectangles
                 on the same page / area of all evidence rectangles, in points;
                 k is 1, 5, 10

Shared areas are added up, so two retrieved rectangles on one piece of evidence
count it twice. A recall beyond 1 is none, so a question's value ends at 1 here;
the benchmark's own does not (`layout_share`), which matters where layouts
overlap.

Comparable with MMDocIR's tables where every page (or layout) of the document
was ranked. A window of a few pages, which --pages shows, is an easier task:
only values under the same window compare.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses

import numpy as np

PAGE_KS = (1, 3, 5)
LAYOUT_KS = (1, 5, 10)

Corners = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A rectangle on a page.

  Attributes:
    page: of the document.
    corners: x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, in one unit, the same
      for what is retrieved and what is evidence (points of the page).
  """

  page: int
  corners: Corners

  @property
  def area(self) -> float:
    x0, y0, x1, y1 = self.corners
    return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)

  def shared(self, other: 'Layout') -> float:
    """Area that both cover."""
    if self.page != other.page:
      return 0.0
    a, b = self.corners, other.corners
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def first(scores: Sequence[float] | np.ndarray, k: int) -> list[int]:
  """Indices of the k highest scores, the best first; ties in their order.

  Raises:
    ValueError: a score is nan: it would stand anywhere.
  """
  values = np.asarray(scores, float)
  if np.isnan(values).any():
    raise ValueError(f'score {int(np.isnan(values).argmax())} is nan')
  return [int(i) for i in np.argsort(-values, kind='stable')[:k]]


def page_recall(
  ranked: Sequence[int], evidence: Iterable[int], k: int
) -> float:
  """Share of the evidence pages among the first k.

  Args:
    ranked: pages, the best first, each once.
    evidence: pages on which the answer lies.
    k: how many count.

  Raises:
    ValueError: no evidence, or a page that is ranked twice.
  """
  wanted = set(evidence)
  if not wanted:
    raise ValueError('no page of evidence to be found')
  if len(set(ranked)) < len(ranked):
    raise ValueError('a page is ranked twice')
  return len(wanted & set(ranked[:k])) / len(wanted)


def layout_recall(
  ranked: Sequence[Layout], evidence: Sequence[Layout], k: int
) -> float:
  """Share of the evidence's area under the first k rectangles, at most 1.

  Args:
    ranked: rectangles, the best first.
    evidence: rectangles in which the answer lies.
    k: how many count.

  Raises:
    ValueError: the evidence has no area.
  """
  return min(layout_share(ranked, evidence, k), 1.0)


def layout_share(
  ranked: Sequence[Layout], evidence: Sequence[Layout], k: int
) -> float:
  """As `layout_recall`, but beyond 1 where a piece of evidence is found twice.

  Raises:
    ValueError: the evidence has no area.
  """
  total = sum(layout.area for layout in evidence)
  if not total > 0:
    raise ValueError('no area of evidence to be found')
  found = sum(layout.shared(true) for layout in ranked[:k] for true in evidence)
  return found / total


def means(
  values: Sequence[float], domains: Sequence[str]
) -> Mapping[str, float]:
  """Both means of one value a question.

  Args:
    values: of the questions.
    domains: of each question's document.

  Returns:
    'micro', the mean over questions; 'macro', the mean over domains of the mean
    over a domain's questions.

  Raises:
    ValueError: no question, or as many domains as there are not questions.
  """
  if not values or len(values) != len(domains):
    raise ValueError(f'{len(values)} values of {len(domains)} questions')
  by_domain: dict[str, list[float]] = {}
  for value, domain in zip(values, domains):
    by_domain.setdefault(domain, []).append(value)
  return {
    'micro': float(np.mean(values)),
    'macro': float(np.mean([np.mean(v) for v in by_domain.values()])),
  }
