"""Pages of documents as a source shows them: where they lie, which, what on.

A document's pages come from its PDF (`Pdfs`) or from a table of page pictures
(`corejax.data.page_tables`); `First` asks the one and then the other.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import pathlib
from typing import Protocol

from corejax import errors
from corejax import grounding
from corejax.data import documents
from corejax.data import example as example_lib

# How far a page's size may lie from the annotated one, in points.
TOLERANCE_POINTS = 1.0
WHOLE = (0.0, 0.0, 1.0, 1.0)
# A box that shares more than this with a piece of evidence (of the smaller of
# the two) is the evidence annotated again, not something else.
_SAME = 0.5


class Pages(Protocol):
  """Documents by file name, page by page, from 0."""

  def has(self, document: str) -> bool:
    """Is it there?"""
    ...

  def count(self, document: str) -> int:
    """Number of pages.

    Raises:
      Rejected: the document cannot be opened.
    """
    ...

  def check_size(
    self, document: str, page: int, size: tuple[float, float]
  ) -> None:
    """Refuses a page that is not of the size (in points) that was annotated.

    Raises:
      Rejected: BAD_RECORD, or as `picture`.
    """
    ...

  def picture(self, document: str, page: int) -> bytes:
    """A page, encoded.

    Raises:
      Rejected: there is no such page, or it cannot be drawn.
    """
    ...

  def identity(self) -> Sequence[object]:
    """What fingerprints cover: which documents, and what draws them."""
    ...


class Pdfs:
  """Pages drawn from PDFs."""

  def __init__(self, paths: Mapping[str, pathlib.Path], dpi: int):
    """Opens nothing yet.

    Args:
      paths: document -> its file.
      dpi: resolution at which pages are drawn.

    Raises:
      UserError: dpi out of range, or pypdfium2 is not installed.
    """
    self._paths = paths
    self._documents = documents.Documents(dpi)

  def has(self, document: str) -> bool:
    return document in self._paths

  def count(self, document: str) -> int:
    return self._documents.count(self._paths[document])

  def check_size(
    self, document: str, page: int, size: tuple[float, float]
  ) -> None:
    found = self._documents.size(self._paths[document], page)
    if max(abs(a - b) for a, b in zip(found, size)) > TOLERANCE_POINTS:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'page {page} has {found[0]:g}x{found[1]:g} points in the PDF, '
        f'annotated are {size[0]:g}x{size[1]:g}: another edition',
      )

  def picture(self, document: str, page: int) -> bytes:
    return self._documents.render(self._paths[document], page)

  def identity(self) -> Sequence[object]:
    return [
      self._documents.dpi,
      documents.backend(),
      *((n, p.stat().st_size) for n, p in sorted(self._paths.items())),
    ]


class First:
  """Several kinds of pages; the first that has a document gives it."""

  def __init__(self, kinds: Sequence[Pages]):
    self._kinds = kinds

  def has(self, document: str) -> bool:
    return any(kind.has(document) for kind in self._kinds)

  def _of(self, document: str) -> Pages:
    return next(kind for kind in self._kinds if kind.has(document))

  def count(self, document: str) -> int:
    return self._of(document).count(document)

  def check_size(
    self, document: str, page: int, size: tuple[float, float]
  ) -> None:
    self._of(document).check_size(document, page, size)

  def picture(self, document: str, page: int) -> bytes:
    return self._of(document).picture(document, page)

  def identity(self) -> Sequence[object]:
    return [list(kind.identity()) for kind in self._kinds]


def check_edition(
  pages: Pages,
  document: str,
  n_pages: int,
  sizes: Iterable[tuple[int, tuple[float, float]]],
) -> None:
  """Boxes of one edition of a document mean nothing on another.

  Args:
    pages: hold the document.
    document: its name.
    n_pages: that were annotated.
    sizes: (page, (width, height) in points) of annotated pages.

  Raises:
    Rejected: BAD_RECORD, or the document cannot be opened.
  """
  there = pages.count(document)
  if there != n_pages:
    raise errors.Rejected(
      errors.Reason.BAD_RECORD,
      f'the PDF has {there} pages, annotated are {n_pages}: another edition',
    )
  for page, size in sizes:
    pages.check_size(document, page, size)


def check_window(pages: Sequence[int], size: int) -> None:
  """Refuses evidence on more pages than are shown.

  Raises:
    Rejected: EVIDENCE_TOO_LONG.
  """
  if len(pages) > size:
    raise errors.Rejected(
      errors.Reason.EVIDENCE_TOO_LONG,
      f'on {len(pages)} pages, the window has {size}; raise --pages',
    )


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


Placed = tuple[int, grounding.Corners]  # page of the document, shares of it


def boxes(
  placed: Iterable[Placed], shown: Sequence[int]
) -> tuple[example_lib.Box, ...]:
  """Boxes on pages that are shown; the others are left out.

  Args:
    placed: page and corners of each.
    shown: pages of the document, in the order of the media.
  """
  return tuple(
    example_lib.Box(shown.index(page), *corners)
    for page, corners in placed
    if page in shown
  )


def others(placed: Iterable[Placed], own: Sequence[Placed]) -> list[Placed]:
  """Those boxes that are not, or not mostly, a piece of evidence again."""
  return [
    (page, corners)
    for page, corners in dict.fromkeys(placed)
    if all(
      page != own_page or grounding.overlap(corners, own_corners) <= _SAME
      for own_page, own_corners in own
    )
  ]


def whole(pages: Iterable[int]) -> tuple[Placed, ...]:
  """Whole pages as boxes."""
  return tuple((page, WHOLE) for page in pages)
