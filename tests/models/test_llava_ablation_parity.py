"""Ablations of transformers' own model: inputs of the output projection edited.

Tolerance: 1e-5 of the spread of the logits (see test_llava_control).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import ablation
from corejax import heads as heads_lib
from corejax import probe as probe_lib
from corejax import regions
from corejax import replacement as replacement_lib
from corejax import rows as rows_lib
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from helpers import hf_llava
from helpers import torch_only

torch = torch_only.torch

_LAYERS = 3
_BACKBONES = {
  'llama': dict(num_attention_heads=4, num_key_value_heads=2),
  'qwen2': dict(num_attention_heads=6, num_key_value_heads=3),
}


@functools.cache
def _forward():
  return jax.jit(modeling.forward)


@pytest.fixture(scope='module', params=_BACKBONES)
def setup(request, tmp_path_factory):
  """(torch model, our model, batch, number of heads)."""
  folder = tmp_path_factory.mktemp('ablation')
  text_kw = _BACKBONES[request.param]
  hf_config = hf_llava.config(request.param, text_kw=text_kw)
  torch_model = hf_llava.build(hf_config, seed=4)
  hf_llava.save(torch_model, folder)
  model = weights.load(
    folder, config_lib.read(folder), dtype=jnp.dtype('float32')
  )
  batch = hf_llava.batch(
    hf_config, [[4, hf_llava.IMAGE, 9], [2, hf_llava.IMAGE, 6]]
  )
  return torch_model, model, batch, text_kw['num_attention_heads']


def _edited(torch_model, batch, edit):
  """(logits, inputs of all output projections [L, B, T, N * H] before edits).

  edit(layer, out) changes one layer's [B, T, N * H] in place.
  """
  seen, handles = [], []
  for index, layer in enumerate(torch_model.model.language_model.layers):

    def hook(module, args, index=index):
      seen.append(args[0].numpy())
      out = args[0].clone()
      edit(index, out)
      return (out,)

    handles.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
  try:
    logits = hf_llava.reference(torch_model, batch.torch)['logits']
  finally:
    for handle in handles:
      handle.remove()
  return logits, np.stack(seen[:_LAYERS])


def _slice(head):
  return slice(head * 8, (head + 1) * 8)


def _assert_close(ours, theirs, batch):
  worst = np.abs(np.asarray(ours) - theirs)[batch.real_BT].max()
  assert worst <= 1e-5 * theirs[batch.real_BT].std(), worst


def _rows(batch):
  """Visual where the picture is, a question of three words after it."""
  is_visual = np.asarray(batch.inputs.feature_BT) >= 0
  class_BT = np.where(is_visual, regions.VISUAL_ROW, regions.OTHER_TEXT_ROW)
  for b in range(2):
    after = np.flatnonzero(is_visual[b])[-1] + 1
    class_BT[b, after : after + 3] = regions.QUESTION_ROW
  class_BT[~batch.real_BT] = regions.PADDING_ROW
  none_BT = jnp.zeros(class_BT.shape, bool)
  return rows_lib.Rows(jnp.asarray(class_BT, jnp.int8), none_BT, none_BT)


def _probe(batch, rows):
  return probe_lib.Probe(
    jnp.zeros((2, 1), jnp.int32),
    jnp.ones((1, 3)),
    jnp.zeros(batch.real_BT.shape, jnp.int8),
    class_BT=rows.class_BT,
    outputs=True,
  )


@pytest.mark.parametrize(
  'text', ['1-3', '0-0,0-1,2-2', '0-1,1-1,2-1', '2-0,2-1,2-2,2-3']
)
def test_zero_is_a_zeroed_slice(setup, text):
  torch_model, model, batch, n_heads = setup
  heads = heads_lib.HeadSet.parse(text)

  def edit(index, out):
    for layer, head in heads:
      if layer == index:
        out[..., _slice(head)] = 0

  theirs, _ = _edited(torch_model, batch, edit)
  control = ablation.Ablation(heads).expand(_LAYERS, n_heads)
  ours = _forward()(model, batch.inputs, control=control).logits_BPV
  _assert_close(ours, theirs, batch)
  intact = hf_llava.reference(torch_model, batch.torch)['logits']
  assert np.abs(intact - theirs)[batch.real_BT].max() > 0.1


def test_captured_outputs_and_class_means_are_transformers_own(setup):
  torch_model, model, batch, n_heads = setup
  rows = _rows(batch)
  _, theirs = _edited(torch_model, batch, lambda index, out: None)
  theirs = theirs.reshape(*theirs.shape[:3], n_heads, 8)
  seen = _forward()(model, batch.inputs, probe=_probe(batch, rows)).measured
  ours = np.asarray(seen.out_BTNH)
  real = theirs[:, batch.real_BT]
  worst = np.abs(ours[:, batch.real_BT] - real).max()
  assert worst <= 1e-5 * real.std()
  class_BT = np.asarray(rows.class_BT)
  for b, c in np.ndindex(2, 3):
    expected = theirs[:, b, class_BT[b] == c].astype(np.float64).mean(1)
    got = np.asarray(seen.class_mean_BCNH)[:, b, c]
    assert np.abs(got - expected).max() <= 1e-5 * real.std()


@pytest.mark.parametrize('mode', ablation.REPLACING)
def test_replaced_outputs_are_an_overwritten_slice(setup, mode):
  torch_model, model, batch, n_heads = setup
  rows = _rows(batch)
  heads = heads_lib.HeadSet.parse('0-1,1-0,1-3,2-2')
  seen = _forward()(model, batch.inputs, probe=_probe(batch, rows)).measured
  if mode == 'mean':
    running = replacement_lib.MeanOutputs.empty(_LAYERS, n_heads, 8)
    running = running.add(seen.class_mean_BCNH, rows.counts_BC)
    replacement = replacement_lib.by_class(running.mean(), rows)
  else:
    replacement = replacement_lib.by_donor(seen.out_BTNH, rows, rows, [1, 0])
  source_BT = np.asarray(replacement.source_BT)
  table = np.asarray(replacement.out_LBTNH)

  def edit(index, out):
    for layer, head in heads:
      for b in range(2):
        if layer == index:
          own = table[layer, b % table.shape[1], source_BT[b], head]
          out[b, :, _slice(head)] = torch.tensor(own)

  theirs, _ = _edited(torch_model, batch, edit)
  control = ablation.Ablation(heads, mode).expand(
    _LAYERS, n_heads, replacement=replacement
  )
  ours = _forward()(model, batch.inputs, control=control).logits_BPV
  _assert_close(ours, theirs, batch)
  intact = hf_llava.reference(torch_model, batch.torch)['logits']
  assert np.abs(intact - theirs)[batch.real_BT].max() > 0.1
