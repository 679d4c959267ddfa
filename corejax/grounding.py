"""Boxes and time spans in words and numbers, and how far two of them agree.

How a box is written (`--box_answers`), for a picture of W x H pixels:

share     0.25 0.5 0.75 1     shares of the width and the height
square    likewise            of the picture padded to a square, in its middle:
                              LLaVA-1.5's training data
thousand  250 500 750 1000    thousandths: Qwen2-VL, Qwen3-VL, InternVL
pixel     160 240 480 480     pixels of the stored picture
resized   161 238 483 476     pixels of the picture as the model's processor
                              resizes it (here 644 x 476): Qwen2.5-VL

`auto` is the family's (Family.box_answers); where it is not known to us, as of
LLaVA-NeXT and OneVision, that is `share`.

Areas are plain: no pixel is added to a side. The REFER toolbox adds one to
both (a box of equal corners has an area there), so that a box within a pixel of
the threshold may be judged otherwise; papers on multimodal LLMs take the plain
area.
"""

from collections.abc import Mapping
import re

from corejax.data import example as example_lib

CONVENTIONS = ('share', 'square', 'thousand', 'pixel', 'resized')

Corners = tuple[float, float, float, float]

# Not scoring's: "12,345,100,200" is four numbers here, one there.
_NUMBER = re.compile(r'-?(?:\d+(?:\.\d+)?|\.\d+)', re.ASCII)
_DIGITS = 15  # a longer number is no coordinate
_KEY = 'bbox_2d'  # before the numbers of Qwen2.5-VL and Qwen3-VL; 2 is none


def write_box(corners: Corners, convention: str, size: tuple[int, int]) -> str:
  """A box in words, as `[x0, y0, x1, y1]`.

  Args:
    corners: shares of the picture.
    convention: one of CONVENTIONS.
    size: (width, height) of the picture in pixels; of 'resized', after that.
  """
  x_scale, x_shift, y_scale, y_shift = _frame(convention, size)
  x0, y0, x1, y1 = corners
  placed = (
    x0 * x_scale + x_shift,
    y0 * y_scale + y_shift,
    x1 * x_scale + x_shift,
    y1 * y_scale + y_shift,
  )
  digits = '.2f' if convention in ('share', 'square') else '.0f'
  return '[' + ', '.join(f'{value:{digits}}' for value in placed) + ']'


def _frame(convention: str, size: tuple[int, int]):
  """(scale, shift) of x and of y, from shares to what is written."""
  width, height = size
  side = max(width, height)
  return {
    'share': (1.0, 0.0, 1.0, 0.0),
    'square': (
      width / side,
      (side - width) / 2 / side,
      height / side,
      (side - height) / 2 / side,
    ),
    'thousand': (1000.0, 0.0, 1000.0, 0.0),
    'pixel': (float(width), 0.0, float(height), 0.0),
    'resized': (float(width), 0.0, float(height), 0.0),
  }[convention]


def read_box(
  text: str, convention: str | None, size: tuple[int, int] | None = None
) -> Corners | None:
  """The box that a text names, as shares of the picture.

  Args:
    text: holds four numbers and no other, in any brackets; a key `bbox_2d` of
      JSON counts as none.
    convention: one of CONVENTIONS; None takes shares, or thousandths where a
      number is beyond 1.
    size: (width, height) of the picture in pixels, which `square`, `pixel` and
      `resized` (the resized picture's) need.

  Returns:
    x0, y0, x1, y1 with x0 < x1 and y0 < y1, or None: other than four numbers,
    a negative one, or a box without area.
  """
  found = _NUMBER.findall(text.replace(_KEY, ''))
  if len(found) != 4 or max(map(len, found)) > _DIGITS:
    return None
  values = [float(number) for number in found]
  if min(values) < 0:
    return None
  if convention is None:
    convention = 'share' if max(values) <= 1 else 'thousand'
  if size is None:
    if convention in ('square', 'pixel', 'resized'):
      raise ValueError(f'{convention}: the size of the picture is needed')
    size = (1, 1)
  x_scale, x_shift, y_scale, y_shift = _frame(convention, size)
  x0, x1 = ((v - x_shift) / x_scale for v in values[::2])
  y0, y1 = ((v - y_shift) / y_scale for v in values[1::2])
  return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def box_iou(a: Corners, b: Corners) -> float:
  """Intersection over union of two boxes with area."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  shared = max(width, 0.0) * max(height, 0.0)
  areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
  return shared / (sum(areas) - shared)


def overlap(a: Corners, b: Corners) -> float:
  """Shared area as a share of the smaller box."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  smaller = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
  return max(width, 0.0) * max(height, 0.0) / smaller


def corners(box: example_lib.Box) -> Corners:
  """The corners of an evidence box."""
  return box.x0, box.y0, box.x1, box.y1


def t_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
  """Temporal IoU of two spans [start, end) in one unit; 0 if either is empty.

  VidSTG's m_tIoU is its mean over records.
  """
  if not (a[0] < a[1] and b[0] < b[1]):
    return 0.0
  shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
  return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def v_iou(
  said: Mapping[int, Corners],
  true: Mapping[int, Corners],
) -> float:
  """Spatio-temporal IoU of two tubes: VidSTG's vIoU.

  The sum of the boxes' IoU over frames that both tubes hold, divided by the
  number of frames that either holds. The mean over records is m_vIoU; the
  share of records above 0.3 and 0.5 are vIoU@0.3 and vIoU@0.5, declarative and
  interrogative ones apart.

  As evaluated in use (TubeDETR), both are read at 5 frames a second and at most
  200 frames; pass those frames alone.

  Args:
    said: frame number -> box, of the tube that was predicted.
    true: likewise, of the tube that is annotated.
  """
  frames = said.keys() | true.keys()
  if not frames:
    return 0.0
  both = said.keys() & true.keys()
  return sum(box_iou(said[f], true[f]) for f in both) / len(frames)


def read_numbers(text: str, count: int) -> list[float] | None:
  """So many numbers of a text that holds no other, none negative; or None.

  A hyphen between two numbers is a dash: "3-5" is 3 and 5.
  """
  found = re.findall(r'\d+(?:\.\d+)?|\.\d+', text, re.ASCII)
  if len(found) != count or max(map(len, found)) > _DIGITS:
    return None
  return [float(number) for number in found]
