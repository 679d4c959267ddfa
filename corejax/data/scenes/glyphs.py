"""The 16 shapes as soft masks, distinct even in 14x14 pixels."""

import functools
import math

import numpy as np
from PIL import Image
from PIL import ImageDraw

from corejax.data.scenes import vocab

_OVERSAMPLE = 4
# No glyph reaches into the outer tenth of its cell: at 14 pixels a cell the
# outermost ring of pixels is pure ground.
_MARGIN = 0.1


def _rect(x0: float, y0: float, x1: float, y1: float):
  return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _disc(x: float, y: float, radius: float):
  turn = 2 * math.pi / 96
  return [
    (x + radius * math.cos(i * turn), y + radius * math.sin(i * turn))
    for i in range(96)
  ]


def _star():
  points = []
  for i in range(10):
    radius, angle = (0.18 if i % 2 else 0.40), math.pi * (i / 5 - 0.5)
    points.append(
      (0.5 + radius * math.cos(angle), 0.53 + radius * math.sin(angle))
    )
  return points


# Per glyph: polygons that add ink, polygons that take it away again; corners
# (x, y) as shares of the cell.
_OUTLINES = {
  'circle': ([_disc(0.5, 0.5, 0.36)], []),
  'square': ([_rect(0.19, 0.19, 0.81, 0.81)], []),
  'triangle': ([[(0.5, 0.13), (0.88, 0.84), (0.12, 0.84)]], []),
  'star': ([_star()], []),
  'heart': (
    [
      _disc(0.33, 0.35, 0.19),
      _disc(0.67, 0.35, 0.19),
      [(0.17, 0.45), (0.5, 0.40), (0.83, 0.45), (0.5, 0.87)],
    ],
    [],
  ),
  'cross': ([_rect(0.38, 0.12, 0.62, 0.88), _rect(0.12, 0.38, 0.88, 0.62)], []),
  'ring': ([_disc(0.5, 0.5, 0.38)], [_disc(0.5, 0.5, 0.2)]),
  'diamond': ([[(0.5, 0.11), (0.82, 0.5), (0.5, 0.89), (0.18, 0.5)]], []),
  'arrow': (
    [_rect(0.12, 0.4, 0.52, 0.6), [(0.5, 0.14), (0.89, 0.5), (0.5, 0.86)]],
    [],
  ),
  'moon': ([_disc(0.46, 0.5, 0.36)], [_disc(0.64, 0.42, 0.29)]),
  'frame': (
    [_rect(0.13, 0.13, 0.87, 0.87)],
    [_rect(0.29, 0.29, 0.71, 0.71)],
  ),
  'hourglass': (
    [
      [(0.15, 0.13), (0.85, 0.13), (0.5, 0.54)],
      [(0.15, 0.87), (0.85, 0.87), (0.5, 0.46)],
    ],
    [],
  ),
  'bolt': (
    [
      [
        (0.62, 0.11),
        (0.2, 0.57),
        (0.46, 0.57),
        (0.36, 0.89),
        (0.8, 0.41),
        (0.54, 0.41),
      ]
    ],
    [],
  ),
  'flag': ([_rect(0.18, 0.12, 0.3, 0.88), _rect(0.3, 0.14, 0.86, 0.5)], []),
  'tree': (
    [
      [(0.5, 0.11), (0.74, 0.4), (0.26, 0.4)],
      [(0.5, 0.3), (0.84, 0.68), (0.16, 0.68)],
      _rect(0.43, 0.66, 0.57, 0.89),
    ],
    [],
  ),
  'ladder': (
    [
      _rect(0.2, 0.12, 0.33, 0.88),
      _rect(0.67, 0.12, 0.8, 0.88),
      _rect(0.3, 0.22, 0.7, 0.34),
      _rect(0.3, 0.66, 0.7, 0.78),
    ],
    [],
  ),
}


@functools.lru_cache(maxsize=64)
def mask(glyph: str, size: int, scale: float = 1.0) -> np.ndarray:
  """How much ink lies on each pixel of a cell.

  Args:
    glyph: one of vocab.GLYPHS.
    size: pixels along the cell's edge.
    scale: of the glyph, about the cell's centre.

  Returns:
    Read-only float32 [size, size] in [0, 1]; 0 in the outer tenth (of a cell
    of `scale` times the edge).
  """
  side = size * _OVERSAMPLE
  canvas = Image.new('L', (side, side))
  draw = ImageDraw.Draw(canvas)
  ink, holes = _OUTLINES[glyph]
  for value, polygons in ((255, ink), (0, holes)):
    for corners in polygons:
      if scale != 1:  # as usual to the bit otherwise
        corners = [
          (0.5 + scale * (x - 0.5), 0.5 + scale * (y - 0.5)) for x, y in corners
        ]
      draw.polygon([(x * side, y * side) for x, y in corners], fill=value)
  soft = canvas.resize((size, size), Image.Resampling.BOX)
  alpha = np.asarray(soft, np.float32) / 255
  alpha.flags.writeable = False
  return alpha


def border(size: int) -> np.ndarray:
  """bool [size, size]: the pixels on which no glyph has ink."""
  centre = (np.arange(size) + 0.5) / size
  outer = (centre < _MARGIN) | (centre > 1 - _MARGIN)
  return outer[:, None] | outer[None, :]


def all_masks(size: int) -> np.ndarray:
  """float32 [16, size, size] in the order of vocab.GLYPHS."""
  return np.stack([mask(glyph, size) for glyph in vocab.GLYPHS])
