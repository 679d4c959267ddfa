"""Parquet tables of pages and layouts, under mutation: `-m fuzz -s`.

Rows of layouts as the library hands them over get 100,000 inputs; whole files,
which pyarrow parses, 20,000 of each kind.
"""

import numpy as np
import pytest

from corejax import errors
from corejax.data import layout_tables
from corejax.data import page_tables
from helpers import mmdocir_tables
from helpers import mutation
from helpers import pictures

pytestmark = pytest.mark.fuzz

_SIZE = [200.0, 300.0]
_ROWS = [(n, [10 + n, 20, 80, 90 + n], _SIZE) for n in range(4)]
_PIECES = [b'PAR1', b'doc_name', b'bbox', b'\x15\x04', b'\x00' * 8, b'\xff' * 4]


def test_rows_of_layouts():
  def make(rng):
    return mutation.mutate_json(rng, list(rng.choice(_ROWS)))

  def parse(row):
    if not isinstance(row, list) or len(row) != 3:
      return 'no row'
    # Columns have types: what a row cannot hold is not handed over.
    page, box, size = row
    if isinstance(page, bool) or not isinstance(page, int | None):
      return 'no row'
    found, size = layout_tables.layout(page, box, size, 4)
    assert 0 <= found.media < 4 and min(size) > 0

  found = mutation.count_outcomes(
    'rows of layouts', make, parse, 100_000, allowed=(errors.Rejected,)
  )
  assert min(found['accepted'], found['bad record'], found['bad box']) > 1000


@pytest.mark.parametrize('compression', ['none', 'snappy'])
def test_tables_of_layouts(tmp_path, compression):
  path = tmp_path / 'a.parquet'
  documents = {'a.pdf': _ROWS, 'b': _ROWS[:2]}
  mmdocir_tables.layouts(path, documents, compression)
  good = path.read_bytes()

  def make(rng):
    return mutation.mutate_bytes(rng, good, _PIECES)

  def parse(data):
    path.write_bytes(data)
    table = layout_tables.LayoutTable(path)
    found = table.of('a.pdf', 4)
    return f'{min(len(found.boxes), 1)} layouts'

  found = mutation.count_outcomes(
    f'layouts, {compression}', make, parse, 20_000
  )
  assert min(found['1 layouts'], found['UserError']) > 100


@pytest.mark.parametrize('compression', ['none', 'snappy'])
def test_tables_of_pages(tmp_path, compression):
  page = pictures.jpeg(np.full((30, 20, 3), 99, np.uint8))
  path = mmdocir_tables.pages(
    tmp_path / 'a.parquet',
    [('a.pdf', page), ('a.pdf', page), ('b', page)],
    compression=compression,
  )
  good = path.read_bytes()

  def make(rng):
    return mutation.mutate_bytes(rng, good, _PIECES)

  def parse(data):
    path.write_bytes(data)
    table = page_tables.PageTable(path)
    for document in ('a.pdf', 'b'):
      if table.has(document):
        for number in range(min(table.count(document), 3)):
          assert table.picture(document, number)

  found = mutation.count_outcomes(
    f'pages, {compression}',
    make,
    parse,
    20_000,
    allowed=(errors.UserError, errors.Rejected),
  )
  assert min(found['accepted'], found['UserError']) > 100
