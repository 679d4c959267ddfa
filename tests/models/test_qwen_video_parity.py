"""Qwen-VL's videos against transformers (torch, eager, float32).

Tolerances as in test_qwen_parity. In one batch: a mixed prompt (text, pictures
of different shape, videos) and one that is a video alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling
from corejax.models.qwen_vl import weights
from helpers import hf_qwen
from helpers import parity
from helpers import torch_only

torch = torch_only.torch

Video = hf_qwen.Video
_MIXED = [3, (2, 3), 2, Video(3, 3, 2, 0.8), 4, (1, 4), 1, Video(2, 2, 2), 6]
_ALONE = [2, Video(5, 2, 5, 1.5), 7]
# name -> (kind, overrides of hf_qwen.config, padding side)
CASES = {
  'qwen2_vl': ('qwen2_vl', {}, 'left'),
  # Windows of 2 x 2 features: partial ones at the border of every frame.
  'qwen2_5_vl': ('qwen2_5_vl', {}, 'right'),
  'qwen3_vl': ('qwen3_vl', {}, 'left'),
  'qwen3_vl_moe': ('qwen3_vl_moe', {}, 'right'),
}


@functools.cache
def _make(name: str, folder):
  """(model, batch, what transformers computes)."""
  kind, overrides, side = CASES[name]
  hf_config = hf_qwen.config(kind, **overrides)
  torch_model = hf_qwen.build(hf_config, seed=1)
  hf_qwen.save(torch_model, folder)
  config = config_lib.read(folder, kind)
  model = weights.load(folder, config, dtype=jnp.dtype('float32'))
  batch = hf_qwen.batch(hf_config, [_MIXED, _ALONE], side=side)
  return model, batch, hf_qwen.reference(torch_model, batch.torch)


@pytest.fixture
def get(tmp_path_factory):
  """get(name) -> `_make`, made once."""
  return lambda name: _make(name, tmp_path_factory.getbasetemp() / name)


@pytest.mark.parametrize('name', ['qwen2_5_vl'])
def test_features_of_frames(name, get):
  """Attention does not cross frames: a pair is a picture to the tower."""
  model, batch, hf = get(name)
  see = jax.jit(modeling.see, compiler_options=parity.QUICK)
  ours_MID = np.asarray(see(model, batch.inputs.vision))
  block = model.config.vision.block
  of_videos = [
    x[: rows * columns // block]
    for x, (rows, columns), is_video in zip(
      ours_MID, batch.grids, batch.video_M
    )
    if is_video
  ]
  levels = np.concatenate([hf['video_features'], *hf['video_deep']], -1)
  assert len(hf['video_deep']) == len(model.vision.deep)
  parity.close(np.concatenate(of_videos), levels, 1e-5)


@pytest.mark.parametrize('name', CASES)
def test_whole_model(name, get):
  model, batch, hf = get(name)
  assert batch.video_M.any() and not batch.video_M.all()
  parity.check_whole(modeling.forward, model, batch, hf, attention.reference)
