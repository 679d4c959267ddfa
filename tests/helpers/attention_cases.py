"""Random attention problems, small enough for a float64 oracle in Python."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import reference

N_REGIONS = 4


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shapes of a problem and which limits it has; draws share an executable."""

  batch: int = 2
  n_rows: int = 37
  n_keys: int = 37
  n_heads: int = 6
  n_kv: int = 6
  head_dim: int = 8
  causal: bool = True
  offset: bool = False
  padding: bool = False
  model_window: bool = False
  segments: bool = False
  control: bool = True
  per_sequence: bool = False
  blocked: bool = False
  rows: bool = False


SPECS = {
  'plain': Spec(control=False),
  'windows': Spec(n_rows=53, n_keys=53, n_kv=3),
  'left_right_padding': Spec(padding=True, per_sequence=True),
  'chunk_7_to_1': Spec(
    n_rows=13, n_keys=50, n_heads=7, n_kv=1, offset=True, padding=True
  ),
  'decode': Spec(n_rows=1, n_keys=19, n_heads=4, n_kv=2, offset=True),
  'model_window': Spec(model_window=True, n_kv=2, padding=True),
  'vision': Spec(causal=False, padding=True, n_heads=4, n_kv=4),
  'vision_windows': Spec(causal=False, segments=True, control=False),
  'packed': Spec(segments=True, n_kv=3, padding=True),
  'blocked': Spec(blocked=True, n_kv=2, per_sequence=True),
  'some_rows': Spec(blocked=True, n_kv=3, padding=True, rows=True),
}


@dataclasses.dataclass(frozen=True)
class Problem:
  q_BTNH: np.ndarray
  k_BSKH: np.ndarray
  v_BSKH: np.ndarray
  mask: masks.AttnMask
  control: control_lib.AttendControl | None

  @property
  def args(self):
    return self.q_BTNH, self.k_BSKH, self.v_BSKH, self.mask, self.control


@functools.cache
def solved(name: str, seed: int):
  """(problem, out_BTNH, lse_BNT) of one of SPECS, by the float64 oracle."""
  problem = draw(SPECS[name], seed)
  return problem, *reference.oracle(*problem.args)


def seen(problem: Problem) -> np.ndarray:
  """bool [B, N, T, S], read off the oracle with one-hot values."""
  batch, n_rows, n_heads, _ = problem.q_BTNH.shape
  n_keys = problem.k_BSKH.shape[1]
  queries = np.zeros((batch, n_rows, n_heads, n_keys))
  keys = np.zeros((batch, n_keys, 1, n_keys))
  values = keys + np.eye(n_keys)[:, None]
  out, _ = reference.oracle(
    queries, keys, values, problem.mask, problem.control
  )
  return out.swapaxes(1, 2) > 0


def draw(spec: Spec, seed: int) -> Problem:
  """One problem; windows run from 1 to beyond T, sinks from 0 to beyond S.

  All in numpy: each jnp call would compile a program of its own.
  """
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  def integers(low, high, *shape):
    return rng.integers(low, high, shape).astype(np.int32)

  batch, n_rows, n_keys = spec.batch, spec.n_rows, spec.n_keys
  free = n_keys - n_rows
  mask = masks.AttnMask(
    q_offset_B=integers(0, free + 1, batch) if spec.offset else None,
    kv_start_B=integers(0, n_keys // 3, batch) if spec.padding else None,
    kv_len_B=(
      integers(n_keys // 2, n_keys + 1, batch) if spec.padding else None
    ),
    window=integers(1, n_rows + 3) if spec.model_window else None,
    q_segment_BT=_segments(rng, batch, n_rows) if spec.segments else None,
    kv_segment_BS=_segments(rng, batch, n_keys) if spec.segments else None,
    causal=spec.causal,
  )
  control = None
  if spec.control:
    shape = (batch if spec.per_sequence else 1, spec.n_heads)
    window_BN = integers(1, n_keys + 5, *shape)
    control = control_lib.AttendControl(
      window_BN=np.where(
        rng.random(shape) < 0.3, np.int32(masks.DENSE), window_BN
      ),
      sink_BN=integers(0, n_keys + 5, *shape) * (rng.random(shape) < 0.6),
      score_scale_BN=rng.choice([0.0, 0.5, 1.0, 1.7], shape).astype(np.float32),
    )
    if spec.blocked:
      control = dataclasses.replace(
        control,
        blocked_BNR=rng.random((*shape, N_REGIONS)) < 0.4,
        region_BS=integers(0, N_REGIONS, batch, n_keys).astype(np.int8),
      )
    if spec.rows:
      control = dataclasses.replace(
        control, rows_BT=rng.random((batch, n_rows)) < 0.5
      )
  return Problem(
    normal(batch, n_rows, spec.n_heads, spec.head_dim),
    normal(batch, n_keys, spec.n_kv, spec.head_dim),
    normal(batch, n_keys, spec.n_kv, spec.head_dim),
    mask,
    control,
  )


def _segments(rng, batch, length):
  """Ascending ids 0 (shared), 1, 2, ...; now and then in a random order."""
  ids = np.sort(rng.integers(0, 5, (batch, length)), axis=1)
  if rng.random() < 0.3:
    ids = rng.permuted(ids, axis=1)
  return ids.astype(np.int32)


def controls(n_heads: int, windows, sinks) -> control_lib.AttendControl:
  """A control from plain numbers or lists, one value a head."""
  return control_lib.AttendControl(
    np.broadcast_to(np.asarray(windows, np.int32), (1, n_heads)),
    np.broadcast_to(np.asarray(sinks, np.int32), (1, n_heads)),
    np.ones((1, n_heads), np.float32),
  )


def plain(q_BTNH, k_BSKH, v_BSKH, mask, control):
  """Attention as one writes it in a low precision: both products take it."""
  batch, n_rows, n_heads, head_dim = q_BTNH.shape
  group = n_heads // k_BSKH.shape[2]
  k, v = (jnp.repeat(x, group, 2) for x in (k_BSKH, v_BSKH))
  wide = dict(preferred_element_type=jnp.float32)
  scores = jnp.einsum('BTNH,BSNH->BNTS', q_BTNH, k, **wide) / head_dim**0.5
  if control is not None:
    scores = scores * control.scale_BNTS
  i_BT = masks.row_positions(mask, batch, n_rows)
  seen = masks.visible(mask, i_BT, k.shape[1], control)
  p = jax.nn.softmax(scores, where=seen).astype(v.dtype)
  return jnp.einsum('BNTS,BSNH->BTNH', p, v, **wide).astype(v.dtype)


def check_unread(run, q, k, v, mask, control, *, block: int, tile: int) -> int:
  """Poisons tile by tile: blocks of rows that see none of it keep every bit.

  Args:
    run: (q, k, v, mask, control) -> out_BTNH.
    q, k, v: of one sequence, as many query heads as key/value heads.
    mask, control: of the call.
    block, tile: rows and keys of one.

  Returns:
    How many pairs of a tile and a block of a head's rows do not meet.
  """
  _, length, n_heads, _ = q.shape
  i_BT = masks.row_positions(mask, 1, length)
  seen = np.asarray(masks.visible(mask, i_BT, length, control))[0]
  clean = np.asarray(run(q, k, v, mask, control), np.float32)
  n_unread = 0
  for first in range(0, length, tile):
    keys = slice(first, first + tile)
    poisoned = (jnp.asarray(x).at[:, keys].set(jnp.nan) for x in (k, v))
    out = np.asarray(run(q, *poisoned, mask, control), np.float32)
    for n, row in np.ndindex(n_heads, -(-length // block)):
      rows = slice(row * block, row * block + block)
      if seen[n, rows, keys].any():
        assert np.isnan(out[:, rows, n]).any(), (first, n, row)
      else:
        n_unread += 1
        np.testing.assert_array_equal(out[:, rows, n], clean[:, rows, n])
  return n_unread
