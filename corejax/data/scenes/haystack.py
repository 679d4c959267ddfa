"""A needle in many pages: long documents whose evidence lies at a known depth.

    page 1    page 2         page 3    page 4      4 pages, depth 0.33:
    [x  y ]   [star  heart]  [z  x ]   [y  w ]     asked about star and heart

Needles are the glyphs that are asked about; each stands once in the document.
All other marks are drawn from the glyphs that are left and may come again on
other pages, so that a document has any number of pages, each as full as the
next. Only `colour` is asked (and its twin, which any page answers): from 9 up
the closed list has no word for a page's number.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from corejax import errors
from corejax.data.scenes import picture
from corejax.data.scenes import scene as scene_lib
from corejax.data.scenes import vocab

ANY = 'any'
_MOST_PAGES = 4096


@dataclasses.dataclass(frozen=True)
class HaystackConfig(scene_lib.SceneConfig):
  """How haystacks look; noise, grid and cell as in any scene.

  Attributes:
    pages: pages of a document, 2 to 4096.
    marks: marks on each page; glyphs of a page are distinct.
    questions: needles of a document, at most `marks`, so that one page holds
      them all.
    depth: where the needles' page lies, 0 (first) to 1 (last); None draws a
      page for each needle.
  """

  pages: int = 12
  marks: int = 2
  questions: int = 2
  depth: float | None = None

  def _check_counts(self) -> None:
    need = self._need
    need(2 <= self.pages <= _MOST_PAGES, 'pages', f'2 to {_MOST_PAGES}')
    most = min(self.grid**2, len(vocab.GLYPHS) // 2)
    need(1 <= self.marks <= most, 'marks', f'1 to {most} a page')
    need(1 <= self.questions <= self.marks, 'questions', f'1 to {self.marks}')
    if self.depth is not None:
      need(0 <= self.depth <= 1, 'depth', '0 to 1')

  @property
  def tasks(self) -> tuple[str, ...]:
    """The one task that needs a look-up."""
    return ('colour',)

  def draw(self, rng: np.random.Generator) -> Haystack:
    """A document; the needles are its first glyphs, in the order drawn."""
    shapes = rng.permutation(len(vocab.GLYPHS))
    needles, hay = shapes[: self.questions], shapes[self.questions :]
    if self.depth is None:
      page_U = rng.integers(self.pages, size=len(needles))
    else:
      page = int(np.floor(self.depth * (self.pages - 1) + 0.5))
      page_U = np.full(len(needles), page)
    marks, found = [], []
    for page in range(self.pages):
      here = needles[page_U == page]
      others = rng.permutation(hay)[: self.marks - len(here)]
      glyphs = rng.permutation(np.concatenate([here, others]))
      cells = np.sort(rng.permutation(self.grid**2)[: self.marks])
      colours = rng.integers(len(vocab.COLOURS), size=self.marks)
      for cell, glyph, colour in zip(cells, glyphs, colours):
        if glyph in here:
          found.append(len(marks))
        marks.append(
          picture.Mark(
            page,
            int(cell) // self.grid,
            int(cell) % self.grid,
            vocab.GLYPHS[glyph],
            vocab.COLOURS[colour],
          )
        )
    ground = vocab.COLOURS[rng.integers(len(vocab.COLOURS))]
    return Haystack(tuple(marks), ground, tuple(found))


@dataclasses.dataclass(frozen=True)
class Haystack(scene_lib.Scene):
  """A document.

  Attributes:
    needles: indices of the marks that are asked about.
  """

  needles: tuple[int, ...] = ()

  def targets(self, task: str) -> tuple[int, ...]:
    """The marks that a question of this task may be about."""
    del task
    return self.needles


def of(pages: int, depth: str = ANY) -> HaystackConfig:
  """The documents with so many pages.

  Args:
    pages: of a document.
    depth: 0 to 1 as text, or 'any'.

  Raises:
    UserError: pages or depth out of range.
  """
  if depth == ANY:
    return HaystackConfig(pages=pages)
  try:
    value = float(depth)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise errors.UserError(
      f'--depth={depth[:40]}: give 0 (first page) to 1 (last page), or {ANY}'
    )
  return HaystackConfig(pages=pages, depth=value)
