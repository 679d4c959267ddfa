"""Page pictures out of a parquet table: MMDocIR_pages.parquet.

One row a page, the rows of a document together and in its order; read are the
columns `doc_name` and `image_binary` (JPEG, or PNG). The published file has
20,395 rows and is read as a stream, from the row group in which a document
begins: asking for documents in the file's order, as examples do, reads it once;
asking backwards starts a row group over. By pyarrow (extra `data`).
"""

from collections.abc import Iterator, Sequence
import os
import pathlib
import threading
from typing import Any

from corejax import errors
from corejax.data import parquet
from corejax.data import pictures

_NAME, _PICTURE = 'doc_name', 'image_binary'
_BATCH_ROWS = 16
_KEPT = 2  # documents whose pages stay in memory


class PageTable:
  """A pages.Pages; `dpi` does not apply, pictures are given as they are."""

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the names of all rows.

    Args:
      path: of the table.

    Raises:
      UserError: pyarrow is not installed, the file is no parquet, lacks a
        column, or holds a document in two places.
    """
    self._path = pathlib.Path(path)
    self._lock = threading.Lock()
    self._kept: dict[str, dict[int, bytes]] = {}
    self._next = 0  # the row that comes next out of the stream
    self._last: Any = ()  # the rows before it, of the last batch
    self._stream: Iterator[Any] | None = None
    self._failures = parquet.failures()
    try:
      self._file = parquet.open_file(self._path)
      self._rows = self._read_rows()
    except self._failures as e:
      raise errors.UserError(
        f'{self._path}: no table of pages ({e}); fetch it again from the data '
        'set MMDocIR on the Hugging Face hub'
      ) from e
    self._groups = [0]
    for group in range(self._file.metadata.num_row_groups):
      rows = self._file.metadata.row_group(group).num_rows
      self._groups.append(self._groups[-1] + rows)

  def _read_rows(self) -> dict[str, range]:
    parquet.need_columns(self._file, (_NAME, _PICTURE))
    kind = str(self._file.schema_arrow.field(_PICTURE).type)
    if kind not in ('binary', 'large_binary'):
      raise ValueError(f'column {_PICTURE} is of type {kind}, not binary')
    names = self._file.read(columns=[_NAME]).column(0).to_pylist()
    return parquet.document_rows(names)

  def has(self, document: str) -> bool:
    return parquet.document_key(document) in self._rows

  def count(self, document: str) -> int:
    return len(self._rows[parquet.document_key(document)])

  def check_size(
    self, document: str, page: int, size: tuple[float, float]
  ) -> None:
    """Compares the shape: a picture does not tell its points."""
    whole = round(100 * size[0]), round(100 * size[1])
    where = f'page {page}'
    pictures.check_size(self.picture(document, page), whole, where, exact=False)

  def picture(self, document: str, page: int) -> bytes:
    rows = self._rows[parquet.document_key(document)]
    if not 0 <= page < len(rows):
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'{document}: page {page} is outside 0..{len(rows) - 1}',
      )
    with self._lock:
      try:
        data = self._read(parquet.document_key(document), rows, rows[page])
      except self._failures as e:
        self._stream = None
        raise errors.Rejected(
          errors.Reason.BAD_MEDIA, f'{self._path.name}: row {rows[page]}: {e}'
        ) from e
    pictures.header(data)
    return data

  def _read(self, document: str, rows: range, row: int) -> bytes:
    if document not in self._kept:
      while len(self._kept) >= _KEPT:
        del self._kept[next(iter(self._kept))]
      self._kept[document] = {}
    kept = self._kept[document]
    if row in kept:
      return kept[row]
    # Behind us are rows that were dropped, unless they are this document's or
    # of the last batch, which a document before it may have had read.
    missed = next(r for r in rows if r not in kept)
    if self._stream is None or self._next - len(self._last) > missed:
      self._start(missed)
    assert self._stream is not None
    self._keep(rows, kept)
    while row not in kept:
      batch = next(self._stream, None)
      if batch is None:
        raise ValueError(f'the table ends before row {row}')
      self._last = batch.column(0)
      self._next += len(self._last)
      self._keep(rows, kept)
    return kept[row]

  def _keep(self, rows: range, kept: dict[int, bytes]) -> None:
    """Takes a document's pages out of the last batch."""
    begin = self._next - len(self._last)
    for n in range(max(begin, rows.start), min(self._next, rows.stop)):
      value = self._last[n - begin].as_py()
      kept[n] = value if isinstance(value, bytes) else b''

  def _start(self, row: int) -> None:
    """Begins the stream at the row group that holds a row."""
    group = next(g for g, end in enumerate(self._groups[1:]) if row < end)
    self._next, self._last = self._groups[group], ()
    self._stream = self._file.iter_batches(
      batch_size=_BATCH_ROWS,
      row_groups=range(group, len(self._groups) - 1),
      columns=[_PICTURE],
    )

  def identity(self) -> Sequence[object]:
    return [self._path.name, self._path.stat().st_size]
