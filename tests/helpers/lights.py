"""How bright each visual token is, off the pixels that a processor made.

Of every family one function (processor) -> light, as tracers.check takes it:
light(encoded, difference) is the brightness [I] of each visual token, where
`difference` are the pixel values of a white figure less those of black.
"""

from collections.abc import Callable
import math
from typing import Any

import numpy as np

from corejax import inputs as inputs_lib

Light = Callable[[inputs_lib.Encoded, np.ndarray], np.ndarray]


def _cells(share: np.ndarray, side: int, patch: int) -> np.ndarray:
  """[tiles, side * side] means of [tiles, H, W]; what is left over is not."""
  cells = share[:, : side * patch, : side * patch]
  cells = cells.reshape(len(share), side, patch, side, patch).mean((2, 4))
  return cells.reshape(len(share), side * side)


def llava(processor: Any) -> Light:
  """One tile a picture."""
  std = np.array(processor.tiler.pixels.std)[:, None, None]

  def light(encoded, difference):
    share = (difference * std).mean(1)
    side = math.isqrt(len(encoded.visual_I) // len(share))
    return _cells(share, side, share.shape[1] // side).reshape(-1)

  return light


def anyres(processor: Any) -> Light:
  """LLaVA-NeXT and OneVision: tiles, newlines, and sums of cells."""
  tiler = processor.tiler
  std = np.array(tiler.pixels.std)[:, None, None]

  def light(encoded, difference):
    cells = _cells((difference * std).mean(1), tiler.tokens, tiler.patch)
    newline = np.full((len(cells), 1), 100.0)  # nothing that shows may be one
    features = np.concatenate([cells, newline], 1).reshape(-1)
    rows = encoded.feature_T[encoded.visual_I]
    if encoded.blend_TK is None:
      return features[rows]
    return (features[rows] * encoded.blend_TK[encoded.visual_I]).sum(1)

  return light


def internvl(processor: Any) -> Light:
  """Tiles, each to its last pixel."""
  std = np.array(processor.tiler.pixels.std)[:, None, None]
  side = processor.tiler.tokens

  def light(encoded, difference):
    share = (difference * std).mean(1)
    features = _cells(share, side, share.shape[1] // side).reshape(-1)
    return features[encoded.feature_T[encoded.visual_I]]

  return light


def qwen(processor: Any) -> Light:
  """Patches, of which merge x merge are a token, in the order of the tokens."""
  spec = processor.spec
  std = np.array(spec.values.std)[:, None, None, None]

  def light(encoded, difference):
    side = spec.patch_size
    patches = difference.reshape(-1, 3, spec.temporal, side, side) * std
    tokens = patches.reshape(-1, spec.merge**2, *patches.shape[1:])
    features = tokens.mean(tuple(range(1, tokens.ndim)))
    return features[encoded.feature_T[encoded.visual_I]]

  return light
