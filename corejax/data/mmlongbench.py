"""MMLongBench-Doc: questions on PDF documents, with the pages that answer them.

An example is one question and a window of its document's pages: those on which
the answer lies and, up to `pages`, others, in the document's order. Where
MMDocIR annotated the same question of the same document (774 of 1,082), its
rectangles are the evidence and its page labels count: of three disagreements
that were looked up in the documents it was right in all. Elsewhere the whole
page is the evidence (meta['evidence_level'] is 'page'), and the distractors are
the pages of the document's other questions.

Where files are looked for, in this order:

    samples.json  DIR, DIR/data, DIR/mmlongbench_doc
    MMDocIR_annotations.jsonl, optional
                  DIR, DIR/mmdocir, DIR/dataset, then the folder above the one
                  of samples.json and its mmdocir
    PDFs          DIR/documents, DIR/data/documents, DIR, then documents beside
                  samples.json

Questions that the document does not answer (task `unanswerable`, 223) look
nothing up and are taken only where --tasks names them; the 12 answerable ones
without pages are rejected, as are labels beyond the document. Answers are
judged by the rules of MMLongBench (2025), corejax.docqa, not by the judge model
of MMLongBench-Doc: its published numbers are not comparable.
"""

from collections.abc import Sequence
import os
import pathlib

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import files
from corejax.data import mmdocir
from corejax.data import mmdocir_records
from corejax.data import mmlongbench_records as records_lib
from corejax.data import pages as pages_lib
from corejax.data import recorded

NAME = 'mmlongbench'
SAMPLES = 'samples.json'
SPLITS = ('test',)
_GET = (
  'samples.json and the PDFs are in github.com/mayubo2333/MMLongBench-Doc, '
  'folder data'
)

_Joined = dict[tuple[str, str], mmdocir_records.Record]


class MMLongBench(recorded.Recorded[records_lib.Record]):
  """An example.Source; one record is one question, in the file's order.

  Attributes:
    name, split, fingerprint: as example.Source says. The fingerprint covers
      both annotations, the settings, the sizes of the PDFs and what draws them.
    remarks: how many records have rectangles.
  """

  name = NAME

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    *,
    split: str = 'test',
    pages: int = 4,
    dpi: int = 96,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
  ):
    """Reads the annotations; PDFs are opened when an example is asked for.

    Args:
      data_dir: holds the files, see the head of this module.
      split: 'test', the only one.
      pages: size of the window.
      dpi: resolution at which pages are drawn.
      seed: which pages stand beside those of the evidence.
      tasks: task names to keep, None for all but `unanswerable`.

    Raises:
      UserError: a setting out of range, no annotations, no PDF at all, an
        unknown task, or pypdfium2 missing. A PDF that is missing while others
        are there rejects its own questions only.
    """
    recorded.check_split(NAME, split, SPLITS)
    if pages < 1:
      raise errors.UserError(f'--pages={pages}: expected 1 or more')
    self.split, self._window, self._seed = split, pages, seed
    wanted = files.Wanted(NAME, data_dir)
    file = wanted.file(
      wanted.at(SAMPLES, f'data/{SAMPLES}', f'mmlongbench_doc/{SAMPLES}'), _GET
    )
    if file is None:
      wanted.missing(
        'the PDFs (once samples.json says which)', [wanted.root], _GET
      )
    wanted.check()
    assert file is not None
    content = files.read(file)
    records = self._parse(content, file)
    self._records = recorded.chosen(
      NAME, records, tasks, (records_lib.UNANSWERABLE,)
    )
    other, self._joined, self._placed = self._join(wanted.root, file, records)
    names = list(
      dict.fromkeys(r.document for r in self._records if not r.fault)
    )
    folders = [
      *wanted.at('documents', 'data/documents', ''),
      file.parent / 'documents',
    ]
    paths = files.holding(names, folders)
    if names and not paths:
      wanted.missing(
        f'all {len(names)} PDFs, {files.listed(names)}', folders, _GET
      )
    wanted.check()
    self._pdfs = pages_lib.Pdfs(paths, dpi)
    boxed = sum(self._key(r) in self._joined for r in self._records)
    self.remarks = (
      f'{boxed} of {len(self._records)} questions have boxes, of MMDocIR; of '
      'the others whole pages are the evidence',
    )
    self.fingerprint = recorded.digest(
      content,
      other,
      (pages, seed, sorted(tasks) if tasks else None),
      self._pdfs.identity(),
    )

  @staticmethod
  def _parse(content: bytes, file: pathlib.Path):
    try:
      records = records_lib.parse_doc(content)
    except records_lib.Malformed as e:
      raise errors.UserError(f'{file}: {e}; {_GET}') from e
    if all(r.task is None for r in records):
      why = f' ({records[0].fault})' if records else ''
      raise errors.UserError(
        f'{file}: none of {len(records)} records is a question{why}; {_GET}'
      )
    return records

  @staticmethod
  def _join(root, file, records):
    """(content, records by document and question, boxes by document)."""
    above = file.parent.parent
    joined: _Joined = {}
    content = b''
    for place in (
      *mmdocir.annotation_places(root),
      above / mmdocir.ANNOTATIONS,
      above / 'mmdocir' / mmdocir.ANNOTATIONS,
    ):
      if place.is_file():
        content = files.read(place)
        break
    placed: dict[str, list[pages_lib.Placed]] = {}
    for record in mmdocir_records.parse(content):
      if not record.fault:
        key = record.document, records_lib.asked(record.question)
        joined.setdefault(key, record)
        placed.setdefault(record.document, []).extend(
          layout.placed for layout in record.layouts
        )
    for record in records:
      if not record.fault:
        whole = pages_lib.whole(record.pages)
        placed.setdefault(record.document, []).extend(whole)
    return content, joined, placed

  @staticmethod
  def _key(record: records_lib.Record) -> tuple[str, str]:
    return record.document, records_lib.asked(record.question)

  def _example(self, record: records_lib.Record) -> example_lib.Example:
    where = f'{record.document}/{record.number}'
    return recorded.with_place(self._shown, where, record, where)

  def _shown(self, record, where) -> example_lib.Example:
    document = record.document
    other = self._joined.get(self._key(record))
    if record.kind == 'None':
      other = None
    if not self._pdfs.has(document):
      raise errors.Rejected(errors.Reason.MISSING_MEDIA, f'{document}; {_GET}')
    n_pages = self._pdfs.count(document)
    own, level = self._evidence(record, other, n_pages)
    pages = sorted({page for page, _ in own})
    pages_lib.check_window(pages, self._window)
    shown = pages_lib.window(pages, n_pages, self._window, self._seed, document)
    placed = [
      (page, corners)
      for page, corners in self._placed.get(document, ())
      if (corners == pages_lib.WHOLE) == (level != 'region')
    ]
    meta = {
      'document': document,
      'domain': record.domain,
      'question': record.number,
      'n_pages': n_pages,
      'pages': list(shown),
      'evidence_pages': pages,
      'labelled_pages': list(record.pages),
      'evidence_level': level,
      'answer_format': record.kind,
    }
    if record.kind == 'List':
      meta['answer_items'] = list(record.items) or [record.answer]
    return example_lib.Example(
      id=f'{NAME}/{self.split}/{where}',
      source=NAME,
      split=self.split,
      task=record.task or '',
      media=tuple(self._pdfs.picture(document, page) for page in shown),
      question=record.question,
      answers=(record.answer,),
      cluster=document,
      scorer='docqa',
      evidence=pages_lib.boxes(own, shown),
      distractors=pages_lib.boxes(pages_lib.others(placed, own), shown),
      kind='pages',
      meta=meta,
    )

  def _evidence(self, record, other, n_pages):
    """(boxes, level) of a question."""
    if other is not None:
      pages_lib.check_edition(
        self._pdfs,
        record.document,
        other.n_pages,
        ((layout.page, layout.page_size) for layout in other.layouts),
      )
      return [layout.placed for layout in other.layouts], 'region'
    if record.kind == 'None':
      return [], 'none'
    if not record.pages:
      raise errors.Rejected(
        errors.Reason.NO_EVIDENCE, 'evidence_pages is empty'
      )
    if record.pages[-1] >= n_pages:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'evidence page {record.pages[-1] + 1} is outside 1..{n_pages}',
      )
    return list(pages_lib.whole(record.pages)), 'page'
