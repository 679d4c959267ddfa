"""Tiles of LLaVA-NeXT and LLaVA-OneVision: base, details, newlines.

    picture 800x300, pinpoint 672x336: resized to 672x252, padded to 672x336

    +-------------------+         tokens (side S of a tile, g x g of them):
    |. . . . . . . . . .| pad     base       the whole picture squashed to SxS
    |  tile 1 |  tile 2 |         details    row by row over both tiles, each
    |         |         |                    row ended by a newline; rows of
    |. . . . . . . . . .| pad                padding are left out ("unpad")
    +-------------------+
    base 0 1 2 .. g*g-1   d d d d d d N   d d d d d d N   ..

What is left out is decided in units of tokens, so a token at the border may
show some padding. OneVision scales the grid of details down, bilinearly, where
it has more than `most` * g * g tokens (anyres_max_9): such a token is a sum of
up to four features. Of several pictures OneVision shows each as one squared
tile and one newline; of a video each frame as one squashed tile whose tokens
are scaled down to half as many rows and columns, and one newline at its end.

A tile's features are followed by the newline as one more row (g * g + 1 in
all), so that a newline is a feature like any other.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from corejax import errors
from corejax import layout as layout_lib
from corejax.models import pixels
from corejax.models import tiled

_CORNERS = 4  # features that a bilinear value is made of


def choose_pinpoint(
  size: tuple[int, int], pinpoints: tuple[tuple[int, int], ...]
) -> tuple[int, int]:
  """(height, width), as HF's select_best_resolution.

  Where most pixels of the picture survive; of equals the smallest.

  Args:
    size: (width, height) of the picture.
    pinpoints: (height, width) each.
  """
  width, height = size
  best, best_kept, best_wasted = pinpoints[0], 0, math.inf
  for high, wide in pinpoints:
    scale = min(wide / width, high / height)
    shrunk = int(width * scale) * int(height * scale)
    kept = min(shrunk, width * height)
    wasted = high * wide - kept
    if kept > best_kept or (kept == best_kept and wasted < best_wasted):
      best, best_kept, best_wasted = (high, wide), kept, wasted
  return best


def fit(size: tuple[int, int], pinpoint: tuple[int, int]) -> tuple[int, int]:
  """(width, height) of the picture in the pinpoint, its aspect kept.

  As HF's get_patch_output_size.
  """
  width, height = size
  high, wide = pinpoint
  across, down = wide / width, high / height
  if across < down:
    return wide, min(math.ceil(height * across), high)
  return min(math.ceil(width * down), wide), high


def unpad(
  size: tuple[int, int], rows: int, columns: int
) -> tuple[slice, slice]:
  """(rows, columns) of a grid of tokens that are kept, as HF's unpad_image."""
  width, height = size
  if width / height > columns / rows:
    kept = int(round(height * (columns / width), 7))
    cut = (rows - kept) // 2
    return slice(cut, rows - cut), slice(0, columns)
  kept = int(round(width * (rows / height), 7))
  cut = (columns - kept) // 2
  return slice(0, rows), slice(cut, columns - cut)


def bilinear(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
  """Which two inputs make an output, and how much of the second.

  As torch's interpolate with align_corners=False, which counts in float32.

  Returns:
    int [n_out, 2] and float32 [n_out].
  """
  if not n_out:
    return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
  scale = np.float32(n_in) / np.float32(n_out)
  at = (np.arange(n_out, dtype=np.float32) + np.float32(0.5)) * scale
  at = np.maximum(at - np.float32(0.5), np.float32(0))
  first = np.minimum(at.astype(np.int64), n_in - 1)
  second = np.minimum(first + 1, n_in - 1)
  return np.stack([first, second], 1), at - first.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """Some of a picture's tokens, all of which show a part of it.

  Attributes:
    feature_RCK: int [R, C, K], rows among the picture's features.
    share_RCK: float32, their weights.
    part_RCK4: float64 [R, C, K, 4], their cells in the picture's pixels.
    cell_RC4: float64 [R, C, 4], the token's own.
  """

  feature_RCK: np.ndarray
  share_RCK: np.ndarray
  part_RCK4: np.ndarray
  cell_RC4: np.ndarray


def _pairs(x_C2: np.ndarray, y_R2: np.ndarray) -> np.ndarray:
  """[R, C, 4], x0 y0 x1 y1, from the sides of columns and of rows."""
  shape = (len(y_R2), len(x_C2))
  x0, x1 = (np.broadcast_to(side, shape) for side in x_C2.T)
  y0, y1 = (np.broadcast_to(side[:, None], shape) for side in y_R2.T)
  return np.stack([x0, y0, x1, y1], -1)


def _wider(side_A2: np.ndarray, factor: float) -> np.ndarray:
  """Intervals [A, 2] stretched about their middles."""
  middle = side_A2.mean(1, keepdims=True)
  return middle + (side_A2 - middle) * factor


def _squash(spec: pixels.PixelSpec, side: int) -> pixels.PixelSpec:
  """The same, with a picture's shape not kept."""
  size = ('exact', side, side)
  return dataclasses.replace(spec, pad=False, size=size, crop=None)


def blended(most: int) -> int:
  """Features of which a token is a sum, where details are scaled down."""
  return _CORNERS if most else 1


@dataclasses.dataclass(frozen=True)
class Tiler:
  """Implements corejax.models.tiled.Tiler.

  Attributes:
    pixels: what is done to a tile's pixels.
    side: pixels along a side of a tile.
    patch: pixels along a side of a token's cell; the rest of a tile, right and
      below, is not seen.
    pinpoints: (height, width) that pictures are fitted into.
    most: tiles' worth of tokens to which details are scaled down (OneVision);
      0: never (NeXT).
    alone: is only a picture alone in its prompt cut (OneVision)?
  """

  pixels: pixels.PixelSpec
  side: int
  patch: int
  pinpoints: tuple[tuple[int, int], ...]
  most: int = 0
  alone: bool = False

  @property
  def tokens(self) -> int:
    """Tokens along a side of a tile."""
    return self.side // self.patch

  @property
  def n_features(self) -> int:
    return self.tokens**2 + 1

  @property
  def n_blend(self) -> int:
    return blended(self.most)

  def plan(self, size: tuple[int, int], n_media: int) -> tiled.Plan:
    """See tiled.Tiler."""
    if self.alone and n_media > 1:
      # Squared with padding on both sides; its tokens, then one newline.
      long = max(size)
      left, top = ((long - n) // 2 for n in size)
      base = self._base((long, long), (left, top))
      return self._plan(1, [(base, False), (None, True)])
    high, wide = choose_pinpoint(size, self.pinpoints)
    n_details = (high // self.side) * (wide // self.side)
    base = self._base(size, (0, 0))
    details = self._details(size, (high, wide))
    return self._plan(1 + n_details, [(base, False), (details, True)])

  def cut(self, image_HWC: np.ndarray, n_media: int) -> np.ndarray:
    """See tiled.Tiler."""
    side, squash = self.side, _squash(self.pixels, self.side)
    plain = dataclasses.replace(squash, size=None)
    if self.alone and n_media > 1:
      return pixels.run(dataclasses.replace(squash, pad=True), image_HWC)[None]
    height, width = image_HWC.shape[:2]
    high, wide = choose_pinpoint((width, height), self.pinpoints)
    new_w, new_h = fit((width, height), (high, wide))
    resized = Image.fromarray(image_HWC).resize(
      (new_w, new_h), self.pixels.resample
    )
    canvas = np.zeros((high, wide, 3), np.uint8)
    left, top = (wide - new_w) // 2, (high - new_h) // 2
    canvas[top : top + new_h, left : left + new_w] = np.array(resized)
    large = pixels.run(plain, canvas)
    details = large.reshape(3, high // side, side, wide // side, side)
    details = details.transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    return np.concatenate([pixels.run(squash, image_HWC)[None], details])

  def frame(self, size: tuple[int, int], last: bool) -> tiled.Plan:
    """See videos.FrameTiler: half as many rows and columns of tokens.

    As HF's apply_pooling; the last of a video is followed by a newline.
    """
    half = -(-self.tokens // 2)
    grid = self._base(size, (0, 0), (half, half))
    return self._plan(1, [(grid, False), (None, True)][: 1 + last])

  def cut_frame(self, image_HWC: np.ndarray) -> np.ndarray:
    """See videos.FrameTiler; squashed to a square."""
    return pixels.run(_squash(self.pixels, self.side), image_HWC)[None]

  def _sides(self, index: np.ndarray, offset: int, scale: float) -> np.ndarray:
    """[A, 2], a token's sides along one axis of the tiles' canvas, back in
    the picture's pixels."""
    start = index // self.tokens * self.side + index % self.tokens * self.patch
    start = start - offset
    return np.stack([start, start + self.patch], 1) * scale

  def _base(
    self,
    size: tuple[int, int],
    shift: tuple[int, int],
    shape: tuple[int, int] | None = None,
  ) -> _Tokens:
    """Tile 0: a rectangle of this size, squashed; shift is its padding.

    `shape` is that to which its tokens are scaled down, None: not at all.
    """
    index = np.arange(self.tokens)
    x_C2, y_R2 = (
      self._sides(index, 0, n / self.side) - left
      for n, left in zip(size, shift)
    )
    feature_RC = np.arange(self.tokens**2).reshape(self.tokens, self.tokens)
    return self._tokens(feature_RC, x_C2, y_R2, shape or feature_RC.shape)

  def _details(
    self, size: tuple[int, int], pinpoint: tuple[int, int]
  ) -> _Tokens:
    """What is left of the other tiles' tokens after unpadding and scaling."""
    (high, wide), tokens = pinpoint, self.tokens
    rows, columns = unpad(
      size, tokens * high // self.side, tokens * wide // self.side
    )
    row_R = np.arange(rows.start, rows.stop)
    column_C = np.arange(columns.start, columns.stop)
    new_w, new_h = fit(size, pinpoint)
    x_C2 = self._sides(column_C, (wide - new_w) // 2, size[0] / new_w)
    y_R2 = self._sides(row_R, (high - new_h) // 2, size[1] / new_h)
    row_R1 = row_R[:, None]
    tile_RC = row_R1 // tokens * (wide // self.side) + column_C // tokens
    within_RC = row_R1 % tokens * tokens + column_C % tokens
    feature_RC = (1 + tile_RC) * self.n_features + within_RC
    return self._tokens(feature_RC, x_C2, y_R2, self._scaled(*feature_RC.shape))

  def _scaled(self, rows: int, columns: int) -> tuple[int, int]:
    """(rows, columns) after scaling down; HF's pack_image_features."""
    if not self.most:
      return rows, columns
    ratio = math.sqrt(rows * columns / (self.most * self.tokens**2))
    if ratio <= 1.1:
      return rows, columns
    scaled = int(rows // ratio), int(columns // ratio)
    if min(scaled) < 1:
      raise errors.Rejected(
        errors.Reason.BAD_MEDIA,
        f'nothing is left of {rows}x{columns} tokens scaled down',
      )
    return scaled

  def _tokens(
    self,
    feature_RC: np.ndarray,
    x_C2: np.ndarray,
    y_R2: np.ndarray,
    shape: tuple[int, int],
  ) -> _Tokens:
    """A grid of features, resized to this shape where tokens are blends."""
    if self.n_blend == 1:
      cell_RC4 = _pairs(x_C2, y_R2)
      feature_RCK = feature_RC[..., None]
      ones_RCK = np.ones(feature_RCK.shape, np.float32)
      return _Tokens(feature_RCK, ones_RCK, cell_RC4[:, :, None], cell_RC4)
    row_R2, down_R = bilinear(feature_RC.shape[0], shape[0])
    column_C2, right_C = bilinear(feature_RC.shape[1], shape[1])
    corners = [(a, b) for a in (0, 1) for b in (0, 1)]
    down_2R = np.stack([1 - down_R, down_R])
    right_2C = np.stack([1 - right_C, right_C])
    at = [np.ix_(row_R2[:, a], column_C2[:, b]) for a, b in corners]
    part_RC4 = _pairs(x_C2, y_R2)
    share_RCK = np.stack(
      [down_2R[a][:, None] * right_2C[b] for a, b in corners], -1
    )
    part_RCK4 = np.stack([part_RC4[corner] for corner in at], 2)
    # The middle is that of the blend; as wide as tokens are apart.
    middle_RC4 = (share_RCK[..., None] * part_RCK4).sum(2)
    stretch = [n / max(1, m) for n, m in zip(feature_RC.shape, shape)]
    cell_RC4 = middle_RC4.copy()
    for sides, factor in (([1, 3], stretch[0]), ([0, 2], stretch[1])):
      flat = middle_RC4[..., sides].reshape(-1, 2)
      cell_RC4[..., sides] = _wider(flat, factor).reshape(*shape, 2)
    return _Tokens(
      np.stack([feature_RC[corner] for corner in at], -1),
      share_RCK.astype(np.float32),
      part_RCK4,
      cell_RC4,
    )

  def _plan(
    self, n_tiles: int, grids: list[tuple[_Tokens | None, bool]]
  ) -> tiled.Plan:
    """Grids of tokens one after the other; True ends each row by a newline.

    None is a newline alone. The first grid is base if others show tokens too.
    """
    features, shares, visual, cells, parts, base = [], [], [], [], [], []
    start = 0
    for grid, ended in grids:
      n_rows, n_columns = (1, 0) if grid is None else grid.cell_RC4.shape[:2]
      shape = (n_rows, n_columns + ended, self.n_blend)
      feature = np.full(shape, self.tokens**2)
      share = np.zeros(shape, np.float32)
      share[..., 0] = 1
      if grid is not None:
        feature[:, :n_columns] = grid.feature_RCK
        share[:, :n_columns] = grid.share_RCK
        cells.append(grid.cell_RC4.reshape(-1, 4))
        parts.append(grid.part_RCK4.reshape(-1, self.n_blend, 4))
        base.append(np.full(len(cells[-1]), not ended))
      index = start + np.arange(n_rows * (n_columns + ended))
      index = index.reshape(n_rows, n_columns + ended)
      visual.append(index[:, :n_columns].reshape(-1))
      start += index.size
      features.append(feature.reshape(-1, self.n_blend))
      shares.append(share.reshape(-1, self.n_blend))
    visual_I = np.concatenate(visual)
    feature_FK, share_FK = np.concatenate(features), np.concatenate(shares)
    base_I = np.concatenate(base)
    plan = tiled.Plan(
      n_tiles=n_tiles,
      feature_F=feature_FK[:, 0],
      visual_I=visual_I,
      cell_IW=np.concatenate(cells),
      base_I=base_I & (not base_I.all()),
    )
    if self.n_blend == 1:
      return plan
    share_IK = share_FK[visual_I].astype(np.float64)
    return dataclasses.replace(
      plan,
      feature_F=feature_FK,
      blend_FK=share_FK,
      blend=layout_lib.Blend(share_IK, np.concatenate(parts)),
    )
