"""Layouts out of an invented parquet table, and through every source."""

import json
import math
import pathlib
import shutil

import pyarrow
import pytest

from corejax import errors
from corejax import recall
from corejax.data import layout_tables
from corejax.data import layouts as layouts_lib
from corejax.data import mmdocir
from corejax.data import sources
from helpers import mmdocir_tables
from helpers import pdfs

_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
_SIZE = [200.0, 300.0]
_GOOD = [
  (1, [20, 30, 80, 90], _SIZE),  # the square of question 0
  (1, [120, 200, 180, 220], _SIZE),
  (0, [0, 0, 201, 300.5], _SIZE),  # a little over the edge: cut off there
  (5, [10, 10, 60, 60], _SIZE),
]
# What is no layout, and why.
_BAD = [
  ((6, [10, 10, 20, 20], _SIZE), 'bad record'),  # a page that is not there
  ((-1, [10, 10, 20, 20], _SIZE), 'bad record'),
  ((None, [10, 10, 20, 20], _SIZE), 'bad record'),  # missing fields
  ((0, None, _SIZE), 'bad record'),
  ((0, [10, 10, 20, 20], None), 'bad record'),
  ((0, [10, 10, 20], _SIZE), 'bad box'),
  ((0, [10, math.nan, 20, 20], _SIZE), 'bad box'),
  ((0, [10, 10, math.inf, 20], _SIZE), 'bad box'),
  ((0, [20, 10, 10, 20], _SIZE), 'bad box'),  # inverted
  ((0, [10, 10, 10, 20], _SIZE), 'bad box'),  # empty
  ((0, [10, 10, 220, 20], _SIZE), 'bad box'),  # off the page
  ((0, [10, 10, 20, 20], [0.0, 300.0]), 'bad box'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """MMDocIR's invented annotations, PDF and table of layouts."""
  path = tmp_path_factory.mktemp('mmdocir')
  shutil.copy(_FIXTURES / 'mmdocir' / mmdocir.ANNOTATIONS, path)
  pdfs.write(path / 'invented.pdf', [[]] * 6)
  mmdocir_tables.layouts(
    path / layout_tables.FILE,
    {
      'other': [(0, [1, 1, 2, 2], _SIZE)],
      'invented': _GOOD[:2] + [row for row, _ in _BAD] + _GOOD[2:],
      'shorter.pdf': [row for row, _ in _BAD],
    },
  )
  return path


def test_every_row_is_a_layout_or_counted(folder):
  table = layout_tables.LayoutTable(folder / layout_tables.FILE)
  found = table.of('invented.pdf', 6)
  assert [box.media for box in found.boxes] == [1, 1, 0, 5]
  assert (found.boxes[0].x0, found.boxes[0].y1) == (20 / 200, 90 / 300)
  assert (found.boxes[2].x1, found.boxes[2].y1) == (1, 1)
  reasons = [reason for _, reason in _BAD]
  assert found.left_out == {r: reasons.count(r) for r in set(reasons)}
  assert len(found.boxes) + sum(found.left_out.values()) == 4 + len(_BAD)
  assert found.sizes == {page: (200.0, 300.0) for page in (0, 1, 5)}
  assert table.has('invented') and not table.has('none')
  assert table.of('none', 3).boxes == ()


@pytest.mark.parametrize('row, reason', _BAD)
def test_each_bad_row_has_its_reason(tmp_path, row, reason):
  path = mmdocir_tables.layouts(tmp_path / 'a.parquet', {'a': [row]})
  found = layout_tables.LayoutTable(path).of('a', 6)
  assert (found.boxes, found.left_out) == ((), {reason: 1})


def test_layouts_of_a_question(folder):
  source = mmdocir.MMDocIR(folder, pages=100)
  found = source.layouts(0)
  assert len(found.boxes) == 4
  # Areas in points: the square is found whole, the whole page covers nothing.
  evidence = found.placed(source[0].evidence)
  assert evidence[0].corners == pytest.approx((20, 30, 80, 90))
  candidates = found.placed(found.boxes)
  shares = [recall.layout_recall([c], evidence, 1) for c in candidates]
  assert shares == pytest.approx([1, 0, 0, 0])
  # Question 1 has evidence on pages 2 and 4, where no candidate lies.
  assert {2, 4} <= set(source.layouts(1).sizes)
  (bad,) = (i for i in range(len(source)) if source.cluster(i) == 'shorter.pdf')
  with pytest.raises(errors.Rejected, match='shorter.pdf: no layout in'):
    source.layouts(bad)


@pytest.mark.parametrize('options', [{}, {'evidence': 'whole'}, {'limit': 9}])
def test_wrappers_pass_the_record_on(folder, options):
  opened = sources.load('mmdocir', data_dir=str(folder), **options)
  assert layouts_lib.of(opened, 1) == mmdocir.MMDocIR(folder).layouts(1)
  assert layouts_lib.identity(opened)[0] == layout_tables.FILE


def test_a_fold_s_records_are_its_own(folder):
  """Half a split numbers its records anew."""
  for part in ('test:1/2', 'test:2/2'):
    half = sources.load('mmdocir', data_dir=str(folder), split=part)
    assert isinstance(half, sources.Fold)
    for index, record in enumerate(half._indices):
      if half.source.cluster(record) == 'invented.pdf':
        assert len(layouts_lib.of(half, index).boxes) == 4
        continue
      with pytest.raises(errors.Rejected, match='no layout in'):
        layouts_lib.of(half, index)


def test_a_table_that_is_not_there(tmp_path):
  for name in (mmdocir.ANNOTATIONS, 'invented.pdf'):
    (tmp_path / name).write_bytes(b'')
  shutil.copy(_FIXTURES / 'mmdocir' / mmdocir.ANNOTATIONS, tmp_path)
  source = mmdocir.MMDocIR(tmp_path)
  with pytest.raises(errors.UserError) as caught:
    layouts_lib.identity(source)
  for part in (layout_tables.FILE, str(tmp_path), 'Hugging Face', '--layouts'):
    assert part in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'columns, message',
  [
    ({'bbox': None}, 'no column bbox, there are doc_name, domain'),
    ({'page_id': ['0']}, 'column page_id is of type string, not an integer'),
    ({'page_id': [0.0]}, 'column page_id is of type double'),
    ({'bbox': ['[1, 1, 2, 2]']}, 'column bbox is of type string, not a list'),
    ({'page_size': [['1', '2']]}, 'column page_size is of type list<.*string>'),
    ({'doc_name': [3]}, 'doc_name holds other things than text'),
  ],
)
def test_a_table_that_is_none(tmp_path, columns, message):
  rows = {'a': [(0, [1, 1, 2, 2], _SIZE)]}
  path = mmdocir_tables.layouts(tmp_path / 'a.parquet', rows, **columns)
  with pytest.raises(errors.UserError, match=message):
    layout_tables.LayoutTable(path)


@pytest.mark.parametrize('kind', ['int32', 'float32', 'float64'])
def test_numbers_of_any_kind(tmp_path, kind):
  numbers = pyarrow.list_(getattr(pyarrow, kind)())
  path = mmdocir_tables.layouts(
    tmp_path / 'a.parquet',
    {'a': [(0, None, None)]},
    bbox=pyarrow.array([[1, 1, 2, 2]], numbers),
    page_size=pyarrow.array([[4, 4]], numbers),
    page_id=pyarrow.array([0], pyarrow.int32()),
  )
  (box,) = layout_tables.LayoutTable(path).of('a', 1).boxes
  assert (box.x0, box.y0, box.x1, box.y1) == (0.25, 0.25, 0.5, 0.5)


def test_damaged_files(tmp_path):
  rows = [(0, [1, 1, 2, 2], _SIZE)] * 3
  path = mmdocir_tables.layouts(tmp_path / 'a.parquet', {'a': rows, 'b': rows})
  whole = path.read_bytes()
  for data in (b'PAR1 and no more', whole[: len(whole) // 2], b''):
    path.write_bytes(data)
    with pytest.raises(errors.UserError, match='no table of layouts'):
      layout_tables.LayoutTable(path)
  path = mmdocir_tables.layouts(
    path, {'a': rows, 'b': rows}, doc_name=[*'aabbaa']
  )
  with pytest.raises(errors.UserError, match='a stands in two places, rows 0'):
    layout_tables.LayoutTable(path)


def test_scenes_have_cells():
  source = sources.load('scenes_pages', pages=8, limit=20)
  found = layouts_lib.of(source, 3)
  assert len(found.boxes) == 8 * 16 and not found.left_out
  for index in range(4):
    example = source[index]
    assert set(example.evidence + example.distractors) <= set(found.boxes)
  assert layouts_lib.identity(source)
  frames = sources.load('scenes_video', frames=8, split='test:1/2', limit=2)
  assert {box.media for box in layouts_lib.of(frames, 1).boxes} == {*range(8)}


def test_sources_without_layouts_say_so(tmp_path):
  shutil.copytree(_FIXTURES / 'refcocog', tmp_path / 'root')
  (tmp_path / 'root/plain.jpg').write_bytes(b'')
  folder = str(tmp_path / 'root')
  source = sources.load('refcocog', data_dir=folder, limit=1)
  with pytest.raises(
    errors.UserError, match='--layouts: refcocog does not say'
  ):
    layouts_lib.identity(source)
  assert json.dumps(list(layouts_lib.identity(sources.load('scenes_pages'))))
