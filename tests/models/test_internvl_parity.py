"""InternVL against transformers (torch, eager, float32), piece by piece.

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
from corejax.models import internvit
from corejax.models import multimodal
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import modeling
from corejax.models.internvl import processing
from corejax.models.internvl import weights
from helpers import hf_llava
from helpers import hf_tiled
from helpers import parity
from helpers import torch_only

torch = torch_only.torch

_6B = dict(
  norm_type='rms_norm', use_qk_norm=True, attention_bias=False, hidden_size=30
)
_WIDE, _TALL, _SMALL, _LARGE = (90, 30), (20, 41), (16, 16), (300, 410)
_FILM = hf_tiled.Clip(2, _SMALL)

# name -> (text, overrides of hf_tiled.internvl_config, sequences, padding side)
CASES = {
  'qwen2_300m': (
    'qwen2',
    dict(
      text_kw=dict(
        num_attention_heads=7,
        num_key_value_heads=1,
        hidden_size=42,
        rope_parameters={
          'rope_type': 'dynamic',
          'rope_theta': 1e6,
          'factor': 2.0,
        },
      )
    ),
    [[4, _WIDE, 3, _TALL, 1, _LARGE, 5], [2, _SMALL, 7], [9]],
    'right',
  ),
  'qwen3_6b': (
    'qwen3',
    dict(
      text_kw=dict(num_attention_heads=6, num_key_value_heads=3, head_dim=10),
      tower_kw=_6B,
    ),
    [[_TALL, 1, _LARGE, 9], [3, _WIDE, 1, _SMALL, 4, _FILM, 2]],
    'left',
  ),
  'llama_ntk_beyond_trained': (
    'llama',
    dict(
      text_kw=dict(
        num_attention_heads=6,
        num_key_value_heads=2,
        hidden_size=48,
        max_position_embeddings=20,
        rope_parameters={
          'rope_type': 'dynamic',
          'rope_theta': 1e4,
          'factor': 2.0,
        },
      )
    ),
    [[3, _LARGE, 9]],
    'right',
  ),
  'inner_layer': (
    'qwen3',
    dict(
      text_kw=dict(
        num_attention_heads=5, num_key_value_heads=1, hidden_size=40
      ),
      tie_word_embeddings=True,
      tower_kw=dict(
        use_mean_pooling=False, use_absolute_position_embeddings=False
      ),
      vision_feature_layer=-2,
      projector_hidden_act='gelu_pytorch_tanh',
    ),
    [[2, _WIDE, 6], [9]],
    'right',
  ),
  'video': (
    'qwen2',
    dict(
      text_kw=dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=40)
    ),
    [
      [4, hf_tiled.Clip(3, _WIDE), 1, _TALL, 2, _FILM, 5],
      [2, hf_tiled.Clip(1, _LARGE), 7],
    ],
    'left',
  ),
  'final_norm': (
    'llama',
    dict(
      text_kw=dict(
        num_attention_heads=3,
        num_key_value_heads=3,
        hidden_size=36,
        attention_bias=True,
      ),
      tower_kw=dict(use_mean_pooling=False, attention_bias=False),
    ),
    [[4, _LARGE, 3, _TALL, 1, _FILM, 5], [2, _SMALL, 7], [9]],
    'right',
  ),
  'qwen3_experts': (
    'qwen3_moe',
    dict(
      text_kw=dict(
        num_attention_heads=6, num_key_value_heads=2, norm_topk_prob=True
      )
    ),
    [[4, _LARGE, 3, _TALL, 1, _FILM, 5], [2, _SMALL, 7], [9]],
    'left',
  ),
  'experts_as_the_router_weighs_them': (
    'qwen3_moe',
    dict(
      text_kw=dict(
        num_attention_heads=5,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=9,
      ),
      tie_word_embeddings=True,
    ),
    [[2, _TALL, 6]],
    'right',
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One tiny model on both sides, and what transformers says of a batch."""

  model: modeling.InternVL
  torch_model: object
  batch: hf_llava.Batch
  hf: dict[str, np.ndarray]


def tiler(most: int = 6) -> processing.Tiler:
  """Of the tiny tower; pixels are not made with it."""
  return processing.Tiler(None, side=16, tokens=2, least=1, most=most)


@functools.cache
def _make(name: str, folder) -> Case:
  text, overrides, sequences, side = CASES[name]
  hf_config = hf_tiled.internvl_config(text, **overrides)
  torch_model = hf_tiled.build(hf_config, seed=1)
  layout = 'memory' if name == 'final_norm' else 'saved'
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
    name, tmp_path_factory.getbasetemp() / f'internvl_{name}'
  )


@functools.partial(jax.jit, compiler_options=parity.QUICK)
def _pieces(model, inputs, hf):
  """Tower, projector and merge, on what transformers gives them."""
  pixel_values = inputs.vision['pixel_values']
  features_ID = hf['projected'].reshape(-1, hf['projected'].shape[-1])
  return {
    'handed': internvit.run(
      model.vision, pixel_values, attend=attention.reference
    ),
    'projected': modeling.project(model, hf['handed']),
    'embeds': multimodal.merge(model.language, inputs, features_ID)[0],
  }


# Of what the other cases differ in, the tower and the projector have no part.
@pytest.mark.parametrize(
  'name', ['qwen2_300m', 'qwen3_6b', 'inner_layer', 'final_norm']
)
def test_every_submodule(name, get):
  case = get(name)
  hf, real = case.hf, case.batch.real_BT
  ours = _pieces(case.model, case.batch.inputs, hf)
  for part in ('handed', 'projected'):
    parity.close(ours[part], hf[part], 1e-5)
  parity.close(ours['embeds'][real], hf['hidden'][0][real], 1e-5)


def test_projector_of_faint_features(get):
  """Where its LayerNorm's eps shows: torch's 1e-5, not the tower's 1e-6."""
  case = get('qwen2_300m')
  theirs = case.torch_model.model.multi_modal_projector
  shape = (1, 4, *theirs.layer_norm.normalized_shape)
  x_MIC = 1e-3 * np.random.default_rng(0).standard_normal(shape, np.float32)
  with torch.no_grad():
    expected = theirs(torch.tensor(x_MIC)).numpy()
  parity.close(case.model.projector(jnp.asarray(x_MIC)), expected, 1e-5)


# Every backbone.
@pytest.mark.parametrize(
  'name', ['qwen2_300m', 'qwen3_6b', 'final_norm', 'qwen3_experts']
)
def test_every_layer(name, get):
  case = get(name)
  parity.check_layers(case.model.language, case.batch, case.hf)


@pytest.mark.parametrize('name', CASES)
def test_whole_model(name, get):
  case = get(name)
  attend = attention.reference
  if name == 'qwen3_6b':
    attend = dispatch.attend('xla')
  parity.check_whole(modeling.forward, case.model, case.batch, case.hf, attend)


# Every backbone.
@pytest.mark.parametrize(
  'name', ['qwen2_300m', 'qwen3_6b', 'final_norm', 'qwen3_experts']
)
def test_zeroed_heads(name, get):
  case = get(name)
  parity.check_zeroed(
    modeling.forward, case.model, case.torch_model, case.batch, case.hf
  )


# Every backbone, both towers.
@pytest.mark.parametrize(
  'name', ['qwen2_300m', 'qwen3_6b', 'final_norm', 'qwen3_experts']
)
def test_bfloat16_is_as_good_as_torchs(name, get, tmp_path):
  case = get(name)
  torch_model = case.torch_model
  if name == 'qwen3_experts':  # of this seed rounding changes no expert
    torch_model = hf_tiled.build(torch_model.config, seed=3)
  hf_tiled.save(torch_model, tmp_path, dtype=torch.bfloat16)
  model = weights.load(
    tmp_path, config_lib.read(tmp_path), dtype=jnp.dtype('bfloat16')
  )
  parity.check_bfloat16(
    modeling.forward, model, type(case.torch_model), tmp_path, case.batch
  )


def test_cases_cover_what_they_claim():
  """Tiles, grouping, both towers, NTK beyond the trained length."""
  plans = [tiler().plan(size, 1) for size in (_WIDE, _TALL, _SMALL, _LARGE)]
  assert [plan.n_tiles for plan in plans] == [4, 3, 1, 7]
  heads, norms = set(), set()
  for text, overrides, *_ in CASES.values():
    config = config_lib.InternVLConfig.from_hf(
      hf_tiled.internvl_config(text, **overrides)
    )
    heads.add((config.text.n_heads, config.text.n_kv_heads))
    norms.add((config.vision.norm, config.vision.qk_norm, config.final))
  assert heads == {(7, 1), (6, 3), (6, 2), (5, 1), (4, 2), (3, 3)}
  assert {('layer_norm', False, True), ('rms_norm', True, True)} <= norms
