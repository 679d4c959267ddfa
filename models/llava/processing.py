"""LLaVA's pictures: one tile each, and where each of its tokens looks.

    prompt    USER: <image>\\nWhat is it? ASSISTANT:            one a picture
    tokens    USER : <image> x n \\n What is it ? ASSISTANT :
    features  -  -  0 1 .. n-1   -  -  -   -  -  -         -

n is what the tower hands on of a picture: its patches, plus a class token where
it has one, less the first of these with the `default` selection strategy. A
class token that is kept is a feature but no visual token: it lies nowhere.

Token ids are those of HF's LlavaProcessor, pixels those of its PIL image
processors. `image_policy='pad'` pads each picture to a square first, as the
original LLaVA code does; the checkpoints in HF's format crop its middle, and
what lies outside is not seen.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np

from corejax import errors
from corejax.models import pixels
from corejax.models import tiled
from corejax.models import tiled_folder
from corejax.models import tokenize
from corejax.models.llava import config as config_lib
from corejax.models.llava import templates

IMAGE_POLICIES = ('checkpoint', 'pad')


@dataclasses.dataclass(frozen=True)
class Tiler:
  """Implements corejax.models.tiled.Tiler: a picture is one tile.

  Attributes:
    pixels: what is done to a picture.
    side: of the tower's picture, pixels.
    patch: side of a patch, pixels; a rest at the right and below is dropped
      (384 = 27 * 14 + 6).
    class_token: does the tower put one before the patches?
    drop_first: `vision_feature_select_strategy` is `default`.
  """

  pixels: pixels.PixelSpec
  side: int
  patch: int
  class_token: bool
  drop_first: bool

  @property
  def n_features(self) -> int:
    return (self.side // self.patch) ** 2 + self.class_token - self.drop_first

  @property
  def n_blend(self) -> int:
    return 1

  def plan(self, size: tuple[int, int], n_media: int) -> tiled.Plan:
    """See tiled.Tiler; n_media does not matter."""
    del n_media
    columns = self.side // self.patch
    shown = columns * self.patch
    cell_IW = tiled.cells(columns, columns, (0, 0, shown, shown))
    # `default` on a tower without a class token drops the first patch.
    cell_IW = cell_IW[int(self.drop_first and not self.class_token) :]
    first = int(self.class_token and not self.drop_first)
    way = pixels.plan(self.pixels, size)
    return tiled.Plan(
      n_tiles=1,
      feature_F=np.arange(self.n_features),
      visual_I=np.arange(first, self.n_features),
      cell_IW=way.to_picture(cell_IW),
      base_I=np.zeros(len(cell_IW), bool),
    )

  def cut(self, image_HWC: np.ndarray, n_media: int) -> np.ndarray:
    """See tiled.Tiler."""
    del n_media
    return pixels.run(self.pixels, image_HWC)[None]


def load(
  folder: str | pathlib.Path,
  config: config_lib.LlavaConfig,
  *,
  image_policy: str = 'checkpoint',
) -> tiled.TiledProcessor:
  """The processor of a checkpoint folder.

  Args:
    folder: with tokenizer.json, and preprocessor_config.json or
      processor_config.json.
    config: the folder's model config.
    image_policy: 'checkpoint' does to pictures what the folder says, 'pad'
      pads them to a square with the mean colour first.

  Raises:
    UserError: a file is missing or damaged, asks for what is not built, or
      does not fit the model.
  """
  tiled_folder.check_policy(image_policy, IMAGE_POLICIES)
  folder = pathlib.Path(folder)
  tiler = Tiler(
    pixels=pixels.read(folder, pad=True if image_policy == 'pad' else None),
    side=config.vision.image_size,
    patch=config.vision.patch_size,
    class_token=config.vision.has_cls,
    drop_first=config.select == 'default',
  )
  _check_size(folder, tiler)
  said, path = tiled_folder.processor_config(folder)
  check_tokens(said, path, config)
  tokenizer = tokenize.load(folder)
  return tiled_folder.make(
    folder,
    tiler=tiler,
    text=config.text,
    token=tiled_folder.image_token(tokenizer, said, path),
    token_id=config.image_token_id,
    token_key='image_token_index',
    sets=templates.SETS,
    marks=templates.MARKS,
    text_models=templates.TEXT_MODELS,
    tokenizer=tokenizer,
    image_policy=image_policy,
  )


def _check_size(folder: pathlib.Path, tiler: Tiler) -> None:
  """Refuses a preprocessor whose pictures the tower cannot take."""
  size = pixels.fixed_size(tiler.pixels)
  if size != (tiler.side, tiler.side):
    made = 'pictures of changing size' if size is None else f'{size} pictures'
    raise errors.UserError(
      f'{folder}: the preprocessor makes {made} (width, height), the vision '
      f'tower takes {tiler.side}x{tiler.side}; correct size and crop_size in '
      'the preprocessor config'
    )


def check_tokens(
  said: Mapping[str, Any], path: str, config: config_lib.LlavaConfig
) -> None:
  """Refuses a processor_config.json whose token count is not the model's.

  Args:
    said: the file's content.
    path: of the file.
    config: the model's config.

  Raises:
    UserError: naming both counts.
  """
  patch, strategy = (
    said.get(key) for key in ('patch_size', 'vision_feature_select_strategy')
  )
  if patch is None or strategy is None:
    return  # written before transformers 4.46: the model's config decides
  more = said.get('num_additional_image_tokens', 0)
  for key, value, least in (
    ('patch_size', patch, 1),
    ('num_additional_image_tokens', more, 0),
  ):
    if type(value) is not int or value < least:
      raise errors.UserError(
        f'{path}: {key}={value!r}; expected a whole number from {least}'
      )
  side = config.vision.image_size // patch
  count = side**2 + more - (strategy == 'default')
  if count != config.n_features:
    raise errors.UserError(
      f'{path}: patch_size={patch}, vision_feature_select_strategy={strategy}, '
      f'num_additional_image_tokens={more} make {count} tokens a picture, the '
      f'model makes {config.n_features}; correct them to fit config.json'
    )
