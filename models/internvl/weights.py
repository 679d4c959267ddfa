"""InternVL's weight map: both key layouts of released and re-saved folders.

One spelling (that of transformers 5 in memory, and of `model.` prefixed
files):

    hub file                        spelling here
    language_model.model.X          model.language_model.X
    language_model.lm_head.weight   lm_head.weight
    vision_tower.X                  model.vision_tower.X
    multi_modal_projector.X         model.multi_modal_projector.X
"""

import pathlib

import jax
import jax.numpy as jnp

from corejax.models import families
from corejax.models import weight_map
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import modeling

RENAMES = (
  (r'^language_model\.lm_head\.', 'lm_head.'),
  (r'^(model\.)?language_model\.model\.', 'model.language_model.'),
  (r'^(vision_tower|multi_modal_projector)\.', r'model.\1.'),
)
_TOWER = r'model\.vision_tower\.'
_PROJECTOR = 'model.multi_modal_projector'
_HEADS_OUT = dict(weight=(2, 1), bias=(2,))  # [N*H, D], [N*H]


def _tower(name: str, path: str) -> tuple[weight_map.Entry, ...]:
  """Entries of models.internvit.Tower."""
  layer, block = f'{name}.encoder.layer.{weight_map.LAYER}', f'{path}.layers'
  embeddings, attention = f'{name}.embeddings', f'{layer}.attention'
  both, entry = weight_map.both, weight_map.Entry
  return (
    entry(f'{embeddings}.cls_token', f'{path}.cls', (0, 0, 1)),
    entry(f'{embeddings}.position_embeddings', f'{path}.position', (0, 1, 1)),
    *both(f'{embeddings}.patch_embeddings.projection', f'{path}.patch'),
    *both(f'{layer}.layernorm_before', f'{block}.norm1'),
    *both(f'{layer}.layernorm_after', f'{block}.norm2'),
    *both(f'{attention}.q_proj', f'{block}.attn.q', **_HEADS_OUT),
    *both(f'{attention}.k_proj', f'{block}.attn.k', **_HEADS_OUT),
    *both(f'{attention}.v_proj', f'{block}.attn.v', **_HEADS_OUT),
    *both(f'{attention}.projection_layer', f'{block}.attn.o', weight=(1, 2)),
    entry(f'{attention}.q_norm.weight', f'{block}.attn.q_norm.weight'),
    entry(f'{attention}.k_norm.weight', f'{block}.attn.k_norm.weight'),
    entry(f'{layer}.lambda_1', f'{block}.scale1'),
    entry(f'{layer}.lambda_2', f'{block}.scale2'),
    *both(f'{layer}.mlp.fc1', f'{block}.fc1'),
    *both(f'{layer}.mlp.fc2', f'{block}.fc2'),
    *both(f'{name}.layernorm', f'{path}.final'),
  )


_ENTRIES = (
  *weight_map.decoder('model.language_model', 'language', families.HEAD),
  *weight_map.experts('model.language_model', 'language'),
  *_tower('model.vision_tower', 'vision'),
  *weight_map.both(f'{_PROJECTOR}.layer_norm', 'projector.norm'),
  *weight_map.both(f'{_PROJECTOR}.linear_1', 'projector.linear_1'),
  *weight_map.both(f'{_PROJECTOR}.linear_2', 'projector.linear_2'),
)
# Never read in evaluation; a folder may hold them or not.
_IGNORED = (
  _TOWER + r'embeddings\.mask_token',
  r'model\.language_model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq',
)


def make_map(config: config_lib.InternVLConfig) -> weight_map.WeightMap:
  """The map of one model; parts of the tower that are not run may stay away."""
  ignored = _IGNORED
  if config.vision.final_norm and not config.final:
    ignored += (_TOWER + r'layernorm\.(weight|bias)',)
  unused = range(config.n_run, config.vision.n_layers)
  if unused:
    numbers = '|'.join(map(str, unused))
    ignored += (_TOWER + rf'encoder\.layer\.({numbers})\..*',)
  return weight_map.WeightMap(RENAMES, _ENTRIES, ignored)


def load(
  folder: pathlib.Path,
  config: config_lib.InternVLConfig,
  *,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None = None,
) -> modeling.InternVL:
  """The model with a folder's weights; see families.load_weights."""
  return families.load_weights(
    folder, config, make_map, modeling.abstract, dtype=dtype, mesh=mesh
  )
