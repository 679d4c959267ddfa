"""What only the TPU kernel promises: its steps, its lists, what it refuses.

All interpreted on CPU; tests/kernels/test_tpu_aot.py compiles it for a TPU.
"""

import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import masks
from corejax.kernels import dispatch
from corejax.kernels import reference
from corejax.kernels import tpu_pallas
from helpers import attention_cases as cases

_SMALL = tpu_pallas.BlockSizes(16, 8, 1000)


def _run(*args, block_sizes=_SMALL, interpret=True, **kwargs):
  return tpu_pallas.head_sparse_attention(
    *args, block_sizes=block_sizes, interpret=interpret, **kwargs
  )


def _reads(problem, blocks):
  """bool [B, N, blocks, tiles]: does a block of rows see a tile?"""
  seen = cases.seen(problem)
  ends = [(0, 0)] * 2 + [(0, -seen.shape[2] % blocks.q)]
  seen = np.pad(seen, [*ends, (0, -seen.shape[3] % blocks.k)])
  *lead, n_rows, n_keys = seen.shape
  cut = seen.reshape(
    *lead, n_rows // blocks.q, blocks.q, n_keys // blocks.k, blocks.k
  )
  return cut.any((3, 5))


@pytest.mark.parametrize('seed', range(3))
def test_random_shapes_and_blocks(seed):
  """Groups of 1 to 7, chunks of a prompt, padding, any blocks, any chunks."""
  rng = np.random.default_rng(seed)
  n_kv = int(rng.integers(1, 3))
  n_rows = int(rng.integers(1, 50))
  spec = cases.Spec(
    batch=int(rng.integers(1, 3)),
    n_rows=n_rows,
    n_keys=n_rows + int(rng.integers(0, 40)),
    n_heads=n_kv * (1, 3, 7)[seed],
    n_kv=n_kv,
    head_dim=8 * int(rng.integers(1, 4)),
    offset=True,
    padding=bool(seed % 2),
    model_window=bool(seed // 2),
    per_sequence=True,
  )
  problem = cases.draw(spec, seed)
  block_q, block_k = (int(rng.integers(1, 20)) for _ in range(2))
  blocks = tpu_pallas.BlockSizes(block_q, block_k, int(rng.integers(90, 300)))
  out, lse = _run(*problem.args, block_sizes=blocks, return_lse=True)
  true_out, true_lse = reference.oracle(*problem.args)
  np.testing.assert_allclose(out, true_out, rtol=2e-6, atol=3e-6)
  np.testing.assert_allclose(lse, true_lse, rtol=2e-6, atol=3e-6)


def test_one_step_a_tile_that_is_read(monkeypatch):
  problem = cases.draw(cases.SPECS['left_right_padding'], 0)
  blocks = dataclasses.replace(_SMALL, words=30)  # many chunks
  steps = []
  kernel = tpu_pallas._kernel

  def counting(*args):
    jax.debug.callback(steps.append, pl.program_id(0))
    kernel(*args)

  monkeypatch.setattr(tpu_pallas, '_kernel', counting)
  jax.block_until_ready(_run(*problem.args, block_sizes=blocks))
  jax.effects_barrier()
  active = _reads(problem, blocks)
  assert len(steps) == active.sum() < active.size / 2


def test_a_poisoned_tile_leaves_what_does_not_read_it():
  spec = dataclasses.replace(cases.SPECS['windows'], n_rows=64, n_keys=64)
  problem = cases.draw(spec, 0)
  control = cases.controls(
    6, [masks.DENSE, 7, 20, 1, 33, 64], [0, 3, 9, 0, 1, 0]
  )
  problem = dataclasses.replace(problem, control=control)
  run = jax.jit(functools.partial(_run, return_lse=True))
  clean, clean_lse = map(np.asarray, run(*problem.args))
  reads = _reads(problem, _SMALL)
  for tile in range(8):
    k, v = problem.k_BSKH.copy(), problem.v_BSKH.copy()
    for x in (k, v):
      x[:, 8 * tile : 8 * tile + 8] = np.nan
    out, lse = map(np.asarray, run(problem.q_BTNH, k, v, *problem.args[3:]))
    for b, n, block in np.ndindex(reads.shape[:3]):
      at = slice(16 * block, 16 * block + 16)
      same = np.array_equal(out[b, at, n], clean[b, at, n])
      same &= np.array_equal(lse[b, n, at], clean_lse[b, n, at])
      assert same != reads[b, n, block, tile], (b, n, block, tile)


def test_chunks_of_any_length_give_the_same_bits():
  problem = cases.draw(cases.SPECS['chunk_7_to_1'], 1)
  one = _run(*problem.args, return_lse=True)
  blocks = dataclasses.replace(_SMALL, words=8)
  many = _run(*problem.args, return_lse=True, block_sizes=blocks)
  for left, right in zip(one, many):
    np.testing.assert_array_equal(left, right)


def test_nothing_to_read_at_all():
  problem = cases.draw(cases.SPECS['plain'], 0)
  mask = masks.AttnMask(kv_len_B=np.zeros(2, np.int32))
  out, lse = _run(*problem.args[:3], mask, return_lse=True)
  assert not np.asarray(out).any() and np.isneginf(lse).all()


def test_default_blocks():
  """Blocks of 512 with a rest, and tiles without a mask."""
  rng = np.random.default_rng(0)
  q, k, v = rng.standard_normal((3, 1, 1300, 2, 16)).astype(np.float32)
  mask = masks.AttnMask(kv_start_B=np.array([37], np.int32))
  control = cases.controls(2, [masks.DENSE, 130], 100)
  args = q, k[:, :, :1], v[:, :, :1], mask, control
  out = _run(*args, block_sizes=None)
  want = jax.jit(attention.reference)(*args).out_BTNH
  np.testing.assert_allclose(out, want, rtol=2e-6, atol=2e-6)


def test_over_a_mesh():
  """Heads and sequences on four devices, each with a list of its own."""
  spec = dataclasses.replace(
    cases.SPECS['left_right_padding'], n_heads=6, n_kv=3
  )
  problem = cases.draw(spec, 0)
  mesh = jax.make_mesh(
    (2, 2),
    ('data', 'model'),
    (jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:4],
  )

  def attend(*args):
    return attention.AttendOut(_run(*args[:5]), None)

  got = jax.jit(dispatch.sharded(attend, mesh))(*problem.args).out_BTNH
  assert len(got.devices()) == 4
  want, _ = reference.oracle(*problem.args)
  np.testing.assert_allclose(got, want, rtol=2e-6, atol=3e-6)


def test_no_races(capfd):
  """The simulated TPU: copies, semaphores and uninitialised memory (NaN)."""
  spec = dataclasses.replace(
    cases.SPECS['windows'], batch=1, n_rows=32, n_keys=32, n_heads=2, n_kv=1
  )
  problem = cases.draw(spec, 0)
  # Only this form of `interpret` looks at block shapes as a TPU does.
  blocks = tpu_pallas.BlockSizes(16, 16)
  out = _run(
    *problem.args,
    block_sizes=blocks,
    interpret=pltpu.InterpretParams(detect_races=True),
  )
  want, _ = reference.oracle(*problem.args)
  np.testing.assert_allclose(out, want, rtol=2e-6, atol=3e-6)
  said = capfd.readouterr()
  assert 'race' not in (said.out + said.err).lower()


def _half(args):
  return (*(jnp.asarray(x, jnp.float16) for x in args[:3]), *args[3:])


def _mixed(args):
  return (jnp.asarray(args[0], jnp.bfloat16), *args[1:])


@pytest.mark.parametrize(
  ('name', 'change', 'reason'),
  [
    ('plain', _half, 'all bfloat16 or all float32, and they are float16'),
    ('plain', _mixed, 'they are bfloat16, float32'),
    ('packed', tuple, 'serves no segments'),
    ('blocked', tuple, 'serves no blocked regions'),
    (dict(head_dim=12), tuple, 'multiple of 8 up to 256, and it is 12'),
    (dict(head_dim=512), tuple, 'and it is 512'),
  ],
)
def test_what_it_refuses(name, change, reason):
  spec = cases.SPECS[name if isinstance(name, str) else 'plain']
  if isinstance(name, dict):
    spec = dataclasses.replace(spec, **name)
  args = change(cases.draw(spec, 0).args)
  assert reason in tpu_pallas.unsupported(*args, platform='tpu')
  with pytest.raises(NotImplementedError, match=reason):
    _run(*args)


def test_without_a_tpu_it_says_so_and_none_passes_it_by():
  problem, true_out, _ = cases.solved('decode', 0)
  with pytest.raises(
    NotImplementedError,
    match="'tpu_pallas': needs a TPU; this process computes on",
  ):
    dispatch.head_sparse_attention(*problem.args, implementation='tpu_pallas')
  out = dispatch.head_sparse_attention(*problem.args)
  np.testing.assert_allclose(out, true_out, rtol=2e-6, atol=3e-6)


def test_block_sizes_must_be_positive():
  with pytest.raises(ValueError, match='must be positive'):
    tpu_pallas.BlockSizes(0, 128)


def test_a_tpu_takes_blocks_of_whole_lanes():
  problem = cases.draw(cases.SPECS['plain'], 0)
  with pytest.raises(ValueError, match='q and k must be multiples of 128'):
    _run(*problem.args, interpret=False)
