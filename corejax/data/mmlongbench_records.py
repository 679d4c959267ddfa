"""Annotations of the two benchmarks that are called MMLongBench.

MMLongBench-Doc, `samples.json`: a list of objects whose values are all texts;
`evidence_pages` and `evidence_sources` are Python list literals, pages count
from 1:

    {"doc_id": "a.pdf", "doc_type": "Guidebook", "question": "...",
     "answer": "8", "evidence_pages": "[3, 5]", "answer_format": "Int",
     "evidence_sources": "['Figure']"}

MMLongBench (2025), part documentQA, one object a line; pages count from 0 in
the original document, and the pictures' names tell which they are: the end is
`_page7.jpg` for page 7, or `-8-1024.jpg` for page 7 of slidevqa:

    {"id": "...", "doc_name": "a", "question": "...", "answer": "8",
     "answer_format": "Integer", "page_list": ["mmlongdoc/a_page7.jpg", ...],
     "ans_page_list": [7]}
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

from corejax import errors
from corejax.data import fields
from corejax.data import mmdocir_records

UNANSWERABLE = 'unanswerable'
_FORMATS = {
  'Int': 'Integer',
  'Float': 'Float',
  'Str': 'String',
  'List': 'List',
  'None': 'None',
}
FORMATS = tuple(_FORMATS.values())
_PAGE = re.compile(r'(.*)_page(\d{1,6})\.(?:jpe?g|png)', re.ASCII)
_SLIDE = re.compile(r'(.*)-(\d{1,6})-1024\.(?:jpe?g|png)', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Record:
  """One question; with a fault, nothing after `fault` is meant.

  Attributes:
    document: its name.
    number: of the question, from 0: within its document (Doc) or its file.
    task: of mmdocir_records.task_of, or the file's; UNANSWERABLE for a question
      that its document does not answer; None if it cannot be told.
    fault: why it cannot be used, None if it can.
    domain: of the document.
    question: its text.
    answer: its text; the items of a list, joined.
    items: of a list.
    kind: one of FORMATS.
    pages: on which the answer lies, from 0, ascending: of the document (Doc),
      or places in `pictures`.
    pictures: paths of the pages (2025).
  """

  document: str
  number: int
  task: str | None = None
  fault: errors.Rejected | None = None
  domain: str = ''
  question: str = ''
  answer: str = ''
  items: tuple[str, ...] = ()
  kind: str = 'String'
  pages: tuple[int, ...] = ()
  pictures: tuple[str, ...] = ()

  @property
  def cluster(self) -> str:
    return self.document


class Malformed(ValueError):
  """A file that is not of the layout at all."""


def asked(question: str) -> str:
  """A question's words, by which two files' records are joined."""
  return ' '.join(question.casefold().split())


def _answer(raw: Any, kind: str) -> tuple[str, tuple[str, ...]]:
  """(text, items of a list)."""
  value = raw.get('answer')
  if isinstance(value, int | float) and not isinstance(value, bool):
    value = fields.shown(value)
  items: Sequence[Any] | None = None
  if kind == 'List' and isinstance(value, str):
    items = _list_in(value)
  elif isinstance(value, list):
    items = value
  if items is not None:
    parts = tuple(
      part.strip() if isinstance(part, str) else fields.shown(part)
      for part in items
    )
    value = ', '.join(parts)
  else:
    parts = ()
  if not isinstance(value, str) or not value.strip():
    raise errors.Rejected(
      errors.Reason.BAD_ANSWER, f'answer={fields.shown(raw.get("answer"))}'
    )
  return value.strip(), parts


def _list_in(text: str) -> list[Any] | None:
  """A text that spells a list, in JSON or in Python; None if it is none."""
  try:
    found = fields.load_json(text.encode('utf-8', 'surrogatepass'))
  except ValueError:
    return fields.literal_list(text)
  return found if isinstance(found, list) else None


def _page_numbers(value: Any, name: str) -> list[int]:
  if isinstance(value, str):
    value = _list_in(value)
  if not isinstance(value, list):
    raise fields.bad(f'{name} is no list')
  return [fields.integer(page, name) for page in value]


def _doc(raw: Any) -> dict[str, Any]:
  """The fields of a Record after `fault`, of one of Doc's."""
  kind = fields.get(raw, 'answer_format', str)
  if kind not in _FORMATS:
    raise fields.bad(
      f'answer_format={fields.shown(kind)} is not one of {", ".join(_FORMATS)}'
    )
  kind = _FORMATS[kind]
  answer, items = _answer(raw, kind)
  pages = []
  for page in _page_numbers(
    fields.get(raw, 'evidence_pages', str), 'evidence_pages'
  ):
    if not 1 <= page <= fields.MOST:
      raise fields.bad(
        f'evidence page {fields.shown(page)}: pages count from 1'
      )
    pages.append(page - 1)
  return dict(
    domain=str(raw.get('doc_type', ''))[:80],
    question=fields.text(raw, 'question'),
    answer=answer,
    items=items,
    kind=kind,
    pages=() if kind == 'None' else tuple(sorted(set(pages))),
  )


def _doc_task(raw: Any) -> str:
  if fields.get(raw, 'answer_format', str) == 'None':
    return UNANSWERABLE
  return mmdocir_records.task_of(fields.get(raw, 'evidence_sources', str))


def parse_doc(content: bytes) -> list[Record]:
  """Every question of MMLongBench-Doc's samples.json, unusable ones included.

  Args:
    content: of the file.

  Raises:
    Malformed: it is no JSON list.
  """
  try:
    rows = fields.load_json(content)
  except ValueError as e:
    raise Malformed(f'no JSON: {e}') from e
  if not isinstance(rows, list):
    raise Malformed('no list of questions')
  records: list[Record] = []
  seen: dict[str, int] = {}
  for number, raw in enumerate(rows):
    name, index, task = f'record {number}', 0, None
    try:
      name = fields.file_name(raw, 'doc_id')
      index = seen.get(name, 0)
      seen[name] = index + 1
      task = _doc_task(raw)
      said = _doc(raw)
    except errors.Rejected as e:
      fault = errors.Rejected(e.reason, f'{name}/{index}: {e.detail}')
      records.append(Record(name, index, task, fault))
    else:
      records.append(Record(name, index, task, None, **said))
  return records


def page_of(path: str) -> tuple[str, int]:
  """(document, page from 0) that the name of a picture tells.

  Raises:
    Rejected: it tells none.
  """
  name = path.rsplit('/', 1)[-1]
  if match := _PAGE.fullmatch(name):
    return match[1], int(match[2])
  match = _SLIDE.fullmatch(name)
  if match and int(match[2]) >= 1:
    return match[1], int(match[2]) - 1
  raise fields.bad(
    f'{fields.shown(name)} does not tell its page, as a_page7.jpg or '
    'a-8-1024.jpg do'
  )


def _docqa(raw: Any) -> dict[str, Any]:
  """The fields of a Record after `fault`, of one of 2025's."""
  kind = fields.get(raw, 'answer_format', str)
  if kind not in FORMATS:
    raise fields.bad(
      f'answer_format={fields.shown(kind)} is not one of {", ".join(FORMATS)}'
    )
  answer, items = _answer(raw, kind)
  listed = fields.get(raw, 'page_list', list)
  if not listed:
    raise fields.bad('page_list is empty')
  for path in listed:
    if not isinstance(path, str) or not fields.is_relative_path(path):
      raise fields.bad(f'page_list: {fields.shown(path)} is no relative path')
  places: tuple[int, ...] = ()
  if kind != 'None':
    document = fields.text(raw, 'doc_name').removesuffix('.pdf')
    wanted = set(_page_numbers(raw.get('ans_page_list'), 'ans_page_list'))
    told = [page_of(path) for path in listed]
    names = {name for name, _ in told}
    places = tuple(
      place
      for place, (name, page) in enumerate(told)
      if page in wanted and (len(names) == 1 or name == document)
    )
    lacking = wanted - {told[place][1] for place in places}
    if lacking or not places:
      raise errors.Rejected(
        errors.Reason.NO_EVIDENCE,
        f'ans_page_list={fields.shown(sorted(wanted))}, of which '
        f'{fields.shown(sorted(lacking))} is on no page of page_list',
      )
  return dict(
    question=fields.text(raw, 'question'),
    answer=answer,
    items=items,
    kind=kind,
    pages=places,
    pictures=tuple(listed),
  )


def parse_docqa(content: bytes, task: str) -> list[Record]:
  """Every question of a documentQA file of 2025, unusable ones included.

  Args:
    content: of the .jsonl file.
    task: 'longdocurl', 'mmlongdoc' or 'slidevqa'.
  """
  records: list[Record] = []
  for number, line in fields.lines(content):
    name = f'line {number}'
    try:
      raw = fields.load_json(line)
      name = fields.text(raw, 'doc_name')
      of = task
      if fields.get(raw, 'answer_format', str) == 'None':
        of = UNANSWERABLE
      said = _docqa(raw)
    except errors.Rejected as e:
      where = f'{task} line {number}: {e.detail}'
      fault = errors.Rejected(e.reason, where)
      records.append(Record(name, len(records), None, fault))
    except ValueError as e:
      fault = fields.bad(f'{task} line {number}: no JSON: {e}')
      records.append(Record(name, len(records), None, fault))
    else:
      records.append(Record(name, len(records), of, None, **said))
  return records
