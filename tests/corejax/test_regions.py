"""The partition of the keys: precedence, sizes, and that nothing is left."""

import hypothesis
from hypothesis import strategies as st
import numpy as np

from corejax import regions


def _letters(region_T):
  return ''.join('e1234okqt'[r] for r in region_T)


def _partition(length, visual, evidence, distractors, question):
  visual_I = np.array(visual, int)

  def cover(positions):
    return np.isin(visual_I, positions)

  return _letters(
    regions.partition(
      length,
      visual_I,
      cover(evidence),
      [cover(d) for d in distractors],
      question,
    )
  )


def test_the_picture_in_the_docstring():
  # <s> USER : v v e e v 1 v 2 What .. ? ASSISTANT : red
  got = _partition(17, range(3, 11), [5, 6], [[8], [10]], (11, 14))
  assert got == 'kkkooeeo1o2kqqttt'


def test_evidence_goes_before_distractors_and_all_of_them_before_the_rest():
  got = _partition(8, range(8), [2, 3], [[3, 4, 5], [5, 6]], (0, 0))
  # The first distractor has two tokens left; token 5 is in both.
  assert got == 'ooee112o'


def test_distractors_are_ordered_by_what_is_left_of_them():
  got = _partition(8, range(8), [0, 1, 2], [[0, 1, 2, 3], [6, 7]], (0, 0))
  assert got == 'eee2oo11'


def test_ties_keep_their_order_and_a_fifth_is_other():
  one_each = [[i] for i in range(1, 7)]
  assert _partition(8, range(8), [0], one_each, (0, 0)) == 'e1234ooo'


def test_a_distractor_inside_the_evidence_takes_no_slot():
  assert _partition(4, range(4), [0, 1], [[0], [2]], (0, 0)) == 'ee1o'


def test_sink_goes_before_question():
  assert _partition(8, [6, 7], [6], [], (0, 6)) == 'kkkkqqeo'


def test_sinks_are_the_first_tokens_that_are_not_visual():
  assert _partition(9, [0, 1, 2], [1], [], (4, 6)) == 'oeokkkktt'


def test_few_text_tokens_are_all_sinks():
  assert _partition(3, [1], [1], [], (2, 3)) == 'kek'


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None, max_examples=100, derandomize=True)
def test_every_key_has_the_first_region_that_claims_it(data):
  length = data.draw(st.integers(1, 24))
  some = st.lists(st.booleans(), min_size=length, max_size=length)
  is_visual = np.array(data.draw(some))
  visual_I = is_visual.nonzero()[0]
  evidence_I = np.array(data.draw(some))[visual_I]
  distractors = [
    np.array(data.draw(some))[visual_I]
    for _ in range(data.draw(st.integers(0, 6)))
  ]
  start = data.draw(st.integers(0, length))
  stop = data.draw(st.integers(start, length))
  got = regions.partition(
    length, visual_I, evidence_I, distractors, (start, stop)
  )
  assert got.dtype == np.int8 and got.shape == (length,)
  left = [d & ~evidence_I for d in distractors]
  order = sorted(
    (i for i in range(len(left)) if left[i].any()),
    key=lambda i: (-left[i].sum(), i),
  )[:4]
  text = [t for t in range(length) if not is_visual[t]]
  for t in range(length):
    if is_visual[t]:
      i = int(np.searchsorted(visual_I, t))
      claims = [rank for rank, d in enumerate(order, 1) if left[d][i]]
      expected = regions.OTHER_VISUAL
      if evidence_I[i]:
        expected = regions.EVIDENCE
      elif claims:
        expected = claims[0]
    elif t in text[:4]:
      expected = regions.SINK
    else:
      inside = start <= t < stop
      expected = regions.QUESTION if inside else regions.OTHER_TEXT
    assert got[t] == expected, t


def test_names_and_indices_agree():
  assert regions.REGIONS[regions.EVIDENCE] == 'evidence'
  for index, slot in enumerate(regions.DISTRACTORS, 1):
    assert regions.REGIONS[slot] == f'distractor_{index}'
  assert regions.REGIONS[regions.OTHER_VISUAL] == 'other_visual'
  assert regions.REGIONS[regions.SINK] == 'sink'
  assert regions.REGIONS[regions.QUESTION] == 'question'
  assert regions.REGIONS[regions.OTHER_TEXT] == 'other_text'
  assert regions.VISUAL == tuple(range(6))
