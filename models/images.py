"""Pictures: from encoded bytes to RGB pixels, without torch.

Decisions, each of which changes what a model sees or where a box lies:

- **EXIF rotation is not applied.** Boxes are shares of the stored width and
  height, and the picture, its boxes, its token cells and its drawing stay in
  that one frame. A data set whose boxes were drawn on the rotated picture must
  hand over rotated pictures. (Pillow does not rotate by itself either; HF's
  `load_image` does, its image processors do not.)
- **Transparency is composited on white**, as HF's PIL processors do (a picture
  without it is converted to RGB by Pillow's own rules: grey, palette, CMYK).
- **16-bit grey is divided by 256.** Pillow clips at 255 instead, which turns
  such a picture white; this is the one place where we differ from HF.
- PNG and JPEG only, told by their first bytes: each further decoder is code
  that reads untrusted bytes. Of an animated file the first frame counts.
- A picture of more than `MAX_PIXELS` is refused before anything is decoded,
  and so is one that a resize would blow up beyond that.
"""

import io
import struct

import numpy as np
from PIL import Image
from PIL import ImageFile
from PIL import JpegImagePlugin
from PIL import PngImagePlugin

from corejax import errors

MAX_PIXELS = 89_478_485  # where Pillow begins to warn; it refuses at twice that

# Pillow's plugins are made directly: `Image.open` warns about large pictures
# through the warnings module, whose filters are no thread's own.
_PLUGINS = (
  (b'\x89PNG\r\n\x1a\n', PngImagePlugin.PngImageFile),
  (b'\xff\xd8\xff', JpegImagePlugin.JpegImageFile),
)
# What the plugins raise at damaged files; Pillow's own list, and ValueError for
# chunks that unpack to too much.
_DAMAGE = (
  OSError,
  SyntaxError,
  ValueError,
  IndexError,
  TypeError,
  struct.error,
)


def check_pixels(width: int, height: int, what: str) -> None:
  """Refuses more than MAX_PIXELS.

  Raises:
    Rejected: MEDIA_TOO_LARGE.
  """
  if width * height > MAX_PIXELS:
    raise errors.Rejected(
      errors.Reason.MEDIA_TOO_LARGE,
      f'{what} is {width}x{height} = {width * height} pixels; at most '
      f'{MAX_PIXELS} are taken',
    )


def _open(data: bytes) -> ImageFile.ImageFile:
  """Reads the header only."""
  plugin = next((p for mark, p in _PLUGINS if data.startswith(mark)), None)
  if plugin is None:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA,
      f'{len(data)} bytes that begin with {bytes(data[:8])!r} are neither PNG '
      'nor JPEG',
    )
  try:
    image = plugin(io.BytesIO(data))
  except _DAMAGE as e:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA, f'{plugin.format} header: {e}'
    ) from e
  if min(image.size) < 1:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA, f'{plugin.format} of size {image.size}'
    )
  return image


def size(data: bytes) -> tuple[int, int]:
  """(width, height) of an encoded picture; decodes nothing.

  Raises:
    Rejected: BAD_MEDIA.
  """
  return _open(data).size


def decode(data: bytes) -> np.ndarray:
  """uint8 RGB pixels [height, width, 3] of a PNG or JPEG.

  Raises:
    Rejected: BAD_MEDIA (truncated, damaged, another format), MEDIA_TOO_LARGE.
  """
  image = _open(data)
  check_pixels(*image.size, 'the picture')
  try:
    image.load()
  except _DAMAGE as e:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA, f'{image.format} of size {image.size}: {e}'
    ) from e
  return to_rgb(image)


def to_rgb(image: Image.Image) -> np.ndarray:
  """uint8 [height, width, 3] of a Pillow picture, by the rules above."""
  if image.mode.startswith('I'):
    grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
  if 'A' in image.getbands() or image.info.get('transparency') is not None:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return np.array(image.convert('RGB'))
