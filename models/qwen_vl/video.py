"""Qwen-VL's videos: the frames' common size, their pairs, and their times.

    frames   0  1 | 2  3 | 4 (4)      two a patch; the last is repeated
    size     one for all: sides multiples of a feature's cell, bounded
             Qwen2-VL, 2.5   a frame's area
             Qwen3-VL        the area times the number of frames
    times    0.2    1.2    2.0        Qwen3-VL: the middle of each pair, as text

Frames come chosen, with their seconds (`Clip`); nothing is sampled here. Sizes
equal those of HF's Qwen2VLVideoProcessor and Qwen3VLVideoProcessor
(transformers 5.24). Pillow resizes each frame, across first as torchvision
does; the two differ by up to 2 grey levels.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any, TypeVar

from corejax import errors
from corejax.data import example as example_lib
from corejax.models import checkpoint
from corejax.models import images
from corejax.models.qwen_vl import pixels

_Frame = TypeVar('_Frame', int, float)  # its media index, or its second

_SECOND = pixels.Form(
  name='Qwen2VLVideoProcessor',
  key='video_processor_type',
  defaults={
    **pixels.IMAGE.defaults,
    'size': {'shortest_edge': 128 * 28 * 28, 'longest_edge': 28 * 28 * 768},
    'cap_pixels_per_frame': False,
    'max_video_tokens': 128000,
  },
  areas=True,
)
_THIRD = pixels.Form(
  name='Qwen3VLVideoProcessor',
  key='video_processor_type',
  defaults={
    **pixels.IMAGE.defaults,
    'image_mean': (0.5, 0.5, 0.5),
    'image_std': (0.5, 0.5, 0.5),
    'patch_size': 16,
    'size': {'shortest_edge': 128 * 32 * 32, 'longest_edge': 32 * 32 * 768},
    'cap_pixels_per_frame': False,
    'max_video_tokens': 768,
  },
  areas=False,  # its class does not know them
  most=1 << 40,  # frames times pixels; a frame's own are checked when resized
)


@dataclasses.dataclass(frozen=True)
class VideoSpec:
  """What is done to a video.

  Attributes:
    frame: what is done to each frame, but for its size; its bounds are those of
      the area, or of the area times the number of frames.
    by_volume: the latter, and a pair's time stands in the prompt (Qwen3-VL).
    cap: most tokens a video (by_volume: a frame) may have; 0 is no such bound.
  """

  frame: pixels.PatchSpec
  by_volume: bool
  cap: int = 0


def resized(
  spec: VideoSpec, size: tuple[int, int], n_frames: int
) -> tuple[int, int]:
  """(width, height) at which the tower sees the frames.

  HF's `resize` and `smart_resize` of the two classes, with their rounding.

  Args:
    spec: what is done.
    size: (width, height) of every frame.
    n_frames: before the last is repeated.

  Raises:
    Rejected: a shape or a number of frames that HF refuses, or frames that
      would be larger than images.MAX_PIXELS.
  """
  frame, area = spec.frame, spec.frame.factor**2
  most, floor = frame.most, int(frame.least * 1.05)
  if not spec.by_volume:
    if spec.cap:
      budget = int(spec.cap * area * 0.9)
      most = max(min(most, budget * frame.temporal // n_frames), floor)
    return pixels.resized(dataclasses.replace(frame, most=most), size)
  if n_frames < frame.temporal:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA,
      f'a video of {n_frames} frame; Qwen3-VL takes {frame.temporal} or more',
    )
  if spec.cap:
    most = n_frames * max(min(spec.cap * area, most // n_frames), floor)
  return _within_volume(dataclasses.replace(frame, most=most), size, n_frames)


def _within_volume(
  frame: pixels.PatchSpec, size: tuple[int, int], n_frames: int
) -> tuple[int, int]:
  """Qwen3-VL's smart_resize."""
  (width, height), factor = size, frame.factor
  if min(size) < factor:
    scale = max(factor / height, factor / width)
    height, width = int(height * scale), int(width * scale)
  pixels.check_shape((width, height))
  new_h, new_w = (round(x / factor) * factor for x in (height, width))
  rounded = round(n_frames / frame.temporal) * frame.temporal
  if rounded * new_h * new_w > frame.most:
    shrink = math.sqrt(n_frames * height * width / frame.most)
    new_h = max(factor, math.floor(height / shrink / factor) * factor)
    new_w = max(factor, math.floor(width / shrink / factor) * factor)
  elif rounded * new_h * new_w < frame.least:
    grow = math.sqrt(frame.least / (n_frames * height * width))
    new_h = math.ceil(height * grow / factor) * factor
    new_w = math.ceil(width * grow / factor) * factor
  images.check_pixels(new_w, new_h, f'a {width}x{height} frame resized')
  return new_w, new_h


def groups(frames: Sequence[_Frame], temporal: int) -> list[tuple[_Frame, ...]]:
  """The frames of each patch; the last one is repeated to fill up."""
  padded = [*frames, *[frames[-1]] * (-len(frames) % temporal)]
  return [
    tuple(padded[i : i + temporal]) for i in range(0, len(padded), temporal)
  ]


def times(clip: example_lib.Clip, temporal: int) -> list[float]:
  """Seconds, of each patch: the middle of its first and last frame."""
  return [(g[0] + g[-1]) / 2 for g in groups(clip.seconds, temporal)]


def seconds(clip: example_lib.Clip, temporal: int) -> float:
  """From one patch to the next, by the mean distance of the frames.

  transformers divides `temporal` by the rate at which it says frames were
  sampled, which is the same where they are evenly spaced over the video.
  """
  gaps = len(clip.seconds) - 1
  if not gaps:
    return 1.0  # there is no next one
  return temporal * ((clip.seconds[-1] - clip.seconds[0]) / gaps)


def read(folder: pathlib.Path, by_volume: bool) -> VideoSpec:
  """The VideoSpec of a checkpoint folder; files in HF's order.

  Without a file for videos that for pictures holds, as in HF (the checkpoints
  of Qwen2-VL and 2.5).

  Args:
    folder: the checkpoint.
    by_volume: it is a Qwen3-VL.

  Raises:
    UserError: no such file, unreadable, or it asks for what is not built.
  """
  path = folder / 'processor_config.json'
  if path.exists():
    config = checkpoint.read_json(path)
    if 'video_processor' in config:
      return parse(config['video_processor'], by_volume, str(path))
  path = folder / 'video_preprocessor_config.json'
  if not path.exists():
    path = folder / 'preprocessor_config.json'
    if not path.exists():  # processor_config.json has what there is
      return parse({}, by_volume, str(folder / 'processor_config.json'))
  return parse(checkpoint.read_json(path), by_volume, str(path))


def parse(config: Any, by_volume: bool, where: str) -> VideoSpec:
  """A video_preprocessor_config.json's content.

  Args:
    config: the JSON object.
    by_volume: it is a Qwen3-VL's.
    where: file name for messages.

  Raises:
    UserError: unknown class, unknown key, or a value that is not built.
  """
  form = _THIRD if by_volume else _SECOND
  frame = pixels.parse(config, where, form)
  given = {
    **form.defaults,
    **{k: v for k, v in config.items() if v is not None},
  }
  cap, tokens = given['cap_pixels_per_frame'], given['max_video_tokens']
  if type(cap) is not bool or type(tokens) is not int or not 0 < tokens < 1e9:
    raise errors.UserError(
      f'{where}: cap_pixels_per_frame={cap!r}, max_video_tokens={tokens!r}; '
      'expected true or false, and a whole number from 1 to 999999999'
    )
  values = dataclasses.replace(frame.values, across_first=True)
  frame = dataclasses.replace(frame, values=values)
  return VideoSpec(frame, by_volume, tokens if cap else 0)
