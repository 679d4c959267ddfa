"""Qwen-VL against transformers (torch, eager, float32), piece by piece.

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
from corejax.models import multimodal
from corejax.models import qwen_vision
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling
from corejax.models.qwen_vl import weights
from helpers import hf_qwen
from helpers import parity
from helpers import torch_only

torch = torch_only.torch

# Two pictures, one, text alone.
_MIXED = [[4, (2, 3), 3, (5, 2), 5], [2, (3, 3), 7], [9]]

# name -> (kind, overrides of hf_qwen.config, sequences, padding side)
CASES = {
  'qwen2_grouped': ('qwen2_vl', {}, _MIXED, 'right'),
  'qwen2_tied_odd_left': (
    'qwen2_vl',
    dict(
      text_kw=dict(
        num_attention_heads=7,
        num_key_value_heads=1,
        head_dim=12,
        rope_parameters={
          'rope_type': 'default',
          'rope_theta': 1e4,
          'mrope_section': [1, 2, 3],
        },
      ),
      tower_kw=dict(num_heads=2, hidden_act='gelu', temporal_patch_size=1),
      tie_word_embeddings=True,
    ),
    [[1, (7, 9)], [5, (2, 2), 1, (1, 6), 4]],
    'left',
  ),
  'qwen2_text_only': (
    'qwen2_vl',
    dict(text_kw=dict(num_attention_heads=3, num_key_value_heads=3)),
    [[17], [11]],
    'right',
  ),
  'qwen2_5_windows': ('qwen2_5_vl', {}, _MIXED, 'left'),
  'qwen3_deep': (
    'qwen3_vl',
    dict(
      text_kw=dict(
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        hidden_size=40,
        rope_parameters={
          'rope_type': 'default',
          'rope_theta': 100.0,
          'mrope_section': [2, 2, 2],
          'mrope_interleaved': True,
        },
      ),
    ),
    _MIXED,
    'left',
  ),
  'qwen3_tied_large': (
    'qwen3_vl',
    dict(
      text_kw=dict(
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=16,
        attention_bias=True,
        rope_parameters={
          'rope_type': 'default',
          'rope_theta': 1e4,
          'mrope_section': [4, 3, 1],
        },
      ),
      tower_kw=dict(
        num_position_embeddings=9, deepstack_visual_indexes=[1], depth=2
      ),
      tie_word_embeddings=True,
    ),
    [[3, (11, 8), 2], [1, (1, 4), 5]],
    'right',
  ),
  'qwen3_experts': (
    'qwen3_vl_moe',
    {},
    [[4, (2, 3), 3, (5, 2), 5], [2, (11, 8), 7], [9]],
    'left',
  ),
  'qwen2_5_large_upper_windows': (
    'qwen2_5_vl',
    dict(
      text_kw=dict(
        num_attention_heads=6,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=1,
        rope_parameters={
          'rope_type': 'yarn',
          'rope_theta': 1e4,
          'factor': 4.0,
          'original_max_position_embeddings': 16,
          'mrope_section': [1, 1, 2],
        },
      ),
      tower_kw=dict(window_size=24, fullatt_block_indexes=[0, 2]),
    ),
    [[3, (11, 8), 2], [1, (3, 4), 5]],
    'right',
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One tiny model on both sides, and what transformers says of a batch."""

  model: modeling.QwenVl
  torch_model: torch.nn.Module
  batch: hf_qwen.Batch
  hf: dict


@functools.cache
def _make(name: str, folder) -> Case:
  kind, overrides, sequences, side = CASES[name]
  hf_config = hf_qwen.config(kind, **overrides)
  torch_model = hf_qwen.build(hf_config, seed=1)
  hf_qwen.save(torch_model, folder)
  config = config_lib.read(folder, kind)
  model = weights.load(folder, config, dtype=jnp.dtype('float32'))
  batch = hf_qwen.batch(hf_config, sequences, side=side)
  hf = hf_qwen.reference(torch_model, batch.torch)
  return Case(model, torch_model, batch, hf)


@pytest.fixture
def get(tmp_path_factory):
  """get(name) -> Case, made once."""
  return lambda name: _make(name, tmp_path_factory.getbasetemp() / name)


def _real(padded_MI, counts) -> np.ndarray:
  """What is not padding, one picture behind the other."""
  return np.concatenate([np.asarray(x)[:n] for x, n in zip(padded_MI, counts)])


@functools.partial(jax.jit, compiler_options=parity.QUICK)
def _pieces(model, inputs, hf_tower, hf_features):
  """Every submodule but the decoder's, on what transformers gives it."""
  embeds, deep = multimodal.merge(model.language, inputs, hf_features)
  if not inputs.vision:
    return {'embeds': embeds, 'deep': deep}
  hidden = qwen_vision.run(
    model.vision,
    inputs.vision['pixel_values'],
    inputs.vision['image_grid_thw'],
    attend=attention.reference,
  )
  return {
    'tower': hidden.last_MID,
    'merged': model.vision.merger(hf_tower),
    'features': qwen_vision.merge(model.vision, hidden),
    'embeds': embeds,
    'deep': deep,
  }


def _padded(parts, n_slots: int) -> np.ndarray:
  out = np.zeros((len(parts), n_slots, parts[0].shape[-1]), np.float32)
  for m, part in enumerate(parts):
    out[m, : len(part)] = part
  return out


@dataclasses.dataclass(frozen=True)
class Theirs:
  """What transformers' tower writes.

  Attributes:
    tower: [pictures, slots, D of the tower], padded.
    levels: [features of all, levels * D], DeepStack's behind a token's own.
    features_ID: these padded, as Inputs takes them.
  """

  tower: np.ndarray
  levels: np.ndarray
  features_ID: np.ndarray


def _theirs(case: Case) -> Theirs:
  hf, batch = case.hf, case.batch
  counts = [r * c for r, c in batch.grids]
  block = case.model.config.vision.block
  n_slots = batch.inputs.vision['pixel_values'].shape[1]
  cuts = np.cumsum(counts)[:-1]
  levels = np.concatenate([hf['features'], *hf['deep']], -1)
  features = _padded(np.split(levels, cuts // block), n_slots // block)
  return Theirs(
    _padded(np.split(hf['tower'], cuts), n_slots),
    levels,
    features.reshape(-1, features.shape[-1]),
  )


def _on_theirs(case: Case) -> dict:
  """`_pieces`, and what its features should be."""
  if not case.batch.grids:
    return _pieces(case.model, case.batch.inputs, None, None)
  theirs = _theirs(case)
  found = _pieces(
    case.model, case.batch.inputs, theirs.tower, theirs.features_ID
  )
  return {**found, 'levels': theirs.levels}


@pytest.mark.parametrize('name', CASES)
def test_every_submodule(name, get):
  case = get(name)
  hf, batch = case.hf, case.batch
  ours = _on_theirs(case)
  counts = [r * c for r, c in batch.grids]
  if counts:
    few = [n // case.model.config.vision.block for n in counts]
    parity.close(_real(ours['tower'], counts), hf['tower'], 1e-5)
    parity.close(_real(ours['merged'], few), hf['features'], 1e-5)
    parity.close(_real(ours['features'], few), ours['levels'], 1e-5)
  real = batch.real_BT
  parity.close(ours['embeds'][real], hf['hidden'][0][real], 1e-5)


@pytest.mark.parametrize('name', CASES)
def test_every_layer(name, get):
  case = get(name)
  deep = _on_theirs(case)['deep']
  assert (deep is None) == (not case.model.config.kind.startswith('qwen3'))
  parity.check_layers(case.model.language, case.batch, case.hf, deep)


def _check_whole(case: Case, attend: attention.Attend):
  parity.check_whole(
    modeling.forward, case.model, case.batch, case.hf, attend, least_peak=0.3
  )


@pytest.mark.parametrize('name', CASES)
def test_whole_model(name, get):
  _check_whole(get(name), attention.reference)


@pytest.mark.parametrize(
  'name', ['qwen2_tied_odd_left', 'qwen2_5_large_upper_windows']
)
def test_whole_model_with_the_xla_kernel(name, get):
  """Padded pictures, windows in segments, left padding."""
  _check_whole(get(name), dispatch.attend('xla'))


# Every kind.
@pytest.mark.parametrize(
  'name', ['qwen2_grouped', 'qwen2_5_windows', 'qwen3_deep', 'qwen3_experts']
)
def test_zeroed_heads(name, get):
  """From transformers' features, as cutting heads has no part in the tower.

  Its rounding, 3.5e-6 of the features' spread, becomes 1.3e-5 of the logits'
  in Qwen2.5-VL with all heads and 1.9e-5 without these; from the same features
  it is 4e-6 either way.
  """
  case = get(name)
  features_ID = jnp.asarray(_theirs(case).features_ID)
  inputs = dataclasses.replace(case.batch.inputs, features_ID=features_ID)
  parity.check_zeroed(
    modeling.forward,
    case.model,
    case.torch_model,
    dataclasses.replace(case.batch, inputs=inputs),
    case.hf,
  )
