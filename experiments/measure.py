"""One pass over a data set: examples -> masses, one store part per batch.

    prepare_batch   reads and encodes records; on the host, in any thread
    start_batch     hands them to the device and does not wait
    finish_batch    waits for the results and makes them a part of the store

Batches are padded as buckets.py says; one compilation a bucket.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import threading

import jax
import numpy as np

from corejax import errors
from corejax import evidence
from corejax import inputs as inputs_lib
from corejax import layout as layout_lib
from corejax import regions
from corejax import store as store_lib
from corejax.data import example as example_lib
from corejax.experiments import features as features_lib
from corejax.experiments import resources as resources_lib
from corejax.experiments import session
from corejax.experiments import step
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


@dataclasses.dataclass(frozen=True)
class Batch:
  """The records of one batch on the host.

  Attributes:
    prepared: those that can be measured.
    pictures: features.keys of each.
    rows: per record what examples.jsonl says of it before it is measured.
    shifted: per record the evidence in other places, see `shifted`.
    rejected: rows of rejected.jsonl.
  """

  prepared: list[Prepared]
  pictures: list[tuple[str, ...]]
  rows: list[dict]
  shifted: list[np.ndarray]
  rejected: list[dict]


@dataclasses.dataclass(frozen=True)
class Started:
  """A batch that the device is computing.

  Attributes:
    batch: its records.
    out: what `step` will have returned; None without a usable record.
    baseline: the same for the content-free question; None without one.
  """

  batch: Batch
  out: dict[str, jax.Array] | None
  baseline: dict[str, jax.Array] | None


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
  arrays = [layout.media_I, layout.cell_IW, layout.size_M2]
  if layout.frames_I is not None:
    arrays.append(layout.frames_I)
  for array in arrays:
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


def prepare_batch(
  resources: resources_lib.Resources,
  indices: Sequence[int],
  options: Options,
  closing: threading.Event | None = None,
) -> Batch:
  """Reads the records of one batch; bad ones are rejected and told.

  Args:
    resources: for the source and the processor; no device is touched.
    indices: of the records.
    options: what will be measured.
    closing: once it is set, the records that are left are not read.
  """
  batch = Batch([], [], [], [], [])
  for index in indices:
    if closing is not None and closing.is_set():
      break
    try:
      p = prepare(
        resources.source,
        resources.loaded.processor,
        index,
        options.calibrate,
      )
    except errors.Rejected as e:
      batch.rejected.append(session.rejection(resources.source, index, e))
      continue
    batch.prepared.append(p)
    batch.pictures.append(features_lib.keys(p.encoded))
    batch.rows.append(
      {
        'index': p.index,
        'id': p.example.id,
        'cluster': p.example.cluster,
        'task': p.example.task,
        'media': media_key(p.example.media),
        'layout': layout_key(p.encoded.layout),
        'question': p.example.question,
        'answer': p.example.answers[0],
        'tokens': len(p.encoded.tokens_T),
        'visual_tokens': len(p.annotated.visual_I),
        'evidence_tokens': int(p.annotated.evidence_I.sum()),
        'chance': p.annotated.chance,
      }
    )
    batch.shifted.append(
      shifted(p.example, p.encoded.layout, (options.seed, p.index))
    )
  return batch


def start_batch(runner: step.Runner, batch: Batch, options: Options) -> Started:
  """Hands a batch to the device, and does not wait for it."""
  if not batch.prepared:
    return Started(batch, None, None)
  out = runner.start(
    [p.encoded for p in batch.prepared],
    [p.annotated for p in batch.prepared],
    batch.pictures,
    options.profile_set,
    options.gradients,
  )
  baselines = [p.baseline for p in batch.prepared if p.baseline is not None]
  if not options.calibrate:
    return Started(batch, out, None)
  baseline = runner.start(
    [encoded for encoded, _ in baselines],
    [annotated for _, annotated in baselines],
    batch.pictures,  # another question about the same pictures
    options.profile_set,
  )
  return Started(batch, out, baseline)


def finish_batch(
  resources: resources_lib.Resources, started: Started, options: Options
) -> store_lib.Part:
  """Waits for a batch, and makes it a part of the store."""
  batch, n_regions = started.batch, len(regions.REGIONS)
  if started.out is None:
    loaded = resources.loaded
    shape = (loaded.n_layers, loaded.n_heads, len(regions.QUERY_SETS))
    return store_lib.Part(
      [],
      batch.rejected,
      np.zeros((0, *shape, n_regions), np.float32),
      np.zeros((0, n_regions), np.int32),
      [],
      [],
    )
  n = len(batch.prepared)
  out = step.fetch(started.out, n)
  baseline = None
  if started.baseline is not None:
    baseline = step.fetch(started.baseline, n)

  def profiles(measured):
    if measured is None or not options.profile_set:
      return None
    return [
      measured['profile'][b, :, :, : len(p.annotated.visual_I)]
      for b, p in enumerate(batch.prepared)
    ]

  return store_lib.Part(
    rows=[
      {
        **row,
        'correct': bool(out['correct'][b]),
        'logprob': float(out['logprob'][b]),
      }
      for b, row in enumerate(batch.rows)
    ],
    rejected=batch.rejected,
    mass_ELNQR=out['mass'],
    count_ER=np.stack(
      [
        np.bincount(p.annotated.region_T, minlength=n_regions)
        for p in batch.prepared
      ]
    ),
    evidence=[p.annotated.evidence_I for p in batch.prepared],
    shifted=batch.shifted,
    profiles=profiles(out),
    profile_set=options.profile_set,
    baseline_ELNQR=None if baseline is None else baseline['mass'],
    baseline_profiles=profiles(baseline),
    written_ELNQ=out['written'],
    gradient_ELN=out.get('gradient'),
  )


def batches(n: int, size: int) -> Iterator[range]:
  """Record indices of every batch: a function of n and size alone."""
  for start in range(0, n, size):
    yield range(start, min(start + size, n))
