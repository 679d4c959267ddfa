"""The host's work ahead of the device's: order, errors, ends."""

import threading
import time

import pytest

from corejax import errors
from corejax.experiments import pipeline

LONG = 30.0  # seconds that nothing here may wait for


def workers_alive() -> list[str]:
  names = [thread.name for thread in threading.enumerate()]
  return [name for name in names if name.startswith('ahead')]


def test_results_come_in_the_items_order():
  def slow_first(item, closing):
    time.sleep(0.05 if item % 3 == 0 else 0)
    return 10 * item

  with pipeline.ahead(slow_first, range(20), workers=4) as results:
    assert list(results) == [10 * item for item in range(20)]
  assert not workers_alive()


def test_it_is_done_in_threads_while_the_main_one_is_busy():
  done = []

  def note(item, closing):
    done.append((item, threading.current_thread()))
    return item

  with pipeline.ahead(note, range(9), workers=2) as results:
    next(results)
    end = time.monotonic() + LONG
    while len(done) < 3 and time.monotonic() < end:
      time.sleep(0.01)
    time.sleep(0.1)
    # Those at work and those waiting: workers + 1, one of which was taken.
    assert [item for item, _ in done] == [0, 1, 2]
  assert all(thread is not threading.main_thread() for _, thread in done)


@pytest.mark.parametrize('error', [errors.UserError('x'), RuntimeError('bug')])
def test_an_error_comes_up_as_itself_in_its_place(error):
  def fail(item, closing):
    if item == 2:
      raise error
    return item

  seen = []
  with pytest.raises(type(error)) as caught:
    with pipeline.ahead(fail, range(9), workers=3) as results:
      for result in results:
        seen.append(result)
  assert caught.value is error and seen == [0, 1]
  assert not workers_alive()


def test_leaving_early_asks_the_workers_to_end_and_waits_for_them():
  begun, ended = [], []

  def until_closing(item, closing):
    begun.append(item)
    if item:
      assert closing.wait(LONG)
      ended.append(item)
    return item

  start = time.monotonic()
  with pipeline.ahead(until_closing, range(100), workers=2) as results:
    next(results)
  assert time.monotonic() - start < LONG / 2
  # Which of two workers comes first is theirs.
  assert sorted(ended) == sorted(begun)[1:] and len(begun) <= 3
  assert not workers_alive()


def test_without_items():
  with pipeline.ahead(lambda item, closing: item, []) as results:
    assert list(results) == []
