"""Seeded mutation of bytes, text and JSON, and a loop that counts outcomes."""

import collections
from collections.abc import Callable, Sequence
import copy
import json
import random
import time
from typing import Any

from corejax import errors

# Values that have broken parsers: of the wrong type, at a limit, beyond it.
HOSTILE: tuple[Any, ...] = (
  *(None, True, False, 0, -1, 1, 2, 255, 65536, 1 << 31, -(1 << 63), 1 << 63),
  *(10**30, 10**400, 0.5, -0.0, 1e308, 1e-320),
  *(float('nan'), float('inf'), -float('inf')),
  *('', ' ', 'x', '0', '-1', 'a\nb', '\0', '\x1b[31m', '\u202e', '\ud800'),
  *('../x', '/etc/passwd', '.', 'x' * 5000, '٣', '['),
  *([], [[]], [0], [-1], ['x'], [None] * 9, {}, {'a': 1}, {'': []}),
)
_NUMBERS = (b'0', b'-1', b'4294967295', b'1e999', b'NaN', b'9' * 5000)
_SIZES = (1, 2, 4, 8)


def hostile_value(rng: random.Random) -> Any:
  """One of HOSTILE, a copy."""
  return copy.deepcopy(rng.choice(HOSTILE))


def mutate_bytes(
  rng: random.Random, data: bytes, pieces: Sequence[bytes] = ()
) -> bytes:
  """One to four edits of a valid input.

  Args:
    rng: where chance comes from.
    data: the input.
    pieces: what the format is made of, to be put in anywhere.
  """
  result = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    size = len(result)
    at = rng.randrange(size + 1)
    end = min(size, at + rng.choice((1, 1, 2, 8, 64, size)))
    edit = rng.randrange(9)
    if edit == 0 and at < size:
      result[at] ^= 1 << rng.randrange(8)
    elif edit == 1 and at < size:
      result[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif edit == 2:
      del result[at:end]
    elif edit == 3:
      result[at:at] = result[at:end][:4096]
    elif edit == 4:
      del result[at:]
    elif edit == 5:
      result[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif edit == 6:
      width = rng.choice(_SIZES)
      number = rng.choice((0, 1, -1, 1 << (8 * width - 1), rng.getrandbits(64)))
      order = rng.choice(('little', 'big'))
      number %= 1 << (8 * width)
      result[at : at + width] = number.to_bytes(width, order)
    elif edit == 7:
      result[at:end] = rng.choice(_NUMBERS)
    elif pieces:
      result[at : rng.choice((at, end))] = rng.choice(pieces)
  return bytes(result)


def mutate_text(
  rng: random.Random, text: str, pieces: Sequence[str] = ()
) -> str:
  """As `mutate_bytes`; halves of surrogate pairs may come out."""
  units = mutate_bytes(
    rng,
    text.encode('utf-8', 'surrogatepass'),
    [piece.encode('utf-8', 'surrogatepass') for piece in pieces],
  )
  return units.decode('utf-8', rng.choice(('replace', 'surrogateescape')))


def from_pieces(
  rng: random.Random, pieces: Sequence[str], most: int = 8
) -> str:
  """A text that a grammar's own pieces make, mostly a wrong one."""
  return ''.join(rng.choice(pieces) for _ in range(rng.randrange(most + 1)))


def mutate_json(rng: random.Random, value: Any) -> Any:
  """A copy with one to three of its parts replaced, doubled or taken out."""
  value = copy.deepcopy(value)
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    places: list[tuple[Any, Any]] = []
    _places(value, places)
    if not places:
      return hostile_value(rng)
    holder, key = rng.choice(places)
    edit = rng.randrange(5)
    if edit == 0:
      del holder[key]
    elif edit == 1 and isinstance(holder, list):
      holder.insert(key, copy.deepcopy(holder[key]))
    elif edit == 1:
      holder[str(rng.choice(HOSTILE))[:40]] = holder.pop(key)
    elif edit == 2:
      other, name = rng.choice(places)
      if name in other if isinstance(other, dict) else name < len(other):
        holder[key] = copy.deepcopy(other[name])
    else:
      holder[key] = hostile_value(rng)
  return value


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
  if isinstance(value, dict):
    items = list(value.items())
  elif isinstance(value, list):
    items = list(enumerate(value))
  else:
    return
  for key, inner in items:
    found.append((value, key))
    _places(inner, found)


def dumps(rng: random.Random, value: Any) -> bytes:
  """JSON text, now and then itself damaged."""
  data = json.dumps(value, ensure_ascii=rng.random() < 0.5)
  encoded = data.encode('utf-8', 'surrogatepass')
  return mutate_bytes(rng, encoded) if rng.random() < 0.3 else encoded


def count_outcomes(
  name: str,
  make: Callable[[random.Random], Any],
  parse: Callable[[Any], Any],
  count: int,
  *,
  allowed: tuple[type[Exception], ...] = (errors.UserError,),
  slowest_s: float = 10.0,
  seed: int = 0,
) -> collections.Counter[str]:
  """Parses `count` inputs; only the documented errors may come out.

  Args:
    name: of the parser, for the printed line.
    make: draws an input.
    parse: the parser; an outcome that it returns as a str is counted by name.
    count: how many inputs.
    allowed: the documented errors; the reasons of rejections are counted.
    slowest_s: no input may take longer, CPU seconds.
    seed: of the inputs.

  Returns:
    How often each outcome came.
  """
  outcomes: collections.Counter[str] = collections.Counter()
  rng = random.Random(f'{seed} {name}')
  begin, slowest = time.process_time(), 0.0
  for number in range(count):
    given = make(rng)
    start = time.process_time()
    try:
      result = parse(given)
      outcome = result if isinstance(result, str) else 'accepted'
    except allowed as e:
      assert str(e).isprintable() and len(str(e)) < 4200, ascii(given)[:500]
      outcome = type(e).__name__
      if isinstance(e, errors.Rejected):
        outcome = str(e.reason)
    except Exception as e:
      e.add_note(
        f'{name}, input {number} of seed {seed}: {ascii(given)[:2000]}'
      )
      raise
    outcomes[outcome] += 1
    slowest = max(slowest, time.process_time() - start)
    assert slowest < slowest_s, f'{name}, input {number}: {ascii(given)[:500]}'
  told = ', '.join(f'{outcome} {n}' for outcome, n in outcomes.most_common())
  print(
    f'{name:18} {count:>7} inputs, {time.process_time() - begin:5.1f} CPU s, '
    f'slowest {1000 * slowest:.1f} ms: {told}'
  )
  return outcomes
