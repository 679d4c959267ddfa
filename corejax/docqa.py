"""How MMLongBench (2025) judges answers on documents, by rules alone.

score(answer, format, text): `text` is judged whole and, where it says
"Answer:", by what follows the first one too; the better counts.

Integer   a number of the text is the answer
Float     one is within 1% of it, of its hundredth, or of its hundredfold
String    F1 of the words in lower case, without punctuation and articles; an
None      answer that is an address, a file, a date, a page or a range of digits
          must stand in the text as it is
List      the mean over items, each by the kind it looks like; the words of all
          plain texts are one item, so that their order does not matter

The answer's thousands separators, and a unit or sign at its end ("%", "$",
"million", "feet"), do not count.

Comparable with the rule-based documentQA numbers of MMLongBench (2025) where
prompt, pages and their order are its own. Not comparable: MMLongBench-Doc's
published accuracy and F1, for which GPT-4o first extracts a short answer, and
numbers of MMLongBench that a judge model gave. MMDocIR publishes no answer
scores. The rules are theirs, also where they are lenient: "17 or 18" is right
for 18, and 0.12, 12 and 1200 are for 12%.
"""

import collections
from collections.abc import Sequence
import re
import string

FORMATS = ('Integer', 'Float', 'String', 'List', 'None')

_CUE = re.compile(r'answer:', re.IGNORECASE)
_ARTICLE = re.compile(r'\b(?:a|an|the)\b')
_NUMBER = re.compile(r'-?\d+(?:\.\d*)?|-?\.\d+')
_LONGEST = 40  # characters of a number
# One after another, as each may uncover the next.
_UNITS = (
  *('kg', 'meters', 'acres', 'minutes', 'miles', 'mile', 'feet'),
  *('million', 'thousand', 'billion', 'mm', 'm'),
)
_VERBATIM = re.compile(
  r'https://'
  r'|\.(?:py|ipynb)$'
  r'|^page'
  r'|^\d+(?:-\d+|\s\d+)?$'
  r'|a\.m\.|p\.m\.'
  r'|^\d{4}[-/\s]\d{1,2}(?:[-/\s]\d{1,2})?$'
  r'|^\d{1,2}[-/\s]\d{1,2}[-/\s]\d{2,4}$'
  r'|^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$'
)
_TOLERANCE = 0.01


def score(answer: str | Sequence[str], kind: str, text: str) -> float:
  """How right a text is, from 0 to 1.

  Args:
    answer: what is right; the items of a List.
    kind: one of FORMATS. A number whose answer is none is judged as String.
    text: what a model said.
  """
  said = [text.strip()]
  if _CUE.search(text):
    after = _CUE.split(text, maxsplit=1)[1].strip()
    said.append(_CUE.sub('', after, count=1) if _CUE.match(after) else after)
  return max(_score(answer, kind, each.strip()) for each in said)


def _score(answer, kind, text) -> float:
  if kind == 'List':
    items = [answer] if isinstance(answer, str) else list(answer)
    return _list(items, text)
  if not isinstance(answer, str):
    answer = ', '.join(answer)
  if kind in ('Integer', 'Float'):
    true = _value(answer)
    if true is not None:
      found = _numbers(_bare(text))
      if kind == 'Integer':
        return float(true in found)
      wanted = (true / 100, true, true * 100)
      return float(any(_close(w, f) for w in wanted for f in found))
  return _string(answer, text)


def _bare(text: str) -> str:
  """Without what stands around a number."""
  text = text.lower().strip().replace(',', '')
  for unit in _UNITS:
    text = text.removesuffix(unit).strip()
  text = re.sub(r'^[\'"]|[\'"]$', '', text).strip()
  for sign in '$£%':
    text = text.strip(sign).strip()
  return text


def _value(text: str) -> float | None:
  """A text that is one number, as that."""
  bare = _bare(text)
  if len(bare) > _LONGEST or not _NUMBER.fullmatch(bare):
    return None
  return float(bare)


def _numbers(text: str) -> list[float]:
  found = _NUMBER.findall(text)
  return [float(number) for number in found if len(number) <= _LONGEST]


def _close(a: float, b: float) -> bool:
  """Within a hundredth of the larger."""
  return abs(a - b) <= _TOLERANCE * max(abs(a), abs(b))


def _words(text: str) -> list[str]:
  kept = ''.join(c for c in text.lower() if c not in string.punctuation)
  return _ARTICLE.sub(' ', kept).split()


def _string(answer: str, text: str) -> float:
  if _VERBATIM.search(answer):
    return float(answer in text)
  true, found = _words(answer), _words(text)
  shared = (collections.Counter(true) & collections.Counter(found)).total()
  return 2 * shared / (len(true) + len(found)) if shared else 0.0


def _kind(item: str) -> str:
  """What an item of a list looks like."""
  value = _value(item)
  if value is None:
    return 'String'
  return 'Integer' if value == int(value) and '%' not in item else 'Float'


def _list(items: list[str], text: str) -> float:
  plain, single = [], []
  for item in items:
    kind = _kind(item)
    if kind == 'String' and not _VERBATIM.search(item):
      plain.append(item)
    else:
      single.append((item, kind))
  if plain:
    single.append((' '.join(plain), 'String'))
  if not single:
    return 0.0
  return sum(_score(item, kind, text) for item, kind in single) / len(single)
