"""The layouts of all documents out of MMDocIR_layouts.parquet.

One row a layout, the rows of a document together; read are the columns

    doc_name    text, with or without .pdf
    page_id     integer, from 0 within the document
    bbox        list of 4 numbers: x0, y0, x1, y1, PDF points from the top left
    page_size   list of 2 numbers: width, height of the page in points

and neither the pictures nor the texts, so that of the published file (170,338
rows) a few megabytes are held. A row that is no layout (a page that is not
there, a box that is empty, inverted, not finite or off its page) is left out of
its document's candidates and counted. By pyarrow (extra `data`).
"""

import collections
from collections.abc import Sequence
import os
import pathlib
from typing import Any

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import fields
from corejax.data import layouts as layouts_lib
from corejax.data import mmdocir_records
from corejax.data import parquet

FILE = 'MMDocIR_layouts.parquet'
_NAME, _PAGE, _BOX, _SIZE = 'doc_name', 'page_id', 'bbox', 'page_size'


class LayoutTable:
  """All layouts, document by document."""

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the table, but for pictures and texts.

    Args:
      path: of the file.

    Raises:
      UserError: pyarrow is not installed, the file is no parquet, lacks a
        column or has one of another type, or holds a document in two places.
    """
    self._path = pathlib.Path(path)
    try:
      self._n_bytes = self._path.stat().st_size
      self._read()
    except parquet.failures() as e:
      raise errors.UserError(
        f'{self._path}: no table of layouts ({e}); fetch it again from the '
        'data set MMDocIR on the Hugging Face hub'
      ) from e

  def _read(self) -> None:
    file = parquet.open_file(self._path)
    columns = (_NAME, _PAGE, _BOX, _SIZE)
    parquet.need_columns(file, columns)
    for name, wanted in (
      (_PAGE, 'an integer'),
      (_BOX, 'a list of numbers'),
      (_SIZE, 'a list of numbers'),
    ):
      kind = str(file.schema_arrow.field(name).type)
      inner = kind[kind.find(': ') + 2 : -1] if 'list<' in kind else ''
      if not (_is_integer(kind) if name == _PAGE else _is_number(inner)):
        raise ValueError(f'column {name} is of type {kind}, not {wanted}')
    table = file.read(columns=list(columns))
    self._rows = parquet.document_rows(table.column(_NAME).to_pylist())
    self._pages, self._boxes, self._sizes = (
      table.column(name) for name in columns[1:]
    )
    for name in columns[1:]:
      table.column(name).validate(full=True)

  def has(self, document: str) -> bool:
    """Has it rows?"""
    return parquet.document_key(document) in self._rows

  def of(self, document: str, n_pages: int) -> layouts_lib.Layouts:
    """The layouts of a document.

    Args:
      document: its name; without rows it has no layouts.
      n_pages: that it has.
    """
    rows = self._rows.get(parquet.document_key(document), range(0))
    boxes, sizes = [], {}
    left_out: collections.Counter[str] = collections.Counter()
    columns = (self._pages, self._boxes, self._sizes)
    raw = (c.slice(rows.start, len(rows)).to_pylist() for c in columns)
    for page, box, size in zip(*raw):
      try:
        found, size = layout(page, box, size, n_pages)
      except errors.Rejected as e:
        left_out[str(e.reason)] += 1
        continue
      boxes.append(found)
      sizes.setdefault(found.media, size)
    return layouts_lib.Layouts(tuple(boxes), sizes, dict(left_out))

  def identity(self) -> Sequence[object]:
    """What fingerprints cover."""
    return [self._path.name, self._n_bytes]


def _is_integer(kind: str) -> bool:
  return kind.removeprefix('u') in ('int8', 'int16', 'int32', 'int64')


def _is_number(kind: str) -> bool:
  return _is_integer(kind) or kind in ('halffloat', 'float', 'double')


def layout(
  page: Any, box: Any, size: Any, n_pages: int
) -> tuple[example_lib.Box, tuple[float, float]]:
  """(box on its page, (width, height) of the page in points) of a row.

  Args:
    page, box, size: page_id, bbox and page_size, None where the row has none.
    n_pages: of the document.

  Raises:
    Rejected: it is no layout.
  """
  if not isinstance(page, int) or not 0 <= page < n_pages:
    raise fields.bad(
      f'page_id={fields.shown(page)} is outside 0..{n_pages - 1}'
    )
  raw = {_BOX: box, _SIZE: size}
  x0, y0, x1, y1 = fields.numbers(raw, _BOX, 4)
  width, height = fields.numbers(raw, _SIZE, 2)
  corners = fields.shares(
    (x0, y0, x1, y1),
    (width, height),
    f'on page {page}',
    mmdocir_records.TOLERANCE_POINTS,
    'points',
  )
  return example_lib.Box(page, *corners), (width, height)
