"""Qwen2-VL, 2.5, Qwen3-VL, Qwen3-VL-MoE: folders, hub ids -> a loaded model."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from corejax.models import checkpoint
from corejax.models import families
from corejax.models import registry
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling
from corejax.models.qwen_vl import pixels
from corejax.models.qwen_vl import positions
from corejax.models.qwen_vl import processing
from corejax.models.qwen_vl import weights


def _patches(
  tower: Any, n_pictures: int, n_features: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """What the tower takes of pictures of so many features each, shapes alone."""
  if not n_pictures:
    return {}
  n_patches = processing.slots(n_features) * tower.block
  shape = (n_pictures, n_patches, tower.patch_values)
  return {
    'image_grid_thw': jax.ShapeDtypeStruct((n_pictures, 3), jnp.int32),
    'pixel_values': jax.ShapeDtypeStruct(shape, jnp.float32),
  }


def _resized(folder: Any) -> Callable[[tuple[int, int]], tuple[int, int]]:
  """What a checkpoint's processor makes of a picture's (width, height).

  Raises:
    UserError: no such folder, or its processor's file is not usable.
  """
  return functools.partial(
    pixels.resized, pixels.read(checkpoint.resolve(folder))
  )


def _family(
  kind: str, tower: str, trained: tuple[str, ...] = ()
) -> registry.Family:
  """The family of a key of config.KINDS."""
  text = config_lib.KINDS[kind]
  return families.make(
    f'{kind}_flax',
    read=functools.partial(config_lib.read, kind=kind),
    modeling=modeling,
    processing=processing,
    weights=weights,
    backbones=(text.backbone + ('_moe' if text.experts else ''),),
    towers=(tower,),
    video=True,
    video_positions=tuple(positions.RULES),
    trained=trained,
    box_answers='resized' if kind == 'qwen2_5_vl' else 'thousand',
    resized=_resized,
    shown=_patches,
    n_axes=3,
  )


QWEN2_VL = _family('qwen2_vl', 'qwen2_vl')
QWEN2_5_VL = _family('qwen2_5_vl', 'qwen2_5_vl')
QWEN3_VL = _family('qwen3_vl', 'qwen3_vl', trained=('scenes-qwen3-vl-4x8',))
QWEN3_VL_MOE = _family('qwen3_vl_moe', 'qwen3_vl')
