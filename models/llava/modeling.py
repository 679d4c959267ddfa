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
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax.models import decoder as decoder_lib
from corejax.models import layers
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


def merge(
  model: Llava, inputs: inputs_lib.Inputs, features_ID: jax.Array | None
) -> jax.Array:
  """Token embeddings with image tokens replaced.

  Args:
    model: the parameters.
    inputs: the batch.
    features_ID: [all pictures' features, D]; None where there is no picture.

  Returns:
    [B, T, D].
  """
  if features_ID is None:
    return decoder_lib.embed(model.language, inputs.tokens_BT)
  is_visual = inputs.feature_BT >= 0
  # An image token may lie beyond the embedding table.
  tokens_BT = jnp.where(is_visual, 0, inputs.tokens_BT)
  text_BTD = decoder_lib.embed(model.language, tokens_BT)
  with jax.named_scope('merge'):
    visual_BTD = features_ID[jnp.maximum(inputs.feature_BT, 0)]
    return jnp.where(
      is_visual[..., None], visual_BTD.astype(text_BTD.dtype), text_BTD
    )


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


def _features(
  model: Llava, inputs: inputs_lib.Inputs, attend: attention.Attend
) -> jax.Array | None:
  """[all pictures' features, D]; None where there is no picture."""
  if inputs.features_ID is not None:
    return inputs.features_ID
  pixels_MCYX = inputs.vision.get('pixel_values')
  if pixels_MCYX is None or not pixels_MCYX.shape[0]:
    return None
  features_MID = see(model, inputs.vision, attend=attend)
  return features_MID.reshape(-1, features_MID.shape[-1])


def new_cache(model: Llava, batch: int, size: int) -> cache_lib.Cache:
  """An empty cache of `size` tokens an example, for `forward`."""
  return decoder_lib.new_cache(model.language, batch, size)


def forward(
  model: Llava,
  inputs: inputs_lib.Inputs,
  *,
  attend: attention.Attend = attention.reference,
  control: control_lib.HeadControl | None = None,
  probe: probe_lib.Probe | None = None,
  logit_rows_BP: jax.Array | None = None,
  cache: cache_lib.Cache | None = None,
  tower_attend: attention.Attend | None = None,
) -> inputs_lib.Output:
  """One pass over a batch; pure, to be jitted with the model as an argument.

  Args:
    model: the parameters.
    inputs: the batch; `vision` holds 'pixel_values' [M, C, Y, X] or nothing,
      and is not looked at where `features_ID` is given.
    attend: the decoder's attention; stores [T, S] only if it does.
    control: edits of the decoder's heads.
    probe: what to measure in the decoder.
    logit_rows_BP: int32 rows whose logits are wanted (-1 unused); None is all.
    cache: what was read before; `inputs` are then the chunk that follows, see
      corejax.cache.
    tower_attend: the tower's attention, called without control and probe; None
      is the decoder's.

  Returns:
    An Output; logits float32 [B, P, V].
  """
  features_ID = _features(model, inputs, tower_attend or attend)
  out = decoder_lib.run(
    model.language,
    merge(model, inputs, features_ID),
    inputs.positions_BT,
    inputs.mask,
    attend=attend,
    control=control,
    probe=probe,
    cache=cache,
  )
  return inputs_lib.Output(
    decoder_lib.logits(model.language, out.x_BTD, logit_rows_BP),
    out.measured,
    out.cache,
  )
