"""Fields of annotation records: there, of the right type, sane, or rejected.

Every reader takes its records apart with these, so that the same defect has
the same reason whatever the data set. Boxes and counts are bounded: beyond
`MOST` floats lose whole pixels.
"""

import ast
from collections.abc import Callable, Iterator
import json
import pathlib
import reprlib
from typing import Any

from corejax import errors
from corejax.data import example as example_lib

MOST = 1e9  # pixels, points, frames: no picture, page or video has so many
_LONGEST_LITERAL = 100_000  # characters that are read as a Python literal

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlong = 30
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4


def shown(value: Any) -> str:
  """A value out of a file for a message: never long, whatever it holds."""
  if isinstance(value, int) and not isinstance(value, bool):
    # Python itself refuses to print an integer of more than 4300 digits.
    return str(value) if abs(value) < 10**30 else 'an integer beyond 1e30'
  return _SHORT.repr(value)


def bad(detail: str) -> errors.Rejected:
  """What a record is rejected with that does not say what it must."""
  return errors.Rejected(errors.Reason.BAD_RECORD, detail)


def bad_box(detail: str) -> errors.Rejected:
  """What a record is rejected with whose box is none."""
  return errors.Rejected(errors.Reason.BAD_BOX, detail)


def get(raw: Any, name: str, kind: type) -> Any:
  """raw[name], which must be there and of this type (bool is no int).

  Raises:
    Rejected: BAD_RECORD.
  """
  if not isinstance(raw, dict) or name not in raw:
    raise bad(f'no field {name!r}')
  value = raw[name]
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise bad(f'{name}={shown(value)} is not of type {kind.__name__}')
  return value


def integer(value: Any, name: str) -> int:
  """The value, which must be an integer.

  Raises:
    Rejected: BAD_RECORD.
  """
  if isinstance(value, bool) or not isinstance(value, int):
    raise bad(f'{name}={shown(value)} is not an integer')
  return value


def count(raw: Any, name: str, least: int = 0) -> int:
  """raw[name], an integer from `least` to MOST.

  Raises:
    Rejected: BAD_RECORD.
  """
  value = get(raw, name, int)
  if not least <= value <= MOST:
    raise bad(f'{name}={shown(value)} is not in {least}..{MOST:.0e}')
  return value


def identifier(raw: Any, name: str) -> str:
  """raw[name], an integer or a short text, as text.

  Raises:
    Rejected: BAD_RECORD.
  """
  value = raw.get(name) if isinstance(raw, dict) else None
  if isinstance(value, int) and not isinstance(value, bool):
    return str(count(raw, name))
  text_ = get(raw, name, str)
  if not 0 < len(text_) <= 200 or not example_lib.is_text(text_):
    raise bad(f'{name}={shown(text_)} is no name')
  return text_


def text(raw: Any, name: str) -> str:
  """raw[name], a text with something in it, stripped.

  Raises:
    Rejected: BAD_RECORD.
  """
  value = get(raw, name, str).strip()
  if not value:
    raise bad(f'{name} is empty')
  return value


def is_finite(value: Any) -> bool:
  """Is it a number of reasonable size?"""
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and -MOST < value < MOST  # nan is not
  )


def numbers(raw: Any, name: str, size: int) -> list[float]:
  """raw[name], a list of so many finite numbers.

  Raises:
    Rejected: BAD_RECORD if there is no list, BAD_BOX if it holds other things.
  """
  values = get(raw, name, list)
  if len(values) != size or not all(map(is_finite, values)):
    raise bad_box(f'{name}={shown(values)} is not {size} finite numbers')
  return [float(v) for v in values]


def shares(
  corners: tuple[float, float, float, float],
  size: tuple[float, float],
  where: str,
  tolerance: float,
  unit: str = 'pixels',
) -> tuple[float, float, float, float]:
  """A box as shares of what it lies on.

  Args:
    corners: x0, y0, x1, y1 in units from the top left.
    size: (width, height) in the same units.
    where: for messages, as 'on page 3'.
    tolerance: units by which the box may reach beyond; there it is cut off.
    unit: what they are called.

  Raises:
    Rejected: BAD_BOX: no area, empty, inverted, or beyond the edge.
  """
  (x0, y0, x1, y1), (width, height) = corners, size

  def refuse(why):
    return bad_box(
      f'box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) {where} of {width:g}x{height:g} '
      f'{unit} {why}'
    )

  if not (width > 0 and height > 0):
    raise refuse('lies on something without area')
  if not (x0 < x1 and y0 < y1):
    raise refuse('is empty or inverted')
  over = max(-x0, -y0, x1 - width, y1 - height)
  if over > tolerance:
    raise refuse(f'reaches {over:g} {unit} beyond the edge')
  x0, x1 = max(x0, 0.0) / width, min(x1, width) / width
  y0, y1 = max(y0, 0.0) / height, min(y1, height) / height
  if not (x0 < x1 and y0 < y1):
    raise refuse('has no part inside')
  return x0, y0, x1, y1


def literal_list(value: str) -> list[Any] | None:
  """A text that spells a Python list literal, as that list; None if not."""
  if not value.lstrip().startswith('[') or len(value) > _LONGEST_LITERAL:
    return None
  try:
    found = ast.literal_eval(value.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None
  return found if isinstance(found, list) else None


def strings(value: str) -> list[str]:
  """What a text holds that may be a Python list literal of strings."""
  found = literal_list(value)
  if found is None:
    return [value]
  return [part if isinstance(part, str) else shown(part) for part in found]


def is_file_name(name: str) -> bool:
  """Can a file of a folder have this name?"""
  return (
    name not in ('', '.', '..')
    and name == pathlib.PurePosixPath(name).name
    and not any(c in '\\' or c < ' ' for c in name)
    and example_lib.is_text(name)
    and len(name.encode()) <= 255
  )


def file_name(raw: Any, name: str) -> str:
  """raw[name], the bare name of a file.

  Raises:
    Rejected: BAD_RECORD.
  """
  value = get(raw, name, str)
  if not is_file_name(value):
    raise bad(f'{name}={shown(value)} is not a bare file name')
  return value


def is_relative_path(value: str) -> bool:
  """Does it name a file below a folder, by plain names joined by /?"""
  return len(value) <= 1000 and all(map(is_file_name, value.split('/')))


def load_json(content: bytes) -> Any:
  """What a JSON text says.

  Raises:
    ValueError: it is none; one line on where.
  """
  try:
    return json.loads(content)
  except RecursionError as e:
    raise ValueError('nested too deeply') from e


def lines(content: bytes) -> Iterator[tuple[int, bytes]]:
  """(number from 1, line) of the lines of a .jsonl file that hold something."""
  rows = content.removeprefix(b'\xef\xbb\xbf').split(b'\n')
  for number, line in enumerate(rows, 1):
    if line.strip():
      yield number, line


def fault_of(
  read: Callable[..., Any], *args: Any
) -> tuple[Any, errors.Rejected | None]:
  """(what `read` returns, None), or (None, why it rejected)."""
  try:
    return read(*args), None
  except errors.Rejected as e:
    return None, e
