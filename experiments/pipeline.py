"""The host's work, some batches ahead of the device's.

threads   read 1 | read 2 | read 3 | read 4 ..
device             batch 1 | batch 2 | batch 3 ..
main      start 1  start 2, fetch 1  start 3, fetch 2 ..
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import os
import threading
from typing import TypeVar

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')

# More threads than this wait for each other: decoding runs in parallel, the
# Python between does not.
_MOST_WORKERS = 8


@contextlib.contextmanager
def ahead(
  function: Callable[[_Item, threading.Event], _Result],
  items: Iterable[_Item],
  workers: int = 0,
) -> Iterator[Iterator[_Result]]:
  """Results of function(item, closing) in the items' order, made in threads.

  At most workers + 1 results are made or waiting. What the function raises
  comes up where its result would have come. No thread outlives the context:
  on leaving it `closing` is set, which asks the function to return early (what
  it then returns or raises is dropped).

  Args:
    function: called in a thread, with an item and `closing`.
    items: what to call it with.
    workers: threads; 0 is one a core, 8 at most.
  """
  workers = workers or min(_MOST_WORKERS, os.cpu_count() or 1)
  closing = threading.Event()
  pool = concurrent.futures.ThreadPoolExecutor(workers, 'ahead')

  def results() -> Iterator[_Result]:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item, closing))
      if len(waiting) > workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()

  try:
    yield results()
  finally:
    closing.set()
    pool.shutdown(cancel_futures=True)
