"""One page as a picture: pale ground, a coloured glyph in some of the cells.

All inks lie on one plane of equal intensity, r + g + b = 310, all grounds on
another, r + g + b = 705. So r + g + b tells the shape whatever its colour, and
the two directions across the grey axis tell the colour whatever its shape.
"""

from collections.abc import Sequence
import dataclasses
import io

import numpy as np
from PIL import Image

from corejax.data.scenes import glyphs

INK = 310
GROUND = 705

# 45 degrees apart on a circle about the grey of their plane.
INK_RGB = {
  'red': (206, 52, 52),
  'gold': (176, 130, 4),
  'lime': (103, 193, 14),
  'green': (30, 203, 77),
  'cyan': (0, 155, 155),
  'blue': (30, 77, 203),
  'purple': (103, 14, 193),
  'pink': (176, 4, 130),
}
GROUND_RGB = {
  'red': (255, 225, 225),
  'gold': (249, 240, 216),
  'lime': (235, 252, 218),
  'green': (221, 254, 230),
  'cyan': (215, 245, 245),
  'blue': (221, 230, 254),
  'purple': (235, 218, 252),
  'pink': (249, 216, 240),
}


@dataclasses.dataclass(frozen=True)
class Mark:
  """A glyph in a cell of a page.

  Attributes:
    page: from 0.
    row, column: cell, from 0 at the top left.
    glyph: one of vocab.GLYPHS.
    colour: one of vocab.COLOURS.
  """

  page: int
  row: int
  column: int
  glyph: str
  colour: str


def pixels(
  marks: Sequence[Mark],
  ground: str,
  grid: int,
  cell: int,
  noise: np.ndarray | None = None,
  scale: float = 1.0,
) -> np.ndarray:
  """One page.

  Args:
    marks: the page's marks, at most one a cell.
    ground: colour word of the ground.
    grid: cells along an edge.
    cell: pixels along a cell's edge.
    noise: integers added to every channel alike, [grid * cell, grid * cell].
    scale: of every glyph in its cell.

  Returns:
    uint8 [grid * cell, grid * cell, 3].
  """
  side = grid * cell
  page = np.empty((side, side, 3), np.float32)
  page[:] = GROUND_RGB[ground]
  for mark in marks:
    alpha = glyphs.mask(mark.glyph, cell, scale)[..., None]
    y, x = mark.row * cell, mark.column * cell
    page[y : y + cell, x : x + cell] *= 1 - alpha
    ink = np.array(INK_RGB[mark.colour], np.float32)
    page[y : y + cell, x : x + cell] += alpha * ink
  if noise is not None:
    page += noise[..., None]
  return np.clip(np.rint(page), 0, 255).astype(np.uint8)


def encode(page: np.ndarray) -> bytes:
  """PNG bytes of uint8 [H, W, 3]."""
  out = io.BytesIO()
  Image.fromarray(page).save(out, 'PNG', compress_level=1)
  return out.getvalue()
