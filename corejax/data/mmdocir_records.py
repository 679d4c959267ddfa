"""MMDocIR's annotation file, line by line, with its defects named.

One line is one document; page ids count from 0, boxes are xyxy in PDF points
from the top left of a page of `page_size`:

    {"doc_name": "a.pdf", "domain": "Brochure", "page_indices": [40, 59],
     "questions": [{"Q": "...", "A": "8", "type": "['Figure']", "page_id": [14],
       "layout_mapping": [{"page": 14, "page_size": [595.3, 841.9],
                           "bbox": [65, 127, 260, 394]}]}]}

`page_indices` are the first and the last row of the document in the data set's
table of all pages, so that 40, 59 is a document of 20 pages.
"""

from collections.abc import Iterator
import dataclasses
import json
import re
from typing import Any

from corejax import errors
from corejax.data import fields

# How far a box may reach beyond its page and is cut off there: the annotators
# rounded to whole points.
TOLERANCE_POINTS = 1.0

_TASKS = {
  'pure-text (plain-text)': 'text',
  'generalized-text (layout)': 'layout',
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """An annotated rectangle.

  Attributes:
    page: from 0.
    page_size: (width, height) in points.
    corners: x0, y0, x1, y1 as shares of the page.
  """

  page: int
  page_size: tuple[float, float]
  corners: tuple[float, float, float, float]

  @property
  def placed(self) -> tuple[int, tuple[float, float, float, float]]:
    return self.page, self.corners


@dataclasses.dataclass(frozen=True)
class Record:
  """One question; with a fault, nothing after `fault` is meant.

  Attributes:
    document: file name of the PDF.
    number: of the question within its document, from 0.
    task: see `task_of`; None if it cannot be told.
    fault: why it cannot be used, None if it can.
    domain: of the document.
    n_pages: of the document.
    question: its text.
    answer: its text.
    pages: pages on which the answer lies, ascending.
    layouts: the rectangles on them.
  """

  document: str
  number: int
  task: str | None = None
  fault: errors.Rejected | None = None
  domain: str = ''
  n_pages: int = 0
  question: str = ''
  answer: str = ''
  pages: tuple[int, ...] = ()
  layouts: tuple[Layout, ...] = ()

  @property
  def cluster(self) -> str:
    return self.document


def task_of(kind: str) -> str:
  """Short name of a question's `type`.

  `['Pure-text (Plain-text)']` is `text`, `['Generalized-text (Layout)']` is
  `layout`, any other name is put in lower case with `_` between its words
  (`table`, `figure`, `chart`). Several are sorted and joined by `+`; none, as
  in `[]`, is `unknown`.
  """
  names = set()
  for part in fields.strings(kind):
    lowered = part.strip().lower()
    name = _TASKS.get(lowered, re.sub(r'[^a-z0-9]+', '_', lowered).strip('_'))
    if name:
      names.add(name)
  return '+'.join(sorted(names)) or 'unknown'


def _layout(raw: Any, pages: tuple[int, ...]) -> Layout:
  page = fields.integer(fields.get(raw, 'page', int), 'page')
  width, height = fields.numbers(raw, 'page_size', 2)
  x0, y0, x1, y1 = fields.numbers(raw, 'bbox', 4)
  if page not in pages:
    raise fields.bad_box(
      f'box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) on page {page} is not on a page '
      f'of page_id={list(pages)}'
    )
  corners = fields.shares(
    (x0, y0, x1, y1),
    (width, height),
    f'on page {page}',
    TOLERANCE_POINTS,
    'points',
  )
  return Layout(page, (width, height), corners)


def _question(raw: Any, n_pages: int) -> dict[str, Any]:
  """The fields of a Record after `fault`."""
  question = fields.get(raw, 'Q', str).strip()
  if not question:
    raise fields.bad('empty question')
  answer = raw.get('A')
  if isinstance(answer, str):
    # A list of answers is one answer with several parts.
    answer = ', '.join(part.strip() for part in fields.strings(answer))
  elif isinstance(answer, int | float) and not isinstance(answer, bool):
    answer = str(answer)
  if not isinstance(answer, str) or not answer.strip():
    raise errors.Rejected(errors.Reason.BAD_ANSWER, f'A={fields.shown(answer)}')
  listed = fields.get(raw, 'page_id', list)
  pages = tuple(sorted({fields.integer(page, 'page_id') for page in listed}))
  for page in pages:
    if not 0 <= page < n_pages:
      raise fields.bad(f'page {page} is outside 0..{n_pages - 1}')
  layouts = tuple(
    _layout(layout, pages) for layout in fields.get(raw, 'layout_mapping', list)
  )
  bare = set(pages) - {layout.page for layout in layouts}
  if bare or not pages:
    raise errors.Rejected(
      errors.Reason.NO_EVIDENCE,
      f'page_id={list(pages)}, no box on {sorted(bare)}',
    )
  return {
    'question': question,
    'answer': answer.strip(),
    'pages': pages,
    'layouts': layouts,
  }


def _document(raw: Any) -> tuple[str, str, int, list[Any]]:
  """(file name, domain, number of pages, questions) of a line."""
  name = fields.file_name(raw, 'doc_name')
  span = fields.get(raw, 'page_indices', list)
  if len(span) != 2:
    raise fields.bad(f'page_indices={fields.shown(span)} is not [first, last]')
  first, last = (fields.integer(index, 'page_indices') for index in span)
  if last < first:
    raise fields.bad(f'page_indices={fields.shown(span)} is not first <= last')
  domain = raw.get('domain', '')
  return name, str(domain), last - first + 1, fields.get(raw, 'questions', list)


def _line(line: bytes, number: int, seen: dict[str, int]) -> Iterator[Record]:
  """The records of one line; `seen` counts the questions per document."""
  try:
    name, domain, n_pages, questions = _document(json.loads(line))
  except errors.Rejected as e:
    fault = errors.Rejected(e.reason, f'line {number}: {e.detail}')
    yield Record(f'line {number}', 0, fault=fault)
    return
  except (ValueError, RecursionError) as e:  # no JSON, or no Unicode
    yield Record(f'line {number}', 0, fault=fields.bad(f'line {number}: {e}'))
    return
  for raw_question in questions:
    index = seen.get(name, 0)
    seen[name] = index + 1
    task = None
    try:
      task = task_of(fields.get(raw_question, 'type', str))
      said = _question(raw_question, n_pages)
    except errors.Rejected as e:
      fault = errors.Rejected(e.reason, f'{name}/{index}: {e.detail}')
      yield Record(name, index, task, fault, domain, n_pages)
    else:
      yield Record(name, index, task, None, domain, n_pages, **said)


def parse(content: bytes) -> list[Record]:
  """Every question of an annotation file, unusable ones included.

  A line that cannot be read at all is one record with a fault.

  Args:
    content: of MMDocIR_annotations.jsonl.
  """
  records: list[Record] = []
  seen: dict[str, int] = {}
  lines = content.removeprefix(b'\xef\xbb\xbf').split(b'\n')
  for number, line in enumerate(lines, 1):
    if line.strip():
      records.extend(_line(line, number, seen))
  return records
