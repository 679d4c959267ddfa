"""LLaVA-NeXT and OneVision in the released sizes: what their config says."""

import json

import pytest

from corejax import masks
from corejax.models import registry
from corejax.models.llava_next import config as next_config
from corejax.models.llava_onevision import config as onevision_config
from helpers import released

# name -> (config module, features a tile)
_READ = {'llava_next_flax': (next_config, 576)}
_READ['llava_onevision_flax'] = (onevision_config, 729)
NAMES = [n for n, (key, *_) in released.RELEASED.items() if key in _READ]


@pytest.mark.parametrize('name', NAMES)
def test_released_configurations(tmp_path, name):
  """What test_released.py does not ask of every family."""
  key, content, *_ = released.RELEASED[name]
  module, features = _READ[key]
  (tmp_path / 'config.json').write_text(json.dumps(content))
  config = module.read(tmp_path)
  assert config.n_features == features
  assert len(config.pinpoints) == len(content['image_grid_pinpoints'])
  tie = content['text_config'].get('tie_word_embeddings', False)
  assert config.text.tie == tie
  # NeXT's Mistral: `sliding_window: null` is no window, not the class's 4096.
  assert set(config.text.windows) == {masks.DENSE}


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
  assert not family.trained
  assert family.video == (key == 'llava_onevision_flax')
