"""Pages of PDF documents as pictures, by pypdfium2 (extra `data`)."""

import atexit
import collections
from concurrent import futures
import importlib
import io
import os
import pathlib
import threading
from types import ModuleType
from typing import Any
import weakref

from corejax import errors

POINTS_PER_INCH = 72
MIN_DPI, MAX_DPI = 18, 600
MAX_BYTES = 512 * 2**20  # of a PDF file
MAX_PIXELS = 40_000_000  # of a rendered page: A0 at 150 dpi has 35 million
_OPEN_FILES = 4
_KEPT_PAGES = 64

# pdfium is not thread-safe, not even for two documents.
_LOCK = threading.RLock()
_LIVE: 'weakref.WeakSet[Documents]' = weakref.WeakSet()


def _close_all() -> None:
  """At exit: pypdfium2 would close them too, but with a line on each."""
  with _LOCK:
    for documents in list(_LIVE):
      documents.close()


def _pdfium() -> ModuleType:
  try:
    return importlib.import_module('pypdfium2')
  except ImportError as e:
    raise errors.UserError(
      'PDF documents need pypdfium2, which is not installed: '
      "pip install 'corejax[data]'"
    ) from e


def backend() -> str:
  """Name and version of what draws the pages, for fingerprints.

  Raises:
    UserError: pypdfium2 is not installed.
  """
  return f'pdfium {_pdfium().version.PDFIUM_INFO}'


class Documents:
  """Opens PDFs and draws pages; the last few of both are kept.

  Attributes:
    dpi: resolution of the pictures; 72 makes one pixel a PDF point.
  """

  def __init__(self, dpi: int = 96):
    """Refuses what cannot be drawn before anything is.

    Args:
      dpi: pixels per inch, MIN_DPI to MAX_DPI.

    Raises:
      UserError: dpi out of range, or pypdfium2 is not installed.
    """
    if not MIN_DPI <= dpi <= MAX_DPI:
      raise errors.UserError(
        f'--dpi={dpi}: expected {MIN_DPI} to {MAX_DPI} pixels per inch'
      )
    _pdfium()
    if not _LIVE:
      # Behind its own handler, which was registered first and so runs last.
      atexit.unregister(_close_all)
      atexit.register(_close_all)
    _LIVE.add(self)
    self.dpi = dpi
    self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()
    self._pages: collections.OrderedDict[
      tuple[str, int], futures.Future[bytes]
    ] = collections.OrderedDict()

  def count(self, path: os.PathLike[str]) -> int:
    """Number of pages.

    Raises:
      Rejected: missing, too large or no PDF.
    """
    with _LOCK:
      return len(self._document(path))

  def size(self, path: os.PathLike[str], page: int) -> tuple[float, float]:
    """(width, height) of a page in points, as it is shown.

    Raises:
      Rejected: as for `render`.
    """
    with _LOCK:
      shown = self._page(path, page)
      try:
        return shown.get_size()
      finally:
        shown.close()

  def render(self, path: os.PathLike[str], page: int) -> bytes:
    """A page as an RGB PNG.

    Args:
      path: of the PDF.
      page: from 0.

    Raises:
      Rejected: missing, too large or no PDF, or no such page.
    """
    key = (os.fspath(path), page)
    while True:
      with _LOCK:
        drawn = self._pages.get(key)
        if mine := drawn is None:
          drawn = self._pages[key] = futures.Future()
          if len(self._pages) > _KEPT_PAGES:
            self._pages.popitem(last=False)
        self._pages.move_to_end(key)
      if mine:
        return self._make(path, page, key, drawn)
      try:
        return drawn.result()
      except futures.CancelledError:  # who drew it failed: then so will this
        continue

  def _make(self, path, page, key, drawn: 'futures.Future[bytes]') -> bytes:
    """Draws a page, and packs it while others are drawn."""
    try:
      with _LOCK:
        picture = self._draw(path, page)
      encoded = io.BytesIO()
      # PNG, not JPEG: no ringing at the edges of letters. Level 1 halves the
      # time at about the same size.
      picture.save(encoded, 'PNG', compress_level=1)
      drawn.set_result(encoded.getvalue())
    finally:
      if not drawn.done():
        with _LOCK:
          if self._pages.get(key) is drawn:
            del self._pages[key]
        drawn.cancel()
    return drawn.result()

  def close(self) -> None:
    """Closes what is open; what is asked for afterwards is opened again."""
    with _LOCK:
      while self._open:
        self._open.popitem()[1].close()

  def _document(self, path):
    key = os.fspath(path)
    if key in self._open:
      self._open.move_to_end(key)
      return self._open[key]
    name = pathlib.Path(path).name
    try:
      n_bytes = os.stat(path).st_size
    except FileNotFoundError as e:
      raise errors.Rejected(errors.Reason.MISSING_MEDIA, key) from e
    except OSError as e:
      raise errors.Rejected(
        errors.Reason.BAD_MEDIA, f'{name}: cannot be read ({e.strerror})'
      ) from e
    if n_bytes > MAX_BYTES:
      raise errors.Rejected(
        errors.Reason.MEDIA_TOO_LARGE,
        f'{name}: {n_bytes} bytes, at most {MAX_BYTES} are opened',
      )
    try:
      document = _pdfium().PdfDocument(key)
    except (OSError, _pdfium().PdfiumError) as e:
      raise errors.Rejected(errors.Reason.BAD_MEDIA, f'{name}: {e}') from e
    self._open[key] = document
    if len(self._open) > _OPEN_FILES:
      self._open.popitem(last=False)[1].close()
    return document

  def _page(self, path, page):
    document = self._document(path)
    name = pathlib.Path(path).name
    if not 0 <= page < len(document):
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'{name}: page {page} is outside 0..{len(document) - 1}',
      )
    try:
      return document[page]
    except _pdfium().PdfiumError as e:
      raise errors.Rejected(
        errors.Reason.BAD_MEDIA, f'{name}: page {page}: {e}'
      ) from e

  def _draw(self, path, page):
    shown = self._page(path, page)
    try:
      scale = self.dpi / POINTS_PER_INCH
      width, height = (side * scale for side in shown.get_size())
      where = f'{pathlib.Path(path).name}: page {page} at {self.dpi} dpi'
      if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise errors.Rejected(
          errors.Reason.MEDIA_TOO_LARGE
          if width * height > MAX_PIXELS
          else errors.Reason.BAD_MEDIA,
          f'{where} has {width:.0f}x{height:.0f} pixels, at most {MAX_PIXELS} '
          'are drawn',
        )
      try:
        bitmap = shown.render(scale=scale)
      except _pdfium().PdfiumError as e:
        raise errors.Rejected(errors.Reason.BAD_MEDIA, f'{where}: {e}') from e
      picture = bitmap.to_pil().convert('RGB')
      bitmap.close()
      return picture
    finally:
      shown.close()
