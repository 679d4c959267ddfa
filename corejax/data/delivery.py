"""How a video is handed over: as a clip, or as several pictures.

    --video_as=clip       kind 'video', `clips` say which media are its frames
    --video_as=pictures   kind 'frames', each frame a picture of its own
    --video_as=auto       clip where the model family reads videos

Sources of videos make clips, and so do prepared folders hold them; `Pictures`
takes the clips off on the way, so that both are to be had of one folder. The
media, boxes, question and answers are the same.
"""

import dataclasses
from typing import Any

from corejax.data import example as example_lib
from corejax.data import recorded
from corejax.data import wrapped

CHOICES = ('auto', 'clip', 'pictures')
CLIP, PICTURES = CHOICES[1:]
VIDEOS = ('scenes_video', 'vidstg')  # sources whose examples are clips


def as_pictures(example: example_lib.Example) -> example_lib.Example:
  """The same example, its frames as pictures; one without clips as it is."""
  if not example.clips:
    return example
  return dataclasses.replace(example, clips=(), kind='frames')


@dataclasses.dataclass(frozen=True)
class Pictures(wrapped.Wrapped):
  """Another source, its clips as pictures; an example.Source itself."""

  @property
  def fingerprint(self) -> str:
    return recorded.digest(self.source.fingerprint, PICTURES)

  def __getitem__(self, index: int) -> example_lib.Example:
    return as_pictures(self.source[index])


def of(source: Any) -> str:
  """How a source of videos hands them over; '' of one that has none.

  Args:
    source: of sources.load.
  """
  while hasattr(source, 'source'):
    if isinstance(source, Pictures):
      return PICTURES
    source = source.source
  return CLIP if source.name in VIDEOS else ''
