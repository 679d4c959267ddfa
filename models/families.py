"""What loading a model is, the same for every family.

A family is four modules, each with the names that are used here:

    config       read(folder) -> config, with `text` and `vision`; handed over
                 by itself, as one module may read several families
    weights      load(folder, config, *, dtype, mesh) -> model
    modeling     forward, see, new_cache
    processing   load(folder, config, *, image_policy, ..) -> processor
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from corejax import errors
from corejax.models import checkpoint
from corejax.models import converted
from corejax.models import registry
from corejax.models import sharding
from corejax.models import weight_map
from corejax.models import weights as weights_lib

DTYPES = ('float32', 'bfloat16', 'float16')
HEAD = 'lm_head.weight'  # the output head, in every map's one spelling


def tiles(
  vision: Any, n_pictures: int, n_features: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """What a tower of square pictures takes, shapes alone.

  Args:
    vision: the tower's config.
    n_pictures: pictures or tiles, M.
    n_features: of each; every tile has the tower's.
  """
  del n_features
  shape = (n_pictures, vision.n_channels, vision.image_size, vision.image_size)
  return {'pixel_values': jax.ShapeDtypeStruct(shape, jnp.float32)}


def make(
  key: str,
  *,
  read: Callable[[pathlib.Path], Any],
  modeling: Any,
  processing: Any,
  weights: Any,
  backbones: tuple[str, ...],
  towers: tuple[str, ...],
  video: bool = False,
  video_positions: tuple[str, ...] = (),
  trained: tuple[str, ...] = (),
  shown: Callable[[Any, int, int], dict[str, jax.ShapeDtypeStruct]] = tiles,
  n_axes: int = 1,
  box_answers: str = 'share',
  resized: Callable[[Any], Callable[..., tuple[int, int]]] | None = None,
  n_blend: Callable[[Any], int] = lambda _: 1,
) -> registry.Family:
  """A row of the registry.

  Args:
    key: as `--model` spells it.
    read: the family's config.read.
    modeling, processing, weights: the family's modules.
    backbones: text backbones with parity tests.
    towers: vision towers with parity tests.
    video: are videos read?
    video_positions: as of registry.Family.
    trained: trained weights that come with corejax, the default first.
    shown: the tower's config, pictures and features of each -> as
      registry.Outline.vision.
    n_axes: as of registry.Outline.
    box_answers, resized: as of registry.Family.
    n_blend: config -> as of registry.Outline.
  """

  def load(
    folder: Any,
    *,
    dtype: Any = 'float32',
    mesh: jax.sharding.Mesh | None = None,
    **options: str,
  ) -> registry.Loaded:
    """Loads a checkpoint.

    Args:
      folder: a folder in Hugging Face's format, or a hub id.
      dtype: of the parameters, one of DTYPES.
      mesh: axes ('data', 'model'); parameters are cut over 'model'.
      **options: image_policy and others, see the family's processing.load.

    Raises:
      UserError: anything about the folder that does not fit, in one line.
    """
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
      raise errors.UserError(
        f'--dtype={name} is not supported; supported are {", ".join(DTYPES)}'
      )
    path = checkpoint.resolve(folder)
    config = read(path)
    # First, as it is quick: a bad tokenizer is told before weights are read.
    processor = processing.load(path, config, **options)
    return registry.Loaded(
      key=key,
      model=weights.load(path, config, dtype=jnp.dtype(name), mesh=mesh),
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

  def load_processor(folder: Any, **options: str) -> registry.Processor:
    """The processor of a checkpoint, without its weights; see `load`."""
    path = checkpoint.resolve(folder)
    return processing.load(path, read(path), **options)

  def outline(folder: Any, *, dtype: Any = 'float32') -> registry.Outline:
    """The shapes of a model.

    Args:
      folder: with config.json; or a hub id.
      dtype: of the parameters.

    Raises:
      UserError: the config.json is not there, or not one of this family.
    """
    config = read(checkpoint.resolve(folder))
    return registry.Outline(
      key=key,
      model=modeling.abstract(config, jnp.dtype(dtype)),
      forward=modeling.forward,
      see=modeling.see,
      config=config,
      vision=functools.partial(shown, config.vision),
      n_axes=n_axes,
      n_blend=n_blend(config),
    )

  return registry.Family(
    key=key,
    backbones=backbones,
    towers=towers,
    load=load,
    load_processor=load_processor,
    outline=outline,
    trained=trained,
    video=video,
    video_positions=video_positions,
    box_answers=box_answers,
    resized=resized,
  )


def load_weights(
  folder: pathlib.Path,
  config: Any,
  make_map: Callable[[Any], weight_map.WeightMap],
  abstract: Callable[[Any, jnp.dtype], Any],
  *,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None,
) -> Any:
  """A model with a folder's weights.

  A tied model whose file holds a head of its own gets that head, as in
  transformers (which unties the two if they differ).

  Args:
    folder: the checkpoint.
    config: its config, with `text`.
    make_map: its weight map, from a config.
    abstract: the model of a config and a dtype, without arrays.
    dtype: of all parameters.
    mesh: cut over its 'model' axis; None is one device.

  Raises:
    UserError: the files are malformed or do not fit the config.
  """
  if converted.lies_in(folder):
    return converted.restore(folder, config, abstract, dtype=dtype, mesh=mesh)
  rules = make_map(config)
  renamed = weights_lib.open_renamed(folder, rules)
  if config.text.tie and HEAD in renamed:
    text = dataclasses.replace(config.text, tie=False)
    config = dataclasses.replace(config, text=text)
  model = abstract(config, dtype)
  shapes = weights_lib.shapes(model)
  sources = weights_lib.match(renamed, shapes, rules, str(folder))
  return weights_lib.fill(model, sources, sharding.placer(mesh), str(folder))
