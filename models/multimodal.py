"""What the ports of picture-reading models share: merge, then decode.

    features [M, I, D]  (a family's `see`)  -> rows of one table [M * I, D]
    tokens [B, T] -> embeddings; where feature_BT >= 0 the table's row instead
    -> decoder -> logits, statistics, cache

A row is one feature of a tile (or picture), in the order in which the tower
reads them; which row a token takes is decided on the host (tiled.py, or
qwen_vl/processing.py), so that the number of tiles, their order and their
newlines cost no program of their own. Qwen3-VL's rows are [levels * D]: the
levels above the first are added behind the first decoder layers.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from corejax import attention
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax.models import decoder as decoder_lib


class See(Protocol):
  """`see(model, vision, *, attend)`: as models.registry.See."""

  def __call__(
    self,
    model: Any,
    vision: Mapping[str, jax.Array],
    *,
    attend: attention.Attend,
  ) -> jax.Array: ...


def merge(
  language: decoder_lib.Decoder,
  inputs: inputs_lib.Inputs,
  features_ID: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
  """Token embeddings with visual tokens replaced, and DeepStack's features.

  Args:
    language: the decoder.
    inputs: the batch.
    features_ID: [all tiles' features, D], or [.., levels * D] where a family
      has DeepStack; None where there is no picture.

  Returns:
    x_BTD, and deep_XBTD of the levels above the first; None without.
  """
  if features_ID is None:
    return decoder_lib.embed(language, inputs.tokens_BT), None
  feature_BTK = inputs.feature_BT
  if feature_BTK.ndim == 2:
    feature_BTK = feature_BTK[..., None]
  is_visual_BT = feature_BTK[..., 0] >= 0
  # An image token may lie beyond the embedding table.
  tokens_BT = jnp.where(is_visual_BT, 0, inputs.tokens_BT)
  text_BTD = decoder_lib.embed(language, tokens_BT)
  with jax.named_scope('merge'):
    row_BTK = jnp.maximum(feature_BTK, 0)

    def placed(level_ID, other_BTD):
      visual_BTD = level_ID[row_BTK[..., 0]]
      if inputs.blend_BTK is not None:
        visual_BTD = visual_BTD * inputs.blend_BTK[..., :1]  # float32
        for k in range(1, row_BTK.shape[-1]):
          more_BTD = level_ID[row_BTK[..., k]]
          visual_BTD += more_BTD * inputs.blend_BTK[..., k, None]
      return jnp.where(
        is_visual_BT[..., None], visual_BTD.astype(text_BTD.dtype), other_BTD
      )

    n_levels = features_ID.shape[-1] // language.config.d_model
    own_ID, *deep = jnp.split(features_ID, n_levels, -1)
    x_BTD = placed(own_ID, text_BTD)
    if not deep:
      return x_BTD, None
    return x_BTD, jnp.stack([placed(level_ID, 0) for level_ID in deep])


def _features(
  see: See, model: Any, inputs: inputs_lib.Inputs, attend: attention.Attend
) -> jax.Array | None:
  """[all tiles' features, (levels *) D]; None where there is no picture."""
  if inputs.features_ID is not None:
    return inputs.features_ID
  pixels_MCYX = inputs.vision.get('pixel_values')
  if pixels_MCYX is None or not pixels_MCYX.shape[0]:
    return None
  features_MID = see(model, inputs.vision, attend=attend)
  return features_MID.reshape(-1, features_MID.shape[-1])


def new_cache(model: Any, batch: int, size: int) -> cache_lib.Cache:
  """An empty cache of `size` tokens an example, for a family's `forward`."""
  return decoder_lib.new_cache(model.language, batch, size)


def forward(
  see: See,
  model: Any,
  inputs: inputs_lib.Inputs,
  *,
  attend: attention.Attend = attention.reference,
  control: control_lib.HeadControl | None = None,
  probe: probe_lib.Probe | None = None,
  logit_rows_BP: jax.Array | None = None,
  cache: cache_lib.Cache | None = None,
  tower_attend: attention.Attend | None = None,
) -> inputs_lib.Output:
  """One pass over a batch; pure.

  Args:
    see: the family's tower and projector.
    model: the parameters, the decoder as `language`.
    inputs: the batch; `vision` is what the family's `see` takes, its
      'pixel_values' one row a tile (or picture), or nothing, and is not looked
      at where `features_ID` is given.
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
  features_ID = _features(see, model, inputs, tower_attend or attend)
  x_BTD, deep_XBTD = merge(model.language, inputs, features_ID)
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
