"""The measuring step at T = 4096: what the compiled program stores."""

import jax
import jax.numpy as jnp

from corejax import inputs as inputs_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax.experiments import step
from corejax.kernels import dispatch
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from helpers import hf_llava

LENGTH = 4096
ONE_MATRIX = 4 * LENGTH * LENGTH  # one head's [T, S] in float32


def temp_bytes(attend, probe_weights=False):
  config = config_lib.LlavaConfig.from_hf(
    hf_llava.config(text_kw={'max_position_embeddings': LENGTH})
  )
  model = modeling.abstract(config, jnp.float32)
  size = config.vision.image_size

  def shape(*dims, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(dims, dtype)

  inputs = inputs_lib.Inputs(
    tokens_BT=shape(1, LENGTH),
    positions_BT=shape(1, LENGTH),
    mask=masks.AttnMask(kv_len_B=shape(1)),
    vision={'pixel_values': shape(2, 3, size, size, dtype=jnp.float32)},
    feature_BT=shape(1, LENGTH),
  )
  probe = probe_lib.Probe(
    rows_BP=shape(1, 48),
    set_PQ=shape(48, 3, dtype=jnp.float32),
    region_BS=shape(1, LENGTH, dtype=jnp.int8),
    visual_BI=shape(1, 1024),
    profile_set=0,
    weights=probe_weights,
  )
  compiled = step.step.lower(
    model,
    inputs,
    probe,
    shape(1, 16),
    forward=modeling.forward,
    attend=attend,
    mesh=None,
  ).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_the_main_path_stores_no_matrix():
  assert temp_bytes(dispatch.attend()) < ONE_MATRIX / 2


def test_the_measure_of_this_test_sees_a_matrix():
  assert temp_bytes(dispatch.attend('reference')) > ONE_MATRIX
