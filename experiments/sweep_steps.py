"""The compiled steps of a sweep over sets of heads: one program for all."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from corejax import ablation as ablation_lib
from corejax import inputs as inputs_lib
from corejax import likelihood
from corejax import probe as probe_lib
from corejax import regions
from corejax.experiments import prefixes
from corejax.models import generate as generate_lib


@functools.partial(
  jax.jit, static_argnames=('forward', 'attend', 'mesh', 'new_cache')
)
def force(
  model: Any,
  inputs: inputs_lib.Inputs,
  answer_rows_BA: jax.Array,
  answer_BA: jax.Array,
  sweep: ablation_lib.Sweep,
  x: jax.Array,
  *,
  forward: Any,
  attend: Any,
  mesh: jax.sharding.Mesh | None,
  prefix: prefixes.Prefix | None = None,
  prefix_sweep: ablation_lib.Sweep | None = None,
  new_cache: Any = None,
) -> jax.Array:
  """float32 [2, B]: is the forced answer right, and its log p in nats.

  With a prefix, the inputs and the sweep's rows are those that follow it, and
  prefix_sweep is the same sweep over its own rows.
  """
  cache = None
  if prefix is not None and prefix_sweep is not None:
    cache = prefix.read(
      model,
      inputs.tokens_BT.shape[1],
      forward=forward,
      attend=attend,
      new_cache=new_cache,
      control=prefix_sweep.at(x),
    )
  out = forward(
    model,
    inputs,
    attend=attend,
    control=sweep.at(x),
    logit_rows_BP=jnp.maximum(answer_rows_BA, 0),
    cache=cache,
  )
  forced = likelihood.forced(out.logits_BPV, answer_BA)
  return _whole(
    jnp.stack([forced.correct_B.astype(jnp.float32), forced.logprob_B]), mesh
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    'forward',
    'new_cache',
    'attend',
    'mesh',
    'max_tokens',
    'eos_ids',
  ),
)
def generate(
  model: Any,
  inputs: inputs_lib.Inputs,
  sweep: ablation_lib.Sweep | None,
  step_sweep: ablation_lib.Sweep,
  x: jax.Array,
  *,
  mesh: jax.sharding.Mesh | None,
  **static: Any,
) -> jax.Array:
  """int32 [B, max_tokens], -1 unused."""
  made = generate_lib.run(
    model,
    inputs,
    None if sweep is None else sweep.at(x),
    step_sweep.at(x),
    **static,
  )
  return _whole(made.tokens_BA, mesh)


@functools.partial(
  jax.jit, static_argnames=('forward', 'attend', 'outputs', 'mesh')
)
def written(
  model: Any,
  inputs: inputs_lib.Inputs,
  class_BT: jax.Array,
  region_BS: jax.Array,
  *,
  forward: Any,
  attend: Any,
  outputs: bool,
  mesh: jax.sharding.Mesh | None,
) -> jax.Array:
  """What heads write: [L, B, T, N, H], or its mean by class [L, B, C, N, H]."""
  batch = class_BT.shape[0]
  probe = probe_lib.Probe(
    rows_BP=jnp.zeros((batch, 1), jnp.int32),
    set_PQ=jnp.ones((1, len(regions.QUERY_SETS))),
    region_BS=region_BS,
    class_BT=None if outputs else class_BT,
    outputs=outputs,
  )
  out = forward(
    model,
    inputs,
    attend=attend,
    probe=probe,
    logit_rows_BP=jnp.zeros((batch, 1), jnp.int32),
  )
  seen = out.measured
  if outputs:
    return seen.out_BTNH
  return _whole(seen.class_mean_BCNH, mesh)


def _whole(array: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
  """Whole on every device of the mesh, so that any process can read it."""
  if mesh is None:
    return array
  return jax.lax.with_sharding_constraint(
    array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )
