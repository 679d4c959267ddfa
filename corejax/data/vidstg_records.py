"""VidSTG's sentences, and VidOR's boxes that they are about.

VidSTG annotates a part of a video (`used_segment`), when something happens in
it (`temporal_gt`), and sentences about one of its things (`target_id`): a
caption, and up to two questions:

    [{"vid": "123", "fps": 29.97, "frame_count": 900, "width": 640,
      "height": 360, "subject/objects": [{"tid": 0, "category": "dog"}, ...],
      "used_segment": {"begin_fid": 0, "end_fid": 479},
      "temporal_gt": {"begin_fid": 90, "end_fid": 390},
      "captions": [{"description": "a dog walks ...", "target_id": 0}],
      "questions": [{"description": "what walks ...?", "target_id": 0}]}]

Frames count from 0 and spans are half open, but for one trap: at a video's end
`used_segment.end_fid` is its last frame, while `temporal_gt.end_fid` is the one
behind it. So a segment ends where the later of the two does.

The boxes are VidOR's, one file a video:

    {"frame_count": 900, "width": 640, "height": 360, "trajectories":
      [[{"tid": 0, "bbox": {"xmin": 8, "ymin": 9, "xmax": 60, "ymax": 80}}],
       ...]}                        one list a frame; pixels
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math
from typing import Any

from corejax import errors
from corejax import grounding
from corejax.data import fields

WHAT, WHEN = 'what', 'when'
TOLERANCE_PIXELS = 1.0
MOST_FRAMES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Record:
  """One sentence; with a fault, nothing after `fault` is meant.

  Attributes:
    video: its name.
    place: of the sentence, as '12-q0': annotation, caption or question, number.
    task: WHAT for a question, WHEN for a caption, None if it cannot be told.
    fault: why it cannot be used, None if it can.
    sentence: its text.
    target: the thing it is about.
    category: of the thing.
    size: (width, height) of the video in pixels.
    fps: frames a second.
    frame_count: of the video.
    segment, span: frames [begin, end): what is shown, when it happens.
  """

  video: str
  place: str
  task: str | None = None
  fault: errors.Rejected | None = None
  sentence: str = ''
  target: int = 0
  category: str = ''
  size: tuple[int, int] = (1, 1)
  fps: float = 1.0
  frame_count: int = 1
  segment: tuple[int, int] = (0, 1)
  span: tuple[int, int] = (0, 1)

  @property
  def cluster(self) -> str:
    return self.video


class Malformed(ValueError):
  """A file that is not of the layout at all."""


def answers(category: str) -> tuple[str, ...]:
  """What a category may be called: `baby_seat` has one name, `cattle/cow` two.

  The first one is what a model is made to say.
  """
  names = [part.replace('_', ' ').strip() for part in category.split('/')]
  return tuple(dict.fromkeys(name for name in names if name))


def _span(raw: Any, name: str) -> tuple[int, int]:
  value = fields.get(raw, name, dict)
  return fields.count(value, 'begin_fid'), fields.count(value, 'end_fid')


def _shared(raw: Any) -> dict[str, Any]:
  """What all sentences of an annotation share."""
  frame_count = fields.count(raw, 'frame_count', 1)
  if frame_count > MOST_FRAMES:
    raise fields.bad(f'frame_count={frame_count}: at most {MOST_FRAMES}')
  fps = raw.get('fps')
  if not fields.is_finite(fps) or not 0.01 <= fps <= 1000:
    raise fields.bad(f'fps={fields.shown(fps)} is no frame rate')
  begin, end = _span(raw, 'used_segment')
  first, last = _span(raw, 'temporal_gt')
  end = max(end, last)
  if not (begin <= first < last <= end <= frame_count):
    raise fields.bad(
      f'temporal_gt [{first}, {last}) does not lie in used_segment '
      f'[{begin}, {end}) of {frame_count} frames'
    )
  return dict(
    size=(fields.count(raw, 'width', 1), fields.count(raw, 'height', 1)),
    fps=float(fps),
    frame_count=frame_count,
    segment=(begin, end),
    span=(first, last),
  )


def _sentence(raw: Any, things: Sequence[Any]) -> dict[str, Any]:
  target = fields.count(raw, 'target_id')
  for thing in things:
    if isinstance(thing, dict) and thing.get('tid') == target:
      category = fields.text(thing, 'category')
      if not answers(category):
        raise errors.Rejected(
          errors.Reason.BAD_ANSWER, f'category={fields.shown(category)}'
        )
      return dict(
        sentence=fields.text(raw, 'description'),
        target=target,
        category=category,
      )
  raise fields.bad(f'target_id={target} is none of subject/objects')


def _annotation(raw: Any, number: int) -> Iterable[Record]:
  """The records of one annotation."""
  video = f'annotation {number}'
  try:
    video = fields.file_name(raw, 'vid')
    shared = _shared(raw)
    things = fields.get(raw, 'subject/objects', list)
    kinds = [
      ('c', WHEN, fields.get(raw, 'captions', list)),
      ('q', WHAT, fields.get(raw, 'questions', list)),
    ]
  except errors.Rejected as e:
    fault = errors.Rejected(e.reason, f'{video}/{number}: {e.detail}')
    yield Record(video, f'{number}', None, fault)
    return
  for letter, task, sentences in kinds:
    for n, sentence in enumerate(sentences):
      place = f'{number}-{letter}{n}'
      said, fault = fields.fault_of(_sentence, sentence, things)
      if fault:
        where = errors.Rejected(
          fault.reason, f'{video}/{place}: {fault.detail}'
        )
        yield Record(video, place, task, where)
      else:
        yield Record(video, place, task, None, **said, **shared)


def parse(content: bytes) -> list[Record]:
  """Every sentence of an annotation file, unusable ones included.

  An annotation whose shared fields are at fault is one record.

  Args:
    content: of test_annotations.json, say.

  Raises:
    Malformed: it is no JSON list.
  """
  try:
    rows = fields.load_json(content)
  except ValueError as e:
    raise Malformed(f'no JSON: {e}') from e
  if not isinstance(rows, list):
    raise Malformed('no list of annotations')
  return [
    record
    for number, raw in enumerate(rows)
    for record in _annotation(raw, number)
  ]


class Tracks:
  """Boxes of a video's things, frame by frame."""

  def __init__(self, content: bytes):
    """Reads a file of VidOR; boxes are checked when asked for.

    Raises:
      Rejected: BAD_RECORD: it is none.
    """
    try:
      raw = fields.load_json(content)
    except ValueError as e:
      raise fields.bad(f'trajectories: no JSON: {e}') from e
    self._frames = fields.get(raw, 'trajectories', list)
    self.size = (fields.count(raw, 'width', 1), fields.count(raw, 'height', 1))
    self.frame_count = fields.count(raw, 'frame_count', 1)

  def check(self, record: Record) -> None:
    """Refuses the boxes of another edition of the video.

    Raises:
      Rejected: BAD_RECORD.
    """
    ours = (*record.size, record.frame_count)
    theirs = (*self.size, self.frame_count)
    if ours != theirs:
      raise fields.bad(
        f'{theirs[0]}x{theirs[1]} pixels and {theirs[2]} frames in VidOR, '
        f'{ours[0]}x{ours[1]} and {ours[2]} in VidSTG: another edition'
      )

  def _things(self, frame: int) -> list[Any]:
    if not 0 <= frame < len(self._frames):
      return []
    things = self._frames[frame]
    return things if isinstance(things, list) else []

  def frames_of(self, target: int, span: tuple[int, int]) -> list[int]:
    """Frames of a span in which a thing is annotated."""
    return [
      frame
      for frame in range(*span)
      if any(
        isinstance(thing, dict) and thing.get('tid') == target
        for thing in self._things(frame)
      )
    ]

  def boxes(self, frame: int) -> Iterable[tuple[Any, Any]]:
    """(tid, raw thing) of everything in a frame."""
    for thing in self._things(frame):
      if isinstance(thing, dict):
        yield thing.get('tid'), thing

  def corners(self, thing: Any, frame: int) -> grounding.Corners:
    """A thing's box as shares of the frame.

    Raises:
      Rejected: it is no box on the frame.
    """
    box = fields.get(thing, 'bbox', dict)
    sides = [box.get(name) for name in ('xmin', 'ymin', 'xmax', 'ymax')]
    if not all(map(fields.is_finite, sides)):
      raise fields.bad_box(
        f'bbox={fields.shown(box)} is not four finite numbers'
      )
    x0, y0, x1, y1 = (float(side) for side in sides)
    return fields.shares(
      (x0, y0, x1, y1), self.size, f'on frame {frame}', TOLERANCE_PIXELS
    )


def sample(
  segment: tuple[int, int], count: int, available: Sequence[int] | None = None
) -> list[int]:
  """Frames of a segment, evenly: the middles of `count` equal parts.

  Args:
    segment: [begin, end).
    count: how many; fewer where there are not so many.
    available: frames to choose from, ascending; None is all. The nearest to
      each middle is taken, the earlier of two.
  """
  begin, end = segment
  middles = (
    begin + math.floor((n + 0.5) * (end - begin) / count) for n in range(count)
  )
  if available is None:
    return sorted(set(middles))
  inside = [frame for frame in available if begin <= frame < end]
  if not inside:
    return []
  return sorted({min(inside, key=lambda f: (abs(f - m), f)) for m in middles})


def with_evidence(frames: Sequence[int], wanted: Sequence[int]) -> list[int]:
  """Frames of which at least one is wanted: the nearest is moved if none is.

  It goes to the middle one of those that are wanted.

  Args:
    frames: ascending, not empty.
    wanted: ascending, not empty.
  """
  if set(frames) & set(wanted):
    return list(frames)
  to = wanted[len(wanted) // 2]
  nearest = min(frames, key=lambda f: (abs(f - to), f))
  return sorted({*(f for f in frames if f != nearest), to})
