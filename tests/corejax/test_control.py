"""HeadControl: gates, replacement, and the way through the layer scan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import control as control_lib
from corejax import errors
from corejax import heads
from corejax import masks

_B, _T, _N, _K, _H = 2, 5, 4, 2, 8


def _random(seed, *shape):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


def _layer(control, layer=0):
  stacked, shared = control.per_layer()
  return jax.tree.map(lambda x: x[layer], stacked).join(shared)


def test_gates_are_zero_at_the_heads_of_the_set():
  got = control_lib.gates(heads.HeadSet.parse('0-1,2-3'), 3, 4)
  assert got.dtype == jnp.float32
  assert got.tolist() == [[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
  with pytest.raises(errors.UserError, match='layer 3'):
    control_lib.gates(heads.HeadSet.parse('3-0'), 3, 4)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_an_intact_control_changes_no_bit(dtype):
  q = _random(0, _B, _T, _N, _H).astype(dtype)
  k = _random(1, _B, _T, _K, _H).astype(dtype)
  v = _random(2, _B, _T, _K, _H).astype(dtype)
  mask = masks.AttnMask(kv_len_B=jnp.array([5, 3], jnp.int32))
  control = _layer(control_lib.HeadControl.intact(2, _N), 1)

  def run(control):
    attend = None if control is None else control.attend
    output = None if control is None else control.output
    out = attention.reference(q, k, v, mask, attend).out_BTNH
    return control_lib.apply_output(out, output)

  assert run(None).dtype == dtype
  assert (jax.jit(run)(None) == jax.jit(run)(control)).all()
  assert (run(None) == run(control)).all()


def test_gates_scale_their_head_alone():
  out = _random(0, _B, _T, _N, _H)
  control = control_lib.OutputControl(jnp.array([[1, 0, 0.5, 1]]))
  got = control_lib.apply_output(out, control)
  expected = np.array(out) * np.array([1, 0, 0.5, 1])[:, None]
  np.testing.assert_array_equal(got, expected)


def test_gates_per_example():
  out = _random(0, _B, _T, _N, _H)
  gate_BN = jnp.array([[0, 1, 1, 1], [1, 1, 1, 0]], jnp.float32)
  got = control_lib.apply_output(out, control_lib.OutputControl(gate_BN))
  expected = np.array(out)
  expected[0, :, 0] = expected[1, :, 3] = 0
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('shape', [(1, 1), (_B, 1), (1, _T), (_B, _T)])
def test_what_is_gated_off_is_replaced(shape):
  out = _random(0, _B, _T, _N, _H)
  replacement = _random(1, *shape, _N, _H)
  gate = jnp.array([[1, 0, 0.25, 1]], jnp.float32)
  got = control_lib.apply_output(
    out, control_lib.OutputControl(gate, replacement)
  )
  g = np.array(gate)[:, None, :, None]
  expected = g * np.array(out) + (1 - g) * np.array(replacement)
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(got[:, :, [0, 3]], out[:, :, [0, 3]])


def test_only_the_chosen_rows_are_edited():
  out = _random(0, _B, _T, _N, _H)
  rows_BT = np.zeros((_B, _T), bool)
  rows_BT[0, 4] = rows_BT[1, 1:3] = True
  control = control_lib.OutputControl(
    jnp.zeros((1, _N), jnp.float32), rows_BT=jnp.asarray(rows_BT)
  )
  got = np.array(control_lib.apply_output(out, control))
  assert not got[rows_BT].any()
  np.testing.assert_array_equal(got[~rows_BT], np.array(out)[~rows_BT])
  one = dataclasses.replace(control, rows_BT=jnp.asarray(rows_BT[:1]))
  got = np.array(control_lib.apply_output(out, one))
  assert not got[:, 4].any() and got[:, :4].all()


@pytest.mark.parametrize('batch', [1, _B])
@pytest.mark.parametrize('table', [1, _B])
def test_rows_take_their_source_rows(batch, table):
  out = _random(0, _B, _T, _N, _H)
  replacement = _random(1, table, 3, _N, _H)
  source_BT = np.random.default_rng(2).integers(0, 3, (batch, _T))
  control = control_lib.OutputControl(
    jnp.array([[1, 0, 0.25, 1]], jnp.float32),
    replacement,
    source_BT=jnp.asarray(source_BT, jnp.int32),
  )
  got = np.array(control_lib.apply_output(out, control))
  for b, t in np.ndindex(_B, _T):
    row = replacement[b % table, source_BT[b % batch, t]]
    np.testing.assert_array_equal(got[b, t, 1], row[1])
    expected = 0.25 * out[b, t, 2] + 0.75 * row[2]
    np.testing.assert_allclose(got[b, t, 2], expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(got[:, :, [0, 3]], out[:, :, [0, 3]])


@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
def test_a_poisoned_head_is_removed_by_its_gate(poison):
  out = _random(0, _B, _T, _N, _H).at[:, :, 2].set(poison)
  gate = jnp.array([[1, 1, 0, 1]], jnp.float32)
  got = control_lib.apply_output(out, control_lib.OutputControl(gate))
  assert not np.asarray(got[:, :, 2]).any()
  np.testing.assert_array_equal(got[:, :, [0, 1, 3]], out[:, :, [0, 1, 3]])
  half = control_lib.OutputControl(gate.at[0, 2].set(0.5))
  assert not np.isfinite(control_lib.apply_output(out, half)[:, :, 2]).any()


def test_a_poisoned_replacement_of_a_kept_head_is_not_looked_at():
  out = _random(0, _B, _T, _N, _H)
  gate = jnp.array([[1, 0, 1, 1]], jnp.float32)
  replacement = _random(1, 1, 1, _N, _H).at[:, :, 0].set(jnp.nan)
  got = control_lib.apply_output(
    out, control_lib.OutputControl(gate, replacement)
  )
  np.testing.assert_array_equal(got[:, :, [0, 2, 3]], out[:, :, [0, 2, 3]])
  np.testing.assert_array_equal(
    got[:, :, 1], np.broadcast_to(replacement[:, :, 1], (_B, _T, _H))
  )


def test_the_dtype_of_the_output_is_kept():
  out = _random(0, _B, _T, _N, _H).astype(jnp.bfloat16)
  control = control_lib.OutputControl(
    jnp.full((1, _N), 0.3), _random(1, 1, 1, _N, _H)
  )
  got = control_lib.apply_output(out, control)
  assert got.dtype == jnp.bfloat16
  gated = np.float32(0.3) * np.asarray(out, np.float32) + (
    np.float32(1) - np.float32(0.3)
  ) * np.asarray(control.replacement_BTNH)
  np.testing.assert_array_equal(got, jnp.asarray(gated).astype(jnp.bfloat16))


def test_the_gradient_of_a_gate_is_its_heads_output():
  out = _random(0, _B, _T, _N, _H)
  weight = _random(1, _B, _T, _N, _H)

  def loss(gate_N):
    control = control_lib.OutputControl(gate_N[None])
    return (weight * control_lib.apply_output(out, control)).sum()

  got = jax.grad(loss)(jnp.ones(_N))
  np.testing.assert_allclose(
    got, (weight * out).sum((0, 1, 3)), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('at', [0.0, 0.3, 1.0])
def test_the_gradient_with_a_replacement_at_every_gate(at):
  """Also at 0 and 1, where terms that are not finite are dropped."""
  out = _random(0, _B, _T, _N, _H)
  weight = _random(1, _B, _T, _N, _H)
  replacement = _random(2, _B, 1, _N, _H)

  def loss(gate_N):
    control = control_lib.OutputControl(gate_N[None], replacement)
    return (weight * control_lib.apply_output(out, control)).sum()

  got = jax.grad(loss)(jnp.full(_N, at))
  expected = (weight * (out - replacement)).sum((0, 1, 3))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_removed_head_leaves_all_gradients_finite():
  out = _random(0, _B, _T, _N, _H).at[0, 0, 2].set(jnp.nan)

  def loss(gate_N, out):
    control = control_lib.OutputControl(gate_N[None])
    return jnp.sin(control_lib.apply_output(out, control)).sum()

  gate_N = jnp.array([1.0, 1.0, 0.0, 1.0])
  by_gate, by_out = jax.grad(loss, (0, 1))(gate_N, out)
  assert np.isfinite(by_gate).all() and np.asarray(by_gate).all()
  assert np.isfinite(by_out).all() and not np.asarray(by_out[:, :, 2]).any()


def test_through_the_layer_scan():
  rows_BT = jnp.asarray(np.random.default_rng(0).random((_B, _T)) < 0.5)
  region_BS = jnp.zeros((_B, _T), jnp.int8)
  control = control_lib.HeadControl.intact(3, _N).with_gate(
    jnp.arange(3 * _N, dtype=jnp.float32).reshape(3, _N)
  )
  control = control_lib.HeadControl(
    dataclasses.replace(
      control.attend,
      blocked_BNR=jnp.zeros((3, 1, _N, 9), bool).at[1].set(True),
      region_BS=region_BS,
      rows_BT=rows_BT[:1],
    ),
    dataclasses.replace(
      control.output,
      rows_BT=rows_BT,
      source_BT=jnp.zeros((1, _T), jnp.int32),
    ),
  )
  stacked, shared = control.per_layer()

  def body(carry, one):
    layer = one.join(shared)
    assert layer.attend.window_BN.shape == (1, _N)
    assert layer.attend.region_BS is region_BS
    assert layer.attend.rows_BT.shape == (1, _T)
    assert layer.output.rows_BT is rows_BT
    assert layer.output.source_BT.shape == (1, _T)
    return carry + 1, (layer.output.gate_BN, layer.attend.blocked_BNR.all())

  _, (gates, blocked) = jax.lax.scan(body, 0, stacked)
  assert gates[:, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
  assert blocked.tolist() == [False, True, False]


def test_a_vmap_over_gates_needs_one_executable():
  out = _random(0, _B, _T, _N, _H)
  traces = []

  def one(gate_LN):
    traces.append(0)
    control = control_lib.HeadControl.intact(1, _N).with_gate(gate_LN)
    return control_lib.apply_output(out, _layer(control).output)

  sweep = jax.jit(jax.vmap(one))
  got = sweep(1 - jnp.eye(_N)[:, None])
  for n in range(_N):
    assert not got[n, :, :, n].any()
    rest = [m for m in range(_N) if m != n]
    np.testing.assert_array_equal(
      got[n, :, :, rest], out[:, :, rest].swapaxes(1, 2).swapaxes(0, 1)
    )
  sweep(jnp.ones((_N, 1, _N)))
  assert len(traces) == 1
