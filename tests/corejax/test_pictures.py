"""What a picture's head says, against what Pillow says."""

import io
import struct

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import pictures as pictures_lib
from corejax.models import images
from helpers import pictures


def _noise(width, height):
  return pictures.noise(np.random.default_rng(0), width, height)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('progressive', [False, True])
def test_jpegs(mode, progressive):
  picture = Image.fromarray(_noise(30, 20)).convert(mode)
  data = pictures.jpeg(picture, progressive=progressive, comment=b'x' * 500)
  assert pictures_lib.header(data) == pictures_lib.Header(30, 20)
  assert images.size(data) == (30, 20)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', '1', 'RGBA'])
def test_pngs(mode):
  data = pictures.png(Image.fromarray(_noise(30, 20)).convert(mode))
  assert pictures_lib.header(data) == pictures_lib.Header(30, 20)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(orientation):
  data = pictures.turned(_noise(30, 20), orientation)
  assert pictures_lib.header(data).orientation == orientation
  with Image.open(io.BytesIO(data)) as opened:
    assert opened.getexif()[0x0112] == orientation
    png = pictures.png(opened.copy(), exif=opened.getexif())
  assert pictures_lib.header(png).orientation == orientation
  big = b'MM\0*' + struct.pack('>IHHHIHH', 8, 1, 0x0112, 3, 1, orientation, 0)
  jpeg = pictures.jpeg(_noise(30, 20))
  app = b'Exif\0\0' + big
  head = b'\xff\xe1' + struct.pack('>H', len(app) + 2) + app
  assert (
    pictures_lib.header(jpeg[:2] + head + jpeg[2:]).orientation == orientation
  )


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'neither PNG nor JPEG'),
    (b'GIF89a', 'neither PNG nor JPEG'),
    (b'\xff\xd8', 'ends before its size'),
    (b'\xff\xd8\xff\xd9xx', 'ends before its size'),
    (b'\xff\xd8abcd', 'without a marker at byte 2'),
    (b'\xff\xd8\xff\xc0\0\x03\x08', 'ends before its size'),
    (b'\xff\xd8\xff\xe0\0\0' * 3, 'ends before its size'),
    (pictures.png_head(1, 1)[:30], 'ends before its size'),
    (pictures.png_head(0, 9), '0x9 pixels'),
  ],
)
def test_damage(data, message):
  with pytest.raises(errors.Rejected, match=message) as caught:
    pictures_lib.header(data)
  assert caught.value.reason is errors.Reason.BAD_MEDIA


def test_what_is_too_large(tmp_path, monkeypatch):
  assert pictures_lib.MAX_PIXELS == images.MAX_PIXELS
  with pytest.raises(errors.Rejected, match='200000000') as caught:
    pictures_lib.header(pictures.png_head(20_000, 10_000))
  assert caught.value.reason is errors.Reason.MEDIA_TOO_LARGE
  monkeypatch.setattr(pictures_lib, 'MAX_BYTES', 10)
  (tmp_path / 'a.png').write_bytes(bytes(11))
  with pytest.raises(errors.Rejected, match='more than 10 bytes') as caught:
    pictures_lib.read(tmp_path / 'a.png')
  assert caught.value.reason is errors.Reason.MEDIA_TOO_LARGE


def test_files(tmp_path):
  with pytest.raises(errors.Rejected) as caught:
    pictures_lib.read(tmp_path / 'a.png')
  assert caught.value.reason is errors.Reason.MISSING_MEDIA
  with pytest.raises(errors.Rejected, match='cannot be read') as caught:
    pictures_lib.read(tmp_path)
  assert caught.value.reason is errors.Reason.BAD_MEDIA


def test_sizes_and_shapes():
  data = pictures.png(_noise(64, 36))
  pictures_lib.check_size(data, (64, 36), 'x')
  pictures_lib.check_size(data, (1280, 720), 'x', exact=False)
  pictures_lib.check_size(data, (640, 361), 'x', exact=False)  # rounded
  for size, exact in (((65, 36), True), ((36, 64), False), ((64, 48), False)):
    with pytest.raises(errors.Rejected, match='x: a picture of 64x36'):
      pictures_lib.check_size(data, size, 'x', exact)
