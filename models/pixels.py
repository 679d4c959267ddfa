"""The pixel pipeline of CLIP-like processors, as data.

    RGB picture -> pad to a square -> resize -> centre crop -> rescale
                -> normalise -> float32 [C, height, width]

`PixelSpec` is what a checkpoint's preprocessor_config.json asks for; `run`
equals HF's PIL processors (transformers 5.23) to the last bit; `plan` is the
geometry alone, from which both the pixels and the token cells follow.

A resize goes along one axis, then the other, and rounds in between, so their
order shows at hard edges (up to 15 grey levels of 255). Pillow goes across
first, and since 13 down first where that is less work; torch, with which HF
resizes videos, always goes across first. Here pictures are resized as the
installed Pillow does it, frames of videos across first with any.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from corejax import errors
from corejax.models import checkpoint
from corejax.models import images

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# HF's class defaults, which a file may leave out.
_CLIP = dict(
  resample=3,
  image_mean=_CLIP_MEAN,
  image_std=_CLIP_STD,
  size={'shortest_edge': 224},
  crop_size={'height': 224, 'width': 224},
  do_center_crop=True,
)
_SIGLIP = dict(
  resample=3,
  image_mean=(0.5, 0.5, 0.5),
  image_std=(0.5, 0.5, 0.5),
  size={'height': 224, 'width': 224},
  crop_size=None,
  do_center_crop=False,
)
_CLASSES = {
  'LlavaImageProcessor': _CLIP,
  'CLIPImageProcessor': _CLIP,
  'CLIPFeatureExtractor': _CLIP,
  'SiglipImageProcessor': _SIGLIP,
}
_SWITCHES = (
  'do_resize',
  'do_rescale',
  'do_normalize',
  'do_convert_rgb',
  'do_pad',
  'do_center_crop',
)
_LONGEST = 9000  # pixels along a side; its square is within images.MAX_PIXELS
_SHARED = dict(
  do_resize=True,
  do_rescale=True,
  rescale_factor=1 / 255,
  do_normalize=True,
  do_convert_rgb=True,
  do_pad=False,
  pad_size=None,
  default_to_square=False,
)
_HANDLED = {
  *_SHARED,
  *_CLIP,
  'data_format',
  'feature_extractor_type',
  'image_processor_type',
}
# Neither changes a pixel of ours: names, and where HF runs or puts its arrays.
_IGNORED = {
  '_valid_processor_keys',
  'auto_map',
  'device',
  'disable_grouping',
  'image_seq_length',
  'processor_class',
  'return_tensors',
}


@dataclasses.dataclass(frozen=True)
class PixelSpec:
  """What is done to a picture, in the order of the fields.

  Attributes:
    pad: pad to a square with the mean colour first (left/top gets the smaller
      half).
    size: None (no resize); ('shortest', s) or ('shortest', s, longest) keeps
      the aspect; ('exact', height, width) does not.
    resample: Pillow's filter number (3 is bicubic).
    crop: (height, width) of the centre crop (zeros where the picture is
      smaller) or None.
    rescale: factor or None.
    mean, std: per channel, after rescaling; None without normalisation.
    pad_mean: mean whose `int(255 * x)` is the padding's colour.
    across_first: resize across, then down, whatever Pillow's version prefers.
  """

  pad: bool
  size: tuple | None
  resample: int
  crop: tuple[int, int] | None
  rescale: float | None
  mean: tuple[float, ...] | None
  std: tuple[float, ...] | None
  pad_mean: tuple[float, ...]
  across_first: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """Geometry of one picture's way through a PixelSpec.

  Attributes:
    size: (width, height) of the picture.
    padded: (width, height) after padding.
    pad: (left, top) padding.
    resized: (width, height) after resizing.
    crop: (left, top) of the crop in the resized picture; negative where the
      crop is larger.
    out: (width, height) at the end.
  """

  size: tuple[int, int]
  padded: tuple[int, int]
  pad: tuple[int, int]
  resized: tuple[int, int]
  crop: tuple[int, int]
  out: tuple[int, int]

  def to_picture(self, xy_W: np.ndarray) -> np.ndarray:
    """Corners in the processed picture -> the original picture's pixels.

    Args:
      xy_W: float64 [..., 4], x0 y0 x1 y1.
    """
    scale = np.divide(self.padded, self.resized)
    shift = np.array([*self.crop, *self.crop], np.float64)
    back = (xy_W + shift) * np.array([*scale, *scale])
    return back - np.array([*self.pad, *self.pad], np.float64)


def plan(spec: PixelSpec, size: tuple[int, int]) -> Plan:
  """The geometry for a picture of (width, height) pixels.

  Raises:
    Rejected: padding or resizing would make it larger than images.MAX_PIXELS
      (a strip of 1x9000 pixels becomes 336x3024000), or leave nothing of it.
  """
  width, height = padded = size
  pad = (0, 0)
  if spec.pad:
    side = max(size)
    pad = ((side - width) // 2, (side - height) // 2)
    width, height = padded = (side, side)
    images.check_pixels(
      width, height, f'the {size[0]}x{size[1]} picture padded'
    )
  if spec.size is not None:
    width, height = _resized(spec.size, width, height)
    images.check_pixels(
      width, height, f'the {size[0]}x{size[1]} picture resized'
    )
    if spec.across_first:
      images.check_pixels(
        width, padded[1], f'the {size[0]}x{size[1]} frame resized across'
      )
    if min(width, height) < 1:
      raise errors.Rejected(
        errors.Reason.BAD_MEDIA,
        f'the {size[0]}x{size[1]} picture resized is {width}x{height}',
      )
  resized = (width, height)
  crop = (0, 0)
  if spec.crop is not None:
    # Floor division: an odd rest goes to the right and below, when cropping,
    # and to the left and above, when filling up.
    crop = ((width - spec.crop[1]) // 2, (height - spec.crop[0]) // 2)
    height, width = spec.crop
  return Plan(size, padded, pad, resized, crop, (width, height))


def fixed_size(spec: PixelSpec) -> tuple[int, int] | None:
  """(width, height) of every processed picture; None if they differ."""
  if spec.crop is not None:
    return spec.crop[1], spec.crop[0]
  if spec.size is None:
    return None
  if spec.size[0] == 'exact':
    return spec.size[2], spec.size[1]
  # A square keeps its shape; any other picture's long edge varies.
  return plan(spec, (1, 1)).out if spec.pad else None


def _resized(rule: tuple, width: int, height: int) -> tuple[int, int]:
  """(width, height) after resizing; rounds towards zero as HF does."""
  if rule[0] == 'exact':
    return rule[2], rule[1]
  short, long = min(width, height), max(width, height)
  edge = ideal = rule[1]
  if len(rule) == 3:
    if long / short * edge > rule[2]:
      ideal = rule[2] * short / long
      edge = round(ideal)
    if short == edge:
      return width, height
  stretched = int(ideal * long / short)
  return (edge, stretched) if width < height else (stretched, edge)


def run(spec: PixelSpec, image_HWC: np.ndarray) -> np.ndarray:
  """A picture as the tower takes it.

  Args:
    image_HWC: uint8 [height, width, 3].

  Returns:
    float32 [3, out height, out width].

  Raises:
    Rejected: see `plan`.
  """
  height, width = image_HWC.shape[:2]
  way = plan(spec, (width, height))
  if spec.pad and way.padded != way.size:
    colour = np.array([int(255 * x) for x in spec.pad_mean], np.uint8)
    padded = np.empty((way.padded[1], way.padded[0], 3), np.uint8)
    padded[:] = colour
    left, top = way.pad
    padded[top : top + height, left : left + width] = image_HWC
    image_HWC = padded
  if spec.size is not None:
    picture = Image.fromarray(image_HWC)
    if spec.across_first:
      across = (way.resized[0], picture.height)
      picture = picture.resize(across, spec.resample)
    image_HWC = np.array(picture.resize(way.resized, spec.resample))
  if spec.crop is not None:
    image_HWC = _crop(image_HWC, way)
  out = image_HWC.transpose(2, 0, 1).astype(np.float32)
  if spec.rescale is not None:
    # float64 first, as in HF: float32 products differ in the last bit.
    out = (out.astype(np.float64) * spec.rescale).astype(np.float32)
  if spec.mean is not None:
    mean = np.array(spec.mean, np.float32)[:, None, None]
    out = (out - mean) / np.array(spec.std, np.float32)[:, None, None]
  return np.ascontiguousarray(out)


def _crop(image_HWC: np.ndarray, way: Plan) -> np.ndarray:
  """Centre crop; zeros where the picture is smaller than the crop."""
  (left, top), (width, height) = way.crop, way.out
  out = np.zeros((height, width, 3), np.uint8)
  inner = image_HWC[
    max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width
  ]
  y, x = max(-top, 0), max(-left, 0)
  out[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
  return out


def read(folder: str | pathlib.Path, pad: bool | None = None) -> PixelSpec:
  """The PixelSpec of a checkpoint folder.

  HF's order: `image_processor` in processor_config.json (transformers 5 writes
  it there), else preprocessor_config.json.

  Args:
    folder: the checkpoint.
    pad: True pads to a square whatever the file says; None obeys the file.

  Raises:
    UserError: no such file, unreadable, or it asks for what is not built.
  """
  config, where = find(folder)
  return parse(config, where, pad)


def find(folder: str | pathlib.Path) -> tuple[Any, str]:
  """(the image processor's settings, the file that holds them).

  Raises:
    UserError: no such file, or unreadable.
  """
  folder = pathlib.Path(folder)
  path = folder / 'processor_config.json'
  if path.exists():
    config = checkpoint.read_json(path)
    if 'image_processor' in config:
      return config['image_processor'], str(path)
  path = folder / 'preprocessor_config.json'
  return checkpoint.read_json(path), str(path)


def parse(
  config: Mapping[str, Any],
  where: str,
  pad: bool | None = None,
  classes: Mapping[str, Mapping[str, Any]] = _CLASSES,
) -> PixelSpec:
  """A preprocessor_config.json's content as a PixelSpec.

  Args:
    config: the JSON object.
    where: file name for messages.
    pad: see `read`.
    classes: HF class -> the defaults of what a file may leave out; a file
      that names none has the first.

  Raises:
    UserError: unknown class, unknown key, or a value that is not built.
  """

  def refuse(key, value, expected):
    raise errors.UserError(f'{where}: {key}={value!r}; expected {expected}')

  if not isinstance(config, Mapping):
    refuse('image_processor', config, 'a JSON object')
  # HF takes a null for the class default.
  config = {k: v for k, v in config.items() if v is not None}
  kind = config.get('image_processor_type') or config.get(
    'feature_extractor_type', next(iter(classes))
  )
  base = str(kind).removesuffix('Fast').removesuffix('Pil')
  if base not in classes:
    refuse('image_processor_type', kind, f'one of {", ".join(classes)}')
  for key in config:
    if key not in _HANDLED | _IGNORED:
      refuse(key, config[key], 'no such key (it might change the pixels)')
  if config.get('data_format') not in (None, 'channels_first'):
    refuse('data_format', config['data_format'], "'channels_first'")
  value = {**_SHARED, **classes[base], **config}
  for key in (*_SWITCHES, 'default_to_square'):
    if type(value[key]) is not bool:
      refuse(key, value[key], 'true or false')
  mean = _channels(value['image_mean'], 'image_mean', where)
  std = _channels(value['image_std'], 'image_std', where)
  if not all(abs(x) > 1e-30 for x in std):
    refuse('image_std', value['image_std'], 'numbers other than 0')
  do_pad = value['do_pad']
  if base != 'LlavaImageProcessor':
    # In HF's other classes padding comes last and evens out a batch: pictures
    # of one size are left as they are.
    if do_pad and value['pad_size'] is not None:
      refuse('pad_size', value['pad_size'], 'null')
    do_pad = False
  do_pad = do_pad if pad is None else pad
  if do_pad and not all(0 <= int(255 * x) <= 255 for x in mean):
    refuse('image_mean', mean, 'shares of 255 (it is the padding colour)')
  if not _is_number(value['rescale_factor']) or not value['rescale_factor']:
    refuse('rescale_factor', value['rescale_factor'], 'a number other than 0')
  if type(value['resample']) is not int or value['resample'] not in range(6):
    refuse('resample', value['resample'], 'a Pillow filter number 0..5')
  crop = None
  if value['do_center_crop']:
    rule = _size(value['crop_size'], True, 'crop_size', where)
    if rule[0] != 'exact':
      refuse('crop_size', value['crop_size'], 'height and width')
    crop = (rule[1], rule[2])
  size = None
  if value['do_resize']:
    size = _size(value['size'], value['default_to_square'], 'size', where)
  return PixelSpec(
    pad=do_pad,
    size=size,
    resample=int(value['resample']),
    crop=crop,
    rescale=float(value['rescale_factor']) if value['do_rescale'] else None,
    mean=mean if value['do_normalize'] else None,
    std=std if value['do_normalize'] else None,
    pad_mean=mean,
  )


def _is_number(value: Any) -> bool:
  """Finite in float32, in which pictures are."""
  return type(value) in (int, float) and abs(value) < 1e30


def _channels(value, key: str, where: str) -> tuple[float, ...]:
  """Three numbers; one number stands for three."""
  numbers = value if isinstance(value, (list, tuple)) else [value] * 3
  if len(numbers) != 3 or not all(map(_is_number, numbers)):
    raise errors.UserError(f'{where}: {key}={value!r}; expected three numbers')
  return tuple(float(x) for x in numbers)


def _size(value, square: bool, key: str, where: str) -> tuple:
  """A PixelSpec.size from HF's int, pair or dict."""
  if isinstance(value, (list, tuple)) and len(value) == 2:
    value = {'height': value[0], 'width': value[1]}
  elif isinstance(value, int) and square:
    value = {'height': value, 'width': value}
  elif isinstance(value, int):
    value = {'shortest_edge': value}
  if isinstance(value, Mapping):
    given = {k: v for k, v in value.items() if v is not None}
    if all(type(v) is int and 0 < v <= _LONGEST for v in given.values()):
      if set(given) == {'height', 'width'}:
        return 'exact', given['height'], given['width']
      if set(given) == {'shortest_edge'}:
        return 'shortest', given['shortest_edge']
      if set(given) == {'shortest_edge', 'longest_edge'}:
        return 'shortest', given['shortest_edge'], given['longest_edge']
  raise errors.UserError(
    f'{where}: {key}={value!r}; expected height and width, or shortest_edge '
    f'(with longest_edge), in pixels up to {_LONGEST}'
  )
