"""LLaVA-OneVision's configuration: LLaVA-NeXT's, and a limit on tokens."""

import dataclasses
import pathlib
import re
from typing import Any, Self

from corejax import errors
from corejax.models.llava import config as llava_config
from corejax.models.llava_next import config as next_config

_ASPECT = re.compile(r'anyres_max_([1-9]\d{0,3})', re.ASCII)


@dataclasses.dataclass(frozen=True)
class LlavaOnevisionConfig(next_config.LlavaNextConfig):
  """A whole model.

  Attributes:
    most: tiles' worth of tokens to which details are scaled down.
    video_token_id: token that stands for one feature of a video.
  """

  most: int = 9
  video_token_id: int = 151647

  @classmethod
  def from_hf(cls, hf: Any) -> Self:
    """Reads a LlavaOnevisionConfig object of transformers 5.

    Raises:
      UserError: a setting that is not supported.
    """
    return dataclasses.replace(
      super().from_hf(hf),
      most=read_aspect(hf.vision_aspect_ratio),
      video_token_id=hf.video_token_id,
    )


HANDLED_KEYS = next_config.HANDLED_KEYS | {
  'vision_aspect_ratio',
  'video_token_id',
  'video_token_index',
}


def read_aspect(value: Any) -> int:
  """N of `vision_aspect_ratio` 'anyres_max_N'.

  Raises:
    UserError: another value.
  """
  match = _ASPECT.fullmatch(value) if isinstance(value, str) else None
  if match is None:
    raise errors.UserError(
      f'vision_aspect_ratio={value!r} is not supported; expected anyres_max_N'
    )
  return int(match[1])


def read(folder: pathlib.Path) -> LlavaOnevisionConfig:
  """The config of a checkpoint folder.

  Raises:
    UserError: not a LLaVA-OneVision, an unknown key, an unsupported setting.
  """
  return llava_config.read_as(
    LlavaOnevisionConfig, 'llava_onevision', folder, HANDLED_KEYS
  )
