"""AttnMask and AttendControl of one layer, as a block kernel needs them."""

import dataclasses

import jax
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import errors
from corejax import masks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
  """Every array leads with B, so that a vmap folds into the batch.

  Attributes:
    offset_B: int32, key position of query row 0.
    start_B, end_B: int32, the real keys are [start, end).
    model_window_B: int32, the model's own sliding window.
    window_BN, sink_BN: int32, the heads' windows and sinks.
    q_segment_BT, kv_segment_BS: int32 or None.
    barred_BNR: bool or None, regions that a head may not read.
    region_BS: int32 or None, with barred_BNR.
  """

  offset_B: jax.Array
  start_B: jax.Array
  end_B: jax.Array
  model_window_B: jax.Array
  window_BN: jax.Array
  sink_BN: jax.Array
  q_segment_BT: jax.Array | None = None
  kv_segment_BS: jax.Array | None = None
  barred_BNR: jax.Array | None = None
  region_BS: jax.Array | None = None


def make(
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None,
  batch: int,
  n_heads: int,
  n_keys: int,
) -> Limits:
  """All that the two say, filled in and broadcast to the batch.

  Args:
    mask: the mask.
    control: one layer's control or None.
    batch: B.
    n_heads: N.
    n_keys: S.
  """

  def per_sequence(value, default):
    value = default if value is None else value
    return jnp.broadcast_to(jnp.asarray(value, jnp.int32), (batch,))

  def per_head(value, default):
    value = default if value is None else value
    return jnp.broadcast_to(jnp.asarray(value, jnp.int32), (batch, n_heads))

  window_BN = sink_BN = barred_BNR = region_BS = None
  if control is not None:
    assert control.rows_BT is None, 'by rows.by_rows'
    window_BN, sink_BN = control.window_BN, control.sink_BN
    if control.blocked_BNR is not None:
      assert control.region_BS is not None, 'by check'
      shape = (batch, *control.blocked_BNR.shape[1:])
      barred_BNR = jnp.broadcast_to(control.blocked_BNR, shape)
      region_BS = control.region_BS.astype(jnp.int32)
  return Limits(
    offset_B=per_sequence(mask.q_offset_B, 0),
    start_B=jnp.maximum(per_sequence(mask.kv_start_B, 0), 0),
    end_B=jnp.minimum(per_sequence(mask.kv_len_B, n_keys), n_keys),
    model_window_B=jnp.minimum(
      per_sequence(mask.window, masks.DENSE), masks.DENSE
    ),
    # Clipped so that sums with positions stay inside int32.
    window_BN=jnp.clip(
      per_head(window_BN, masks.DENSE), -masks.DENSE, masks.DENSE
    ),
    sink_BN=jnp.clip(per_head(sink_BN, 0), 0, n_keys),
    q_segment_BT=mask.q_segment_BT,
    kv_segment_BS=mask.kv_segment_BS,
    barred_BNR=barred_BNR,
    region_BS=region_BS,
  )


def check(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None,
) -> None:
  """Refuses what would broadcast or index wrongly later on.

  Raises:
    UserError: shapes or dtypes that do not belong together.
  """
  for name, x in (('q', q_BTNH), ('k', k_BSKH), ('v', v_BSKH)):
    if x.ndim != 4:
      raise errors.UserError(
        f'attention: {name} has shape {x.shape}, expected 4 axes'
        ' [batch, length, heads, head_dim]'
      )
    if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
      raise errors.UserError(
        f'attention: {name} is {x.dtype}, expected float32, bfloat16 or'
        ' float16; cast it (scores are float32 in any case)'
      )
  batch, length, n_heads, head_dim = q_BTNH.shape
  n_keys, n_kv = k_BSKH.shape[1:3]
  if v_BSKH.shape != k_BSKH.shape or k_BSKH.shape[::3] != (batch, head_dim):
    raise errors.UserError(
      f'attention: q {q_BTNH.shape}, k {k_BSKH.shape}, v {v_BSKH.shape} differ'
      ' in batch, key length, kv heads or head_dim'
    )
  if n_heads % n_kv:
    raise errors.UserError(
      f'attention: {n_heads} query heads must be a multiple of {n_kv} kv heads'
    )

  def want(name, x, *shapes):
    if x is not None and x.shape not in shapes:
      raise errors.UserError(
        f'attention: {name} has shape {x.shape}, expected'
        f' {" or ".join(map(str, shapes))}'
      )

  for name in ('q_offset_B', 'kv_start_B', 'kv_len_B'):
    want(f'mask.{name}', getattr(mask, name), (batch,))
  want('mask.q_segment_BT', mask.q_segment_BT, (batch, length))
  want('mask.kv_segment_BS', mask.kv_segment_BS, (batch, n_keys))
  if (mask.q_segment_BT is None) != (mask.kv_segment_BS is None):
    raise errors.UserError(
      'attention: the mask has segments for queries or keys only; give both'
    )
  if control is None:
    return
  per_head = ((1, n_heads), (batch, n_heads))
  for name in ('window_BN', 'sink_BN', 'score_scale_BN'):
    want(f'control.{name}', getattr(control, name), *per_head)
  want('control.rows_BT', control.rows_BT, (1, length), (batch, length))
  if control.blocked_BNR is not None:
    n_regions = control.blocked_BNR.shape[-1:]
    shapes = [(*shape, *n_regions) for shape in per_head]
    want('control.blocked_BNR', control.blocked_BNR, *shapes)
    if control.region_BS is None:
      raise errors.UserError(
        'attention: control.blocked_BNR needs control.region_BS'
      )
    want('control.region_BS', control.region_BS, (batch, n_keys))
