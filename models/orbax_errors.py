"""What Orbax fails at, as a UserError in one line."""

from collections.abc import Callable, Iterator
import contextlib
import logging

from corejax import errors

_LONGEST = 300  # of Orbax's own words


@contextlib.contextmanager
def told(failed: Callable[[str], str]) -> Iterator[None]:
  """Around reading or writing: errors from outside become a UserError.

  Those are OSError, ValueError, and, of a damaged array, a bare Exception,
  which no narrower `except` can name; any other class goes on up.

  Args:
    failed: from Orbax's own words to the message.

  Raises:
    UserError: Orbax failed.
  """
  log = logging.getLogger('absl')
  before = log.level
  log.setLevel(logging.CRITICAL)  # orbax also logs what it raises, at length
  try:
    yield
  except Exception as e:
    if type(e) is not Exception and not isinstance(e, OSError | ValueError):
      raise
    raise errors.UserError(failed(' '.join(str(e).split())[:_LONGEST])) from e
  finally:
    log.setLevel(before)
