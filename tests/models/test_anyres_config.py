"""LLaVA-NeXT and OneVision in the released sizes: parameters counted."""

import json

import jax
import jax.numpy as jnp
import pytest

from corejax.models import registry
from corejax.models.llava_next import config as next_config
from corejax.models.llava_next import modeling
from corejax.models.llava_onevision import config as onevision_config

_NEXT = {
  'architectures': ['LlavaNextForConditionalGeneration'],
  'ignore_index': -100,
  'image_grid_pinpoints': [
    [336, 672],
    [672, 336],
    [672, 672],
    [1008, 336],
    [336, 1008],
  ],
  'image_token_index': 32000,
  'model_type': 'llava_next',
  'projector_hidden_act': 'gelu',
  'text_config': {
    'architectures': ['MistralForCausalLM'],
    'intermediate_size': 14336,
    'max_position_embeddings': 32768,
    'model_type': 'mistral',
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-05,
    'rope_theta': 1000000.0,
    'sliding_window': None,
    'torch_dtype': 'bfloat16',
    'vocab_size': 32064,
  },
  'tie_word_embeddings': False,
  'use_image_newline_parameter': True,
  'vision_config': {
    'hidden_size': 1024,
    'image_size': 336,
    'intermediate_size': 4096,
    'model_type': 'clip_vision_model',
    'num_attention_heads': 16,
    'num_hidden_layers': 24,
    'patch_size': 14,
    'projection_dim': 768,
    'vocab_size': 32000,
  },
  'vision_feature_layer': -2,
  'vision_feature_select_strategy': 'default',
  'vocab_size': 32064,
}


def _onevision(layers, heads, kv, width, mlp, vocab, tie):
  return {
    'architectures': ['LlavaOnevisionForConditionalGeneration'],
    'image_grid_pinpoints': [
      [384 * high, 384 * wide] for high in range(1, 7) for wide in range(1, 7)
    ],
    'image_token_index': 151646,
    'model_type': 'llava_onevision',
    'projector_hidden_act': 'gelu',
    'text_config': {
      'model_type': 'qwen2',
      'num_hidden_layers': layers,
      'num_attention_heads': heads,
      'num_key_value_heads': kv,
      'hidden_size': width,
      'intermediate_size': mlp,
      'vocab_size': vocab,
      'max_position_embeddings': 32768,
      'rope_theta': 1000000.0,
      'use_sliding_window': False,
      'tie_word_embeddings': tie,
    },
    'tie_word_embeddings': False,
    'use_image_newline_parameter': True,
    'video_token_index': 151647,
    'vision_aspect_ratio': 'anyres_max_9',
    'vision_config': {
      'hidden_size': 1152,
      'image_size': 384,
      'intermediate_size': 4304,
      'model_type': 'siglip_vision_model',
      'num_attention_heads': 16,
      'num_hidden_layers': 26,
      'patch_size': 14,
      'vision_use_head': False,
    },
    'vision_feature_layer': -1,
    'vision_feature_select_strategy': 'full',
  }


# (config, config module, layers, heads, kv heads, features, billion parameters)
RELEASED = {
  'llava-v1.6-mistral-7b': (_NEXT, next_config, 32, 32, 8, 576, 7.56),
  'llava-onevision-0.5b': (
    _onevision(24, 14, 2, 896, 4864, 152000, True),
    onevision_config,
    *(24, 14, 2, 729, 0.894),
  ),
  'llava-onevision-7b': (
    _onevision(28, 28, 4, 3584, 18944, 152128, False),
    onevision_config,
    *(28, 28, 4, 729, 8.03),
  ),
}


@pytest.mark.parametrize('name', RELEASED)
def test_released_configurations(tmp_path, name):
  content, module, n_layers, n_heads, n_kv, features, billions = RELEASED[name]
  (tmp_path / 'config.json').write_text(json.dumps(content))
  config = module.read(tmp_path)
  text = config.text
  assert (text.n_layers, text.n_heads, text.n_kv_heads) == (
    n_layers,
    n_heads,
    n_kv,
  )
  assert config.n_features == features
  assert len(config.pinpoints) == len(content['image_grid_pinpoints'])
  assert text.tie == content['text_config'].get('tie_word_embeddings', False)
  model = modeling.abstract(config, jnp.dtype('bfloat16'))
  count = sum(x.size for x in jax.tree.leaves(model))
  assert count / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
  'key, backbones',
  [
    ('llava_next_flax', ('llama', 'mistral', 'qwen2')),
    ('llava_onevision_flax', ('qwen2',)),
  ],
)
def test_family_rows(key, backbones):
  family = registry.get(key)
  assert (family.key, family.backbones) == (key, backbones)
  assert not family.trained and not family.video
