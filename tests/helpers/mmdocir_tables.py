"""Invented parquet tables in the layout that MMDocIR publishes."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import pyarrow
from pyarrow import parquet

# (page_id, bbox, page_size) of a layout; None where the row has none.
Row = tuple[Any, Any, Any]


def layouts(
  path: pathlib.Path,
  documents: Mapping[str, Sequence[Row]],
  compression: str = 'snappy',
  **columns: Any,
) -> pathlib.Path:
  """Writes a table of layouts.

  Args:
    path: of the file.
    documents: name -> its rows.
    compression: of the file.
    **columns: replace whole columns; None takes one out.
  """
  rows = [(name, *row) for name, of in documents.items() for row in of]
  numbers = pyarrow.list_(pyarrow.float64())
  table = {
    'doc_name': pyarrow.array([r[0] for r in rows], pyarrow.string()),
    'domain': ['Brochure'] * len(rows),
    'type': ['text'] * len(rows),
    'layout_id': list(range(len(rows))),
    'page_id': pyarrow.array([r[1] for r in rows], pyarrow.int64()),
    'image_path': ['x.jpg'] * len(rows),
    'image_binary': [b'x'] * len(rows),
    'text': ['some words'] * len(rows),
    'ocr_text': [''] * len(rows),
    'vlm_text': [''] * len(rows),
    'bbox': pyarrow.array([r[2] for r in rows], numbers),
    'page_size': pyarrow.array([r[3] for r in rows], numbers),
  } | columns
  table = {name: column for name, column in table.items() if column is not None}
  parquet.write_table(pyarrow.table(table), path, compression=compression)
  return path


def pages(
  path: pathlib.Path, shown: Sequence[tuple[str, bytes | None]], **options
) -> pathlib.Path:
  """Writes a table of pages.

  Args:
    path: of the file.
    shown: (document, picture) in the order of the rows.
    **options: of pyarrow's write_table.
  """
  names, pictures = zip(*shown)
  table = pyarrow.table(
    {
      'doc_name': pyarrow.array(names, pyarrow.string()),
      'domain': ['Brochure'] * len(names),
      'passage_id': [str(n) for n in range(len(names))],
      'image_path': ['x.jpg'] * len(names),
      'image_binary': pyarrow.array(pictures, pyarrow.binary()),
      'ocr_text': ['x'] * len(names),
      'vlm_text': ['x'] * len(names),
    }
  )
  parquet.write_table(table, path, **options)
  return path
