"""What only the Triton kernel promises; its values on CPU, interpreted."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import dispatch
from corejax.kernels import limits as limits_lib
from corejax.kernels import reference
from corejax.kernels import triton
from helpers import attention_cases as cases
from helpers import triton_interpreter


@dataclasses.dataclass(frozen=True)
class _Shape:
  """One draw: blocks are (rows, keys, narrow tiles in a wide one)."""

  n_heads: int
  n_kv: int
  n_rows: int
  n_keys: int
  blocks: tuple[int, int, int]


def _draw(seed: int) -> tuple[cases.Problem, _Shape]:
  rng = np.random.default_rng(seed)
  group = (1, 2, 3, 7)[seed % 4]
  n_kv = int(rng.integers(1, 3))
  n_rows = int(rng.integers(1, 50))
  n_keys = n_rows + int(rng.integers(0, 40))
  blocks = ((16, 8, 2), (32, 16, 1), (16, 16, 2), (16, 4, 4))[rng.integers(4)]
  spec = cases.Spec(
    batch=2,
    n_rows=n_rows,
    n_keys=n_keys,
    n_heads=n_kv * group,
    n_kv=n_kv,
    head_dim=16,
    causal=bool(rng.random() < 0.85),
    offset=bool(rng.random() < 0.6),
    padding=bool(rng.random() < 0.6),
    model_window=bool(rng.random() < 0.3),
    per_sequence=bool(rng.random() < 0.5),
    rows=bool(rng.random() < 0.15),
  )
  problem = cases.draw(spec, seed)
  control = problem.control
  assert control is not None
  # Of a negative factor too the largest product must come first.
  sign = rng.choice([-1, 1, 1], control.score_scale_BN.shape)
  control = dataclasses.replace(
    control,
    score_scale_BN=(control.score_scale_BN * sign).astype(np.float32),
  )
  problem = dataclasses.replace(problem, control=control)
  return problem, _Shape(spec.n_heads, n_kv, n_rows, n_keys, blocks)


@pytest.mark.parametrize('seed', range(10))
def test_random_shapes_equal_the_oracle(seed):
  problem, shape = _draw(seed)
  out, lse = triton_interpreter.attention(
    *problem.args, blocks=shape.blocks, return_lse=True
  )
  true_out, true_lse = reference.oracle(*problem.args)
  np.testing.assert_allclose(out, true_out, rtol=2e-6, atol=3e-6, err_msg=shape)
  np.testing.assert_allclose(lse, true_lse, rtol=2e-6, atol=3e-6)


def test_a_model_window_bounds_sinks_of_whole_tiles():
  spec = cases.Spec(1, 64, 64, 2, 1, 16)
  problem = cases.draw(spec, 0)
  mask = masks.AttnMask(window=np.int32(20))
  args = *problem.args[:3], mask, cases.controls(2, 4, [40, 64])
  out = triton_interpreter.attention(*args, blocks=(16, 4, 2))
  np.testing.assert_allclose(
    out, reference.oracle(*args)[0], rtol=2e-6, atol=3e-6
  )


def test_a_large_negative_factor_does_not_overflow():
  """Of scores that are 200 apart the largest must be subtracted."""
  spec = cases.Spec(1, 32, 32, 2, 2, 16)
  problem = cases.draw(spec, 0)
  control = dataclasses.replace(
    cases.controls(2, masks.DENSE, 0),
    score_scale_BN=np.array([[-100, 100]], np.float32),
  )
  args = *problem.args[:4], control
  out, lse = triton_interpreter.attention(
    *args, blocks=(16, 8, 1), return_lse=True
  )
  true_out, true_lse = reference.oracle(*args)
  assert np.ptp(true_lse) > 200
  np.testing.assert_allclose(lse, true_lse, rtol=2e-6, atol=1e-4)
  np.testing.assert_allclose(out, true_out, atol=1e-3)


def test_a_factor_that_is_no_number_or_nothing():
  """NaN stays one; at 0 every key that is seen has the same share."""
  spec = cases.Spec(1, 32, 32, 2, 2, 16)
  problem = cases.draw(spec, 0)
  control = dataclasses.replace(
    cases.controls(2, masks.DENSE, 0),
    score_scale_BN=np.array([[np.nan, 0]], np.float32),
  )
  args = *problem.args[:4], control
  out, lse = triton_interpreter.attention(
    *args, blocks=(16, 8, 1), return_lse=True
  )
  assert np.isnan(out[:, :, 0]).all()
  n_seen = np.arange(1, 33)
  np.testing.assert_allclose(lse[0, 1], np.log(n_seen), rtol=2e-6, atol=1e-6)
  mean = np.cumsum(problem.v_BSKH[:, :, 1], 1) / n_seen[:, None]
  np.testing.assert_allclose(out[:, :, 1], mean, rtol=2e-6, atol=3e-6)


def _halves(seed: int, head_dim: int, dtype):
  spec = cases.Spec(1, 40, 40, 4, 2, head_dim, padding=True)
  problem = cases.draw(spec, seed)
  control = dataclasses.replace(
    problem.control, score_scale_BN=np.ones((1, 4), np.float32)
  )
  return (
    *(jnp.asarray(x, dtype) for x in problem.args[:3]),
    problem.mask,
    control,
  )


def _plain(q_BTNH, k_BSKH, v_BSKH, mask, control):
  """Float32 softmax whose weights are rounded before they meet the values."""
  dtype, n_rows = v_BSKH.dtype, q_BTNH.shape[1]
  group = q_BTNH.shape[2] // k_BSKH.shape[2]
  q, k, v = (x.astype(jnp.float32) for x in (q_BTNH, k_BSKH, v_BSKH))
  k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
  s_BNTS = jnp.einsum('BTNH,BSNH->BNTS', q, k) / np.sqrt(q.shape[-1])
  i_BT = masks.row_positions(mask, len(q), n_rows)
  seen = masks.visible(mask, i_BT, k.shape[1], control)
  p = jax.nn.softmax(jnp.where(seen, s_BNTS, -jnp.inf), axis=-1)
  p = jnp.where(seen, p, 0).astype(dtype).astype(jnp.float32)
  return jnp.einsum('BNTS,BSNH->BTNH', p, v).astype(dtype)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('head_dim', triton.HEAD_DIMS)
def test_half_precision_errs_no_more_than_twice_the_plain(head_dim, dtype):
  args = _halves(head_dim, head_dim, dtype)
  out, lse = triton_interpreter.attention(
    *args, blocks=(32, 16, 2), return_lse=True
  )
  true_out, true_lse = reference.oracle(*args)
  assert out.dtype == dtype
  np.testing.assert_allclose(lse, true_lse, rtol=2e-6, atol=3e-6)
  error, plain = (
    np.abs(np.asarray(x, np.float64) - true_out) for x in (out, _plain(*args))
  )
  assert error.max() <= 2 * plain.max()
  assert np.sqrt((error**2).mean()) <= 2 * np.sqrt((plain**2).mean())


def test_a_poisoned_tile_changes_no_block_that_does_not_read_it():
  """Tile by tile of 8 keys: who sees none of it keeps every bit."""
  rng = np.random.default_rng(0)
  q, k, v = rng.standard_normal((3, 1, 48, 4, 8)).astype(np.float32)
  mask = masks.AttnMask(
    kv_start_B=np.array([3], np.int32), kv_len_B=np.array([45], np.int32)
  )
  control = cases.controls(4, [masks.DENSE, 20, 1, 9], [0, 3, 11, 100])
  run = jax.jit(
    functools.partial(triton_interpreter.attention, blocks=(16, 8, 2))
  )
  n_unread = cases.check_unread(run, q, k, v, mask, control, block=16, tile=8)
  assert n_unread == 26  # of 72


def test_padding_may_hold_anything():
  """NaN outside of [kv_start, kv_len) leaks through no tile at its edge."""
  problem = cases.draw(cases.SPECS['left_right_padding'], 0)
  q, k, v, mask, control = problem.args
  j = np.arange(k.shape[1])
  padding_BS = (j < mask.kv_start_B[:, None]) | (j >= mask.kv_len_B[:, None])
  assert padding_BS.any(1).all()
  run = jax.jit(
    functools.partial(triton_interpreter.attention, blocks=(32, 16, 2))
  )
  clean = run(q, k, v, mask, control)
  k, v = (np.where(padding_BS[..., None, None], np.nan, x) for x in (k, v))
  np.testing.assert_array_equal(clean, run(q, k, v, mask, control))


def test_heads_that_read_most_start_first():
  mask = masks.AttnMask(kv_len_B=np.array([100, 40], np.int32))
  control = cases.controls(
    5, [30, masks.DENSE, 30, masks.DENSE, 1], [0, 0, 25, 9, 90]
  )
  work = np.asarray(triton.work_list(limits_lib.make(mask, control, 2, 5, 100)))
  # Sequence 1 has 40 keys only; equals keep the order of their heads.
  order = [tuple(row) for row in work[:, :2]]
  assert order == [
    (0, 1), (0, 3), (0, 4), (0, 2), (1, 1), (1, 2), (1, 3), (1, 4), (0, 0),
    (1, 0),
  ]  # fmt: skip
  assert work[3].tolist() == [0, 2, 0, 0, 100, 30, masks.DENSE, 25]


def test_blocks_must_be_powers_of_two():
  kernel = pytest.importorskip(
    'corejax.kernels.triton_kernel', reason='Triton exists for Linux only'
  )
  with pytest.raises(ValueError, match='wide=3.* powers of two'):
    kernel.BlockSizes(16, 16, 3, warps=4, stages=2)


def test_wrapper_and_kernel_know_the_same_head_dims():
  kernel = pytest.importorskip(
    'corejax.kernels.triton_kernel', reason='Triton exists for Linux only'
  )
  assert tuple(kernel.HEAD_DIMS) == triton.HEAD_DIMS
  assert all(sum(slices) == h for h, slices in kernel.HEAD_DIMS.items())


def _shapes(head_dim=64, dtype='bfloat16'):
  x = jax.ShapeDtypeStruct((1, 8, 2, head_dim), dtype)
  return x, x, x


def _gpu(capability='9.0', platform='cuda 13000'):
  return types.SimpleNamespace(
    client=types.SimpleNamespace(platform_version=platform),
    compute_capability=capability,
    device_kind='Card',
    platform='gpu',
  )


_SEGMENTS = masks.AttnMask(
  q_segment_BT=np.ones((1, 8), np.int32),
  kv_segment_BS=np.ones((1, 8), np.int32),
)
_BLOCKED = control_lib.AttendControl(
  np.ones((1, 2), np.int32),
  np.ones((1, 2), np.int32),
  np.ones((1, 2), np.float32),
  np.ones((1, 2, 3), bool),
  np.zeros((1, 8), np.int8),
)


@pytest.mark.parametrize(
  'arrays, mask, control, why',
  [
    (_shapes(), _SEGMENTS, None, "serves no segments .*'xla' does"),
    (_shapes(), masks.AttnMask(), _BLOCKED, 'serves no blocked regions'),
    (_shapes(dtype='float32'), masks.AttnMask(), None, 'v are float32; it'),
    (_shapes(72), masks.AttnMask(), None, 'head dim 72; it serves 64, 80, 96'),
    (_shapes(), masks.AttnMask(), None, 'an NVIDIA GPU; .* computes on cpu'),
  ],
)
def test_says_why_it_cannot_serve(arrays, mask, control, why):
  with pytest.raises(NotImplementedError, match=f"'triton': .*{why}"):
    jax.eval_shape(
      functools.partial(
        dispatch.head_sparse_attention, implementation='triton'
      ),
      *arrays,
      mask,
      control,
    )


def test_says_what_the_gpu_lacks(monkeypatch):
  call = *_shapes(), masks.AttnMask(), None
  for device, why in (
    (_gpu('7.5'), 'needs compute capability 8.0; Card has 7.5'),
    (_gpu('gfx90a', 'PJRT C API rocm 60000'), 'needs an NVIDIA GPU'),
  ):
    monkeypatch.setattr(jax, 'devices', lambda *_, device=device: [device])
    assert why in str(triton.unsupported(*call))
  monkeypatch.setattr(jax, 'devices', lambda *_: [_gpu()])
  # Without jax-triton, or with one that finds no CUDA.
  assert 'pip install "corejax[gpu]"' in str(triton.unsupported(*call))
  monkeypatch.setattr(
    triton.importlib, 'import_module', lambda name: types.ModuleType(name)
  )
  assert triton.unsupported(*call) is None


def test_a_direct_call_is_refused_too():
  with pytest.raises(NotImplementedError, match='head dim 72'):
    jax.eval_shape(triton.head_sparse_attention, *_shapes(72), masks.AttnMask())
