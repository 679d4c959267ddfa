"""What was made last: by bytes, in order of use."""

import numpy as np
import pytest

from corejax.models import recent


def _made(log, key, size=100):
  def make():
    log.append(key)
    return np.zeros(size, np.uint8)

  return make


def test_what_was_used_longest_ago_goes_first():
  kept, log = recent.Recent(250), []
  for key in 'ababcab':
    kept.get(key, _made(log, key))
  # c threw a out, and a then b.
  assert ''.join(log) == 'abcab'


def test_one_that_is_too_large_is_given_and_not_kept():
  kept, log = recent.Recent(250), []
  assert kept.get('a', _made(log, 'a', 300)).nbytes == 300
  kept.get('b', _made(log, 'b'))
  kept.get('a', _made(log, 'a', 300))
  kept.get('b', _made(log, 'b'))
  assert ''.join(log) == 'abab'


def test_what_is_kept_cannot_be_written():
  kept = recent.Recent(250)
  with pytest.raises(ValueError, match='read-only'):
    kept.get('a', lambda: np.zeros(3))[0] = 1
