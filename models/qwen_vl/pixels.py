"""Qwen-VL's pixel pipeline: any picture -> patches, close to its own size.

    RGB picture -> resize (sides multiples of `factor`, area within bounds)
                -> rescale -> normalise -> patches [I, C * frames * y * x]

Patches stand block by block (models/qwen_vision.py); a picture is shown as so
many equal frames as a patch holds. `run` equals HF's Qwen2VLImageProcessorPil
(transformers 5.23) to the last bit.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from corejax import errors
from corejax.models import checkpoint
from corejax.models import images
from corejax.models import pixels

_CLASS = 'Qwen2VLImageProcessor'
# HF's class defaults, which a file may leave out.
_DEFAULTS: Mapping[str, Any] = {
  'do_resize': True,
  'do_rescale': True,
  'do_normalize': True,
  'do_convert_rgb': True,
  'resample': 3,
  'rescale_factor': 1 / 255,
  'image_mean': (0.48145466, 0.4578275, 0.40821073),
  'image_std': (0.26862954, 0.26130258, 0.27577711),
  'size': {'shortest_edge': 56 * 56, 'longest_edge': 28 * 28 * 1280},
  'patch_size': 14,
  'temporal_patch_size': 2,
  'merge_size': 2,
}
_HANDLED = frozenset(
  {*_DEFAULTS, 'min_pixels', 'max_pixels', 'image_processor_type'}
)
# Neither changes a pixel of ours: names, where HF runs, or how videos are read.
_IGNORED = frozenset(
  {
    '_valid_processor_keys',
    'auto_map',
    'crop_size',
    'data_format',
    'default_to_square',
    'device',
    'disable_grouping',
    'do_center_crop',
    'do_pad',
    'feature_extractor_type',
    'image_seq_length',
    'input_data_format',
    'pad_size',
    'processor_class',
    'return_tensors',
  }
)
_MOST_ASPECT = 200


@dataclasses.dataclass(frozen=True)
class PatchSpec:
  """What is done to a picture.

  Attributes:
    patch_size: side of a patch, pixels.
    merge: patches along each side of a feature's block.
    temporal: frames a patch holds.
    least, most: bounds of the resized picture's area, pixels.
    values: resampling, rescaling and normalisation (its sizes are not used).
  """

  patch_size: int
  merge: int
  temporal: int
  least: int
  most: int
  values: pixels.PixelSpec

  @property
  def factor(self) -> int:
    """Pixels along each side of one feature's cell."""
    return self.patch_size * self.merge


def resized(spec: PatchSpec, size: tuple[int, int]) -> tuple[int, int]:
  """(width, height) at which the tower sees a picture of (width, height).

  HF's smart_resize, with its rounding (half to even), floors and ceilings.

  Raises:
    Rejected: one side is more than 200 times the other (as in HF), or the
      resized picture would be larger than images.MAX_PIXELS.
  """
  width, height = size
  if max(size) / min(size) > _MOST_ASPECT:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA,
      f'the picture is {width}x{height}; one side may be {_MOST_ASPECT} times '
      'the other at most',
    )
  factor = spec.factor
  new_h = round(height / factor) * factor
  new_w = round(width / factor) * factor
  if new_h * new_w > spec.most:
    shrink = math.sqrt(height * width / spec.most)
    new_h = max(factor, math.floor(height / shrink / factor) * factor)
    new_w = max(factor, math.floor(width / shrink / factor) * factor)
  elif new_h * new_w < spec.least:
    grow = math.sqrt(spec.least / (height * width))
    new_h = math.ceil(height * grow / factor) * factor
    new_w = math.ceil(width * grow / factor) * factor
  if not new_h * new_w:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA, f'the {width}x{height} picture resized is empty'
    )
  images.check_pixels(new_w, new_h, f'the {width}x{height} picture resized')
  return new_w, new_h


def cells(spec: PatchSpec, size: tuple[int, int]) -> np.ndarray:
  """float64 [I, 4], x0 y0 x1 y1 of each feature, in the picture's pixels."""
  new_w, new_h = resized(spec, size)
  across, down = new_w // spec.factor, new_h // spec.factor
  x, y = np.meshgrid(np.arange(across), np.arange(down))
  corner = np.stack([x.reshape(-1), y.reshape(-1)], 1).astype(np.float64)
  step = np.array([size[0] / across, size[1] / down])
  return np.concatenate([corner * step, (corner + 1) * step], 1)


def run(spec: PatchSpec, image_HWC: np.ndarray) -> np.ndarray:
  """A picture, resized and normalised: float32 [C, height, width].

  Args:
    image_HWC: uint8 [height, width, 3].

  Raises:
    Rejected: see `resized`.
  """
  height, width = image_HWC.shape[:2]
  new_w, new_h = resized(spec, (width, height))
  exact = dataclasses.replace(spec.values, size=('exact', new_h, new_w))
  return pixels.run(exact, image_HWC)


def patches(spec: PatchSpec, image_CYX: np.ndarray) -> np.ndarray:
  """float32 [I, C * frames * y * x] of what `run` made."""
  channels, height, width = image_CYX.shape
  side, merge = spec.patch_size, spec.merge
  down, across = height // spec.factor, width // spec.factor
  split = image_CYX.reshape(
    channels, down, merge, side, across, merge, side
  ).transpose(1, 4, 2, 5, 0, 3, 6)
  frames = np.broadcast_to(
    split[:, :, :, :, :, None],
    (*split.shape[:5], spec.temporal, side, side),
  )
  return frames.reshape(down * across * merge**2, -1)


def read(folder: pathlib.Path) -> PatchSpec:
  """The PatchSpec of a checkpoint folder; files in HF's order.

  Raises:
    UserError: no such file, unreadable, or it asks for what is not built.
  """
  path = folder / 'processor_config.json'
  if path.exists():
    config = checkpoint.read_json(path)
    if 'image_processor' in config:
      return parse(config['image_processor'], str(path))
  path = folder / 'preprocessor_config.json'
  return parse(checkpoint.read_json(path), str(path))


def parse(config: Mapping[str, Any], where: str) -> PatchSpec:
  """A preprocessor_config.json's content.

  Args:
    config: the JSON object.
    where: file name for messages.

  Raises:
    UserError: unknown class, unknown key, or a value that is not built.
  """

  def refuse(key, value, expected):
    raise errors.UserError(f'{where}: {key}={value!r}; expected {expected}')

  if not isinstance(config, Mapping):
    refuse('image_processor', config, 'a JSON object')
  config = {k: v for k, v in config.items() if v is not None}
  kind = str(config.get('image_processor_type', _CLASS))
  if kind.removesuffix('Fast').removesuffix('Pil') != _CLASS:
    refuse('image_processor_type', kind, _CLASS)
  for key, value in config.items():
    if key not in _HANDLED | _IGNORED:
      refuse(
        key, value, f'no such key; known are {", ".join(sorted(_HANDLED))}'
      )
  for key in ('do_center_crop', 'do_pad'):
    if config.get(key):
      refuse(key, config[key], 'false (Qwen-VL has no such step)')
  if config.get('do_resize', True) is not True:
    refuse('do_resize', config['do_resize'], 'true')
  given = {**_DEFAULTS, **config}
  size = given['size']
  if not isinstance(size, Mapping):
    refuse('size', size, 'shortest_edge and longest_edge')
  # The files of 2024 name areas by themselves; they win, as in HF.
  least: Any = given.get('min_pixels', size.get('shortest_edge'))
  most: Any = given.get('max_pixels', size.get('longest_edge'))
  for key, value, top in (
    ('size.shortest_edge', least, images.MAX_PIXELS),
    ('size.longest_edge', most, images.MAX_PIXELS),
    ('patch_size', given['patch_size'], 1 << 10),
    ('temporal_patch_size', given['temporal_patch_size'], 64),
    ('merge_size', given['merge_size'], 64),
  ):
    if type(value) is not int or not 0 < value <= top:
      refuse(key, value, f'a whole number from 1 to {top}')
  factor = given['patch_size'] * given['merge_size']
  if least > most or most < factor**2:
    refuse(
      'size', (least, most), f'bounds of an area of at least {factor}x{factor}'
    )
  steps = {
    key: given[key]
    for key in (
      'do_convert_rgb',
      'do_normalize',
      'do_rescale',
      'image_mean',
      'image_std',
      'resample',
      'rescale_factor',
    )
  }
  side = {'height': factor, 'width': factor}
  steps['image_processor_type'] = 'SiglipImageProcessor'  # no crop, no padding
  return PatchSpec(
    patch_size=given['patch_size'],
    merge=given['merge_size'],
    temporal=given['temporal_patch_size'],
    least=least,
    most=most,
    values=pixels.parse({**steps, 'size': side}, where),
  )
