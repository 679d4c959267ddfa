"""What a picture's file says before anything of it is decoded.

Readers need a picture's size, to set boxes in pixels against it, and whether
its file asks viewers to turn it: corejax never turns pictures
(corejax/models/images.py), so boxes must be those of the stored frame. PNG and
JPEG, by their first bytes; pixels are left to whoever decodes them.
"""

import dataclasses
import os
import struct

from corejax import errors

MAX_PIXELS = 89_478_485  # as corejax.models.images, which decodes
MAX_BYTES = 256 * 2**20  # of a picture's file
_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_ORIENTATION = 0x0112
# Start of frame: baseline, extended, progressive and the rarer ones; not DHT,
# JPG and DAC, which lie in the same range.
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers without a length


@dataclasses.dataclass(frozen=True)
class Header:
  """What the head of a picture says.

  Attributes:
    width, height: pixels, as stored.
    orientation: EXIF's, 1 to 8; 1 is as stored, 5 to 8 swap the sides.
  """

  width: int
  height: int
  orientation: int = 1

  @property
  def size(self) -> tuple[int, int]:
    return self.width, self.height


def _bad(detail: str) -> errors.Rejected:
  return errors.Rejected(errors.Reason.BAD_MEDIA, detail)


def header(data: bytes) -> Header:
  """The head of an encoded picture.

  Raises:
    Rejected: BAD_MEDIA (no PNG or JPEG, or cut off before its size),
      MEDIA_TOO_LARGE.
  """
  if data.startswith(_PNG):
    found = _png(data)
  elif data.startswith(_JPEG):
    found = _jpeg(data)
  else:
    raise _bad(
      f'{len(data)} bytes that begin with {bytes(data[:8])!r} are neither PNG '
      'nor JPEG'
    )
  if min(found.size) < 1:
    raise _bad(f'a picture of {found.width}x{found.height} pixels')
  if found.width * found.height > MAX_PIXELS:
    raise errors.Rejected(
      errors.Reason.MEDIA_TOO_LARGE,
      f'a picture of {found.width}x{found.height} = '
      f'{found.width * found.height} pixels; at most {MAX_PIXELS} are taken',
    )
  return found


def _png(data: bytes) -> Header:
  if len(data) < 33 or data[12:16] != b'IHDR':
    raise _bad('a PNG that ends before its size')
  width, height = struct.unpack_from('>II', data, 16)
  orientation, at = 1, 33
  while at + 8 <= len(data):
    size = int.from_bytes(data[at : at + 4], 'big')
    kind = data[at + 4 : at + 8]
    if kind == b'eXIf':
      orientation = _orientation(data[at + 8 : at + 8 + size])
    if kind in (b'eXIf', b'IEND'):
      break
    at += 12 + size
  return Header(width, height, orientation)


def _jpeg(data: bytes) -> Header:
  orientation, at = 1, 2
  while at + 4 <= len(data):
    if data[at] != 0xFF:
      raise _bad(f'a JPEG without a marker at byte {at}')
    mark = data[at + 1]
    if mark == 0xFF:  # fill bytes may precede a marker
      at += 1
      continue
    if mark in _BARE:
      at += 2
      continue
    size = int.from_bytes(data[at + 2 : at + 4], 'big')
    body = data[at + 4 : at + 2 + size]
    if mark in _SIZES:
      if len(body) < 5:
        break
      height, width = struct.unpack_from('>HH', body, 1)
      return Header(width, height, orientation)
    if mark == 0xE1 and body.startswith(b'Exif\0\0'):
      orientation = _orientation(body[6:])
    if mark in (0xD9, 0xDA) or size < 2:
      break
    at += 2 + size
  raise _bad('a JPEG that ends before its size')


def _orientation(tiff: bytes) -> int:
  """EXIF's orientation; 1 where none, or none that can be, is said."""
  order = {b'II*\0': '<', b'MM\0*': '>'}.get(tiff[:4])
  if order is None or len(tiff) < 8:
    return 1
  (start,) = struct.unpack_from(f'{order}I', tiff, 4)
  if start + 2 > len(tiff):
    return 1
  (entries,) = struct.unpack_from(f'{order}H', tiff, start)
  for n in range(entries):
    at = start + 2 + 12 * n
    if at + 12 > len(tiff):
      return 1
    tag, kind = struct.unpack_from(f'{order}HH', tiff, at)
    if tag == _ORIENTATION:
      (value,) = struct.unpack_from(f'{order}H', tiff, at + 8)
      return value if kind == 3 and 1 <= value <= 8 else 1
  return 1


def read(path: str | os.PathLike[str]) -> bytes:
  """A picture's file.

  Raises:
    Rejected: MISSING_MEDIA, MEDIA_TOO_LARGE, or BAD_MEDIA where it may not be
      read.
  """
  name = os.path.basename(path)
  try:
    with open(path, 'rb') as f:
      data = f.read(MAX_BYTES + 1)
  except FileNotFoundError as e:
    raise errors.Rejected(errors.Reason.MISSING_MEDIA, os.fspath(path)) from e
  except (OSError, ValueError) as e:
    raise _bad(f'{name}: cannot be read ({e})') from e
  if len(data) > MAX_BYTES:
    raise errors.Rejected(
      errors.Reason.MEDIA_TOO_LARGE,
      f'{name}: more than {MAX_BYTES} bytes',
    )
  return data


def check_size(
  data: bytes, size: tuple[int, int], where: str, exact: bool = True
) -> None:
  """Refuses a picture on which boxes of `size` would lie elsewhere.

  Args:
    data: the encoded picture.
    size: (width, height) for which the boxes were annotated.
    where: for messages.
    exact: the very size; False asks for the same shape, to a hundredth.

  Raises:
    Rejected: as `header`; BAD_RECORD where size or shape differ. A picture
      that its EXIF turns, annotated as turned, is one of these.
  """
  try:
    found = header(data)
  except errors.Rejected as e:
    raise errors.Rejected(e.reason, f'{where}: {e.detail}') from e
  width, height = size
  if exact:
    same = found.size == size
  else:
    a, b = found.width * height, found.height * width
    # Half a pixel of either side, as rounding leaves it.
    same = abs(a - b) <= max(0.01 * max(a, b), width, height)
  if same:
    return
  turned = ''
  if found.orientation >= 5:
    turned = (
      ' (its EXIF turns it; store it turned, or annotate it as it is stored)'
    )
  raise errors.Rejected(
    errors.Reason.BAD_RECORD,
    f'{where}: a picture of {found.width}x{found.height} pixels{turned}, '
    f'annotated are {width}x{height}',
  )
