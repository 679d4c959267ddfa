"""Frames of videos as pictures: from folders of pictures, or by PyAV.

    folder   <video>/000123.jpg    the number is the frame's, from 0
    video    <video>.mp4           decoded from its start (extra `video`)

Frame numbers are exact: a video is decoded in order and counted, as seeking by
time is not exact where frame rates vary. (ffmpeg counts files from 1 unless it
is told `-start_number 0`; a folder that does so is refused.) Pictures go out as
they are, decoded frames as PNG: no second loss.
"""

import collections
from collections.abc import Mapping, Sequence
import importlib
import io
import os
import pathlib
import re
import threading
from types import ModuleType

from corejax import errors
from corejax.data import files
from corejax.data import pictures

_PICTURE = re.compile(r'(\d{1,9})\.(?:jpe?g|png)', re.ASCII | re.IGNORECASE)
VIDEOS = ('.mp4', '.mkv', '.webm', '.avi')
_KEPT = 128  # decoded frames


def _av() -> ModuleType:
  try:
    return importlib.import_module('av')
  except ImportError as e:
    raise errors.UserError(
      'videos need PyAV, which is not installed: '
      "pip install 'corejax[video]', or give a folder of pictures a video"
    ) from e


class Frames:
  """Frames by video; a folder of pictures is preferred to a video."""

  def __init__(
    self,
    folders: Mapping[str, pathlib.Path],
    videos: Mapping[str, pathlib.Path],
  ):
    """Opens nothing yet.

    Args:
      folders: video -> folder of its pictures.
      videos: video -> its file.

    Raises:
      UserError: there are videos only and PyAV is not installed.
    """
    if videos and not folders:
      _av()
    self._folders, self._videos = folders, videos
    self._lock = threading.Lock()
    self._decoded: collections.OrderedDict[tuple[str, int], bytes] = (
      collections.OrderedDict()
    )

  def has(self, video: str) -> bool:
    """Is there anything of it?"""
    return video in self._folders or video in self._videos

  def available(self, video: str, frame_count: int) -> list[int] | None:
    """Numbers of the frames that are there, ascending; None is all.

    Args:
      video: its name.
      frame_count: how many it has.

    Raises:
      Rejected: a folder without a picture, or whose numbers count from 1.
    """
    if video not in self._folders:
      return None
    numbers = sorted(self._named(video))
    if not numbers:
      raise errors.Rejected(
        errors.Reason.MISSING_MEDIA,
        f'{self._folders[video]}: holds no picture named by its number',
      )
    if numbers[-1] >= frame_count:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'{self._folders[video]}: frame {numbers[-1]} is outside '
        f'0..{frame_count - 1}; frames count from 0 (ffmpeg -start_number 0)',
      )
    return numbers

  def _named(self, video: str) -> dict[int, str]:
    found = {}
    for name in sorted(files.names_in(self._folders[video])):
      if match := _PICTURE.fullmatch(name):
        found.setdefault(int(match[1]), name)
    return found

  def pictures(
    self, video: str, frames: Sequence[int], size: tuple[int, int]
  ) -> list[bytes]:
    """Encoded frames.

    Args:
      video: its name.
      frames: their numbers, ascending.
      size: (width, height) of the video; pictures of another size but the same
        shape are taken as they are.

    Raises:
      Rejected: a frame that is not there, cannot be decoded, or is of another
        shape.
    """
    if video in self._folders:
      named = self._named(video)
      found = []
      for frame in frames:
        if frame not in named:
          raise errors.Rejected(
            errors.Reason.MISSING_MEDIA,
            f'{self._folders[video]}: no frame {frame}',
          )
        found.append(pictures.read(self._folders[video] / named[frame]))
    else:
      found = self._from_video(video, frames)
    for frame, data in zip(frames, found):
      pictures.check_size(data, size, f'frame {frame}', exact=False)
    return found

  def _from_video(self, video: str, frames: Sequence[int]) -> list[bytes]:
    with self._lock:
      lacking = [f for f in frames if (video, f) not in self._decoded]
      if lacking:
        for frame, data in decode(self._videos[video], lacking).items():
          self._decoded[video, frame] = data
      found = [self._decoded[video, frame] for frame in frames]
      for frame in frames:
        self._decoded.move_to_end((video, frame))
      while len(self._decoded) > max(_KEPT, len(frames)):
        self._decoded.popitem(last=False)
    return found

  def identity(self) -> list[object]:
    """What fingerprints cover: which videos, their sizes, what decodes them."""
    return [
      sorted(self._folders),
      sorted((n, p.stat().st_size) for n, p in self._videos.items()),
      _av().__version__ if self._videos else None,
    ]


def decode(
  path: str | os.PathLike[str], frames: Sequence[int]
) -> dict[int, bytes]:
  """Frames of a video as RGB PNG, by number.

  Args:
    path: of the video.
    frames: their numbers, from 0.

  Raises:
    Rejected: BAD_MEDIA (no video, damaged, or it ends before a frame),
      MISSING_MEDIA, MEDIA_TOO_LARGE.
    UserError: PyAV is not installed.
  """
  av = _av()
  name = os.path.basename(path)
  found: dict[int, bytes] = {}
  wanted, last, number = set(frames), max(frames), -1
  try:
    with av.open(os.fspath(path)) as container:
      stream = next(iter(container.streams.video), None)
      if stream is None:
        raise errors.Rejected(
          errors.Reason.BAD_MEDIA, f'{name}: holds no video'
        )
      if stream.codec_context is None:
        raise errors.Rejected(
          errors.Reason.BAD_MEDIA, f'{name}: no decoder knows its video'
        )
      _check_pixels(stream.width, stream.height, name)
      for number, frame in enumerate(container.decode(stream)):
        if number in wanted:
          _check_pixels(frame.width, frame.height, name)
          encoded = io.BytesIO()
          frame.to_image().save(encoded, 'PNG', compress_level=1)
          found[number] = encoded.getvalue()
        if number == last:
          break
  except FileNotFoundError as e:
    raise errors.Rejected(errors.Reason.MISSING_MEDIA, name) from e
  except (av.FFmpegError, OSError, ValueError) as e:
    if isinstance(e, errors.Rejected):
      raise
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA, f'{name}: after frame {number}: {e}'
    ) from e
  if len(found) < len(wanted):
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA,
      f'{name}: ends with frame {number}, frame {last} is asked for',
    )
  return found


def _check_pixels(width: int, height: int, name: str) -> None:
  if width * height > pictures.MAX_PIXELS:
    raise errors.Rejected(
      errors.Reason.MEDIA_TOO_LARGE,
      f'{name}: {width}x{height} pixels; at most {pictures.MAX_PIXELS}',
    )
