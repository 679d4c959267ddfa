"""One question about some pictures, with the boxes in which its answer lies."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Protocol

from corejax import describe
from corejax import errors


def is_text(text: str) -> bool:
  """Can it be encoded? Half a surrogate pair, which JSON may spell, cannot."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


# What corejax.scoring has a rule for.
SCORERS = (
  'exact',
  'text',
  'anls',
  'integer',
  'number',
  'list',
  'choice',
  'boolean',
  'unanswerable',
  'iou50',
  'docqa',
  'contains',
  'frames',
  'tiou',
)


@dataclasses.dataclass(frozen=True)
class Box:
  """A rectangle on one picture.

  Attributes:
    media: index into the example's media.
    x0, y0, x1, y1: corners as shares of the picture's width and height, origin
      at the top left, 0 <= x0 < x1 <= 1 and likewise y.
  """

  media: int
  x0: float
  y0: float
  x1: float
  y1: float

  def __post_init__(self):
    corners = (self.x0, self.y0, self.x1, self.y1)
    if not all(math.isfinite(c) for c in corners):
      raise errors.Rejected(errors.Reason.BAD_BOX, f'{self} is not finite')
    if not (self.x0 < self.x1 and self.y0 < self.y1):
      raise errors.Rejected(
        errors.Reason.BAD_BOX, f'{self} is empty or inverted'
      )
    if min(corners) < 0 or max(corners) > 1:
      raise errors.Rejected(
        errors.Reason.BAD_BOX, f'{self} reaches beyond the picture'
      )

  def __str__(self) -> str:
    return (
      f'box ({self.x0:.4g}, {self.y0:.4g}, {self.x1:.4g}, {self.y1:.4g}) of '
      f'media {self.media}'
    )


@dataclasses.dataclass(frozen=True)
class Clip:
  """A run of an example's media that are frames of one video.

  Attributes:
    first: index of the first frame among the media.
    seconds: when each frame is shown in the video, ascending; there are as many
      frames as seconds.
  """

  first: int
  seconds: tuple[float, ...]

  def __post_init__(self):
    if not self.seconds:
      raise errors.Rejected(errors.Reason.BAD_RECORD, f'{self}: no frame')
    if not all(math.isfinite(s) for s in self.seconds) or any(
      later <= earlier for earlier, later in zip(self.seconds, self.seconds[1:])
    ):
      raise errors.Rejected(
        errors.Reason.BAD_RECORD, f'{self}: its seconds do not ascend'
      )

  @property
  def media(self) -> range:
    """Indices of its frames."""
    return range(self.first, self.first + len(self.seconds))


@dataclasses.dataclass(frozen=True)
class Example:
  """Validated when made.

  Attributes:
    id: unique within a source and split: '<source>/<split>/<native id>'.
    source: data set name, as `--data` spells it.
    split: split name.
    task: what is asked; heads are ranked per task or over several.
    media: encoded pictures (PNG or JPEG bytes), in prompt order.
    question: the question's own text, without template.
    answers: acceptable answers; the first is the one teacher-forced.
    scorer: how an answer is judged, one of SCORERS (corejax.scoring).
    evidence: boxes in which the answer lies; empty for a task that needs no
      retrieval (and for unanswerable questions).
    distractors: boxes of other things of the same kind.
    span: seconds [start, end) in a video, None elsewhere.
    clips: the runs of media that are read as videos, in order and apart; all
      other media are pictures. A family that reads no video refuses them.
    cluster: the picture, document or video that examples share.
    kind: 'image', 'pages', 'frames' or 'video': which prompt template is used.
    meta: anything else, JSON-able (native ids, page numbers, twin_of, ...).
  """

  id: str
  source: str
  split: str
  task: str
  media: tuple[bytes, ...]
  question: str
  answers: tuple[str, ...]
  cluster: str
  scorer: str = 'exact'
  evidence: tuple[Box, ...] = ()
  distractors: tuple[Box, ...] = ()
  span: tuple[float, float] | None = None
  clips: tuple[Clip, ...] = ()
  kind: str = 'image'
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    def refuse(detail):
      raise errors.Rejected(errors.Reason.BAD_RECORD, f'{self.id}: {detail}')

    if self.scorer not in SCORERS:
      raise errors.UserError(
        f'{self.id}: scorer {self.scorer!r} is unknown; a source names one of '
        f'{", ".join(SCORERS)}'
      )
    if not self.media:
      refuse('no media')
    if not self.question.strip():
      refuse('empty question')
    for text in (self.id, self.cluster, self.question, *self.answers):
      if not is_text(text):
        refuse(f'{text[:80]!r} is no Unicode text')
    for box in (*self.evidence, *self.distractors):
      if not 0 <= box.media < len(self.media):
        refuse(f'{box}: there are {len(self.media)} media')
    if self.span is not None:
      start, end = self.span
      if not (math.isfinite(start) and math.isfinite(end) and start < end):
        refuse(f'time span {self.span} is not start < end')
    free = 0
    for clip in self.clips:
      if clip.first < free or clip.media.stop > len(self.media):
        refuse(
          f'{clip}: there are {len(self.media)} media, of which those from '
          f'{free} on are in no earlier clip'
        )
      free = clip.media.stop

  @property
  def parts(self) -> tuple[int | Clip, ...]:
    """What is shown, in prompt order: a picture's media index, or a clip."""
    clips = {clip.first: clip for clip in self.clips}
    framed = {m for clip in self.clips for m in clip.media}
    return tuple(
      clips.get(m, m)
      for m in range(len(self.media))
      if m in clips or m not in framed
    )

  def refuse_clips(self) -> None:
    """For families that read pictures alone.

    Raises:
      Rejected: it shows a video.
    """
    if self.clips:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        'it shows a video, which this model does not read; --list_models says '
        'which do',
      )

  def __repr__(self) -> str:
    answer = self.answers[0] if self.answers else None
    return (
      f'Example({self.id!r}, task {self.task!r}, '
      f'{describe.count(len(self.media), "picture")}, '
      f'{describe.shorten(repr(self.question))} -> '
      f'{describe.shorten(repr(answer))}, evidence boxes '
      f'{len(self.evidence)}, distractors {len(self.distractors)})'
    )


class Source(Protocol):
  """Random access to a split's examples, in an order that never changes.

  Attributes:
    name: as `--data` spells it.
    split: as `--split` spells it.
    fingerprint: changes when the data or its settings do.
  """

  @property
  def name(self) -> str: ...

  @property
  def split(self) -> str: ...

  @property
  def fingerprint(self) -> str: ...

  def __len__(self) -> int:
    """How many records there are, rejected ones included."""
    ...

  def __getitem__(self, index: int) -> Example:
    """The example; several threads may ask at once.

    Raises:
      Rejected: this record cannot be used.
    """
    ...
