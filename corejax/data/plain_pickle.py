"""Pickles of plain data, read without any means of running code.

REFER's annotation files are pickles that Python 2 wrote. `pickle` would call
whatever such a file names, and an `Unpickler` that refuses names still lets a
few bytes ask for gigabytes (a memo of four billion entries). So the opcodes of
lists, dictionaries, texts and numbers are carried out here, each of which costs
no more memory than its bytes; any other is refused by name.

    (lp0  (dp1  Vref_id  I42  s  a.     ->  [{'ref_id': 42}]
"""

from collections.abc import Callable
import pickletools
import struct
from typing import Any

_MARK = object()
_LINE_MOST = 1 << 20  # bytes of an argument that ends with its line
_LONG_MOST = 64  # bytes of an integer: more takes quadratic time to print


class NotPlain(ValueError):
  """It is no pickle, or one of more than plain data."""


_NAMES = {code.code.encode('latin-1')[0]: code for code in pickletools.opcodes}


class _Machine:
  """The stack of one pickle.

  Attributes:
    stack: as pickle's, marks included.
    memo: what PUT stored.
  """

  def __init__(self, data: bytes):
    self.data = data
    self.at = 0
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def take(self, count: int) -> bytes:
    end = self.at + count
    if end > len(self.data):
      raise NotPlain(f'ends within the argument at byte {self.at}')
    found = self.data[self.at : end]
    self.at = end
    return found

  def line(self) -> bytes:
    end = self.data.find(b'\n', self.at, self.at + _LINE_MOST)
    if end < 0:
      raise NotPlain(f'no line ends after byte {self.at}')
    found = self.data[self.at : end]
    self.at = end + 1
    return found

  def unsigned(self, width: int) -> int:
    return int.from_bytes(self.take(width), 'little')

  def text(self, width: int, encoding: str = 'utf-8') -> None:
    raw = self.take(self.unsigned(width))
    self.stack.append(raw.decode(encoding, 'surrogateescape'))

  def pop(self) -> Any:
    if not self.stack or self.stack[-1] is _MARK:
      raise NotPlain(f'nothing to take at byte {self.at}')
    return self.stack.pop()

  def top(self, kind: type) -> Any:
    if not self.stack or not isinstance(self.stack[-1], kind):
      raise NotPlain(f'no {kind.__name__} to fill at byte {self.at}')
    return self.stack[-1]

  def to_mark(self) -> list[Any]:
    for depth in range(len(self.stack) - 1, -1, -1):
      if self.stack[depth] is _MARK:
        found = self.stack[depth + 1 :]
        del self.stack[depth:]
        return found
    raise NotPlain(f'no mark before byte {self.at}')

  def set_items(self, items: list[Any], into: dict) -> None:
    if len(items) % 2:
      raise NotPlain(f'a key without a value at byte {self.at}')
    for key, value in zip(items[::2], items[1::2]):
      if not isinstance(key, (str, int, float, type(None))):
        raise NotPlain(f'a key of type {type(key).__name__}')
      into[key] = value

  def get(self, index: int) -> None:
    if index not in self.memo:
      raise NotPlain(f'nothing is stored as {index}, asked for at {self.at}')
    self.stack.append(self.memo[index])

  def put(self, index: int) -> None:
    if not self.stack or self.stack[-1] is _MARK:
      raise NotPlain(f'nothing to store at byte {self.at}')
    self.memo[index] = self.stack[-1]

  def get_line(self) -> None:
    self.get(int(self.line()))

  def put_line(self) -> None:
    self.put(int(self.line()))

  def append(self) -> None:
    value = self.pop()
    self.top(list).append(value)

  def appends(self) -> None:
    values = self.to_mark()
    self.top(list).extend(values)

  def set_item(self) -> None:
    value = self.pop()
    key = self.pop()
    self.set_items([key, value], self.top(dict))

  def set_many(self) -> None:
    items = self.to_mark()
    self.set_items(items, self.top(dict))

  def dictionary(self) -> None:
    items = self.to_mark()
    made: dict[Any, Any] = {}
    self.set_items(items, made)
    self.stack.append(made)

  def several(self, count: int) -> None:
    found = [self.pop() for _ in range(count)]
    self.stack.append(found[::-1])

  def number(self, raw: bytes) -> None:
    """INT and LONG: digits, with L behind them in Python 2; 00 and 01."""
    if raw in (b'00', b'01'):
      self.stack.append(raw == b'01')
      return
    digits = raw.removesuffix(b'L')
    if len(digits) > 2 * _LONG_MOST:
      raise NotPlain(f'an integer of {len(digits)} digits')
    self.stack.append(int(digits))

  def long(self, width: int) -> None:
    size = self.unsigned(width)
    if size > _LONG_MOST:
      raise NotPlain(f'an integer of {size} bytes')
    self.stack.append(int.from_bytes(self.take(size), 'little', signed=True))

  def escaped(self) -> None:
    """UNICODE: Latin-1 with \\uXXXX where that is not enough."""
    self.stack.append(self.line().decode('raw_unicode_escape', 'replace'))

  def quoted(self) -> None:
    """STRING: a Python 2 text in quotes, with backslash escapes."""
    raw = self.line().strip()
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
      raise NotPlain(f'a text without quotes before byte {self.at}')
    text = raw[1:-1].decode('latin-1').encode('latin-1', 'backslashreplace')
    plain = text.decode('unicode_escape').encode('latin-1')
    self.stack.append(plain.decode('utf-8', 'surrogateescape'))


def _operations() -> dict[int, Callable[[_Machine], Any]]:
  """What each opcode does; a tuple becomes a list, as in JSON."""

  def push(value):
    return lambda m: m.stack.append(value)

  table: dict[str, Callable[[_Machine], Any]] = {
    'MARK': push(_MARK),
    'PROTO': lambda m: m.take(1),
    'FRAME': lambda m: m.take(8),
    'POP': _Machine.pop,
    'POP_MARK': _Machine.to_mark,
    'NONE': push(None),
    'NEWTRUE': push(True),
    'NEWFALSE': push(False),
    'INT': lambda m: m.number(m.line()),
    'LONG': lambda m: m.number(m.line()),
    'BININT': lambda m: m.stack.append(struct.unpack('<i', m.take(4))[0]),
    'BININT1': lambda m: m.stack.append(m.unsigned(1)),
    'BININT2': lambda m: m.stack.append(m.unsigned(2)),
    'LONG1': lambda m: m.long(1),
    'LONG4': lambda m: m.long(4),
    'FLOAT': lambda m: m.stack.append(float(m.line())),
    'BINFLOAT': lambda m: m.stack.append(struct.unpack('>d', m.take(8))[0]),
    'UNICODE': _Machine.escaped,
    'BINUNICODE': lambda m: m.text(4),
    'SHORT_BINUNICODE': lambda m: m.text(1),
    'BINUNICODE8': lambda m: m.text(8),
    'STRING': _Machine.quoted,
    'BINSTRING': lambda m: m.text(4),
    'SHORT_BINSTRING': lambda m: m.text(1),
    'EMPTY_LIST': lambda m: m.stack.append([]),
    'EMPTY_DICT': lambda m: m.stack.append({}),
    'EMPTY_TUPLE': lambda m: m.stack.append([]),
    'LIST': lambda m: m.stack.append(m.to_mark()),
    'TUPLE': lambda m: m.stack.append(m.to_mark()),
    'TUPLE1': lambda m: m.several(1),
    'TUPLE2': lambda m: m.several(2),
    'TUPLE3': lambda m: m.several(3),
    'DICT': _Machine.dictionary,
    'APPEND': _Machine.append,
    'APPENDS': _Machine.appends,
    'SETITEM': _Machine.set_item,
    'SETITEMS': _Machine.set_many,
    'GET': _Machine.get_line,
    'BINGET': lambda m: m.get(m.unsigned(1)),
    'LONG_BINGET': lambda m: m.get(m.unsigned(4)),
    'PUT': _Machine.put_line,
    'BINPUT': lambda m: m.put(m.unsigned(1)),
    'LONG_BINPUT': lambda m: m.put(m.unsigned(4)),
    'MEMOIZE': lambda m: m.put(len(m.memo)),
  }
  return {
    number: table[code.name]
    for number, code in _NAMES.items()
    if code.name in table
  }


_OPERATIONS = _operations()
_STOP = ord('.')


def loads(data: bytes) -> Any:
  """What a pickle of plain data holds.

  Texts of Python 2 (bytes) are taken as UTF-8.

  Args:
    data: a whole pickle, of any protocol.

  Raises:
    NotPlain: no pickle, damaged, or with an opcode that makes or calls
      anything but lists, dictionaries, texts and numbers.
  """
  machine = _Machine(data)
  size, operations = len(data), _OPERATIONS
  while machine.at < size:
    code = data[machine.at]
    machine.at += 1
    if code == _STOP:
      return machine.pop()
    operation = operations.get(code)
    if operation is None:
      known = _NAMES.get(code)
      what = known.name if known else f'byte {code:#04x}'
      raise NotPlain(f'{what} at byte {machine.at - 1} makes no plain data')
    try:
      operation(machine)
    except NotPlain:
      raise
    except ValueError as e:  # digits that are none, escapes that are none
      raise NotPlain(f'before byte {machine.at}: {e}') from e
  raise NotPlain(f'ends after {size} bytes without a stop')
