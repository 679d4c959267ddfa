"""What only the blockwise implementation promises: memory, skipping, tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import masks
from corejax.kernels import blockwise
from corejax.kernels import xla
from helpers import attention_cases as cases

_SMALL = blockwise.BlockSizes(4, 4, 2)


@pytest.mark.parametrize('with_grad', [False, True])
def test_no_buffer_of_rows_times_keys_at_4096(with_grad):
  length, n_heads, head_dim = 4096, 2, 64
  x = jax.ShapeDtypeStruct((1, length, n_heads, head_dim), jnp.float32)
  control = cases.controls(n_heads, [masks.DENSE, 512], 128)

  def run(q, k, v, control):
    out = xla.head_sparse_attention(q, k, v, masks.AttnMask(), control)
    return out.sum() if with_grad else out

  run = jax.grad(run, (0, 1, 2)) if with_grad else run
  analysis = jax.jit(run).lower(x, x, x, control).compile().memory_analysis()
  # One score matrix in int8 would be 16 MiB, q, k or v is 2 MiB: k and v in
  # another order, and tiles (in all 5.5 MiB with jax 0.10, 6.03 with 0.12);
  # with a gradient what is kept for it too.
  limit = 8 * 2**20
  assert analysis.temp_size_in_bytes < limit < length * length


def test_a_poisoned_tile_that_no_row_reads_changes_no_bit():
  """Rows 24..31 read sinks 0..2 and a window of 6: tiles 2..3 never."""
  rng = np.random.default_rng(0)
  q = rng.standard_normal((1, 8, 2, 8)).astype(np.float32)
  k, v = rng.standard_normal((2, 1, 40, 2, 8)).astype(np.float32)
  mask = masks.AttnMask(
    q_offset_B=np.array([24], np.int32), kv_len_B=np.array([32], np.int32)
  )
  control = cases.controls(2, [6, 5], 3)

  @jax.jit
  def run(q, k, v):
    def loss(q, k, v):
      out = xla.head_sparse_attention(
        q, k, v, mask, control, block_sizes=_SMALL
      )
      return jnp.sin(out).sum(), out

    return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

  clean = run(q, k, v)
  for x in (k, v):
    x[:, 8:16] = np.nan  # between sinks and window
    x[:, 32:36] = np.nan  # from kv_len on
  assert jax.tree.all(jax.tree.map(np.array_equal, clean, run(q, k, v)))
  v[:, 25] = np.nan  # and one that is read must show
  assert np.isnan(run(q, k, v)[1]).any()


def test_a_poisoned_tile_changes_no_block_that_does_not_read_it():
  """Tile by tile of 4 keys: who sees none of it keeps every bit."""
  rng = np.random.default_rng(0)
  q, k, v = rng.standard_normal((3, 1, 48, 4, 8)).astype(np.float32)
  mask = masks.AttnMask(
    kv_start_B=np.array([3], np.int32), kv_len_B=np.array([45], np.int32)
  )
  control = cases.controls(4, [masks.DENSE, 20, 1, 9], [0, 3, 11, 100])
  run = jax.jit(
    functools.partial(xla.head_sparse_attention, block_sizes=_SMALL)
  )
  n_unread = cases.check_unread(
    run, q, k, v, mask, control, block=_SMALL.q, tile=_SMALL.k
  )
  assert n_unread > 40


@functools.cache
def _long():
  """1600 rows: three whole groups of the default blocks and a rest."""
  rng = np.random.default_rng(0)
  q, k, v = rng.standard_normal((3, 1, 1600, 2, 16)).astype(np.float32)
  mask = masks.AttnMask(kv_start_B=np.array([37], np.int32))
  return q, k[:, :, :1], v[:, :, :1], mask


def test_default_wide_tiles():
  q, k, v, mask = _long()
  run = jax.jit(xla.head_sparse_attention)
  dense = jax.jit(attention.reference)
  for windows in (masks.DENSE, [1000, 700], [130, 1]):
    control = cases.controls(2, windows, 100)
    out = run(q, k, v, mask, control)
    np.testing.assert_allclose(
      out, dense(q, k, v, mask, control).out_BTNH, rtol=2e-6, atol=2e-6
    )
    # Here several threads share a product: still the same sums every time.
    for _ in range(3):
      np.testing.assert_array_equal(out, run(q, k, v, mask, control))


def test_gradient_of_default_wide_tiles():
  q, k, v, mask = _long()
  control = cases.controls(2, [masks.DENSE, 300], 100)
  weigh = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)

  def gradient(attend):
    def loss(q, k, v):
      return (attend(q, k, v, mask, control) * weigh).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)

  got = gradient(xla.head_sparse_attention)
  want = gradient(lambda *args: attention.reference(*args).out_BTNH)
  for one, other in zip(got, want):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_block_sizes_must_be_positive():
  with pytest.raises(ValueError, match='must be positive'):
    blockwise.BlockSizes(0, 128)
