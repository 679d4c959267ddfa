"""MMLongBench (2025), part documentQA: questions on page pictures.

An example is one question and a window of the pictures that its record lists,
in their order: those on which the answer lies and, up to `pages`, others. The
evidence is the whole page; the distractors are the other answer pages of the
same document's questions. A split is a length, K8 to K128, a task one of the
three files of that length: longdocurl, mmlongdoc (which is MMLongBench-Doc) and
slidevqa; questions without an answer are the task `unanswerable`, taken only
where --tasks names it.

Where files are looked for, in this order:

    {longdocurl,mmlongdoc,slidevqa}_K8.jsonl
                  DIR/mmlb_data/documentQA, DIR/documentQA, DIR
    pictures      DIR/mmlb_image, DIR

Only the rules of corejax.docqa judge answers, as in the benchmark; its numbers
are comparable where all pages of a record are shown (--pages=1000) under its
own prompt, not ours.
"""

from collections.abc import Sequence
import os

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import files
from corejax.data import mmlongbench_records as records_lib
from corejax.data import pages as pages_lib
from corejax.data import pictures
from corejax.data import recorded

NAME = 'mmlongbench_docqa'
SPLITS = ('K8', 'K16', 'K32', 'K64', 'K128')
TASKS = ('longdocurl', 'mmlongdoc', 'slidevqa')
_DATA = ('mmlb_data/documentQA', 'documentQA', '')
_PICTURES = ('mmlb_image', '')
_GET = 'in the data set ZhaoweiWang/MMLongBench on the Hugging Face hub'


class MMLongBenchDocQA(recorded.Recorded[records_lib.Record]):
  """An example.Source; one record is one question, file by file.

  Attributes:
    name, split, fingerprint: as example.Source says. The fingerprint covers the
      annotations and the settings.
  """

  name = NAME

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    *,
    split: str = 'K8',
    pages: int = 4,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
  ):
    """Reads the annotations; pictures are opened when an example is asked for.

    Args:
      data_dir: holds the files, see the head of this module.
      split: one of SPLITS.
      pages: size of the window.
      seed: which pages stand beside those of the evidence.
      tasks: to keep, None for all but `unanswerable`.

    Raises:
      UserError: a setting out of range, no file of this length, an unknown
        task, or no folder of pictures. A picture that is missing rejects its
        own question only.
    """
    recorded.check_split(NAME, split, SPLITS)
    if pages < 1:
      raise errors.UserError(f'--pages={pages}: expected 1 or more')
    self.split, self._window, self._seed = split, pages, seed
    wanted = files.Wanted(NAME, data_dir)
    contents: dict[str, bytes] = {}
    places = []
    for task in TASKS:
      names = [f'{part}/{task}_{split}.jsonl' for part in _DATA]
      of_task = wanted.at(*(name.lstrip('/') for name in names))
      places += of_task
      there = next((place for place in of_task if place.is_file()), None)
      if there:
        contents[task] = files.read(there)
    if not contents:
      several = ', '.join(f'{task}_{split}.jsonl' for task in TASKS)
      wanted.missing(f'any of {several}', places, _GET)
    records = [
      record
      for task, content in contents.items()
      for record in records_lib.parse_docqa(content, task)
    ]
    self._roots = wanted.at(*_PICTURES)
    firsts = [r.pictures[0] for r in records if r.pictures]
    if not any((root / f).is_file() for f in firsts for root in self._roots):
      wanted.missing(
        'the pictures' + (f', as {firsts[0]}' if firsts else ''),
        self._roots,
        _GET,
      )
    wanted.check()
    self._records = recorded.chosen(
      NAME, records, tasks, (records_lib.UNANSWERABLE,)
    )
    self._evidence: dict[str, set[str]] = {}
    for record in records:
      named = {record.pictures[place] for place in record.pages}
      self._evidence.setdefault(record.document, set()).update(named)
    self.fingerprint = recorded.digest(
      *contents.values(),
      list(contents),
      (split, pages, seed, sorted(tasks) if tasks else None),
    )

  def _example(self, record: records_lib.Record) -> example_lib.Example:
    where = f'{record.task}-{record.number}'
    return recorded.with_place(self._shown, where, record, where)

  def _shown(self, record, where) -> example_lib.Example:
    pages_lib.check_window(record.pages, self._window)
    shown = pages_lib.window(
      record.pages,
      len(record.pictures),
      self._window,
      self._seed,
      record.document,
    )
    own = pages_lib.whole(record.pages)
    also = self._evidence[record.document]
    others = pages_lib.whole(
      place
      for place in shown
      if place not in record.pages and record.pictures[place] in also
    )
    meta = {
      'document': record.document,
      'question': record.number,
      'pages': [record.pictures[place] for place in shown],
      'n_pages': len(record.pictures),
      'evidence_level': 'page' if own else 'none',
      'answer_format': record.kind,
    }
    if record.kind == 'List':
      meta['answer_items'] = list(record.items) or [record.answer]
    return example_lib.Example(
      id=f'{NAME}/{self.split}/{where}',
      source=NAME,
      split=self.split,
      task=record.task or '',
      media=tuple(self._picture(record.pictures[place]) for place in shown),
      question=record.question,
      answers=(record.answer,),
      cluster=record.document,
      scorer='docqa',
      evidence=pages_lib.boxes(own, shown),
      distractors=pages_lib.boxes(others, shown),
      kind='pages',
      meta=meta,
    )

  def _picture(self, path: str) -> bytes:
    root = next(
      (root for root in self._roots if (root / path).is_file()), self._roots[0]
    )
    data = pictures.read(root / path)
    pictures.header(data)
    return data
