"""Qwen-VL against transformers (torch, eager, float32), piece by piece.

Tolerances are the project's, as in test_llava_parity: 1e-5 of the spread of
what a submodule writes; for the whole model 1e-4 of it for logits, 2e-5 for
every head's attention, 1e-5 for RAM against a float64 sum.
"""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import probe as probe_lib
from corejax import regions
from corejax.kernels import dispatch
from corejax.models import decoder as decoder_lib
from corejax.models import qwen_vision
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling
from corejax.models.qwen_vl import weights
from helpers import hf_qwen
from helpers import torch_only

torch = torch_only.torch

_TWO = [[4, (2, 3), 3, (5, 2), 5], [2, (3, 3), 7]]

# name -> (kind, overrides of hf_qwen.config, sequences, padding side)
CASES = {
  'qwen2_grouped': ('qwen2_vl', {}, _TWO, 'right'),
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
  'qwen2_5_windows': ('qwen2_5_vl', {}, _TWO, 'left'),
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
    _TWO,
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
  'qwen3_experts': ('qwen3_vl_moe', {}, _TWO, 'left'),
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


# Without optimisation these small programs compile in half the time.
_QUICK = {'xla_backend_optimization_level': 0}


def _close(ours, theirs, tol: float):
  """max |difference| <= tol * standard deviation of theirs."""
  theirs = np.asarray(theirs, np.float64)
  worst = np.abs(np.asarray(ours, np.float64) - theirs).max()
  assert worst <= tol * theirs.std(), (worst, theirs.std())


def _real(padded_MI, counts) -> np.ndarray:
  """What is not padding, one picture behind the other."""
  return np.concatenate([np.asarray(x)[:n] for x, n in zip(padded_MI, counts)])


def _probe(batch: hf_qwen.Batch, seed: int = 3) -> probe_lib.Probe:
  """Random rows in random sets and random regions; unused slots too."""
  rng = np.random.default_rng(seed)
  n_batch, length = batch.real_BT.shape
  rows_BP = np.full((n_batch, 7), -1, np.int32)
  for b in range(n_batch):
    real = np.flatnonzero(batch.real_BT[b])
    rows_BP[b, : 5 + b] = rng.choice(real, 5 + b, replace=False)
  set_PQ = np.zeros((7, 3), np.float32)
  set_PQ[np.arange(7), np.arange(7) % 3] = 1
  region_BS = rng.integers(0, len(regions.REGIONS), (n_batch, length))
  return probe_lib.Probe(
    jnp.asarray(rows_BP),
    jnp.asarray(set_PQ),
    jnp.asarray(region_BS, jnp.int8),
    weights=True,
  )


def _mass64(hf_attention, probe: probe_lib.Probe) -> np.ndarray:
  """RAM's definition, spelt out in float64: [L, B, Q, N, R]."""
  a = hf_attention.astype(np.float64)
  n_layers, n_batch, n_heads = a.shape[:3]
  n_sets, n_regions = probe.set_PQ.shape[1], len(regions.REGIONS)
  mass = np.zeros((n_layers, n_batch, n_sets, n_heads, n_regions))
  for b, q, r in np.ndindex(n_batch, n_sets, n_regions):
    rows = [
      int(row)
      for row, member in zip(probe.rows_BP[b], probe.set_PQ[:, q])
      if member and row >= 0
    ]
    keys = np.asarray(probe.region_BS[b]) == r
    mass[:, b, q, :, r] = a[:, b][:, :, rows][..., keys].sum(-1).mean(-1)
  return mass


@functools.partial(jax.jit, compiler_options=_QUICK)
def _pieces(model, inputs, hf_tower, hf_features):
  """Every submodule but the decoder's, on what transformers gives it."""
  embeds, deep = modeling.merge(model, inputs, hf_features)
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


def _on_theirs(case: Case) -> dict:
  """`_pieces`, and what its features should be."""
  hf, batch = case.hf, case.batch
  counts = [r * c for r, c in batch.grids]
  if not counts:
    return _pieces(case.model, batch.inputs, None, None)
  block = case.model.config.vision.block
  n_slots = batch.inputs.vision['pixel_values'].shape[1]
  cuts = np.cumsum(counts)[:-1]
  hf_tower = _padded(np.split(hf['tower'], cuts), n_slots)
  levels = np.concatenate([hf['features'], *hf['deep']], -1)
  features = _padded(np.split(levels, cuts // block), n_slots // block)
  features_ID = features.reshape(-1, features.shape[-1])
  found = _pieces(case.model, batch.inputs, hf_tower, features_ID)
  return {**found, 'levels': levels}


@pytest.mark.parametrize('name', CASES)
def test_every_submodule(name, get):
  case = get(name)
  hf, batch = case.hf, case.batch
  ours = _on_theirs(case)
  counts = [r * c for r, c in batch.grids]
  if counts:
    few = [n // case.model.config.vision.block for n in counts]
    _close(_real(ours['tower'], counts), hf['tower'], 1e-5)
    _close(_real(ours['merged'], few), hf['features'], 1e-5)
    _close(_real(ours['features'], few), ours['levels'], 1e-5)
  real = batch.real_BT
  _close(ours['embeds'][real], hf['hidden'][0][real], 1e-5)


@functools.partial(jax.jit, compiler_options=_QUICK)
def _run_layer(decoder, x_BTD, inputs, deep_XBTD):
  return decoder_lib.run(
    decoder,
    x_BTD,
    inputs.positions_BT,
    inputs.mask,
    attend=attention.reference,
    deep_XBTD=deep_XBTD,
  ).x_BTD


def _one_layer(decoder: decoder_lib.Decoder, index: int) -> decoder_lib.Decoder:
  """A decoder of this layer alone."""
  config = dataclasses.replace(
    decoder.config, n_layers=1, windows=(decoder.config.windows[index],)
  )
  alone = nnx.eval_shape(lambda: decoder_lib.Decoder(config, jnp.float32))
  graph, _ = nnx.split(alone)
  state = nnx.state(decoder)
  cut = jax.tree.map(lambda x: x[index : index + 1], state['layers'])
  return nnx.merge(graph, nnx.State({**state, 'layers': cut}))


@pytest.mark.parametrize('name', CASES)
def test_every_layer(name, get):
  case = get(name)
  hidden, real = case.hf['hidden'], case.batch.real_BT
  deep = _on_theirs(case)['deep']
  assert (deep is None) == (not case.model.config.kind.startswith('qwen3'))
  for index in range(len(hidden) - 1):
    own = None if deep is None else deep[index : index + 1]
    ours = _run_layer(
      _one_layer(case.model.language, index),
      hidden[index],
      case.batch.inputs,
      own if own is not None and len(own) else None,
    )
    _close(ours[real], hidden[index + 1][real], 1e-5)


def _check_whole(case: Case, attend: attention.Attend):
  """`forward`, every head's attention, RAM and logits."""
  batch, hf, probe = case.batch, case.hf, _probe(case.batch)
  real = batch.real_BT
  run = jax.jit(
    functools.partial(modeling.forward, attend=attend),
    compiler_options=_QUICK,
  )
  out = run(case.model, batch.inputs, probe=probe)
  # The fixture is worth something: peaked attention, spread logits.
  peak = hf['attention'].max(-1).transpose(1, 3, 0, 2)[real]
  assert 0.3 < peak.mean() < 0.95
  assert 1 < hf['logits'].std() < 10
  _close(out.logits_BPV[real], hf['logits'][real], 1e-4)
  off = np.abs(np.asarray(out.measured.weights_BNTS) - hf['attention'])
  off *= real[None, :, None, :, None]
  for layer, head in np.ndindex(off.shape[0], off.shape[2]):
    assert off[layer, :, head].max() <= 2e-5, (layer, head)
  mass = _mass64(hf['attention'], probe)
  assert np.abs(out.measured.mass_BQNR - mass).max() <= 1e-5


@pytest.mark.parametrize('name', CASES)
def test_whole_model(name, get):
  _check_whole(get(name), attention.reference)


@pytest.mark.parametrize(
  'name', ['qwen2_tied_odd_left', 'qwen2_5_large_upper_windows']
)
def test_whole_model_with_the_xla_kernel(name, get):
  """Padded pictures, windows in segments, left padding."""
  _check_whole(get(name), dispatch.attend('xla'))
