"""What was made last, kept up to a number of bytes."""

import collections
from collections.abc import Callable, Hashable
import threading
from typing import Any

import numpy as np


class Recent:
  """Arrays by key, the one used longest ago thrown out first.

  By bytes, not by number: of pictures some are one tile and some are thirteen.
  Threads may share it; two that ask for the same at once both make it.
  """

  def __init__(self, most_bytes: int):
    self._most = most_bytes
    self._used = 0
    self._kept: collections.OrderedDict[Hashable, np.ndarray] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def get(self, key: Hashable, make: Callable[[], Any]) -> np.ndarray:
    """What `make` gave for this key, read-only; made where it is not kept."""
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key]
    value = make()
    value.setflags(write=False)
    with self._lock:
      if key not in self._kept:
        self._kept[key] = value
        self._used += value.nbytes
      while self._used > self._most:
        _, dropped = self._kept.popitem(last=False)
        self._used -= dropped.nbytes
    return value
