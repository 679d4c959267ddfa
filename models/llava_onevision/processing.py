"""LLaVA-OneVision's pictures: as LLaVA-NeXT's, details scaled down to a limit.

A picture alone in its prompt is cut into tiles; of several, each is squared
with the mean colour and shown as one tile, followed by one newline. Where each
token looks is drawn in models/anyres.py. Token ids are those of HF's
LlavaOnevisionProcessor (several pictures handed over as one nested list),
pixels those of LlavaOnevisionImageProcessorPil.

Of a video each frame is squashed into one tile and has 14 x 14 tokens, each a
blend of up to four of 27 x 27; one newline follows its last frame. HF's
LlavaOnevisionVideoProcessor resizes frames with torchvision; Pillow, here,
differs from it by up to 2 grey levels.
"""

import dataclasses
import pathlib

from corejax import errors
from corejax.models import tiled
from corejax.models import tiled_folder
from corejax.models import tokenize
from corejax.models import videos
from corejax.models.llava_next import processing as next_processing
from corejax.models.llava_onevision import config as config_lib
from corejax.models.llava_onevision import templates

IMAGE_POLICIES = ('checkpoint', 'detail')
_CLASS = 'LlavaOnevisionImageProcessor'
_VIDEO_CLASS = 'LlavaOnevisionVideoProcessor'
_DEFAULTS = dict(
  resample=3,
  image_mean=(0.48145466, 0.4578275, 0.40821073),
  image_std=(0.26862954, 0.26130258, 0.27577711),
  size={'height': 384, 'width': 384},
  crop_size=None,
  do_center_crop=False,
)
_PINPOINTS = [
  [384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)
]


def load(
  folder: str | pathlib.Path,
  config: config_lib.LlavaOnevisionConfig,
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
  tiler = next_processing.read_tiler(
    folder,
    config,
    _CLASS,
    _DEFAULTS,
    _PINPOINTS,
    most=config.most,
    alone=True,
  )
  said, path = tiled_folder.processor_config(folder)
  for key, expected in (
    ('num_image_tokens', config.n_features),
    ('vision_feature_select_strategy', config.select),
    ('vision_aspect_ratio', f'anyres_max_{config.most}'),
  ):
    value = said.get(key)
    if value is not None and value != expected:
      raise errors.UserError(
        f'{path}: {key}={value!r}; the model of config.json has {expected!r}: '
        'correct it'
      )
  tokenizer = tokenize.load(folder)
  video_token = tiled_folder.image_token(tokenizer, said, path, 'video')
  fill_id = tokenize.single_id(tokenizer, video_token, str(folder))
  if fill_id != config.video_token_id:
    raise errors.UserError(
      f'{folder}: {video_token!r} is token {fill_id}, config.json says '
      f'video_token_index={config.video_token_id}; tokenizer and model belong '
      'to different checkpoints'
    )
  frames = tiled_folder.video_spec(
    folder, tiler.pixels, tiler.side, _VIDEO_CLASS, _DEFAULTS
  )
  return tiled_folder.make(
    folder,
    tiler=tiler,
    video=videos.Video(
      tiler=dataclasses.replace(tiler, pixels=frames),
      token=video_token,
      fill=video_token,
      fill_id=fill_id,
    ),
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
