"""From a checkpoint folder to a TiledProcessor (models/tiled.py), checked."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from corejax import errors
from corejax import prompt as prompt_lib
from corejax.models import checkpoint
from corejax.models import pixels
from corejax.models import tiled
from corejax.models import tokenize
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
  own = templates_lib.own_template(folder)
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
  )
  processor.check(folder)
  return processor


def processor_config(folder: pathlib.Path) -> tuple[dict[str, Any], str]:
  """(processor_config.json, its path); empty where there is none."""
  path = folder / 'processor_config.json'
  return (checkpoint.read_json(path) if path.exists() else {}), str(path)


def image_token(tokenizer: Any, said: Mapping[str, Any], path: str) -> str:
  """The token that stands for a picture, of a LLaVA.

  Args:
    tokenizer: one that names its image token has the last word, as in HF.
    said: processor_config.json.
    path: of that file.

  Raises:
    UserError: it is no text.
  """
  named = getattr(tokenizer, 'image_token', None)
  token = named or said.get('image_token', '<image>')
  if not isinstance(token, str) or not token:
    raise errors.UserError(
      f'{path}: image_token={token!r}; expected the text of a token'
    )
  return token
