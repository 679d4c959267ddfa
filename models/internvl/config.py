"""InternVL's configuration: what of a folder's config.json is read, and how."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from corejax import errors
from corejax.models import checkpoint
from corejax.models import decoder
from corejax.models import internvit
from corejax.models import layers
from corejax.models import mlp
from corejax.models import rope

# Text backbones that are tested in this family.
BACKBONES = ('llama', 'qwen2', 'qwen3', 'qwen3_moe')
_MOE = 'qwen3_moe'  # Qwen3, each MLP a mixture of experts
# It has one window for all layers, or none.
_MOE_KEYS = (
  (decoder.HANDLED_KEYS['qwen3'] - {'layer_types'})
  | mlp.KEYS
  | {'norm_topk_prob'}
)
HANDLED_KEYS = frozenset(
  {
    'downsample_ratio',
    'image_seq_length',
    'image_token_id',
    'model_type',
    'projector_hidden_act',
    'text_config',
    'tie_word_embeddings',
    'vision_config',
    'vision_feature_layer',
    'vision_feature_select_strategy',
  }
)
# Training-time, or repeated from text_config.
IGNORED_KEYS = frozenset(
  {
    'bos_token_id',
    'eos_token_id',
    'initializer_range',
    'pad_token_id',
    'use_cache',
  }
)
_LABELS: Mapping[str, tuple[float, float]] = {'num_labels': (0, 1 << 16)}
_RANGES: Mapping[str, tuple[float, float]] = {
  'downsample_ratio': (1e-3, 1.0),
  'image_seq_length': (1, 1 << 24),
  'image_token_id': (0, 1 << 24),
  'vision_feature_layer': (-4096, 4096),
  **_LABELS,
}


@dataclasses.dataclass(frozen=True)
class InternVLConfig:
  """A whole model.

  Attributes:
    text: the decoder.
    vision: the tower.
    image_token_id: token that stands for one visual feature.
    n_run: tower layers that are run.
    final: does the tower's final norm (if it has one) follow them?
    shrink: patches along a side that become one feature.
    projector_act: activation between the projector's two layers.
  """

  text: decoder.DecoderConfig
  vision: internvit.InternVitConfig
  image_token_id: int
  n_run: int
  final: bool = True
  shrink: int = 2
  projector_act: str = 'gelu'

  @property
  def side(self) -> int:
    """Features along a side of a tile."""
    return self.vision.grid // self.shrink

  @property
  def n_features(self) -> int:
    """Visual features, and so image tokens, of one tile."""
    return self.side**2

  @classmethod
  def from_hf(cls, hf: Any) -> 'InternVLConfig':
    """Reads an InternVLConfig object of transformers 5.

    Raises:
      UserError: a setting that is not supported.
    """
    kind = hf.text_config.model_type
    if kind not in BACKBONES:
      raise errors.UserError(
        f'text_config: backbone {kind!r} is not supported in InternVL; '
        f'supported are {", ".join(BACKBONES)}'
      )
    tower = internvit.InternVitConfig.from_hf(hf.vision_config)
    if not 0 <= hf.image_token_id < hf.text_config.vocab_size:
      raise errors.UserError(
        f'image_token_id={hf.image_token_id} is outside 0..'
        f'{hf.text_config.vocab_size - 1} (text_config.vocab_size)'
      )
    if hf.vision_feature_select_strategy != 'default':
      raise errors.UserError(
        'vision_feature_select_strategy='
        f'{hf.vision_feature_select_strategy!r} is not supported; with a class '
        "token there is no square of features, so it must be 'default'"
      )
    shrink = round(1 / hf.downsample_ratio)
    if shrink * hf.downsample_ratio != 1 or tower.grid % shrink:
      raise errors.UserError(
        f'downsample_ratio={hf.downsample_ratio} is not supported; it must be '
        f'1 over a divisor of the {tower.grid} patches of a side'
      )
    n_run, final = _depth(hf.vision_feature_layer, tower.n_layers)
    return cls(
      text=_text(hf.text_config, bool(hf.tie_word_embeddings)),
      vision=tower,
      image_token_id=hf.image_token_id,
      n_run=n_run,
      final=final,
      shrink=shrink,
      projector_act=layers.check_activation(
        hf.projector_hidden_act, 'projector_hidden_act'
      ),
    )


def _text(hf: Any, tie: bool) -> decoder.DecoderConfig:
  """The decoder of a text config of transformers."""
  if hf.model_type != _MOE:
    return decoder.DecoderConfig.from_hf(hf, tie=tie)
  experts = mlp.ExpertsConfig.from_hf(hf, normalise=hf.norm_topk_prob)
  text = decoder.DecoderConfig.from_hf(
    hf, tie=tie, kind='qwen3', experts=experts
  )
  if hf.sliding_window is None:
    return text
  windows = (hf.sliding_window,) * text.n_layers
  return dataclasses.replace(text, windows=windows)


def _depth(value: int | list[int], n_layers: int) -> tuple[int, bool]:
  """(tower layers to run, final norm too?) of `vision_feature_layer`.

  -1 is what the tower returns, its final norm included; any other number
  indexes hidden states, which no norm follows.
  """
  count = n_layers + 1
  if not isinstance(value, int) or not -count <= value < count:
    raise errors.UserError(
      f'vision_feature_layer={value} is not supported; it must be one number '
      f'from {-count} to {count - 1} (the tower has {n_layers} layers)'
    )
  return value % count, value == -1


def read(folder: pathlib.Path) -> InternVLConfig:
  """The config of a checkpoint folder.

  Raises:
    UserError: not an InternVL, a key that is not known, an unsupported setting.
  """
  path = folder / 'config.json'
  raw = checkpoint.read_json(path)
  try:
    _check_numbers(raw)
    return _checked(raw, checkpoint.normalised(folder))
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from error


def _check_numbers(raw: Mapping[str, Any]) -> None:
  """Refuses numbers that no model has, before transformers believes them."""
  checkpoint.check_ranges(raw, _RANGES, '')
  for part, ranges in (
    ('text_config', {**decoder.RANGES, **mlp.RANGES}),
    ('vision_config', internvit.RANGES),
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


def _checked(raw: Mapping[str, Any], hf: Any) -> InternVLConfig:
  if hf.model_type != 'internvl':
    raise errors.UserError(
      f'model_type={hf.model_type!r} is not an InternVL in the format of '
      "transformers; internvl_flax reads model_type='internvl' (the "
      'repositories whose name ends in -hf)'
    )
  # Before the keys: of an unsupported backbone or tower no key is known.
  config = InternVLConfig.from_hf(hf)
  checkpoint.check_keys(raw, HANDLED_KEYS, IGNORED_KEYS, '')
  handled = decoder.HANDLED_KEYS[config.text.kind]
  ignored = decoder.IGNORED_KEYS
  if config.text.experts is not None:
    handled, ignored = _MOE_KEYS, ignored | mlp.IGNORED_KEYS
  checkpoint.check_keys(
    raw.get('text_config') or {},
    handled,
    ignored,
    'text_config.',
    decoder.NEUTRAL_KEYS,
  )
  checkpoint.check_keys(
    raw.get('vision_config') or {},
    internvit.HANDLED_KEYS,
    internvit.IGNORED_KEYS,
    'vision_config.',
  )
  said = raw.get('image_seq_length')
  if said is not None and said != config.n_features:
    raise errors.UserError(
      f'image_seq_length={said}; the tower makes {config.n_features} features '
      'a tile: correct it, or fetch the file again'
    )
  return config
