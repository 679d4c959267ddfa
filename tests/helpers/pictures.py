"""Encoded test pictures."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(pixels: np.ndarray | Image.Image, **options) -> bytes:
  """An array or Pillow picture as PNG."""
  if isinstance(pixels, np.ndarray):
    pixels = Image.fromarray(pixels)
  out = io.BytesIO()
  pixels.save(out, 'PNG', **options)
  return out.getvalue()


def jpeg(pixels: np.ndarray | Image.Image, **options) -> bytes:
  """An array or Pillow picture as JPEG."""
  if isinstance(pixels, np.ndarray):
    pixels = Image.fromarray(pixels)
  out = io.BytesIO()
  pixels.save(out, 'JPEG', **options)
  return out.getvalue()


def noise(
  rng: np.random.Generator, width: int, height: int, channels: int = 3
) -> np.ndarray:
  """uint8 noise [height, width, channels], or [height, width] for one."""
  shape = (height, width) if channels == 1 else (height, width, channels)
  return rng.integers(0, 256, shape, np.uint8)


def white_box(
  width: int, height: int, box: tuple[int, int, int, int]
) -> np.ndarray:
  """Black picture with a white rectangle x0 y0 x1 y1, in pixels."""
  x0, y0, x1, y1 = box
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[y0:y1, x0:x1] = 255
  return pixels


def png_head(width: int, height: int) -> bytes:
  """The head of a PNG that claims a size; no pixel follows."""
  body = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + struct.pack('>I', 13)
    + body
    + struct.pack('>I', zlib.crc32(body))
  )


def turned(pixels: np.ndarray, orientation: int = 6) -> bytes:
  """A JPEG whose EXIF asks viewers to turn it."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  return jpeg(pixels, exif=exif)
