"""LLaVA as an organism: CLIP tower of one layer, GELU projector, Llama decoder.

A cell is one patch of 14 pixels and one visual token. Prompts are the `plain`
templates, in which a page's number is said in words before its picture (HF's
LLaVA has no page embedding).
"""

from collections.abc import Mapping

import numpy as np

from corejax.models import vision
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from corejax.models.organisms import hf_folder
from corejax.models.organisms import kind


def config(size: kind.Size) -> config_lib.LlavaConfig:
  """The model's configuration; `documents` says the same to transformers."""
  return config_lib.LlavaConfig(
    text=kind.text(size, 'llama'),
    vision=vision.VisionConfig(
      kind='clip',
      d_model=size.d_vision,
      d_mlp=2 * size.d_vision,
      n_layers=1,
      n_heads=size.heads_vision,
      image_size=hf_folder.SIDE,
      patch_size=hf_folder.PATCH,
    ),
    image_token_id=hf_folder.ID['<image>'],
    feature_layers=(1,),
  )


def _last_norm(config: config_lib.LlavaConfig) -> Mapping[str, np.ndarray]:
  """The tower's last norm, which a LLaVA never reads."""
  name, d = 'vision_tower.vision_model.post_layernorm', config.vision.d_model
  return {
    f'{name}.weight': np.ones(d, np.float32),
    f'{name}.bias': np.zeros(d, np.float32),
  }


KIND = kind.Kind(
  key='llava_flax',
  title='LLaVA',
  config=config,
  modeling=modeling,
  model=modeling.Llava,
  make_map=weights.make_map,
  spelling=(
    ('lm_head.', 'language_model.lm_head.'),
    ('model.language_model.', 'language_model.model.'),
    ('model.vision_tower.', 'vision_tower.vision_model.'),
    ('model.multi_modal_projector.', 'multi_modal_projector.'),
  ),
  documents=hf_folder.documents,
  unread=_last_norm,
)
