"""InternVL's configs in the released sizes, and settings that are refused."""

import copy
import json

import jax
import jax.numpy as jnp
import pytest

from corejax import errors
from corejax import masks
from corejax.models import registry
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import modeling

_TOWER_300M = {
  'architectures': ['InternVisionModel'],
  'attention_bias': True,
  'attention_dropout': 0.0,
  'dropout': 0.0,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.0,
  'hidden_size': 1024,
  'image_size': [448, 448],
  'initializer_factor': 0.1,
  'initializer_range': 1e-10,
  'intermediate_size': 4096,
  'layer_norm_eps': 1e-06,
  'layer_scale_init_value': 0.1,
  'model_type': 'internvl_vision',
  'norm_type': 'layer_norm',
  'num_attention_heads': 16,
  'num_channels': 3,
  'num_hidden_layers': 24,
  'patch_size': [14, 14],
  'projection_dropout': 0.0,
  'torch_dtype': 'bfloat16',
  'use_absolute_position_embeddings': True,
  'use_mask_token': False,
  'use_mean_pooling': True,
  'use_qk_norm': False,
}
_TOWER_6B = {
  **_TOWER_300M,
  'attention_bias': False,
  'hidden_size': 3200,
  'intermediate_size': 12800,
  'norm_type': 'rms_norm',
  'num_attention_heads': 25,
  'num_hidden_layers': 45,
  'use_qk_norm': True,
}


def _text(kind, layers, heads, kv, width, mlp, vocab, **more):
  return {
    'model_type': kind,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'num_key_value_heads': kv,
    'hidden_size': width,
    'intermediate_size': mlp,
    'vocab_size': vocab,
    'max_position_embeddings': 32768,
    'rms_norm_eps': 1e-06,
    'rope_scaling': {'factor': 2.0, 'rope_type': 'dynamic', 'type': 'dynamic'},
    'rope_theta': 1000000.0,
    'use_sliding_window': False,
    'max_window_layers': layers,
    'use_cache': True,
    'attention_dropout': 0.0,
    **more,
  }


def _llama(layers, heads, kv, width, mlp):
  return {
    key: value
    for key, value in _text(
      'llama', layers, heads, kv, width, mlp, 92553
    ).items()
    if 'window' not in key
  }


def _whole(text, tower=None, **more):
  return {
    'architectures': ['InternVLForConditionalGeneration'],
    'model_type': 'internvl',
    'downsample_ratio': 0.5,
    'image_seq_length': 256,
    'image_token_id': 92546 if text['model_type'] == 'llama' else 151667,
    'projector_hidden_act': 'gelu',
    'text_config': text,
    'vision_config': tower or _TOWER_300M,
    'vision_feature_layer': -1,
    'vision_feature_select_strategy': 'default',
    **more,
  }


def _experts(layers, heads, width, mlp):
  return _text(
    'qwen3_moe',
    layers,
    heads,
    4,
    width,
    3 * width,
    151936,
    head_dim=128,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    moe_intermediate_size=mlp,
    norm_topk_prob=True,
    num_experts=128,
    num_experts_per_tok=8,
    output_router_logits=False,
    router_aux_loss_coef=0.001,
    sliding_window=None,
  )


# name -> (config.json, (layers, heads, kv heads, billion parameters))
RELEASED = {
  'InternVL3-1B': (
    _whole(
      _text('qwen2', 24, 14, 2, 896, 4864, 151674), tie_word_embeddings=False
    ),
    (24, 14, 2, 0.94),
  ),
  'InternVL3-2B': (
    _whole(_text('qwen2', 28, 12, 2, 1536, 8960, 151674)),
    (28, 12, 2, 1.85),
  ),
  'InternVL3-8B': (
    _whole(
      _text('qwen2', 28, 28, 4, 3584, 18944, 151674), tie_word_embeddings=False
    ),
    (28, 28, 4, 7.94),
  ),
  'InternVL3-14B': (
    _whole(
      _text('qwen2', 48, 40, 8, 5120, 13824, 151674), tie_word_embeddings=False
    ),
    (48, 40, 8, 15.1),
  ),
  'InternVL3-38B': (
    _whole(
      _text('qwen2', 64, 40, 8, 5120, 27648, 151674),
      _TOWER_6B,
      tie_word_embeddings=False,
    ),
    (64, 40, 8, 38.4),
  ),
  'InternVL2.5-2B': (
    _whole(_llama(24, 16, 8, 2048, 8192), tie_word_embeddings=False),
    (24, 16, 8, 2.2),
  ),
  'InternVL2.5-8B': (
    _whole(_llama(32, 32, 8, 4096, 14336), tie_word_embeddings=False),
    (32, 32, 8, 8.08),
  ),
  'InternVL3.5-8B': (
    _whole(
      _text('qwen3', 36, 32, 8, 4096, 12288, 151936, head_dim=128),
      tie_word_embeddings=False,
    ),
    (36, 32, 8, 8.53),
  ),
  'InternVL3.5-30B-A3B': (
    _whole(_experts(48, 32, 2048, 768), tie_word_embeddings=False),
    (48, 32, 4, 30.8),
  ),
  'InternVL3.5-241B-A28B': (
    _whole(_experts(94, 64, 4096, 1536), _TOWER_6B, tie_word_embeddings=False),
    (94, 64, 4, 240.7),
  ),
}


def _read(tmp_path, content):
  (tmp_path / 'config.json').write_text(json.dumps(content))
  return config_lib.read(tmp_path)


@pytest.mark.parametrize('name', RELEASED)
def test_released_configurations(tmp_path, name):
  """Every parameter counted, none made."""
  content, (n_layers, n_heads, n_kv, billions) = RELEASED[name]
  config = _read(tmp_path, content)
  text = config.text
  assert (text.n_layers, text.n_heads, text.n_kv_heads) == (
    n_layers,
    n_heads,
    n_kv,
  )
  assert config.n_features == 256 and config.n_run == config.vision.n_layers
  assert text.rope.kind == 'dynamic' and text.rope.factor == 2.0
  assert text.tie == content.get('tie_word_embeddings', True)
  model = modeling.abstract(config, jnp.dtype('bfloat16'))
  count = sum(x.size for x in jax.tree.leaves(model))
  assert count / 1e9 == pytest.approx(billions, rel=0.02)


def _edit(part, name='InternVL3-1B', **changes):
  content = copy.deepcopy(RELEASED[name][0])
  (content[part] if part else content).update(changes)
  return content


def _mixed(**changes):
  return _edit('text_config', 'InternVL3.5-30B-A3B', **changes)


@pytest.mark.parametrize(
  'content, said',
  [
    (_mixed(mlp_only_layers=[3]), 'only a mixture in every layer'),
    (_mixed(decoder_sparse_step=2), 'only a mixture in every layer'),
    (_mixed(num_experts_per_tok=129), 'num_experts_per_tok=129 of'),
    (_mixed(shared_expert_intermediate_size=8), 'text_config.shared_expert'),
    (_mixed(layer_types=['full_attention'] * 48), 'text_config.layer_types'),
    (_edit('text_config', num_experts=8), 'text_config.num_experts'),
    (_edit('', model_type='internvl_chat'), 'internvl_chat'),
    (_edit('', vision_feature_select_strategy='full'), "must be 'default'"),
    (_edit('', vision_feature_layer=[-1, -2]), 'must be one number'),
    (_edit('', vision_feature_layer=25), 'from -25 to 24'),
    (_edit('', downsample_ratio=0.75), 'downsample_ratio=0.75'),
    (_edit('', downsample_ratio=1 / 3), 'downsample_ratio=0.33'),
    (_edit('', downsample_ratio=0.0), 'downsample_ratio=0.0'),
    (_edit('', image_seq_length=255), 'makes 256 features'),
    (_edit('', image_token_id=151674), 'is outside 0..151673'),
    (_edit('', dynamic_image_size=True), 'dynamic_image_size'),
    (_edit('', projector_hidden_act='mish'), "'mish' is not supported"),
    (_edit('text_config', partial_rotary_factor=0.5), 'partial_rotary_factor'),
    (_edit('text_config', attn_gate=1), 'text_config.attn_gate'),
    (_edit('text_config', hidden_size=-1), 'text_config.hidden_size=-1'),
    (_edit('vision_config', norm_type='batch'), "norm_type='batch'"),
    (_edit('vision_config', image_size=[448, 224]), 'is not square'),
    (_edit('vision_config', image_size=450), 'image_size=450'),
    (_edit('vision_config', num_attention_heads=15), 'multiple of'),
    (_edit('vision_config', drop_cls=True), 'vision_config.drop_cls'),
    (_edit('', text_config=3), 'text_config=3 is no JSON object'),
    (
      _edit('', vision_config={'model_type': 'clip_vision_model'}),
      "tower 'clip_vision_model' is not supported",
    ),
    (
      _whole({'model_type': 'mistral', 'vocab_size': 200000}),
      "backbone 'mistral' is not supported in InternVL",
    ),
    (
      _whole({'model_type': 'gpt_oss', 'vocab_size': 201088}),
      "backbone 'gpt_oss' is not supported in InternVL",
    ),
  ],
)
def test_refused(tmp_path, content, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    _read(tmp_path, content)
  assert str(caught.value).startswith(str(tmp_path / 'config.json'))
  assert '\n' not in str(caught.value)


def test_family_row():
  family = registry.get('internvl_flax')
  assert family.backbones == ('llama', 'qwen2', 'qwen3', 'qwen3_moe')
  assert not family.trained and not family.video


def test_a_mixture_is_as_config_json_says(tmp_path):
  text = _read(tmp_path, _mixed()).text
  assert (text.kind, text.qk_norm, set(text.windows)) == (
    'qwen3',
    True,
    {masks.DENSE},
  )
  experts = text.experts
  assert (experts.n_experts, experts.top_k, experts.d_expert) == (128, 8, 768)
  assert experts.normalise
  text = _read(
    tmp_path,
    _mixed(norm_topk_prob=False, use_sliding_window=True, sliding_window=9),
  ).text
  assert not text.experts.normalise
  assert text.windows == (9,) * 48
