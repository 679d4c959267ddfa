"""Pages out of a parquet table, and MMDocIR on them instead of PDFs."""

import pathlib
import shutil
import sys

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from corejax import errors
from corejax.data import mmdocir
from corejax.data import page_tables
from corejax.models import images
from helpers import pictures

Reason = errors.Reason


def _page(shade, size=(30, 20)):
  height, width = size
  return pictures.png(np.full((height, width, 3), shade, np.uint8))


def _write(path, pages, **options):
  """pages: (document, picture) in the order of the rows."""
  names, shown = zip(*pages)
  table = pyarrow.table(
    {
      'doc_name': pyarrow.array(names, pyarrow.string()),
      'image_binary': pyarrow.array(shown, pyarrow.binary()),
      'ocr_text': ['x'] * len(names),
    }
  )
  parquet.write_table(table, path, **options)
  return path


def _shade(data):
  return int(images.decode(data)[0, 0, 0])


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  pages = [
    (f'{name}.pdf', _page(10 * n + page))
    for n, name in enumerate('abcde')
    for page in range(9)
  ]
  path = tmp_path_factory.mktemp('table') / 'pages.parquet'
  return page_tables.PageTable(_write(path, pages, row_group_size=20))


def test_every_page_in_any_order(table):
  assert table.count('b.pdf') == 9 and table.has('b')
  assert not table.has('x.pdf')
  wanted = [(n, page) for n in range(5) for page in range(9)]
  shuffled = list(wanted)
  np.random.default_rng(0).shuffle(shuffled)
  for order in (wanted, wanted[::-1], shuffled):
    for n, page in order:
      assert _shade(table.picture(f'{"abcde"[n]}.pdf', page)) == 10 * n + page


def test_it_reads_forward_once(table, monkeypatch):
  starts = []
  begin = page_tables.PageTable._start
  monkeypatch.setattr(
    page_tables.PageTable,
    '_start',
    lambda self, row: (starts.append(row), begin(self, row)),
  )
  fresh = page_tables.PageTable(table._path)
  for n in range(5):
    for page in (3, 0, 8):
      fresh.picture('abcde'[n], page)
  assert starts == [0]
  fresh.picture('a', 0)
  assert starts == [0, 0]
  assert len(fresh._kept) == 2


def test_pages_that_are_not_there_or_are_none(tmp_path):
  stump = pictures.jpeg(np.zeros((20, 30, 3), np.uint8))[:80]
  path = _write(
    tmp_path / 'a.parquet',
    [('a', _page(1)), ('a', stump), ('a', None), ('b', _page(2))],
  )
  table = page_tables.PageTable(path)
  for page, reason in (
    (-1, Reason.BAD_RECORD),
    (3, Reason.BAD_RECORD),
    (1, Reason.BAD_MEDIA),
    (2, Reason.BAD_MEDIA),
  ):
    with pytest.raises(errors.Rejected) as caught:
      table.picture('a', page)
    assert caught.value.reason is reason
  assert _shade(table.picture('b', 0)) == 2
  table.check_size('a', 0, (200.0, 300.0))
  with pytest.raises(errors.Rejected, match='page 0: .* of 20x30 pixels'):
    table.check_size('a', 0, (300.0, 200.0))


def test_a_table_that_is_none(tmp_path):
  path = tmp_path / 'a.parquet'
  path.write_bytes(b'PAR1 and no more')
  with pytest.raises(errors.UserError, match='no table of pages'):
    page_tables.PageTable(path)
  _write(path, [('a', _page(1)), ('b', _page(1)), ('a', _page(1))])
  with pytest.raises(errors.UserError, match='a stands in two places, rows 0'):
    page_tables.PageTable(path)
  for columns, message in (
    ({'doc_name': ['a']}, 'no column image_binary, there are doc_name'),
    ({'doc_name': ['a'], 'image_binary': ['x']}, 'of type string, not binary'),
    ({'doc_name': [1], 'image_binary': [b'x']}, 'other things than text'),
  ):
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(errors.UserError, match=message):
      page_tables.PageTable(path)


def test_a_table_cut_short(tmp_path):
  """Damage behind the head and before the foot shows when a page is read."""
  rng = np.random.default_rng(0)
  pages = [('a', pictures.png(pictures.noise(rng, 40, 40))) for _ in range(9)]
  path = _write(tmp_path / 'a.parquet', pages, compression='none')
  table = page_tables.PageTable(path)
  data = bytearray(path.read_bytes())
  data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 4)
  path.write_bytes(data)
  outcomes = set()
  for page in range(9):
    try:
      table.picture('a', page)
      outcomes.add(None)
    except errors.Rejected as e:
      outcomes.add(e.reason)
  assert Reason.BAD_MEDIA in outcomes


def test_mmdocir_without_pdfs(tmp_path):
  fixture = (
    pathlib.Path(__file__).parents[1] / 'fixtures/mmdocir' / mmdocir.ANNOTATIONS
  )
  shutil.copy(fixture, tmp_path)
  pages = [('invented', _page(9 * n, (450, 300))) for n in range(6)]
  pages += [('wider', _page(1, (300, 250))) for _ in range(2)]
  _write(tmp_path / mmdocir.TABLE, pages)
  source = mmdocir.MMDocIR(tmp_path)
  example = source[1]
  assert [_shade(m) for m in example.media] == [
    9 * page for page in example.meta['pages']
  ]
  assert {example.meta['pages'][b.media] for b in example.evidence} == {2, 4}
  reasons = []
  for n in range(len(source)):
    try:
      source[n]
    except errors.Rejected as e:
      reasons.append(e.detail)
  assert any('250x300 pixels, annotated are 20000x30000' in r for r in reasons)
  assert any(mmdocir.TABLE in r for r in reasons)  # a document of neither
  before = source.fingerprint
  _write(tmp_path / mmdocir.TABLE, pages[:6])
  assert mmdocir.MMDocIR(tmp_path).fingerprint != before


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
  path = _write(tmp_path / 'a.parquet', [('a', _page(1))])
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  with pytest.raises(errors.UserError, match=r"pip install 'corejax\[data\]'"):
    page_tables.PageTable(path)
