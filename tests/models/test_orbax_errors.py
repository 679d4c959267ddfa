"""What Orbax raises, as it reaches the user."""

import logging

import pytest

from corejax import errors
from corejax.models import orbax_errors


@pytest.mark.parametrize('kind', [OSError, ValueError, Exception])
def test_what_comes_from_outside_is_one_line(kind):
  before = logging.getLogger('absl').level
  with pytest.raises(errors.UserError) as caught:
    with orbax_errors.told(lambda why: f'copy: {why}; convert it again'):
      raise kind('not a\n  number')
  assert str(caught.value) == 'copy: not a number; convert it again'
  assert isinstance(caught.value.__cause__, kind)
  assert logging.getLogger('absl').level == before


@pytest.mark.parametrize('kind', [TypeError, RuntimeError, KeyboardInterrupt])
def test_what_is_a_bug_goes_on_up(kind):
  with pytest.raises(kind, match='mine'), orbax_errors.told(str):
    raise kind('mine')
