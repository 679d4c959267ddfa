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

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import attention
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax.models import decoder as decoder_lib
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


def merge(
  model: QwenVl, inputs: inputs_lib.Inputs, features_ID: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """Token embeddings with image tokens replaced, and DeepStack's features.

  Args:
    model: the parameters.
    inputs: the batch.
    features_ID: [all pictures' features, levels * D]; None where there is no
      picture.

  Returns:
    x_BTD and deep_XBTD, as decoder.run takes them.
  """
  if features_ID is None:
    return decoder_lib.embed(model.language, inputs.tokens_BT), None
  is_visual = inputs.feature_BT >= 0
  # An image token may lie beyond the embedding table.
  tokens_BT = jnp.where(is_visual, 0, inputs.tokens_BT)
  text_BTD = decoder_lib.embed(model.language, tokens_BT)
  with jax.named_scope('merge'):
    row_BT = jnp.maximum(inputs.feature_BT, 0)
    n_levels = model.config.vision.n_levels
    own_ID, *deep = jnp.split(features_ID.astype(text_BTD.dtype), n_levels, -1)
    is_visual = is_visual[..., None]
    x_BTD = jnp.where(is_visual, own_ID[row_BT], text_BTD)
    if not deep:
      return x_BTD, None
    return x_BTD, jnp.stack(
      [jnp.where(is_visual, level_ID[row_BT], 0) for level_ID in deep]
    )


def _features(
  model: QwenVl, inputs: inputs_lib.Inputs, attend: attention.Attend
) -> jax.Array | None:
  """[all pictures' features, D]; None where there is no picture."""
  if inputs.features_ID is not None:
    return inputs.features_ID
  patches_MIC = inputs.vision.get('pixel_values')
  if patches_MIC is None or not patches_MIC.shape[0]:
    return None
  features_MID = see(model, inputs.vision, attend=attend)
  return features_MID.reshape(-1, features_MID.shape[-1])


def new_cache(model: QwenVl, batch: int, size: int) -> cache_lib.Cache:
  """An empty cache of `size` tokens an example, for `forward`."""
  return decoder_lib.new_cache(model.language, batch, size)


def forward(
  model: QwenVl,
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
    inputs: the batch, positions [B, 3, T] (or [B, T] where no example has a
      picture); `vision` as `see` takes it, or nothing, and not looked at where
      `features_ID` is given.
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
  x_BTD, deep_XBTD = merge(model, inputs, features_ID)
  out = decoder_lib.run(
    model.language,
    x_BTD,
    inputs.positions_BT,
    inputs.mask,
    attend=attend,
    control=control,
    probe=probe,
    cache=cache,
    deep_XBTD=deep_XBTD,
  )
  return inputs_lib.Output(
    decoder_lib.logits(model.language, out.x_BTD, logit_rows_BP),
    out.measured,
    out.cache,
  )
