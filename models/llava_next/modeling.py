"""LLaVA-NeXT (LLaVA-1.6) as transformers' `llava_next` class.

    pixels [M,C,Y,X], one row a tile -> tower -> projector, as LLaVA -> features
    and behind each tile's features the newline, one learned embedding
    tokens [B,T] -> embeddings, image tokens replaced by features -> decoder

(https://llava-vl.github.io/blog/2024-01-30-llava-next.) Which feature, or
newline, each token takes is decided by models/anyres.py. LLaVA-OneVision
(arXiv 2408.03326) is the same model with another tower and other tiles.

Released: llava-v1.6 on Mistral, Vicuna, Yi and Llama 3; see README.md.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import attention
from corejax import inputs as inputs_lib
from corejax.models import multimodal
from corejax.models.llava import modeling as llava
from corejax.models.llava_next import config as config_lib


class LlavaNext(llava.Llava):
  """All parameters.

  Attributes:
    config, vision, projector, language: as Llava's.
    newline: [D].
  """

  def __init__(self, config: config_lib.LlavaNextConfig, dtype: jnp.dtype):
    super().__init__(config, dtype)
    self.newline = nnx.Param(jnp.zeros(config.text.d_model, dtype))


def abstract(config: config_lib.LlavaNextConfig, dtype: jnp.dtype) -> LlavaNext:
  """The model with shapes and dtypes in place of arrays: costs no memory."""
  return nnx.eval_shape(lambda: LlavaNext(config, dtype))


def see(
  model: LlavaNext,
  vision: Mapping[str, jax.Array],
  *,
  attend: attention.Attend = attention.reference,
) -> jax.Array:
  """What replaces image tokens, tile by tile; pure, as forward is.

  Args:
    model: the parameters.
    vision: 'pixel_values' [M, C, Y, X], one row a tile.
    attend: the tower's attention, called without control and probe.

  Returns:
    [M, I + 1, D], the last row of each tile the newline.
  """
  features_MID = llava.see(model, vision, attend=attend)
  shape = (len(features_MID), 1, features_MID.shape[-1])
  newline_M1D = jnp.broadcast_to(model.newline[...], shape)
  return jnp.concatenate([features_MID, newline_M1D], axis=1)


new_cache = multimodal.new_cache


def forward(
  model: LlavaNext, inputs: inputs_lib.Inputs, **options: Any
) -> inputs_lib.Output:
  """One pass over a batch, as multimodal.forward says; pure."""
  return multimodal.forward(see, model, inputs, **options)
