"""Each layer chooses its dense heads from its own queries and keys.

    attend = routing.router(dispatch.attend(), window=2048, sink=128)
    forward(model, inputs, attend=attend, control=plan's control with regions)

A wrapper of an attention (corejax.attention). A layer cannot know what others
will choose, so its budget is the static plan's: as many heads are dense as the
plan has dense in this layer, whichever they are on this input. Nothing is
trained: a head's claim is what it would lose by being sparse,

    score(n) = mean over the last rows t of  sum of A[n][t, j]  over visual keys
               j that lie outside of row t's window and of the sinks  ('mass')

or the largest such key's mean weight ('peak': a head that looks at one place,
not one that looks everywhere). A is the post-softmax attention over all keys.
Extra cost: 2 * P * S * H FLOPs a head for P rows, and 4 * B * N * P * S bytes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from corejax import attention
from corejax import control as control_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions

SCORES = ('mass', 'peak')
# Region of keys behind the prompt, as a forced answer's: whoever chooses has
# not read them, so their rows do not choose.
BEHIND = -1


def last_rows(
  mask: masks.AttnMask,
  batch: int,
  length: int,
  n_keys: int,
  rows: int,
  region_BS: jax.Array | None = None,
) -> jax.Array:
  """int32 [B, P], the prompt's last query rows; -1 where there are fewer.

  Args:
    mask: who may read whom.
    batch, length, n_keys: B, T, S.
    rows: P.
    region_BS: the prompt ends at the first key that is BEHIND it; None: none.
  """
  end_B = jnp.full(batch, n_keys, jnp.int32)
  if mask.kv_len_B is not None:
    end_B = jnp.minimum(mask.kv_len_B, n_keys)
  if region_BS is not None:
    behind_BS = region_BS == BEHIND
    first_B = jnp.where(behind_BS.any(-1), behind_BS.argmax(-1), n_keys)
    end_B = jnp.minimum(end_B, first_B)
  if mask.q_offset_B is not None:
    end_B = end_B - mask.q_offset_B
  end_B = jnp.minimum(end_B, length)
  row_BP = end_B[:, None] - rows + jnp.arange(rows, dtype=jnp.int32)
  if mask.kv_start_B is not None:
    start_B = mask.kv_start_B
    if mask.q_offset_B is not None:
      start_B = start_B - mask.q_offset_B
    row_BP = jnp.where(row_BP >= start_B[:, None], row_BP, -1)
  return jnp.maximum(row_BP, -1)


def scores(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  mask: masks.AttnMask,
  region_BS: jax.Array,
  *,
  window: int,
  sink: int,
  rows: int,
  score: str = 'mass',
) -> jax.Array:
  """What each head would lose by being sparse.

  Args:
    q_BTNH, k_BSKH: queries and keys as the attention takes them.
    mask: who may read whom.
    region_BS: int8, region of every key (corejax.regions, or BEHIND).
    window, sink: of a sparse head.
    rows: P, the last rows that are looked at.
    score: one of SCORES.

  Returns:
    float32 [B, N].
  """
  batch, length = q_BTNH.shape[:2]
  n_keys = k_BSKH.shape[1]
  rows = min(rows, length)
  row_BP = last_rows(mask, batch, length, n_keys, rows, region_BS)
  used_BP = row_BP >= 0
  place_BP = jnp.maximum(row_BP, 0)
  i_BT = masks.row_positions(mask, batch, length)
  i_BP = jnp.take_along_axis(i_BT, place_BP, axis=1)
  q_BPNH = jnp.take_along_axis(q_BTNH, place_BP[..., None, None], axis=1)
  q_segment_BP = None
  if mask.q_segment_BT is not None:
    q_segment_BP = jnp.take_along_axis(mask.q_segment_BT, place_BP, axis=1)
  a_BNPS = probe_lib.attention_weights(
    q_BPNH, k_BSKH, i_BP, mask, None, q_segment_BP
  )
  j_S = jnp.arange(n_keys, dtype=jnp.int32)
  start_B = jnp.zeros(batch, jnp.int32)
  if mask.kv_start_B is not None:
    start_B = mask.kv_start_B
  lost_BPS = (i_BP[..., None] - j_S >= window) & (
    j_S - start_B[:, None, None] >= sink
  )
  visual_BS = jnp.isin(region_BS, jnp.array(regions.VISUAL, region_BS.dtype))
  counted_BPS = lost_BPS & visual_BS[:, None] & used_BP[..., None]
  share = 1 / jnp.maximum(used_BP.sum(-1), 1)
  mean_BNS = jnp.einsum(
    'BNPS,BPS,B->BNS',
    a_BNPS,
    counted_BPS.astype(jnp.float32),
    share.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return mean_BNS.max(-1) if score == 'peak' else mean_BNS.sum(-1)


def choose(score_BN: jax.Array, budget_B1: jax.Array) -> jax.Array:
  """bool [B, N], the heads with the highest scores; equal ones by number.

  Args:
    score_BN: float.
    budget_B1: int32 [1|B, 1], how many.
  """
  order_BN = jnp.argsort(-score_BN, axis=-1, stable=True)
  return jnp.argsort(order_BN, axis=-1) < budget_B1


@functools.cache  # one function a setting: jit knows a static one by identity
def router(
  attend: attention.Attend,
  window: int,
  sink: int,
  rows: int = 64,
  score: str = 'mass',
) -> attention.Attend:
  """The function that a model takes: `attend` behind a choice of dense heads.

  Args:
    attend: the attention; called once a layer, with per-example windows.
    window, sink: of sparse heads.
    rows: last rows that the choice is made from.
    score: one of SCORES.

  Returns:
    attend(q, k, v, mask, control, probe=None) -> AttendOut. The control is the
    static plan's (heads whose window is masks.DENSE are its dense ones) and
    must hold region_BS, which tells visual keys; without a control (as towers
    are called) it is `attend` itself.

  Raises:
    ValueError: an unknown score.
  """
  if score not in SCORES:
    raise ValueError(f'router: score {score!r} is none of {SCORES}')

  def route(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: masks.AttnMask,
    control: control_lib.AttendControl | None = None,
    probe: probe_lib.Probe | None = None,
  ) -> attention.AttendOut:
    if control is None:  # a vision tower has no plan
      return attend(q_BTNH, k_BSKH, v_BSKH, mask, control, probe)
    if control.region_BS is None:
      raise ValueError('router: needs a control with region_BS')
    with jax.named_scope('router'):
      score_BN = scores(
        q_BTNH,
        k_BSKH,
        mask,
        control.region_BS,
        window=window,
        sink=sink,
        rows=rows,
        score=score,
      )
      planned_BN = control.window_BN >= masks.DENSE
      dense_BN = choose(score_BN, planned_BN.sum(-1, keepdims=True))
      control = dataclasses.replace(
        control,
        window_BN=jnp.where(dense_BN, masks.DENSE, window).astype(jnp.int32),
        sink_BN=jnp.where(dense_BN, 0, sink).astype(jnp.int32),
        score_scale_BN=jnp.broadcast_to(control.score_scale_BN, dense_BN.shape),
      )
      if control.blocked_BNR is None:
        control = dataclasses.replace(control, region_BS=None)
    return attend(q_BTNH, k_BSKH, v_BSKH, mask, control, probe)

  return route
