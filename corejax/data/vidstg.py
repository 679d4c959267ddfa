"""VidSTG: what does something in a video, and when?

An example is one sentence about one thing of a video, and `frames` frames of
the part that was annotated, in order, as one clip (kind `video`; `--video_as`
makes pictures of them). Its seconds, and those of the span, are those of the
whole video: frame f is shown from f / fps on. Tasks:

    what   a question: "what walks in front of a man in white?"; the answer is
           the thing's category, right if it is among the words said
    when   a caption: "In which frames, counted from 1, is this so: a dog walks
           in front of a man."; the answer is the first and the last, "3 to 5"

The evidence is the thing's box in every shown frame in which it happens,
distractors are the boxes of other things in all shown frames; boxes are VidOR's
(corejax.data.vidstg_records).

Frames are the middles of equal parts. Where none of them shows the evidence (in
671 of the test split's 4,610 annotations at 8 frames), the nearest is moved to
the middle of it (`missed='move'`, counted in `remarks` and told in
meta['moved']) or the record is rejected (`missed='reject'`).

Where files are looked for, in this order:

    {split}_annotations.json
                  DIR/annotations, DIR, DIR/vidstg
    VidOR's boxes <group>/<video>.json below DIR/annotation and
                  DIR/vidor/annotation, or their training and validation
    frames        <video>/<number>.jpg or <group>/<video>/... below DIR/frames,
                  DIR/vidor/frames
    videos        <video>.mp4 or <group>/<video>.mp4 below DIR/video,
                  DIR/videos, DIR/vidor/video, DIR/vidor/videos

Not comparable: VidSTG publishes tIoU and vIoU of tubes over 5 frames a second
(corejax.grounding has both); categories are unbalanced (three of them, adult,
child and baby, are about 60%), so read `what` beside `when`.
"""

import collections
from collections.abc import Sequence
import os
import pathlib
import threading

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import fields
from corejax.data import files
from corejax.data import frames as frames_lib
from corejax.data import recorded
from corejax.data import vidstg_records as records_lib

NAME = 'vidstg'
SPLITS = ('train', 'val', 'test')
MISSED = ('move', 'reject')
QUESTION = 'In which frames, counted from 1, is this so: {}'
_GET = 'github.com/Guaranteer/VidSTG-Dataset, folder annotations'
_GET_BOXES = (
  "VidOR's annotations, xdshang.github.io/docs/vidor.html (its training part "
  'for train and val, its validation part for test)'
)
_GET_VIDEOS = "VidOR's videos, xdshang.github.io/docs/vidor.html"
_KEPT = 4  # videos whose boxes stay in memory
_PARTS = ('', 'training', 'validation')


def _below(roots: Sequence[pathlib.Path], names: frozenset[str], ends) -> dict:
  """name -> path of what is called so, in a folder or in one below it.

  Args:
    roots: folders.
    names: without ending.
    ends: endings of files; () looks for folders.
  """
  found: dict[str, pathlib.Path] = {}

  def look(folder: pathlib.Path, deeper: bool) -> None:
    for entry in sorted(files.names_in(folder)):
      stem, end = os.path.splitext(entry)
      path = folder / entry
      if ends and end.lower() in ends:
        if stem in names:
          found.setdefault(stem, path)
      elif not ends and entry in names:
        found.setdefault(entry, path)
      elif deeper and not end:
        look(path, False)

  for root in roots:
    look(root, True)
  return found


class VidSTG(recorded.Recorded[records_lib.Record]):
  """An example.Source; one record is one sentence, in the file's order.

  Attributes:
    name, split, fingerprint: as example.Source says. The fingerprint covers the
      annotations, the settings, and which boxes and videos are there.
    remarks: how many records even sampling misses.
  """

  name = NAME

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    *,
    split: str = 'test',
    frames: int = 8,
    missed: str = 'move',
    tasks: Sequence[str] | None = None,
  ):
    """Reads the sentences; boxes and videos are opened when an example is.

    Args:
      data_dir: holds the files, see the head of this module.
      split: one of SPLITS.
      frames: shown of a segment.
      missed: one of MISSED: what is done where no frame shows the evidence.
      tasks: 'what', 'when', None for both.

    Raises:
      UserError: a setting out of range; no annotations, no boxes at all, or
        neither frames nor videos at all. What is missing of a video while
        others are there rejects its own sentences only.
    """
    recorded.check_split(NAME, split, SPLITS)
    if not 1 <= frames <= 1000:
      raise errors.UserError(f'--frames={frames}: expected 1 to 1000')
    if missed not in MISSED:
      raise errors.UserError(
        f'--missed={missed[:60]}: not one of {", ".join(MISSED)}'
      )
    self.split, self._n_frames, self._missed = split, frames, missed
    wanted = files.Wanted(NAME, data_dir)
    name = f'{split}_annotations.json'
    file = wanted.file(
      wanted.at(f'annotations/{name}', name, f'vidstg/{name}'), _GET
    )
    content = files.read(file) if file else b'[]'
    records = self._parse(content, file)
    self._records = recorded.chosen(NAME, records, tasks)
    videos = frozenset(r.video for r in self._records if not r.fault)
    self._find(wanted, videos)
    wanted.check()
    self._tracks: collections.OrderedDict[str, records_lib.Tracks] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()
    good = [r for r in self._records if not r.fault]
    even = sum(
      not any(
        r.span[0] <= f < r.span[1]
        for f in records_lib.sample(r.segment, frames)
      )
      for r in good
    )
    done = {'move': 'a frame is moved there', 'reject': 'they are rejected'}
    self.remarks = (
      f'{frames} frames, evenly taken, miss the evidence of {even} of '
      f'{len(good)} sentences: {done[missed]} (--missed={missed})',
    )
    self.fingerprint = recorded.digest(
      content,
      (split, frames, missed, sorted(tasks) if tasks else None),
      sorted(self._boxes),
      self._frames.identity(),
    )

  @staticmethod
  def _parse(content: bytes, file: pathlib.Path | None):
    try:
      records = records_lib.parse(content)
    except records_lib.Malformed as e:
      raise errors.UserError(f'{file}: {e}; {_GET}') from e
    if file and all(r.fault for r in records):
      why = f' ({records[0].fault})' if records else ''
      raise errors.UserError(
        f'{file}: none of {len(records)} annotations can be used{why}; {_GET}'
      )
    return records

  def _find(self, wanted: files.Wanted, videos: frozenset[str]) -> None:
    """Where boxes, frames and videos lie; what lacks is noted."""
    boxes = wanted.at(
      *(
        f'{root}/{part}'
        for root in ('annotation', 'vidor/annotation')
        for part in _PARTS
      )
    )
    self._boxes = _below(boxes, videos, ('.json',))
    pictures = wanted.at('frames', 'vidor/frames')
    folders = _below(pictures, videos, ())
    films = wanted.at('video', 'videos', 'vidor/video', 'vidor/videos')
    found = _below(films, videos - folders.keys(), frames_lib.VIDEOS)
    some = f' of {len(videos)} videos' if videos else ''
    if not self._boxes:
      wanted.missing(f'the boxes{some}', boxes, _GET_BOXES)
    if not folders and not found:
      wanted.missing(
        f'the frames or files{some}', [*pictures, *films], _GET_VIDEOS
      )
      return
    self._frames = frames_lib.Frames(folders, found)

  def _load_tracks(self, video: str) -> records_lib.Tracks:
    with self._lock:
      if video not in self._tracks:
        if video not in self._boxes:
          raise errors.Rejected(
            errors.Reason.MISSING_MEDIA, f'no boxes; {_GET_BOXES}'
          )
        try:
          content = self._boxes[video].read_bytes()
        except OSError as e:
          raise fields.bad(
            f'{self._boxes[video]}: cannot be read ({e.strerror})'
          ) from e
        self._tracks[video] = records_lib.Tracks(content)
        if len(self._tracks) > _KEPT:
          self._tracks.popitem(last=False)
      self._tracks.move_to_end(video)
      return self._tracks[video]

  def _example(self, record: records_lib.Record) -> example_lib.Example:
    where = f'{record.video}/{record.place}'
    return recorded.with_place(self._shown, where, record, where)

  def _choose(self, record, tracks) -> tuple[list[int], bool]:
    """(frames that are shown, whether one was moved)."""
    there = self._frames.available(record.video, record.frame_count)
    annotated = tracks.frames_of(record.target, record.span)
    if not annotated:
      raise errors.Rejected(
        errors.Reason.NO_EVIDENCE,
        f'no box of thing {record.target} in frames {record.span[0]} to '
        f'{record.span[1] - 1}',
      )
    if there is not None:
      annotated = sorted(set(annotated) & set(there))
    even = records_lib.sample(record.segment, self._n_frames, there)
    if even and annotated:
      chosen = records_lib.with_evidence(even, annotated)
      if chosen == even or self._missed == 'move':
        return chosen, chosen != even
    raise errors.Rejected(
      errors.Reason.EVIDENCE_MISSED,
      f'frames {even[:20]} do not show it; --missed=move would move one'
      if even and annotated
      else 'none of the pictures shows it; extract more frames',
    )

  def _shown(self, record, where) -> example_lib.Example:
    if not self._frames.has(record.video):
      raise errors.Rejected(errors.Reason.MISSING_MEDIA, _GET_VIDEOS)
    tracks = self._load_tracks(record.video)
    tracks.check(record)
    shown, moved = self._choose(record, tracks)
    begin, end = record.span
    inside = [n for n, frame in enumerate(shown, 1) if begin <= frame < end]
    evidence, others = self._regions(record, tracks, shown)
    first, last = inside[0], inside[-1]
    seconds = tuple(frame / record.fps for frame in shown)
    if record.task == records_lib.WHAT:
      question, scorer = record.sentence, 'contains'
      answers = records_lib.answers(record.category)
    else:
      question, scorer = QUESTION.format(record.sentence), 'frames'
      answers = (f'{first} to {last}',)
    return example_lib.Example(
      id=f'{NAME}/{self.split}/{where}',
      source=NAME,
      split=self.split,
      task=record.task or '',
      media=tuple(self._frames.pictures(record.video, shown, record.size)),
      question=question,
      answers=answers,
      cluster=record.video,
      scorer=scorer,
      evidence=evidence,
      distractors=others,
      span=(begin / record.fps, end / record.fps),
      clips=(example_lib.Clip(0, seconds),),
      kind='video',
      meta={
        'video': record.video,
        'category': record.category,
        'target': record.target,
        'segment': list(record.segment),
        'media_index': shown,
        'media_time': list(seconds),
        'evidence_frames': [first, last],
        'evidence_level': 'region',
        'moved': moved,
      },
    )

  @staticmethod
  def _regions(record, tracks, shown):
    """(boxes of the thing where it happens, boxes of all others)."""
    own, others = [], []
    for media, frame in enumerate(shown):
      for tid, thing in tracks.boxes(frame):
        if tid == record.target:
          if record.span[0] <= frame < record.span[1]:
            corners = tracks.corners(thing, frame)
            own.append(example_lib.Box(media, *corners))
          continue
        corners, fault = fields.fault_of(tracks.corners, thing, frame)
        if not fault:
          others.append(example_lib.Box(media, *corners))
    return tuple(own), tuple(dict.fromkeys(others))
