"""config.json of the released Qwen-VL checkpoints, as the hub holds them."""

import copy


def _text(hidden, mlp, layers, heads, kv_heads, vocab, tied, **more) -> dict:
  return {
    'attention_dropout': 0.0,
    'bos_token_id': 151643,
    'eos_token_id': 151645,
    'vision_start_token_id': 151652,
    'vision_end_token_id': 151653,
    'vision_token_id': 151654,
    'image_token_id': 151655,
    'video_token_id': 151656,
    'hidden_act': 'silu',
    'hidden_size': hidden,
    'initializer_range': 0.02,
    'intermediate_size': mlp,
    'max_position_embeddings': 32768,
    'max_window_layers': layers,
    'num_attention_heads': heads,
    'num_hidden_layers': layers,
    'num_key_value_heads': kv_heads,
    'rms_norm_eps': 1e-06,
    'rope_theta': 1000000.0,
    'sliding_window': 32768,
    'tie_word_embeddings': tied,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.41.2',
    'use_cache': True,
    'use_sliding_window': False,
    'rope_scaling': {'type': 'mrope', 'mrope_section': [16, 24, 24]},
    'vocab_size': vocab,
    **more,
  }


def _qwen2(*text) -> dict:
  return {
    'architectures': ['Qwen2VLForConditionalGeneration'],
    'model_type': 'qwen2_vl',
    **_text(*text),
    'vision_config': {
      'depth': 32,
      'embed_dim': 1280,
      'mlp_ratio': 4,
      'num_heads': 16,
      'in_chans': 3,
      'hidden_size': text[0],
      'patch_size': 14,
      'spatial_merge_size': 2,
      'spatial_patch_size': 14,
      'temporal_patch_size': 2,
    },
  }


def _qwen2_5(mlp: int, *text) -> dict:
  return {
    'architectures': ['Qwen2_5_VLForConditionalGeneration'],
    'model_type': 'qwen2_5_vl',
    **_text(*text, max_position_embeddings=128000),
    'vision_config': {
      'depth': 32,
      'hidden_act': 'silu',
      'hidden_size': 1280,
      'intermediate_size': mlp,
      'num_heads': 16,
      'in_chans': 3,
      'out_hidden_size': text[0],
      'patch_size': 14,
      'spatial_merge_size': 2,
      'spatial_patch_size': 14,
      'window_size': 112,
      'fullatt_block_indexes': [7, 15, 23, 31],
      'tokens_per_second': 2,
      'temporal_patch_size': 2,
    },
  }


def _qwen3(deep: bool, *text) -> dict:
  hidden, mlp, layers, heads, kv_heads, tied = text
  depth, width, wide, at = (27, 1152, 4304, [8, 16, 24])
  if not deep:
    depth, width, wide, at = (24, 1024, 4096, [5, 11, 17])
  return {
    'architectures': ['Qwen3VLForConditionalGeneration'],
    'image_token_id': 151655,
    'model_type': 'qwen3_vl',
    'text_config': {
      'attention_bias': False,
      'attention_dropout': 0.0,
      'bos_token_id': 151643,
      'dtype': 'bfloat16',
      'eos_token_id': 151645,
      'head_dim': 128,
      'hidden_act': 'silu',
      'hidden_size': hidden,
      'initializer_range': 0.02,
      'intermediate_size': mlp,
      'max_position_embeddings': 262144,
      'model_type': 'qwen3_vl_text',
      'num_attention_heads': heads,
      'num_hidden_layers': layers,
      'num_key_value_heads': kv_heads,
      'rms_norm_eps': 1e-06,
      'rope_scaling': {
        'mrope_interleaved': True,
        'mrope_section': [24, 20, 20],
        'rope_type': 'default',
      },
      'rope_theta': 5000000,
      **({'tie_word_embeddings': True} if tied else {}),
      'use_cache': True,
      'vocab_size': 151936,
    },
    'tie_word_embeddings': tied,
    'transformers_version': '4.57.0.dev0',
    'video_token_id': 151656,
    'vision_config': {
      'deepstack_visual_indexes': at,
      'depth': depth,
      'hidden_act': 'gelu_pytorch_tanh',
      'hidden_size': width,
      'in_channels': 3,
      'initializer_range': 0.02,
      'intermediate_size': wide,
      'model_type': 'qwen3_vl',
      'num_heads': 16,
      'num_position_embeddings': 2304,
      'out_hidden_size': hidden,
      'patch_size': 16,
      'spatial_merge_size': 2,
      'temporal_patch_size': 2,
    },
    'vision_end_token_id': 151653,
    'vision_start_token_id': 151652,
  }


def _qwen3_moe(each: int, *text) -> dict:
  config = _qwen3(True, *text, False)
  config['architectures'] = ['Qwen3VLMoeForConditionalGeneration']
  config['model_type'] = 'qwen3_vl_moe'
  config['vision_config']['model_type'] = 'qwen3_vl_moe'
  config['text_config'] |= {
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
    'model_type': 'qwen3_vl_moe_text',
    'moe_intermediate_size': each,
    'norm_topk_prob': True,
    'num_experts': 128,
    'num_experts_per_tok': 8,
  }
  return config


_ALL = {
  'Qwen2-VL-2B-Instruct': _qwen2(1536, 8960, 28, 12, 2, 151936, True),
  'Qwen2-VL-7B-Instruct': _qwen2(3584, 18944, 28, 28, 4, 152064, False),
  'Qwen2-VL-72B-Instruct': _qwen2(8192, 29568, 80, 64, 8, 152064, False),
  'Qwen2.5-VL-3B-Instruct': _qwen2_5(
    3420, 2048, 11008, 36, 16, 2, 151936, True
  ),
  'Qwen2.5-VL-7B-Instruct': _qwen2_5(
    3420, 3584, 18944, 28, 28, 4, 152064, False
  ),
  'Qwen2.5-VL-32B-Instruct': _qwen2_5(
    3456, 5120, 27648, 64, 40, 8, 152064, False
  ),
  'Qwen2.5-VL-72B-Instruct': _qwen2_5(
    3456, 8192, 29568, 80, 64, 8, 152064, False
  ),
  'Qwen3-VL-2B-Instruct': _qwen3(False, 2048, 6144, 28, 16, 8, True),
  'Qwen3-VL-4B-Instruct': _qwen3(False, 2560, 9728, 36, 32, 8, True),
  'Qwen3-VL-8B-Instruct': _qwen3(True, 4096, 12288, 36, 32, 8, False),
  'Qwen3-VL-32B-Instruct': _qwen3(True, 5120, 25600, 64, 64, 8, False),
  'Qwen3-VL-30B-A3B-Instruct': _qwen3_moe(768, 2048, 6144, 48, 32, 4),
  'Qwen3-VL-235B-A22B-Instruct': _qwen3_moe(1536, 4096, 12288, 94, 64, 4),
}
NAMES = tuple(_ALL)


def config(name: str) -> dict:
  """A fresh copy."""
  return copy.deepcopy(_ALL[name])
