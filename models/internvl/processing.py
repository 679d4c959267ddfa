"""InternVL's pictures: a grid of tiles, then the whole picture once more.

    picture 900x300 -> 3x1 tiles of 448 (the aspect is not kept), thumbnail

    +---+---+---+   tokens   tile 0, tile 1, tile 2, thumbnail: 256 each,
    | 0 | 1 | 2 |            row by row within a tile, and no newlines
    +---+---+---+   prompt   <img> <IMG_CONTEXT> x 1024 </img>

The grid is the one among those of `min_patches` to `max_patches` tiles whose
aspect is closest. With one tile there is no thumbnail. Token ids are those of
HF's InternVLProcessor, pixels those of GotOcr2ImageProcessorPil; as that
processor does, pictures are always cut, whatever `crop_to_patches` in the file
says. `image_policy='single'` shows each picture as one tile, 'detail' takes the
thumbnails out of the evidence.

A video is its frames, one tile each, by their numbers:

    Frame1: <img> <IMG_CONTEXT> x 256 </img>
    Frame2: <img> <IMG_CONTEXT> x 256 </img>

HF's InternVLVideoProcessor resizes them with torchvision; Pillow, here, differs
from it by up to 2 grey levels.
"""

import dataclasses
import functools
import pathlib

import numpy as np

from corejax import errors
from corejax.models import pixels
from corejax.models import tiled
from corejax.models import tiled_folder
from corejax.models import tokenize
from corejax.models import videos
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import templates

IMAGE_POLICIES = ('checkpoint', 'single', 'detail')
_CLASS = 'GotOcr2ImageProcessor'
_VIDEO_CLASS = 'InternVLVideoProcessor'
_DEFAULTS = dict(
  resample=3,
  image_mean=(0.48145466, 0.4578275, 0.40821073),
  image_std=(0.26862954, 0.26130258, 0.27577711),
  size={'height': 384, 'width': 384},
  crop_size=None,
  do_center_crop=False,
)
_TILES = dict(crop_to_patches=False, min_patches=1, max_patches=12)
_MOST_TILES = 4096
# attribute of the tokenizer -> the token where it has no such attribute
_TOKENS = {
  'context_image_token': '<IMG_CONTEXT>',
  'start_image_token': '<img>',
  'end_image_token': '</img>',
  'video_token': '<video>',
}
_FRAME = 'Frame{n}: '


@functools.lru_cache(maxsize=8)
def _grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
  """(columns, rows) of every grid, few tiles first, then few columns."""
  grids = [
    (columns, rows)
    for columns in range(1, most + 1)
    for rows in range(1, most // columns + 1)
    if columns * rows >= least
  ]
  return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(
  size: tuple[int, int], side: int, least: int, most: int
) -> tuple[int, int]:
  """(columns, rows) for a picture, as HF's get_optimal_tiled_canvas.

  The closest aspect; of equally close ones the largest whose tiles have less
  than twice the picture's area.

  Args:
    size: (width, height) of the picture.
    side: of a tile, pixels.
    least, most: tiles.
  """
  width, height = size
  best, best_off = (1, 1), float('inf')
  for grid in _grids(least, most):
    off = abs(width / height - grid[0] / grid[1])
    if off < best_off:
      best, best_off = grid, off
    elif off == best_off:
      if width * height > 0.5 * side * side * grid[0] * grid[1]:
        best = grid
  return best


@dataclasses.dataclass(frozen=True)
class Tiler:
  """Implements corejax.models.tiled.Tiler.

  Attributes:
    pixels: what is done to a tile's pixels.
    side: pixels along a side of a tile.
    tokens: visual tokens along a side of a tile.
    least, most: tiles of a picture, the thumbnail not counted; most 1: never
      cut.
  """

  pixels: pixels.PixelSpec
  side: int
  tokens: int
  least: int
  most: int

  @property
  def n_features(self) -> int:
    return self.tokens**2

  @property
  def n_blend(self) -> int:
    return 1

  def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
    if self.most == 1:
      return 1, 1
    return choose_grid(size, self.side, self.least, self.most)

  def plan(self, size: tuple[int, int], n_media: int) -> tiled.Plan:
    """See tiled.Tiler; n_media does not matter."""
    del n_media
    width, height = size
    columns, rows = self._grid(size)
    tile_w, tile_h = width / columns, height / rows
    found = [
      tiled.cells(
        self.tokens,
        self.tokens,
        (x * tile_w, y * tile_h, (x + 1) * tile_w, (y + 1) * tile_h),
      )
      for y in range(rows)
      for x in range(columns)
    ]
    if len(found) > 1:
      whole = (0, 0, width, height)
      found.append(tiled.cells(self.tokens, self.tokens, whole))
    n_tokens = len(found) * self.n_features
    base_I = np.zeros(n_tokens, bool)
    if len(found) > 1:
      base_I[-self.n_features :] = True
    return tiled.Plan(
      n_tiles=len(found),
      feature_F=np.arange(n_tokens),
      visual_I=np.arange(n_tokens),
      cell_IW=np.concatenate(found),
      base_I=base_I,
    )

  def cut(self, image_HWC: np.ndarray, n_media: int) -> np.ndarray:
    """See tiled.Tiler."""
    del n_media
    height, width = image_HWC.shape[:2]
    columns, rows = self._grid((width, height))
    large = self._run(image_HWC, rows, columns)
    tiles = large.reshape(3, rows, self.side, columns, self.side)
    tiles = tiles.transpose(1, 3, 0, 2, 4).reshape(-1, 3, self.side, self.side)
    if len(tiles) > 1:
      thumbnail = self._run(image_HWC, 1, 1)
      tiles = np.concatenate([tiles, thumbnail[None]])
    return tiles

  def frame(self, size: tuple[int, int], last: bool) -> tiled.Plan:
    """See videos.FrameTiler; every frame is one tile."""
    del last
    return dataclasses.replace(self, most=1).plan(size, 1)

  def cut_frame(self, image_HWC: np.ndarray) -> np.ndarray:
    """See videos.FrameTiler."""
    return self._run(image_HWC, 1, 1)[None]

  def _run(self, image_HWC: np.ndarray, rows: int, columns: int) -> np.ndarray:
    size = ('exact', rows * self.side, columns * self.side)
    return pixels.run(dataclasses.replace(self.pixels, size=size), image_HWC)


def load(
  folder: str | pathlib.Path,
  config: config_lib.InternVLConfig,
  *,
  image_policy: str = 'checkpoint',
) -> tiled.TiledProcessor:
  """The processor of a checkpoint folder.

  Args:
    folder: with tokenizer.json, and preprocessor_config.json or
      processor_config.json.
    config: the folder's model config.
    image_policy: 'checkpoint' cuts pictures as the folder says, 'single' shows
      each as one tile, 'detail' cuts them and counts no token of a thumbnail as
      evidence.

  Raises:
    UserError: a file is missing or damaged, asks for what is not built, or
      does not fit the model.
  """
  tiled_folder.check_policy(image_policy, IMAGE_POLICIES)
  folder = pathlib.Path(folder)
  spec, asked, where = tiled_folder.spec(folder, _CLASS, _DEFAULTS, _TILES)
  side = config.vision.image_size
  if spec.size != ('exact', side, side) or spec.crop is not None:
    raise errors.UserError(
      f'{where}: the preprocessor makes tiles of size={spec.size}, '
      f'crop={spec.crop}; the vision tower takes {side}x{side}: correct size '
      '(and switch do_center_crop off, do_resize on)'
    )
  least, most = (
    tiled_folder.number(where, key, asked[key], 1, _MOST_TILES)
    for key in ('min_patches', 'max_patches')
  )
  said, path = tiled_folder.processor_config(folder)
  count = said.get('image_seq_length', config.n_features)
  if count != config.n_features:
    raise errors.UserError(
      f'{path}: image_seq_length={count!r}; the model makes '
      f'{config.n_features} features a tile: correct it to fit config.json'
    )
  tokenizer = tokenize.load(folder)
  token, before, after, video_token = (
    getattr(tokenizer, name, None) or default
    for name, default in _TOKENS.items()
  )
  tiler = Tiler(
    pixels=spec,
    side=side,
    tokens=config.side,
    least=least,
    most=1 if image_policy == 'single' else most,
  )
  frames = tiled_folder.video_spec(folder, spec, side, _VIDEO_CLASS, _DEFAULTS)
  return tiled_folder.make(
    folder,
    tiler=tiler,
    video=videos.Video(
      tiler=dataclasses.replace(tiler, pixels=frames),
      token=video_token,
      fill=token,
      fill_id=config.image_token_id,
      frame=f'{_FRAME}{before}{{tokens}}{after}',
      between='\n',
    ),
    text=config.text,
    token=token,
    token_id=config.image_token_id,
    before=before,
    after=after,
    sets=templates.SETS,
    marks=templates.MARKS,
    text_models=templates.TEXT_MODELS,
    tokenizer=tokenizer,
    image_policy=image_policy,
  )
