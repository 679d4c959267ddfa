"""Controls through the whole model: gates, windows, vmap, gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import control as control_lib
from corejax import heads as heads_lib
from corejax import probe as probe_lib
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from helpers import hf_llava
from helpers import torch_only

torch = torch_only.torch

_LAYERS, _HEADS = 3, 5


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
  """(torch model, our model, batch); Mistral, 5 heads on one kv head."""
  folder = tmp_path_factory.mktemp('control')
  hf_config = hf_llava.config(
    'mistral', text_kw=dict(num_attention_heads=5, num_key_value_heads=1)
  )
  torch_model = hf_llava.build(hf_config, seed=2)
  hf_llava.save(torch_model, folder)
  model = weights.load(
    folder, config_lib.read(folder), dtype=jnp.dtype('float32')
  )
  batch = hf_llava.batch(
    hf_config, [[4, hf_llava.IMAGE, 9], [2, hf_llava.IMAGE, 6]]
  )
  return torch_model, model, batch


_forward = jax.jit(modeling.forward)


def _control(gate_LN) -> control_lib.HeadControl:
  intact = control_lib.HeadControl.intact(_LAYERS, _HEADS)
  return intact.with_gate(gate_LN)


def _zeroed(torch_model, batch, heads: heads_lib.HeadSet) -> np.ndarray:
  """transformers' logits with these heads' o_proj inputs set to 0."""
  head_dim = torch_model.config.text_config.head_dim
  hooks = []
  for index, layer in enumerate(torch_model.model.language_model.layers):
    gone = [head for at, head in heads if at == index]

    def hook(module, args, gone=gone):
      out = args[0].clone()
      for head in gone:
        out[..., head * head_dim : (head + 1) * head_dim] = 0
      return (out,)

    hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
  try:
    return hf_llava.reference(torch_model, batch.torch)['logits']
  finally:
    for handle in hooks:
      handle.remove()


@pytest.mark.parametrize('text', ['1-3', '0-0,0-4,2-2', '0-1,1-1,2-1', ''])
def test_zero_gate_is_a_zeroed_slice(setup, text):
  torch_model, model, batch = setup
  heads = heads_lib.HeadSet.parse(text)
  theirs = _zeroed(torch_model, batch, heads)
  control = _control(control_lib.gates(heads, _LAYERS, _HEADS))
  ours = np.asarray(_forward(model, batch.inputs, control=control).logits_BPV)
  worst = np.abs(ours - theirs)[batch.real_BT].max()
  assert worst <= 1e-5 * theirs.std(), worst
  if text:
    intact = hf_llava.reference(torch_model, batch.torch)['logits']
    assert np.abs(intact - theirs).max() > 0.1


def test_ablating_nothing_is_bit_equal(setup):
  _, model, batch = setup
  plain = _forward(model, batch.inputs)
  same = _forward(
    model, batch.inputs, control=_control(jnp.ones((_LAYERS, _HEADS)))
  )
  np.testing.assert_array_equal(plain.logits_BPV, same.logits_BPV)


def test_each_layer_gets_its_own_control(setup):
  """A window on one head of one layer is seen there and nowhere before."""
  _, model, batch = setup
  control = _control(jnp.ones((_LAYERS, _HEADS)))
  window = control.attend.window_BN.at[1, 0, 2].set(1)
  attend = dataclasses.replace(control.attend, window_BN=window)
  control = dataclasses.replace(control, attend=attend)
  length = batch.real_BT.shape[1]
  probe = probe_lib.Probe(
    jnp.zeros((2, 1), jnp.int32),
    jnp.ones((1, 3)),
    jnp.zeros((2, length), jnp.int8),
    weights=True,
  )
  seen = np.asarray(
    _forward(
      model, batch.inputs, control=control, probe=probe
    ).measured.weights_BNTS
  )
  np.testing.assert_allclose(
    seen[1, 0, 2], np.eye(length) * batch.real_BT[0], atol=1e-6
  )
  without = np.asarray(
    _forward(model, batch.inputs, probe=probe).measured.weights_BNTS
  )
  np.testing.assert_array_equal(seen[0], without[0])
  np.testing.assert_array_equal(seen[1, :, :2], without[1, :, :2])
  assert np.abs(seen[2] - without[2]).max() > 1e-3


def test_ablation_on_some_rows_only(setup):
  """rows_BT has no layer axis: every layer sees the same rows."""
  _, model, batch = setup
  rows_BT = jnp.arange(batch.real_BT.shape[1])[None] >= 10
  control = _control(jnp.zeros((_LAYERS, _HEADS)))
  output = dataclasses.replace(control.output, rows_BT=rows_BT)
  control = dataclasses.replace(control, output=output)
  some = np.asarray(_forward(model, batch.inputs, control=control).logits_BPV)
  none = np.asarray(_forward(model, batch.inputs).logits_BPV)
  np.testing.assert_allclose(some[:, :10], none[:, :10], atol=1e-5)
  assert np.abs(some[0, 10:] - none[0, 10:]).max(-1).min() > 0.1


def test_blocked_regions_reach_every_layer(setup):
  """region_BS has no layer axis either."""
  _, model, batch = setup
  length = batch.real_BT.shape[1]
  region_BS = jnp.broadcast_to(jnp.arange(length) % 3, (2, length))
  blocked = jnp.zeros((_LAYERS, 1, _HEADS, 3), bool)
  blocked = blocked.at[0, 0, 1, 2].set(True).at[2, 0, 4, 1].set(True)
  control = _control(jnp.ones((_LAYERS, _HEADS)))
  attend = dataclasses.replace(
    control.attend,
    blocked_BNR=blocked,
    region_BS=region_BS.astype(jnp.int8),
  )
  control = dataclasses.replace(control, attend=attend)
  probe = probe_lib.Probe(
    jnp.zeros((2, 1), jnp.int32),
    jnp.ones((1, 3)),
    region_BS.astype(jnp.int8),
    weights=True,
  )
  seen = np.asarray(
    _forward(
      model, batch.inputs, control=control, probe=probe
    ).measured.weights_BNTS
  )
  for layer in range(_LAYERS):
    for head in range(_HEADS):
      for region in range(3):
        keys = np.asarray(region_BS[0]) == region
        read = seen[layer, :, head][..., keys].sum()
        is_blocked = bool(blocked[layer, 0, head, region])
        assert (read == 0) == is_blocked, (layer, head, region)


def test_vmap_over_ablations_is_a_loop(setup):
  _, model, batch = setup
  gates = np.ones((4, _LAYERS, _HEADS), np.float32)
  for index in range(1, 4):
    gates[index, index - 1, index] = 0
  rows = jnp.array([[5], [5]])

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, None, 0))
  def sweep(model, inputs, gate):
    return modeling.forward(
      model, inputs, control=_control(gate), logit_rows_BP=rows
    ).logits_BPV

  swept = sweep(model, batch.inputs, jnp.asarray(gates))
  for gate, found in zip(gates, swept):
    one = _forward(
      model, batch.inputs, control=_control(gate), logit_rows_BP=rows
    )
    np.testing.assert_allclose(found, one.logits_BPV, atol=2e-5)
  assert np.abs(swept[0] - swept[1]).max() > 0.05


def test_gradient_of_a_logit_by_the_gates(setup):
  """Against central differences of transformers' own forward is costly; our
  forward equals it (above), so its differences are the reference."""
  _, model, batch = setup
  rows = jnp.array([[8], [8]])

  def logit(gate):
    out = modeling.forward(
      model, batch.inputs, control=_control(gate), logit_rows_BP=rows
    )
    return out.logits_BPV[0, 0, 7]

  ones = jnp.ones((_LAYERS, _HEADS))
  slope = jax.jit(jax.grad(logit))(ones)
  value = jax.jit(logit)
  for layer, head in ((0, 0), (1, 3), (2, 4)):
    step = np.zeros((_LAYERS, _HEADS), np.float32)
    step[layer, head] = 2e-2
    numeric = (value(ones + step) - value(ones - step)) / 4e-2
    assert abs(numeric - slope[layer, head]) < 1e-2 * (1 + abs(numeric))
  assert np.abs(slope).max() > 0.05


def test_one_program_for_all_head_sets(setup):
  _, model, batch = setup
  traces = []

  @jax.jit
  def run(model, inputs, control):
    traces.append(1)
    return modeling.forward(model, inputs, control=control).logits_BPV

  for text in ('0-0', '1-2,2-2', ''):
    heads = heads_lib.HeadSet.parse(text)
    run(
      model,
      batch.inputs,
      _control(control_lib.gates(heads, _LAYERS, _HEADS)),
    )
  assert len(traces) == 1


def test_rows_of_a_model_in_text_and_pictures(setup):
  """Unused logit rows (-1) do not disturb the used ones."""
  _, model, batch = setup
  whole = np.asarray(_forward(model, batch.inputs).logits_BPV)
  rows = jnp.array([[3, -1, 10], [-1, 0, 2]])
  some = np.asarray(
    _forward(model, batch.inputs, logit_rows_BP=rows).logits_BPV
  )
  np.testing.assert_allclose(some[0, 2], whole[0, 10], atol=1e-5)
  np.testing.assert_allclose(some[1, 1], whole[1, 0], atol=1e-5)


def test_wrong_picture_size_is_told(setup):
  _, model, batch = setup
  wrong = dataclasses.replace(
    batch.inputs, vision={'pixel_values': jnp.zeros((2, 3, 12, 13))}
  )
  with pytest.raises(ValueError, match=r'must be \(2, 3, 13, 13\)'):
    modeling.forward(model, wrong)


def test_padding_pictures_are_read_by_nobody(setup):
  """A batch padded with a picture of noise: the same logits."""
  _, model, batch = setup
  pixels = batch.inputs.vision['pixel_values']
  noise = jnp.asarray(torch.randn(1, 3, 13, 13).numpy())
  padded = dataclasses.replace(
    batch.inputs, vision={'pixel_values': jnp.concatenate([pixels, noise])}
  )
  np.testing.assert_allclose(
    _forward(model, padded).logits_BPV,
    _forward(model, batch.inputs).logits_BPV,
    atol=1e-5,
  )
