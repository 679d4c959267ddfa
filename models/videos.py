"""Videos of families that show each frame as one tile of their tower.

    internvl    Frame1: <img> c c .. c </img>\\n Frame2: <img> c c .. c </img>
    onevision   v v .. v  v v .. v  newline      14 x 14 each, no text between

A frame is planned and cut as a picture is (models/tiled.py); a video's text
takes the place of the one token that stands for it in a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import TYPE_CHECKING, Protocol

import numpy as np

from corejax.models import images

if TYPE_CHECKING:
  from corejax.models import tiled


class FrameTiler(Protocol):
  """How a family cuts frames of videos; hashable.

  Its tiles have the size and as many features as the family's Tiler makes.
  """

  def frame(self, size: tuple[int, int], last: bool) -> tiled.Plan:
    """Of a frame of (width, height) pixels, one tile; `last` of its video."""
    ...

  def cut_frame(self, image_HWC: np.ndarray) -> np.ndarray:
    """float32 [1, 3, side, side] from uint8 [height, width, 3]."""
    ...


@dataclasses.dataclass(frozen=True)
class Video:
  """How a family reads a video.

  Attributes:
    tiler: how its frames become tiles and tokens.
    token: stands for a video in a prompt.
    fill, fill_id: what the tokenizer gets for each feature, and its id.
    frame: what it gets of a frame; holds {tokens}, and {n} (from 1) at will.
    between: and between two.
  """

  tiler: FrameTiler
  token: str
  fill: str
  fill_id: int
  frame: str = '{tokens}'
  between: str = ''

  def text(self, counts: Sequence[int]) -> str:
    """What takes a video's place, frame n having counts[n] features."""
    return self.between.join(
      self.frame.replace('{n}', str(n)).replace('{tokens}', self.fill * count)
      for n, count in enumerate(counts, 1)
    )


# Neighbouring questions show the same videos; 64 frames of 448 px are 154 MB.
@functools.lru_cache(maxsize=64)
def cut(tiler: FrameTiler, data: bytes) -> np.ndarray:
  """The tile of an encoded frame, read-only."""
  value = tiler.cut_frame(images.decode(data))
  value.setflags(write=False)
  return value
