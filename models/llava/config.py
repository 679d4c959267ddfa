"""LLaVA's configuration: what of a folder's config.json is read, and how."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any, Self, TypeVar

from corejax import errors
from corejax.models import checkpoint
from corejax.models import decoder
from corejax.models import layers
from corejax.models import rope
from corejax.models import vision

HANDLED_KEYS = frozenset(
  {
    'image_seq_length',
    'image_token_id',
    'image_token_index',
    'model_type',
    'multimodal_projector_bias',
    'projector_hidden_act',
    'text_config',
    'tie_word_embeddings',
    'vision_config',
    'vision_feature_layer',
    'vision_feature_select_strategy',
  }
)
# Training-time, or repeated from text_config in old files.
IGNORED_KEYS = frozenset(
  {
    'bos_token_id',
    'eos_token_id',
    'ignore_index',
    'initializer_range',
    'pad_token_id',
    'use_cache',
    'vocab_size',
  }
)
# transformers makes a table of so many labels, which nobody reads.
_LABELS: Mapping[str, tuple[float, float]] = {'num_labels': (0, 1 << 16)}
_RANGES: Mapping[str, tuple[float, float]] = {
  'image_token_id': (0, 1 << 24),
  'image_token_index': (0, 1 << 24),
  'vision_feature_layer': (-4096, 4096),
  **_LABELS,
}


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
  """A whole model.

  Attributes:
    text: the decoder.
    vision: the tower.
    image_token_id: token that stands for one visual feature.
    feature_layers: indices into the tower's hidden states (0 is the input of
      layer 0) whose concatenation is projected; never negative.
    select: 'default' drops the first token of every picture (CLIP's class
      token), 'full' keeps it.
    projector_act: activation between the projector's two layers.
    projector_bias: do both have biases?
  """

  text: decoder.DecoderConfig
  vision: vision.VisionConfig
  image_token_id: int
  feature_layers: tuple[int, ...]
  select: str = 'default'
  projector_act: str = 'gelu'
  projector_bias: bool = True

  @property
  def n_run(self) -> int:
    """Tower layers that are needed."""
    return max(self.feature_layers)

  @property
  def n_features(self) -> int:
    """Visual features, and so image tokens, of one picture."""
    return self.vision.n_tokens - (self.select == 'default')

  @classmethod
  def from_hf(cls, hf: Any) -> Self:
    """Reads a LlavaConfig object of transformers 5.

    Raises:
      UserError: a setting that is not supported.
    """
    tower = vision.VisionConfig.from_hf(hf.vision_config)
    if not 0 <= hf.image_token_index < hf.text_config.vocab_size:
      raise errors.UserError(
        f'image_token_index={hf.image_token_index} is outside 0..'
        f'{hf.text_config.vocab_size - 1} (text_config.vocab_size)'
      )
    if hf.vision_feature_select_strategy not in ('default', 'full'):
      raise errors.UserError(
        'vision_feature_select_strategy='
        f'{hf.vision_feature_select_strategy!r} is not supported; supported '
        'are default, full'
      )
    return cls(
      text=decoder.DecoderConfig.from_hf(
        hf.text_config, tie=bool(hf.tie_word_embeddings)
      ),
      vision=tower,
      image_token_id=hf.image_token_index,
      feature_layers=_feature_layers(hf.vision_feature_layer, tower.n_layers),
      select=hf.vision_feature_select_strategy,
      projector_act=layers.check_activation(
        hf.projector_hidden_act, 'projector_hidden_act'
      ),
      projector_bias=bool(hf.multimodal_projector_bias),
    )


_Config = TypeVar('_Config', bound=LlavaConfig)


def _feature_layers(value: int | list[int], n_layers: int) -> tuple[int, ...]:
  """`vision_feature_layer` as indices from the bottom."""
  values = [value] if isinstance(value, int) else list(value)
  count = n_layers + 1
  if not values or not all(-count <= v < count for v in values):
    raise errors.UserError(
      f'vision_feature_layer={value} is outside {-count}..{count - 1} (the '
      f'tower has {n_layers} layers)'
    )
  return tuple(v % count for v in values)


def read(folder: pathlib.Path) -> LlavaConfig:
  """The config of a checkpoint folder.

  Raises:
    UserError: not a LLaVA, a key that is not known, an unsupported setting.
  """
  return read_as(LlavaConfig, 'llava', folder, HANDLED_KEYS)


def read_as(
  kind: type[_Config],
  model_type: str,
  folder: pathlib.Path,
  handled: frozenset[str],
) -> _Config:
  """The config of a folder of one LLaVA-like family.

  Args:
    kind: with a `from_hf`.
    model_type: what config.json must say.
    folder: the checkpoint.
    handled: keys that are read.

  Raises:
    UserError: another family, a key that is not known, an unsupported setting.
  """
  path = folder / 'config.json'
  raw = checkpoint.read_json(path)
  try:
    check_numbers(raw)
    hf = checkpoint.normalised(folder)
    if hf.model_type != model_type:
      raise errors.UserError(
        f'model_type={hf.model_type!r} is not a LLaVA; '
        f'{model_type}_flax reads model_type={model_type!r}'
      )
    # Before the keys: of an unsupported backbone or tower no key is known.
    config = kind.from_hf(hf)
    _check_keys(raw, config, handled)
    return config
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from error


def check_numbers(raw: Mapping[str, Any]):
  """Refuses numbers that no model has, before transformers believes them.

  Raises:
    UserError: naming the first.
  """
  checkpoint.check_ranges(raw, _RANGES, '')
  for part, ranges in (
    ('text_config', decoder.RANGES),
    ('vision_config', vision.RANGES),
  ):
    value = raw.get(part) or {}
    if not isinstance(value, Mapping):
      raise errors.UserError(
        f'{part}={value!r} is no JSON object; fetch the file again'
      )
    checkpoint.check_ranges(value, ranges, f'{part}.')
    checkpoint.check_ranges(value, _LABELS, f'{part}.')
    for key in ('rope_parameters', 'rope_scaling'):
      if isinstance(value.get(key), Mapping):
        rope.check_numbers(value[key])


def _check_keys(
  raw: Mapping[str, Any], config: LlavaConfig, handled: frozenset[str]
) -> None:
  """Refuses keys that nobody reads."""
  checkpoint.check_keys(raw, handled, IGNORED_KEYS, '')
  checkpoint.check_keys(
    raw.get('text_config') or {},
    decoder.HANDLED_KEYS[config.text.kind],
    decoder.IGNORED_KEYS,
    'text_config.',
    decoder.NEUTRAL_KEYS,
  )
  checkpoint.check_keys(
    raw.get('vision_config') or {},
    vision.HANDLED_KEYS,
    vision.IGNORED_KEYS,
    'vision_config.',
  )
