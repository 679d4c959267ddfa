"""Decoding of pictures: what is kept, what is refused, and with what reason."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.models import images
from helpers import pictures


def _reason(data):
  with pytest.raises(errors.Rejected) as caught:
    images.decode(data)
  return caught.value.reason


def test_rgb_png_is_kept_to_the_byte():
  pixels = pictures.noise(np.random.default_rng(0), 37, 21)
  assert (images.decode(pictures.png(pixels)) == pixels).all()
  assert images.size(pictures.png(pixels)) == (37, 21)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'RGBA', 'CMYK', 'YCbCr'])
def test_other_modes_are_converted_as_transformers_does(mode):
  from transformers import image_transforms

  rgba = pictures.noise(np.random.default_rng(1), 24, 16, 4)
  picture = Image.fromarray(rgba)
  picture = picture.convert('RGB') if mode in ('CMYK', 'YCbCr') else picture
  picture = picture.convert(mode)
  encode = pictures.jpeg if mode in ('CMYK', 'YCbCr') else pictures.png
  data = encode(picture)
  expected = image_transforms.convert_to_rgb(
    Image.open(io.BytesIO(data)), return_numpy=True
  )
  assert (images.decode(data) == expected).all()


def test_a_palette_with_transparency_lies_on_white():
  picture = Image.new('P', (4, 2))
  picture.putpalette([255, 0, 0, 0, 0, 255])
  picture.putpixel((1, 0), 1)
  data = pictures.png(picture, transparency=0)
  pixels = images.decode(data)
  assert tuple(pixels[0, 0]) == (255, 255, 255)
  assert tuple(pixels[0, 1]) == (0, 0, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
  grey = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
  pixels = images.decode(pictures.png(grey))
  assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]
  assert (pixels == pixels[..., :1]).all()


def test_exif_rotation_is_not_applied():
  pixels = pictures.noise(np.random.default_rng(2), 12, 8)
  exif = Image.Exif()
  exif[0x0112] = 6
  plain, turned = pictures.jpeg(pixels), pictures.jpeg(pixels, exif=exif)
  assert images.size(turned) == (12, 8)
  assert (images.decode(turned) == images.decode(plain)).all()


def _png_of_size(width, height):
  """A PNG whose header claims this size; it has no pixels to match."""

  def chunk(name, body):
    crc = zlib.crc32(name + body)
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', crc)

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(b'\0' * 100))
    + chunk(b'IEND', b'')
  )


def test_size_decodes_nothing():
  assert images.size(_png_of_size(50_000, 40_000)) == (50_000, 40_000)


@pytest.mark.parametrize(
  'size', [(9460, 9460), (20_000, 20_000), (2**31 - 1, 9)]
)
def test_bombs_are_refused_before_decoding(size):
  assert _reason(_png_of_size(*size)) is errors.Reason.MEDIA_TOO_LARGE


def test_the_largest_size_passes_the_check():
  images.check_pixels(9459, 9459, 'it')
  with pytest.raises(errors.Rejected, match='it is 89478486x1'):
    images.check_pixels(images.MAX_PIXELS + 1, 1, 'it')


@pytest.mark.parametrize(
  'data', [b'', b'GIF89a', b'%PDF-1.7', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff']
)
def test_what_is_no_picture_is_bad_media(data):
  assert _reason(data) is errors.Reason.BAD_MEDIA


@pytest.mark.parametrize('encode', [pictures.png, pictures.jpeg])
def test_truncated_files_are_bad_media(encode):
  data = encode(pictures.noise(np.random.default_rng(3), 64, 48))
  for share in (0.02, 0.3, 0.6, 0.9):
    cut = data[: int(len(data) * share)]
    assert _reason(cut) is errors.Reason.BAD_MEDIA, share


@pytest.mark.parametrize('encode', [pictures.png, pictures.jpeg])
def test_damaged_files_decode_or_are_rejected(encode):
  rng = np.random.default_rng(4)
  data = encode(pictures.noise(rng, 20, 14))
  rejected = 0
  for _ in range(400):
    broken = bytearray(data)
    for at in rng.integers(4, min(len(data), 400), 3):
      broken[at] = rng.integers(256)
    try:
      pixels = images.decode(bytes(broken))
      assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    except errors.Rejected:
      rejected += 1
  assert rejected > 20
