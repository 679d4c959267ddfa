"""Small models to be trained from scratch on the scenes, one family each.

    trained.new(trained.SIZES['base'], seed=0)                  a LLaVA
    trained.new(trained.SIZES['base'], seed=0, key='internvl_flax')
    trained.write(folder, model, 'what it is')

What a family's are made of is in llava.py, internvl.py and qwen3_vl.py.
"""

from collections.abc import Mapping
import math
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from corejax.models.organisms import hf_folder
from corejax.models.organisms import internvl
from corejax.models.organisms import kind as kind_lib
from corejax.models.organisms import llava
from corejax.models.organisms import qwen3_vl

SIZES = kind_lib.SIZES
LLAVA = llava.KIND
KINDS: Mapping[str, kind_lib.Kind] = {
  each.key: each for each in (LLAVA, internvl.KIND, qwen3_vl.KIND)
}


def kind_of(model: Any) -> kind_lib.Kind:
  """The family of a model."""
  return next(each for each in KINDS.values() if type(model) is each.model)


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
    elif path.endswith(
      ('attn.q.weight', 'attn.k.weight', 'attn.v.weight', 'attn.qkv.weight')
    ):
      inputs = shape[-1]
  scale = 1 / math.sqrt(inputs)
  # So that the sum of all branches is as large as one embedding.
  if _ends_a_branch(path):
    scale /= math.sqrt(2 * n_layers)
  return scale


def _ends_a_branch(path: str) -> bool:
  if path.startswith('vision.merger.'):  # what it writes is an embedding
    return False
  return path.endswith(('attn.o.weight', 'mlp.down.weight', 'fc2.weight'))


def new(size: kind_lib.Size, seed: int, key: str = LLAVA.key) -> Any:
  """A model with random weights, float32.

  Args:
    size: of the model.
    seed: other weights.
    key: of KINDS.
  """
  kind = KINDS[key]
  model = kind.modeling.abstract(kind.config(size), jnp.dtype('float32'))
  graph, state = nnx.split(model)
  random = jax.random.key(seed)
  filled = []
  for number, (keys, param) in enumerate(nnx.to_flat_state(state)):
    path = '.'.join(map(str, keys))
    if path.endswith('bias'):
      value = jnp.zeros(param.shape)
    elif 'norm' in path or path.endswith(('scale1', 'scale2')):
      value = jnp.ones(param.shape)
    else:
      # DeepStack's mergers write into the decoder's sum.
      in_decoder = path.startswith(('language', 'vision.deep'))
      normal = jax.random.normal(
        jax.random.fold_in(random, number), param.shape
      )
      n_layers = size.layers if in_decoder else 1
      value = _scale(path, param.shape, n_layers) * normal
    filled.append((keys, param.replace(value)))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def _on_disk(name: str, kind: kind_lib.Kind) -> str:
  """A name of the weight map in the spelling of released checkpoints."""
  for ours, theirs in kind.spelling:
    if name.startswith(ours):
      return theirs + name[len(ours) :]
  raise ValueError(f'{name} belongs to no part of a {kind.title}')


def tensors(model: Any) -> dict[str, np.ndarray]:
  """All tensors, float32, under the names of released checkpoints."""
  kind = kind_of(model)
  entries = {e.path: e for e in kind.make_map(model.config).entries}
  found = {}
  for keys, param in nnx.to_flat_state(nnx.state(model)):
    entry = entries['.'.join(map(str, keys))]
    value = np.asarray(param[...], np.float32)
    layers = value if entry.stacked else value[None]
    for layer, part in enumerate(layers):
      name = _on_disk(entry.name.replace('{}', str(layer)), kind)
      found[name] = np.ascontiguousarray(
        part.reshape(entry.file_shape(part.shape))
      )
  return {**found, **kind.unread(model.config)}


def write(
  path: str | os.PathLike, model: Any, description: str
) -> pathlib.Path:
  """Writes a checkpoint folder that HF's classes load too.

  Args:
    path: made if need be.
    model: the weights.
    description: a line for corejax.json.

  Returns:
    The folder.
  """
  kind = kind_of(model)
  return hf_folder.write(
    path,
    kind.documents(model.config),
    tensors(model),
    {'description': description},
    kind.tokenizer(),
  )
