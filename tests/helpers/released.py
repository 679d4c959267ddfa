"""config.json of the released checkpoints of every family, and their sizes.

In the hub's format, shortened by what is bookkeeping. Layers, heads, widths and
vocabularies are as published; `text` of InternVL3-9B (InternLM3) has its
vocabulary rounded.
"""

import copy
from typing import Any

from helpers import qwen_released

TOWER_300M = {
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
TOWER_6B = {
  **TOWER_300M,
  'attention_bias': False,
  'hidden_size': 3200,
  'intermediate_size': 12800,
  'norm_type': 'rms_norm',
  'num_attention_heads': 25,
  'num_hidden_layers': 45,
  'use_qk_norm': True,
}


def internvl_text(kind, layers, heads, kv, width, mlp, vocab, **more):
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


def internvl_llama(layers, heads, kv, width, mlp):
  return {
    key: value
    for key, value in internvl_text(
      'llama', layers, heads, kv, width, mlp, 92553
    ).items()
    if 'window' not in key
  }


def internvl(text, tower=None, **more):
  return {
    'architectures': ['InternVLForConditionalGeneration'],
    'model_type': 'internvl',
    'downsample_ratio': 0.5,
    'image_seq_length': 256,
    'image_token_id': 92546 if text['model_type'] == 'llama' else 151667,
    'projector_hidden_act': 'gelu',
    'text_config': text,
    'vision_config': tower or TOWER_300M,
    'vision_feature_layer': -1,
    'vision_feature_select_strategy': 'default',
    **more,
  }


_NEXT_MISTRAL = {
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


def onevision(layers, heads, kv, width, mlp, vocab, tie):
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


def _llava(**text: Any) -> dict:
  return {
    'architectures': ['LlavaForConditionalGeneration'],
    'ignore_index': -100,
    'image_token_index': 32000,
    'model_type': 'llava',
    'pad_token_id': 32001,
    'projector_hidden_act': 'gelu',
    'text_config': {
      'architectures': ['LlamaForCausalLM'],
      'max_position_embeddings': 4096,
      'model_type': 'llama',
      'rms_norm_eps': 1e-05,
      'torch_dtype': 'float16',
      'vocab_size': 32064,
      **text,
    },
    'tie_word_embeddings': False,
    'torch_dtype': 'float16',
    'transformers_version': '4.36.0.dev0',
    'vision_config': _NEXT_MISTRAL['vision_config'],
    'vision_feature_layer': -2,
    'vision_feature_select_strategy': 'default',
    'vocab_size': 32064,
  }


def _sized(kind, layers, heads, kv, width, mlp, vocab, **more) -> dict:
  """A text_config that says all of its sizes."""
  return {
    'model_type': kind,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'num_key_value_heads': kv,
    'hidden_size': width,
    'intermediate_size': mlp,
    'vocab_size': vocab,
    'rms_norm_eps': 1e-05,
    **more,
  }


def _next(*text: Any, **more: Any) -> dict:
  config = copy.deepcopy(_NEXT_MISTRAL)
  config['text_config'] = _sized(*text, **more)
  config['vocab_size'] = text[6]
  return config


_LLAVA_13B = dict(
  hidden_size=5120,
  intermediate_size=13824,
  num_attention_heads=40,
  num_hidden_layers=40,
  num_key_value_heads=40,
)
_UNTIED: Any = dict(tie_word_embeddings=False)


def _qwen2(layers, heads, kv, width, mlp, tower=None, **more):
  text = internvl_text('qwen2', layers, heads, kv, width, mlp, 151674)
  return internvl(text, tower, **more)


def _qwen3(layers, heads, kv, width, mlp, tower=None):
  text = internvl_text(
    'qwen3', layers, heads, kv, width, mlp, 151936, head_dim=128
  )
  return internvl(text, tower, **_UNTIED)


def _experts(layers, heads, width, mlp, tower=None):
  text = internvl_text(
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
  return internvl(text, tower, **_UNTIED)


# name -> (registry key, config.json, (layers, heads, kv heads), 1e9 parameters
# that are run: without the tower's unused layers)
RELEASED: dict[str, tuple[str, dict, tuple[int, int, int], float]] = {
  'llava-1.5-7b-hf': ('llava_flax', _llava(), (32, 32, 32), 7.05),
  'llava-1.5-13b-hf': (
    'llava_flax',
    _llava(**_LLAVA_13B),
    (40, 40, 40),
    13.34,
  ),
}
for _name, _config, _heads, _billions in (
  ('llava-v1.6-mistral-7b-hf', _NEXT_MISTRAL, (32, 32, 8), 7.56),
  (
    'llava-v1.6-vicuna-7b-hf',
    _next('llama', 32, 32, 32, 4096, 11008, 32064),
    (32, 32, 32),
    7.05,
  ),
  (
    'llava-v1.6-vicuna-13b-hf',
    _next('llama', 40, 40, 40, 5120, 13824, 32064),
    (40, 40, 40),
    13.34,
  ),
  (
    'llama3-llava-next-8b-hf',
    _next('llama', 32, 32, 8, 4096, 14336, 128320, rope_theta=500000.0),
    (32, 32, 8),
    8.36,
  ),
  (
    'llava-v1.6-34b-hf',
    _next('llama', 60, 56, 8, 7168, 20480, 64064, rope_theta=5000000.0),
    (60, 56, 8),
    34.7,
  ),
  (
    'llava-next-72b-hf',
    _next('qwen2', 80, 64, 64, 8192, 24576, 152064, rope_theta=1000000.0),
    (80, 64, 64),
    72.7,
  ),
  (
    'llava-next-110b-hf',
    _next('qwen2', 80, 64, 8, 8192, 49152, 152064, rope_theta=1000000.0),
    (80, 64, 8),
    111.6,
  ),
):
  RELEASED[_name] = ('llava_next_flax', _config, _heads, _billions)
for _name, _sizes, _billions in (
  ('0.5b', (24, 14, 2, 896, 4864, 152000, True), 0.894),
  ('7b', (28, 28, 4, 3584, 18944, 152128, False), 8.03),
  ('72b', (80, 64, 8, 8192, 29568, 152064, False), 73.2),
):
  RELEASED[f'llava-onevision-qwen2-{_name}-ov-hf'] = (
    'llava_onevision_flax',
    onevision(*_sizes),
    _sizes[:3],
    _billions,
  )
for _name, _config, _heads, _billions in (
  ('2_5-1B', _qwen2(24, 14, 2, 896, 4864, **_UNTIED), (24, 14, 2), 0.94),
  (
    '2_5-2B',
    internvl(internvl_llama(24, 16, 8, 2048, 8192), **_UNTIED),
    (24, 16, 8),
    2.2,
  ),
  ('2_5-4B', _qwen2(36, 16, 2, 2048, 11008, **_UNTIED), (36, 16, 2), 3.71),
  (
    '2_5-8B',
    internvl(internvl_llama(32, 32, 8, 4096, 14336), **_UNTIED),
    (32, 32, 8),
    8.08,
  ),
  (
    '2_5-26B',
    internvl(internvl_llama(48, 48, 8, 6144, 16384), TOWER_6B, **_UNTIED),
    (48, 48, 8),
    25.5,
  ),
  (
    '2_5-38B',
    _qwen2(64, 40, 8, 5120, 27648, TOWER_6B, **_UNTIED),
    (64, 40, 8),
    38.4,
  ),
  (
    '2_5-78B',
    _qwen2(80, 64, 8, 8192, 29568, TOWER_6B, **_UNTIED),
    (80, 64, 8),
    78.4,
  ),
  ('3-1B', _qwen2(24, 14, 2, 896, 4864, **_UNTIED), (24, 14, 2), 0.94),
  ('3-2B', _qwen2(28, 12, 2, 1536, 8960), (28, 12, 2), 1.85),
  ('3-8B', _qwen2(28, 28, 4, 3584, 18944, **_UNTIED), (28, 28, 4), 7.94),
  (
    '3-9B',
    internvl(
      {
        **internvl_llama(48, 32, 2, 4096, 10240),
        'vocab_size': 128520,
        'head_dim': 128,
      },
      **_UNTIED,
      image_token_id=128519,
    ),
    (48, 32, 2),
    9.14,
  ),
  ('3-14B', _qwen2(48, 40, 8, 5120, 13824, **_UNTIED), (48, 40, 8), 15.1),
  (
    '3-38B',
    _qwen2(64, 40, 8, 5120, 27648, TOWER_6B, **_UNTIED),
    (64, 40, 8),
    38.4,
  ),
  (
    '3-78B',
    _qwen2(80, 64, 8, 8192, 29568, TOWER_6B, **_UNTIED),
    (80, 64, 8),
    78.4,
  ),
  ('3_5-1B', _qwen3(28, 16, 8, 1024, 3072), (28, 16, 8), 1.06),
  ('3_5-2B', _qwen3(28, 16, 8, 2048, 6144), (28, 16, 8), 2.35),
  ('3_5-4B', _qwen3(36, 32, 8, 2560, 9728), (36, 32, 8), 4.73),
  ('3_5-8B', _qwen3(36, 32, 8, 4096, 12288), (36, 32, 8), 8.53),
  ('3_5-14B', _qwen3(40, 40, 8, 5120, 17408), (40, 40, 8), 15.1),
  ('3_5-38B', _qwen3(64, 64, 8, 5120, 25600, TOWER_6B), (64, 64, 8), 38.4),
  ('3_5-30B-A3B', _experts(48, 32, 2048, 768), (48, 32, 4), 30.8),
  (
    '3_5-241B-A28B',
    _experts(94, 64, 4096, 1536, TOWER_6B),
    (94, 64, 4),
    240.7,
  ),
):
  RELEASED[f'InternVL{_name}'] = ('internvl_flax', _config, _heads, _billions)
_QWEN = {
  'Qwen2-VL-2B-Instruct': (28, 12, 2, 2.21),
  'Qwen2-VL-7B-Instruct': (28, 28, 4, 8.29),
  'Qwen2-VL-72B-Instruct': (80, 64, 8, 73.4),
  'Qwen2.5-VL-3B-Instruct': (36, 16, 2, 3.75),
  'Qwen2.5-VL-7B-Instruct': (28, 28, 4, 8.29),
  'Qwen2.5-VL-32B-Instruct': (64, 40, 8, 33.45),
  'Qwen2.5-VL-72B-Instruct': (80, 64, 8, 73.4),
  'Qwen3-VL-2B-Instruct': (28, 16, 8, 2.13),
  'Qwen3-VL-4B-Instruct': (36, 32, 8, 4.44),
  'Qwen3-VL-8B-Instruct': (36, 32, 8, 8.77),
  'Qwen3-VL-32B-Instruct': (64, 64, 8, 33.4),
  'Qwen3-VL-30B-A3B-Instruct': (48, 32, 4, 31.1),
  'Qwen3-VL-235B-A22B-Instruct': (94, 64, 4, 235.7),
}
for _name, (*_heads, _billions) in _QWEN.items():
  _config = qwen_released.config(_name)
  RELEASED[_name] = (
    f'{_config["model_type"]}_flax',
    _config,
    (_heads[0], _heads[1], _heads[2]),
    _billions,
  )
