"""Pickles of plain data: the same as pickle's, and nothing that runs."""

import collections
import json
import os
import pickle

import pytest

from corejax.data import plain_pickle

_VALUE = [
  {
    'n': [1, -7, 255, 65535, 2**31, 10**15, -(2**70), 2.5, -0.0],
    'b': [None, True, False],
    't': {
      'one': (1,),
      'two': (1, 2),
      'three': (1, 2, 3),
      'more': tuple('abcd'),
    },
    's': ['', 'a', 'é', '\n', '"\'\\', '\u4e2d', 'x' * 300],
  },
  [],
  {},
  (),
]


def _lists(value):
  return json.loads(json.dumps(value))


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_pickle_writes(protocol):
  found = plain_pickle.loads(pickle.dumps(_VALUE, protocol))
  assert _lists(found) == _lists(_VALUE)
  shared = ['x' * 20] * 3
  again = plain_pickle.loads(pickle.dumps([shared, shared], protocol))
  assert again == [shared, shared] and again[0] is again[1]


@pytest.mark.parametrize(
  'data, value',
  [
    # Python 2's str, in text and in binary, and its long.
    (b"S'caf\\xc3\\xa9'\np0\n.", 'café'),
    (b'S"it\'s"\n.', "it's"),
    (b'U\x05caf\xc3\xa9.', 'café'),
    (b'T\x03\x00\x00\x00abc.', 'abc'),
    (b'L123L\n.', 123),
    (b'I01\n.', True),
    (b'Vcaf\xe9 \\u4e2d\n.', 'café 中'),
    (b'(I1\nI2\n0I3\nl.', [1, 3]),
  ],
)
def test_what_python_2_wrote(data, value):
  assert plain_pickle.loads(data) == value
  assert pickle.loads(data, encoding='utf-8') == value


class _Caller:
  def __reduce__(self):
    return os.system, ('true',)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
  'value', [_Caller(), print, collections.OrderedDict(a=1), {1, 2}, b'raw']
)
def test_nothing_else_is_made(protocol, value):
  with pytest.raises(plain_pickle.NotPlain, match='makes no plain data'):
    plain_pickle.loads(pickle.dumps(value, protocol))


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'ends after 0 bytes'),
    (b'(', 'ends after 1 bytes'),
    (b'.', 'nothing to take'),
    (b'(.', 'nothing to take'),
    (b'l.', 'no mark'),
    (b'(I1\nd.', 'a key without a value'),
    (b'((lI1\nd.', 'a key of type list'),
    (b'I1\nI2\na.', 'no list to fill'),
    (b'(lI1\nI2\ns.', 'no dict to fill'),
    (b'g7\n.', 'nothing is stored as 7'),
    (b'p7\n.', 'nothing to store'),
    (b'Ix\n.', 'invalid literal'),
    (b'Fx\n.', 'could not convert'),
    (b'I' + b'9' * 5000 + b'\n.', 'an integer of 5000 digits'),
    (b'\x8b\xff\xff\xff\x7f.', 'an integer of 2147483647 bytes'),
    (b'X\xff\xff\xff\xff', 'ends within the argument'),
    (b'V' + b'x' * 100, 'no line ends'),
    (b'Sx\n.', 'a text without quotes'),
    (b"S'\\x'\n.", 'before byte'),
    (b'\xff.', 'byte 0xff at byte 0'),
  ],
)
def test_damage(data, message):
  with pytest.raises(plain_pickle.NotPlain, match=message):
    plain_pickle.loads(data)


def test_a_memo_of_billions_costs_nothing():
  """Python's own reader makes room for all numbers below."""
  assert plain_pickle.loads(b'Vx\np4000000000\n0g4000000000\n.') == 'x'
  assert plain_pickle.loads(b'Vx\nr\xff\xff\xff\xff.') == 'x'
