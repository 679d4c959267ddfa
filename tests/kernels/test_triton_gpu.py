"""The Triton kernel on a GPU, at the block sizes that are shipped.

    JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu tests/kernels

needs an NVIDIA GPU that the kernel serves, and jax-triton. Everything here that
needs none is checked interpreted (test_triton.py, test_contract.py).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import masks
from corejax.kernels import dispatch
from corejax.kernels import reference
from corejax.kernels import triton
from helpers import attention_cases as cases

pytestmark = pytest.mark.gpu

# Several blocks of 128 rows and tiles of 64 and 128 keys, none of them whole.
_LONG = dict(n_rows=397, n_keys=397, n_heads=6, n_kv=2)
_SPECS = {
  'plain': cases.Spec(**_LONG, control=False),
  'windows': cases.Spec(**_LONG),
  'left_right_padding': cases.Spec(**_LONG, padding=True, per_sequence=True),
  'chunk_7_to_1': cases.Spec(
    n_rows=150, n_keys=500, n_heads=7, n_kv=1, offset=True, padding=True
  ),
  'decode': cases.Spec(n_rows=1, n_keys=300, n_heads=4, n_kv=2, offset=True),
  'model_window': cases.Spec(**_LONG, model_window=True, padding=True),
  'vision': cases.Spec(**_LONG, causal=False, padding=True),
}
_HALVES = ('bfloat16', 'float16')


@pytest.fixture(scope='module', autouse=True)
def _gpu():
  device = jax.devices()[0]
  if device.platform != 'gpu':
    pytest.fail(f'-m gpu computes on {device}; say JAX_PLATFORMS=cuda,cpu')


def _drawn(name, head_dim, dtype, seed=0):
  spec = dataclasses.replace(_SPECS[name], head_dim=head_dim)
  problem = cases.draw(spec, seed)
  halves = (jnp.asarray(x, dtype) for x in problem.args[:3])
  return *halves, problem.mask, problem.control


def _run(*args, **kwargs):
  return dispatch.head_sparse_attention(
    *args, **kwargs, implementation='triton'
  )


@pytest.mark.parametrize('name', _SPECS)
@pytest.mark.parametrize('dtype', _HALVES)
@pytest.mark.parametrize('head_dim', triton.HEAD_DIMS)
def test_at_most_twice_as_wrong_as_plain(head_dim, dtype, name):
  run = jax.jit(functools.partial(_run, return_lse=True))
  for seed in range(2):
    args = _drawn(name, head_dim, dtype, seed)
    out, lse = run(*args)
    true_out, true_lse = reference.oracle(*args)
    assert (out.dtype, lse.dtype) == (dtype, jnp.float32)
    np.testing.assert_allclose(lse, true_lse, rtol=1e-5, atol=1e-5)
    blind = np.isneginf(true_lse).swapaxes(1, 2)
    assert not np.asarray(out, np.float32)[blind].any()
    error, plain = (
      np.abs(np.asarray(x, np.float64) - true_out)
      for x in (out, jax.jit(cases.plain)(*args))
    )
    assert error.max() <= 2 * plain.max()
    assert np.sqrt((error**2).mean()) <= 2 * np.sqrt((plain**2).mean())


def test_a_rerun_changes_no_bit():
  args = _drawn('left_right_padding', 128, 'bfloat16')
  run = jax.jit(functools.partial(_run, return_lse=True))
  first = run(*args)
  for _ in range(20):
    for one, other in zip(first, run(*args)):
      np.testing.assert_array_equal(one, other)


def test_one_program_serves_every_head_set():
  args = _drawn('plain', 128, 'bfloat16')[:4]
  traces = []

  @jax.jit
  def run(control):
    traces.append(control)
    return _run(*args, control)

  for n_dense in (0, 2, 6):
    windows = [masks.DENSE] * n_dense + [50] * (6 - n_dense)
    control = cases.controls(6, windows, 30)
    true_out, _ = reference.oracle(*args, control)
    np.testing.assert_allclose(
      np.asarray(run(control), np.float64), true_out, atol=0.02
    )
  assert len(traces) == 1


def test_a_poisoned_tile_changes_no_block_that_does_not_read_it():
  """Who sees no key of a tile of 128 keeps every bit, so it is not loaded."""
  rng = np.random.default_rng(0)
  qkv = rng.standard_normal((3, 1, 640, 4, 64))
  control = cases.controls(4, [masks.DENSE, 200, 1, 90], [0, 3, 140, 700])
  n_unread = cases.check_unread(
    jax.jit(_run),
    *(jnp.asarray(x, jnp.bfloat16) for x in qkv),
    masks.AttnMask(),
    control,
    block=128,
    tile=128,
  )
  assert n_unread > 40  # of 100; causality alone leaves 40


def test_padding_may_hold_anything():
  q, k, v, mask, control = _drawn('left_right_padding', 96, 'float16')
  j = np.arange(k.shape[1])
  padding_BS = (j < mask.kv_start_B[:, None]) | (j >= mask.kv_len_B[:, None])
  assert padding_BS.any(1).all()
  run = jax.jit(_run)
  clean = run(q, k, v, mask, control)
  k, v = (jnp.where(padding_BS[..., None, None], jnp.nan, x) for x in (k, v))
  np.testing.assert_array_equal(clean, run(q, k, v, mask, control))


def test_gradients_and_vmap_are_those_of_xla():
  q, k, v, mask, control = _drawn('windows', 64, 'bfloat16')

  def loss(implementation, q, k, v, scale_BN):
    changed = dataclasses.replace(control, score_scale_BN=scale_BN)
    out = dispatch.head_sparse_attention(
      q, k, v, mask, changed, implementation=implementation
    )
    return jnp.sin(out.astype(jnp.float32)).sum()

  scales = jnp.stack([control.score_scale_BN, 0.5 * control.score_scale_BN])

  def gradients(implementation):
    grad = jax.grad(functools.partial(loss, implementation), (0, 1, 2, 3))
    return jax.jit(jax.vmap(grad, (None, None, None, 0)))(q, k, v, scales)

  for got, wanted in zip(gradients('triton'), gradients('xla')):
    got, wanted = (np.asarray(x, np.float64) for x in (got, wanted))
    far = np.abs(got - wanted).max()
    assert far <= 0.02 * np.abs(wanted).max(), far
    assert np.abs(wanted).max() > 0


def test_a_half_precision_call_takes_it_unasked():
  args = _drawn('windows', 128, 'bfloat16')
  assert dispatch.picked(*args) == 'triton'
  np.testing.assert_array_equal(
    jax.jit(dispatch.head_sparse_attention)(*args), jax.jit(_run)(*args)
  )
