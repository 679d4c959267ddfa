"""Qwen-VL's files under mutation: `python -m pytest -m fuzz -s`."""

import pytest

from corejax import errors
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import pixels
from helpers import mutation
from helpers import qwen_released

pytestmark = pytest.mark.fuzz


@pytest.mark.parametrize(
  'name',
  ['Qwen2-VL-2B-Instruct', 'Qwen2.5-VL-7B-Instruct', 'Qwen3-VL-4B-Instruct'],
)
def test_config(tmp_path, name):
  good = qwen_released.config(name)
  kind, write = good['model_type'], (tmp_path / 'config.json').write_bytes

  def make(rng):
    return mutation.dumps(rng, mutation.mutate_json(rng, good))

  def parse(data):
    write(data)
    config_lib.read(tmp_path, kind)

  found = mutation.count_outcomes(f'config.json, {kind}', make, parse, 15_000)
  assert min(found['accepted'], found['UserError']) > 100


def test_preprocessor():
  good = {
    'do_normalize': True,
    'do_resize': True,
    'image_mean': [0.48, 0.45, 0.40],
    'image_std': [0.26, 0.26, 0.27],
    'image_processor_type': 'Qwen2VLImageProcessorFast',
    'max_pixels': 12845056,
    'merge_size': 2,
    'min_pixels': 3136,
    'patch_size': 14,
    'resample': 3,
    'rescale_factor': 1 / 255,
    'size': {'shortest_edge': 3136, 'longest_edge': 12845056},
    'temporal_patch_size': 2,
  }
  sizes = ((1, 1), (640, 480), (1, 9000), (3, 2), (200, 1))
  allowed = (errors.UserError, errors.Rejected)

  def make(rng):
    return mutation.mutate_json(rng, good), rng.choice(sizes)

  def parse(given):
    content, size = given
    spec = pixels.parse(content, 'here')
    width, height = pixels.resized(spec, size)
    assert width % spec.factor == height % spec.factor == 0

  found = mutation.count_outcomes(
    'preprocessor, qwen', make, parse, 100_000, allowed=allowed
  )
  assert min(found['accepted'], found['UserError']) > 1000
