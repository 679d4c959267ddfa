"""Parquet files by pyarrow (extra `data`), and what it says of damaged ones."""

import importlib
import pathlib
from types import ModuleType
from typing import Any

from corejax import errors


def _module(name: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise errors.UserError(
      'parquet tables need pyarrow, which is not installed: '
      "pip install 'corejax[data]'"
    ) from e


def failures() -> tuple[type[Exception], ...]:
  """What reading a file that is damaged, or is none, may raise.

  pyarrow's own errors are not all of Python's kinds: one that a file asks for
  too much memory, or for a codec that is not there, is neither an OSError nor a
  ValueError.

  Raises:
    UserError: pyarrow is not installed.
  """
  _module('pyarrow.parquet')  # may lack where pyarrow itself does not
  return OSError, ValueError, _module('pyarrow').lib.ArrowException


def open_file(path: pathlib.Path) -> Any:
  """A pyarrow.parquet.ParquetFile.

  Raises:
    UserError: pyarrow is not installed.
    failures(): the file is not there, or is none.
  """
  # Not pre-buffered: that would hold a whole row group in memory.
  return _module('pyarrow.parquet').ParquetFile(
    path, pre_buffer=False, buffer_size=1 << 20
  )


def need_columns(file: Any, names: tuple[str, ...]) -> None:
  """Refuses a table that lacks a column.

  Raises:
    ValueError: it does.
  """
  there = file.schema_arrow.names
  for name in names:
    if name not in there:
      raise ValueError(f'no column {name}, there are {", ".join(there)}')


def document_key(name: str) -> str:
  """Names of documents stand in tables with and without their ending."""
  return name.removesuffix('.pdf')


def document_rows(names: list[Any]) -> dict[str, range]:
  """Document (document_key) -> its rows, which stand together.

  Args:
    names: column doc_name.

  Raises:
    ValueError: something else than text, or a document in two places.
  """
  if not all(isinstance(name, str) for name in names):
    raise ValueError('column doc_name holds other things than text')
  keys = [document_key(name) for name in names]
  rows: dict[str, range] = {}
  first = 0
  for row in range(1, len(keys) + 1):
    if row == len(keys) or keys[row] != keys[first]:
      if keys[first] in rows:
        raise ValueError(
          f'{keys[first]} stands in two places, rows {rows[keys[first]].start} '
          f'and {first}'
        )
      rows[keys[first]] = range(first, row)
      first = row
  return rows
