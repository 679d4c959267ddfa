"""cuDNN's attention: what is refused, and that jax lowers the rest for it."""

import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import control as control_lib
from corejax import errors
from corejax import masks
from corejax.kernels import cudnn
from corejax.kernels import dispatch

_INTACT = control_lib.AttendControl(
  np.full((1, 4), masks.DENSE, np.int32),
  np.zeros((1, 4), np.int32),
  np.ones((1, 4), np.float32),
)
_ONE = np.zeros(1, np.int32)
_PLAIN = masks.AttnMask()


def _arrays(n_rows=8, n_keys=8, head_dim=64, dtype='bfloat16'):
  kv = jax.ShapeDtypeStruct((1, n_keys, 2, head_dim), dtype)
  return jax.ShapeDtypeStruct((1, n_rows, 4, head_dim), dtype), kv, kv


@pytest.mark.parametrize(
  ('arrays', 'mask', 'control', 'why'),
  [
    (_arrays(), _PLAIN, _INTACT, "serves no control; 'triton'"),
    (_arrays(), masks.AttnMask(q_offset_B=_ONE), None, 'mask with q_offset_B'),
    (_arrays(), masks.AttnMask(kv_start_B=_ONE), None, 'mask with kv_start_B'),
    (_arrays(), masks.AttnMask(window=_ONE[0]), None, 'mask with window'),
    (
      _arrays(),
      masks.AttnMask(
        q_segment_BT=np.ones((1, 8), np.int32),
        kv_segment_BS=np.ones((1, 8), np.int32),
      ),
      None,
      'serves no segments',
    ),
    (_arrays(9), _PLAIN, None, '9 causal rows on 8 keys'),
    (_arrays(dtype='float32'), _PLAIN, None, 'are float32; it serves bfloat16'),
    (_arrays(head_dim=136), _PLAIN, None, 'head dim 136'),
    (_arrays(head_dim=60), _PLAIN, None, 'head dim 60'),
  ],
)
def test_refuses_what_it_does_not_serve(arrays, mask, control, why):
  named = functools.partial(
    dispatch.head_sparse_attention, implementation='cudnn'
  )
  for function in (named, cudnn.head_sparse_attention):
    with pytest.raises(NotImplementedError, match=f"'cudnn': .*{why}"):
      jax.eval_shape(function, *arrays, mask, control)


def test_refuses_a_machine_without_such_a_gpu(monkeypatch):
  call = *_arrays(), _PLAIN, None
  assert 'computes on cpu' in str(cudnn.unsupported(*call))
  device = types.SimpleNamespace(
    client=types.SimpleNamespace(platform_version='cuda 13000'),
    compute_capability='8.0',
    device_kind='Card',
  )
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  assert 'capability 9.0; Card has 8.0' in str(cudnn.unsupported(*call))
  device.compute_capability = '9.0'
  assert cudnn.unsupported(*call) is None


def test_refuses_the_log_sum_exp():
  with pytest.raises(NotImplementedError, match='no float32 log-sum-exp'):
    jax.eval_shape(
      functools.partial(cudnn.head_sparse_attention, return_lse=True),
      *_arrays(),
      _PLAIN,
    )
  with pytest.raises(errors.UserError, match='differ'):
    q, k, v = _arrays()
    jax.eval_shape(
      cudnn.head_sparse_attention,
      q,
      k,
      v.update(dtype='float32', shape=(1, 7, 2, 64)),
      _PLAIN,
    )


def test_is_never_picked_unless_named():
  """Else ablating nothing would not be bit-equal to the intact model."""
  names = list(dispatch.IMPLEMENTATIONS)
  assert names.index('cudnn') > names.index('reference')


@pytest.mark.parametrize('with_length', [False, True])
def test_is_lowered_to_cudnn(with_length):
  """Forward and gradient; compiling them takes cuDNN itself."""

  def loss(q, k, v, length_B):
    mask = masks.AttnMask(kv_len_B=length_B if with_length else None)
    out_BTNH = cudnn.head_sparse_attention(q, k, v, mask)
    assert out_BTNH.dtype == jnp.bfloat16
    return out_BTNH.astype(jnp.float32).sum()

  args = *_arrays(128, 128, 128), jax.ShapeDtypeStruct((1,), jnp.int32)
  # jax asks the library for its version, and there is none here.
  with mock.patch(
    'jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version',
    lambda: 91000,
  ):
    text = (
      jax.jit(jax.grad(loss))
      .trace(*args)
      .lower(lowering_platforms=('cuda',))
      .as_text()
    )
  assert text.count('@__cudnn$fmhaSoftmax(') == 1
  assert text.count('@__cudnn$fmhaSoftmaxBackward(') == 1
  kind = 'PADDING_CAUSAL' if with_length else 'CAUSAL'
  assert f'mask_type\\22: \\22{kind}\\22' in text
