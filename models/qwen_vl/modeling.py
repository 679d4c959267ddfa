"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as transformers' classes of these names.

    patches [M, I, C] -> tower -> 2x2 blocks merged -> features
    tokens [B, T] -> embeddings, visual tokens replaced by features -> decoder
    positions [B, 3, T]: time, row and column of every token (M-RoPE)
    Qwen3-VL: DeepStack features are added behind the first decoder layers

M counts pictures, and pairs of frames of videos.

Released: README.md. No deviation beyond those of the shared decoder
(models/decoder.py) and tower (models/qwen_vision.py).
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import attention
from corejax import inputs as inputs_lib
from corejax.models import decoder as decoder_lib
from corejax.models import multimodal
from corejax.models import qwen_vision
from corejax.models.qwen_vl import config as config_lib


class QwenVl(nnx.Module):
  """All parameters.

  Attributes:
    config: QwenVlConfig.
    vision: the tower with its mergers.
    language: the decoder.
  """

  def __init__(self, config: config_lib.QwenVlConfig, dtype: jnp.dtype):
    self.config = config
    self.vision = qwen_vision.Tower(config.vision, dtype)
    self.language = decoder_lib.Decoder(config.text, dtype)


def abstract(config: config_lib.QwenVlConfig, dtype: jnp.dtype) -> QwenVl:
  """The model with shapes and dtypes in place of arrays: costs no memory."""
  return nnx.eval_shape(lambda: QwenVl(config, dtype))


def see(
  model: QwenVl,
  vision: Mapping[str, jax.Array],
  *,
  attend: attention.Attend = attention.reference,
) -> jax.Array:
  """What replaces image tokens, picture by picture; pure, as forward is.

  Args:
    model: the parameters.
    vision: 'pixel_values' [M, I, C], each picture's patches, padded; and
      'image_grid_thw' int32 [M, 3], what is real of them.
    attend: the tower's attention, called without control and probe.

  Returns:
    [M, I / 4, levels * D], in the parameters' dtype: the features of padding
    come last, and those of DeepStack behind a token's own.
  """
  hidden = qwen_vision.run(
    model.vision,
    vision['pixel_values'],
    vision['image_grid_thw'],
    attend=attend,
  )
  return qwen_vision.merge(model.vision, hidden)


new_cache = multimodal.new_cache


def forward(
  model: QwenVl, inputs: inputs_lib.Inputs, **options: Any
) -> inputs_lib.Output:
  """One pass over a batch, as multimodal.forward says; pure.

  Positions are [B, 3, T], or [B, T] where no example has a picture.
  """
  return multimodal.forward(see, model, inputs, **options)
