"""From boxes and token spans to what a probe watches.

`annotate` turns one encoded example into its regions and rows; `batch_probe`
and `batch_rows` pad a few of them into a Probe and into Rows.
"""

from collections.abc import Sequence
import dataclasses

import jax.numpy as jnp
import numpy as np

from corejax import describe
from corejax import errors
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax import regions
from corejax import rows as rows_lib
from corejax.data import example as example_lib


@dataclasses.dataclass(frozen=True)
class Annotated:
  """One example's rows and regions.

  Attributes:
    evidence_I: bool [I], visual tokens that are evidence.
    distractors_XI: bool [X, I], likewise per distractor box that is visible.
    region_T: int8 [T].
    rows: per query set, int32 rows.
    visual_I: int32 [I], sequence positions of the visual tokens.
  """

  evidence_I: np.ndarray
  distractors_XI: np.ndarray
  region_T: np.ndarray
  rows: dict[str, np.ndarray]
  visual_I: np.ndarray

  __repr__ = describe.fields

  @property
  def chance(self) -> float:
    """|evidence| / |visual|: the lift-1 level of a RAM's share."""
    return float(self.evidence_I.sum()) / len(self.evidence_I)


def query_rows(encoded: inputs_lib.Encoded) -> dict[str, np.ndarray]:
  """Rows of every query set (regions.QUERY_SETS)."""
  last = encoded.prompt_len - 1
  return {
    'question': np.arange(*encoded.question, dtype=np.int32),
    'last': np.array([last], np.int32),
    'answer': np.arange(last, last + len(encoded.answer_A), dtype=np.int32),
  }


def annotate(
  example: example_lib.Example,
  encoded: inputs_lib.Encoded,
  include_base: bool = True,
  need_evidence: bool = True,
) -> Annotated:
  """Regions and rows of one example.

  Args:
    example: with evidence.
    encoded: the same, as the model takes it.
    include_base: count base and thumbnail tiles as evidence too.
    need_evidence: False lets an example pass that has none (a twin, say): it
      has no token of that region.

  Raises:
    Rejected: no evidence, evidence cropped away, or evidence that the
      question cannot see because it comes later.
  """
  if need_evidence and not example.evidence:
    raise errors.Rejected(errors.Reason.NO_EVIDENCE, example.id)
  if not len(encoded.answer_A):
    raise errors.Rejected(errors.Reason.BAD_ANSWER, example.id)
  layout = encoded.layout
  try:
    evidence_I = layout.tokens(example.evidence, include_base)
  except errors.Rejected as e:
    raise errors.Rejected(e.reason, f'{example.id}: {e.detail}') from e
  last_evidence = encoded.visual_I[evidence_I].max(initial=-1)
  if last_evidence >= encoded.question[0]:
    raise errors.Rejected(
      errors.Reason.EVIDENCE_AFTER_QUERY,
      f'{example.id}: evidence token {last_evidence}, question starts at '
      f'{encoded.question[0]}',
    )
  distractors = []
  for box in example.distractors:
    try:
      distractors.append(layout.tokens([box], include_base))
    except errors.Rejected:
      continue  # cropped away: no head can be distracted by it
  return Annotated(
    evidence_I=evidence_I,
    distractors_XI=np.array(distractors, bool).reshape(-1, len(layout)),
    region_T=regions.partition(
      len(encoded.tokens_T),
      encoded.visual_I,
      evidence_I,
      distractors,
      encoded.question,
    ),
    rows=query_rows(encoded),
    visual_I=encoded.visual_I,
  )


def batch_probe(
  batch: Sequence[Annotated],
  length: int,
  sizes: tuple[int, int, int],
  profile_set: str | None = None,
) -> probe_lib.Probe:
  """Pads annotated examples into one Probe.

  Args:
    batch: the examples, right-padded to `length`.
    length: T.
    sizes: slots for (question rows, answer rows, visual tokens).
    profile_set: query set of the profiles, None for none.

  Raises:
    ValueError: an example needs more slots or tokens than there are.
  """
  n_question, n_answer, n_visual = sizes
  slots = {'question': n_question, 'last': 1, 'answer': n_answer}
  rows_BP = np.full((len(batch), sum(slots.values())), -1, np.int32)
  set_PQ = np.zeros((rows_BP.shape[1], len(regions.QUERY_SETS)), np.float32)
  region_BS = np.full((len(batch), length), regions.OTHER_TEXT, np.int8)
  visual_BI = np.full((len(batch), n_visual), -1, np.int32)
  start = 0
  for index, name in enumerate(regions.QUERY_SETS):
    set_PQ[start : start + slots[name], index] = 1
    for b, annotated in enumerate(batch):
      rows = annotated.rows[name]
      if len(rows) > slots[name]:  # the next set would overwrite them silently
        raise ValueError(
          f'batch_probe: {len(rows)} {name} rows do not fit into {slots[name]} '
          'slots'
        )
      rows_BP[b, start : start + len(rows)] = rows
    start += slots[name]
  for b, annotated in enumerate(batch):
    region_BS[b, : len(annotated.region_T)] = annotated.region_T
    visual_BI[b, : len(annotated.visual_I)] = annotated.visual_I
  return probe_lib.Probe(
    jnp.asarray(rows_BP),
    jnp.asarray(set_PQ),
    jnp.asarray(region_BS),
    jnp.asarray(visual_BI) if profile_set else None,
    regions.QUERY_SETS.index(profile_set) if profile_set else None,
  )


def batch_rows(batch: Sequence[Annotated], length: int) -> rows_lib.Rows:
  """Pads annotated examples into one Rows.

  Args:
    batch: the examples, right-padded to `length`.
    length: T.
  """
  shape = (len(batch), length)
  class_BT = np.full(shape, regions.PADDING_ROW, np.int8)
  query_BT = np.zeros(shape, bool)
  decoded_BT = np.zeros(shape, bool)
  for b, annotated in enumerate(batch):
    n_tokens = len(annotated.region_T)
    class_BT[b, :n_tokens] = regions.OTHER_TEXT_ROW
    # Not by region: the first words of a question may be sinks.
    class_BT[b, annotated.rows['question']] = regions.QUESTION_ROW
    class_BT[b, annotated.visual_I] = regions.VISUAL_ROW
    for rows in annotated.rows.values():
      query_BT[b, rows] = True
    decoded_BT[b, annotated.rows['last'][-1] + 1 : n_tokens] = True
  return rows_lib.Rows(
    jnp.asarray(class_BT), jnp.asarray(query_BT), jnp.asarray(decoded_BT)
  )
