"""Qwen2-VL, 2.5, Qwen3-VL, Qwen3-VL-MoE: folders, hub ids -> a loaded model."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from corejax import errors
from corejax.models import checkpoint
from corejax.models import registry
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling
from corejax.models.qwen_vl import pixels
from corejax.models.qwen_vl import positions
from corejax.models.qwen_vl import processing
from corejax.models.qwen_vl import weights

DTYPES = ('float32', 'bfloat16', 'float16')


def load(
  kind: str,
  folder: Any,
  *,
  dtype: Any = 'float32',
  mesh: jax.sharding.Mesh | None = None,
  image_policy: str = 'checkpoint',
  video_positions: str = positions.DEFAULT,
) -> registry.Loaded:
  """Loads a checkpoint.

  Args:
    kind: key of config.KINDS.
    folder: a folder in Hugging Face's format, or a hub id.
    dtype: of the parameters: 'float32', 'bfloat16' or 'float16'.
    mesh: axes ('data', 'model'); parameters are cut over 'model'.
    image_policy: 'checkpoint', see processing.load.
    video_positions: likewise.

  Raises:
    UserError: anything about the folder that does not fit, in one line.
  """
  name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
  if name not in DTYPES:
    raise errors.UserError(
      f'--dtype={name} is not supported; supported are {", ".join(DTYPES)}'
    )
  path = checkpoint.resolve(folder)
  config = config_lib.read(path, kind)
  # First, as it is quick: a bad tokenizer is told before weights are read.
  processor = processing.load(
    path, config, image_policy=image_policy, video_positions=video_positions
  )
  model = weights.load(path, config, dtype=jnp.dtype(name), mesh=mesh)
  return registry.Loaded(
    key=f'{kind}_flax',
    model=model,
    forward=modeling.forward,
    see=modeling.see,
    new_cache=modeling.new_cache,
    processor=processor,
    config=config,
    n_layers=config.text.n_layers,
    n_heads=config.text.n_heads,
    n_kv_heads=config.text.n_kv_heads,
    max_length=config.text.max_length,
    fingerprint=checkpoint.fingerprint(path),
    eos_ids=checkpoint.eos_ids(path, config.text.vocab_size),
  )


def load_processor(
  kind: str,
  folder: Any,
  *,
  image_policy: str = 'checkpoint',
  video_positions: str = positions.DEFAULT,
) -> processing.QwenVlProcessor:
  """The processor of a checkpoint, without its weights; see `load`."""
  path = checkpoint.resolve(folder)
  config = config_lib.read(path, kind)
  return processing.load(
    path, config, image_policy=image_policy, video_positions=video_positions
  )


def outline(
  kind: str, folder: Any, *, dtype: Any = 'float32'
) -> registry.Outline:
  """The shapes of a model; see registry.Outline.

  Args:
    kind: key of config.KINDS.
    folder: with config.json; or a hub id.
    dtype: of the parameters.

  Raises:
    UserError: the config.json is not there, or not one of this family.
  """
  config = config_lib.read(checkpoint.resolve(folder), kind)
  tower = config.vision

  def vision(n_pictures, n_features):
    if not n_pictures:
      return {}
    n_patches = processing.slots(n_features) * tower.block
    shape = (n_pictures, n_patches, tower.patch_values)
    return {
      'image_grid_thw': jax.ShapeDtypeStruct((n_pictures, 3), jnp.int32),
      'pixel_values': jax.ShapeDtypeStruct(shape, jnp.float32),
    }

  return registry.Outline(
    key=f'{kind}_flax',
    model=modeling.abstract(config, jnp.dtype(dtype)),
    forward=modeling.forward,
    see=modeling.see,
    config=config,
    vision=vision,
    n_axes=3,
  )


def resized(folder: Any) -> Callable[[tuple[int, int]], tuple[int, int]]:
  """What a checkpoint's processor makes of a picture's (width, height).

  Raises:
    UserError: no such folder, or its processor's file is not usable.
  """
  return functools.partial(
    pixels.resized, pixels.read(checkpoint.resolve(folder))
  )


def _family(kind: str, tower: str) -> registry.Family:
  family = config_lib.KINDS[kind]
  backbone = family.backbone + ('_moe' if family.experts else '')
  return registry.Family(
    key=f'{kind}_flax',
    backbones=(backbone,),
    towers=(tower,),
    parity=registry.PARITY,
    load=functools.partial(load, kind),
    load_processor=functools.partial(load_processor, kind),
    video=True,
    video_positions=tuple(positions.RULES),
    outline=functools.partial(outline, kind),
    box_answers='resized' if kind == 'qwen2_5_vl' else 'thousand',
    resized=resized,
  )


QWEN2_VL = _family('qwen2_vl', 'qwen2_vl')
QWEN2_5_VL = _family('qwen2_5_vl', 'qwen2_5_vl')
QWEN3_VL = _family('qwen3_vl', 'qwen3_vl')
QWEN3_VL_MOE = _family('qwen3_vl_moe', 'qwen3_vl')
