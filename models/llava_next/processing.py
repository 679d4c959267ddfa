"""LLaVA-NeXT's pictures: a squashed base tile, detail tiles, newlines.

Where each token looks is drawn in models/anyres.py. Token ids are those of HF's
LlavaNextProcessor, pixels those of LlavaNextImageProcessorPil.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from corejax import errors
from corejax.models import anyres
from corejax.models import tiled
from corejax.models import tiled_folder
from corejax.models import tokenize
from corejax.models.llava import processing as llava_processing
from corejax.models.llava_next import config as config_lib
from corejax.models.llava_next import templates

IMAGE_POLICIES = ('checkpoint', 'detail')
_CLASS = 'LlavaNextImageProcessor'
_DEFAULTS = dict(
  resample=3,
  image_mean=(0.48145466, 0.4578275, 0.40821073),
  image_std=(0.26862954, 0.26130258, 0.27577711),
  size={'shortest_edge': 224},
  crop_size={'height': 224, 'width': 224},
  do_center_crop=True,
)
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def load(
  folder: str | pathlib.Path,
  config: config_lib.LlavaNextConfig,
  *,
  image_policy: str = 'checkpoint',
) -> tiled.TiledProcessor:
  """The processor of a checkpoint folder.

  Args:
    folder: with tokenizer.json, and preprocessor_config.json or
      processor_config.json.
    config: the folder's model config.
    image_policy: pictures are cut as the folder says; with 'detail' no token of
      a base tile counts as evidence.

  Raises:
    UserError: a file is missing or damaged, asks for what is not built, or
      does not fit the model.
  """
  tiled_folder.check_policy(image_policy, IMAGE_POLICIES)
  folder = pathlib.Path(folder)
  tiler = read_tiler(folder, config, _CLASS, _DEFAULTS, _PINPOINTS)
  said, path = tiled_folder.processor_config(folder)
  llava_processing.check_tokens(said, path, config)
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


def read_tiler(
  folder: pathlib.Path,
  config: config_lib.LlavaNextConfig,
  name: str,
  defaults: Mapping[str, Any],
  pinpoints: list[list[int]],
  **options: Any,
) -> anyres.Tiler:
  """How a folder's pictures are cut.

  Args:
    folder: the checkpoint.
    config: its model config.
    name: HF class of the image processor.
    defaults: of its settings.
    pinpoints: its default of image_grid_pinpoints.
    **options: of the Tiler.

  Raises:
    UserError: the file asks for what is not built, or does not fit the model.
  """
  own = dict(image_grid_pinpoints=pinpoints)
  spec, asked, where = tiled_folder.spec(folder, name, defaults, own)
  side = config.vision.image_size
  # A tile, already of this size, is then left as it is.
  fits = spec.size in (('exact', side, side), ('shortest', side))
  if not fits or spec.crop not in (None, (side, side)):
    raise errors.UserError(
      f'{where}: the preprocessor makes tiles of size={spec.size}, '
      f'crop={spec.crop}; the vision tower takes {side}x{side}: correct size '
      'and crop_size'
    )
  try:
    found = config_lib.check_pinpoints(asked['image_grid_pinpoints'], side)
  except errors.UserError as error:
    raise errors.UserError(f'{where}: {error}') from error
  if found != config.pinpoints:
    raise errors.UserError(
      f'{where}: image_grid_pinpoints={str(list(found))[:60]} are not those of '
      f'config.json, {str(list(config.pinpoints))[:60]}; make them the same'
    )
  return anyres.Tiler(
    pixels=spec,
    side=side,
    patch=config.vision.patch_size,
    pinpoints=found,
    **options,
  )
