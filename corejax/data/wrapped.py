"""A source that stands around another one: a part of it, or a view of it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Wrapped:
  """What such sources share; `fingerprint` and `[index]` are each one's own.

  Attributes:
    source: has `cluster(index)` beside what an example.Source has.
  """

  source: Any

  @property
  def name(self) -> str:
    return self.source.name

  @property
  def split(self) -> str:
    return self.source.split

  def inner_index(self, index: int) -> int:
    """Which record of `source` it is."""
    return index

  def cluster(self, index: int) -> str:
    return self.source.cluster(self.inner_index(index))

  def __len__(self) -> int:
    return len(self.source)
