"""config.json files as released, and settings that are refused."""

import json

import pytest
import transformers

from corejax import errors
from corejax.models.llava import config as config_lib
from helpers import hf_llava
from helpers import released

_LLAVA_15_7B = released.RELEASED['llava-1.5-7b-hf'][1]
# Of repositories that released.py does not list, shortened likewise.
_INTERLEAVE_QWEN_05B = {
  'architectures': ['LlavaForConditionalGeneration'],
  'ignore_index': -100,
  'image_seq_length': 729,
  'image_token_index': 151646,
  'model_type': 'llava',
  'projector_hidden_act': 'gelu',
  'text_config': {
    '_name_or_path': 'Qwen/Qwen1.5-0.5B-Chat',
    'architectures': ['Qwen2ForCausalLM'],
    'bos_token_id': 151643,
    'eos_token_id': 151645,
    'hidden_size': 1024,
    'intermediate_size': 2816,
    'max_position_embeddings': 32768,
    'max_window_layers': 21,
    'model_type': 'qwen2',
    'num_attention_heads': 16,
    'num_hidden_layers': 24,
    'num_key_value_heads': 16,
    'rope_theta': 1000000.0,
    'sliding_window': 32768,
    'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16',
    'use_mrope': False,
    'use_sliding_window': False,
    'vocab_size': 152000,
  },
  'torch_dtype': 'float16',
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
_BAKLLAVA = {
  **_LLAVA_15_7B,
  'text_config': {
    '_name_or_path': 'mistralai/Mistral-7B-v0.1',
    'intermediate_size': 14336,
    'max_position_embeddings': 32768,
    'model_type': 'mistral',
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-05,
    'sliding_window': 4096,
    'vocab_size': 32064,
  },
}


def _read(folder, content):
  (folder / 'config.json').write_text(json.dumps(content))
  return config_lib.read(folder)


def test_llava_15(tmp_path):
  """What test_released.py does not ask of every family."""
  config = _read(tmp_path, _LLAVA_15_7B)
  text, tower = config.text, config.vision
  assert (text.head_dim, text.max_length, text.rms_eps) == (128, 4096, 1e-5)
  assert not (text.qkv_bias or text.o_bias or text.qk_norm or text.tie)
  assert (tower.n_tokens, config.n_features, config.n_run) == (577, 576, 23)
  assert config.feature_layers == (23,)
  assert config.image_token_id == 32000


def test_interleave(tmp_path):
  config = _read(tmp_path, _INTERLEAVE_QWEN_05B)
  text, tower = config.text, config.vision
  assert text.qkv_bias and not text.o_bias and text.tie
  assert text.rope.theta == 1e6
  assert set(text.windows) == {2**30}  # use_sliding_window is off
  assert not tower.has_cls and tower.act == 'gelu_pytorch_tanh'
  assert (tower.n_tokens, config.n_features, config.n_run) == (729, 729, 26)


def test_bakllava(tmp_path):
  config = _read(tmp_path, _BAKLLAVA)
  assert config.text.windows == (4096,) * 32
  assert (config.text.n_kv_heads, config.text.head_dim) == (8, 128)


def test_saved_again_reads_the_same(tmp_path):
  """What transformers 5 writes holds every default; nothing is refused."""
  for index, (text, tower) in enumerate(
    [
      ('llama', 'clip'),
      ('mistral', 'clip'),
      ('qwen2', 'siglip'),
      ('qwen3', 'siglip'),
    ]
  ):
    folder = tmp_path / str(index)
    hf = hf_llava.config(text, tower)
    hf.save_pretrained(folder)
    assert config_lib.read(folder) == config_lib.LlavaConfig.from_hf(hf)


def test_configs_of_2023_with_all_their_bookkeeping(tmp_path):
  """Full dumps of that time hold generation settings in every part."""
  junk = {
    'bad_words_ids': None,
    'do_sample': False,
    'length_penalty': 1.0,
    'num_beams': 1,
    'pruned_heads': {},
    'temperature': 1.0,
    'top_p': 1.0,
    'use_bfloat16': False,
    'dropout': 0.0,
  }
  content = json.loads(json.dumps(_LLAVA_15_7B))
  content['text_config'] |= junk
  content['vision_config'] |= junk
  assert _read(tmp_path, content) == _read(tmp_path, _LLAVA_15_7B)


@pytest.mark.parametrize(
  'part, key, value, message',
  [
    ('', 'quantization_config', {'bits': 4}, 'quantization_config='),
    ('', 'spatial_merge_size', 2, 'not known here: spatial_merge_size=2'),
    ('', 'vision_feature_layer', -26, 'vision_feature_layer=-26 is outside'),
    ('', 'vision_feature_layer', [3, 25], 'is outside -25..24'),
    ('', 'vision_feature_layer', [], 'vision_feature_layer=\\[\\] is outside'),
    ('', 'projector_hidden_act', 'mish', "activation 'mish' is not supported"),
    ('text_config', 'model_type', 'gemma', "backbone 'gemma' is not supp"),
    ('text_config', 'use_mrope', True, 'text_config.use_mrope=true'),
    ('text_config', 'sliding_window', 8, 'text_config.sliding_window=8'),
    ('text_config', 'pruned_heads', {'0': [1]}, 'text_config.pruned_heads'),
    ('text_config', 'hidden_act', 'relu6', "activation 'relu6'"),
    ('text_config', 'num_key_value_heads', 5, 'not a multiple of'),
    (
      'text_config',
      'rope_scaling',
      {'type': 'longrope', 'short_factor': [1.0], 'long_factor': [1.0]},
      "rope_type 'longrope' is not supported",
    ),
    ('text_config', 'partial_rotary_factor', 0.5, 'partial_rotary_factor'),
    ('vision_config', 'model_type', 'pixtral', "tower 'pixtral' is not supp"),
    ('vision_config', 'image_size', [336, 224], 'is not square'),
    ('vision_config', 'qkv_bias', False, 'vision_config.qkv_bias=false'),
    ('vision_config', 'tie_last_hidden_states', True, 'tie_last_hidden'),
    ('vision_config', 'patch_size', 400, 'patch_size=400 with image_size=336'),
  ],
)
def test_refused(tmp_path, part, key, value, message):
  content = json.loads(json.dumps(_LLAVA_15_7B))
  (content[part] if part else content)[key] = value
  with pytest.raises(errors.UserError, match=message) as caught:
    _read(tmp_path, content)
  assert 'config.json' in str(caught.value)


def test_other_llavas_are_refused(tmp_path):
  """LLaVA-NeXT holds nearly the same keys and computes something else."""
  transformers.LlavaNextConfig().save_pretrained(tmp_path)
  with pytest.raises(errors.UserError, match="'llava_next' is not a LLaVA"):
    config_lib.read(tmp_path)


def test_layer_types_of_other_kinds_are_refused():
  hf = hf_llava.config('qwen2')
  hf.text_config.layer_types = ['full_attention', 'chunked_attention', 'x']
  with pytest.raises(errors.UserError, match="'chunked_attention'"):
    config_lib.LlavaConfig.from_hf(hf)
  hf.text_config.layer_types = ['full_attention']
  with pytest.raises(errors.UserError, match='1 layer_types for 3 layers'):
    config_lib.LlavaConfig.from_hf(hf)
