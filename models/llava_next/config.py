"""LLaVA-NeXT's configuration: LLaVA's, and the grids of tiles."""

import dataclasses
import pathlib
from typing import Any, Self

from corejax import errors
from corejax.models.llava import config as llava_config

_LONGEST = 9000  # pixels along a side, as in models.pixels
_MOST_PINPOINTS = 1024


@dataclasses.dataclass(frozen=True)
class LlavaNextConfig(llava_config.LlavaConfig):
  """A whole model.

  Attributes:
    pinpoints: (height, width) in pixels that pictures are fitted into, whole
      tiles.
  """

  pinpoints: tuple[tuple[int, int], ...] = ()

  @classmethod
  def from_hf(cls, hf: Any) -> Self:
    """Reads a LlavaNextConfig object of transformers 5.

    Raises:
      UserError: a setting that is not supported.
    """
    config = super().from_hf(hf)
    if config.n_features != config.vision.grid**2:
      raise errors.UserError(
        'vision_feature_select_strategy='
        f'{hf.vision_feature_select_strategy!r} hands on {config.n_features} '
        f'features of a tile of {config.vision.grid}x{config.vision.grid} '
        "patches; it must be 'default' with a class token (CLIP) and 'full' "
        'without (SigLIP)'
      )
    return dataclasses.replace(
      config,
      pinpoints=check_pinpoints(
        hf.image_grid_pinpoints, config.vision.image_size
      ),
    )


HANDLED_KEYS = llava_config.HANDLED_KEYS | {
  'image_grid_pinpoints',
  # Written by early files; transformers has the parameter in any case.
  'use_image_newline_parameter',
}


def check_pinpoints(value: Any, side: int) -> tuple[tuple[int, int], ...]:
  """`image_grid_pinpoints`, each a whole number of tiles.

  Args:
    value: a list of (height, width).
    side: of a tile, pixels.

  Raises:
    UserError: it is none.
  """

  def is_tiles(n) -> bool:
    return type(n) is int and 0 < n <= _LONGEST and not n % side

  if (
    not isinstance(value, list)
    or not 0 < len(value) <= _MOST_PINPOINTS
    or not all(isinstance(p, list | tuple) and len(p) == 2 for p in value)
    or not all(is_tiles(n) for pair in value for n in pair)
  ):
    raise errors.UserError(
      f'image_grid_pinpoints={str(value)[:60]}; expected pairs of height and '
      f"width, multiples of {side} (the tower's image_size) up to {_LONGEST}"
    )
  return tuple((high, wide) for high, wide in value)


def read(folder: pathlib.Path) -> LlavaNextConfig:
  """The config of a checkpoint folder.

  Raises:
    UserError: not a LLaVA-NeXT, an unknown key, an unsupported setting.
  """
  return llava_config.read_as(
    LlavaNextConfig, 'llava_next', folder, HANDLED_KEYS
  )
