"""From boxes to regions and rows, and from those to a batch's Probe."""

import jax.numpy as jnp
import numpy as np
import pytest

from corejax import errors
from corejax import evidence
from corejax import inputs
from corejax import layout as layout_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from corejax.data import example as example_lib

Box = example_lib.Box
_LEFT, _RIGHT = Box(0, 0, 0, 0.5, 1), Box(0, 0.5, 0, 1, 1)
_SLIVER = Box(0, 0.25, 0, 0.26, 0.1)


def _example(evidence_boxes=(_LEFT,), distractors=(), media=1):
  return example_lib.Example(
    id='e',
    source='s',
    split='t',
    task='k',
    media=(b'',) * media,
    question='q',
    answers=('a',),
    cluster='c',
    evidence=tuple(evidence_boxes),
    distractors=tuple(distractors),
  )


def _encoded(
  visual=(2, 3, 4, 5),
  question=(6, 9),
  prompt_len=11,
  answer=(7, 8),
  base=(False,) * 4,
  shift=0.0,
):
  """<s> x v v v v q q q t t | a: four cells in a row on one 40x10 picture."""
  x = np.arange(4) * 10.0 + shift
  cell = np.stack([x, np.zeros(4), x + 10, np.full(4, 10)], 1)
  cell[np.array(base)] = [0, 0, 40, 10]
  length = prompt_len + max(len(answer) - 1, 0)
  visual_I = np.array(visual, np.int32)
  feature_T = np.full(length, -1, np.int32)
  feature_T[visual_I] = np.arange(4)
  return inputs.Encoded(
    tokens_T=np.arange(length, dtype=np.int32),
    positions_T=np.arange(length, dtype=np.int32),
    vision={},
    feature_T=feature_T,
    visual_I=visual_I,
    layout=layout_lib.VisualLayout(
      np.zeros(4, np.int32), cell, np.array([[40, 10]]), np.array(base)
    ),
    question=question,
    prompt_len=prompt_len,
    answer_A=np.array(answer, np.int32),
  )


def test_rows_of_every_query_set():
  rows = evidence.query_rows(_encoded(answer=(7, 8, 9)))
  assert set(rows) == set(regions.QUERY_SETS)
  assert rows['question'].tolist() == [6, 7, 8]
  assert rows['last'].tolist() == [10]
  # Row 10 predicts answer[0]; the last answer token is nobody's input.
  assert rows['answer'].tolist() == [10, 11, 12]


def test_annotate():
  got = evidence.annotate(_example(distractors=[_RIGHT]), _encoded())
  assert got.evidence_I.tolist() == [True, True, False, False]
  assert got.distractors_XI.tolist() == [[False, False, True, True]]
  letters = ''.join('e1234okqt'[r] for r in got.region_T)
  assert letters == 'kkee11kkqttt'
  assert got.visual_I.tolist() == [2, 3, 4, 5]
  assert got.chance == 0.5


def test_distractors_that_are_cropped_away_are_left_out():
  encoded = _encoded(shift=15.0)  # the first 15 pixels are not shown
  example = _example([_RIGHT], distractors=[Box(0, 0, 0, 0.3, 1), _LEFT])
  got = evidence.annotate(example, encoded)
  assert got.distractors_XI.tolist() == [[True, False, False, False]]
  none = evidence.annotate(_example(), _encoded())
  assert none.distractors_XI.shape == (0, 4)


def test_base_tokens_can_be_left_out():
  encoded = _encoded(base=(True, False, False, False))
  box = Box(0, 0, 0, 0.75, 1)
  got = evidence.annotate(_example([box]), encoded)
  assert got.evidence_I.tolist() == [True, True, True, False]
  got = evidence.annotate(_example([box]), encoded, include_base=False)
  assert got.evidence_I.tolist() == [False, True, True, False]
  # A distractor that only the base tile shows is cropped from the others.
  left = _example([_RIGHT], distractors=[Box(0, 0, 0, 0.2, 1)])
  got = evidence.annotate(left, encoded, include_base=False)
  assert len(got.distractors_XI) == 0


@pytest.mark.parametrize(
  'example, encoded, reason',
  [
    (_example([]), _encoded(), errors.Reason.NO_EVIDENCE),
    (_example(), _encoded(answer=()), errors.Reason.BAD_ANSWER),
    (
      _example([Box(0, 0, 0, 0.2, 1)]),
      _encoded(shift=15.0),
      errors.Reason.EVIDENCE_CROPPED,
    ),
    (
      _example([_LEFT, Box(0, 0, 0, 0.2, 1)]),
      _encoded(shift=15.0),
      errors.Reason.EVIDENCE_CROPPED,
    ),
    (
      _example(),
      _encoded(visual=(7, 8, 9, 10), question=(2, 5)),
      errors.Reason.EVIDENCE_AFTER_QUERY,
    ),
    (
      _example([Box(0, 0.5, 0, 0.75, 1)]),
      _encoded(visual=(2, 3, 6, 7), question=(4, 6)),
      errors.Reason.EVIDENCE_AFTER_QUERY,
    ),
  ],
)
def test_rejections(example, encoded, reason):
  with pytest.raises(errors.Rejected) as caught:
    evidence.annotate(example, encoded)
  assert caught.value.reason is reason


def test_evidence_before_the_question_is_enough():
  encoded = _encoded(visual=(2, 3, 6, 7), question=(4, 6))
  got = evidence.annotate(_example([_LEFT]), encoded)
  assert got.evidence_I.tolist() == [True, True, False, False]


def _batch():
  long = evidence.annotate(_example(), _encoded(answer=(7, 8, 9)))
  short = evidence.annotate(
    _example([_RIGHT]), _encoded(question=(7, 8), prompt_len=10, answer=(7,))
  )
  return [long, short]


def test_batch_probe():
  probe = evidence.batch_probe(_batch(), 16, (4, 3, 5))
  assert probe.rows_BP.tolist() == [
    [6, 7, 8, -1, 10, 10, 11, 12],
    [7, -1, -1, -1, 9, 9, -1, -1],
  ]
  assert (
    probe.set_PQ.tolist() == [[1, 0, 0]] * 4 + [[0, 1, 0]] + [[0, 0, 1]] * 3
  )
  letters = [
    ''.join('e1234okqt'[r] for r in region) for region in probe.region_BS
  ]
  assert letters == ['kkeeookkqttttttt', 'kkooeekktttttttt']
  assert probe.region_BS.dtype == jnp.int8
  assert probe.visual_BI is None and probe.profile_set is None


def test_batch_probe_with_profiles():
  probe = evidence.batch_probe(_batch(), 16, (4, 3, 5), profile_set='answer')
  assert probe.profile_set == 2
  assert probe.visual_BI is not None
  assert probe.visual_BI.tolist() == [[2, 3, 4, 5, -1]] * 2


@pytest.mark.parametrize(
  'length, sizes',
  [(12, (4, 3, 5)), (16, (2, 3, 5)), (16, (4, 2, 5)), (16, (4, 3, 3))],
)
def test_slots_that_are_too_few_are_an_error(length, sizes):
  with pytest.raises(ValueError):
    evidence.batch_probe(_batch(), length, sizes, 'last')


def test_more_slots_change_no_mass():
  rng = np.random.default_rng(0)
  q, k = (
    jnp.asarray(rng.normal(size=(2, 16, 2, 4)), jnp.float32) for _ in range(2)
  )
  mask = masks.AttnMask(kv_len_B=jnp.array([13, 10], jnp.int32))
  masses = []
  for sizes in ((3, 3, 4), (7, 5, 9)):
    probe = evidence.batch_probe(_batch(), 16, sizes)
    masses.append(probe_lib.measure(q, k, mask, None, probe).mass_BQNR)
  np.testing.assert_allclose(masses[0], masses[1], atol=1e-6)
  np.testing.assert_allclose(masses[0].sum(-1), 1, atol=1e-6)
  # A one-token answer is read off the last prompt row.
  np.testing.assert_allclose(masses[0][1, 1], masses[0][1, 2], atol=1e-6)


def test_batch_rows():
  long = _encoded(answer=(7, 8, 9))
  # The picture comes last but one, the question first: its words are sinks.
  early = _encoded(
    visual=(6, 7, 8, 9), question=(0, 3), prompt_len=11, answer=(7,)
  )
  early_annotated = evidence.Annotated(
    evidence_I=np.array([True] * 4),
    distractors_XI=np.zeros((0, 4), bool),
    region_T=regions.partition(
      11, early.visual_I, np.array([True] * 4), [], early.question
    ),
    rows=evidence.query_rows(early),
    visual_I=early.visual_I,
  )
  assert early_annotated.region_T[0] == regions.SINK
  rows = evidence.batch_rows(
    [evidence.annotate(_example(), long), early_annotated], 16
  )

  def letters(b):
    return ''.join('vqt.'[c] for c in rows.class_BT[b].tolist())

  # Rows 11 and 12 hold the answer's first two tokens.
  assert letters(0) == 'ttvvvvqqqtttt...'
  assert letters(1) == 'qqqtttvvvvt.....'
  assert np.flatnonzero(rows.query_BT[0]).tolist() == [6, 7, 8, 10, 11, 12]
  assert np.flatnonzero(rows.query_BT[1]).tolist() == [0, 1, 2, 10]
  assert np.flatnonzero(rows.decoded_BT[0]).tolist() == [11, 12]
  assert not rows.decoded_BT[1].any()
  assert rows.counts_BC.tolist() == [[4, 3, 6], [4, 3, 4]]
