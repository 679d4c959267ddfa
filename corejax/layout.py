"""Which token is this box? Every visual token's cell in its own picture.

Each family builds its layout from its own resize, crop, pad and tiling; from
then on everything is a rectangle in the original picture's pixels:

    picture 640x480, centre-cropped      token 0 = cell (80, 0, 100, 20) of
    +--+============+--+                 media 0; a box that lies in the left
    |  | 0 1 2 3 .. |  |                 80 pixels covers no token at all
    |  |            |  |
    +--+============+--+
"""

from collections.abc import Iterable
import dataclasses

import numpy as np

from corejax import describe
from corejax import errors
from corejax.data import example as example_lib


@dataclasses.dataclass(frozen=True)
class Blend:
  """Tokens that are sums of several cells, as a bilinear resize makes them.

  Attributes:
    share_IK: float64 [I, K], each cell's weight; they sum to 1.
    cell_IKW: float64 [I, K, 4], the cells.
  """

  share_IK: np.ndarray
  cell_IKW: np.ndarray

  __repr__ = describe.fields


@dataclasses.dataclass(frozen=True)
class VisualLayout:
  """Where each visual token of one sequence lies.

  Attributes:
    media_I: int32 [I], index of the picture the token shows.
    cell_IW: float64 [I, 4], x0 y0 x1 y1 of the token's pixels, in the original
      picture's pixel coordinates; may reach beyond it where the family pads.
    size_M2: int32 [M, 2], (width, height) of the original pictures.
    base_I: bool [I], token of a base or thumbnail tile that shows the whole
      picture again beside detail tiles. All False where there is one tile.
    blend: what tokens are made of, where cell_IW is but the place of their
      middle; None: every token is its cell.
    count_base: may tokens of base tiles be evidence at all?
    frames_I: int32 [I], how many media, from media_I on, a token shows at once
      in its cell (neighbouring frames of a video, all of one size); None: one
      each.
  """

  media_I: np.ndarray
  cell_IW: np.ndarray
  size_M2: np.ndarray
  base_I: np.ndarray
  blend: Blend | None = None
  count_base: bool = True
  frames_I: np.ndarray | None = None

  __repr__ = describe.fields

  def __len__(self) -> int:
    return len(self.media_I)

  def shows(self, media: int) -> np.ndarray:
    """bool [I]: the tokens that show this picture or frame."""
    frames_I = 1 if self.frames_I is None else self.frames_I
    return (self.media_I <= media) & (media < self.media_I + frames_I)

  def cover(self, box: example_lib.Box) -> np.ndarray:
    """float64 [I] in [0, 1]: share of each token inside the box.

    A box lies on one frame. Where a token shows several, its share of their
    boxes is the largest (np.max over them), as `tokens` has it.
    """
    width, height = self.size_M2[box.media]
    x0, y0 = box.x0 * width, box.y0 * height
    x1, y1 = box.x1 * width, box.y1 * height
    corners = (x0, y0, x1, y1)
    if self.blend is None:
      share = _inside(self.cell_IW, corners)
    else:
      inside_IK = _inside(self.blend.cell_IKW, corners)
      share = (self.blend.share_IK * inside_IK).sum(1)
    return np.where(self.shows(box.media), share, 0.0)

  def tokens(
    self, boxes: Iterable[example_lib.Box], include_base: bool = True
  ) -> np.ndarray:
    """bool [I]: the tokens that are these boxes (SCIENCE "Evidence rule").

    Per box, every token at least half of whose cell is inside; if there is
    none, the best-covered one; boxes are united.

    Args:
      boxes: normalised boxes.
      include_base: count tokens of base and thumbnail tiles too (where
        count_base lets them).

    Raises:
      Rejected: a box covers no part of any token (cropped away).
    """
    chosen_I = np.zeros(len(self), bool)
    for box in boxes:
      cover_I = self.cover(box)
      if not (include_base and self.count_base):
        cover_I = np.where(self.base_I, 0.0, cover_I)
      if not len(cover_I) or cover_I.max() <= 0:
        raise errors.Rejected(
          errors.Reason.EVIDENCE_CROPPED,
          f'{box} lies outside of what the model is shown',
        )
      # 1e-9: a box drawn along cell edges must not lose cells to rounding.
      whole_I = cover_I >= 0.5 - 1e-9
      if not whole_I.any():
        whole_I[cover_I.argmax()] = True
      chosen_I |= whole_I
    return chosen_I


def _inside(
  cells: np.ndarray, corners: tuple[float, float, float, float]
) -> np.ndarray:
  """[...], share of each cell [..., 4] inside the rectangle x0 y0 x1 y1."""
  x0, y0, x1, y1 = corners
  cx0, cy0, cx1, cy1 = np.moveaxis(cells, -1, 0)
  inside_x = np.clip(np.minimum(cx1, x1) - np.maximum(cx0, x0), 0, None)
  inside_y = np.clip(np.minimum(cy1, y1) - np.maximum(cy0, y0), 0, None)
  return inside_x * inside_y / ((cx1 - cx0) * (cy1 - cy0))
