"""InternVL's configs in the released sizes, and settings that are refused."""

import copy
import json

import pytest

from corejax import errors
from corejax import masks
from corejax.models import registry
from corejax.models.internvl import config as config_lib
from helpers import released

NAMES = [n for n in released.RELEASED if n.startswith('InternVL')]


def _read(tmp_path, content):
  (tmp_path / 'config.json').write_text(json.dumps(content))
  return config_lib.read(tmp_path)


@pytest.mark.parametrize('name', NAMES)
def test_released_configurations(tmp_path, name):
  """What test_released.py does not ask of every family."""
  _, content, *_ = released.RELEASED[name]
  config = _read(tmp_path, content)
  text = config.text
  assert config.n_features == 256 and config.n_run == config.vision.n_layers
  assert text.rope.kind == 'dynamic' and text.rope.factor == 2.0
  assert text.tie == content.get('tie_word_embeddings', True)


def _edit(part, name='InternVL3-1B', **changes):
  content = copy.deepcopy(released.RELEASED[name][1])
  (content[part] if part else content).update(changes)
  return content


def _mixed(**changes):
  return _edit('text_config', 'InternVL3_5-30B-A3B', **changes)


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
      released.internvl({'model_type': 'mistral', 'vocab_size': 200000}),
      "backbone 'mistral' is not supported in InternVL",
    ),
    (
      released.internvl({'model_type': 'gpt_oss', 'vocab_size': 201088}),
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
  assert family.trained == ('scenes-internvl-4x8',) and family.video


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
