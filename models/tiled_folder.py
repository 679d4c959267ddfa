"""From a checkpoint folder to a TiledProcessor (models/tiled.py), checked."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from corejax import errors
from corejax import prompt as prompt_lib
from corejax.models import checkpoint
from corejax.models import pixels
from corejax.models import tiled
from corejax.models import tokenize
from corejax.models import videos
from corejax.models.llava import templates as templates_lib


def spec(
  folder: pathlib.Path,
  name: str,
  defaults: Mapping[str, Any],
  own: Mapping[str, Any],
) -> tuple[pixels.PixelSpec, dict[str, Any], str]:
  """What a folder says of its image processor.

  Args:
    folder: the checkpoint.
    name: HF class of the processor.
    defaults: of its settings, beside those of pixels.
    own: defaults of the settings that are about tiles.

  Returns:
    (pixels, the settings about tiles, the file that holds them).

  Raises:
    UserError: no such file, or it asks for what is not built.
  """
  config, where = pixels.find(folder)
  if not isinstance(config, Mapping):
    raise errors.UserError(
      f'{where}: image_processor={config!r}; expected a JSON object'
    )
  rest = {key: value for key, value in config.items() if key not in own}
  given = {k: v for k, v in config.items() if k in own and v is not None}
  return (
    pixels.parse(rest, where, classes={name: defaults}),
    {**own, **given},
    where,
  )


# What of a video processor's settings is done to a frame's pixels; the others
# say which frames it would choose and where its arrays go.
_FRAME_KEYS = (
  *('do_resize', 'do_rescale', 'do_normalize', 'do_convert_rgb'),
  *('do_center_crop', 'crop_size', 'size', 'default_to_square'),
  *('resample', 'rescale_factor', 'image_mean', 'image_std'),
)


def video_spec(
  folder: pathlib.Path,
  pictures: pixels.PixelSpec,
  side: int,
  name: str,
  defaults: Mapping[str, Any],
) -> pixels.PixelSpec:
  """What a folder says of its video processor.

  HF's order: `video_processor` in processor_config.json, then
  video_preprocessor_config.json, then what is said of pictures.

  Args:
    folder: the checkpoint.
    pictures: what is done to a picture.
    side: of the tower's tile, pixels.
    name: HF class of the video processor.
    defaults: of its settings, beside those of pixels.

  Returns:
    What is done to a frame: resized across first, see pixels.

  Raises:
    UserError: it asks for what is not built, or makes no tiles of the tower's.
  """
  said, where = processor_config(folder)
  config = said.get('video_processor')
  path = folder / 'video_preprocessor_config.json'
  if config is None and path.exists():
    config, where = checkpoint.read_json(path), str(path)
  if config is None:
    return dataclasses.replace(pictures, across_first=True)
  if not isinstance(config, Mapping):
    raise errors.UserError(
      f'{where}: video_processor={config!r}; expected a JSON object'
    )
  # The files of 2024 have it under the name of an image processor's.
  kind = config.get('video_processor_type') or config.get(
    'image_processor_type', name
  )
  if kind != name:
    raise errors.UserError(
      f'{where}: video_processor_type={kind!r}; expected {name}'
    )
  found = pixels.parse(
    {key: config[key] for key in _FRAME_KEYS if key in config},
    where,
    classes={name: defaults},
  )
  if found.size != ('exact', side, side) or found.crop is not None:
    raise errors.UserError(
      f'{where}: the video processor makes frames of size={found.size}, '
      f'crop={found.crop}; the vision tower takes {side}x{side}: correct size '
      '(and switch do_center_crop off, do_resize on)'
    )
  return dataclasses.replace(found, across_first=True)


def number(where: str, key: str, value: Any, least: int, most: int) -> int:
  """The value itself.

  Raises:
    UserError: it is no whole number from `least` to `most`.
  """
  if type(value) is not int or not least <= value <= most:
    raise errors.UserError(
      f'{where}: {key}={value!r}; expected a whole number from {least} to '
      f'{most}'
    )
  return value


def check_policy(policy: str, policies: Sequence[str]) -> None:
  """Refuses an image policy that a family does not have.

  Raises:
    UserError: listing those that it has.
  """
  if policy not in policies:
    raise errors.UserError(
      f'--image_policy={policy}: expected {" or ".join(policies)} for this '
      'family'
    )


def make(
  folder: pathlib.Path,
  *,
  tiler: tiled.Tiler,
  text: Any,
  token: str,
  token_id: int,
  token_key: str = 'image_token_id',
  before: str = '',
  after: str = '',
  video: videos.Video | None = None,
  sets: Mapping[str, Mapping[str, prompt_lib.PromptTemplate]],
  marks: Sequence[tuple[str, str]],
  text_models: Mapping[str, str],
  tokenizer: Any,
  image_policy: str,
) -> tiled.TiledProcessor:
  """A checkpoint's processor, checked.

  Args:
    folder: the checkpoint.
    tiler: how pictures become tiles.
    text: the DecoderConfig.
    token: the image token.
    token_id: its id, as config.json says.
    token_key: the name by which config.json says it.
    before, after: around a picture's tokens.
    video: how videos are read; None: they are refused.
    sets, marks, text_models: see llava.templates.choose.
    tokenizer: of the folder.
    image_policy: 'detail' takes base and thumbnail tiles out of the evidence.

  Raises:
    UserError: tokenizer, template or corejax.json do not fit the model.
  """
  found = tokenize.single_id(tokenizer, token, str(folder))
  if found != token_id:
    raise errors.UserError(
      f'{folder}: {token!r} is token {found}, config.json says '
      f'{token_key}={token_id}; tokenizer and model belong to different '
      'checkpoints'
    )
  content_free = templates_lib.own_settings(folder).get(
    'content_free', tiled.CONTENT_FREE
  )
  if not isinstance(content_free, str) or not content_free.strip():
    raise errors.UserError(
      f'{folder / templates_lib.FILE}: content_free={content_free!r}; expected '
      'a question as text'
    )
  own = tokenize.own_template(folder)
  processor = tiled.TiledProcessor(
    tokenizer=tokenizer,
    tiler=tiler,
    image_token=token,
    image_token_id=token_id,
    before=before,
    after=after,
    vocab_size=text.vocab_size,
    max_length=text.max_length,
    templates=templates_lib.choose(
      folder,
      own or getattr(tokenizer, 'chat_template', None),
      text.kind,
      sets,
      marks,
      text_models,
    ),
    content_free=content_free,
    count_base=image_policy != 'detail',
    video=video,
  )
  processor.check(folder)
  return processor


def processor_config(folder: pathlib.Path) -> tuple[dict[str, Any], str]:
  """(processor_config.json, its path); empty where there is none."""
  path = folder / 'processor_config.json'
  return (checkpoint.read_json(path) if path.exists() else {}), str(path)


def image_token(
  tokenizer: Any, said: Mapping[str, Any], path: str, of: str = 'image'
) -> str:
  """The token that stands for a picture, of a LLaVA.

  Args:
    tokenizer: one that names its image token has the last word, as in HF.
    said: processor_config.json.
    path: of that file.
    of: 'image', or 'video' for that of a video.

  Raises:
    UserError: it is no text.
  """
  named = getattr(tokenizer, f'{of}_token', None)
  token = named or said.get(f'{of}_token', f'<{of}>')
  if not isinstance(token, str) or not token:
    raise errors.UserError(
      f'{path}: {of}_token={token!r}; expected the text of a token'
    )
  return token
