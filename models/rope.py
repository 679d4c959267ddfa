"""Rotary position embedding with the scalings of transformers.

RoFormer (arXiv 2104.09864), rotate-half layout: slot i and slot i + H/2 of a
head are one plane, turned by position * frequency_i:

    (a_i, a_{i+H/2})  ->  (a_i cos - a_{i+H/2} sin,  a_{i+H/2} cos + a_i sin)

Kinds (transformers.modeling_rope_utils): 'default'; 'linear' (frequencies
divided by a factor); 'dynamic' (NTK: the base grows with the length beyond the
trained one); 'llama3' (low frequencies divided, middle ones blended); 'yarn'
(arXiv 2309.00071: a ramp over the dims, and a temperature).

M-RoPE (Qwen2-VL, arXiv 2409.12191): a token has three positions, time, row and
column (text has the same three times), and each slot is turned by one of them:

    sections (2, 3, 3)    chunked        t t h h h w w w        Qwen2-VL, 2.5
                          interleaved    t h w t h w t h        Qwen3-VL

Deviation: 'dynamic' takes each sequence's own length, transformers the longest
of the batch (and the longest seen before), so that a score here does not
depend on what an example is batched with.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import errors

# kind -> keys that it reads; any other key is refused.
KINDS: Mapping[str, frozenset[str]] = {
  'default': frozenset(),
  'linear': frozenset({'factor'}),
  'dynamic': frozenset({'factor'}),
  'llama3': frozenset(
    {
      'factor',
      'low_freq_factor',
      'high_freq_factor',
      'original_max_position_embeddings',
    }
  ),
  'yarn': frozenset(
    {
      'factor',
      'attention_factor',
      'beta_fast',
      'beta_slow',
      'mscale',
      'mscale_all_dim',
      'original_max_position_embeddings',
      'truncate',
    }
  ),
}
_ALWAYS = frozenset({'rope_type', 'type', 'rope_theta'})
# How M-RoPE spreads its sections -> transformers' default sections.
MROPE: Mapping[str, tuple[int, int, int]] = {
  'chunked': (16, 24, 24),
  'interleaved': (24, 20, 20),
}
_NUMBERS = frozenset().union(*KINDS.values(), ['rope_theta']) - {'truncate'}
_OFF_AT_0 = frozenset({'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim'})


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """One decoder's rotary embedding.

  Attributes:
    head_dim: H, even.
    theta: base of the frequencies.
    kind: key of KINDS.
    max_length: positions the model was trained for ('dynamic').
    factor: by how much the context was stretched.
    original_length: trained length before stretching ('llama3', 'yarn').
    low_freq_factor, high_freq_factor: 'llama3': wavelengths beyond
      original_length / low are divided, those below original_length / high
      are kept.
    beta_fast, beta_slow: 'yarn': turns within original_length at which the
      ramp starts and ends.
    truncate: 'yarn': round the ramp's ends outwards.
    scale: factor on cos and sin ('yarn' temperature).
    mrope: key of MROPE; '' is one position a token.
    sections: of M-RoPE: slots of time, row and column.
  """

  head_dim: int
  theta: float = 10000.0
  kind: str = 'default'
  max_length: int = 0
  factor: float = 1.0
  original_length: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  scale: float = 1.0
  mrope: str = ''
  sections: tuple[int, ...] = ()

  @classmethod
  def from_hf(
    cls,
    params: Mapping[str, Any],
    head_dim: int,
    max_length: int,
    mrope: str = '',
  ) -> 'RopeConfig':
    """Reads `rope_parameters` as AutoConfig of transformers 5 normalises them.

    Args:
      params: the dict.
      head_dim: H.
      max_length: max_position_embeddings.
      mrope: key of MROPE where the family has M-RoPE.

    Raises:
      UserError: an unknown kind, an unknown key, a partial rotation, or
        sections that are not M-RoPE's.
    """
    kind = params.get('rope_type', params.get('type', 'default'))
    if not isinstance(kind, str) or kind not in KINDS:
      raise errors.UserError(
        f'rope_type {kind!r} is not supported; supported are {", ".join(KINDS)}'
      )
    known = {k: v for k, v in params.items() if v is not None}
    if known.pop('partial_rotary_factor', 1.0) != 1.0:
      raise errors.UserError(
        f'partial_rotary_factor={params["partial_rotary_factor"]} is not '
        'supported; only heads that are rotated in full are'
      )
    sections = _sections(known, head_dim, mrope) if mrope else ()
    unknown = sorted(known.keys() - KINDS[kind] - _ALWAYS)
    if unknown:
      raise errors.UserError(
        f'rope_parameters: {", ".join(unknown)} not known for rope_type '
        f'{kind!r}; known are {", ".join(sorted(KINDS[kind] | _ALWAYS))}'
      )
    check_numbers(known)
    if head_dim % 2 or (kind == 'dynamic' and head_dim <= 2):
      raise errors.UserError(
        f'rope: head_dim={head_dim} cannot be rotated; it must be even'
        + (' and above 2' if kind == 'dynamic' else '')
      )
    needed = KINDS[kind] & {'factor', 'low_freq_factor', 'high_freq_factor'}
    missing = sorted(needed - known.keys())
    if missing:
      raise errors.UserError(
        f'rope_parameters: rope_type {kind!r} needs {", ".join(missing)}'
      )
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}

    def read(name):
      return float(known.get(name, defaults[name]))

    return cls(
      head_dim=head_dim,
      theta=float(known.get('rope_theta', 10000.0)),
      kind=kind,
      max_length=max_length,
      factor=read('factor'),
      original_length=int(
        known.get('original_max_position_embeddings', max_length)
      ),
      low_freq_factor=read('low_freq_factor'),
      high_freq_factor=read('high_freq_factor'),
      beta_fast=read('beta_fast') or 32.0,
      beta_slow=read('beta_slow') or 1.0,
      truncate=bool(known.get('truncate', True)),
      scale=_yarn_scale(known) if kind == 'yarn' else 1.0,
      mrope=mrope,
      sections=sections,
    )


def _sections(
  known: dict[str, Any], head_dim: int, mrope: str
) -> tuple[int, ...]:
  """Takes M-RoPE's own keys out of `rope_parameters`."""
  sections = known.pop('mrope_section', MROPE[mrope])
  if (
    not isinstance(sections, (list, tuple))
    or len(sections) != 3
    or not all(type(n) is int and n >= 0 for n in sections)
    or sum(sections) != head_dim // 2
  ):
    raise errors.UserError(
      f'rope_parameters: mrope_section={sections!r}; expected three whole '
      f'numbers that add up to half of head_dim={head_dim}'
    )
  is_interleaved = mrope == 'interleaved'
  if known.pop('mrope_interleaved', is_interleaved) != is_interleaved:
    raise errors.UserError(
      f'rope_parameters: mrope_interleaved={not is_interleaved}; this family '
      f'has {mrope} sections'
    )
  return tuple(sections)


def slot_axes(config: RopeConfig) -> np.ndarray:
  """int [H/2]: which position turns each slot: 0 time, 1 row, 2 column."""
  if config.mrope == 'chunked':
    return np.repeat(np.arange(3), config.sections)
  axis_F = np.zeros(config.head_dim // 2, np.int64)
  for axis in (1, 2):
    axis_F[axis : 3 * config.sections[axis] : 3] = axis
  return axis_F


def check_numbers(params: Mapping[str, Any]) -> None:
  """Refuses values of `rope_parameters` that turn nothing.

  Names that nobody reads are left to those who refuse them.

  Raises:
    UserError: naming the first.
  """
  for name in sorted(_NUMBERS & params.keys()):
    value, least = params[name], 0 if name in _OFF_AT_0 else 1e-30
    if value is None:
      continue
    if type(value) not in (int, float) or not least <= value < 1e30:
      raise errors.UserError(
        f'rope_parameters: {name}={value!r}; expected a number above 0'
      )


def _yarn_scale(params: Mapping[str, Any]) -> float:
  """The temperature on cos and sin: YaRN eq. 22, 0.1 ln(factor) + 1."""
  if 'attention_factor' in params:
    return float(params['attention_factor'])

  def temperature(weight):
    factor = float(params['factor'])
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

  over, under = params.get('mscale'), params.get('mscale_all_dim')
  if over and under:
    return temperature(over) / temperature(under)
  return temperature(1.0)


def _inverse(theta, head_dim: int):
  """theta ** (-2 i / H), float32, [..., H/2]."""
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  return 1.0 / theta**exponent


def _llama3(config: RopeConfig, inverse: np.ndarray) -> np.ndarray:
  wavelength = 2 * math.pi / inverse
  blend = (config.original_length / wavelength - config.low_freq_factor) / (
    config.high_freq_factor - config.low_freq_factor
  )
  middle = (1 - blend) * inverse / config.factor + blend * inverse
  long = config.original_length / config.low_freq_factor
  short = config.original_length / config.high_freq_factor
  return np.where(
    wavelength > long,
    inverse / config.factor,
    np.where(wavelength < short, inverse, middle),
  )


def _yarn(config: RopeConfig, inverse: np.ndarray) -> np.ndarray:
  half = config.head_dim // 2

  def slot(turns):
    """The slot that turns this often within the original length."""
    return (
      config.head_dim
      * math.log(config.original_length / (turns * 2 * math.pi))
      / (2 * math.log(config.theta))
    )

  low, high = slot(config.beta_fast), slot(config.beta_slow)
  if config.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, config.head_dim - 1)
  width = (high - low) or 0.001  # transformers' guard against 0/0
  ramp = np.clip((np.arange(half, dtype=np.float32) - low) / width, 0, 1)
  return inverse / config.factor * ramp + inverse * (1 - ramp)


def frequencies(config: RopeConfig, length_B: jax.Array) -> jax.Array:
  """Turns per position of every slot, in radians.

  Args:
    config: which rotary embedding.
    length_B: int32 [B], positions in use; read by 'dynamic' alone.

  Returns:
    float32 [1|B, H/2].
  """
  if config.kind == 'dynamic':
    length_B1 = jnp.maximum(length_B, config.max_length)[:, None]
    stretch_B1 = config.factor * length_B1.astype(jnp.float32)
    stretch_B1 = stretch_B1 / config.max_length - (config.factor - 1)
    power = config.head_dim / (config.head_dim - 2)
    return _inverse(config.theta * stretch_B1**power, config.head_dim)
  inverse = _inverse(np.float32(config.theta), config.head_dim)
  if config.kind == 'linear':
    inverse = inverse / np.float32(config.factor)
  elif config.kind == 'llama3':
    inverse = _llama3(config, inverse)
  elif config.kind == 'yarn':
    inverse = _yarn(config, inverse)
  return jnp.asarray(inverse, jnp.float32)[None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turns:
  """cos and sin of every position's angles, [B, T, 1, H] in the model dtype."""

  cos_BT1H: jax.Array
  sin_BT1H: jax.Array


def reached(positions_BT: jax.Array, is_real_BT: jax.Array) -> jax.Array:
  """int32 [B], positions in use: one more than the largest of a real row."""
  if positions_BT.ndim == 3:
    positions_BT = positions_BT.max(1)
  return jnp.where(is_real_BT, positions_BT, -1).max(-1) + 1


def turns(
  config: RopeConfig,
  positions_BT: jax.Array,
  length_B: jax.Array,
  dtype: jnp.dtype,
) -> Turns:
  """Angles of a batch, computed in float32 and then rounded to `dtype`.

  Args:
    config: which rotary embedding.
    positions_BT: int32 [B, T], or [B, 3, T] where the model has M-RoPE.
    length_B: int32 [B], see `frequencies`.
    dtype: of the model.

  Raises:
    ValueError: three positions a token for a model that has one.
  """
  with jax.named_scope('rope'):
    if positions_BT.ndim == 3:
      if not config.mrope:
        raise ValueError(f'{positions_BT.shape=} must be [B, T]: no M-RoPE')
      turned_BTF = positions_BT[:, slot_axes(config)].swapaxes(1, 2)
    else:
      turned_BTF = positions_BT[..., None]
    frequency_B1F = frequencies(config, length_B)[:, None, :]
    angle = turned_BTF.astype(jnp.float32) * frequency_B1F
    angle = jnp.concatenate([angle, angle], -1)[:, :, None, :]
    return Turns(
      (jnp.cos(angle) * config.scale).astype(dtype),
      (jnp.sin(angle) * config.scale).astype(dtype),
    )


def rotate(x_BTNH: jax.Array, turn: Turns) -> jax.Array:
  """Queries or keys, turned."""
  first, second = jnp.split(x_BTNH, 2, axis=-1)
  other = jnp.concatenate([-second, first], -1)
  return x_BTNH * turn.cos_BT1H + other * turn.sin_BT1H
