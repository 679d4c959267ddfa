"""Choosing an implementation, and the attend that a model is handed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import control as control_lib
from corejax import errors
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from corejax.kernels import dispatch
from corejax.kernels import targets
from corejax.kernels import triton
from helpers import attention_cases as cases


@pytest.mark.parametrize('implementation', [None, 'xla', 'reference'])
def test_every_name_and_none_serve(implementation):
  problem, true_out, true_lse = cases.solved('left_right_padding', 0)
  run = jax.jit(
    dispatch.head_sparse_attention,
    static_argnames=('return_lse', 'implementation'),
  )
  out, lse = run(*problem.args, return_lse=True, implementation=implementation)
  np.testing.assert_allclose(out, true_out, rtol=2e-6, atol=3e-6)
  np.testing.assert_allclose(lse, true_lse, rtol=2e-6, atol=3e-6)


def test_an_unknown_name_is_a_user_error():
  problem = cases.draw(cases.SPECS['plain'], 0)
  with pytest.raises(errors.UserError, match="'flash'.*xla, reference"):
    dispatch.head_sparse_attention(*problem.args, implementation='flash')
  with pytest.raises(errors.UserError, match="'flash'.*xla, reference"):
    dispatch.attend('flash')


def test_one_that_cannot_serve_says_why_and_none_passes_it_by(monkeypatch):
  def never(*args, **kwargs):
    raise AssertionError('must not run')

  picky = dispatch.Implementation(never, lambda *call: 'needs a GPU')
  monkeypatch.setattr(
    dispatch, 'IMPLEMENTATIONS', {'gpu': picky, **dispatch.IMPLEMENTATIONS}
  )
  problem = cases.draw(cases.SPECS['decode'], 0)
  with pytest.raises(NotImplementedError, match="'gpu': needs a GPU"):
    dispatch.head_sparse_attention(*problem.args, implementation='gpu')
  assert dispatch.head_sparse_attention(*problem.args).shape == (2, 1, 4, 8)


def test_it_tells_which_one_it_picks(monkeypatch):
  q, k, v, mask, control = cases.draw(cases.SPECS['decode'], 0).args
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  assert dispatch.picked(*shapes, mask) == 'xla'
  assert dispatch.picked(q, k, v, mask, control) == 'xla'
  one = dispatch.Implementation(
    lambda *args, **kwargs: 'it ran',
    lambda q, *others: None if q.shape == shapes[0].shape else 'too long',
  )
  monkeypatch.setattr(
    dispatch, 'IMPLEMENTATIONS', {'one': one, **dispatch.IMPLEMENTATIONS}
  )
  assert dispatch.picked(*shapes, mask) == 'one'
  assert dispatch.head_sparse_attention(q, k, v, mask) == 'it ran'
  longer = jax.ShapeDtypeStruct((2, 9, *q.shape[2:]), q.dtype)
  assert dispatch.picked(longer, *shapes[1:], mask) == 'xla'


def test_attend_measures_what_the_reference_measures():
  problem = cases.draw(cases.SPECS['blocked'], 0)
  rng = np.random.default_rng(0)
  probe = probe_lib.Probe(
    rows_BP=np.array([[3, 36, 36], [20, 30, -1]], np.int32),
    set_PQ=np.eye(3, dtype=np.float32)[[0, 1, 2]],
    region_BS=rng.integers(0, len(regions.REGIONS), (2, 37)).astype(np.int8),
  )
  got = jax.jit(dispatch.attend())(*problem.args, probe)
  want = jax.jit(attention.reference)(*problem.args, probe)
  np.testing.assert_allclose(got.out_BTNH, want.out_BTNH, atol=3e-6)
  np.testing.assert_array_equal(got.measured.mass_BQNR, want.measured.mass_BQNR)
  bare = jax.eval_shape(dispatch.attend(), *problem.args)
  assert bare.measured is None


def _refused(match, *args):
  with pytest.raises(errors.UserError, match=match):
    dispatch.head_sparse_attention(*args)


def test_refuses_arrays_that_do_not_belong_together():
  q, k, v, mask, _ = cases.draw(cases.SPECS['plain'], 0).args
  stacked = control_lib.HeadControl.intact(3, 6).attend
  _refused(r'window_BN has shape \(3, 1, 6\)', q, k, v, mask, stacked)
  _refused('6 query heads must be a', q, k[:, :, :4], v[:, :, :4], mask)
  _refused('differ', q, k, v[:, 1:], mask)
  _refused('q is int32', q.astype(np.int32), k, v, mask)
  _refused('expected 4 axes', q[0], k, v, mask)


@pytest.mark.parametrize(
  'name, value, match',
  [
    ('q_offset_B', jnp.zeros(3, jnp.int32), r'q_offset_B has shape \(3,\)'),
    ('q_segment_BT', jnp.ones((2, 37), jnp.int32), 'give both'),
  ],
)
def test_refuses_a_mask_of_another_shape(name, value, match):
  q, k, v, _, _ = cases.draw(cases.SPECS['plain'], 0).args
  _refused(match, q, k, v, masks.AttnMask(**{name: value}))


def test_it_picks_for_what_is_compiled_for(monkeypatch):
  """Of another machine's kernels, on one that has neither device."""
  monkeypatch.setattr(triton, '_packages_refused', lambda: None)

  def picked(name, dtype, mask=None):
    q = jax.ShapeDtypeStruct((1, 256, 4, 128), dtype)
    target = targets.parse(name)
    return dispatch.picked(q, q, q, mask or masks.AttnMask(), None, target)

  assert picked('v6e:2x2', jnp.bfloat16) == 'tpu_pallas'
  assert picked('v5p:2x2x1', jnp.float32) == 'tpu_pallas'
  assert picked('h100', jnp.bfloat16) == 'triton'
  assert picked('h100', jnp.float32) == 'xla'
  assert picked('cpu', jnp.bfloat16) == 'xla'
  segments = masks.AttnMask(
    q_segment_BT=jnp.zeros((1, 256), jnp.int32),
    kv_segment_BS=jnp.zeros((1, 256), jnp.int32),
  )
  assert picked('v5e:4x4', jnp.bfloat16, segments) == 'xla'
