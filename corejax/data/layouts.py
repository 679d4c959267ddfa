"""A document's layouts: the paragraphs, tables and figures that can be found.

What `experiments.retrieve --layouts` ranks. Sources that know them have
`layouts(index)` and `layouts_identity()`; wrappers pass the index on:

    First, Level, Pictures   the same record of the source within
    Fold                     the record that this one is there
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from corejax import errors
from corejax import recall
from corejax.data import example as example_lib


@dataclasses.dataclass(frozen=True)
class Layouts:
  """The candidates for one question, on all pages of its document.

  Attributes:
    boxes: of the candidates, in the document's order; `media` is the page, from
      0, since the document is shown whole.
    sizes: page -> (width, height) in points, of every page with a candidate or
      with evidence; areas are in points, as the benchmark's are.
    left_out: candidates that are none (no box, off their page), by reason.
  """

  boxes: tuple[example_lib.Box, ...]
  sizes: Mapping[int, tuple[float, float]]
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def placed(
    self, boxes: Sequence[example_lib.Box]
  ) -> tuple[recall.Layout, ...]:
    """Boxes as rectangles in points.

    Args:
      boxes: on pages that `sizes` has.
    """
    found = []
    for box in boxes:
      width, height = self.sizes[box.media]
      corners = (
        box.x0 * width,
        box.y0 * height,
        box.x1 * width,
        box.y1 * height,
      )
      found.append(recall.Layout(box.media, corners))
    return tuple(found)


def _source(source: Any) -> Any:
  """What knows the layouts, below folds and limits.

  Raises:
    UserError: nothing does.
  """
  while not hasattr(source, 'layouts') and hasattr(source, 'source'):
    source = source.source
  if not hasattr(source, 'layouts'):
    raise errors.UserError(
      f'--layouts: {source.name} does not say which layouts its documents have '
      '(nor does a folder made ready); the raw files of mmdocir do, and the '
      'scenes, whose layouts are the cells of their grid'
    )
  return source


def identity(source: example_lib.Source) -> Sequence[object]:
  """What fingerprints cover of the layouts.

  Raises:
    UserError: the source has none, or a file lacks.
  """
  return _source(source).layouts_identity()


def of(source: Any, index: int) -> Layouts:
  """The candidates for the record at this index.

  Raises:
    UserError: the source has none.
    Rejected: its document has none that could be found.
  """
  inner = _source(source)
  while source is not inner:
    index = source.inner_index(index)
    source = source.source
  return inner.layouts(index)
