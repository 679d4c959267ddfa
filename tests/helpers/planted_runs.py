"""Runs planted models over scenes with one compiled forward."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention
from corejax import control as control_lib
from corejax import evidence
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax import regions
from corejax import scores as scores_lib
from corejax.data import example as example_lib
from corejax.models import registry


@dataclasses.dataclass(frozen=True)
class Batch:
  """Encoded examples of equal padding."""

  examples: Sequence[example_lib.Example]
  encoded: Sequence[inputs_lib.Encoded]
  inputs: inputs_lib.Inputs
  rows_BP: jax.Array
  answers_B: np.ndarray


def load(folder) -> registry.Loaded:
  return registry.get('llava_flax').load(
    folder, dtype='float32', mesh=None, image_policy='checkpoint'
  )


def encode(processor, examples, length: int) -> Batch:
  encoded = [processor.encode(example) for example in examples]
  n_media = sum(len(example.media) for example in examples)
  return Batch(
    examples,
    encoded,
    processor.collate(encoded, length, n_media),
    jnp.array([[e.prompt_len - 1] for e in encoded], jnp.int32),
    np.array([e.answer_A[0] for e in encoded]),
  )


@functools.partial(jax.jit, static_argnames=('forward',))
def _step(model, inputs, rows_BP, probe, gate_LN, *, forward):
  control = control_lib.HeadControl.intact(*gate_LN.shape).with_gate(gate_LN)
  out = forward(
    model,
    inputs,
    attend=attention.reference,
    control=control,
    probe=probe,
    logit_rows_BP=rows_BP,
  )
  return out.logits_BPV[:, 0], out.measured


def run(loaded, batch: Batch, probe=None, off=None):
  """(logits [B, V], Measured or None), with the heads of `off` ablated."""
  gate_LN = jnp.ones((loaded.n_layers, loaded.n_heads))
  if off is not None:
    gate_LN = control_lib.gates(off, loaded.n_layers, loaded.n_heads)
  logits_BV, measured = _step(
    loaded.model,
    batch.inputs,
    batch.rows_BP,
    probe,
    gate_LN,
    forward=loaded.forward,
  )
  return np.asarray(logits_BV), measured


def accuracy(loaded, batch: Batch, off=None) -> dict[str, float]:
  """Share of right answers by task."""
  logits_BV, _ = run(loaded, batch, off=off)
  right_B = logits_BV.argmax(-1) == batch.answers_B
  tasks_B = np.array([example.task for example in batch.examples])
  return {
    str(task): float(right_B[tasks_B == task].mean())
    for task in np.unique(tasks_B)
  }


def measure(loaded, batch: Batch, profile_set: str) -> scores_lib.Scores:
  """All masses and profiles of a batch whose examples have evidence."""
  annotated = [
    evidence.annotate(example, encoded)
    for example, encoded in zip(batch.examples, batch.encoded)
  ]
  length = batch.inputs.tokens_BT.shape[1]
  n_visual = max(len(a.visual_I) for a in annotated)
  probe = evidence.batch_probe(annotated, length, (8, 1, n_visual), profile_set)
  logits_BV, measured = run(loaded, batch, probe)
  assert isinstance(measured, probe_lib.Measured)
  logp_BV = np.asarray(jax.nn.log_softmax(logits_BV))
  profile_ELNI = np.asarray(measured.profile_BNI).swapaxes(0, 1)
  return scores_lib.Scores(
    mass_ELNQR=np.asarray(measured.mass_BQNR).transpose(1, 0, 3, 2, 4),
    count_ER=np.stack(
      [
        np.bincount(a.region_T, minlength=len(regions.REGIONS))
        for a in annotated
      ]
    ),
    ids=[example.id for example in batch.examples],
    clusters=[example.cluster for example in batch.examples],
    tasks=[example.task for example in batch.examples],
    media=[str(hash(example.media)) for example in batch.examples],
    layouts=['same'] * len(annotated),
    correct_E=logits_BV.argmax(-1) == batch.answers_B,
    logprob_E=np.take_along_axis(logp_BV, batch.answers_B[:, None], 1)[:, 0],
    evidence=[a.evidence_I for a in annotated],
    shifted=[np.zeros((0, n_visual), bool) for _ in annotated],
    profiles=[
      profile[:, :, : len(a.visual_I)].astype(np.float16)
      for profile, a in zip(profile_ELNI, annotated)
    ],
    profile_set=profile_set,
  )
