"""MMDocIR: questions on PDF documents, with the rectangles that answer them.

An example is one question and a window of its document's pages: those on which
the answer lies and, up to `pages`, others of the same document, in the
document's order. Evidence boxes are the question's own rectangles, distractors
those of the other questions on the pages shown. What the annotations look like
and how their defects are judged: `corejax.data.mmdocir_records`.

Where files are looked for, in this order:

    annotations   DIR, DIR/mmdocir, DIR/dataset
    PDFs          DIR/documents, DIR, then the same two beside the annotations,
                  DIR/mmlongbench_doc/documents and, beside the folder of the
                  annotations, mmlongbench_doc/documents
    page table    MMDocIR_pages.parquet in DIR, or beside the annotations
    layouts       MMDocIR_layouts.parquet likewise; experiments.retrieve alone
                  needs it, with --layouts

A document whose PDF is there is drawn from it; the pages of others are those of
the page table. Its answers are free text, which the benchmark does not judge:
its own measure is the recall of pages and layouts (corejax.recall).
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import files
from corejax.data import layout_tables
from corejax.data import layouts as layouts_lib
from corejax.data import mmdocir_records
from corejax.data import page_tables
from corejax.data import pages as pages_lib
from corejax.data import recorded

ANNOTATIONS = 'MMDocIR_annotations.jsonl'
TABLE = 'MMDocIR_pages.parquet'
NAME = 'mmdocir'
SPLITS = ('test',)

_GET_ANNOTATIONS = (
  f'{ANNOTATIONS} is in github.com/MMDocRAG/MMDocIR, folder dataset'
)
_GET_PAGES = (
  'the PDFs are those of MMLongBench-Doc '
  '(github.com/mayubo2333/MMLongBench-Doc) and DocBench; all pages are in '
  f'{TABLE} of the data set MMDocIR on the Hugging Face hub'
)
_GET_LAYOUTS = (
  'it is in the data set MMDocIR on the Hugging Face hub; without --layouts '
  'pages alone are ranked'
)


def annotation_places(root: pathlib.Path) -> list[pathlib.Path]:
  """Where the annotations are looked for below a folder."""
  return [root / part / ANNOTATIONS for part in ('', 'mmdocir', 'dataset')]


def open_pages(
  wanted: files.Wanted, names: Sequence[str], beside: pathlib.Path, dpi: int
) -> pages_lib.Pages:
  """The PDFs and the page table; notes it in `wanted` if there is neither.

  Args:
    wanted: the folder.
    names: of the documents.
    beside: folder of the annotations.
    dpi: resolution at which PDFs are drawn.

  Raises:
    UserError: dpi out of range, a table that is none, or an extra missing.
  """
  root = wanted.root
  folders = [
    root / 'documents',
    root,
    beside / 'documents',
    beside,
    root / 'mmlongbench_doc' / 'documents',
    beside.parent / 'mmlongbench_doc' / 'documents',
  ]
  paths = files.holding(names, folders)
  pdfs = pages_lib.Pdfs(paths, dpi)
  tables = dict.fromkeys((root / TABLE, beside / TABLE))
  for table in tables:
    if table.is_file():
      return pages_lib.First([pdfs, page_tables.PageTable(table)])
  if names and not paths:
    wanted.missing(
      f'all {len(names)} PDFs, {files.listed(names)}, and {TABLE}',
      dict.fromkeys((*folders, *tables)),
      _GET_PAGES,
    )
  return pdfs


class MMDocIR(recorded.Recorded[mmdocir_records.Record]):
  """An example.Source; one record is one question, in the file's order.

  Attributes:
    name, split, fingerprint: as example.Source says. The fingerprint covers the
      annotations, the settings, the sizes of the PDFs (and of the page table)
      and what draws them.
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
    """Reads the annotations; documents are opened when an example is.

    Args:
      data_dir: holds the files, see the head of this module.
      split: 'test', the only one.
      pages: size of the window.
      dpi: resolution at which pages are drawn.
      seed: which pages stand beside those of the evidence.
      tasks: task names to keep (mmdocir_records.task_of), None for all. A
        record whose task cannot be told is kept, to be rejected.

    Raises:
      UserError: a setting out of range, no annotations, no page at all, an
        unknown task, or an extra missing. A document that is missing while
        others are there rejects its own questions only.
    """
    recorded.check_split(NAME, split, SPLITS)
    if pages < 1:
      raise errors.UserError(f'--pages={pages}: expected 1 or more')
    self.split = split
    self._window, self._seed = pages, seed
    wanted = files.Wanted(NAME, data_dir)
    file = wanted.file(annotation_places(wanted.root), _GET_ANNOTATIONS)
    if file is None:
      wanted.missing(
        'the documents (once the annotations say which)',
        [wanted.root],
        _GET_PAGES,
      )
    wanted.check()
    assert file is not None
    self._root, self._beside = wanted.root, file.parent
    content = files.read(file)
    records = mmdocir_records.parse(content)
    if not records:
      raise errors.UserError(f'{file}: holds no question; {_GET_ANNOTATIONS}')
    if not any(r.n_pages for r in records):
      raise errors.UserError(
        f'{file}: none of {len(records)} lines is an annotated document '
        f'({records[0].fault}); {_GET_ANNOTATIONS}'
      )
    self._records = recorded.chosen(NAME, records, tasks)
    names = dict.fromkeys(r.document for r in self._records if not r.fault)
    self._pages = open_pages(wanted, list(names), file.parent, dpi)
    wanted.check()
    # Those of questions that are not asked are boxes of the document too.
    self._layouts: dict[str, list[pages_lib.Placed]] = {}
    for record in records:
      self._layouts.setdefault(record.document, []).extend(
        layout.placed for layout in record.layouts
      )
    self.fingerprint = recorded.digest(
      content,
      (self._window, self._seed, sorted(tasks) if tasks else None),
      self._pages.identity(),
    )

  @functools.cached_property
  def _layout_table(self) -> layout_tables.LayoutTable:
    wanted = files.Wanted(NAME, self._root)
    name = layout_tables.FILE
    places = [self._root / name, self._beside / name]
    table = wanted.file(places, _GET_LAYOUTS)
    wanted.check()
    assert table is not None
    return layout_tables.LayoutTable(table)

  def layouts_identity(self) -> Sequence[object]:
    """What fingerprints cover of the layouts.

    Raises:
      UserError: their table is not there, or is none.
    """
    return self._layout_table.identity()

  def layouts(self, index: int) -> layouts_lib.Layouts:
    """All layouts of a record's document; pages are those of the document.

    Raises:
      UserError: as `layouts_identity`.
      Rejected: none of the document's rows is a layout on a page of it.
    """
    record = self._records[index]
    found = self._layout_table.of(record.document, record.n_pages)
    if not found.boxes:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'{record.document}: no layout in {layout_tables.FILE} (left out: '
        f'{dict(found.left_out) or "none"})',
      )
    own = {layout.page: layout.page_size for layout in record.layouts}
    return dataclasses.replace(found, sizes={**found.sizes, **own})

  def _example(self, record: mmdocir_records.Record) -> example_lib.Example:
    where = f'{record.document}/{record.number}'
    return recorded.with_place(self._shown, where, record, where)

  def _shown(self, record, where) -> example_lib.Example:
    pages_lib.check_window(record.pages, self._window)
    document = record.document
    if not self._pages.has(document):
      raise errors.Rejected(errors.Reason.MISSING_MEDIA, _GET_PAGES)
    pages_lib.check_edition(
      self._pages,
      document,
      record.n_pages,
      ((layout.page, layout.page_size) for layout in record.layouts),
    )
    shown = pages_lib.window(
      record.pages, record.n_pages, self._window, self._seed, document
    )
    own = [layout.placed for layout in record.layouts]
    others = pages_lib.others(self._layouts[document], own)
    return example_lib.Example(
      id=f'{NAME}/{self.split}/{where}',
      source=NAME,
      split=self.split,
      task=record.task or '',
      media=tuple(self._pages.picture(document, page) for page in shown),
      question=record.question,
      answers=(record.answer,),
      cluster=document,
      scorer='text',
      evidence=pages_lib.boxes(own, shown),
      distractors=pages_lib.boxes(others, shown),
      kind='pages',
      meta={
        'document': document,
        'domain': record.domain,
        'question': record.number,
        'n_pages': record.n_pages,
        'pages': list(shown),
        'evidence_pages': list(record.pages),
        'evidence_level': 'region',
      },
    )
