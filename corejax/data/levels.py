"""How finely evidence is marked: by boxes, or by whole pages and frames.

Some sets mark rectangles, some name pages, some both (meta['evidence_level'] is
'region', 'page' or 'none'; a video's boxes are regions). `--evidence`:

best    what is marked
boxes   rectangles alone; a record that names pages only is rejected
whole   whole pages and frames for all, so that sets compare
"""

from collections.abc import Sequence
import dataclasses

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import recorded
from corejax.data import wrapped

CHOICES = ('best', 'boxes', 'whole')


def whole(
  boxes: Sequence[example_lib.Box], without: Sequence[int] = ()
) -> tuple[example_lib.Box, ...]:
  """All of every picture that has a box, once, but for pictures `without`."""
  shown = sorted({box.media for box in boxes} - set(without))
  return tuple(example_lib.Box(media, 0.0, 0.0, 1.0, 1.0) for media in shown)


@dataclasses.dataclass(frozen=True)
class Level(wrapped.Wrapped):
  """Another source, its evidence taken one way; an example.Source itself.

  Attributes:
    evidence: 'boxes' or 'whole'.
  """

  evidence: str

  @property
  def fingerprint(self) -> str:
    return recorded.digest(self.source.fingerprint, self.evidence)

  def __getitem__(self, index: int) -> example_lib.Example:
    example = self.source[index]
    if self.evidence == 'boxes':
      if example.meta.get('evidence_level', 'region') == 'page':
        raise errors.Rejected(
          errors.Reason.NO_EVIDENCE,
          f'{example.id}: pages are named, no box; --evidence=best takes them',
        )
      return example
    shown = {box.media for box in example.evidence}
    return dataclasses.replace(
      example,
      evidence=whole(example.evidence),
      distractors=whole(example.distractors, tuple(shown)),
    )
