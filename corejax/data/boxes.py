"""How a box is to be answered: `--box_answers`, of whatever source.

Sources of box answers write shares of the picture, and so do prepared folders;
`Written` spells them as a model was trained to (corejax.grounding says how), so
that one folder serves every family. Pictures, evidence and questions are the
same.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from corejax import grounding
from corejax.data import example as example_lib
from corejax.data import recorded
from corejax.data import wrapped

AUTO = 'auto'  # the model family's own
CHOICES = (AUTO, *grounding.CONVENTIONS)
STORED = 'share'
SOURCES = ('refcocog',)  # whose answers are boxes

Resized = Callable[[tuple[int, int]], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Written(wrapped.Wrapped):
  """Another source, its boxes written one way; an example.Source itself.

  Its examples say `media_hw` in `meta`.

  Attributes:
    convention: one of grounding.CONVENTIONS.
    resized: of convention 'resized': from the (width, height) of a picture to
      that at which the model sees it. What it does follows from the checkpoint,
      hence it has no part in the fingerprint.
  """

  convention: str
  resized: Resized | None = None

  @property
  def fingerprint(self) -> str:
    return recorded.digest(self.source.fingerprint, self.convention)

  def __getitem__(self, index: int) -> example_lib.Example:
    """One example.

    Raises:
      Rejected: the model takes no picture of this shape.
    """
    example = self.source[index]
    height, width = example.meta['media_hw'][0]
    meta = {**example.meta, 'box_answers': self.convention}
    if self.resized is not None:
      width, height = self.resized((width, height))
      meta['box_hw'] = [height, width]
    answers = tuple(
      grounding.write_box(
        grounding.corners(box), self.convention, (width, height)
      )
      for box in example.evidence
    )
    return dataclasses.replace(example, answers=answers, meta=meta)


def of(source: Any) -> str:
  """How the boxes of a source are written; '' of one whose answers are none.

  Args:
    source: of sources.load.
  """
  while hasattr(source, 'source'):
    if isinstance(source, Written):
      return source.convention
    source = source.source
  return STORED if source.name in SOURCES else ''
