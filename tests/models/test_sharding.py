"""Parameters cut over a mesh of four (virtual) devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import errors
from corejax import probe as probe_lib
from corejax.kernels import dispatch
from corejax.models import sharding
from corejax.models import weights as weights_lib
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from helpers import hf_llava

P = jax.sharding.PartitionSpec


def _mesh(data: int, model: int, names=('data', 'model')):
  return jax.sharding.Mesh(
    np.array(jax.devices()[: data * model]).reshape(data, model),
    names,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


@pytest.mark.parametrize(
  'path, shape, spec',
  [
    ('language.layers.attn.q.weight', (2, 8, 4, 32), P(None, 'model')),
    ('language.layers.attn.k.bias', (2, 4, 4), P(None, 'model')),
    ('language.layers.attn.k.weight', (2, 2, 4, 32), P()),  # 2 heads, 4 devices
    ('language.layers.attn.q.weight', (2, 7, 4, 28), P()),
    ('language.layers.attn.o.weight', (2, 32, 8, 4), P(None, None, 'model')),
    ('language.layers.attn.o.bias', (2, 32), P()),
    ('language.layers.mlp.gate.weight', (2, 64, 32), P(None, 'model')),
    ('language.layers.mlp.down.weight', (2, 32, 64), P(None, None, 'model')),
    ('language.embed.weight', (64, 32), P('model')),
    ('language.head.weight', (63, 32), P(None, 'model')),  # 63 rows
    ('language.head.weight', (63, 30), P()),
    (
      'vision.layers.attn.q.weight',
      (2, 5, 4, 20),
      P(None, None, None, 'model'),
    ),
    ('vision.layers.attn.o.weight', (2, 20, 5, 4), P(None, 'model')),
    ('language.norm.weight', (32,), P()),
    ('language.layers.attn.q_norm.weight', (2, 8), P()),
    ('vision.layers.attn.v.weight', (2, 16, 4, 64), P(None, 'model')),
    ('vision.layers.fc1.bias', (2, 128), P(None, 'model')),
    ('vision.layers.fc2.weight', (2, 64, 128), P(None, None, 'model')),
    ('vision.position', (10, 64), P()),
    ('projector.linear_1.weight', (32, 64), P('model')),
    ('projector.linear_2.weight', (32, 32), P(None, 'model')),
  ],
)
def test_rules(path, shape, spec):
  assert sharding.RULES.spec(path, shape, 4) == spec


def test_most_of_a_real_model_is_cut():
  """A rule whose regex no longer fits a renamed path would go unnoticed."""
  config = config_lib.LlavaConfig.from_hf(hf_llava.config('qwen2'))
  shapes = weights_lib.shapes(modeling.abstract(config, jnp.dtype('float32')))
  whole = {
    path
    for path, shape in shapes.items()
    if len(shape) > 2 and sharding.RULES.spec(path, shape, 1) == P()
  }
  assert whole == {'vision.patch.weight'}


def test_other_meshes_are_refused():
  with pytest.raises(errors.UserError, match='expected'):
    sharding.placer(_mesh(1, 2, names=('x', 'model')))


@pytest.mark.parametrize('data, model, by_head', [(2, 2, True), (1, 4, False)])
def test_same_logits_on_four_devices(tmp_path, data, model, by_head):
  """4 heads cut in 2 or 4; 2 kv heads in 2, and whole where 4 do not fit.

  With `by_head` attention runs under shard_map: nothing is gathered. The other
  has a tower of 5 heads and 63 words: cut along their widths.
  """
  hf_config = hf_llava.config(
    'qwen2',
    text_kw=dict(num_key_value_heads=2, vocab_size=64 if by_head else 63),
    tower_kw=dict(num_attention_heads=4 if by_head else 5),
  )
  torch_model = hf_llava.build(hf_config)
  hf_llava.save(torch_model, tmp_path)
  batch = hf_llava.batch(
    hf_config, [[3, hf_llava.IMAGE, 5], [1, hf_llava.IMAGE, 2]]
  )
  hf = hf_llava.reference(torch_model, batch.torch)
  mesh = _mesh(data, model)
  config = config_lib.read(tmp_path)
  loaded = weights.load(tmp_path, config, dtype=jnp.dtype('float32'), mesh=mesh)
  q = loaded.language.layers.attn.q.weight[...]
  k = loaded.language.layers.attn.k.weight[...]
  assert q.sharding.spec == P(None, 'model')
  assert q.addressable_shards[0].data.shape == (3, 4 // model, 8, 32)
  assert k.addressable_shards[0].data.shape[1] == (1 if model == 2 else 2)

  rows = jax.sharding.NamedSharding(mesh, P('data'))
  if not by_head:
    assert loaded.language.embed.weight[...].sharding.spec == P(None, 'model')
    tower_q = loaded.vision.layers.attn.q.weight[...]
    assert tower_q.addressable_shards[0].data.shape[1:] == (5, 4, 5)
  inputs = jax.tree.map(lambda x: jax.device_put(x, rows), batch.inputs)
  length = batch.real_BT.shape[1]
  probe = probe_lib.Probe(
    jnp.full((2, 1), 7, jnp.int32),
    jnp.ones((1, 3)),
    jnp.broadcast_to(jnp.arange(length) % 9, (2, length)).astype(jnp.int8),
  )
  attend = attention.reference
  if by_head:
    attend = dispatch.sharded(dispatch.attend(), mesh)
  run = jax.jit(functools.partial(modeling.forward, attend=attend))
  compiled = run.lower(loaded, inputs, probe=probe).compile()
  if by_head:
    assert 'all-gather(' not in compiled.as_text()
    assert 'all-reduce(' in compiled.as_text()
  out = compiled(loaded, inputs, probe=probe)
  worst = np.abs(np.asarray(out.logits_BPV) - hf['logits'])[batch.real_BT].max()
  assert worst < 1e-5 * hf['logits'].std(), worst
  seen = hf['attention'][:, :, :, 7].astype(np.float64)
  mass = np.stack(
    [seen[..., np.arange(length) % 9 == r].sum(-1) for r in range(9)], -1
  )
  assert np.abs(out.measured.mass_BQNR[:, :, 0] - mass).max() < 1e-5
