"""Rule scorers on answers judged by hand."""

import pytest

from corejax import errors
from corejax import scoring
from corejax.data import example as example_lib


def _example(scorer, *answers, evidence=(), span=None, **meta):
  return example_lib.Example(
    id='made/test/0',
    source='made',
    split='test',
    task='t',
    media=(b'x',),
    question='what?',
    answers=answers,
    cluster='0',
    scorer=scorer,
    evidence=evidence,
    span=span,
    meta=meta,
  )


# (scorer, answers, what was said, score)
CASES = [
  ('exact', ['red'], 'Red.', 1),
  ('exact', ['red'], ' the RED\n', 1),
  ('exact', ['red'], 'red star', 0),
  ('exact', ['red'], 'redder', 0),
  ('exact', ['red', 'crimson'], 'crimson', 1),
  ('exact', ['A'], 'a', 1),
  ('exact', ['3.5'], '35', 0),
  ('exact', ["it's"], 'Its', 1),
  ('exact', ['?'], '!', 0),
  ('exact', ['?'], ' ?', 1),
  ('exact', ['red'], '', 0),
  ('exact', ['５'], '5', 1),  # full-width digit
  ('exact', ['red'], 'It may be blue.\nAnswer: red\nbecause of it', 1),
  ('exact', ['red'], 'answer: blue. No, final Answer:\nred', 1),
  ('text', ['the red star'], 'red star', 1),
  # 1 word shared of 2 and 2.
  ('text', ['red star'], 'a blue star', 0.5),
  # 2 shared; 2 * 2 / (2 + 3).
  ('text', ['red star'], 'star red star', 0.8),
  ('text', ['red star', 'star'], 'star', 1),
  ('text', ['1,000 USD'], 'USD 1,000', 1),
  ('text', ['red'], '', 0),
  ('anls', ['invoice'], 'Invoice', 1),
  # kitten -> sitting: 3 edits of 7.
  ('anls', ['kitten'], 'sitting', 1 - 3 / 7),
  ('anls', ['abcd'], 'abxy', 0),  # exactly one half
  ('anls', ['abcde'], 'abcxy', 0.6),
  ('anls', ['new  york'], 'New York', 1),
  ('anls', ['a'], '', 0),
  ('integer', ['8'], 'There are 8.', 1),
  ('integer', ['8'], 'There are 18.', 0),
  ('integer', ['8'], 'between 7 and 8', 1),
  ('integer', ['8'], 'v8 or 8.5', 0),
  ('integer', ['1,200'], '1200 in all', 1),
  ('integer', ['2015'], '2010-2015', 1),
  ('integer', ['-3'], 'it is -3', 1),
  ('integer', ['3'], 'it is -3', 0),
  ('integer', ['none'], '3', 0),
  ('number', ['3.50'], '$3.5', 1),
  ('number', ['100'], '101', 1),
  ('number', ['100'], '101.1', 0),
  ('number', ['100'], '98.9', 0),
  ('number', ['12%'], '0.12', 1),
  ('number', ['12%'], '12', 1),
  ('number', ['0.12'], '12 percent', 1),
  ('number', ['12'], '0.12', 0),
  ('number', ['0'], '0.0', 1),
  ('number', ['0'], '0.001', 0),
  ('number', ['.5'], 'about 0.5', 1),
  ('number', ['5'], 'five', 0),
  ('number', ['10'], 'version 10.2.3', 0),
  ('list', ['red, blue'], 'blue and red', 1),
  ('list', ['red, blue'], "['red', 'blue']", 1),
  ('list', ['red, blue'], 'red', 0.5),
  ('list', ['red'], 'red, blue, green, black', 0.25),
  ('list', ['red, blue'], 'red; red', 0.5),  # each item counts once
  ('list', ['1,000, 20'], '20 & 1000', 1),
  ('list', ['10, 20'], '10\n25', 0.5),
  ('list', ['5%, 7'], '0.05, 7', 1),
  # Matched for the best sum: kitten-sitting and sitter-sitter.
  ('list', ['kitten, sitter'], 'sitter, sitting', (1 - 3 / 7 + 1) / 2),
  ('list', ['red'], '', 0),
  ('choice', ['B'], 'B', 1),
  ('choice', ['B'], '(b) a dog', 1),
  ('choice', ['B'], 'The answer is B, a dog', 1),
  ('choice', ['B'], 'b) because of (A)', 1),
  ('choice', ['B'], 'A. or B', 0),
  ('choice', ['A'], 'a dog', 0),
  ('choice', ['A'], 'The answer is a dog', 0),
  ('choice', ['(C)'], 'I take (C)', 1),
  ('choice', ['C'], 'Either (C) or (D)', 0),
  ('choice', ['B'], '', 0),
  ('boolean', ['yes'], 'Yes, it is.', 1),
  ('boolean', ['no'], 'False', 1),
  ('boolean', ['no'], 'I know', 0),
  ('boolean', ['maybe'], 'maybe', 0),
  ('unanswerable', ['Not answerable'], 'It is not answerable.', 1),
  ('unanswerable', ['Not answerable'], "This can't be answered", 1),
  ('unanswerable', ['Not answerable'], 'None.', 1),
  ('unanswerable', ['Not answerable'], 'None of the three, so 4', 0),
  ('contains', ['dog'], 'It is a dog, I think', 1),
  ('contains', ['dog'], 'It is a hotdog', 0),
  ('contains', ['baby seat'], 'the baby in a seat', 0),
  ('contains', ['baby seat'], 'A Baby-Seat.', 1),
  ('contains', ['cattle', 'cow'], 'the brown cow', 1),
  ('contains', ['dog'], '', 0),
  ('contains', ['?'], '?', 0),
]


@pytest.mark.parametrize('scorer, answers, said, expected', CASES)
def test_by_hand(scorer, answers, said, expected):
  found = scoring.score(_example(scorer, *answers), said)
  assert type(found) is float
  assert found == pytest.approx(expected, abs=1e-12)


_HALF = example_lib.Box(0, 0.0, 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
  'said, expected',
  [
    ('[0.0, 0.0, 0.5, 1.0]', 1),
    ('<box>(0, 0), (500, 1000)</box>', 1),
    ('0 0 1 1', 1),  # IoU is 1/2 exactly
    ('0 0 1 0.9', 0),  # 0.45 / 0.95
    ('0 0 0.25 1', 1),  # contained, again 1/2
    ('0 0 0.24 1', 0),
    ('0.5 0 1 1', 0),  # beside it
    ('0.5 1 0 0', 0),  # inverted
    ('0 0 0.5', 0),
    ('-0.1 0 0.5 1', 0),
    ('a dog', 0),
  ],
)
def test_boxes_by_hand(said, expected):
  example = _example('iou50', evidence=(_HALF,))
  assert scoring.score(example, said) == expected


def test_the_best_box_counts():
  other = example_lib.Box(0, 0.5, 0.0, 1.0, 1.0)
  example = _example('iou50', evidence=(_HALF, other))
  assert scoring.score(example, '500 0 1000 1000') == 1


@pytest.mark.parametrize(
  'said, convention, expected',
  [
    ('[0,0,500,1000]', 'thousand', 1),  # not one number with separators
    ('[0, 0, 0.5, 1]', 'thousand', 0),
    ('[0, 0, 100, 100]', 'pixel', 1),  # of 200x100
    ('[0, 0, 50, 100]', 'pixel', 1),
    ('[0, 0, 49, 100]', 'pixel', 0),
    ('[0, 0.25, 0.5, 0.75]', 'square', 1),
    ('[0, 0, 0.5, 1]', 'square', 1),  # twice the height: IoU is 1/2
    ('[0, 0, 0.5, 1]', 'pixel', 0),
  ],
)
def test_boxes_per_convention(said, convention, expected):
  example = _example(
    'iou50', evidence=(_HALF,), media_hw=[[100, 200]], box_answers=convention
  )
  assert scoring.score(example, said) == expected


@pytest.mark.parametrize(
  'said, expected',
  [
    ('[0, 0, 56, 56]', 1),
    ('[{"bbox_2d": [0, 0, 28, 56], "label": "star"}]', 1),
    ('[0, 0, 27, 56]', 0),
    ('[0, 0, 100, 100]', 0),  # of the picture as it is stored
  ],
)
def test_boxes_in_pixels_of_the_resized_picture(said, expected):
  """200x100, shown to the model as 112x56."""
  example = _example(
    'iou50',
    evidence=(_HALF,),
    media_hw=[[100, 200]],
    box_hw=[56, 112],
    box_answers='resized',
  )
  assert scoring.score(example, said) == expected


@pytest.mark.parametrize(
  'said, expected',
  [
    ('3 to 5', 1),
    ('Frames 3-5.', 1),
    ('4', 1 / 3),
    ('4 to 8', 2 / 6),  # 4 5 of 3 4 5 6 7 8
    ('5 to 3', 0),
    ('0 to 5', 0),  # they count from 1
    ('1, 2, 3', 0),
    ('never', 0),
  ],
)
def test_frames_by_hand(said, expected):
  example = _example('frames', evidence_frames=[3, 5])
  assert scoring.score(example, said) == pytest.approx(expected)


@pytest.mark.parametrize(
  'said, expected',
  [
    ('from 2.5 s to 4.5 s', 1),
    ('2.5 - 3.5', 0.5),
    ('3.5-5.5', 1 / 3),
    ('3.5', 0),
    ('4.5 to 2.5', 0),
  ],
)
def test_seconds_by_hand(said, expected):
  example = _example('tiou', span=(2.5, 4.5))
  assert scoring.score(example, said) == pytest.approx(expected)


def test_nothing_to_judge_by():
  for scorer in ('frames', 'tiou', 'docqa'):
    with pytest.raises(ValueError, match='made/test/0: .* to judge by'):
      scoring.score(_example(scorer, 'red'), '0 0 1 1')
  with pytest.raises(ValueError, match='made/test/0: no answer'):
    scoring.score(_example('exact'), 'red')
  with pytest.raises(ValueError, match='made/test/0: no evidence box'):
    scoring.score(_example('iou50', 'red'), '0 0 1 1')


def test_names():
  """A source that names another rule is told when it makes an example."""
  assert tuple(scoring.SCORERS) == example_lib.SCORERS
  assert {case[0] for case in CASES} | {
    *('iou50', 'docqa', 'frames', 'tiou')
  } == set(scoring.SCORERS)
  for name in scoring.SCORERS:
    assert name in (scoring.__doc__ or '')
  with pytest.raises(errors.UserError, match="'bleu' is unknown.* exact, text"):
    _example('bleu', 'red')
