"""Qwen-VL's config.json: released ones read whole, anything unknown refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from corejax import errors
from corejax.models import rope
from corejax.models.qwen_vl import config as config_lib
from helpers import qwen_released


def _read(folder, raw: dict) -> config_lib.QwenVlConfig:
  (folder / 'config.json').write_text(json.dumps(raw))
  return config_lib.read(folder, raw['model_type'])


@pytest.mark.parametrize('name', qwen_released.NAMES)
def test_released(name, tmp_path):
  """What test_released.py does not ask of every family."""
  config = _read(tmp_path, qwen_released.config(name))
  is_third = config.kind.startswith('qwen3')
  sections = (24, 20, 20) if is_third else (16, 24, 24)
  text = config.text
  assert text.head_dim == 128 and text.rope.sections == sections


def test_positions_of_the_slots():
  """Sections are chunked; three positions a token turn them."""
  config = rope.RopeConfig(
    head_dim=16, mrope='chunked', sections=(2, 3, 3), theta=10.0
  )
  assert list(rope.slot_axes(config)) == [0, 0, 1, 1, 1, 2, 2, 2]
  other = rope.RopeConfig(head_dim=16, mrope='interleaved', sections=(4, 3, 1))
  assert list(rope.slot_axes(other)) == [0, 1, 2, 0, 1, 0, 0, 1]
  at = jnp.array([[[3], [5], [7]]])
  turn = rope.turns(config, at, jnp.array([8]), jnp.float32)
  frequency = 10.0 ** (-np.arange(8) / 8)
  angle = np.array([3, 3, 5, 5, 5, 7, 7, 7]) * frequency
  cos = np.concatenate([np.cos(angle)] * 2)
  np.testing.assert_allclose(turn.cos_BT1H[0, 0, 0], cos, atol=1e-6)
  # Text has the same three: as one position a token.
  same = jnp.broadcast_to(jnp.arange(9), (2, 3, 9))
  for a, b in zip(
    jax.tree.leaves(rope.turns(config, same, jnp.array([9]), jnp.float32)),
    jax.tree.leaves(
      rope.turns(config, same[:, 0], jnp.array([9]), jnp.float32)
    ),
  ):
    np.testing.assert_array_equal(a, b)
  with pytest.raises(ValueError, match='no M-RoPE'):
    rope.turns(rope.RopeConfig(16), same, jnp.array([9]), jnp.float32)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(model_type='qwen2_5_vl'), 'qwen2_5_vl_flax reads it'),
    (dict(model_type='llava'), "expected 'qwen2_vl' .* by --checkpoint"),
    (dict(new_switch=3), 'new_switch=3'),
    (dict(attention_bias=True), 'attention_bias'),
    (dict(hidden_size=0), 'hidden_size=0'),
    (dict(image_token_id=200000), 'image_token_id'),
    (
      dict(rope_scaling={'type': 'mrope', 'mrope_section': [16, 24, 25]}),
      'mrope_section',
    ),
    (
      dict(rope_scaling={'type': 'mrope', 'mrope_interleaved': True}),
      'chunked sections',
    ),
    (dict(rope_scaling={'type': 'longrope', 'factor': 2.0}), 'longrope'),
    (dict(vision_config=3), 'no JSON object'),
  ],
)
def test_refused(change, message, tmp_path):
  raw = qwen_released.config('Qwen2-VL-2B-Instruct') | change
  (tmp_path / 'config.json').write_text(json.dumps(raw))
  with pytest.raises(errors.UserError, match=message):
    config_lib.read(tmp_path, 'qwen2_vl')


@pytest.mark.parametrize(
  'part, change, message',
  [
    ('vision_config', dict(num_position_embeddings=2305), 'not a square'),
    ('vision_config', dict(deepstack_visual_indexes=[5, 99]), 'ascending'),
    ('vision_config', dict(window_size=112), 'window_size=112'),
    ('text_config', dict(num_experts=8), 'num_experts=8'),
    (
      'text_config',
      dict(rope_scaling={'rope_type': 'default', 'mrope_interleaved': False}),
      'interleaved sections',
    ),
  ],
)
def test_refused_of_the_third(part, change, message, tmp_path):
  raw = qwen_released.config('Qwen3-VL-2B-Instruct')
  raw[part] |= change
  with pytest.raises(errors.UserError, match=message):
    _read(tmp_path, raw)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(mlp_only_layers=[3]), 'mixture in every layer'),
    (dict(decoder_sparse_step=2), 'mixture in every layer'),
    (dict(num_experts_per_tok=200), 'num_experts_per_tok=200'),
    (dict(num_experts=0), 'num_experts=0'),
    (dict(moe_intermediate_size=1024), 'told from its transpose'),
    (dict(norm_topk_prob=False), 'norm_topk_prob'),
    (dict(shared_expert_size=3), 'shared_expert_size'),
  ],
)
def test_refused_mixtures(change, message, tmp_path):
  raw = qwen_released.config('Qwen3-VL-30B-A3B-Instruct')
  raw['text_config'] |= change
  with pytest.raises(errors.UserError, match=message):
    _read(tmp_path, raw)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(depth=10**9), 'depth'),
    (dict(in_chans=4), 'in_chans'),
    (dict(spatial_patch_size=16), 'spatial_patch_size'),
    (dict(hidden_act='swish2'), 'swish2'),
    (dict(out_hidden_size=100), 'the tower writes 100'),
    (dict(window_size=20), 'window_size=20'),
    (dict(num_heads=7), 'num_heads=7'),
    (dict(patch_size=[14, 16]), 'one number'),
    (dict(rope_parameters={'rope_type': 'axial', 'factor': 2.0}), 'axial'),
    (dict(deepstack_visual_indexes=[1]), 'deepstack_visual_indexes'),
  ],
)
def test_refused_towers(change, message, tmp_path):
  raw = qwen_released.config('Qwen2.5-VL-3B-Instruct')
  raw['vision_config'] |= change
  with pytest.raises(errors.UserError, match=message):
    _read(tmp_path, raw)


@pytest.mark.parametrize('kind', config_lib.KINDS)
def test_qwen35_is_refused(kind, tmp_path):
  """A quarter of its layers have heads, whose output is gated."""
  transformers.Qwen3_5Config().save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  with pytest.raises(errors.UserError, match=f"'qwen3_5', expected '{kind}'"):
    config_lib.read(tmp_path, kind)
  # ... and what is in it, under whatever name.
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'model_type': kind})
  )
  with pytest.raises(errors.UserError, match='partial_rotary_factor=0.25'):
    config_lib.read(tmp_path, kind)


def test_what_transformers_writes_is_read_too(tmp_path):
  """Nested, with rope_parameters: the same model."""
  for name in (
    'Qwen2-VL-7B-Instruct',
    'Qwen2.5-VL-3B-Instruct',
    'Qwen3-VL-4B-Instruct',
  ):
    flat = _read(tmp_path, qwen_released.config(name))
    hf = transformers.AutoConfig.from_pretrained(tmp_path)
    hf.save_pretrained(tmp_path / 'again')
    again = config_lib.read(tmp_path / 'again', flat.kind)
    assert again == flat
