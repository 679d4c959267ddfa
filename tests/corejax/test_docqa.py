"""MMLongBench's rules on answers judged by hand."""

import pytest

from corejax import docqa
from corejax import scoring
from corejax.data import example as example_lib


@pytest.mark.parametrize(
  'kind, answer, text, expected',
  [
    ('Integer', '18', 'There are 18.', 1),
    ('Integer', '18', '17 or 18', 1),  # lenient, as theirs
    ('Integer', '18', '18.5', 0),
    ('Integer', '18', '118', 0),
    ('Integer', '1,800', 'about 1800 people', 1),
    ('Integer', '$18 million', '18', 1),
    ('Integer', '18', 'Answer: 18 of them', 1),
    ('Integer', '-3', 'it is -3', 1),
    ('Integer', '3', 'it is -3', 0),
    ('Integer', 'eighteen', 'Eighteen.', 1),  # no number: judged as words
    ('Float', '12%', '0.12', 1),
    ('Float', '12%', '12.1', 1),  # within 0.121
    ('Float', '12%', '12.2', 0),
    ('Float', '12%', '1200', 1),
    ('Float', '0.5', 'one half', 0),
    ('Float', '0', '0.0', 1),
    ('String', 'The red star', 'red star!', 1),
    # 2 words shared of 2 and 4.
    ('String', 'red star', 'a red star on blue', 4 / 6),
    ('String', 'red star', 'moon', 0),
    ('String', '2019-05-03', 'on 2019-05-03, it says', 1),
    ('String', '2019-05-03', 'on 2019 05 03', 0),
    ('String', 'page 7', 'Page 7', 0),  # as it is
    ('String', 'a@b.org', 'write to a@b.org', 1),
    ('String', '7-9', 'pages 7-9', 1),
    # The whole has 2 of 3 + 2 words, what follows the cue all.
    ('String', 'red star', 'Well. Answer: red star', 1),
    ('String', 'red star', 'Answer: Answer: red star', 1),
    ('None', 'Not answerable', 'Not answerable', 1),
    ('None', 'Not answerable', 'It is not answerable', 4 / 6),
    ('List', ['red', 'blue'], 'blue and red', 4 / 5),
    ('List', ['red', 'blue'], 'red', 2 / 3),
    # (1 + 0 + F1 of "red" with "3 red" = 2/3) / 3.
    ('List', ['3', '5', 'red'], '3 red', (1 + 0 + 2 / 3) / 3),
    ('List', ['3', '4.5'], '3, 4.5', 1),
    # Lists "1999" is an Integer, "12%" a Float.
    ('List', ['1999', '12%'], '0.12 in 1999', 1),
    ('List', [], 'red', 0),
    ('List', 'red', 'red', 1),
  ],
)
def test_by_hand(kind, answer, text, expected):
  assert docqa.score(answer, kind, text) == pytest.approx(expected, abs=1e-12)


def test_nothing_takes_forever_or_overflows():
  for text in ('9' * 20_000, '.' * 20_000, '- ' * 10_000, 'a.py ' * 4_000):
    for kind in docqa.FORMATS:
      assert docqa.score('18', kind, text) == 0
      assert docqa.score(text, kind, '18') == 0


def test_as_a_scorer():
  def example(answers, **meta):
    return example_lib.Example(
      id='x',
      source='x',
      split='x',
      task='x',
      media=(b'x',),
      question='x?',
      answers=answers,
      cluster='x',
      scorer='docqa',
      meta=meta,
    )

  said = example(('18',), answer_format='Integer')
  assert scoring.score(said, 'Answer: 18') == 1
  assert scoring.score(said, 'Answer: 17') == 0
  several = example(
    ('3, red',), answer_format='List', answer_items=['3', 'red']
  )
  assert scoring.score(several, '3 red') == pytest.approx((1 + 2 / 3) / 2)
  with pytest.raises(ValueError, match='answer_format'):
    scoring.score(example(('18',)), '18')
