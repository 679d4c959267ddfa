"""Short reprs: what an object holds, not its numbers.

Inputs(tokens_BT=int32[8, 128], positions_BT=int32[8, 128], ...)
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

_LONGEST = 60


def fields(self: Any) -> str:
  """A `__repr__` for dataclasses that hold arrays.

  Fields that are None are left out. Inside a jax transformation fields may
  hold anything; what has a dtype and a shape is shown by them.
  """
  parts = [
    f'{field.name}={value(getattr(self, field.name))}'
    for field in dataclasses.fields(self)
    if getattr(self, field.name) is not None
  ]
  return f'{type(self).__name__}({", ".join(parts)})'


def value(item: Any) -> str:
  """One field: an array as dtype[shape], anything long cut short."""
  shape, dtype = getattr(item, 'shape', None), getattr(item, 'dtype', None)
  if shape is not None and dtype is not None:
    return f'{dtype}{list(shape)}'
  if isinstance(item, bytes):
    return f'<{len(item)} bytes>'
  if isinstance(item, Mapping):
    inside = ', '.join(f'{key}: {value(v)}' for key, v in item.items())
    return f'{{{inside}}}'
  # A dataclass of ours is short already, and of use only if whole.
  return repr(item) if dataclasses.is_dataclass(item) else shorten(repr(item))


def shorten(text: str) -> str:
  """The text, cut where it is longer than a line can bear."""
  return text if len(text) <= _LONGEST else f'{text[: _LONGEST - 3]}...'


def count(n: int, what: str) -> str:
  """`1 layer`, `2 layers`; a noun whose plural takes an s."""
  return f'{n} {what}' if n == 1 else f'{n} {what}s'


def listed(parts: Sequence[str]) -> str:
  """`a, b and c`."""
  return ' and '.join([', '.join(parts[:-1]), parts[-1]][len(parts) == 1 :])
