"""The MMDocIR reader on invented records and, where they are, real ones."""

import collections
import dataclasses
import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import documents
from corejax.data import mmdocir
from corejax.data import mmdocir_records
from corejax.data import pages as pages_lib
from corejax.data import sources
from helpers import pdfs

Reason = errors.Reason

_FIXTURE = (
  pathlib.Path(__file__).parents[1] / 'fixtures/mmdocir' / mmdocir.ANNOTATIONS
)

# What each record of the fixture is rejected for; None is a good one.
_EXPECTED = [
  None,
  None,
  None,
  (Reason.BAD_BOX, 'empty or inverted'),
  (Reason.BAD_BOX, 'reaches 20 points beyond'),
  (Reason.BAD_BOX, r'not on a page of page_id=\[0\]'),
  (Reason.BAD_RECORD, r'page 6 is outside 0\.\.5'),
  (Reason.EVIDENCE_TOO_LONG, 'on 5 pages, the window has 4'),
  (Reason.BAD_ANSWER, "A=''"),
  (Reason.NO_EVIDENCE, r'no box on \[0\]'),
  (Reason.BAD_RECORD, 'empty question'),
  (Reason.BAD_BOX, 'not 4 finite numbers'),
  None,
  None,
  (Reason.MISSING_MEDIA, 'gone.pdf'),
  (Reason.BAD_MEDIA, 'broken.pdf'),
  (Reason.BAD_RECORD, 'the PDF has 3 pages, annotated are 5'),
  (Reason.BAD_RECORD, '250x300 points in the PDF, annotated are 200x300'),
  (Reason.MEDIA_TOO_LARGE, 'huge.pdf: page 0 at 96 dpi'),
  (Reason.BAD_RECORD, 'not a bare file name'),
  (Reason.BAD_RECORD, 'line 8'),
  (Reason.BAD_RECORD, "line 9: no field 'page_indices'"),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The fixture's annotations with PDFs that fit them, or do not."""
  path = tmp_path_factory.mktemp('mmdocir')
  shutil.copy(_FIXTURE, path)
  (path / 'documents').mkdir()
  drawn = [[] for _ in range(6)]
  drawn[1] = [
    (pdfs.RED, (20, 30, 80, 90)),
    (pdfs.BLUE, (120, 200, 180, 220)),
  ]
  drawn[2] = [(pdfs.RED, (10, 10, 190, 40))]
  drawn[4] = [(pdfs.RED, (100, 200, 150, 280))]
  drawn[5] = [(pdfs.RED, (0, 0, 200, 300))]
  pdfs.write(path / 'documents/invented.pdf', drawn)
  pdfs.write(path / 'documents/shorter.pdf', [[]] * 3)
  pdfs.write(path / 'documents/wider.pdf', [[]] * 2, size=(250, 300))
  pdfs.write(path / 'documents/huge.pdf', [[]], size=(14400, 14400))
  (path / 'documents/broken.pdf').write_bytes(b'%PDF-1.4\nno more')
  return path


@pytest.fixture(scope='module')
def source(folder):
  return mmdocir.MMDocIR(folder)


def _outcome(source, index):
  try:
    return source[index]
  except errors.Rejected as e:
    return e


@pytest.mark.parametrize('index', range(len(_EXPECTED)))
def test_each_defect_is_rejected_for_its_reason(source, index):
  if _EXPECTED[index] is None:
    assert source[index].source == 'mmdocir'
    return
  reason, detail = _EXPECTED[index]
  with pytest.raises(errors.Rejected, match=detail) as caught:
    source[index]
  assert caught.value.reason is reason


def test_counts_add_up(source):
  assert len(source) == len(_EXPECTED)
  with pytest.raises(IndexError):
    source[len(source)]
  with pytest.raises(IndexError):
    source[-1]


def test_a_rejection_does_not_grow_when_repeated(source):
  first, second = _outcome(source, 3), _outcome(source, 3)
  assert first is not second
  assert str(first) == str(second)


def test_an_example_says_what_the_record_says(source):
  example = source[1]
  assert example.id == 'mmdocir/test/invented.pdf/1'
  assert example.question == 'Which two parts are named?'
  assert example.answers == ('wheel, axle',)
  assert example.task == 'table+text'
  assert example.cluster == 'invented.pdf'
  assert (example.kind, example.scorer) == ('pages', 'text')
  assert example.meta['evidence_pages'] == [2, 4]
  pages = example.meta['pages']
  assert len(example.media) == len(pages) == 4
  assert pages == sorted(pages) and {2, 4} <= set(pages)
  first, second = example.evidence
  assert pages[first.media] == 2 and pages[second.media] == 4
  assert dataclasses.astuple(first)[1:] == (10 / 200, 10 / 300, 0.95, 40 / 300)
  assert source[13].answers == ('2006',)


def _pixels(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert('RGB'), np.int32)


def _inside(box, shape):
  """bool [H, W]: pixels whose centre is in the box."""
  y, x = ((np.arange(size) + 0.5) / size for size in shape)
  in_y = (y > box.y0) & (y < box.y1)
  return in_y[:, None] & ((x > box.x0) & (x < box.x1))[None]


@pytest.mark.parametrize('index', [0, 1, 2])
@pytest.mark.parametrize('dpi', [72, 96, 150])
def test_evidence_is_where_the_red_is(folder, index, dpi):
  """Bit by bit but for the edge pixels, which pdfium blends."""
  example = mmdocir.MMDocIR(folder, dpi=dpi)[index]
  shown = [_pixels(png) for png in example.media]
  assert shown[0].shape == (np.ceil(300 * dpi / 72), np.ceil(200 * dpi / 72), 3)
  for media in {box.media for box in example.evidence}:
    red = (shown[media][..., 0] > 250) & (shown[media][..., 1] < 5)
    expected = np.zeros(red.shape, bool)
    for box in example.evidence:
      if box.media == media:
        expected |= _inside(box, red.shape)
    wrong = red != expected
    padded = np.pad(wrong, 1)
    # No wrong pixel has all four neighbours wrong: only thin edges differ.
    thick = (
      padded[1:-1, 1:-1]
      & padded[:-2, 1:-1]
      & padded[2:, 1:-1]
      & padded[1:-1, :-2]
      & padded[1:-1, 2:]
    )
    assert not thick.any()


def test_a_box_a_little_over_the_edge_is_cut_off(source):
  (box,) = source[2].evidence
  assert (box.x0, box.y0, box.x1, box.y1) == (0, 0, 1, 1)


def test_distractors_are_the_other_boxes_of_the_pages_shown(source):
  example = source[0]
  page = example.meta['pages'].index(1)
  on_page = [b for b in example.distractors if b.media == page]
  corners = {dataclasses.astuple(b)[1:] for b in on_page}
  # Not the same square annotated once more by question 12.
  assert corners == {
    (120 / 200, 10 / 300, 180 / 200, 60 / 300),
    (120 / 200, 200 / 300, 180 / 200, 220 / 300),
  }
  shown = example.meta['pages']
  assert all(0 <= b.media < len(shown) for b in example.distractors)
  assert not set(example.evidence) & set(example.distractors)


def test_everything_is_decided_by_the_settings(folder, source):
  again = mmdocir.MMDocIR(folder)
  assert again.fingerprint == source.fingerprint
  assert again[1] == source[1]
  others = [
    mmdocir.MMDocIR(folder, **setting)
    for setting in (
      {'pages': 3},
      {'dpi': 72},
      {'seed': 1},
      {'tasks': ['figure']},
    )
  ]
  prints = {s.fingerprint for s in (source, *others)}
  assert len(prints) == 5


def test_the_fingerprint_follows_the_files(folder, tmp_path, source):
  shutil.copytree(folder, tmp_path / 'copy')
  copied = mmdocir.MMDocIR(tmp_path / 'copy')
  assert copied.fingerprint == source.fingerprint
  pdfs.write(tmp_path / 'copy/documents/gone.pdf', [[]] * 3)
  assert mmdocir.MMDocIR(tmp_path / 'copy').fingerprint != source.fingerprint


def test_a_window_holds_its_pages_and_fills_up_in_one_order():
  for size in (1, 2, 5, 9):
    for first in range(7):
      shown = pages_lib.window([first], 7, size, 0, 'a.pdf')
      assert first in shown
      assert list(shown) == sorted(set(shown))
      assert len(shown) == min(size, 7)
  fillers = [
    tuple(p for p in pages_lib.window([n], 50, 4, 0, 'a.pdf') if p != n)
    for n in range(50)
  ]
  # Every question gets the same three, but for those that ask about one.
  assert collections.Counter(fillers).most_common(1)[0][1] == 47
  windows = {pages_lib.window([0], 50, 4, seed, 'a.pdf') for seed in range(9)}
  assert len(windows) == 9
  assert pages_lib.window([0], 50, 4, 0, 'b.pdf') not in windows


def test_tasks(folder):
  figure = mmdocir.MMDocIR(folder, tasks=['figure'])
  outcomes = [_outcome(figure, n) for n in range(len(figure))]
  tasks = [o.task for o in outcomes if not isinstance(o, errors.Rejected)]
  assert tasks == ['figure', 'figure']
  # Lines whose task nobody can tell are not dropped without a word.
  assert len(outcomes) == 2 + 3
  with pytest.raises(errors.UserError, match='--tasks=colour.*figure, layout'):
    mmdocir.MMDocIR(folder, tasks=['colour'])


@pytest.mark.parametrize(
  ('kind', 'task'),
  [
    ("['Pure-text (Plain-text)']", 'text'),
    ("['Generalized-text (Layout)']", 'layout'),
    ("['Table', 'Chart']", 'chart+table'),
    ("['Table', 'Table']", 'table'),
    ('[]', 'unknown'),
    ('', 'unknown'),
    ('Multi-Modal Thing', 'multi_modal_thing'),
    ("['unclosed", 'unclosed'),
    ('[1, [2]]', '1+2'),
  ],
)
def test_task_names(kind, task):
  assert mmdocir_records.task_of(kind) == task


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'split': 'train'}, '--split=train: .* test'),
    ({'pages': 0}, '--pages=0'),
    ({'dpi': 17}, '--dpi=17: expected 18 to 600'),
    ({'dpi': 601}, '--dpi=601'),
  ],
)
def test_settings_out_of_range(folder, setting, message):
  with pytest.raises(errors.UserError, match=message):
    mmdocir.MMDocIR(folder, **setting)


def test_missing_files_are_named_with_where_to_get_them(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    mmdocir.MMDocIR(tmp_path)
  for part in (
    str(tmp_path),
    mmdocir.ANNOTATIONS,
    'github.com',
    'scenes_pages',
  ):
    assert part in str(caught.value)
  assert '\n' not in str(caught.value)
  shutil.copy(_FIXTURE, tmp_path)
  with pytest.raises(errors.UserError) as caught:
    mmdocir.MMDocIR(tmp_path)
  for part in ('all 6 PDFs', 'invented.pdf', 'huge.pdf', 'MMLongBench-Doc'):
    assert part in str(caught.value)
  (tmp_path / mmdocir.ANNOTATIONS).write_text('\n')
  with pytest.raises(errors.UserError, match='holds no question'):
    mmdocir.MMDocIR(tmp_path)


@pytest.mark.parametrize(
  ('annotations', 'documents_at'),
  [
    ('.', '.'),
    ('mmdocir', 'documents'),
    ('mmdocir', 'mmdocir/documents'),
    ('dataset', 'dataset'),
    ('mmdocir', 'mmlongbench_doc/documents'),
    ('.', '../mmlongbench_doc/documents'),
  ],
)
def test_places(folder, source, tmp_path, annotations, documents_at):
  root = tmp_path / 'root'
  (root / annotations).mkdir(parents=True)
  shutil.copy(folder / mmdocir.ANNOTATIONS, root / annotations)
  target = root / documents_at
  target.mkdir(parents=True, exist_ok=True)
  shutil.copy(folder / 'documents/invented.pdf', target)
  assert mmdocir.MMDocIR(root)[0].media == source[0].media


def test_without_pypdfium2_the_extra_is_named(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pypdfium2', None)
  with pytest.raises(errors.UserError, match=r"pip install 'corejax\[data\]'"):
    mmdocir.MMDocIR(folder)


def test_sources_open_it(folder, source):
  opened = sources.load('mmdocir', data_dir=str(folder), limit=2)
  assert len(opened) == 2
  assert opened[1] == source[1]
  assert opened[0].meta['pages'] == source[0].meta['pages']


def test_rotated_pages_are_as_they_are_shown(tmp_path):
  path = pdfs.write(tmp_path / 'a.pdf', [[]], size=(200, 300), rotate=90)
  opened = documents.Documents(72)
  assert opened.size(path, 0) == (300, 200)
  assert _pixels(opened.render(path, 0)).shape == (200, 300, 3)


def test_only_so_many_documents_and_pages_stay_open(tmp_path):
  opened = documents.Documents(18)
  drawn = [[(pdfs.RED, (0, 0, n + 1, 300))] for n in range(80)]
  paths = [pdfs.write(tmp_path / f'{n}.pdf', drawn) for n in range(7)]
  first = opened.render(paths[0], 3)
  assert opened.render(paths[0], 3) is first
  for path in paths:
    for page in range(0, 80, 5):
      opened.render(path, page)
  assert len(opened._open) <= 4
  assert len(opened._pages) <= 64
  again = opened.render(paths[0], 3)
  assert again == first and again is not first


def test_nothing_is_said_of_documents_that_are_open_at_exit(tmp_path):
  path = pdfs.write(tmp_path / 'a.pdf', [[]])
  program = (
    'import sys, weakref\n'
    # As jax has it: finalizers of later objects then run too late.
    'weakref.finalize(sys, int)\n'
    'from corejax.data import documents\n'
    'opened = documents.Documents(18)\n'
    'opened.close()\n'
    'opened.render(sys.argv[1], 0)\n'
    'sys.keep = opened, opened._open\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, str(path)], capture_output=True, text=True
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_a_page_that_is_not_there(tmp_path):
  path = pdfs.write(tmp_path / 'a.pdf', [[]])
  opened = documents.Documents()
  for page in (-1, 1):
    with pytest.raises(errors.Rejected, match=f'page {page} is outside 0..0'):
      opened.render(path, page)
  with pytest.raises(errors.Rejected) as caught:
    opened.count(tmp_path / 'b.pdf')
  assert caught.value.reason is Reason.MISSING_MEDIA


def test_real_excerpts(samples):
  """The ten documents at hand: 66 questions, one on five pages."""
  source = mmdocir.MMDocIR(samples, dpi=36)
  outcomes = [_outcome(source, n) for n in range(len(source))]
  reasons = collections.Counter(
    o.reason for o in outcomes if isinstance(o, errors.Rejected)
  )
  assert len(outcomes) == 80
  assert reasons == {Reason.MISSING_MEDIA: 14, Reason.EVIDENCE_TOO_LONG: 1}
  for example in outcomes:
    if isinstance(example, errors.Rejected):
      continue
    for box in example.evidence:
      pixels = _pixels(example.media[box.media])
      crop = pixels[_inside(box, pixels.shape[:2])]
      # A rectangle that somebody marked shows something.
      assert crop.std() > 2, example.id
