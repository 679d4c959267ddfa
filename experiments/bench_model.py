"""What the benchmarks run: a random model and one prompt, for any framework.

Plain numbers and numpy only, so that a side in another framework makes the
same model and the same prompt out of this file (and bench_family, which has
what differs between families).

    16 words | pictures | words ... | question 24 | cue 8 | answer 8
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import zlib

import numpy as np

from corejax import errors
from corejax import regions
from corejax.experiments import bench_family

SHOWN = 8  # logits of a row that sides tell, to be compared
_HEAD, _QUESTION, _CUE, _ANSWER = 16, 24, 8, 8
_TEXT = _HEAD + _QUESTION + _CUE + _ANSWER


@dataclasses.dataclass(frozen=True)
class Spec:
  """Sizes of the model.

  Attributes:
    layers, heads, hidden, mlp, vocab: of the decoder.
    tower_layers, tower_heads, tower_hidden: of the tower; its MLP is four times
      as wide.
    image_size, patch_size: of its pictures.
    seed: of weights, tokens and pixels.
    family: key of bench_family.FAMILIES.
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
  family: str = 'llava'

  @property
  def n_features(self) -> int:
    """Visual tokens of a LLaVA's picture."""
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
      [T, K] where a token is a sum of K rows, of which the first counts.
    positions_T: int32 [T], or [3, T].
    pixels: float32 [pictures, 3, side, side]; see bench_family.Pictures.
    vision, theirs: what belongs to the pixels, ours and transformers'.
    region_T: int8 [T], regions.REGIONS.
    rows: per query set, int32 rows.
    visual_I: int32 [I], sequence positions of the visual tokens.
    answer_A: int32 [A], the forced answer.
  """

  tokens_T: np.ndarray
  feature_T: np.ndarray
  positions_T: np.ndarray
  pixels: np.ndarray
  vision: Mapping[str, np.ndarray]
  theirs: Mapping[str, np.ndarray]
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
  shown = bench_family.pictures(spec, length - _TEXT)
  if shown is None:
    least = next(n for n in range(1 << 20) if bench_family.pictures(spec, n))
    raise errors.UserError(
      f'a prompt of {length} tokens has no room for a picture; give '
      f'{_TEXT + least} tokens or more'
    )
  rng = np.random.default_rng([spec.seed, length])
  n_tokens, n_blend = shown.feature_FK.shape
  # Two kinds of picture tokens (a video's is the last but one) are no text.
  tokens_T = rng.integers(3, spec.image_token - 1, length, dtype=np.int32)
  picture_F = np.arange(_HEAD, _HEAD + n_tokens, dtype=np.int32)
  tokens_T[picture_F] = spec.image_token
  feature_TK = np.full((length, n_blend), -1, np.int32)
  feature_TK[picture_F] = shown.feature_FK
  visual_I = picture_F[shown.shown]
  evidence_I = np.zeros(len(visual_I), bool)
  start = len(visual_I) // 2
  evidence_I[start : start + max(1, spec.n_features // 20)] = True
  last = length - _ANSWER
  question = (last - _CUE - _QUESTION, last - _CUE)
  return Prompt(
    tokens_T=tokens_T,
    feature_T=feature_TK if n_blend > 1 else feature_TK[:, 0],
    positions_T=bench_family.positions(length, _HEAD, shown),
    pixels=rng.standard_normal(shown.pixels, np.float32),
    vision=shown.vision,
    theirs=shown.theirs,
    region_T=regions.partition(length, visual_I, evidence_I, (), question),
    rows={
      'question': np.arange(*question, dtype=np.int32),
      'last': np.array([last], np.int32),
      'answer': np.arange(last, length, dtype=np.int32),
    },
    visual_I=visual_I,
    answer_A=rng.integers(3, spec.image_token - 1, _ANSWER, dtype=np.int32),
  )


def draw(spec: Spec, name: str, shape: Sequence[int]) -> np.ndarray:
  """One weight, by its name in transformers: float32, a unit in, a unit out."""
  rng = np.random.default_rng([spec.seed, zlib.crc32(name.encode())])
  values = rng.standard_normal(shape, np.float32)
  if 'norm' in name or 'layrnorm' in name:
    return values * np.float32(0.1) + (name.endswith('weight'))
  if 'experts' in name:  # [experts, out, in]
    values /= np.float32(math.sqrt(shape[-1]))
  elif len(shape) > 1:
    values /= np.float32(math.sqrt(math.prod(shape[1:])))
  return values


def product_flops(spec: Spec, length: int) -> int:
  """Floating-point operations of a LLaVA's matrix products, by hand.

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
