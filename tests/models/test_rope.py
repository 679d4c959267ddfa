"""Rotary embeddings against transformers' own, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.models.llama import modeling_llama

from corejax import errors
from corejax.models import rope
from helpers import torch_only

torch = torch_only.torch

_KINDS = {
  'default': {},
  'theta': {'rope_theta': 1e6},
  'linear': {'rope_type': 'linear', 'factor': 2.5},
  'dynamic': {'rope_type': 'dynamic', 'factor': 3.0},
  'llama3': {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
  },
  'yarn': {
    'rope_type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 32,
  },
  'yarn_all': {
    'rope_type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 2048,
    'beta_fast': 20.0,
    'beta_slow': 2.0,
    'mscale': 0.7,
    'mscale_all_dim': 1.3,
    'truncate': False,
  },
  'yarn_factor': {
    'rope_type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 32,
    'attention_factor': 1.2,
  },
}


def _hf(params, length):
  config = transformers.LlamaConfig(
    hidden_size=64,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rope_parameters=dict(params),
  )
  module = modeling_llama.LlamaRotaryEmbedding(config)
  positions = torch.arange(length)[None]
  cos, sin = module(torch.zeros(1, length, 64), positions)
  return config, cos[0].numpy(), sin[0].numpy()


@pytest.mark.parametrize('length', [20, 300])
@pytest.mark.parametrize('kind', _KINDS)
def test_turns_equal_transformers(kind, length):
  hf, cos, sin = _hf(_KINDS[kind], length)
  config = rope.RopeConfig.from_hf(hf.rope_parameters, 32, 128)
  turn = rope.turns(
    config,
    jnp.arange(length)[None],
    jnp.array([length]),
    jnp.float32,
  )
  # One step of float32 in a frequency, at position 300.
  tol = 300 * 1.2e-7
  np.testing.assert_allclose(turn.cos_BT1H[0, :, 0], cos, rtol=0, atol=tol)
  np.testing.assert_allclose(turn.sin_BT1H[0, :, 0], sin, rtol=0, atol=tol)


def test_kinds_differ():
  """The table above exercises formulas that give different answers."""
  found = {
    kind: np.asarray(
      rope.frequencies(
        rope.RopeConfig.from_hf(_hf(params, 8)[0].rope_parameters, 32, 128),
        jnp.array([300]),
      )
    )
    for kind, params in _KINDS.items()
    if kind != 'yarn_factor'  # differs in its temperature only
  }
  kinds = list(found)
  for i, one in enumerate(kinds):
    for other in kinds[i + 1 :]:
      assert np.abs(found[one] / found[other] - 1).max() > 0.05, (one, other)


def test_dynamic_follows_each_sequence():
  config = rope.RopeConfig(head_dim=8, kind='dynamic', factor=2, max_length=10)
  both = rope.frequencies(config, jnp.array([10, 40]))
  alone = rope.frequencies(config, jnp.array([40]))
  plain = rope.frequencies(rope.RopeConfig(head_dim=8), jnp.array([40]))
  np.testing.assert_array_equal(both[1], alone[0])
  np.testing.assert_allclose(both[0], plain[0], rtol=1e-6)
  assert both[1, 1] < 0.9 * both[0, 1]


def test_rotation_is_relative_and_keeps_length():
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
  config = rope.RopeConfig(head_dim=8)

  def score(i, j):
    turned = []
    for x, position in ((q, i), (k, j)):
      turn = rope.turns(
        config, jnp.array([[position]]), jnp.array([1]), jnp.float32
      )
      turned.append(rope.rotate(jnp.asarray(x), turn))
    return float((turned[0] * turned[1]).sum()), turned[0]

  assert score(7, 3)[0] == pytest.approx(score(24, 20)[0], abs=1e-4)
  assert abs(score(7, 3)[0] - score(7, 4)[0]) > 1e-2
  np.testing.assert_allclose(
    np.linalg.norm(score(9, 0)[1]), np.linalg.norm(q), rtol=1e-5
  )


@pytest.mark.parametrize(
  'params, head_dim, part',
  [
    ({'rope_type': 'longrope'}, 8, "'longrope' is not supported"),
    ({'rope_type': 'default', 'mrope_section': [1, 1, 2]}, 8, 'mrope_section'),
    ({'rope_type': 'linear', 'factor': 2.0, 'beta_fast': 3.0}, 8, 'beta_fast'),
    ({'rope_type': 'linear'}, 8, 'needs factor'),
    ({'rope_type': 'llama3', 'factor': 2.0}, 8, 'needs high_freq_factor'),
    ({'partial_rotary_factor': 0.5}, 8, 'partial_rotary_factor=0.5'),
    ({}, 7, 'head_dim=7'),
    ({'rope_type': 'dynamic', 'factor': 2.0}, 2, 'head_dim=2'),
  ],
)
def test_refused(params, head_dim, part):
  with pytest.raises(errors.UserError, match=part):
    rope.RopeConfig.from_hf(params, head_dim, 128)


@pytest.mark.parametrize('value', [0, -1, 'x', True, [], float('nan'), 10**400])
@pytest.mark.parametrize('name', ['factor', 'rope_theta'])
def test_numbers_that_turn_nothing(name, value):
  params = {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4}
  rope.RopeConfig.from_hf(params, 8, 64)
  with pytest.raises(errors.UserError, match=f'{name}=.* a number above 0'):
    rope.RopeConfig.from_hf(params | {name: value}, 8, 64)


def test_nulls_and_old_spelling_are_read():
  config = rope.RopeConfig.from_hf(
    {'type': 'linear', 'factor': 4.0, 'rope_theta': 5e5, 'beta_fast': None},
    8,
    128,
  )
  assert (config.kind, config.factor, config.theta) == ('linear', 4.0, 5e5)


def test_angles_stay_float32_in_bfloat16_models():
  """bfloat16 angles would be off by whole turns at position 3000."""
  config = rope.RopeConfig(head_dim=8)
  at = jnp.array([[3000]])
  narrow = rope.turns(config, at, jnp.array([1]), jnp.bfloat16)
  wide = rope.turns(config, at, jnp.array([1]), jnp.float32)
  assert narrow.cos_BT1H.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    narrow.cos_BT1H.astype(jnp.float32), wide.cos_BT1H, atol=4e-3
  )
