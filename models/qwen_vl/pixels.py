"""Qwen-VL's pixel pipeline: any picture -> patches, close to its own size.

    RGB picture -> resize (sides multiples of `factor`, area within bounds)
                -> rescale -> normalise -> patches [I, C * frames * y * x]

Patches stand block by block (models/qwen_vision.py); a picture is shown as so
many equal frames as a patch holds. `run` equals HF's Qwen2VLImageProcessorPil
(transformers 5.23) to the last bit. Frames of videos: video.py.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from corejax import errors
from corejax.models import checkpoint
from corejax.models import images
from corejax.models import pixels


@dataclasses.dataclass(frozen=True)
class Form:
  """A class of HF's whose settings are read here.

  Attributes:
    name: of the class.
    key: where a file names it.
    defaults: the class's, which a file may leave out.
    areas: bounds named `min_pixels` and `max_pixels` win over `size`.
    most: the largest bound that a file may give.
  """

  name: str
  key: str
  defaults: Mapping[str, Any]
  areas: bool
  most: int = images.MAX_PIXELS


IMAGE = Form(
  name='Qwen2VLImageProcessor',
  key='image_processor_type',
  defaults={
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
  },
  areas=True,
)
_AREAS = frozenset({'min_pixels', 'max_pixels'})
# Neither changes a pixel of ours: names, where HF runs, which frames of a video
# it would choose.
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
    'do_sample_frames',
    'feature_extractor_type',
    'fps',
    'image_processor_type',
    'image_seq_length',
    'input_data_format',
    'max_duration',
    'max_frames',
    'max_image_size',
    'min_frames',
    'num_frames',
    'pad_size',
    'processor_class',
    'return_metadata',
    'return_tensors',
    'video_metadata',
    'video_processor_type',
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
  check_shape(size)
  (width, height), factor = size, spec.factor
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


def check_shape(size: tuple[int, int]) -> None:
  """Refuses, as HF does, a picture one side of which is 200 times the other.

  Raises:
    Rejected: it is so.
  """
  if max(size) / min(size) > _MOST_ASPECT:
    raise errors.Rejected(
      errors.Reason.BAD_MEDIA,
      f'the picture is {size[0]}x{size[1]}; one side may be {_MOST_ASPECT} '
      'times the other at most',
    )


def cells(size: tuple[int, int], down: int, across: int) -> np.ndarray:
  """Which pixels each feature shows.

  Args:
    size: (width, height) of the picture.
    down, across: features along its sides.

  Returns:
    float64 [I, 4], x0 y0 x1 y1, in the picture's pixels.
  """
  x, y = np.meshgrid(np.arange(across), np.arange(down))
  corner = np.stack([x.reshape(-1), y.reshape(-1)], 1).astype(np.float64)
  step = np.array([size[0] / across, size[1] / down])
  return np.concatenate([corner * step, (corner + 1) * step], 1)


def run(
  spec: PatchSpec, image_HWC: np.ndarray, new_size: tuple[int, int]
) -> np.ndarray:
  """A picture, resized and normalised: float32 [C, height, width].

  Args:
    spec: what is done.
    image_HWC: uint8 [height, width, 3].
    new_size: (width, height) after the resize.
  """
  new_w, new_h = new_size
  exact = dataclasses.replace(spec.values, size=('exact', new_h, new_w))
  return pixels.run(exact, image_HWC)


def patches(spec: PatchSpec, frames: Sequence[np.ndarray]) -> np.ndarray:
  """What the tower takes of a picture, or of some frames of a video.

  Args:
    spec: what is done.
    frames: what `run` made: one picture, or `temporal` frames of one size.

  Returns:
    float32 [I, C * frames * y * x].
  """
  channels, height, width = frames[0].shape
  side, merge = spec.patch_size, spec.merge
  down, across = height // spec.factor, width // spec.factor
  made = np.empty(
    (down, across, merge, merge, channels, spec.temporal, side, side),
    np.float32,
  )
  for index in range(spec.temporal):
    made[:, :, :, :, :, index] = (
      frames[index if len(frames) > 1 else 0]
      .reshape(channels, down, merge, side, across, merge, side)
      .transpose(1, 4, 2, 5, 0, 3, 6)
    )
  return made.reshape(down * across * merge**2, -1)


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


def parse(
  config: Mapping[str, Any], where: str, form: Form = IMAGE
) -> PatchSpec:
  """A preprocessor_config.json's content.

  Args:
    config: the JSON object.
    where: file name for messages.
    form: whose it is.

  Raises:
    UserError: unknown class, unknown key, or a value that is not built.
  """

  def refuse(key, value, expected):
    raise errors.UserError(f'{where}: {key}={value!r}; expected {expected}')

  if not isinstance(config, Mapping):
    refuse(form.key.removesuffix('_type'), config, 'a JSON object')
  config = {k: v for k, v in config.items() if v is not None}
  kind = str(config.get(form.key, form.name))
  if kind.removesuffix('Fast').removesuffix('Pil') != form.name:
    refuse(form.key, kind, form.name)
  handled = {*form.defaults, *_AREAS, form.key}
  for key, value in config.items():
    if key not in handled | _IGNORED:
      refuse(key, value, f'no such key; known are {", ".join(sorted(handled))}')
  for key in ('do_center_crop', 'do_pad'):
    if config.get(key):
      refuse(key, config[key], 'false (Qwen-VL has no such step)')
  if config.get('do_resize', True) is not True:
    refuse('do_resize', config['do_resize'], 'true')
  given = {**form.defaults, **config}
  size = given['size']
  if not isinstance(size, Mapping):
    refuse('size', size, 'shortest_edge and longest_edge')
  least: Any = size.get('shortest_edge')
  most: Any = size.get('longest_edge')
  if form.areas:  # the files of 2024 name them by themselves
    least = given.get('min_pixels', least)
    most = given.get('max_pixels', most)
  for key, value, top in (
    ('size.shortest_edge', least, form.most),
    ('size.longest_edge', most, form.most),
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
