"""InternVL 2.5, 3 and 3.5 as transformers' `internvl` class.

(arXiv 2412.05271, 2504.10479, 2508.18265)

    pixels [M,C,Y,X], one row a tile -> InternViT -> class token dropped
      -> 2x2 patches side by side (space to depth) -> LayerNorm, Linear, act,
      Linear -> features
    tokens [B,T] -> embeddings, image tokens replaced by features -> decoder

Released: InternVL2.5 1B to 78B, InternVL3 1B to 78B, InternVL3.5 1B to 38B, in
the repositories whose name ends in -hf; see README.md, also for deviations.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import attention
from corejax import inputs as inputs_lib
from corejax.models import decoder as decoder_lib
from corejax.models import internvit
from corejax.models import layers
from corejax.models import multimodal
from corejax.models.internvl import config as config_lib

_PROJECTOR_EPS = 1e-5  # torch's default


class Projector(nnx.Module):
  """LayerNorm and two linear layers, from tower features to embeddings."""

  def __init__(self, config: config_lib.InternVLConfig, dtype: jnp.dtype):
    features = config.vision.d_model * config.shrink**2
    d = (config.text.d_model,)
    opts: Any = dict(bias=True, dtype=dtype)
    self.norm = layers.Norm(features, **opts)
    self.linear_1 = layers.Linear(d, (features,), **opts)
    self.linear_2 = layers.Linear(d, d, **opts)
    self.act = config.projector_act

  def __call__(self, x_MIC: jax.Array) -> jax.Array:
    with jax.named_scope('projector'):
      hidden = layers.layer_norm(self.norm, x_MIC, _PROJECTOR_EPS)
      hidden = layers.project(self.linear_1, hidden, 'MIC,DC->MID')
      hidden = layers.ACTIVATIONS[self.act](hidden)
      return layers.project(self.linear_2, hidden, 'MIC,DC->MID')


class InternVL(nnx.Module):
  """All parameters.

  Attributes:
    config: InternVLConfig.
    vision: the tower.
    projector: the projector.
    language: the decoder.
  """

  def __init__(self, config: config_lib.InternVLConfig, dtype: jnp.dtype):
    self.config = config
    self.vision = internvit.Tower(
      config.vision, config.n_run, config.final, dtype
    )
    self.projector = Projector(config, dtype)
    self.language = decoder_lib.Decoder(config.text, dtype)


def abstract(config: config_lib.InternVLConfig, dtype: jnp.dtype) -> InternVL:
  """The model with shapes and dtypes in place of arrays: costs no memory."""
  return nnx.eval_shape(lambda: InternVL(config, dtype))


def space_to_depth(x_MIC: jax.Array, shrink: int) -> jax.Array:
  """Squares of patches become one feature each.

      0 1 2 3                  features row by row, channels of a feature
      4 5 6 7     shrink 2     (dy, dx, c):  0: 0 1 4 5   1: 2 3 6 7
      8 9 a b     ------->                   2: 8 9 c d   3: a b e f
      c d e f

  Equal to transformers' `pixel_shuffle(scale_factor=1 / shrink)`.

  Args:
    x_MIC: [M, I, C], I a square, row by row, no class token.
    shrink: patches along a side of such a square.

  Returns:
    [M, I / shrink^2, shrink^2 * C].
  """
  n_tiles, n_patches, channels = x_MIC.shape
  side = round(n_patches**0.5) // shrink
  x = x_MIC.reshape(n_tiles, side, shrink, side, shrink, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n_tiles, side * side, shrink * shrink * channels)


def project(model: InternVL, hidden_MID: jax.Array) -> jax.Array:
  """From what the tower hands on to what replaces image tokens.

  Args:
    model: the parameters.
    hidden_MID: [M, I, D of the tower], class token first.

  Returns:
    [M, I, D], I = config.n_features.
  """
  patches_MIC = hidden_MID[:, 1:]
  return model.projector(space_to_depth(patches_MIC, model.config.shrink))


def see(
  model: InternVL,
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
    [M, I, D], in the parameters' dtype.
  """
  hidden = internvit.run(model.vision, vision['pixel_values'], attend=attend)
  return project(model, hidden)


new_cache = multimodal.new_cache


def forward(
  model: InternVL, inputs: inputs_lib.Inputs, **options: Any
) -> inputs_lib.Output:
  """One pass over a batch, as multimodal.forward says; pure."""
  return multimodal.forward(see, model, inputs, **options)
