"""Attention on a 2x2 mesh of virtual devices equals that on one."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from corejax import errors
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from corejax.kernels import dispatch
from helpers import attention_cases as cases


def _mesh(data, model, names=('data', 'model')):
  return jax.make_mesh(
    (data, model),
    names,
    (jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[: data * model],
  )


def _probe(batch, length, n_keys, seed=0):
  rng = np.random.default_rng(seed)
  return probe_lib.Probe(
    rows_BP=rng.integers(-1, length, (batch, 4)).astype(np.int32),
    set_PQ=np.eye(3, dtype=np.float32)[[0, 0, 1, 2]],
    region_BS=rng.integers(0, len(regions.REGIONS), (batch, n_keys)).astype(
      np.int8
    ),
    visual_BI=rng.integers(-1, n_keys, (batch, 5)).astype(np.int32),
    profile_set=0,
    weights=True,
  )


def _assert_same(one, other):
  for got, want in zip(
    jax.tree.leaves(one), jax.tree.leaves(other), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  'implementation, mesh_shape, n_heads, n_kv',
  [
    ('reference', (2, 2), 6, 6),
    ('xla', (2, 2), 4, 2),
    # The axis does not divide K: each device takes what its heads read.
    ('xla', (2, 2), 6, 3),  # 3 heads a device, one kv head is cut in two
    ('reference', (2, 2), 14, 1),
    ('reference', (2, 2), 14, 7),
    ('reference', (1, 4), 12, 3),
    ('reference', (1, 4), 8, 2),
    ('reference', (1, 4), 4, 1),
  ],
)
def test_equals_one_device(implementation, mesh_shape, n_heads, n_kv):
  spec = dataclasses.replace(
    cases.SPECS['left_right_padding'],
    n_rows=9,
    n_keys=9,
    n_heads=n_heads,
    n_kv=n_kv,
  )
  problem = cases.draw(spec, 0)
  probe = _probe(2, 9, 9)
  attend = dispatch.attend(implementation)
  spread = dispatch.sharded(attend, _mesh(*mesh_shape))
  got = jax.jit(spread)(*problem.args, probe)
  _assert_same(got, jax.jit(attend)(*problem.args, probe))
  out_spec = got.out_BTNH.sharding.spec
  assert out_spec[2] == 'model' and len(got.out_BTNH.devices()) == 4


def test_heads_that_do_not_divide_are_all_computed_if_asked_for():
  spec = dataclasses.replace(
    cases.SPECS['left_right_padding'], n_rows=9, n_keys=9, n_heads=6, n_kv=3
  )
  problem = cases.draw(spec, 0)
  probe = _probe(2, 9, 9)
  attend = dispatch.attend('reference')
  spread = dispatch.sharded(attend, _mesh(1, 4), uneven=True)
  got = jax.jit(spread)(*problem.args, probe)
  _assert_same(got, jax.jit(attend)(*problem.args, probe))


@pytest.mark.parametrize(
  'name', ['packed', 'blocked', 'some_rows', 'model_window']
)
def test_every_limit_is_cut_to_its_shard(name):
  """Segments, regions, controls of one row or of B rows, a scalar window."""
  problem = cases.draw(cases.SPECS[name], 1)
  spread = dispatch.sharded(dispatch.attend('reference'), _mesh(2, 2))
  got = jax.jit(spread)(*problem.args).out_BTNH
  want = jax.jit(dispatch.attend('reference'))(*problem.args).out_BTNH
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('n_kv', [1, 4])
def test_gradients_equal_one_devices(n_kv):
  spec = dataclasses.replace(
    cases.SPECS['windows'], n_rows=9, n_keys=9, n_heads=4, n_kv=n_kv
  )
  problem = cases.draw(spec, 0)

  def gradient(attend):
    def loss(q, k, v, scale_BN):
      control = dataclasses.replace(problem.control, score_scale_BN=scale_BN)
      return jnp.sin(attend(q, k, v, problem.mask, control).out_BTNH).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(
      *problem.args[:3], problem.control.score_scale_BN
    )

  attend = dispatch.attend()
  got = gradient(dispatch.sharded(attend, _mesh(2, 2)))
  for one, other in zip(got, gradient(attend)):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def _program(attend, mesh, n_kv):
  """The compiled text of one layer on inputs that lie as `sharded` has them."""
  spec = dataclasses.replace(cases.SPECS['windows'], n_heads=4, n_kv=n_kv)
  problem = cases.draw(spec, 0)
  at_heads = PartitionSpec('data', None, 'model')
  at_kv = at_heads if n_kv % 2 == 0 else PartitionSpec('data')
  placed = [
    jax.device_put(x, NamedSharding(mesh, at))
    for x, at in zip(problem.args[:3], (at_heads, at_kv, at_kv))
  ]
  probe = _probe(2, 53, 53)
  compiled = jax.jit(attend).lower(*placed, *problem.args[3:], probe).compile()
  return compiled.as_text()


def _moves(text):
  names = 'all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter'
  return re.findall(rf' ({names})', text)


@pytest.mark.parametrize('n_kv', [1, 4])
def test_the_program_moves_no_q_k_or_v(n_kv):
  mesh = _mesh(2, 2)
  spread = dispatch.sharded(dispatch.attend(), mesh)
  assert not _moves(_program(spread, mesh, n_kv))


def test_without_sharded_the_program_does_move_them():
  """So that the test above can fail."""
  assert 'all-gather' in _moves(_program(dispatch.attend(), _mesh(2, 2), 4))


def test_refuses_what_the_mesh_does_not_divide():
  spread = dispatch.sharded(dispatch.attend(), _mesh(2, 2))
  problem = cases.draw(cases.SPECS['plain'], 0)
  three = [np.concatenate([x, x[:1]]) for x in problem.args[:3]]
  with pytest.raises(errors.UserError, match="3 batch .*'data'.* 1, 3 can"):
    spread(*three, masks.AttnMask())
  seven = cases.draw(cases.SPECS['chunk_7_to_1'], 0)
  with pytest.raises(
    errors.UserError, match="7 query heads .*'model'.* 1, 7 can"
  ):
    spread(*seven.args)


def test_refuses_a_mesh_without_the_axes():
  with pytest.raises(errors.UserError, match=r"\('a', 'b'\), not 'data'"):
    dispatch.sharded(dispatch.attend(), _mesh(2, 2, ('a', 'b')))
