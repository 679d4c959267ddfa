"""Qwen-VL from a folder: key layouts, dtypes, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import control as control_lib
from corejax import errors
from corejax.kernels import dispatch
from corejax.models import checkpoint
from corejax.models import qwen_vision
from corejax.models import registry
from corejax.models import rope
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling
from corejax.models.qwen_vl import weights
from helpers import hf_qwen
from helpers import parity
from helpers import tiny_qwen
from helpers import torch_only

torch = torch_only.torch

P = jax.sharding.PartitionSpec
KINDS = ('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl')


def _leaves(model):
  return jax.tree.leaves(model)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_key_layouts(kind, tied, tmp_path):
  """Hub and 5.x, in-memory names, and both heads of a model."""
  torch_model = hf_qwen.build(hf_qwen.config(kind, tie_word_embeddings=tied))
  models = []
  for layout in hf_qwen.LAYOUTS:
    folder = tmp_path / layout
    hf_qwen.save(torch_model, folder, layout=layout)
    config = config_lib.read(folder, kind)
    models.append(weights.load(folder, config, dtype=jnp.dtype('float32')))
  for a, b in zip(*map(_leaves, models), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (models[0].language.head is None) == tied
  config = config_lib.read(tmp_path / 'saved', kind)
  extra = {'visual.blocks.9.norm1.weight': torch.zeros(24)}
  hf_qwen.save(torch_model, tmp_path / 'extra', extra=extra)
  with pytest.raises(errors.UserError, match='visual.blocks.9'):
    weights.load(tmp_path / 'extra', config, dtype=jnp.dtype('float32'))


def test_experts_in_either_order(tmp_path):
  """Hub [X, D, 2 F], transformers 5 [X, 2 F, D]; never both in one folder."""
  torch_model = hf_qwen.build(hf_qwen.config('qwen3_vl_moe'))
  plain = {k: v for k, v in torch_model.state_dict().items() if 'experts' in k}
  swapped = {k: v.transpose(1, 2) for k, v in plain.items()}
  mixed = swapped | {k: v for k, v in plain.items() if '.1.' in k}
  models = []
  for name, extra in (('plain', plain), ('swapped', swapped), ('mixed', mixed)):
    folder = tmp_path / name
    extra = {k: v.contiguous() for k, v in extra.items()}
    hf_qwen.save(torch_model, folder, extra=extra)
    config = config_lib.read(folder, 'qwen3_vl_moe')
    if name == 'mixed':
      with pytest.raises(errors.UserError, match='misshapen: .*layers.1'):
        weights.load(folder, config, dtype=jnp.dtype('float32'))
    else:
      models.append(weights.load(folder, config, dtype=jnp.dtype('float32')))
  for a, b in zip(*map(_leaves, models), strict=True):
    np.testing.assert_array_equal(a, b)
  gate_up = plain['model.language_model.layers.2.mlp.experts.gate_up_proj']
  ours = models[0].language.layers.mlp.gate_up[2]
  np.testing.assert_array_equal(ours, gate_up.transpose(1, 2))


def test_gradients_through_experts(tmp_path):
  torch_model = hf_qwen.build(hf_qwen.config('qwen3_vl_moe'))
  hf_qwen.save(torch_model, tmp_path)
  config = config_lib.read(tmp_path, 'qwen3_vl_moe')
  model = weights.load(tmp_path, config, dtype=jnp.dtype('float32'))
  batch = hf_qwen.batch(torch_model.config, [[2, (2, 2), 3]])
  shape = config.text.n_layers, config.text.n_heads
  intact = control_lib.HeadControl.intact(*shape)

  def logit(gate_LN):
    out = modeling.forward(
      model, batch.inputs, control=intact.with_gate(gate_LN)
    )
    return out.logits_BPV[0, -1, 5]

  quick = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  one = quick(logit)
  ones_LN = jnp.ones(shape)
  cut_XLN = jnp.stack([ones_LN, ones_LN.at[1, 2].set(0)])
  each = jnp.stack([one(gate_LN) for gate_LN in cut_XLN])
  mapped = quick(lambda cut_XLN: jax.lax.map(logit, cut_XLN))(cut_XLN)
  np.testing.assert_allclose(mapped, each, rtol=1e-5)
  # As the README says: jax's ragged_dot has no such rule.
  with pytest.raises(NotImplementedError, match='ragged_dot vmap'):
    jax.vmap(logit)(cut_XLN)
  slope_LN = quick(jax.grad(logit))(ones_LN)
  step_LN = jnp.zeros(shape).at[1, 2].set(1e-3)
  change = (one(ones_LN + step_LN) - one(ones_LN - step_LN)) / 2e-3
  assert abs(change - slope_LN[1, 2]) < 0.02 * abs(slope_LN).max()


@pytest.mark.parametrize('kind', config_lib.KINDS)
def test_bfloat16_model_is_as_good_as_torchs(kind, tmp_path):
  torch_model = hf_qwen.build(hf_qwen.config(kind))
  hf_qwen.save(torch_model, tmp_path, dtype=torch.bfloat16)
  batch = hf_qwen.batch(hf_qwen.config(kind), [[4, (3, 4), 20]])
  config = config_lib.read(tmp_path, kind)
  model = weights.load(tmp_path, config, dtype=jnp.dtype('bfloat16'))
  parity.check_bfloat16(
    modeling.forward, model, type(torch_model), tmp_path, batch, 1.5, 0.2
  )


def test_on_a_mesh(tmp_path):
  """Heads and mergers cut in 2, attention under shard_map."""
  tower_kw = dict(num_heads=2, hidden_size=16)
  hf_config = hf_qwen.config('qwen2_5_vl', tower_kw=tower_kw)
  torch_model = hf_qwen.build(hf_config)
  hf_qwen.save(torch_model, tmp_path)
  batch = hf_qwen.batch(
    hf_config, [[3, (3, 5), 5], [1, (2, 2), 2]], extra_pictures=0
  )
  expected = hf_qwen.reference(torch_model, batch.torch)['logits']
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(2, 2),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  config = config_lib.read(tmp_path, 'qwen2_5_vl')
  model = weights.load(tmp_path, config, dtype=jnp.dtype('float32'), mesh=mesh)
  assert model.vision.layers.attn.qkv.weight[...].sharding.spec == P(
    None, None, 'model'
  )
  assert model.vision.merger.fc1.weight[...].sharding.spec == P('model')
  rows = jax.sharding.NamedSharding(mesh, P('data'))
  inputs = jax.tree.map(lambda x: jax.device_put(x, rows), batch.inputs)
  attend = dispatch.sharded(dispatch.attend(), mesh)
  out = jax.jit(functools.partial(modeling.forward, attend=attend))(
    model, inputs
  )
  worst = np.abs(np.asarray(out.logits_BPV) - expected)[batch.real_BT].max()
  assert worst < 1e-4 * expected.std(), worst


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('qwen')
  tiny_qwen.folder(path, 'qwen2_5_vl')
  return path


def test_what_is_told_about_a_model(folder):
  loaded = registry.get('qwen2_5_vl_flax').load(str(folder), dtype='bfloat16')
  assert loaded.key == 'qwen2_5_vl_flax'
  assert (loaded.n_layers, loaded.n_heads, loaded.n_kv_heads) == (3, 4, 2)
  assert loaded.max_length == 512
  assert loaded.fingerprint == checkpoint.fingerprint(folder)
  assert loaded.eos_ids == (2,)
  assert {leaf.dtype for leaf in _leaves(loaded.model)} == {
    jnp.dtype('bfloat16')
  }


def test_a_tower_turns_in_float32(folder):
  """Queries and keys of a bfloat16 tower are rounded once, behind the turn."""
  loaded = registry.get('qwen2_5_vl_flax').load(folder, dtype='bfloat16')
  tower = loaded.model.vision
  # Queries and keys are their biases alone, whatever the layers write.
  attn = tower.layers.attn
  attn.qkv.weight[...] = jnp.zeros_like(attn.qkv.weight[...])
  vision = hf_qwen.batch(
    hf_qwen.config('qwen2_5_vl', tower_kw=dict(patch_size=14)),
    [[3, (5, 7), 4]],
    extra_pictures=0,
  ).inputs.vision
  patches, grid_M3 = vision['pixel_values'], vision['image_grid_thw']

  class Seen(Exception):
    """The first layer's queries and keys."""

  def attend(q, k, v, mask):
    raise Seen(q, k)

  with jax.disable_jit(), pytest.raises(Seen) as caught:
    qwen_vision.run(tower, patches, grid_M3, attend=attend)
  at = qwen_vision.places(tower.config, grid_M3, patches.shape[1])
  turn = qwen_vision.turns(tower.config, at)
  assert turn.cos_BT1H.dtype == turn.sin_BT1H.dtype == jnp.float32
  for index, ours in enumerate(caught.value.args):
    own_NH = attn.qkv.bias[...][0, index].astype(jnp.float32)
    wide = jnp.broadcast_to(own_NH, ours.shape)
    expected = rope.rotate(wide, turn).astype(jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, expected)


def test_refused(folder, tmp_path):
  family = registry.get('qwen2_5_vl_flax')
  with pytest.raises(errors.UserError, match='--dtype=int8 is not supported'):
    family.load(folder, dtype='int8')
  with pytest.raises(errors.UserError, match='image_policy=pad'):
    family.load(folder, image_policy='pad')
  with pytest.raises(errors.UserError, match='qwen2_5_vl_flax reads it'):
    registry.get('qwen2_vl_flax').load(folder)
  with pytest.raises(errors.UserError, match='config.json: no such file'):
    family.load(tmp_path)


def test_a_tower_is_handed_its_own_attention(folder):
  loaded = registry.get('qwen2_5_vl_flax').load(folder)
  seen = []

  def tower_attend(q, k, v, mask, control=None, probe=None):
    seen.append((mask.causal, mask.kv_segment_BS is None, control, probe))
    return attention.reference(q, k, v, mask)

  batch = hf_qwen.batch(
    hf_qwen.config('qwen2_5_vl', tower_kw=dict(patch_size=14)),
    [[3, (2, 2), 4]],
  )
  jax.eval_shape(
    functools.partial(modeling.forward, tower_attend=tower_attend),
    loaded.model,
    batch.inputs,
  )
  # One branch with windows, one without; never a control or a probe.
  assert set(seen) == {(False, True, None, None), (False, False, None, None)}
