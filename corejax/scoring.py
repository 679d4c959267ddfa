"""Rule scorers: is what a model said right? No other model is asked.

score(example, text) -> a number in [0, 1], by example.scorer:

exact         the same words: "Red." is "red"
text          F1 of the words: "the red star" and "red star" are the same,
              "a star" is 2/3 of "red star"
anls          1 - edit distance / longer length, 0 where that is 0.5 or less
integer       some number said is the answer
number        some number said is within 1% of it; "12%" is 12 and 0.12
list          items matched one to one by number or anls; their sum over the
              longer list's length
choice        the letter chosen: "B", "(B) a dog", "The answer is b."
boolean       the first word is yes or no (true, false)
unanswerable  it says that there is no answer
iou50         four numbers x0 y0 x1 y1 overlap an evidence box, IoU >= 0.5; read
              as meta['box_answers'] says (corejax.grounding), else as shares
              of the picture or, if one is beyond 1, as thousandths
docqa         as MMLongBench (2025) judges its documentQA (corejax.docqa), by
              meta['answer_format'] and, of a list, meta['answer_items']
contains      the answer's words stand in what is said, one after another
frames        the first and the last of the pictures shown, counted from 1, in
              which it is so: temporal IoU with meta['evidence_frames']
tiou          the first and the last second: temporal IoU with the span

With several acceptable answers the best one counts. Where a text holds
"Answer:", only the line that follows the last one is judged: MMLongBench (2025)
asks models to say it so (`docqa` has its own rule for that).

Comparable with published numbers: `docqa` (see there); `iou50` with prec@1 of
papers on multimodal LLMs, not of those that add a pixel to every side. Not
comparable: `text`, `integer`, `number`, `list` and `unanswerable`, which are
merely in the manner of such rules; `contains` and `frames`, by which we judge
VidSTG's questions, as it publishes tIoU and vIoU (corejax.grounding) of tubes,
which these models do not draw; `anls` where answers were first cut short by a
judge model, as MMLongBench-Doc does.
"""

import collections
from collections.abc import Callable, Mapping
import re
import types
import unicodedata

import numpy as np
import scipy.optimize

from corejax import docqa
from corejax import grounding
from corejax.data import example as example_lib

Scorer = Callable[[example_lib.Example, str], float]

_CUE = re.compile(r'\banswer\s*:', re.IGNORECASE)
_WORD = re.compile(r'\d+(?:[.,]\d+)*|\w+')
_ARTICLES = frozenset({'a', 'an', 'the'})
_NUMBER = re.compile(
  r'(?<![\w.])'  # no part of a word, a version or a range
  r'(-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+))'
  r'(\s?%|\s?percent\b)?'
)
_ITEM = re.compile(r'\s*(?:[;\n]|,(?!\d{3}\b)|\band\b|&)\s*', re.IGNORECASE)
_TOLERANCE = 0.01
# In this order; a small "a" is an article unless it stands apart.
_CHOICES = (
  re.compile(r'\banswer is\W*([A-Z])\b'),
  re.compile(r'^\W*([A-Za-z])\W*$'),
  re.compile(r'^\W*([A-Za-z])\s*[.):,]'),
  re.compile(r'\(([A-Za-z])\)'),
)
_BOOLEANS = {'yes': True, 'true': True, 'no': False, 'false': False}
_NO_ANSWER = (
  'not answerable',
  'unanswerable',
  'cannot be answered',
  'can not be answered',
  'cant be answered',
  'no answer',
)


def score(example: example_lib.Example, text: str) -> float:
  """How right the text is as an answer to the example, from 0 to 1.

  Args:
    example: says by which rule (`scorer`), and what is right.
    text: what a model said, without special tokens.

  Raises:
    ValueError: the example holds no answer (iou50: no box) to judge by.
  """
  if example.scorer == 'docqa':  # judges the whole too
    return _docqa(example, text)
  return SCORERS[example.scorer](example, _said(text))


def _said(text: str) -> str:
  text = unicodedata.normalize('NFKC', text)
  *before, said = _CUE.split(text)
  said = said.strip()
  return said.split('\n')[0].strip() if before else said


def _words(text: str) -> list[str]:
  """Lower-case words and numbers; articles are left out beside others."""
  text = unicodedata.normalize('NFKC', text).casefold().replace("'", '')
  words = _WORD.findall(text)
  return [word for word in words if word not in _ARTICLES] or words


def _exact(answer: str, said: str) -> float:
  words = _words(answer)
  if not words:  # signs alone, such as "?"
    return float(answer.strip() == said.strip())
  return float(words == _words(said))


def _text(answer: str, said: str) -> float:
  true, found = (collections.Counter(_words(t)) for t in (answer, said))
  if not true:
    return _exact(answer, said)
  return 2 * (true & found).total() / (true.total() + found.total())


def _anls(answer: str, said: str) -> float:
  a, b = (' '.join(t.casefold().split()) for t in (answer, said))
  longer = max(len(a), len(b))
  similarity = 1 - _distance(a, b) / longer if longer else 1.0
  return similarity if similarity > 0.5 else 0.0


def _distance(a: str, b: str) -> int:
  """Levenshtein's."""
  previous = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    current = [i]
    for j, y in enumerate(b, 1):
      change = previous[j - 1] + (x != y)
      current.append(min(change, previous[j] + 1, current[-1] + 1))
    previous = current
  return previous[-1]


def _numbers(text: str) -> list[tuple[float, ...]]:
  """Every number of a text; a percentage is two, itself and its hundredth."""
  found = []
  for digits, percent in _NUMBER.findall(text):
    value = float(digits.replace(',', ''))
    found.append((value, value / 100) if percent else (value,))
  return found


def _integer(answer: str, said: str) -> float:
  true = _numbers(answer)
  return float(bool(true) and true[0][0] in {n[0] for n in _numbers(said)})


def _number(answer: str, said: str) -> float:
  true = _numbers(answer)
  if not true:
    return 0.0
  return float(
    any(
      abs(found - wanted) <= _TOLERANCE * abs(wanted)
      for wanted in true[0]
      for each in _numbers(said)
      for found in each
    )
  )


def _item(answer: str, said: str) -> float:
  """Two items of lists: as numbers where both are nothing else."""
  if all(_NUMBER.fullmatch(t.strip('$ ')) for t in (answer, said)):
    return _number(answer, said)
  return _anls(answer, said)


def _items(text: str) -> list[str]:
  bare = text.strip().removeprefix('[').removesuffix(']')
  items = (item.strip(' \'"-*.') for item in _ITEM.split(bare))
  return [item for item in items if item]


def _list(answer: str, said: str) -> float:
  true, found = _items(answer), _items(said)
  if not true or not found:
    return float(true == found)
  match = np.array([[_item(t, f) for f in found] for t in true])
  rows, columns = scipy.optimize.linear_sum_assignment(match, maximize=True)
  return float(match[rows, columns].sum() / max(match.shape))


def _letter(text: str) -> str | None:
  for pattern in _CHOICES:
    found = {letter.upper() for letter in pattern.findall(text)}
    if len(found) == 1:
      return found.pop()
  return None


def _choice(answer: str, said: str) -> float:
  letter = _letter(said)
  return float(letter is not None and letter == _letter(answer))


def _boolean(answer: str, said: str) -> float:
  true, found = (_BOOLEANS.get((_words(t) or [''])[0]) for t in (answer, said))
  return float(true is not None and true == found)


def _unanswerable(answer: str, said: str) -> float:
  del answer
  words = ' '.join(_words(said))
  return float(words == 'none' or any(phrase in words for phrase in _NO_ANSWER))


def _iou50(example: example_lib.Example, said: str) -> float:
  if not example.evidence:
    raise ValueError(f'{example.id}: no evidence box to judge by')
  size = None
  if 'box_hw' in example.meta:  # of the picture as the model sees it
    height, width = example.meta['box_hw']
    size = width, height
  elif 'media_hw' in example.meta:
    height, width = example.meta['media_hw'][0]
    size = width, height
  box = grounding.read_box(said, example.meta.get('box_answers'), size)
  if box is None:
    return 0.0
  return float(
    max(
      grounding.box_iou(box, grounding.corners(true))
      for true in example.evidence
    )
    >= 0.5
  )


def _docqa(example: example_lib.Example, text: str) -> float:
  kind = example.meta.get('answer_format')
  if kind not in docqa.FORMATS:
    raise ValueError(f'{example.id}: meta has no answer_format to judge by')
  if not example.answers:
    raise ValueError(f'{example.id}: no answer to judge by')
  answer = example.meta.get('answer_items', example.answers[0])
  return docqa.score(answer, kind, text)


def _contains(answer: str, said: str) -> float:
  wanted, words = _words(answer), _words(said)
  last = len(words) - len(wanted)
  return float(
    bool(wanted)
    and any(words[n : n + len(wanted)] == wanted for n in range(last + 1))
  )


def _frames(example: example_lib.Example, said: str) -> float:
  if 'evidence_frames' not in example.meta:
    raise ValueError(f'{example.id}: meta has no evidence_frames to judge by')
  first, last = example.meta['evidence_frames']
  # A single number is a first and a last that are the same.
  numbers = grounding.read_numbers(said, 2)
  if numbers is None:
    numbers = (grounding.read_numbers(said, 1) or [0.0]) * 2
  if numbers[0] < 1:
    return 0.0
  return grounding.t_iou((numbers[0], numbers[1] + 1), (first, last + 1))


def _tiou(example: example_lib.Example, said: str) -> float:
  if example.span is None:
    raise ValueError(f'{example.id}: no time span to judge by')
  numbers = grounding.read_numbers(said, 2)
  if numbers is None:
    return 0.0
  return grounding.t_iou((numbers[0], numbers[1]), example.span)


def _best(rule: Callable[[str, str], float]) -> Scorer:
  def scorer(example, said):
    if not example.answers:
      raise ValueError(f'{example.id}: no answer to judge by')
    return max(rule(answer, said) for answer in example.answers)

  return scorer


SCORERS: Mapping[str, Scorer] = types.MappingProxyType(
  {
    'exact': _best(_exact),
    'text': _best(_text),
    'anls': _best(_anls),
    'integer': _best(_integer),
    'number': _best(_number),
    'list': _best(_list),
    'choice': _best(_choice),
    'boolean': _best(_boolean),
    'unanswerable': _best(_unanswerable),
    'iou50': _iou50,
    'docqa': _docqa,
    'contains': _best(_contains),
    'frames': _frames,
    'tiou': _tiou,
  }
)
