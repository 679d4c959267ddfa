"""`llava_flax`: LLaVA folders and hub ids -> a loaded model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from corejax import errors
from corejax.models import checkpoint
from corejax.models import families
from corejax.models import registry
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import processing
from corejax.models.llava import weights

KEY = 'llava_flax'
DTYPES = ('float32', 'bfloat16', 'float16')


def load(
  folder: Any,
  *,
  dtype: Any = 'float32',
  mesh: jax.sharding.Mesh | None = None,
  image_policy: str = 'checkpoint',
) -> registry.Loaded:
  """Loads a checkpoint.

  Args:
    folder: a folder in Hugging Face's LLaVA format, or a hub id.
    dtype: of the parameters: 'float32', 'bfloat16' or 'float16'.
    mesh: axes ('data', 'model'); parameters are cut over 'model'.
    image_policy: 'checkpoint' or 'pad', see processing.load.

  Raises:
    UserError: anything about the folder that does not fit, in one line.
  """
  name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
  if name not in DTYPES:
    raise errors.UserError(
      f'--dtype={name} is not supported; supported are {", ".join(DTYPES)}'
    )
  path = checkpoint.resolve(folder)
  config = config_lib.read(path)
  # First, as it is quick: a bad tokenizer is told before weights are read.
  processor = processing.load(path, config, image_policy=image_policy)
  model = weights.load(path, config, dtype=jnp.dtype(name), mesh=mesh)
  return registry.Loaded(
    key=KEY,
    model=model,
    forward=modeling.forward,
    see=modeling.see,
    new_cache=modeling.new_cache,
    processor=processor,
    config=config,
    n_layers=config.text.n_layers,
    n_heads=config.text.n_heads,
    n_kv_heads=config.text.n_kv_heads,
    max_length=config.text.max_length,
    fingerprint=checkpoint.fingerprint(path),
    eos_ids=checkpoint.eos_ids(path, config.text.vocab_size),
  )


def load_processor(
  folder: Any, *, image_policy: str = 'checkpoint'
) -> processing.LlavaProcessor:
  """The processor of a checkpoint, without its weights; see `load`."""
  path = checkpoint.resolve(folder)
  config = config_lib.read(path)
  return processing.load(path, config, image_policy=image_policy)


FAMILY = registry.Family(
  key=KEY,
  backbones=('llama', 'mistral', 'qwen2', 'qwen3'),
  towers=('clip', 'siglip'),
  load=load,
  load_processor=load_processor,
  outline=functools.partial(
    families.outline, KEY, config_lib.read, modeling, lambda _: 1
  ),
  trained=('scenes-8x8', 'scenes-4x8'),
)
