"""Qwen-VL's configurations: what of a folder's config.json is read, and how.

Four families in one table. The files of the hub are flat for Qwen2-VL and
2.5 (the text model's keys stand beside `vision_config`); transformers 5 writes
a `text_config` for all of them. AutoConfig reads both alike.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

from corejax import errors
from corejax.models import checkpoint
from corejax.models import decoder
from corejax.models import layers
from corejax.models import mlp
from corejax.models import qwen_vision
from corejax.models import rope


@dataclasses.dataclass(frozen=True)
class Kind:
  """What tells one family from the others.

  Attributes:
    backbone: what its text model computes as, key of decoder.HANDLED_KEYS.
    mrope: key of rope.MROPE.
    vision_keys: of vision_config, beside _VISION_KEYS.
    experts: its MLPs are mixtures of experts.
  """

  backbone: str
  mrope: str
  vision_keys: frozenset[str]
  experts: bool = False


_THIRD = frozenset(
  {
    'deepstack_visual_indexes',
    'intermediate_size',
    'num_position_embeddings',
    'out_hidden_size',
  }
)
# model_type -> Kind
KINDS: Mapping[str, Kind] = {
  'qwen2_vl': Kind('qwen2', 'chunked', frozenset({'embed_dim', 'mlp_ratio'})),
  'qwen2_5_vl': Kind(
    'qwen2',
    'chunked',
    frozenset(
      {
        'fullatt_block_indexes',
        'intermediate_size',
        'out_hidden_size',
        'tokens_per_second',
        'window_size',
      }
    ),
  ),
  'qwen3_vl': Kind('qwen3', 'interleaved', _THIRD),
  'qwen3_vl_moe': Kind('qwen3', 'interleaved', _THIRD, experts=True),
}
_KEYS = frozenset(
  {
    'image_token_id',
    'text_config',
    'tie_word_embeddings',
    'video_token_id',
    'vision_config',
  }
)
# Training-time, or names that the processor knows better.
_IGNORED_KEYS = frozenset(
  {
    'vision_end_token_id',
    'vision_start_token_id',
    'vision_token_id',
  }
)
_VISION_KEYS = frozenset(
  {
    'depth',
    'hidden_act',
    'hidden_size',
    'in_channels',
    'num_heads',
    'patch_size',
    'rope_parameters',
    'spatial_merge_size',
    'temporal_patch_size',
  }
)
# `tokens_per_second` spaces out the frames of videos, in Qwen2.5-VL alone.
_VISION_IGNORED = frozenset({'initializer_range', 'tokens_per_second'})
# The hub's spelling of in_channels, which transformers does not read.
_VISION_NEUTRAL: Mapping[str, Any] = {'in_chans': 3}
_RANGES: Mapping[str, tuple[float, float]] = {
  'image_token_id': (0, 1 << 24),
  'video_token_id': (0, 1 << 24),
}
_VISION_RANGES: Mapping[str, tuple[float, float]] = {
  'depth': (1, 4096),
  'embed_dim': (1, 1 << 17),
  'hidden_size': (1, 1 << 17),
  'intermediate_size': (1, 1 << 20),
  'mlp_ratio': (1, 64),
  'num_heads': (1, 4096),
  'in_channels': (3, 3),
  'patch_size': (1, 1 << 10),
  'spatial_merge_size': (1, 64),
  'temporal_patch_size': (1, 64),
  'tokens_per_second': (1, 1 << 12),
  'window_size': (1, 1 << 14),
  'out_hidden_size': (1, 1 << 17),
  'num_position_embeddings': (1, 1 << 20),
  'fullatt_block_indexes': (0, 4096),
  'deepstack_visual_indexes': (0, 4096),
}
# transformers makes a table of so many labels, which nobody reads.
_LABELS: Mapping[str, tuple[float, float]] = {'num_labels': (0, 1 << 16)}


@dataclasses.dataclass(frozen=True)
class QwenVlConfig:
  """A whole model.

  Attributes:
    kind: key of KINDS.
    text: the decoder.
    vision: the tower.
    image_token_id: token that stands for one visual feature.
    video_token_id: the same of a video.
    tokens_per_second: positions that a second of a video takes (Qwen2.5-VL); 0
      where pairs of frames are one position apart.
  """

  kind: str
  text: decoder.DecoderConfig
  vision: qwen_vision.VisionConfig
  image_token_id: int
  video_token_id: int
  tokens_per_second: int = 0

  @property
  def dates_frames(self) -> bool:
    """Stands the time of each pair of frames in the prompt (Qwen3-VL)?"""
    return KINDS[self.kind].vision_keys is _THIRD

  @classmethod
  def from_hf(cls, hf: Any) -> 'QwenVlConfig':
    """Reads a config object of transformers 5.

    Raises:
      UserError: a setting that is not supported.
    """
    kind = KINDS[hf.model_type]
    text = decoder.DecoderConfig.from_hf(
      hf.text_config,
      tie=bool(hf.tie_word_embeddings),
      kind=kind.backbone,
      mrope=kind.mrope,
      experts=(
        mlp.ExpertsConfig.from_hf(hf.text_config) if kind.experts else None
      ),
    )
    for name in ('image_token_id', 'video_token_id'):
      if not 0 <= getattr(hf, name) < text.vocab_size:
        raise errors.UserError(
          f'{name}={getattr(hf, name)} is outside 0..{text.vocab_size - 1} '
          '(vocab_size)'
        )
    tower = _vision(hf.model_type, hf.vision_config)
    if tower.d_out != text.d_model:
      raise errors.UserError(
        f'vision_config: the tower writes {tower.d_out} values a token, the '
        f'text model has {text.d_model}; correct config.json'
      )
    return cls(
      kind=hf.model_type,
      text=text,
      vision=tower,
      image_token_id=hf.image_token_id,
      video_token_id=hf.video_token_id,
      tokens_per_second=(
        hf.vision_config.tokens_per_second
        if hf.model_type == 'qwen2_5_vl'
        else 0
      ),
    )


def _vision(kind: str, hf: Any) -> qwen_vision.VisionConfig:
  """A tower's config from that of transformers."""
  is_2 = kind == 'qwen2_vl'
  d_model = hf.embed_dim if is_2 else hf.hidden_size
  heads, patch = hf.num_heads, _number(hf.patch_size, 'patch_size')
  if d_model % heads or (d_model // heads) % 4:
    raise errors.UserError(
      f'vision_config: {d_model} values over num_heads={heads}; expected '
      'heads of a multiple of 4'
    )
  turned = dict(hf.rope_parameters or {})
  if turned.pop('rope_type', 'axial') != 'axial' or (
    turned.keys() - {'rope_theta'}
  ):
    raise errors.UserError(
      f'vision_config: rope_parameters={hf.rope_parameters!r}; expected '
      "rope_type 'axial' with a rope_theta"
    )
  own: dict[str, Any] = {}
  if kind == 'qwen2_5_vl':
    window = hf.window_size // hf.spatial_merge_size // patch
    if not window:
      raise errors.UserError(
        f'vision_config: window_size={hf.window_size} is smaller than a '
        f'feature of {hf.spatial_merge_size * patch} pixels'
      )
    own = dict(
      rms=True,
      gated=True,
      window=window,
      full_layers=tuple(hf.fullatt_block_indexes),
    )
  elif KINDS[kind].vision_keys is _THIRD:
    own = dict(
      patch_bias=True,
      table=_side(hf.num_position_embeddings),
      deep_layers=_deep(hf),
    )
  return qwen_vision.VisionConfig(
    d_model=d_model,
    d_mlp=d_model * hf.mlp_ratio if is_2 else hf.intermediate_size,
    d_out=hf.hidden_size if is_2 else hf.out_hidden_size,
    n_layers=hf.depth,
    n_heads=heads,
    patch_size=patch,
    temporal=_number(hf.temporal_patch_size, 'temporal_patch_size'),
    merge=hf.spatial_merge_size,
    act=layers.check_activation(hf.hidden_act, 'vision_config'),
    theta=float(turned.get('rope_theta', 10000.0)),
    **own,
  )


def _number(value: Any, name: str) -> int:
  """A size that transformers takes as one number or as one an axis."""
  sides = set(value) if isinstance(value, (list, tuple)) else {value}
  if len(sides) != 1:
    raise errors.UserError(
      f'vision_config: {name}={value}; expected one number'
    )
  return sides.pop()


def read(folder: pathlib.Path, kind: str) -> QwenVlConfig:
  """The config of a checkpoint folder.

  Args:
    folder: the checkpoint.
    kind: key of KINDS that it must have.

  Raises:
    UserError: another model, a key that is not known, an unsupported setting.
  """
  path = folder / 'config.json'
  raw = checkpoint.read_json(path)
  try:
    if raw.get('model_type') != kind:
      other = raw.get('model_type')
      hint = '; name a folder or hub id of this family by --checkpoint'
      if isinstance(other, str) and other in KINDS:
        hint = f'; --model={other}_flax reads it'
      raise errors.UserError(
        f'model_type={other!r}, expected {kind!r} for {kind}_flax{hint}'
      )
    check_numbers(raw)
    config = QwenVlConfig.from_hf(checkpoint.normalised(folder))
    _check_keys(raw, kind)
    return config
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from error


def _part(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  value = raw.get(name) or {}
  if not isinstance(value, Mapping):
    raise errors.UserError(
      f'{name}={value!r} is no JSON object; fetch the file again'
    )
  return value


def check_numbers(raw: Mapping[str, Any]) -> None:
  """Refuses numbers that no model has, before transformers believes them.

  Raises:
    UserError: naming the first.
  """
  checkpoint.check_ranges(raw, {**_RANGES, **_LABELS}, '')
  # A flat file holds the text model's keys itself.
  for where, value in (('', raw), ('text_config.', _part(raw, 'text_config'))):
    checkpoint.check_ranges(
      value, {**decoder.RANGES, **mlp.RANGES, **_LABELS}, where
    )
    for key in ('rope_parameters', 'rope_scaling'):
      if isinstance(value.get(key), Mapping):
        rope.check_numbers(value[key])
  tower = _part(raw, 'vision_config')
  checkpoint.check_ranges(
    tower, {**_VISION_RANGES, **_LABELS}, 'vision_config.'
  )
  turned = tower.get('rope_parameters')
  if isinstance(turned, Mapping):
    rope.check_numbers(turned)


def _check_keys(raw: Mapping[str, Any], kind: str) -> None:
  family = KINDS[kind]
  text, unused = decoder.HANDLED_KEYS[family.backbone], decoder.IGNORED_KEYS
  neutral = dict(decoder.NEUTRAL_KEYS)
  if family.experts:
    text, unused = text | mlp.KEYS, unused | mlp.IGNORED_KEYS
    neutral['norm_topk_prob'] = True  # transformers always does
  is_flat = not raw.get('text_config')
  checkpoint.check_keys(
    raw,
    _KEYS | (text if is_flat else frozenset()),
    _IGNORED_KEYS | decoder.IGNORED_KEYS,
    '',
    decoder.NEUTRAL_KEYS,
  )
  checkpoint.check_keys(
    _part(raw, 'text_config'),
    text,
    unused,
    'text_config.',
    neutral,
  )
  tower = _part(raw, 'vision_config')
  checkpoint.check_keys(
    tower,
    _VISION_KEYS | family.vision_keys,
    _VISION_IGNORED,
    'vision_config.',
    # Repeats patch_size, and nobody reads it.
    {**_VISION_NEUTRAL, 'spatial_patch_size': tower.get('patch_size', 14)},
  )


def _deep(hf: Any) -> tuple[int, ...]:
  """The layers whose output is handed on, each once, from below."""
  layers_X = tuple(hf.deepstack_visual_indexes)
  if list(layers_X) != sorted({n for n in layers_X if n < hf.depth}):
    raise errors.UserError(
      f'vision_config: deepstack_visual_indexes={list(layers_X)}; expected '
      f'ascending layers of 0..{hf.depth - 1}'
    )
  return layers_X


def _side(entries: int) -> int:
  """Side of a square position table."""
  side = math.isqrt(entries)
  if side**2 != entries:
    raise errors.UserError(
      f'vision_config: num_position_embeddings={entries} is not a square'
    )
  return side
