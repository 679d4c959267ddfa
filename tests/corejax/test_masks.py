"""masks.visible against loops that spell the definition out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import control as control_lib
from corejax import masks
from corejax import regions
from helpers import brute

_B, _T, _S, _N = 3, 5, 9, 4


def _ints(*values):
  return jnp.array(values, jnp.int32)


_MASKS = {
  'causal': masks.AttnMask(),
  'tower': masks.AttnMask(causal=False),
  'tower padded': masks.AttnMask(causal=False, kv_len_B=_ints(9, 4, 1)),
  'right padding': masks.AttnMask(kv_len_B=_ints(5, 3, 0)),
  'left padding': masks.AttnMask(
    kv_start_B=_ints(0, 2, 6), q_offset_B=_ints(4, 4, 4)
  ),
  'chunk': masks.AttnMask(q_offset_B=_ints(4, 0, 2), kv_len_B=_ints(9, 5, 7)),
  'own window': masks.AttnMask(
    window=jnp.int32(3), q_offset_B=_ints(4, 1, 0), kv_start_B=_ints(0, 1, 2)
  ),
  'segments': masks.AttnMask(
    q_offset_B=_ints(4, 4, 4),
    q_segment_BT=jnp.array([[0, 1, 1, 2, 2]] * 3, jnp.int32),
    kv_segment_BS=jnp.array([[0, 0, 0, 0, 0, 1, 1, 2, 2]] * 3, jnp.int32),
  ),
  'frames': masks.AttnMask(
    causal=False,
    q_segment_BT=jnp.array([[1, 1, 2, 2, 3]] * 3, jnp.int32),
    kv_segment_BS=jnp.array([[1, 1, 2, 2, 3, 3, 4, 4, 4]] * 3, jnp.int32),
  ),
}


def _controls():
  rng = np.random.default_rng(0)
  shape = (_B, _N)
  plain = control_lib.AttendControl(
    window_BN=jnp.array([[masks.DENSE, 1, 2, 4]], jnp.int32),
    sink_BN=jnp.array([[0, 0, 2, 1]], jnp.int32),
    score_scale_BN=jnp.ones((1, _N), jnp.float32),
  )
  blocked_1NR = np.zeros((1, _N, len(regions.REGIONS)), bool)
  blocked_1NR[0, 1, [0, 1]] = True
  blocked_1NR[0, 3] = True
  region_BS = jnp.asarray(rng.integers(0, 9, (_B, _S)), jnp.int8)
  return {
    'none': None,
    'per head': plain,
    'per example': dataclasses.replace(
      plain,
      window_BN=jnp.asarray(rng.integers(0, 6, shape), jnp.int32),
      sink_BN=jnp.asarray(rng.integers(0, 4, shape), jnp.int32),
    ),
    'blocked': dataclasses.replace(
      plain, blocked_BNR=jnp.asarray(blocked_1NR), region_BS=region_BS
    ),
    'blocked per example': dataclasses.replace(
      plain,
      blocked_BNR=jnp.asarray(rng.random((_B, _N, 9)) < 0.4),
      region_BS=region_BS,
    ),
  }


@pytest.mark.parametrize('control', _controls())
@pytest.mark.parametrize('name', _MASKS)
def test_visible_is_the_definition(name, control):
  mask, control = _MASKS[name], _controls()[control]
  rows_BP = np.array([[0, 4, 2], [1, 1, 3], [4, 0, 2]])
  i_BT = masks.row_positions(mask, _B, _T)
  i_BP = jnp.take_along_axis(i_BT, jnp.asarray(rows_BP), axis=1)
  segment_BP = None
  if mask.q_segment_BT is not None:
    segment_BP = jnp.take_along_axis(
      mask.q_segment_BT, jnp.asarray(rows_BP), axis=1
    )
  got = masks.visible(mask, i_BP, _S, control, segment_BP)
  assert got.dtype == bool
  assert got.shape == (_B, _N if control is not None else 1, 3, _S)
  expected = brute.visible(mask, rows_BP, _S, control, got.shape[1])
  assert (np.asarray(got) == expected).all()


def test_the_picture_in_the_docstring():
  mask = masks.AttnMask(
    q_offset_B=_ints(3), kv_start_B=_ints(1), kv_len_B=_ints(6)
  )
  i_BT = masks.row_positions(mask, 1, 2)
  assert i_BT.tolist() == [[3, 4]]
  control = control_lib.AttendControl(
    jnp.array([[2]], jnp.int32),
    jnp.array([[1]], jnp.int32),
    jnp.ones((1, 1), jnp.float32),
  )
  seen = np.asarray(masks.visible(mask, i_BT, 8, control))[0, 0]
  drawn = [''.join('x' if s else '.' for s in row) for row in seen]
  assert drawn == ['.xxx....', '.x.xx...']


def test_dense_never_ends():
  mask = masks.AttnMask(q_offset_B=_ints(2**20))
  control = control_lib.HeadControl.intact(1, 2).per_layer()[0].attend
  control = jax.tree.map(lambda x: x[0], control)
  i_BT = masks.row_positions(mask, 1, 1)
  assert np.asarray(masks.visible(mask, i_BT, 4, control)).all()


def test_padding_is_data_not_shape():
  traces = []

  @jax.jit
  def count(mask):
    traces.append(mask)
    i_BT = masks.row_positions(mask, 2, 4)
    return masks.visible(mask, i_BT, 4).sum()

  for lengths in ((4, 4), (3, 1), (0, 2)):
    mask = masks.AttnMask(kv_len_B=_ints(*lengths))
    assert count(mask) == sum(
      min(i + 1, length) for length in lengths for i in range(4)
    )
  assert len(traces) == 1


def test_a_mask_travels_through_vmap():
  # The axis under vmap takes the batch's place: every leaf keeps its meaning.
  mask = masks.AttnMask(kv_len_B=jnp.array([[2], [3]], jnp.int32))

  def first(mask):
    return masks.visible(mask, masks.row_positions(mask, 1, 3), 3)[0, 0]

  assert jax.vmap(first)(mask).sum((1, 2)).tolist() == [5, 6]
