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

import ast
from collections.abc import Iterator
import dataclasses
import json
import pathlib
import re
from typing import Any

from corejax import errors
from corejax.data import example as example_lib

# How far a box may reach beyond its page and is cut off there: the annotators
# rounded to whole points.
TOLERANCE_POINTS = 1.0
_MOST_POINTS = 1e9  # no page has so many; beyond it floats lose whole points
_LONGEST_LITERAL = 100_000  # characters that are read as a Python literal

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


def _bad(detail: str) -> errors.Rejected:
  return errors.Rejected(errors.Reason.BAD_RECORD, detail)


def _strings(text: str) -> list[str]:
  """What a string holds that may be a Python list literal of strings."""
  if text.lstrip().startswith('[') and len(text) <= _LONGEST_LITERAL:
    try:
      value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      return [text]
    if isinstance(value, list):
      return [str(part) for part in value]
  return [text]


def task_of(kind: str) -> str:
  """Short name of a question's `type`.

  `['Pure-text (Plain-text)']` is `text`, `['Generalized-text (Layout)']` is
  `layout`, any other name is put in lower case with `_` between its words
  (`table`, `figure`, `chart`). Several are sorted and joined by `+`; none, as
  in `[]`, is `unknown`.
  """
  names = set()
  for part in _strings(kind):
    lowered = part.strip().lower()
    name = _TASKS.get(lowered, re.sub(r'[^a-z0-9]+', '_', lowered).strip('_'))
    if name:
      names.add(name)
  return '+'.join(sorted(names)) or 'unknown'


def _field(raw: Any, name: str, kind: type) -> Any:
  """raw[name], which must be there and of this type."""
  if not isinstance(raw, dict) or name not in raw:
    raise _bad(f'no field {name!r}')
  value = raw[name]
  if not isinstance(value, kind):
    raise _bad(f'{name}={str(value)[:40]!r} is not of type {kind.__name__}')
  return value


def _integer(value: Any, name: str) -> int:
  if isinstance(value, bool) or not isinstance(value, int):
    raise _bad(f'{name}={str(value)[:40]!r} is not an integer')
  return value


def _numbers(raw: Any, name: str, count: int) -> list[float]:
  values = _field(raw, name, list)
  if len(values) != count or not all(
    isinstance(v, int | float)
    and not isinstance(v, bool)
    and -_MOST_POINTS < v < _MOST_POINTS  # nan is not
    for v in values
  ):
    raise errors.Rejected(
      errors.Reason.BAD_BOX,
      f'{name}={str(values)[:80]} is not {count} finite numbers',
    )
  return [float(v) for v in values]


def _layout(raw: Any, pages: tuple[int, ...]) -> Layout:
  page = _integer(_field(raw, 'page', int), 'page')
  width, height = _numbers(raw, 'page_size', 2)
  x0, y0, x1, y1 = _numbers(raw, 'bbox', 4)

  def refuse(why):
    return errors.Rejected(
      errors.Reason.BAD_BOX,
      f'box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) on page {page} of '
      f'{width:g}x{height:g} points {why}',
    )

  if not (width > 0 and height > 0):
    raise refuse('lies on a page without area')
  if not (x0 < x1 and y0 < y1):
    raise refuse('is empty or inverted')
  over = max(-x0, -y0, x1 - width, y1 - height)
  if over > TOLERANCE_POINTS:
    raise refuse(f'reaches {over:g} points beyond the page')
  if page not in pages:
    raise refuse(f'is not on a page of page_id={list(pages)}')
  x0, x1 = max(x0, 0.0) / width, min(x1, width) / width
  y0, y1 = max(y0, 0.0) / height, min(y1, height) / height
  if not (x0 < x1 and y0 < y1):
    raise refuse('has no part on the page')
  return Layout(page, (width, height), (x0, y0, x1, y1))


def _question(raw: Any, n_pages: int) -> dict[str, Any]:
  """The fields of a Record after `fault`."""
  question = _field(raw, 'Q', str).strip()
  if not question:
    raise _bad('empty question')
  answer = raw.get('A')
  if isinstance(answer, str):
    # A list of answers is one answer with several parts.
    answer = ', '.join(part.strip() for part in _strings(answer))
  elif isinstance(answer, int | float) and not isinstance(answer, bool):
    answer = str(answer)
  if not isinstance(answer, str) or not answer.strip():
    raise errors.Rejected(errors.Reason.BAD_ANSWER, f'A={str(answer)[:40]!r}')
  page_ids = {_integer(p, 'page_id') for p in _field(raw, 'page_id', list)}
  pages = tuple(sorted(page_ids))
  for page in pages:
    if not 0 <= page < n_pages:
      raise _bad(f'page {page} is outside 0..{n_pages - 1}')
  layouts = tuple(
    _layout(layout, pages) for layout in _field(raw, 'layout_mapping', list)
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


def _is_file_name(name: str) -> bool:
  """Can a file of a folder have this name?"""
  return (
    name not in ('', '.', '..')
    and name == pathlib.PurePosixPath(name).name
    and not any(c in '\\' or c < ' ' for c in name)
    and example_lib.is_text(name)
    and len(name.encode()) <= 255
  )


def _document(raw: Any) -> tuple[str, str, int, list[Any]]:
  """(file name, domain, number of pages, questions) of a line."""
  name = _field(raw, 'doc_name', str)
  if not _is_file_name(name):
    raise _bad(f'doc_name={name[:80]!r} is not a bare file name')
  span = _field(raw, 'page_indices', list)
  if len(span) != 2:
    raise _bad(f'page_indices={str(span)[:40]} is not [first, last]')
  first, last = (_integer(index, 'page_indices') for index in span)
  if last < first:
    raise _bad(f'page_indices={span} is not first <= last')
  domain = raw.get('domain', '')
  return name, str(domain), last - first + 1, _field(raw, 'questions', list)


def _line(line: bytes, number: int, seen: dict[str, int]) -> Iterator[Record]:
  """The records of one line; `seen` counts the questions per document."""
  try:
    name, domain, n_pages, questions = _document(json.loads(line))
  except errors.Rejected as e:
    fault = errors.Rejected(e.reason, f'line {number}: {e.detail}')
    yield Record(f'line {number}', 0, fault=fault)
    return
  except (ValueError, RecursionError) as e:  # no JSON, or no Unicode
    yield Record(f'line {number}', 0, fault=_bad(f'line {number}: {e}'))
    return
  for raw_question in questions:
    index = seen.get(name, 0)
    seen[name] = index + 1
    task = None
    try:
      task = task_of(_field(raw_question, 'type', str))
      fields = _question(raw_question, n_pages)
    except errors.Rejected as e:
      fault = errors.Rejected(e.reason, f'{name}/{index}: {e.detail}')
      yield Record(name, index, task, fault, domain, n_pages)
    else:
      yield Record(name, index, task, None, domain, n_pages, **fields)


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
