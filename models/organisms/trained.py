"""A small LLaVA to be trained from scratch on the scenes.

A CLIP tower of one layer, a GELU projector and a Llama decoder behind the
pictures and words of `folder.py`. Prompts are the `plain` templates, in which a
page's number is said in words before its picture (HF's LLaVA has no page
embedding).
"""

import dataclasses
import math
import os
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from corejax.models import decoder
from corejax.models import rope
from corejax.models import vision
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from corejax.models.organisms import hf_folder


@dataclasses.dataclass(frozen=True)
class Size:
  """Sizes that differ between trained models.

  Attributes:
    layers, heads, d_model, d_mlp: of the decoder.
    d_vision, heads_vision: of the tower; its MLP is twice as wide.
  """

  layers: int
  heads: int
  d_model: int
  d_mlp: int
  d_vision: int = 64
  heads_vision: int = 4


SIZES = {
  'tiny': Size(layers=2, heads=2, d_model=32, d_mlp=48, d_vision=16),
  'small': Size(layers=4, heads=8, d_model=128, d_mlp=256),
  'base': Size(layers=8, heads=8, d_model=128, d_mlp=256),
}


def config(size: Size) -> config_lib.LlavaConfig:
  """The model's configuration; `documents` says the same to transformers."""
  head_dim = size.d_model // size.heads
  return config_lib.LlavaConfig(
    text=decoder.DecoderConfig(
      kind='llama',
      vocab_size=len(hf_folder.TOKENS),
      d_model=size.d_model,
      d_mlp=size.d_mlp,
      n_layers=size.layers,
      n_heads=size.heads,
      n_kv_heads=size.heads,
      head_dim=head_dim,
      max_length=hf_folder.MAX_LENGTH,
      rope=rope.RopeConfig(
        head_dim,
        max_length=hf_folder.MAX_LENGTH,
        original_length=hf_folder.MAX_LENGTH,
      ),
    ),
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


def _scale(path: str, shape: tuple[int, ...], n_layers: int) -> float:
  """Standard deviation of a weight's first values."""
  if path == 'language.embed.weight':
    return 1.0
  if path.endswith('cls') or path.endswith('position'):
    return 0.2
  inputs = math.prod(shape[1:])
  if '.layers.' in path:
    inputs = math.prod(shape[2:])
    if path.endswith('attn.o.weight'):
      inputs = math.prod(shape[-2:])
    elif path.endswith(('attn.q.weight', 'attn.k.weight', 'attn.v.weight')):
      inputs = shape[-1]
  scale = 1 / math.sqrt(inputs)
  # So that the sum of all branches is as large as one embedding.
  if path.endswith(('attn.o.weight', 'mlp.down.weight', 'fc2.weight')):
    scale /= math.sqrt(2 * n_layers)
  return scale


def new(size: Size, seed: int) -> modeling.Llava:
  """A model with random weights, float32.

  Args:
    size: of the model.
    seed: other weights.
  """
  model = modeling.abstract(config(size), jnp.dtype('float32'))
  graph, state = nnx.split(model)
  key = jax.random.key(seed)
  filled = []
  for number, (keys, param) in enumerate(nnx.to_flat_state(state)):
    path = '.'.join(map(str, keys))
    if path.endswith('bias'):
      value = jnp.zeros(param.shape)
    elif 'norm' in path:
      value = jnp.ones(param.shape)
    else:
      n_layers = size.layers if path.startswith('language') else 1
      normal = jax.random.normal(jax.random.fold_in(key, number), param.shape)
      value = _scale(path, param.shape, n_layers) * normal
    filled.append((keys, param.replace(value)))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def _on_disk(name: str) -> str:
  """A name of the weight map in the spelling of released checkpoints."""
  for ours, theirs in (
    ('lm_head.', 'language_model.lm_head.'),
    ('model.language_model.', 'language_model.model.'),
    ('model.vision_tower.', 'vision_tower.vision_model.'),
    ('model.multi_modal_projector.', 'multi_modal_projector.'),
  ):
    if name.startswith(ours):
      return theirs + name[len(ours) :]
  raise ValueError(f'{name} belongs to no part of a LLaVA')


def tensors(model: modeling.Llava) -> dict[str, np.ndarray]:
  """All tensors, float32, under the names of released LLaVA checkpoints."""
  entries = {e.path: e for e in weights.make_map(model.config).entries}
  found = {}
  for keys, param in nnx.to_flat_state(nnx.state(model)):
    entry = entries['.'.join(map(str, keys))]
    value = np.asarray(param[...], np.float32)
    layers = value if entry.stacked else value[None]
    for layer, part in enumerate(layers):
      name = _on_disk(entry.name.replace('{}', str(layer)))
      found[name] = np.ascontiguousarray(
        part.reshape(entry.file_shape(part.shape))
      )
  # transformers expects the tower's last norm, which a LLaVA never reads.
  d_vision = model.config.vision.d_model
  for name, value in (('weight', np.ones), ('bias', np.zeros)):
    found[f'vision_tower.vision_model.post_layernorm.{name}'] = value(
      d_vision, np.float32
    )
  return found


def write(
  path: str | os.PathLike, model: modeling.Llava, description: str
) -> pathlib.Path:
  """Writes a checkpoint folder that HF's LLaVA classes load too.

  Args:
    path: made if need be.
    model: the weights.
    description: a line for corejax.json.

  Returns:
    The folder.
  """
  about = {'description': description}
  return hf_folder.write(path, model.config, tensors(model), about)
