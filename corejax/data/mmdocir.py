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
"""

from collections.abc import Sequence
import hashlib
import os
import pathlib

from corejax import errors
from corejax.data import documents
from corejax.data import example as example_lib
from corejax.data import mmdocir_records

ANNOTATIONS = 'MMDocIR_annotations.jsonl'
NAME = 'mmdocir'
SPLITS = ('test',)

_ELSEWHERE = '--data=scenes_pages needs no files'
_GET_ANNOTATIONS = (
  f'{ANNOTATIONS} is in github.com/MMDocRAG/MMDocIR, folder dataset'
)
_GET_PDFS = (
  'the PDFs are those of MMLongBench-Doc '
  '(github.com/mayubo2333/MMLongBench-Doc) and DocBench'
)
# A box that shares more than this with a piece of evidence (of the smaller of
# the two) is the evidence annotated again, not something else.
_SAME = 0.5


def _annotation_file(data_dir: pathlib.Path) -> pathlib.Path:
  places = [
    data_dir / part / ANNOTATIONS for part in ('', 'mmdocir', 'dataset')
  ]
  for place in places:
    if place.is_file():
      return place
  raise errors.UserError(
    f'--data_dir={data_dir}: missing {ANNOTATIONS} (looked for '
    f'{", ".join(map(str, places))}); {_GET_ANNOTATIONS}; {_ELSEWHERE}'
  )


def _folders(data_dir: pathlib.Path, beside: pathlib.Path):
  candidates = (
    data_dir / 'documents',
    data_dir,
    beside / 'documents',
    beside,
    data_dir / 'mmlongbench_doc' / 'documents',
    beside.parent / 'mmlongbench_doc' / 'documents',
  )
  return [f for f in dict.fromkeys(candidates) if f.is_dir()]


def _find(names: Sequence[str], folders) -> dict[str, pathlib.Path]:
  """Where each PDF lies; those that lie nowhere are left out."""
  found = {}
  for name in names:
    for folder in folders:
      if (folder / name).is_file():
        found[name] = folder / name
        break
  return found


def _listed(names: Sequence[str], limit: int = 10) -> str:
  text = ', '.join(names[:limit])
  more = len(names) - limit
  return f'{text} and {more} more' if more > 0 else text


def window(
  pages: Sequence[int], n_pages: int, size: int, seed: int, document: str
) -> tuple[int, ...]:
  """Which pages of a document are shown, ascending.

  The pages that fill a window up come in one order for all questions of a
  document, so that questions share pages wherever they can.

  Args:
    pages: that must be shown, at most `size`.
    n_pages: of the document.
    size: of the window; a shorter document is shown whole.
    seed: another one takes other pages.
    document: name of the document.
  """

  def key(page):
    return hashlib.sha256(f'{seed} {document} {page}'.encode()).digest()

  others = sorted(set(range(n_pages)) - set(pages), key=key)
  return tuple(sorted([*pages, *others[: size - len(pages)]]))


def _overlap(a: mmdocir_records.Layout, b: mmdocir_records.Layout) -> float:
  """Shared area as a share of the smaller rectangle."""
  if a.page != b.page:
    return 0.0
  ax0, ay0, ax1, ay1 = a.corners
  bx0, by0, bx1, by1 = b.corners
  width = min(ax1, bx1) - max(ax0, bx0)
  height = min(ay1, by1) - max(ay0, by0)
  smaller = min((ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0))
  return max(width, 0.0) * max(height, 0.0) / smaller


class MMDocIR:
  """An example.Source; one record is one question, in the file's order.

  Attributes:
    name, split, fingerprint: as example.Source says. The fingerprint covers the
      annotations, the settings, the sizes of the PDFs and what draws them.
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
      tasks: task names to keep (mmdocir_records.task_of), None for all. A
        record whose task cannot be told is kept, to be rejected.

    Raises:
      UserError: a setting out of range, no annotations, no PDF at all, an
        unknown task, or pypdfium2 missing. A PDF that is missing while others
        are there rejects its own questions only.
    """
    if split not in SPLITS:
      raise errors.UserError(
        f'--split={split}: mmdocir has the split test alone'
      )
    if pages < 1:
      raise errors.UserError(f'--pages={pages}: expected 1 or more')
    self.split = split
    self._window, self._seed = pages, seed
    self._documents = documents.Documents(dpi)
    try:
      folder = pathlib.Path(data_dir).expanduser()
      file = _annotation_file(folder)
    except (OSError, RuntimeError) as e:  # no such user, too long a name
      raise errors.UserError(
        f'--data_dir={data_dir}: no such folder can be ({e}); name the one '
        f'that holds {ANNOTATIONS}'
      ) from e
    try:
      content = file.read_bytes()
    except OSError as e:
      raise errors.UserError(
        f'{file}: cannot be read ({e.strerror}); let it be read'
      ) from e
    records = mmdocir_records.parse(content)
    self._records = self._chosen(records, tasks, file)
    names = list(
      dict.fromkeys(r.document for r in self._records if not r.fault)
    )
    folders = _folders(folder, file.parent)
    self._paths = _find(names, folders)
    if names and not self._paths:
      raise errors.UserError(
        f'--data_dir={data_dir}: missing all {len(names)} PDFs, '
        f'{_listed(names)} (looked in {", ".join(map(str, folders))}); '
        f'{_GET_PDFS}; {_ELSEWHERE}'
      )
    # Those of questions that are not asked are boxes of the document too.
    self._layouts: dict[str, list[mmdocir_records.Layout]] = {}
    for record in records:
      self._layouts.setdefault(record.document, []).extend(record.layouts)
    self.fingerprint = self._digest(content, tasks)

  @staticmethod
  def _chosen(records, tasks, file):
    if not records:
      raise errors.UserError(f'{file}: holds no question; {_GET_ANNOTATIONS}')
    if not any(r.n_pages for r in records):
      raise errors.UserError(
        f'{file}: none of {len(records)} lines is an annotated document '
        f'({records[0].fault}); {_GET_ANNOTATIONS}'
      )
    there = sorted({r.task for r in records if r.task})
    for task in tasks or ():
      if task not in there:
        raise errors.UserError(
          f'--tasks={task}: mmdocir has no such task here; there are '
          f'{", ".join(there)}'
        )
    if not tasks:
      return records
    return [r for r in records if r.task is None or r.task in tasks]

  def _digest(self, content, tasks):
    parts = [
      hashlib.sha256(content).hexdigest(),
      f'{self._window} {self._documents.dpi} {self._seed}',
      repr(sorted(tasks) if tasks else None),
      documents.backend(),
    ]
    for name, path in sorted(self._paths.items()):
      parts.append(f'{name} {path.stat().st_size}')
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:12]

  def __len__(self) -> int:
    return len(self._records)

  def cluster(self, index: int) -> str:
    """The cluster of the example at this index; reads no PDF."""
    return self._records[index].document

  def __getitem__(self, index: int) -> example_lib.Example:
    """The example.

    Raises:
      IndexError: there are fewer records.
      Rejected: the record, its boxes or its PDF cannot be used.
    """
    if not 0 <= index < len(self):
      raise IndexError(f'{NAME}: {index} is outside 0..{len(self) - 1}')
    record = self._records[index]
    if record.fault:
      # A new one: raised twice, an exception grows by its own traceback.
      raise errors.Rejected(record.fault.reason, record.fault.detail)
    where = f'{record.document}/{record.number}'
    if len(record.pages) > self._window:
      raise errors.Rejected(
        errors.Reason.EVIDENCE_TOO_LONG,
        f'{where}: on {len(record.pages)} pages, the window has '
        f'{self._window}; raise --pages',
      )
    if record.document not in self._paths:
      raise errors.Rejected(
        errors.Reason.MISSING_MEDIA, f'{where}: {_GET_PDFS}'
      )
    path = self._paths[record.document]
    self._check_edition(record, path, where)
    shown = window(
      record.pages, record.n_pages, self._window, self._seed, record.document
    )
    return example_lib.Example(
      id=f'{NAME}/{self.split}/{where}',
      source=NAME,
      split=self.split,
      task=record.task or '',
      media=tuple(self._documents.render(path, page) for page in shown),
      question=record.question,
      answers=(record.answer,),
      cluster=record.document,
      scorer='text',
      evidence=self._boxes(record.layouts, shown),
      distractors=self._boxes(self._others(record), shown),
      kind='pages',
      meta={
        'document': record.document,
        'domain': record.domain,
        'question': record.number,
        'n_pages': record.n_pages,
        'pages': list(shown),
        'evidence_pages': list(record.pages),
      },
    )

  def _check_edition(self, record, path, where):
    """Boxes of one edition of a document mean nothing on another."""
    there = self._documents.count(path)
    if there != record.n_pages:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'{where}: the PDF has {there} pages, annotated are {record.n_pages}: '
        'another edition',
      )
    for layout in record.layouts:
      size = self._documents.size(path, layout.page)
      apart = max(abs(a - b) for a, b in zip(size, layout.page_size))
      if apart > mmdocir_records.TOLERANCE_POINTS:
        raise errors.Rejected(
          errors.Reason.BAD_RECORD,
          f'{where}: page {layout.page} has {size[0]:g}x{size[1]:g} points in '
          f'the PDF, annotated are {layout.page_size[0]:g}x'
          f'{layout.page_size[1]:g}: another edition',
        )

  def _others(self, record):
    return [
      layout
      for layout in dict.fromkeys(self._layouts[record.document])
      if all(_overlap(layout, own) <= _SAME for own in record.layouts)
    ]

  @staticmethod
  def _boxes(layouts, shown):
    return tuple(
      example_lib.Box(shown.index(layout.page), *layout.corners)
      for layout in layouts
      if layout.page in shown
    )
