"""Qwen-VL's videos: sizes and settings, without torch."""

import json

import pytest

from corejax import errors
from corejax.models.qwen_vl import video

_RELEASED_2 = {'size': {'shortest_edge': 3136, 'longest_edge': 12845056}}
_RELEASED_3 = {'size': {'shortest_edge': 4096, 'longest_edge': 25165824}}
_CAP = {'cap_pixels_per_frame': True}


# (width, height), frames -> what `resize` of the two classes gives, with
# torchvision, in transformers 5.24. (2000 random shapes with each of these
# settings gave no difference.)
@pytest.mark.parametrize(
  'by_volume, config, expected',
  [
    (False, {}, [(644, 476), (1008, 560), (392, 280), (2100, 56), (336, 784)]),
    (
      False,
      _RELEASED_2,
      [(644, 476), (1932, 1092), (56, 56), (392, 28), (336, 784)],
    ),
    (
      False,
      {**_RELEASED_2, **_CAP, 'max_video_tokens': 2000},
      [(644, 476), (980, 560), (56, 56), (392, 28), (112, 308)],
    ),
    (True, {}, [(352, 256), (512, 288), (256, 192), (1376, 32), (64, 160)]),
    (
      True,
      _RELEASED_3,
      [(640, 480), (1920, 1088), (64, 64), (1376, 32), (320, 768)],
    ),
    (
      True,
      {**_RELEASED_3, **_CAP},
      [(640, 480), (1152, 640), (64, 64), (1376, 32), (320, 768)],
    ),
  ],
)
def test_sizes_are_those_of_transformers(by_volume, config, expected):
  spec = video.parse(config, by_volume, 'here')
  shapes = [
    ((640, 480), 8),
    ((1920, 1080), 5),
    ((64, 48), 3),
    ((300, 7), 6),
    ((333, 777), 64),
  ]
  assert [video.resized(spec, *shape) for shape in shapes] == expected


def test_files_in_the_order_of_transformers(tmp_path):
  def write(name, content):
    (tmp_path / name).write_text(json.dumps(content))

  def most(by_volume=False):
    return video.read(tmp_path, by_volume).frame.most

  write('preprocessor_config.json', {'min_pixels': 3136, 'max_pixels': 10**5})
  assert most() == 10**5
  assert most(by_volume=True) == 32 * 32 * 768  # its class knows no max_pixels
  size = {'shortest_edge': 3136, 'longest_edge': 2 * 10**5}
  write('video_preprocessor_config.json', {'size': size})
  assert most() == 2 * 10**5
  write('processor_config.json', {'processor_class': 'Qwen2VLProcessor'})
  assert most() == 2 * 10**5
  size['longest_edge'] = 3 * 10**5
  write('processor_config.json', {'video_processor': {'size': size}})
  assert most() == 3 * 10**5


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(video_processor_type='VideoMAE'), 'Qwen2VLVideoProcessor'),
    (dict(cap_pixels_per_frame=1), 'cap_pixels_per_frame=1'),
    (dict(max_video_tokens=0), 'max_video_tokens=0'),
    (dict(do_resize=False), 'do_resize'),
    (dict(sharpen=True), 'no such key'),
  ],
)
def test_refused_settings(change, message):
  with pytest.raises(errors.UserError, match=message):
    video.parse(change, False, 'here')
