"""Tiny videos of which every frame is known."""

from collections.abc import Iterable
import pathlib

import av
import numpy as np


def write(
  path: pathlib.Path,
  frames: Iterable[np.ndarray],
  codec: str = 'mpeg4',
  fps: int = 10,
  gaps: bool = False,
) -> pathlib.Path:
  """Encodes frames.

  Args:
    path: of the file; its ending names the container.
    frames: uint8 [height, width, 3] each.
    codec: mpeg4 loses a little, ffv1 nothing but by its colour space.
    fps: frames a second.
    gaps: let every third frame last three times as long.
  """
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=fps)
    time = 0
    for n, pixels in enumerate(frames):
      if n == 0:
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = 'yuv420p'
        if codec == 'mpeg4':
          stream.bit_rate = 2_000_000
      frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
      frame.pts = time
      time += 3 if gaps and n % 3 == 0 else 1
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path
