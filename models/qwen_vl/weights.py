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


def _linear(
  name: str, path: str, out: int = 1, inp: int = 1
) -> tuple[weight_map.Entry, weight_map.Entry]:
  """Weight and bias; `out` and `inp` count the parameter's axes of each."""
  return (
    weight_map.Entry(f'{name}.weight', f'{path}.weight', (out, inp)),
    weight_map.Entry(f'{name}.bias', f'{path}.bias', (out,)),
  )


def _norm(name: str, path: str) -> tuple[weight_map.Entry, weight_map.Entry]:
  return (
    weight_map.Entry(f'{name}.weight', f'{path}.weight'),
    weight_map.Entry(f'{name}.bias', f'{path}.bias'),
  )


def _experts() -> tuple[weight_map.Entry, ...]:
  """Entries of mlp.Experts; the hub's order of axes is ours."""
  layer = f'model.language_model.layers.{weight_map.LAYER}.mlp'
  block = 'language.layers.mlp'
  experts = f'{layer}.experts'
  return (
    weight_map.Entry(f'{layer}.gate.weight', f'{block}.router.weight'),
    weight_map.Entry(f'{experts}.gate_up_proj', f'{block}.gate_up', swap=True),
    weight_map.Entry(f'{experts}.down_proj', f'{block}.down', swap=True),
  )


def _tower(kind: str, n_deep: int) -> tuple[weight_map.Entry, ...]:
  """Entries of qwen_vision.Tower."""
  layer, block = f'{_TOWER}.blocks.{weight_map.LAYER}', 'vision.layers'
  patch = f'{_TOWER}.patch_embed.proj'
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
    deep += _norm(f'{name}.norm', f'{path}.norm')
    deep += _linear(f'{name}.linear_fc1', f'{path}.fc1')
    deep += _linear(f'{name}.linear_fc2', f'{path}.fc2')
  return (
    *_norm(f'{layer}.norm1', f'{block}.norm1'),
    *_norm(f'{layer}.norm2', f'{block}.norm2'),
    *_linear(f'{layer}.attn.qkv', f'{block}.attn.qkv', out=3),
    *_linear(f'{layer}.attn.proj', f'{block}.attn.o', inp=2),
    *_linear(f'{layer}.mlp.gate_proj', f'{block}.mlp.gate'),
    *_linear(f'{layer}.mlp.{up}', f'{block}.mlp.up'),
    *_linear(f'{layer}.mlp.{down}', f'{block}.mlp.down'),
    weight_map.Entry(f'{patch}.weight', 'vision.patch.weight'),
    weight_map.Entry(f'{patch}.bias', 'vision.patch.bias'),
    weight_map.Entry(f'{_TOWER}.pos_embed.weight', 'vision.position'),
    *_norm(f'{merger}.{norm}', 'vision.merger.norm'),
    *_linear(f'{merger}.{fc1}', 'vision.merger.fc1'),
    *_linear(f'{merger}.{fc2}', 'vision.merger.fc2'),
    *deep,
  )


def make_map(config: config_lib.QwenVlConfig) -> weight_map.WeightMap:
  """The map of one model."""
  entries = (
    *weight_map.decoder('model.language_model', 'language', families.HEAD),
    *_experts(),
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
