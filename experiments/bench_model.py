"""What `bench_rank` runs: a random LLaVA and one prompt, for any framework.

Plain numbers and numpy only, so that a side in another framework makes the
same model and the same prompt out of this file.

    16 words | pictures | words ... | question 24 | cue 8 | answer 8
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any
import zlib

import numpy as np

from corejax import errors
from corejax import regions

_HEAD, _QUESTION, _CUE, _ANSWER = 16, 24, 8, 8
_TEXT = _HEAD + _QUESTION + _CUE + _ANSWER


@dataclasses.dataclass(frozen=True)
class Spec:
  """Sizes of the model.

  Attributes:
    layers, heads, hidden, mlp, vocab: of the decoder, a Llama.
    tower_layers, tower_heads, tower_hidden: of the CLIP tower; its MLP is
      four times as wide.
    image_size, patch_size: of its pictures.
    seed: of weights, tokens and pixels.
  """

  layers: int = 8
  heads: int = 16
  hidden: int = 1024
  mlp: int = 2752
  vocab: int = 32000
  tower_layers: int = 2
  tower_heads: int = 4
  tower_hidden: int = 256
  image_size: int = 336
  patch_size: int = 14
  seed: int = 0

  @property
  def n_features(self) -> int:
    """Visual tokens of a picture."""
    return (self.image_size // self.patch_size) ** 2

  @property
  def image_token(self) -> int:
    return self.vocab - 1


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One sequence.

  Attributes:
    tokens_T: int32 [T].
    feature_T: int32 [T], row of the flattened visual features; -1 for text.
    pixels: float32 [pictures, 3, side, side].
    region_T: int8 [T], regions.REGIONS.
    rows: per query set, int32 rows.
    visual_I: int32 [I], sequence positions of the visual tokens.
    answer_A: int32 [A], the forced answer.
  """

  tokens_T: np.ndarray
  feature_T: np.ndarray
  pixels: np.ndarray
  region_T: np.ndarray
  rows: Mapping[str, np.ndarray]
  visual_I: np.ndarray
  answer_A: np.ndarray

  @property
  def evidence_I(self) -> np.ndarray:
    """bool [I], visual tokens that are evidence."""
    return self.region_T[self.visual_I] == regions.EVIDENCE


def prompt(spec: Spec, length: int) -> Prompt:
  """As many pictures as fit into `length` tokens; the rest is text.

  Raises:
    UserError: not even one fits.
  """
  n_pictures = (length - _TEXT) // spec.n_features
  if n_pictures < 1:
    raise errors.UserError(
      f'--lengths: {length} tokens are too few for a picture; give '
      f'{_TEXT + spec.n_features} or more'
    )
  rng = np.random.default_rng([spec.seed, length])
  n_visual = n_pictures * spec.n_features
  tokens_T = rng.integers(3, spec.image_token, length, dtype=np.int32)
  visual_I = np.arange(_HEAD, _HEAD + n_visual, dtype=np.int32)
  tokens_T[visual_I] = spec.image_token
  feature_T = np.full(length, -1, np.int32)
  feature_T[visual_I] = np.arange(n_visual)
  evidence_I = np.zeros(n_visual, bool)
  start = n_visual // 2
  evidence_I[start : start + max(1, spec.n_features // 20)] = True
  last = length - _ANSWER
  question = (last - _CUE - _QUESTION, last - _CUE)
  side = spec.image_size
  return Prompt(
    tokens_T=tokens_T,
    feature_T=feature_T,
    pixels=rng.standard_normal((n_pictures, 3, side, side), np.float32),
    region_T=regions.partition(length, visual_I, evidence_I, (), question),
    rows={
      'question': np.arange(*question, dtype=np.int32),
      'last': np.array([last], np.int32),
      'answer': np.arange(last, length, dtype=np.int32),
    },
    visual_I=visual_I,
    answer_A=rng.integers(3, spec.image_token, _ANSWER, dtype=np.int32),
  )


def draw(spec: Spec, name: str, shape: Sequence[int]) -> np.ndarray:
  """One weight, by its name in transformers: float32, a unit in, a unit out."""
  rng = np.random.default_rng([spec.seed, zlib.crc32(name.encode())])
  values = rng.standard_normal(shape, np.float32)
  if 'norm' in name or 'layrnorm' in name:
    return values * np.float32(0.1) + (name.endswith('weight'))
  if len(shape) > 1:
    values /= np.float32(math.sqrt(math.prod(shape[1:])))
  return values


def product_flops(spec: Spec, length: int) -> int:
  """Floating-point operations of a forward's matrix products, by hand.

  A product of [m, k] and [k, n] is 2 m k n. Attention is counted as causal:
  row i reads i + 1 keys. Logits are those of the answer's rows.
  """
  pictures = (length - _TEXT) // spec.n_features
  hidden, tower = spec.hidden, spec.tower_hidden
  pairs = length * (length + 1) // 2
  layer = length * (4 * hidden**2 + 3 * hidden * spec.mlp) + 2 * pairs * hidden
  patches = spec.n_features + 1
  tower_layer = pictures * (patches * 12 * tower**2 + 2 * patches**2 * tower)
  embed = pictures * spec.n_features * 3 * spec.patch_size**2 * tower
  projector = pictures * spec.n_features * hidden * (tower + hidden)
  head = _ANSWER * hidden * spec.vocab
  return 2 * (
    spec.layers * layer
    + spec.tower_layers * tower_layer
    + embed
    + projector
    + head
  )


def documents(spec: Spec) -> dict[str, Any]:
  """The model's config.json, for those that read one."""
  return {
    'model_type': 'llava',
    'image_token_index': spec.image_token,
    'projector_hidden_act': 'gelu',
    'vision_feature_layer': -1,
    'vision_feature_select_strategy': 'default',
    'tie_word_embeddings': False,
    'text_config': {
      'model_type': 'llama',
      'vocab_size': spec.vocab,
      'hidden_size': spec.hidden,
      'intermediate_size': spec.mlp,
      'num_hidden_layers': spec.layers,
      'num_attention_heads': spec.heads,
      'num_key_value_heads': spec.heads,
      'max_position_embeddings': 1 << 20,
      'rms_norm_eps': 1e-5,
    },
    'vision_config': {
      'model_type': 'clip_vision_model',
      'hidden_size': spec.tower_hidden,
      'intermediate_size': 4 * spec.tower_hidden,
      'num_hidden_layers': spec.tower_layers,
      'num_attention_heads': spec.tower_heads,
      'image_size': spec.image_size,
      'patch_size': spec.patch_size,
    },
  }
