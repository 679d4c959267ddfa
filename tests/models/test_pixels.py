"""The pixel pipeline against transformers' PIL processors, to the last bit."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest
from transformers.models.clip import image_processing_pil_clip
from transformers.models.llava import image_processing_pil_llava
from transformers.models.siglip import image_processing_pil_siglip

from corejax import errors
from corejax.models import images
from corejax.models import pixels
from helpers import pictures

_HF = {
  'LlavaImageProcessor': image_processing_pil_llava.LlavaImageProcessorPil,
  'CLIPImageProcessor': image_processing_pil_clip.CLIPImageProcessorPil,
  'SiglipImageProcessor': image_processing_pil_siglip.SiglipImageProcessorPil,
}
_SQUARE = {'height': 42, 'width': 42}
_CONFIGS = {
  'llava': dict(size={'shortest_edge': 42}, crop_size=_SQUARE),
  'llava pad': dict(size={'shortest_edge': 42}, crop_size=_SQUARE, do_pad=True),
  'llava pad squash': dict(
    size=_SQUARE, do_pad=True, do_center_crop=False, image_mean=[0.5, 0.2, 0.7]
  ),
  'llava odd crop': dict(
    size={'shortest_edge': 50}, crop_size={'height': 37, 'width': 40}
  ),
  'llava crop beyond': dict(
    size={'shortest_edge': 20}, crop_size={'height': 33, 'width': 29}
  ),
  'llava no resize': dict(
    do_resize=False, crop_size={'height': 31, 'width': 8}
  ),
  'llava longest': dict(
    size={'shortest_edge': 30, 'longest_edge': 47}, crop_size=_SQUARE
  ),
  'CLIP': dict(size={'shortest_edge': 42}, crop_size=_SQUARE),
  'CLIP old': dict(size=42, crop_size=42, feature_extractor_type='x'),
  'CLIP do_pad': dict(size=_SQUARE, do_center_crop=False, do_pad=True),
  'CLIP bilinear': dict(size={'shortest_edge': 42}, crop_size=42, resample=2),
  'CLIP box': dict(size=_SQUARE, crop_size=42, resample=4),
  'CLIP no normalise': dict(size=42, crop_size=42, do_normalize=False),
  'CLIP no rescale': dict(size=42, crop_size=42, do_rescale=False),
  'CLIP neither': dict(
    size=42, crop_size=42, do_rescale=False, do_normalize=False
  ),
  'CLIP other factor': dict(size=42, crop_size=42, rescale_factor=1 / 127.5),
  'Siglip': dict(size=_SQUARE),
  'Siglip crop': dict(
    size={'shortest_edge': 42}, do_center_crop=True, crop_size=_SQUARE
  ),
}
_SIZES = [(1, 1), (1, 60), (300, 7), (42, 42), (43, 42), (84, 42), (41, 127)]


def _kind(name):
  word = name.split()[0]
  return f'{word[0].upper()}{word[1:]}ImageProcessor'


def _config(name):
  return {'image_processor_type': _kind(name), **_CONFIGS[name]}


@pytest.mark.parametrize('name', _CONFIGS)
def test_equal_to_transformers(name):
  rng = np.random.default_rng(list(_CONFIGS).index(name))
  config = _config(name)
  spec = pixels.parse(config, name)
  reference = _HF[_kind(name)](**config)
  sizes = _SIZES + [tuple(rng.integers(2, 160, 2)) for _ in range(25)]
  for index, (width, height) in enumerate(sizes):
    channels = (3, 1, 4)[index % 3]
    data = pictures.png(pictures.noise(rng, width, height, channels))
    picture = Image.open(io.BytesIO(data))
    expected = reference(picture, return_tensors='np')['pixel_values'][0]
    got = pixels.run(spec, images.decode(data))
    assert got.dtype == np.float32
    assert got.shape == expected.shape, (width, height)
    assert (got == expected).all(), (width, height, channels)


@pytest.mark.parametrize('name', ['llava pad', 'llava pad squash'])
def test_the_pad_policy_is_do_pad(name):
  config = _config(name)
  asked = pixels.parse({**config, 'do_pad': False}, name, pad=True)
  assert asked == pixels.parse(config, name)


def test_the_pad_policy_pads_for_every_class():
  spec = pixels.parse(_config('Siglip'), 'file', pad=True)
  config = {**_config('Siglip'), 'image_mean': [0.5] * 3, 'do_pad': True}
  reference = _HF['LlavaImageProcessor'](
    **config, image_std=[0.5] * 3, do_center_crop=False
  )
  pixel = pictures.noise(np.random.default_rng(0), 30, 51)
  expected = reference(Image.fromarray(pixel), return_tensors='np')
  assert (pixels.run(spec, pixel) == expected['pixel_values'][0]).all()


@pytest.mark.parametrize('name', _CONFIGS)
def test_the_plan_knows_the_size(name):
  spec = pixels.parse(_config(name), name)
  sizes = set()
  for width, height in _SIZES:
    out = pixels.run(spec, np.zeros((height, width, 3), np.uint8))
    way = pixels.plan(spec, (width, height))
    assert way.out == out.shape[:0:-1]
    sizes.add(way.out)
  fixed = pixels.fixed_size(spec)
  assert sizes == {fixed} if fixed else len(sizes) > 1


def test_corners_go_back_to_the_picture():
  spec = pixels.parse(_config('llava'), 'file')
  way = pixels.plan(spec, (84, 42))  # neither scaled nor padded, cropped by 21
  corners = way.to_picture(np.array([0.0, 0.0, 42.0, 42.0]))
  assert corners.tolist() == [21, 0, 63, 42]
  spec = pixels.parse(_config('llava pad'), 'file')
  way = pixels.plan(spec, (84, 42))  # padded by 21 above, halved
  corners = way.to_picture(np.array([0.0, 0.0, 42.0, 42.0]))
  assert corners.tolist() == [0, -21, 84, 63]


@pytest.mark.parametrize('name', ['llava', 'llava pad'])
def test_strips_that_would_blow_up_are_refused(name):
  spec = pixels.parse(_config(name), name)
  with pytest.raises(errors.Rejected) as caught:
    pixels.plan(spec, (60_000, 1))
  assert caught.value.reason is errors.Reason.MEDIA_TOO_LARGE


def test_frames_are_resized_as_torch_does_it():
  """And so as torchvision; in any order the steps' rounding is another."""
  torch = pytest.importorskip('torch', reason='the reference is torch')
  rng, orders = np.random.default_rng(0), []
  sizes = [rng.integers(20, 160, (2, 2)) for _ in range(40)]
  for (width, height), new_size in [*sizes, ((60, 90), (70, 32))]:
    spec = pixels.PixelSpec(
      pad=False,
      size=('exact', *new_size[::-1]),
      resample=Image.Resampling.BICUBIC,
      crop=None,
      rescale=None,
      mean=None,
      std=None,
      pad_mean=(0, 0, 0),
      across_first=True,
    )
    # Squares: their edges ring, and where they do, values are cut off.
    noise = pictures.noise(rng, 20, 20).repeat(8, 0).repeat(8, 1)
    noise = noise[:height, :width]
    expected = torch.nn.functional.interpolate(
      torch.tensor(noise).permute(2, 0, 1)[None],
      size=tuple(new_size[::-1]),
      mode='bicubic',
      antialias=True,
    )[0].numpy()
    got = pixels.run(spec, noise)
    assert np.abs(got - expected).max() <= 2
    down = Image.fromarray(noise).resize((width, new_size[1]), spec.resample)
    down = np.array(down.resize(tuple(new_size), spec.resample))
    orders.append(np.abs(down.transpose(2, 0, 1) - expected).max())
  assert np.median(orders) > 4
  tall = dataclasses.replace(spec, size=('exact', 448, 448))
  with pytest.raises(
    errors.Rejected, match='frame resized across is 448x'
  ) as e:
    pixels.plan(tall, (1, 10**6))
  assert e.value.reason is errors.Reason.MEDIA_TOO_LARGE


def test_strips_of_which_nothing_is_left_are_refused():
  sizes = {'shortest_edge': 336, 'longest_edge': 336}
  config = dict(_config('llava'), size=sizes)
  spec = pixels.parse(config, 'file')
  assert min(pixels.plan(spec, (300, 1)).resized) == 1
  with pytest.raises(errors.Rejected, match='9000x1 picture resized') as caught:
    pixels.plan(spec, (9000, 1))
  assert caught.value.reason is errors.Reason.BAD_MEDIA


@pytest.mark.parametrize(
  'change, said',
  [
    (dict(image_processor_type='BitImageProcessor'), 'BitImageProcessor'),
    (dict(image_grid_pinpoints=[[336, 672]]), 'image_grid_pinpoints'),
    (dict(do_flip_channel_order=True), 'do_flip_channel_order'),
    (dict(size={'max_height': 4, 'max_width': 4}), 'max_height'),
    (dict(size={'longest_edge': 336}), 'longest_edge'),
    (dict(size='large'), 'large'),
    (dict(size={'height': 0, 'width': 4}), 'height'),
    (dict(crop_size={'shortest_edge': 336}), 'crop_size'),
    (dict(resample=9), 'resample=9'),
    (dict(resample='bicubic'), 'resample'),
    (dict(resample=True), 'resample=True'),
    (dict(size={'height': -4, 'width': 4}), 'height'),
    (dict(size={'shortest_edge': 10**9}), 'in pixels up to 9000'),
    (dict(size={'shortest_edge': 336, 'longest_edge': 0}), 'longest_edge'),
    (dict(image_std=[0.3, 0.0, 0.3]), 'image_std'),
    (dict(image_std=0), 'image_std'),
    (dict(image_mean=[float('nan')] * 3), 'image_mean'),
    (dict(image_mean=10**400), 'image_mean'),
    (dict(rescale_factor=float('inf')), 'rescale_factor=inf'),
    (dict(rescale_factor=0), 'rescale_factor=0'),
    (dict(do_resize='false'), "do_resize='false'"),
    (dict(rescale_factor='1/255'), 'rescale_factor'),
    (dict(image_mean=[0.5, 0.5]), 'image_mean'),
    (dict(image_std='x'), 'image_std'),
    (dict(image_mean=[120.0, 110.0, 100.0], do_pad=True), 'image_mean'),
    (dict(data_format='channels_last'), 'channels_last'),
  ],
)
def test_what_is_not_built_is_refused(change, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    pixels.parse({**_config('llava'), **change}, 'folder/file.json')
  assert str(caught.value).startswith('folder/file.json: ')
  assert '\n' not in str(caught.value)


def test_pad_size_of_another_class_is_refused():
  config = {**_config('CLIP'), 'do_pad': True, 'pad_size': 50}
  with pytest.raises(errors.UserError, match='pad_size=50'):
    pixels.parse(config, 'file')


def test_nulls_and_what_moves_no_pixel_are_let_through():
  config = {
    **_config('llava'),
    'image_std': None,
    'unheard_of': None,
    '_valid_processor_keys': ['images'],
    'processor_class': 'LlavaProcessor',
    'device': 'cpu',
    'data_format': 'channels_first',
    'do_convert_rgb': True,
  }
  assert pixels.parse(config, 'file') == pixels.parse(_config('llava'), 'file')


@pytest.mark.parametrize('suffix', ['', 'Fast', 'Pil'])
def test_class_names_of_all_ages(suffix):
  config = dict(_CONFIGS['CLIP'], image_processor_type='CLIPImageProcessor')
  named = {**config, 'image_processor_type': f'CLIPImageProcessor{suffix}'}
  assert pixels.parse(named, 'f') == pixels.parse(config, 'f')
  old = dict(_CONFIGS['CLIP'], feature_extractor_type='CLIPFeatureExtractor')
  assert pixels.parse(old, 'f') == pixels.parse(config, 'f')


def test_read_prefers_the_nested_config(tmp_path):
  with pytest.raises(errors.UserError, match='preprocessor_config.json'):
    pixels.read(tmp_path)
  flat = tmp_path / 'preprocessor_config.json'
  flat.write_text(json.dumps(_config('CLIP')))
  nested = tmp_path / 'processor_config.json'
  nested.write_text(json.dumps({'patch_size': 14}))
  assert pixels.read(tmp_path) == pixels.parse(_config('CLIP'), 'f')
  nested.write_text(json.dumps({'image_processor': _config('Siglip')}))
  assert pixels.read(tmp_path) == pixels.parse(_config('Siglip'), 'f')
  padded = dataclasses.replace(pixels.read(tmp_path), pad=True)
  assert pixels.read(tmp_path, pad=True) == padded
  nested.write_text(json.dumps({'image_processor': 7}))
  with pytest.raises(errors.UserError, match='JSON object'):
    pixels.read(tmp_path)
