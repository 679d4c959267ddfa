"""Greedy decoding gives transformers' tokens, one by one.

In float32 on tiny random models. Between two tokens that are nearly as likely
rounding alone would choose: a batch in which the best two logits of any step
come closer than 1e-4 is left out, one at most.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax.kernels import dispatch
from corejax.models import generate as generate_lib
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from helpers import hf_llava
from helpers import torch_only

torch = torch_only.torch

IMAGE = hf_llava.IMAGE
_SEQUENCES = [[4, IMAGE, 3, IMAGE, 5], [2, IMAGE, 7], [6]]
_MAX = 12
_SEED = 1  # of the batch whose answers end

# name -> (text, tower, overrides of the text config)
CASES = {
  'llama': ('llama', 'clip', dict(num_key_value_heads=2)),
  'mistral_window': ('mistral', 'clip', dict(sliding_window=7)),
  'qwen2_windows': (
    'qwen2',
    'siglip',
    dict(use_sliding_window=True, sliding_window=5, max_window_layers=2),
  ),
  'qwen3': ('qwen3', 'siglip', dict(num_key_value_heads=1, head_dim=10)),
}
# Its frequencies change with every token beyond the 25th; one prompt alone, as
# transformers takes the longest of a batch.
_DYNAMIC = dict(
  max_position_embeddings=25,
  rope_parameters={
    'rope_type': 'dynamic',
    'rope_theta': 1e4,
    'factor': 3.0,
  },
)


@dataclasses.dataclass(frozen=True)
class Case:
  """One tiny model on both sides."""

  hf_config: object
  torch_model: torch.nn.Module
  model: modeling.Llava


@functools.cache
def _make(name: str, folder) -> Case:
  text, tower, text_kw = (CASES | {'dynamic': ('llama', 'clip', _DYNAMIC)})[
    name
  ]
  hf_config = hf_llava.config(text, tower, text_kw=text_kw)
  torch_model = hf_llava.build(hf_config, seed=4)
  hf_llava.save(torch_model, folder)
  config = config_lib.read(folder)
  model = weights.load(folder, config, dtype=jnp.dtype('float32'))
  return Case(hf_config, torch_model, model)


@pytest.fixture
def get(tmp_path_factory):
  """get(name) -> Case, made once."""
  return lambda name: _make(
    name, tmp_path_factory.getbasetemp() / f'gen-{name}'
  )


@torch.no_grad()
def _theirs(case: Case, seed: int, eos_ids=(), sequences=_SEQUENCES):
  """What transformers makes of a batch, padded on the left as it must be.

  Returns:
    (tokens of each example, an end token included; the smallest distance of
    the best two logits; logits [steps, B, V]).
  """
  batch = hf_llava.batch(case.hf_config, sequences, side='left', seed=seed)
  out = case.torch_model.generate(
    **batch.torch,
    do_sample=False,
    num_beams=1,
    max_new_tokens=_MAX,
    eos_token_id=list(eos_ids) or None,
    pad_token_id=0,
    output_logits=True,
    return_dict_in_generate=True,
  )
  made = out.sequences[:, batch.real_BT.shape[1] :].numpy()
  answers = []
  for tokens in made:
    ends = np.flatnonzero(np.isin(tokens, eos_ids))
    answers.append(tokens[: ends[0] + 1] if len(ends) else tokens)
  logits_SBV = torch.stack(out.logits).numpy()
  best = np.sort(logits_SBV, -1)
  gap_SB = best[..., -1] - best[..., -2]
  gap = min(gap_SB[: len(answer), b].min() for b, answer in enumerate(answers))
  return answers, gap, logits_SBV


def _run(case, batch, eos_ids=(), attend=attention.reference):
  return generate_lib.run(
    case.model,
    batch.inputs,
    None,
    None,
    forward=modeling.forward,
    new_cache=modeling.new_cache,
    attend=attend,
    max_tokens=_MAX,
    eos_ids=eos_ids,
  )


def _check(made, theirs, eos_ids, logits_SBV):
  for b, expected in enumerate(theirs):
    n = len(expected)
    tokens = np.asarray(made.tokens_BA[b])
    np.testing.assert_array_equal(tokens[:n], expected)
    assert (tokens[n:] == -1).all()
    assert made.length_B[b] == n
    assert bool(made.ended_B[b]) == (expected[-1] in eos_ids)
    logp = torch.log_softmax(torch.tensor(logits_SBV[:n, b]), -1).numpy()
    total = logp[np.arange(n), expected].sum()
    assert abs(float(made.logprob_B[b]) - total) <= 1e-4


@pytest.mark.parametrize('name', CASES)
def test_tokens_of_transformers(name, get):
  """Pictures and text, three lengths in a batch, nothing ends early."""
  case, checked = get(name), 0
  for seed in range(3):
    theirs, gap, logits_SBV = _theirs(case, seed)
    if gap < 1e-4:
      continue
    batch = hf_llava.batch(case.hf_config, _SEQUENCES, seed=seed)
    _check(_run(case, batch), theirs, (), logits_SBV)
    checked += 1
  assert checked >= 2


@pytest.mark.parametrize('name', ['llama', 'mistral_window'])
def test_end_tokens(name, get):
  """One ends early, one late; padded on the left too, and with the kernel."""
  case = get(name)
  free, gap, _ = _theirs(case, _SEED)
  assert gap >= 1e-4
  eos_ids = (int(free[0][3]), int(free[1][8]))
  theirs, _, logits_SBV = _theirs(case, _SEED, eos_ids)
  assert min(map(len, theirs)) <= 4 < max(map(len, theirs))
  side = 'right' if name == 'llama' else 'left'
  batch = hf_llava.batch(case.hf_config, _SEQUENCES, seed=_SEED, side=side)
  made = _run(case, batch, eos_ids, dispatch.attend('xla'))
  _check(made, theirs, eos_ids, logits_SBV)


def test_dynamic_rope_grows_as_in_transformers(get):
  """Keys in the cache stay turned as they were."""
  case, prompt = get('dynamic'), [_SEQUENCES[0]]
  theirs, gap, logits_SBV = _theirs(case, 0, sequences=prompt)
  assert gap >= 1e-4
  batch = hf_llava.batch(case.hf_config, prompt)
  length = batch.real_BT.shape[1]
  assert length > 25
  _check(_run(case, batch), theirs, (), logits_SBV)
