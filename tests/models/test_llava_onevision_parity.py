"""LLaVA-OneVision against transformers (torch, eager, float32).

Tower, projector and newline are those of LLaVA-NeXT and tested there; here are
the tokens that are blends of features, and prompts of several pictures.
Tolerances: see helpers.parity.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax.models import anyres
from corejax.models import multimodal
from corejax.models.llava_next import modeling
from corejax.models.llava_next import weights
from corejax.models.llava_onevision import config as config_lib
from helpers import hf_llava
from helpers import hf_tiled
from helpers import parity
from helpers import torch_only

torch = torch_only.torch

_WIDE, _TALL, _SQUARE, _LARGE = (90, 30), (20, 31), (16, 16), (41, 40)

# name -> (overrides of hf_tiled.anyres_config, N of anyres_max_N, sequences,
# padding side)
CASES = {
  'scaled_down': (
    dict(
      text_kw=dict(num_attention_heads=7, num_key_value_heads=1, hidden_size=42)
    ),
    2,
    [[2, _LARGE, 6], [5, _TALL, 4]],
    'left',
  ),
  'several_pictures': (
    dict(
      text_kw=dict(
        num_attention_heads=6, num_key_value_heads=2, hidden_size=48
      ),
      tie_word_embeddings=True,
    ),
    9,
    [[4, _WIDE, 3, _TALL, 5], [2, _SQUARE, 7], [9]],
    'right',
  ),
  'video': (
    dict(
      text_kw=dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=40)
    ),
    9,
    [
      [4, hf_tiled.Clip(3, _WIDE), 3, _TALL, 1, hf_tiled.Clip(3, _SQUARE), 5],
      [2, hf_tiled.Clip(3, _LARGE), 7],
    ],
    'left',
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One tiny model on both sides, and what transformers says of a batch."""

  model: modeling.LlavaNext
  torch_model: object
  batch: hf_llava.Batch
  hf: dict[str, np.ndarray]


def tiler(most: int) -> anyres.Tiler:
  """Of the tiny tower; pixels are not made with it."""
  pinpoints = tuple((high, wide) for high, wide in hf_tiled.PINPOINTS)
  return anyres.Tiler(None, 13, 4, pinpoints, most=most, alone=True)


@functools.cache
def _make(name: str, folder) -> Case:
  overrides, most, sequences, side = CASES[name]
  hf_config = hf_tiled.anyres_config(
    'llava_onevision',
    'qwen2',
    'siglip',
    vision_aspect_ratio=f'anyres_max_{most}',
    **overrides,
  )
  torch_model = hf_tiled.build(hf_config, seed=1)
  layout = 'hub' if name == 'scaled_down' else 'saved'
  hf_tiled.save(torch_model, folder, layout=layout)
  config = config_lib.read(folder)
  assert config.most == most
  model = weights.load(folder, config, dtype=jnp.dtype('float32'))
  batch = hf_tiled.batch(hf_config, tiler(most), sequences, side=side)
  hf = hf_tiled.reference(torch_model, batch.torch)
  return Case(model, torch_model, batch, hf)


@pytest.fixture
def get(tmp_path_factory):
  """get(name) -> Case, made once."""
  return lambda name: _make(
    name, tmp_path_factory.getbasetemp() / f'onevision_{name}'
  )


@functools.partial(jax.jit, compiler_options=parity.QUICK)
def _embeds(model, inputs):
  features_MID = modeling.see(model, inputs.vision)
  features_ID = features_MID.reshape(-1, features_MID.shape[-1])
  return multimodal.merge(model.language, inputs, features_ID)[0]


@pytest.mark.parametrize('name', CASES)
def test_merged_embeddings(name, get):
  case = get(name)
  real = case.batch.real_BT
  embeds = _embeds(case.model, case.batch.inputs)
  parity.close(embeds[real], case.hf['hidden'][0][real], 1e-5)


def test_every_layer(get):
  case = get('scaled_down')
  parity.check_layers(case.model.language, case.batch, case.hf)


@pytest.mark.parametrize('name', CASES)
def test_whole_model(name, get):
  case = get(name)
  parity.check_whole(
    modeling.forward, case.model, case.batch, case.hf, attention.reference
  )


def test_zeroed_heads(get):
  case = get('scaled_down')
  parity.check_zeroed(
    modeling.forward, case.model, case.torch_model, case.batch, case.hf
  )


def test_bfloat16_is_as_good_as_torchs(get, tmp_path):
  case = get('scaled_down')
  hf_tiled.save(case.torch_model, tmp_path, dtype=torch.bfloat16)
  model = weights.load(
    tmp_path, config_lib.read(tmp_path), dtype=jnp.dtype('bfloat16')
  )
  parity.check_bfloat16(
    modeling.forward, model, type(case.torch_model), tmp_path, case.batch
  )


def test_cases_cover_what_they_claim():
  """Scaled down in both directions, not scaled, one tile of several."""
  for size, most, n_media, expected in (
    (_LARGE, 2, 1, (10, 9 + 4 * (4 + 1))),  # 9x9 -> 4x4 of 2 * 9 tokens
    (_TALL, 2, 1, (10, 9 + 5 * (3 + 1))),  # 9x5
    (_LARGE, 9, 1, (10, 9 + 9 * (9 + 1))),
    (_LARGE, 9, 2, (1, 9 + 1)),
  ):
    plan = tiler(most).plan(size, n_media)
    assert (plan.n_tiles, len(plan.feature_F)) == expected
    np.testing.assert_allclose(plan.blend_FK.sum(1), 1, rtol=1e-6)
  # A frame's 3 x 3 tokens become 2 x 2, and none takes one as it is.
  frame = tiler(9).frame(_WIDE, last=True)
  assert (frame.n_tiles, len(frame.feature_F), len(frame.visual_I)) == (1, 5, 4)
  assert frame.blend_FK[:4].max() < 1
