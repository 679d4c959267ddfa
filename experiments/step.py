"""One batch through the model: the compiled step, and how it is called."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import control as control_lib
from corejax import evidence
from corejax import inputs as inputs_lib
from corejax import likelihood
from corejax import probe as probe_lib
from corejax.experiments import buckets
from corejax.experiments import features as features_lib
from corejax.experiments import prefixes
from corejax.experiments import resources as resources_lib


@functools.partial(
  jax.jit,
  static_argnames=('forward', 'attend', 'mesh', 'gate_shape', 'new_cache'),
)
def step(
  model: Any,
  inputs: inputs_lib.Inputs,
  probe: probe_lib.Probe,
  answer_BA: jax.Array,
  *,
  forward: Any,
  attend: Any,
  mesh: jax.sharding.Mesh | None,
  gate_shape: tuple[int, int] | None = None,
  prefix: prefixes.Prefix | None = None,
  new_cache: Any = None,
) -> dict[str, jax.Array]:
  """One batch through the model.

  Args:
    model, inputs, probe: what forward takes; with a prefix, its last chunk.
    answer_BA: int32, the forced answers' tokens, -1 unused.
    forward, attend, mesh: static.
    gate_shape: static (L, N): also differentiate log p(answer) by every
      head's gate, at the price of a backward pass.
    prefix: what the examples begin with, if that is read apart.
    new_cache: static; the family's, needed with a prefix.

  Returns:
    mass [B, L, N, Q, R], written [B, L, N, Q], logprob [B] in nats, correct
    [B], profile float16 [B, L, N, I] if the probe asks for it, gradient
    [B, L, N] if asked for.
  """
  batch, n_answer = answer_BA.shape
  cache = None
  if prefix is not None:
    cache = prefix.read(
      model,
      inputs.tokens_BT.shape[1],
      forward=forward,
      attend=attend,
      new_cache=new_cache,
    )

  def measured(gate_LBN):
    control = None
    if gate_LBN is not None and gate_shape is not None:
      control = control_lib.HeadControl.intact(*gate_shape)
      output = dataclasses.replace(control.output, gate_BN=gate_LBN)
      control = dataclasses.replace(control, output=output)
    out = forward(
      model,
      inputs,
      attend=attend,
      control=control,
      probe=probe,
      logit_rows_BP=jnp.maximum(probe.rows_BP[:, -n_answer:], 0),
      cache=cache,
    )
    answered = likelihood.forced(out.logits_BPV, answer_BA)
    seen = out.measured
    result = {
      'mass': seen.mass_BQNR.transpose(1, 0, 3, 2, 4),
      'written': seen.written_BQN.transpose(1, 0, 3, 2),
      'logprob': answered.logprob_B,
      'correct': answered.correct_B,
    }
    if seen.profile_BNI is not None:
      result['profile'] = seen.profile_BNI.swapaxes(0, 1).astype(jnp.float16)
    return result['logprob'].sum(), result

  if gate_shape is None:
    _, result = measured(None)
  else:
    # One gate an example, so that one backward pass gives every example's.
    gate_LBN = jnp.ones((gate_shape[0], batch, gate_shape[1]))
    gradient_LBN, result = jax.grad(measured, has_aux=True)(gate_LBN)
    result['gradient'] = gradient_LBN.swapaxes(0, 1)
  if mesh is not None:
    # Whole on every device: small, and any process can then read it.
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    result = jax.lax.with_sharding_constraint(result, whole)
  return result


class Runner:
  """Hands batches to the device; keeps what they share.

  Attributes:
    resources: the model and where it runs.
    batch_size: examples of a batch; fewer are filled up with copies.
    features: the pictures' features.
  """

  def __init__(self, resources: resources_lib.Resources, batch_size: int):
    self.resources = resources
    self.batch_size = batch_size
    self.features = features_lib.FeatureCache(resources)
    self._sharing = prefixes.Sharing(resources, batch_size)

  def start(
    self,
    encoded: Sequence[inputs_lib.Encoded],
    annotated: Sequence[evidence.Annotated],
    pictures: Sequence[Sequence[str]],
    profile_set: str | None,
    gradients: bool = False,
  ) -> dict[str, jax.Array]:
    """Hands one `step` to the device, and does not wait for it.

    Args:
      encoded, annotated: the examples, at most batch_size.
      pictures: features.keys of each.
      profile_set: query set whose profiles are wanted.
      gradients: differentiate by the gates too.

    Returns:
      What `step` returns, with rows for the copies and slots for padding.
    """
    fill = [0] * (self.batch_size - len(encoded))
    annotated = [*annotated, *(annotated[i] for i in fill)]
    bucket = buckets.Bucket.of(
      [len(e.tokens_T) for e in encoded],
      [len(rows) for a in annotated for rows in a.rows.values()],
    )
    encoded, features_ID = self.features.look(
      [*encoded, *(encoded[i] for i in fill)],
      [*pictures, *(pictures[i] for i in fill)],
      self.batch_size * bucket.length,
    )
    plan = None
    if not gradients:  # a gate acts on the prefix too, for each example
      plan = self._sharing.plan(encoded, annotated)
    if plan is None:
      return self._step(
        encoded, annotated, bucket, features_ID, profile_set, gradients
      )
    prefix = prefixes.Prefix(
      self._inputs(plan.prefixes, plan.length, features_ID),
      self._spread(np.array(plan.index, np.int32)),
    )
    return self._step(
      plan.suffixes,
      plan.annotated,
      plan.suffix,
      features_ID,
      profile_set,
      prefix=prefix,
    )

  def _step(
    self,
    encoded: Sequence[inputs_lib.Encoded],
    annotated: Sequence[evidence.Annotated],
    bucket: buckets.Bucket,
    features_ID: jax.Array,
    profile_set: str | None,
    gradients: bool = False,
    prefix: prefixes.Prefix | None = None,
  ) -> dict[str, jax.Array]:
    loaded = self.resources.loaded
    n_keys = bucket.length
    if prefix is not None:
      n_keys += prefix.inputs.tokens_BT.shape[1]
    probe = evidence.batch_probe(
      annotated, n_keys, (bucket.rows, bucket.rows, n_keys), profile_set
    )
    answer_BA = np.full((self.batch_size, bucket.rows), -1, np.int32)
    for b, e in enumerate(encoded):
      answer_BA[b, : len(e.answer_A)] = e.answer_A
    set_PQ = self._spread(probe.set_PQ, None)
    probe = self._spread(dataclasses.replace(probe, set_PQ=None))
    with jax.default_matmul_precision(self.resources.precision):
      return step(
        loaded.model,
        self._inputs(encoded, bucket.length, features_ID),
        dataclasses.replace(probe, set_PQ=set_PQ),
        self._spread(answer_BA),
        forward=loaded.forward,
        attend=self.resources.attend,
        mesh=self.resources.mesh,
        gate_shape=(loaded.n_layers, loaded.n_heads) if gradients else None,
        prefix=prefix,
        new_cache=loaded.new_cache if prefix is not None else None,
      )

  def _inputs(
    self,
    encoded: Sequence[inputs_lib.Encoded],
    length: int,
    features_ID: jax.Array,
  ) -> inputs_lib.Inputs:
    inputs = self.resources.loaded.processor.collate(encoded, length, 0)
    return dataclasses.replace(self._spread(inputs), features_ID=features_ID)

  def _spread(self, tree: Any, leading: str | None = 'data') -> Any:
    if self.resources.mesh is None:
      return tree
    return resources_lib.spread(tree, self.resources.mesh, leading)


def fetch(out: dict[str, jax.Array], n: int) -> dict[str, np.ndarray]:
  """Waits for what `start` returned; the rows of the first n examples."""
  return {name: np.asarray(value)[:n] for name, value in out.items()}
