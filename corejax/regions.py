"""Regions of the keys, sets of the query rows and classes of all rows.

Masses have a region and a query set as axes; classes are what an ablation
averages over and replaces by.

A prompt of one picture, its evidence `e`, distractors `1` and `2`:

    key     <s>  USER :   v v e e v 1 v 2   What ... ?   ASSISTANT :   red
    region   k    k   k   o o e e o 1 o 2   q    q  q    t         t    t
    rows                                    ^question^             ^    last
                                                                   ^.. answer
    class    t   t   t   v v v v v v v v    q    q   q    t        t    t

k sink, o other_visual, q question, t other_text; v visual.
"""

from collections.abc import Sequence

import numpy as np

REGIONS = (
  'evidence',
  'distractor_1',
  'distractor_2',
  'distractor_3',
  'distractor_4',
  'other_visual',
  'sink',
  'question',
  'other_text',
)
EVIDENCE = 0
DISTRACTORS = (1, 2, 3, 4)
OTHER_VISUAL = 5
SINK = 6
QUESTION = 7
OTHER_TEXT = 8
VISUAL = (EVIDENCE, *DISTRACTORS, OTHER_VISUAL)

QUERY_SETS = ('question', 'last', 'answer')

# Every row has one class; the answer's rows are other text.
ROW_CLASSES = ('visual', 'question', 'other_text')
VISUAL_ROW, QUESTION_ROW, OTHER_TEXT_ROW = range(3)
PADDING_ROW = -1

N_SINK = 4  # the first non-visual tokens, SCIENCE "Regions"


def partition(
  length: int,
  visual_I: np.ndarray,
  evidence_I: np.ndarray,
  distractors: Sequence[np.ndarray],
  question: tuple[int, int],
) -> np.ndarray:
  """Region of every key of one sequence.

  Args:
    length: number of tokens.
    visual_I: int [I], sequence positions of the visual tokens (newline and
      separator tokens are not visual).
    evidence_I: bool [I], tokens that are evidence.
    distractors: bool [I] each, in any order; the four with the most tokens
      (after evidence is taken out) become distractor_1 (largest) to
      distractor_4, the rest falls to other_visual.
    question: [start, stop) of the question's own tokens.

  Returns:
    int8 [length], indices into REGIONS. Precedence is the order of REGIONS.
  """
  region = np.full(length, OTHER_TEXT, np.int8)
  region[question[0] : question[1]] = QUESTION
  is_visual = np.zeros(length, bool)
  is_visual[visual_I] = True
  region[np.flatnonzero(~is_visual)[:N_SINK]] = SINK
  region[visual_I] = OTHER_VISUAL
  left = [np.asarray(d, bool) & ~evidence_I for d in distractors]
  left = [d for d in left if d.any()]
  left.sort(key=lambda d: -int(d.sum()))  # stable: ties keep their order
  for index, cover in reversed(list(zip(DISTRACTORS, left))):
    region[visual_I[cover]] = index
  region[visual_I[evidence_I]] = EVIDENCE
  return region
