"""LLaVA (arXiv 2304.08485, 1.5: 2310.03744) as transformers' `llava` class.

    pixels [M,C,Y,X] -> tower -> hidden states of the feature layers, first
      token dropped or kept, concatenated -> Linear, act, Linear -> features
    tokens [B,T] -> embeddings, image tokens replaced by features -> decoder

Released: LLaVA-1.5 7B and 13B (llava-hf), BakLLaVA (Mistral), LLaVA-Interleave
(Qwen2 and SigLIP); see README.md. No deviation beyond those of the shared
decoder (models/decoder.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import attention
from corejax import inputs as inputs_lib
from corejax.models import decoder as decoder_lib
from corejax.models import layers
from corejax.models import multimodal
from corejax.models import vision as vision_lib
from corejax.models.llava import config as config_lib


class Projector(nnx.Module):
  """Two linear layers from tower features to the decoder's embeddings."""

  def __init__(self, config: config_lib.LlavaConfig, dtype: jnp.dtype):
    features = config.vision.d_model * len(config.feature_layers)
    d = (config.text.d_model,)
    opts: Any = dict(bias=config.projector_bias, dtype=dtype)
    self.linear_1 = layers.Linear(d, (features,), **opts)
    self.linear_2 = layers.Linear(d, d, **opts)
    self.act = config.projector_act

  def __call__(self, x_MIC: jax.Array) -> jax.Array:
    with jax.named_scope('projector'):
      hidden = layers.project(self.linear_1, x_MIC, 'MIC,DC->MID')
      hidden = layers.ACTIVATIONS[self.act](hidden)
      return layers.project(self.linear_2, hidden, 'MIC,DC->MID')


class Llava(nnx.Module):
  """All parameters.

  Attributes:
    config: LlavaConfig.
    vision: the tower.
    projector: the projector.
    language: the decoder.
  """

  def __init__(self, config: config_lib.LlavaConfig, dtype: jnp.dtype):
    self.config = config
    self.vision = vision_lib.Tower(config.vision, config.n_run, dtype)
    self.projector = Projector(config, dtype)
    self.language = decoder_lib.Decoder(config.text, dtype)


def abstract(config: config_lib.LlavaConfig, dtype: jnp.dtype) -> Llava:
  """The model with shapes and dtypes in place of arrays: costs no memory."""
  return nnx.eval_shape(lambda: Llava(config, dtype))


def project(model: Llava, hidden: Sequence[jax.Array]) -> jax.Array:
  """From the tower's hidden states to what replaces image tokens.

  Args:
    model: the parameters.
    hidden: per feature layer [M, I, D of the tower], class token first.

  Returns:
    [M, I, D], I = config.n_features.
  """
  first = 1 if model.config.select == 'default' else 0
  return model.projector(jnp.concatenate([h[:, first:] for h in hidden], -1))


def see(
  model: Llava,
  vision: Mapping[str, jax.Array],
  *,
  attend: attention.Attend = attention.reference,
) -> jax.Array:
  """What replaces image tokens, picture by picture; pure, as forward is.

  Args:
    model: the parameters.
    vision: 'pixel_values' [M, C, Y, X].
    attend: the tower's attention, called without control and probe.

  Returns:
    [M, I, D], in the parameters' dtype.
  """
  hidden = vision_lib.run(
    model.vision,
    vision['pixel_values'],
    model.config.feature_layers,
    attend=attend,
  )
  return project(model, hidden)


new_cache = multimodal.new_cache


def forward(
  model: Llava, inputs: inputs_lib.Inputs, **options: Any
) -> inputs_lib.Output:
  """One pass over a batch, as multimodal.forward says; pure."""
  return multimodal.forward(see, model, inputs, **options)
