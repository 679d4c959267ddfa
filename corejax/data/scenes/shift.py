"""How far scenes are from the usual ones, and nothing about what they show.

    size        every glyph drawn larger or smaller about its cell's centre
    resolution  the page averaged down to fewer pixels, then enlarged again
    noise       grey levels added, each pixel and channel by itself

What is drawn where, and what is asked, does not follow from these: scenes of
another Shift are the same scenes, one by one. So are the numbers that noise is
made of: twice the noise is the same noise, twice as strong.
"""

import dataclasses

import numpy as np
from PIL import Image

from corejax import errors

# A glyph keeps to the inner four fifths of its cell: so much larger, it fills
# the cell and no more.
MOST_SIZE = 1.25
LEAST_SIZE = 0.1
MOST_NOISE = 4.0


@dataclasses.dataclass(frozen=True)
class Shift:
  """What is done to the pictures, in this order; the defaults do nothing.

  Attributes:
    size: edge of a glyph, 1 as usual; 1.25 fills its cell. The box of the
      evidence shrinks along, and never grows beyond the cell.
    resolution: share of the pixels along an edge that are kept: the page is
      averaged down to so many (at least 1) and enlarged to its own size again
      (bicubic), so that a model has as many tokens as ever.
    noise: standard deviation of what is added, as a share of the 255 levels;
      what leaves 0..255 is cut off. A model that shrinks pictures averages
      over it.
  """

  size: float = 1.0
  resolution: float = 1.0
  noise: float = 0.0

  def __post_init__(self):
    for name, holds, expected in (
      (
        'size',
        LEAST_SIZE <= self.size <= MOST_SIZE,
        f'{LEAST_SIZE:g} to {MOST_SIZE:g}',
      ),
      ('resolution', 0 < self.resolution <= 1, 'more than 0, at most 1'),
      ('noise', 0 <= self.noise <= MOST_NOISE, f'0 to {MOST_NOISE:g}'),
    ):
      if not holds:  # nan holds nowhere
        raise errors.UserError(
          f'scenes: {name}={getattr(self, name):g}, expected {expected}'
        )

  def disturb(self, page: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One page, of glyphs that have their size already.

    Args:
      page: uint8 [H, W, 3].
      rng: what noise is made of; drawn from only if there is some.

    Returns:
      uint8 [H, W, 3]; the page itself where nothing is done.
    """
    if self.resolution < 1:
      height, width = page.shape[:2]
      fewer = [max(1, round(self.resolution * n)) for n in (width, height)]
      small = Image.fromarray(page).resize(
        (fewer[0], fewer[1]), Image.Resampling.BOX
      )
      page = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    if self.noise:
      added = 255 * self.noise * rng.standard_normal(page.shape)
      page = np.clip(np.rint(page + added), 0, 255).astype(np.uint8)
    return page
