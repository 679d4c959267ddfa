"""One pass over a data set: examples -> masses, one store part per batch.

Padding policy: a batch is padded on the right to a bucket (a multiple of 64
tokens up to 1024, of 256 above), its probe slots to multiples of 16, and short
batches to the full batch size with copies of their first example. One
compilation per bucket.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import control as control_lib
from corejax import errors
from corejax import evidence
from corejax import inputs as inputs_lib
from corejax import layout as layout_lib
from corejax import probe as probe_lib
from corejax import regions
from corejax import store as store_lib
from corejax.data import example as example_lib
from corejax.experiments import resources as resources_lib
from corejax.models import registry

N_SHIFTS = 32  # alternatives per example for the secondary null


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured beside the masses.

  Attributes:
    batch_size: examples per forward.
    profile_set: query set whose profiles are kept; None keeps none.
    calibrate: measure a content-free question too.
    gradients: measure d log p(forced answer) / d gate of every head too.
    seed: of the shifted boxes.
  """

  batch_size: int
  profile_set: str | None
  calibrate: bool
  gradients: bool
  seed: int


@dataclasses.dataclass(frozen=True)
class Prepared:
  """One record of a batch, ready for the model."""

  index: int
  example: example_lib.Example
  encoded: inputs_lib.Encoded
  annotated: evidence.Annotated
  baseline: tuple[inputs_lib.Encoded, evidence.Annotated] | None


def bucket(n: int) -> int:
  """Tokens to which a sequence of n is padded."""
  step = 64 if n <= 1024 else 256
  return -(-n // step) * step


def _slots(n: int) -> int:
  return max(16, -(-n // 16) * 16)


def prepare(
  source: example_lib.Source,
  processor: registry.Processor,
  index: int,
  calibrate: bool = False,
) -> Prepared:
  """Reads, encodes and annotates one record.

  Raises:
    Rejected: it cannot be used.
  """
  example = source[index]

  def one(question):
    encoded = processor.encode(example, question=question)
    return encoded, evidence.annotate(example, encoded)

  encoded, annotated = one(None)
  baseline = one(processor.content_free) if calibrate else None
  return Prepared(index, example, encoded, annotated, baseline)


def layout_key(layout: layout_lib.VisualLayout) -> str:
  """12 hex digits; the same where all visual tokens lie in the same places."""
  digest = hashlib.sha256()
  for array in (layout.media_I, layout.cell_IW, layout.size_M2):
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()[:12]


def media_key(media: Sequence[bytes]) -> str:
  """12 hex digits; the same where the same pictures are shown."""
  digest = hashlib.sha256()
  for picture in media:
    digest.update(hashlib.sha256(picture).digest())
  return digest.hexdigest()[:12]


def shifted(
  example: example_lib.Example,
  layout: layout_lib.VisualLayout,
  key: Sequence[int],
) -> np.ndarray:
  """bool [J, I]: the evidence boxes moved to other places of the same size.

  Each box goes to a uniformly drawn place on a uniformly drawn picture of the
  same size in pixels; places where it would be cropped away are dropped, so
  J <= N_SHIFTS.
  """
  rng = np.random.default_rng(list(key))
  sizes = [tuple(s) for s in layout.size_M2]
  moved = []
  for _ in range(N_SHIFTS):
    boxes = []
    for box in example.evidence:
      same = [m for m, s in enumerate(sizes) if s == sizes[box.media]]
      width, height = box.x1 - box.x0, box.y1 - box.y0
      x0, y0 = rng.uniform(0, [1 - width, 1 - height])
      boxes.append(
        example_lib.Box(
          int(rng.choice(same)),
          x0,
          y0,
          min(x0 + width, 1.0),
          min(y0 + height, 1.0),
        )
      )
    try:
      moved.append(layout.tokens(boxes))
    except errors.Rejected:
      continue
  return np.array(moved, bool).reshape(-1, len(layout))


@functools.partial(
  jax.jit, static_argnames=('forward', 'attend', 'mesh', 'gate_shape')
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
) -> dict[str, jax.Array]:
  """One batch through the model.

  Args:
    model, inputs, probe: what forward takes.
    answer_BA: int32, the forced answers' tokens, -1 unused.
    forward, attend, mesh: static.
    gate_shape: static (L, N): also differentiate log p(answer) by every
      head's gate, at the price of a backward pass.

  Returns:
    mass [B, L, N, Q, R], written [B, L, N, Q], logprob [B] in nats, correct
    [B], profile float16 [B, L, N, I] if the probe asks for it, gradient
    [B, L, N] if asked for.
  """
  batch, n_answer = answer_BA.shape
  used_BA = answer_BA >= 0
  target_BA = jnp.maximum(answer_BA, 0)

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
    )
    logp_BAV = jax.nn.log_softmax(out.logits_BPV.astype(jnp.float32))
    logp_BA = jnp.take_along_axis(logp_BAV, target_BA[..., None], 2)[..., 0]
    seen = out.measured
    result = {
      'mass': seen.mass_BQNR.transpose(1, 0, 3, 2, 4),
      'written': seen.written_BQN.transpose(1, 0, 3, 2),
      'logprob': jnp.where(used_BA, logp_BA, 0.0).sum(1),
      'correct': ((logp_BAV.argmax(-1) == target_BA) | ~used_BA).all(1),
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


def _on_mesh(tree: Any, mesh: jax.sharding.Mesh, leading: str | None) -> Any:
  """Puts every array on the mesh, its first axis over `leading`.

  Every process holds the whole batch and hands over the rows it owns, by the
  sharding's own index map.
  """
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(leading)
  )

  def put(array):
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(put, tree)


def run_batch(
  resources: resources_lib.Resources,
  encoded: Sequence[inputs_lib.Encoded],
  annotated: Sequence[evidence.Annotated],
  batch_size: int,
  profile_set: str | None,
  gradients: bool = False,
) -> dict[str, np.ndarray]:
  """One `step`; the results of the given examples, padding taken off."""
  loaded = resources.loaded
  n = len(encoded)
  fill = [0] * (batch_size - n)
  encoded = [*encoded, *(encoded[i] for i in fill)]
  annotated = [*annotated, *(annotated[i] for i in fill)]
  length = bucket(max(len(e.tokens_T) for e in encoded))
  n_media = batch_size * max(len(e.layout.size_M2) for e in encoded)
  n_answer = _slots(max(len(e.answer_A) for e in encoded))
  sizes = (
    _slots(max(len(a.rows['question']) for a in annotated)),
    n_answer,
    bucket(max(len(a.visual_I) for a in annotated)),
  )
  answer_BA = np.full((batch_size, n_answer), -1, np.int32)
  for b, e in enumerate(encoded):
    answer_BA[b, : len(e.answer_A)] = e.answer_A
  inputs = loaded.processor.collate(encoded, length, n_media)
  probe = evidence.batch_probe(annotated, length, sizes, profile_set)
  if resources.mesh is not None:
    set_PQ = _on_mesh(probe.set_PQ, resources.mesh, None)
    per_example = dataclasses.replace(probe, set_PQ=None)
    inputs, probe, answer_BA = _on_mesh(
      (inputs, per_example, answer_BA), resources.mesh, 'data'
    )
    probe = dataclasses.replace(probe, set_PQ=set_PQ)
  with jax.default_matmul_precision(resources.precision):
    result = step(
      loaded.model,
      inputs,
      probe,
      answer_BA,
      forward=loaded.forward,
      attend=resources.attend,
      mesh=resources.mesh,
      gate_shape=(loaded.n_layers, loaded.n_heads) if gradients else None,
    )
  return {name: np.asarray(value)[:n] for name, value in result.items()}


def _rejection(source, index: int, e: errors.Rejected) -> dict:
  return {
    'index': index,
    'id': f'{source.name}/{source.split}/{index}',
    'reason': str(e.reason),
    'detail': e.detail,
  }


def measure_batch(
  resources: resources_lib.Resources,
  indices: Sequence[int],
  options: Options,
) -> store_lib.Part:
  """Measures the records of one batch; bad ones are rejected and told."""
  prepared, rejected = [], []
  for index in indices:
    try:
      prepared.append(
        prepare(
          resources.source,
          resources.loaded.processor,
          index,
          options.calibrate,
        )
      )
    except errors.Rejected as e:
      rejected.append(_rejection(resources.source, index, e))
  n_regions = len(regions.REGIONS)
  if not prepared:
    loaded = resources.loaded
    shape = (loaded.n_layers, loaded.n_heads, len(regions.QUERY_SETS))
    return store_lib.Part(
      [],
      rejected,
      np.zeros((0, *shape, n_regions), np.float32),
      np.zeros((0, n_regions), np.int32),
      [],
      [],
    )
  out = run_batch(
    resources,
    [p.encoded for p in prepared],
    [p.annotated for p in prepared],
    options.batch_size,
    options.profile_set,
    options.gradients,
  )
  baseline = None
  if options.calibrate:
    baseline = run_batch(
      resources,
      [p.baseline[0] for p in prepared],
      [p.baseline[1] for p in prepared],
      options.batch_size,
      None,
    )['mass']
  rows = []
  for b, p in enumerate(prepared):
    rows.append(
      {
        'index': p.index,
        'id': p.example.id,
        'cluster': p.example.cluster,
        'task': p.example.task,
        'media': media_key(p.example.media),
        'layout': layout_key(p.encoded.layout),
        'question': p.example.question,
        'answer': p.example.answers[0],
        'correct': bool(out['correct'][b]),
        'logprob': float(out['logprob'][b]),
        'tokens': len(p.encoded.tokens_T),
        'visual_tokens': len(p.annotated.visual_I),
        'evidence_tokens': int(p.annotated.evidence_I.sum()),
        'chance': p.annotated.chance,
      }
    )
  profiles = None
  if options.profile_set:
    profiles = [
      out['profile'][b, :, :, : len(p.annotated.visual_I)]
      for b, p in enumerate(prepared)
    ]
  return store_lib.Part(
    rows=rows,
    rejected=rejected,
    mass_ELNQR=out['mass'],
    count_ER=np.stack(
      [np.bincount(p.annotated.region_T, minlength=n_regions) for p in prepared]
    ),
    evidence=[p.annotated.evidence_I for p in prepared],
    shifted=[
      shifted(p.example, p.encoded.layout, (options.seed, p.index))
      for p in prepared
    ],
    profiles=profiles,
    profile_set=options.profile_set,
    baseline_ELNQR=baseline,
    written_ELNQ=out['written'],
    gradient_ELN=out.get('gradient'),
  )


def batches(n: int, size: int) -> Iterator[range]:
  """Record indices of every batch: a function of n and size alone."""
  for start in range(0, n, size):
    yield range(start, min(start + size, n))
