"""Tiny random LLaVAs without torch and without files, and batches for them.

Weights are drawn as wide as those of hf_llava: peaked attention, spread logits.
"""

from collections.abc import Sequence
import dataclasses
import math

from flax import nnx
import jax.numpy as jnp
import numpy as np

from corejax import inputs as inputs_lib
from corejax import masks
from corejax.models import decoder
from corejax.models import rope
from corejax.models import vision
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling

IMAGE = 'image'
IMAGE_TOKEN = 60
_GAINS = {'q': math.sqrt(2), 'k': math.sqrt(2), 'embed': 3.0, 'head': 3.0}


def config(**text_kw) -> config_lib.LlavaConfig:
  """3 layers, 4 heads on 2 key/value heads; 9 tokens a picture.

  Args:
    **text_kw: override fields of the DecoderConfig.
  """
  text = decoder.DecoderConfig(
    **{
      'kind': 'llama',
      'vocab_size': 64,
      'd_model': 32,
      'd_mlp': 40,
      'n_layers': 3,
      'n_heads': 4,
      'n_kv_heads': 2,
      'head_dim': 8,
      'max_length': 128,
      'rope': rope.RopeConfig(8, max_length=128, original_length=128),
      **text_kw,
    }
  )
  tower = vision.VisionConfig(
    kind='clip',
    d_model=20,
    d_mlp=28,
    n_layers=2,
    n_heads=5,
    image_size=12,
    patch_size=4,
  )
  return config_lib.LlavaConfig(text, tower, IMAGE_TOKEN, feature_layers=(1,))


def build(
  model_config: config_lib.LlavaConfig, seed: int = 0, dtype: str = 'float32'
) -> modeling.Llava:
  """A model of this configuration with random weights."""
  rng = np.random.default_rng(seed)
  model = modeling.abstract(model_config, jnp.dtype(dtype))
  graph, state = nnx.split(model)
  filled = []
  for keys, param in nnx.to_flat_state(state):
    names = list(map(str, keys))
    shape = param.shape
    value = rng.standard_normal(shape).astype(np.float32)
    if 'norm' in '.'.join(names) and names[-1] == 'weight':
      value = rng.uniform(0.5, 1.6, shape)
    elif names[-1] == 'bias':
      value *= 0.3
    elif names[-1] == 'weight':
      stacked = 'layers' in names
      n_out = 2 if names[-2] in 'qkv' else 1
      n_in = math.prod(shape[stacked + n_out :])
      value *= _GAINS.get(names[-2], 1.0) / math.sqrt(n_in)
    filled.append((keys, param.replace(jnp.asarray(value, dtype))))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def batch(
  model_config: config_lib.LlavaConfig,
  sequences: Sequence[Sequence[int | str]],
  *,
  seed: int = 0,
  length: int | None = None,
) -> inputs_lib.Inputs:
  """Random tokens and pictures, padded on the right.

  Args:
    model_config: of the model.
    sequences: each a list of lengths of text runs and IMAGE.
    seed: of tokens and pixels.
    length: T; None is that of the longest.
  """
  rng = np.random.default_rng(seed)
  n_features = model_config.n_features
  side = model_config.vision.image_size
  rows, n_media = [], 0
  for sequence in sequences:
    tokens, feature = [], []
    for part in sequence:
      if isinstance(part, str):
        tokens += [model_config.image_token_id] * n_features
        feature += list(range(n_media * n_features, (n_media + 1) * n_features))
        n_media += 1
      else:
        tokens += list(rng.integers(3, IMAGE_TOKEN, part))
        feature += [-1] * part
    rows.append((tokens, feature))
  sizes = [len(tokens) for tokens, _ in rows]
  shape = (len(rows), length or max(sizes))
  arrays = {
    'tokens_BT': np.zeros(shape, np.int32),
    'positions_BT': np.zeros(shape, np.int32),
    'feature_BT': np.full(shape, -1, np.int32),
  }
  for b, (tokens, feature) in enumerate(rows):
    arrays['tokens_BT'][b, : sizes[b]] = tokens
    arrays['positions_BT'][b, : sizes[b]] = np.arange(sizes[b])
    arrays['feature_BT'][b, : sizes[b]] = feature
  vision_arrays = {}
  if n_media:
    pixels = rng.standard_normal((n_media, 3, side, side), np.float32)
    vision_arrays = {'pixel_values': jnp.asarray(pixels)}
  return inputs_lib.Inputs(
    mask=masks.AttnMask(kv_len_B=jnp.array(sizes, jnp.int32)),
    vision=vision_arrays,
    **{name: jnp.asarray(value) for name, value in arrays.items()},
  )


def real_rows(inputs: inputs_lib.Inputs) -> np.ndarray:
  """bool [B, T], rows that are not padding; of `batch`'s inputs."""
  length = inputs.tokens_BT.shape[1]
  return np.arange(length) < np.asarray(inputs.mask.kv_len_B)[:, None]


def rows(
  inputs: inputs_lib.Inputs, start_B: np.ndarray, count_B: np.ndarray, size: int
) -> inputs_lib.Inputs:
  """A chunk: rows start_B[b] .. start_B[b] + count_B[b], padded to `size`.

  All pictures go with every chunk.
  """
  row_BT = start_B[:, None] + np.arange(size)
  row_BT = np.minimum(row_BT, inputs.tokens_BT.shape[1] - 1)

  def take(x_BT):
    return jnp.asarray(np.take_along_axis(np.asarray(x_BT), row_BT, 1))

  return dataclasses.replace(
    inputs,
    tokens_BT=take(inputs.tokens_BT),
    positions_BT=take(inputs.positions_BT),
    feature_BT=take(inputs.feature_BT),
    mask=masks.AttnMask(kv_len_B=jnp.asarray(count_B, jnp.int32)),
  )
