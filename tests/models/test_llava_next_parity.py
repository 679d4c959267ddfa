"""LLaVA-NeXT against transformers (torch, eager, float32), piece by piece.

Tolerances: see helpers.parity.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax.kernels import dispatch
from corejax.models import anyres
from corejax.models import multimodal
from corejax.models import vision
from corejax.models.llava import modeling as llava
from corejax.models.llava_next import config as config_lib
from corejax.models.llava_next import modeling
from corejax.models.llava_next import weights
from helpers import hf_llava
from helpers import hf_tiled
from helpers import parity
from helpers import torch_only

torch = torch_only.torch

_WIDE, _TALL, _SQUARE, _STRIP = (90, 30), (20, 31), (16, 16), (700, 9)

# name -> (text, tower, overrides of hf_tiled.anyres_config, sequences, side)
CASES = {
  'vicuna': (
    'llama',
    'clip',
    {},
    [[4, _WIDE, 3, _TALL, 5], [2, _SQUARE, 7], [9]],
    'right',
  ),
  'mistral': (
    'mistral',
    'clip',
    dict(
      text_kw=dict(
        num_attention_heads=5, num_key_value_heads=1, hidden_size=40
      ),
      tower_kw=dict(num_hidden_layers=4, hidden_act='gelu'),
    ),
    [[_STRIP, 9], [3, _TALL, 1, _SQUARE, 4]],
    'left',
  ),
  'qwen2': (
    'qwen2',
    'clip',
    dict(
      text_kw=dict(
        num_attention_heads=7, num_key_value_heads=1, hidden_size=42
      ),
      vision_feature_layer=[-2, 0],
    ),
    [[2, (41, 40), 3, _WIDE, 4], [3, _SQUARE, 5], [9]],
    'right',
  ),
  'llama3_siglip': (
    'llama',
    'siglip',
    dict(
      text_kw=dict(
        num_attention_heads=6, num_key_value_heads=2, hidden_size=48
      ),
      multimodal_projector_bias=False,
    ),
    [[2, _WIDE, 6]],
    'right',
  ),
  'text_only': (
    'mistral',
    'clip',
    dict(text_kw=dict(num_key_value_heads=2)),
    [[17], [11]],
    'right',
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One tiny model on both sides, and what transformers says of a batch."""

  model: modeling.LlavaNext
  torch_model: object
  batch: hf_llava.Batch
  hf: dict[str, np.ndarray]


def tiler() -> anyres.Tiler:
  """Of the tiny towers; pixels are not made with it."""
  pinpoints = tuple((high, wide) for high, wide in hf_tiled.PINPOINTS)
  return anyres.Tiler(None, side=13, patch=4, pinpoints=pinpoints)


@functools.cache
def _make(name: str, folder) -> Case:
  text, tower, overrides, sequences, side = CASES[name]
  hf_config = hf_tiled.anyres_config('llava_next', text, tower, **overrides)
  torch_model = hf_tiled.build(hf_config, seed=1)
  layout = {'mistral': 'hub', 'qwen2': 'memory'}.get(name, 'saved')
  hf_tiled.save(torch_model, folder, layout=layout)
  config = config_lib.read(folder)
  model = weights.load(folder, config, dtype=jnp.dtype('float32'))
  batch = hf_tiled.batch(hf_config, tiler(), sequences, side=side)
  hf = hf_tiled.reference(torch_model, batch.torch)
  return Case(model, torch_model, batch, hf)


@pytest.fixture
def get(tmp_path_factory):
  """get(name) -> Case, made once."""
  return lambda name: _make(
    name, tmp_path_factory.getbasetemp() / f'next_{name}'
  )


@functools.partial(jax.jit, compiler_options=parity.QUICK)
def _pieces(model, inputs, hf):
  """Tower, projector and merge, on what transformers gives them."""
  n_tiles, _, size = hf['projected'].shape
  newline = jnp.broadcast_to(model.newline[...], (n_tiles, 1, size))
  features_ID = jnp.concatenate([hf['projected'], newline], 1)
  features_ID = features_ID.reshape(-1, size)
  (handed,) = vision.run(
    model.vision,
    inputs.vision['pixel_values'],
    model.config.feature_layers,
    attend=attention.reference,
  )
  return {
    'handed': handed,
    'projected': llava.project(model, [hf['handed']]),
    'embeds': multimodal.merge(model.language, inputs, features_ID)[0],
  }


@pytest.mark.parametrize('name', ['vicuna', 'mistral', 'llama3_siglip'])
def test_every_submodule(name, get):
  case = get(name)
  hf, real = case.hf, case.batch.real_BT
  ours = _pieces(case.model, case.batch.inputs, hf)
  for part in ('handed', 'projected'):
    parity.close(ours[part], hf[part], 1e-5)
  parity.close(ours['embeds'][real], hf['hidden'][0][real], 1e-5)


# Every backbone.
@pytest.mark.parametrize('name', ['vicuna', 'mistral', 'qwen2'])
def test_every_layer(name, get):
  case = get(name)
  parity.check_layers(case.model.language, case.batch, case.hf)


@pytest.mark.parametrize('name', CASES)
def test_whole_model(name, get):
  case = get(name)
  attend = attention.reference
  if name == 'mistral':
    attend = dispatch.attend('xla')
  parity.check_whole(modeling.forward, case.model, case.batch, case.hf, attend)


# Every backbone.
@pytest.mark.parametrize('name', ['mistral', 'llama3_siglip', 'qwen2'])
def test_zeroed_heads(name, get):
  case = get(name)
  parity.check_zeroed(
    modeling.forward, case.model, case.torch_model, case.batch, case.hf
  )


# Every backbone.
@pytest.mark.parametrize('name', ['vicuna', 'mistral', 'qwen2'])
def test_bfloat16_is_as_good_as_torchs(name, get, tmp_path):
  case = get(name)
  hf_tiled.save(case.torch_model, tmp_path, dtype=torch.bfloat16)
  model = weights.load(
    tmp_path, config_lib.read(tmp_path), dtype=jnp.dtype('bfloat16')
  )
  parity.check_bfloat16(
    modeling.forward, model, type(case.torch_model), tmp_path, case.batch
  )


def test_cases_cover_what_they_claim():
  """Grids of several shapes; rows and columns that are left out; none left."""
  plans = {
    size: tiler().plan(size, 1)
    for size in (_WIDE, _TALL, _SQUARE, _STRIP, (41, 40))
  }
  # 9 of the base; then rows of the unpadded grid, each with a newline.
  assert {size: (p.n_tiles, len(p.feature_F)) for size, p in plans.items()} == {
    _WIDE: (4, 9 + 3 * (9 + 1)),
    _TALL: (10, 9 + 9 * (5 + 1)),
    _SQUARE: (5, 9 + 6 * (6 + 1)),
    _STRIP: (3, 9 + 1 * (6 + 1)),
    (41, 40): (10, 9 + 9 * (9 + 1)),
  }
