"""What a prompt of Qwen-VL shows: pictures, and videos pair by pair of frames.

    media    0        1  2  3          4           1 to 3 are a video's frames
    parts    picture  video            picture
    groups   (0)      (1, 2) (3, 3)    (4)       what the tower sees one by one
    tokens   cells of every group, in this order

From a plan everything follows: patches, grids, and where each token looks.
"""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from corejax import describe
from corejax import errors
from corejax import layout as layout_lib
from corejax.data import example as example_lib
from corejax.models import images
from corejax.models.qwen_vl import pixels
from corejax.models.qwen_vl import video


@dataclasses.dataclass(frozen=True)
class Part:
  """A picture or a video, as it will be shown.

  Attributes:
    groups: media of each pair of frames; of a picture, itself.
    rows, columns: features of a group.
    new_size: (width, height) of every frame after the resize.
    is_video: is it one?
    times: of each group of a video, seconds.
    seconds: from one group to the next.
  """

  groups: Sequence[tuple[int, ...]]
  rows: int
  columns: int
  new_size: tuple[int, int]
  is_video: bool = False
  times: Sequence[float] = ()
  seconds: float = 1.0

  @property
  def n_cells(self) -> int:
    """Features of a group."""
    return self.rows * self.columns

  def __len__(self) -> int:
    return len(self.groups) * self.n_cells


def count(parts: Sequence[Part]) -> str:
  """In words, for messages."""
  n_videos = sum(part.is_video for part in parts)
  pictures = describe.count(len(parts) - n_videos, 'picture')
  if not n_videos:
    return pictures
  videos = describe.count(n_videos, 'video')
  return videos if n_videos == len(parts) else f'{pictures} and {videos}'


def _of_media(index: int, error: errors.Rejected) -> errors.Rejected:
  return errors.Rejected(error.reason, f'media {index}: {error.detail}')


def sizes(media: Sequence[bytes]) -> list[tuple[int, int]]:
  """(width, height) of the encoded pictures; decodes nothing.

  Raises:
    Rejected: one is no picture, or too large.
  """
  found = []
  for index, data in enumerate(media):
    try:
      found.append(images.size(data))
    except errors.Rejected as e:
      raise _of_media(index, e) from e
  return found


def plan(
  spec: pixels.PatchSpec,
  video_spec: video.VideoSpec,
  part: int | example_lib.Clip,
  sizes: Sequence[tuple[int, int]],
) -> Part:
  """How a picture (its media index) or a clip will be shown.

  Raises:
    Rejected: a shape that HF refuses, or a video whose frames differ in size.
  """
  if isinstance(part, int):
    try:
      new_w, new_h = pixels.resized(spec, sizes[part])
    except errors.Rejected as e:
      raise _of_media(part, e) from e
    rows, columns = new_h // spec.factor, new_w // spec.factor
    return Part([(part,)], rows, columns, (new_w, new_h))
  first, frame = sizes[part.first], video_spec.frame
  for index in part.media:
    if sizes[index] != first:
      raise errors.Rejected(
        errors.Reason.BAD_MEDIA,
        f'media {index}: a frame of {"x".join(map(str, sizes[index]))} in a '
        f'video of {"x".join(map(str, first))}',
      )
  try:
    new_w, new_h = video.resized(video_spec, first, len(part.media))
  except errors.Rejected as e:
    raise _of_media(part.first, e) from e
  return Part(
    video.groups(part.media, frame.temporal),
    new_h // frame.factor,
    new_w // frame.factor,
    (new_w, new_h),
    is_video=True,
    times=video.times(part, frame.temporal),
    seconds=video.seconds(part, frame.temporal),
  )


def patches(
  spec: pixels.PatchSpec,
  video_spec: video.VideoSpec,
  parts: Sequence[Part],
  media: Sequence[bytes],
) -> np.ndarray:
  """pixel_values [patches of all groups, C * frames * y * x], float32.

  Raises:
    Rejected: a picture that cannot be decoded.
  """
  block = spec.merge**2
  values = np.empty(
    (
      sum(map(len, parts)) * block,
      3 * spec.temporal * spec.patch_size**2,
    ),
    np.float32,
  )
  start = 0
  for part in parts:
    own = video_spec.frame if part.is_video else spec
    for group in part.groups:
      frames = []
      for index in group:
        try:
          frames.append(_pixels(own, media[index], part.new_size))
        except errors.Rejected as e:
          raise _of_media(index, e) from e
      stop = start + part.n_cells * block
      values[start:stop] = pixels.patches(own, frames)
      start = stop
  return values


# Neighbouring questions show the same pictures; a page of a million pixels
# takes 12 MB.
@functools.lru_cache(maxsize=16)
def _pixels(
  spec: pixels.PatchSpec, data: bytes, new_size: tuple[int, int]
) -> np.ndarray:
  """An encoded picture, resized and normalised."""
  value = pixels.run(spec, images.decode(data), new_size)
  value.setflags(write=False)
  return value


def grids(spec: pixels.PatchSpec, parts: Sequence[Part]) -> np.ndarray:
  """image_grid_thw int32 [groups of all, 3]; time is 1."""
  return np.array(
    [
      (1, part.rows * spec.merge, part.columns * spec.merge)
      for part in parts
      for _ in part.groups
    ],
    np.int32,
  ).reshape(-1, 3)


def layout(
  parts: Sequence[Part], sizes: Sequence[tuple[int, int]]
) -> layout_lib.VisualLayout:
  """Where each token looks; in a video, at a cell of all frames of a group."""
  media, frames, cells = [], [], []
  for part in parts:
    cell_IW = pixels.cells(sizes[part.groups[0][0]], part.rows, part.columns)
    for group in part.groups:
      cells.append(cell_IW)
      media.append(np.full(len(cell_IW), group[0], np.int32))
      frames.append(np.full(len(cell_IW), len(set(group)), np.int32))
  return layout_lib.VisualLayout(
    media_I=np.concatenate(media),
    cell_IW=np.concatenate(cells),
    size_M2=np.array(sizes, np.int32),
    base_I=np.zeros(sum(map(len, cells)), bool),
    frames_I=(
      np.concatenate(frames) if any(p.is_video for p in parts) else None
    ),
  )
