"""Qwen-VL's weight map: both key layouts of released and re-saved folders.

One spelling (that of transformers 5 in memory):

    hub file (Qwen2-VL, 2.5), 5.x saved     spelling here, and Qwen3-VL's files
    model.layers.., model.embed_tokens      model.language_model.X
    visual.X                                model.visual.X
    lm_head.weight                          lm_head.weight
"""

import pathlib

import jax
import jax.numpy as jnp

from corejax.models import families
from corejax.models import weight_map
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling

_RENAMES = (
  (
    r'^model\.(layers|embed_tokens|norm|rotary_emb)\.',
    r'model.language_model.\1.',
  ),
  (r'^visual\.', 'model.visual.'),
)
_TOWER = 'model.visual'
# Buffers of old files.
_IGNORED = (
  r'model\.language_model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq',
  r'model\.visual\.rotary_pos_emb\.inv_freq',
)


def _tower(kind: str, n_deep: int) -> tuple[weight_map.Entry, ...]:
  """Entries of qwen_vision.Tower."""
  layer, block = f'{_TOWER}.blocks.{weight_map.LAYER}', 'vision.layers'
  both = weight_map.both
  up, down = {
    'qwen2_vl': ('fc1', 'fc2'),
    'qwen2_5_vl': ('up_proj', 'down_proj'),
    'qwen3_vl': ('linear_fc1', 'linear_fc2'),
    'qwen3_vl_moe': ('linear_fc1', 'linear_fc2'),
  }[kind]
  merger = _TOWER + '.merger'
  norm, fc1, fc2 = 'ln_q', 'mlp.0', 'mlp.2'
  if kind in ('qwen3_vl', 'qwen3_vl_moe'):
    norm, fc1, fc2 = 'norm', 'linear_fc1', 'linear_fc2'
  deep = []
  for x in range(n_deep):
    name, path = f'{_TOWER}.deepstack_merger_list.{x}', f'vision.deep.{x}'
    deep += both(f'{name}.norm', f'{path}.norm')
    deep += both(f'{name}.linear_fc1', f'{path}.fc1')
    deep += both(f'{name}.linear_fc2', f'{path}.fc2')
  return (
    *both(f'{layer}.norm1', f'{block}.norm1'),
    *both(f'{layer}.norm2', f'{block}.norm2'),
    *both(f'{layer}.attn.qkv', f'{block}.attn.qkv', (3, 1), (3,)),
    *both(f'{layer}.attn.proj', f'{block}.attn.o', (1, 2)),
    *both(f'{layer}.mlp.gate_proj', f'{block}.mlp.gate'),
    *both(f'{layer}.mlp.{up}', f'{block}.mlp.up'),
    *both(f'{layer}.mlp.{down}', f'{block}.mlp.down'),
    *both(f'{_TOWER}.patch_embed.proj', 'vision.patch'),
    weight_map.Entry(f'{_TOWER}.pos_embed.weight', 'vision.position'),
    *both(f'{merger}.{norm}', 'vision.merger.norm'),
    *both(f'{merger}.{fc1}', 'vision.merger.fc1'),
    *both(f'{merger}.{fc2}', 'vision.merger.fc2'),
    *deep,
  )


def make_map(config: config_lib.QwenVlConfig) -> weight_map.WeightMap:
  """The map of one model."""
  entries = (
    *weight_map.decoder('model.language_model', 'language', families.HEAD),
    *weight_map.experts('model.language_model', 'language'),
    *_tower(config.kind, len(config.vision.deep_layers)),
  )
  return weight_map.WeightMap(_RENAMES, entries, _IGNORED)


def load(
  folder: pathlib.Path,
  config: config_lib.QwenVlConfig,
  *,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None = None,
) -> modeling.QwenVl:
  """The model with a folder's weights; see families.load_weights."""
  return families.load_weights(
    folder, config, make_map, modeling.abstract, dtype=dtype, mesh=mesh
  )
