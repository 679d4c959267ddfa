"""LLaVA against transformers (torch, eager, float32), piece by piece.

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
from corejax.models import decoder as decoder_lib
from corejax.models import layers
from corejax.models import multimodal
from corejax.models import vision as vision_lib
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from helpers import hf_llava
from helpers import parity
from helpers import torch_only

torch = torch_only.torch

IMAGE = hf_llava.IMAGE
# Two pictures, one, text alone.
_MIXED = [[4, IMAGE, 3, IMAGE, 5], [2, IMAGE, 7], [9]]

# name -> (text, tower, overrides of hf_llava.config, sequences, padding side)
CASES = {
  'vicuna': ('llama', 'clip', {}, _MIXED, 'right'),
  'llama_biased_odd': (
    'llama',
    'siglip',
    dict(
      text_kw=dict(
        hidden_size=36,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=8,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
          'rope_type': 'llama3',
          'rope_theta': 100.0,
          'factor': 4.0,
          'low_freq_factor': 1.0,
          'high_freq_factor': 4.0,
          'original_max_position_embeddings': 16,
        },
      ),
      tower_kw=dict(
        hidden_size=21, num_attention_heads=3, image_size=12, patch_size=4
      ),
      vision_feature_layer=-1,
      vision_feature_select_strategy='full',
      multimodal_projector_bias=False,
      projector_hidden_act='gelu_pytorch_tanh',
    ),
    [[IMAGE, 9], [3, IMAGE, 1, IMAGE, 4]],
    'left',
  ),
  'mistral_window': (
    'mistral',
    'clip',
    dict(
      text_kw=dict(
        num_attention_heads=5, num_key_value_heads=1, sliding_window=7
      ),
      tower_kw=dict(num_hidden_layers=4, hidden_act='gelu'),
      vision_feature_layer=[-2, 0, 4, 1],
    ),
    _MIXED,
    'right',
  ),
  'qwen2_upper_windows': (
    'qwen2',
    'siglip',
    dict(
      text_kw=dict(
        num_attention_heads=7,
        num_key_value_heads=1,
        hidden_size=42,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1e6},
      ),
      vision_feature_layer=-2,
    ),
    _MIXED,
    'left',
  ),
  'qwen2_tied_text_only': (
    'qwen2',
    'clip',
    dict(
      text_kw=dict(
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_parameters={
          'rope_type': 'yarn',
          'rope_theta': 1e4,
          'factor': 4.0,
          'original_max_position_embeddings': 16,
        },
      ),
    ),
    [[17], [11]],
    'right',
  ),
  'qwen3_normed': (
    'qwen3',
    'clip',
    dict(
      text_kw=dict(num_attention_heads=6, num_key_value_heads=3, head_dim=10),
      vision_feature_select_strategy='full',
    ),
    _MIXED,
    'right',
  ),
  'dynamic_beyond_trained': (
    'llama',
    'clip',
    dict(
      text_kw=dict(
        max_position_embeddings=12,
        rope_parameters={
          'rope_type': 'dynamic',
          'rope_theta': 1e4,
          'factor': 3.0,
        },
      ),
    ),
    [[3, IMAGE, 9]],
    'right',
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One tiny model on both sides, and what transformers says of a batch."""

  model: modeling.Llava
  torch_model: torch.nn.Module
  batch: hf_llava.Batch
  hf: dict[str, np.ndarray]


@functools.cache
def _make(name: str, folder) -> Case:
  text, tower, overrides, sequences, side = CASES[name]
  hf_config = hf_llava.config(text, tower, **overrides)
  torch_model = hf_llava.build(hf_config, seed=1)
  hf_llava.save(torch_model, folder)
  config = config_lib.read(folder)
  model = weights.load(folder, config, dtype=jnp.dtype('float32'))
  batch = hf_llava.batch(hf_config, sequences, side=side)
  hf = hf_llava.reference(torch_model, batch.torch)
  return Case(model, torch_model, batch, hf)


@pytest.fixture
def get(tmp_path_factory):
  """get(name) -> Case, made once."""
  return lambda name: _make(name, tmp_path_factory.getbasetemp() / name)


@functools.partial(jax.jit, compiler_options=parity.QUICK)
def _pieces(model, inputs, hf):
  """Every submodule but the layers, on what transformers gives it."""
  found = {}
  features_ID = None
  if inputs.vision:
    found['tower'] = vision_lib.run(
      model.vision,
      inputs.vision['pixel_values'],
      range(model.vision.n_run + 1),
      attend=attention.reference,
    )
    hidden = [hf['tower'][index] for index in model.config.feature_layers]
    features = modeling.project(model, hidden)
    found['features'] = features.reshape(-1, features.shape[-1])
    features_ID = hf['features']
  found['embeds'], _ = multimodal.merge(model.language, inputs, features_ID)
  text = model.language
  found['normed'] = layers.rms_norm(
    text.norm, hf['hidden'][-1], text.config.rms_eps
  )
  found['logits'] = decoder_lib.logits(text, hf['hidden'][-1])
  return found


@pytest.mark.parametrize('name', CASES)
def test_every_submodule(name, get):
  case = get(name)
  hf, real = case.hf, case.batch.real_BT
  ours = _pieces(case.model, case.batch.inputs, hf)
  if case.batch.inputs.vision:
    assert len(ours['tower']) == case.model.config.n_run + 1
    for index, hidden in enumerate(ours['tower']):
      parity.close(hidden, hf['tower'][index], 1e-5)
    parity.close(ours['features'], hf['features'], 1e-5)
  parity.close(ours['embeds'][real], hf['hidden'][0][real], 1e-5)
  parity.close(ours['normed'][real], hf['normed'][real], 1e-5)
  parity.close(ours['logits'][real], hf['logits'][real], 1e-5)


@pytest.mark.parametrize('name', CASES)
def test_every_layer(name, get):
  case = get(name)
  parity.check_layers(case.model.language, case.batch, case.hf)


def _check_whole(case: Case, attend: attention.Attend):
  parity.check_whole(
    modeling.forward, case.model, case.batch, case.hf, attend, least_peak=0.3
  )


@pytest.mark.parametrize('name', CASES)
def test_whole_model(name, get):
  _check_whole(get(name), attention.reference)


@pytest.mark.parametrize(
  'name', ['vicuna', 'mistral_window', 'qwen2_upper_windows']
)
def test_whole_model_with_the_xla_kernel(name, get):
  """No mask, causal, windows, left padding; 1, 5 and 7 heads a kv head."""
  _check_whole(get(name), dispatch.attend('xla'))


# llama and qwen2: test_llava_ablation_parity.
@pytest.mark.parametrize('name', ['mistral_window', 'qwen3_normed'])
def test_zeroed_heads(name, get):
  case = get(name)
  parity.check_zeroed(
    modeling.forward, case.model, case.torch_model, case.batch, case.hf
  )


# Qwen2's is in test_weights.py.
@pytest.mark.parametrize('name', ['vicuna', 'mistral_window', 'qwen3_normed'])
def test_bfloat16_is_as_good_as_torchs(name, get, tmp_path):
  case = get(name)
  hf_llava.save(case.torch_model, tmp_path, dtype=torch.bfloat16)
  model = weights.load(
    tmp_path, config_lib.read(tmp_path), dtype=jnp.dtype('bfloat16')
  )
  parity.check_bfloat16(
    modeling.forward, model, type(case.torch_model), tmp_path, case.batch
  )


def test_narrower_of_two_windows_binds(get):
  """The caller's mask has a window and so has the model (7)."""
  case = get('mistral_window')
  length = case.batch.real_BT.shape[1]
  back = np.arange(length)[:, None] - np.arange(length)
  run = jax.jit(modeling.forward, compiler_options=parity.QUICK)
  for window, expected in ((3, 3), (100, 7)):
    mask = dataclasses.replace(
      case.batch.inputs.mask, window=jnp.asarray(window, jnp.int32)
    )
    inputs = dataclasses.replace(case.batch.inputs, mask=mask)
    out = run(case.model, inputs, probe=parity.probe(case.batch))
    seen = np.asarray(out.measured.weights_BNTS)[:, 0] > 0
    allowed = (back >= 0) & (back < expected)
    np.testing.assert_array_equal(seen, np.broadcast_to(allowed, seen.shape))


def test_as_users_compile_it(get):
  """Full optimisation, no full weights, chosen rows, a tower of its own."""
  case = get('vicuna')
  batch, hf = case.batch, case.hf
  probe = dataclasses.replace(parity.probe(batch), weights=False)
  called = []

  def tower_attend(q, k, v, mask, control=None, probe=None):
    called.append((mask.causal, control, probe))
    return attention.reference(q, k, v, mask)

  run = jax.jit(
    functools.partial(
      modeling.forward,
      attend=dispatch.attend(),
      tower_attend=tower_attend,
    )
  )
  out = run(case.model, batch.inputs, probe=probe, logit_rows_BP=probe.rows_BP)
  assert set(called) == {(False, None, None)}
  assert out.logits_BPV.dtype == jnp.float32
  assert out.measured.weights_BNTS is None
  for b, rows in enumerate(np.asarray(probe.rows_BP)):
    used = rows >= 0
    parity.close(out.logits_BPV[b][used], hf['logits'][b][rows[used]], 1e-4)
  mass = parity.mass64(hf['attention'], probe)
  assert np.abs(out.measured.mass_BQNR - mass).max() <= 1e-5


def test_cases_cover_what_they_claim():
  """Windows bind, heads are odd, several features are joined."""
  windows, heads, joined = set(), set(), 0
  for name, (text, tower, overrides, *_) in CASES.items():
    config = config_lib.LlavaConfig.from_hf(
      hf_llava.config(text, tower, **overrides)
    )
    windows.add(config.text.windows)
    heads.add((config.text.n_heads, config.text.n_kv_heads))
    joined += len(config.feature_layers) > 1
    assert config.n_run <= config.vision.n_layers, name
  assert {(7,) * 3, (2**30, 2**30, 5), (2**30,) * 3} <= windows
  assert {(3, 3), (5, 1), (7, 1), (6, 3), (6, 2), (4, 4)} <= heads
  assert joined
