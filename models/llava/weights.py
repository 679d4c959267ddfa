"""LLaVA's weight map: both key layouts of released and re-saved folders.

One spelling (that of transformers 5 in memory, and of `model.` prefixed
files):

    hub file                               spelling here
    language_model.model.X                 model.language_model.X
    language_model.lm_head.weight          lm_head.weight
    vision_tower.vision_model.X            model.vision_tower.X
    vision_tower.X (5.x save_pretrained)   model.vision_tower.X
    multi_modal_projector.X                model.multi_modal_projector.X
"""

import pathlib

import jax
import jax.numpy as jnp

from corejax.models import families
from corejax.models import weight_map
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling

_RENAMES = (
  (r'^language_model\.lm_head\.', 'lm_head.'),
  (r'^(model\.)?language_model\.model\.', 'model.language_model.'),
  (r'^(model\.)?vision_tower\.vision_model\.', 'model.vision_tower.'),
  (r'^(vision_tower|multi_modal_projector)\.', r'model.\1.'),
)
_TOWER = r'model\.vision_tower\.'
_PROJECTOR = 'model.multi_modal_projector'
_ENTRIES = (
  *weight_map.decoder('model.language_model', 'language', families.HEAD),
  *weight_map.tower('model.vision_tower', 'vision'),
  *weight_map.both(f'{_PROJECTOR}.linear_1', 'projector.linear_1'),
  *weight_map.both(f'{_PROJECTOR}.linear_2', 'projector.linear_2'),
)
# Never read by a LLaVA; a folder may hold them or not.
_IGNORED = (
  _TOWER + r'post_layernorm\.(weight|bias)',
  _TOWER + r'head\..*',  # SigLIP's pooling head
  _TOWER + r'embeddings\.position_ids',  # buffers of old files
  r'model\.language_model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq',
  r'model\.language_model\.rotary_emb\.inv_freq',
)


def make_map(config: config_lib.LlavaConfig) -> weight_map.WeightMap:
  """The map of one model; tower layers that are not run may stay away."""
  unused = '|'.join(
    str(layer) for layer in range(config.n_run, config.vision.n_layers)
  )
  above = (_TOWER + rf'encoder\.layers\.({unused})\..*',) if unused else ()
  return weight_map.WeightMap(_RENAMES, _ENTRIES, _IGNORED + above)


def load(
  folder: pathlib.Path,
  config: config_lib.LlavaConfig,
  *,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None = None,
) -> modeling.Llava:
  """The model with a folder's weights; see families.load_weights."""
  return families.load_weights(
    folder, config, make_map, modeling.abstract, dtype=dtype, mesh=mesh
  )
