"""What every attention implementation must do; one subclass a backend."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import blockwise
from corejax.kernels import reference
from corejax.kernels import tpu_pallas
from corejax.kernels import xla
from helpers import attention_cases as cases
from helpers import triton_interpreter

# Float32 sums of some fifty terms of order one.
_TOL = dict(rtol=2e-6, atol=3e-6)


def _loss(out, lse, weigh_out, weigh_lse, xp=jnp):
  """Reads every output; rows that see nothing have no finite lse."""
  lse = xp.where(xp.isneginf(lse), 0.0, lse)
  return (out * weigh_out).sum() + (lse * weigh_lse).sum()


class Contract:
  """The tests; `run` is (q, k, v, mask, control, *, return_lse).

  Attributes:
    draws: problems of each spec.
    refused: what of cases.SPECS the backend does not serve -> its reason.
  """

  draws = 4
  refused: dict[str, str] = {}

  @classmethod
  def run(cls, *args, **kwargs):
    raise NotImplementedError

  def refuses(self, name):
    """Is it refused, and with the reason that is promised?"""
    if name not in self.refused:
      return False
    with pytest.raises(NotImplementedError, match=self.refused[name]):
      self.run(*cases.draw(cases.SPECS[name], 0).args)
    return True

  @pytest.fixture(scope='class')
  @classmethod
  def jitted(cls):
    """One jitted function a class, so that draws of a spec share a program."""
    return jax.jit(functools.partial(cls.run, return_lse=True))

  @pytest.mark.parametrize('name', cases.SPECS)
  def test_equals_the_oracle(self, jitted, name):
    if self.refuses(name):
      return
    for seed in range(self.draws):
      problem, true_out, true_lse = cases.solved(name, seed)
      out, lse = jitted(*problem.args)
      assert out.dtype == lse.dtype == jnp.float32
      np.testing.assert_allclose(out, true_out, **_TOL)
      np.testing.assert_allclose(lse, true_lse, **_TOL)
      blind = np.isneginf(true_lse).swapaxes(1, 2)
      assert not np.asarray(out)[blind].any()

  @pytest.mark.parametrize('name', ['left_right_padding', 'packed', 'blocked'])
  def test_gradient_equals_the_oracles_slope(self, name):
    """Along a random direction of q, k, v and score_scale at once."""
    if self.refuses(name):
      return
    problem, out, lse = cases.solved(name, 0)
    rng = np.random.default_rng(1)
    point = (
      problem.q_BTNH,
      problem.k_BSKH,
      problem.v_BSKH,
      problem.control.score_scale_BN,
    )
    weigh = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)
    way = [rng.standard_normal(x.shape) for x in point]

    def replaced(q, k, v, scale):
      control = dataclasses.replace(problem.control, score_scale_BN=scale)
      return q, k, v, problem.mask, control

    def loss(*point):
      return _loss(*self.run(*replaced(*point), return_lse=True), *weigh)

    def true_loss(step):
      moved = [np.asarray(x, np.float64) + step * d for x, d in zip(point, way)]
      return _loss(*reference.oracle(*replaced(*moved)), *weigh, xp=np)

    slope = (true_loss(1e-5) - true_loss(-1e-5)) / 2e-5
    gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*point)
    got = sum(float((g * d).sum()) for g, d in zip(gradient, way))
    assert got == pytest.approx(slope, rel=2e-5)

  def test_the_intact_control_changes_no_bit(self, jitted):
    problem = cases.draw(cases.SPECS['plain'], 0)
    n_heads = problem.q_BTNH.shape[2]
    intact = control_lib.HeadControl.intact(1, n_heads)
    layer = jax.tree.map(lambda x: x[0], intact.attend)
    bare = jitted(*problem.args)
    limited = jitted(*problem.args[:4], layer)
    for one, other in zip(bare, limited):
      np.testing.assert_array_equal(one, other)

  def test_a_rerun_changes_no_bit(self, jitted):
    problem = cases.draw(cases.SPECS['left_right_padding'], 0)
    first = jitted(*problem.args)
    for _ in range(3):
      for one, other in zip(first, jitted(*problem.args)):
        np.testing.assert_array_equal(one, other)

  def test_one_program_serves_every_head_set(self):
    problem = cases.draw(cases.SPECS['plain'], 0)
    traces = []

    @jax.jit
    def run(control):
      traces.append(control)
      return self.run(*problem.args[:4], control)

    for n_dense in (0, 2, 6):
      windows = [masks.DENSE] * n_dense + [5] * (6 - n_dense)
      control = cases.controls(6, windows, 3)
      np.testing.assert_allclose(
        run(control), reference.oracle(*problem.args[:4], control)[0], **_TOL
      )
    assert len(traces) == 1

  def test_scan_over_layers_with_different_sets(self):
    problem = cases.draw(cases.SPECS['plain'], 0)
    layers = [cases.controls(6, [w, 9, 50, 1, 2, 3], w) for w in (1, 7, 40)]

    def layer(q_BTNH, control):
      out = self.run(q_BTNH, *problem.args[1:4], control)
      return q_BTNH + out, out

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    _, outs = jax.jit(lambda q: jax.lax.scan(layer, q, stacked))(problem.q_BTNH)
    q = np.asarray(problem.q_BTNH, np.float64)
    for out, control in zip(outs, layers):
      true_out, _ = reference.oracle(q, *problem.args[1:4], control)
      np.testing.assert_allclose(out, true_out, rtol=1e-5, atol=1e-5)
      q = q + true_out

  def test_vmap_over_controls_of_a_checkpointed_gradient(self):
    problem = cases.draw(cases.SPECS['left_right_padding'], 0)
    controls = [
      dataclasses.replace(
        problem.control, window_BN=problem.control.window_BN * 0 + w
      )
      for w in (1, 6, 90)
    ]

    def loss(q_BTNH, control):
      out, lse = self.run(q_BTNH, *problem.args[1:4], control, return_lse=True)
      return _loss(out, lse, jnp.cos(out), 1.0), out

    stacked = jax.tree.map(lambda *x: np.stack(x), *controls)
    kept = jax.grad(jax.checkpoint(loss), has_aux=True)
    all_dq, all_out = jax.jit(jax.vmap(kept, (None, 0)))(
      problem.q_BTNH, stacked
    )
    alone = jax.jit(jax.grad(loss, has_aux=True))
    for dq, out, control in zip(all_dq, all_out, controls):
      true_dq, true_out = alone(problem.q_BTNH, control)
      np.testing.assert_allclose(out, true_out, **_TOL)
      np.testing.assert_allclose(dq, true_dq, rtol=1e-5, atol=1e-5)

  def test_gradient_of_a_vmap(self):
    problem = cases.draw(cases.SPECS['windows'], 0)

    def scaled(scale_BN):
      control = dataclasses.replace(problem.control, score_scale_BN=scale_BN)
      return *problem.args[:4], control

    def loss(scales):
      out = jax.vmap(lambda s: self.run(*scaled(s)))(scales)
      return jnp.sin(out).sum()

    def true_loss(step):
      outs = [reference.oracle(*scaled(s + step * way))[0] for s in scales]
      return np.sin(outs).sum()

    scales = np.linspace(0.5, 1.5, 12, dtype=np.float32).reshape(2, 1, 6)
    way = np.random.default_rng(0).standard_normal((1, 6))
    slope = (true_loss(1e-5) - true_loss(-1e-5)) / 2e-5
    gradient = jax.jit(jax.grad(loss))(scales)
    assert float((gradient * way).sum()) == pytest.approx(slope, rel=2e-5)

  def test_half_precision_is_at_most_twice_as_wrong_as_plain(self, jitted):
    problem = cases.draw(cases.SPECS['windows'], 0)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in problem.args[:3]]
    args = *halves, *problem.args[3:]
    out, lse = jitted(*args)
    true_out, true_lse = reference.oracle(*args)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(lse, true_lse, **_TOL)

    def errors(out):
      error = np.abs(np.asarray(out, np.float64) - true_out)
      return np.array([error.max(), np.sqrt((error**2).mean())])

    assert (errors(out) <= 2 * errors(jax.jit(cases.plain)(*args))).all()

  def test_gradients_where_rows_see_nothing_are_zero(self):
    """Left padding: rows before kv_start have no key at all."""
    problem = cases.draw(cases.SPECS['plain'], 0)
    mask = masks.AttnMask(kv_start_B=jnp.array([5, 0]))

    def loss(q_BTNH):
      out, lse = self.run(q_BTNH, *problem.args[1:3], mask, return_lse=True)
      return _loss(out, lse, 1.0, 1.0)

    dq = np.asarray(jax.jit(jax.grad(loss))(problem.q_BTNH))
    assert np.isfinite(dq).all()
    assert not dq[0, :5].any() and dq[0, 6:].any()


class Exact(Contract):
  """A backend that computes in float32 whatever it is given."""

  def test_half_precision_is_summed_in_float32(self, jitted):
    problem = cases.draw(cases.SPECS['windows'], 0)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in problem.args[:3]]
    out, lse = jitted(*halves, *problem.args[3:])
    true_out, true_lse = reference.oracle(*halves, *problem.args[3:])
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(lse, true_lse, **_TOL)
    # One rounding, at the very end.
    np.testing.assert_allclose(
      out.astype(jnp.float32), true_out, rtol=2.0**-8, atol=3e-6
    )


class TestReference(Exact):
  @classmethod
  def run(cls, *args, **kwargs):
    return reference.head_sparse_attention(*args, **kwargs)


class TestXla(Exact):
  """Blocks that divide neither T nor S nor each other, and wide tiles."""

  @classmethod
  def run(cls, *args, **kwargs):
    return xla.head_sparse_attention(
      *args, **kwargs, block_sizes=blockwise.BlockSizes(5, 3, 2)
    )


class TestTpuPallas(Contract):
  """Interpreted; blocks that divide nothing, lists of several chunks."""

  refused = {
    'vision_windows': 'serves no segments',
    'packed': 'serves no segments',
    'blocked': 'serves no blocked regions',
    'some_rows': 'serves no blocked regions',
  }

  @classmethod
  def run(cls, *args, **kwargs):
    return tpu_pallas.head_sparse_attention(
      *args,
      **kwargs,
      block_sizes=tpu_pallas.BlockSizes(16, 12, 100),
      interpret=True,
    )


class TestTriton(Contract):
  """In Triton's interpreter, which is slow: few and large blocks."""

  draws = 2
  refused = TestTpuPallas.refused

  @classmethod
  def run(cls, *args, **kwargs):
    return triton_interpreter.attention(*args, **kwargs, blocks=(32, 32, 1))
