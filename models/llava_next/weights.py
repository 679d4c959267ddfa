"""LLaVA-NeXT's weight map: LLaVA's, and the newline.

hub file          spelling here
image_newline     model.image_newline
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from corejax.models import families
from corejax.models import weight_map
from corejax.models.llava import weights as llava_weights
from corejax.models.llava_next import config as config_lib
from corejax.models.llava_next import modeling


def make_map(config: config_lib.LlavaNextConfig) -> weight_map.WeightMap:
  """The map of one model."""
  llava = llava_weights.make_map(config)
  return dataclasses.replace(
    llava,
    renames=(*llava.renames, (r'^image_newline$', 'model.image_newline')),
    entries=(
      *llava.entries,
      weight_map.Entry('model.image_newline', 'newline'),
    ),
  )


def load(
  folder: pathlib.Path,
  config: config_lib.LlavaNextConfig,
  *,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None = None,
) -> modeling.LlavaNext:
  """The model with a folder's weights; see families.load_weights."""
  return families.load_weights(
    folder, config, make_map, modeling.abstract, dtype=dtype, mesh=mesh
  )
