"""What the chosen query rows read: region masses without a [T, S] matrix.

Runs inside the layer scan, on the probe's rows only, in float32 at the highest
matmul precision (a float32 einsum is bf16 passes on a TPU and TF32 on a GPU):

    A[n, p, j]  = exp(s[n, p, j] - logsumexp_j s[n, p, :])     P rows, all keys
    mass[q,n,r] = mean over p in set q of  sum over j in region r of  A[n, p, j]

Peak extra memory is 4 * B * N * P * S bytes (P a few dozen rows; on CPU one
head's at a time), against 4 * B * N * T * S for the full matrix.
"""

from collections.abc import Callable
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import describe
from corejax import masks
from corejax import regions

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
  """Which rows are watched, and how keys and rows are grouped.

  Attributes:
    rows_BP: int32 [B, P], query rows (indices into T); -1 is unused. A row in
      two query sets is listed once for each.
    set_PQ: float32 0/1 [P, Q], the query set that each slot belongs to.
    region_BS: int8 [B, S], region of every key (corejax.regions).
    visual_BI: int32 [B, I], key positions of the visual tokens; -1 is unused.
      Needed with profile_set only.
    profile_set: static; query set whose set-averaged attention over the
      visual tokens is returned too (4 * B * N * I bytes a layer).
    weights: static; also return every head's full attention, for tests and
      small inputs: 4 * B * N * T * S bytes a layer.
    class_BT: int8 [B, T] or None, every query row's index into
      regions.ROW_CLASSES, -1 for padding; if given, what each head writes is
      averaged over the rows of a class (12 * B * N * H bytes a layer).
    outputs: static; also return what every head writes on every row, for
      small inputs: B * T * N * H numbers a layer, in the model's dtype.
  """

  rows_BP: jax.Array
  set_PQ: jax.Array
  region_BS: jax.Array
  visual_BI: jax.Array | None = None
  profile_set: int | None = dataclasses.field(
    default=None, metadata=dict(static=True)
  )
  weights: bool = dataclasses.field(default=False, metadata=dict(static=True))
  class_BT: jax.Array | None = None
  outputs: bool = dataclasses.field(default=False, metadata=dict(static=True))

  __repr__ = describe.fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured:
  """What a probe saw in one layer (or, stacked by the scan, with leading L).

  The decoder fills in written, class_mean and out: an attention knows neither
  the output projection nor what a control made of the heads' outputs.

  Attributes:
    mass_BQNR: float32; 0 everywhere where a set has no row in this example.
    profile_BNI: float32 or None; 0 at unused slots.
    written_BQN: float32 or None, L2 norm of what the head writes into the
      residual stream, averaged over the set's rows.
    weights_BNTS: float32 or None.
    class_mean_BCNH: float32 or None, mean head output over the rows of each of
      regions.ROW_CLASSES, as the output projection takes it; 0 where the
      example has no such row.
    out_BTNH: or None, the head outputs themselves.
  """

  mass_BQNR: jax.Array
  profile_BNI: jax.Array | None = None
  weights_BNTS: jax.Array | None = None
  written_BQN: jax.Array | None = None
  class_mean_BCNH: jax.Array | None = None
  out_BTNH: jax.Array | None = None

  __repr__ = describe.fields


def row_shares(probe: Probe) -> jax.Array:
  """float32 [B, P, Q]: each row's weight in the mean over its query set."""
  used_BP = probe.rows_BP >= 0
  member_BPQ = probe.set_PQ * used_BP[..., None]
  return member_BPQ / jnp.maximum(member_BPQ.sum(1, keepdims=True), 1)


def take_rows(probe: Probe, x_BTNH: jax.Array) -> jax.Array:
  """[B, P, N, H]: the probe's rows; unused slots hold row 0."""
  rows_BP = jnp.maximum(probe.rows_BP, 0)
  return jnp.take_along_axis(x_BTNH, rows_BP[..., None, None], axis=1)


def written(
  probe: Probe, out_BTNH: jax.Array, weight_DNH: jax.Array
) -> jax.Array:
  """L2 norm of what each head writes, averaged over the query sets' rows.

  |W_n o|^2 = o^T (W_n^T W_n) o, so that nothing of size [P, N, D] is stored.

  Args:
    probe: for its rows and sets.
    out_BTNH: head outputs, as the output projection takes them.
    weight_DNH: the output projection.

  Returns:
    float32 [B, Q, N].
  """
  with jax.named_scope('written'):
    # Else XLA on CPU copies the weight twice, into two orders.
    weight_NDH = jax.lax.optimization_barrier(
      weight_DNH.astype(jnp.float32).swapaxes(0, 1)
    )
    gram_NHJ = jnp.einsum(
      'NDH,NDJ->NHJ', weight_NDH, weight_NDH, precision=_HIGHEST
    )
    out_BPNH = take_rows(probe, out_BTNH).astype(jnp.float32)
    square_BPN = jnp.einsum(
      'BPNH,NHJ,BPNJ->BPN', out_BPNH, gram_NHJ, out_BPNH, precision=_HIGHEST
    )
    return jnp.einsum(
      'BPQ,BPN->BQN',
      row_shares(probe),
      jnp.sqrt(jnp.maximum(square_BPN, 0.0)),
      precision=_HIGHEST,
    )


def class_means(probe: Probe, out_BTNH: jax.Array) -> jax.Array | None:
  """Mean head output over the rows of each class, nothing of size T kept.

  Args:
    probe: for its classes; None of them, nothing is measured.
    out_BTNH: head outputs, as the output projection takes them.

  Returns:
    float32 [B, C, N, H] or None; 0 where the example has no such row.
  """
  if probe.class_BT is None:
    return None
  with jax.named_scope('class_means'):
    is_class_BTC = jax.nn.one_hot(
      probe.class_BT, len(regions.ROW_CLASSES), dtype=jnp.float32
    )
    count_BC = is_class_BTC.sum(1)
    total_BCNH = jnp.einsum(
      'BTC,BTNH->BCNH',
      is_class_BTC,
      out_BTNH.astype(jnp.float32),
      precision=_HIGHEST,
    )
    return total_BCNH / jnp.maximum(count_BC, 1)[..., None, None]


def attention_weights(
  q_BPNH: jax.Array,
  k_BSKH: jax.Array,
  i_BP: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  q_segment_BP: jax.Array | None = None,
) -> jax.Array:
  """Post-softmax attention of the given rows over all keys.

  Args:
    q_BPNH: the rows' queries, any float dtype; scores are float32.
    k_BSKH: keys; query head n reads kv head n // (N / K).
    i_BP: int32, the rows' key positions.
    mask: who may read whom.
    control: one layer's control; its rows_BT, if any, are those same rows.
    q_segment_BP: the rows' segments, if the mask has any.

  Returns:
    float32 [B, N, P, S]; rows that may read nothing are 0.
  """
  batch, n_rows, n_heads, head_dim = q_BPNH.shape
  n_kv = k_BSKH.shape[2]
  q = q_BPNH.astype(jnp.float32).reshape(
    batch, n_rows, n_kv, n_heads // n_kv, head_dim
  )
  s_BKGPS = jnp.einsum(
    'BPKGH,BSKH->BKGPS', q, k_BSKH.astype(jnp.float32), precision=_HIGHEST
  )
  s_BNPS = s_BKGPS.reshape(batch, n_heads, n_rows, -1) / math.sqrt(head_dim)
  if control is not None:
    s_BNPS = s_BNPS * control.scale_BNTS
  seen = masks.visible(mask, i_BP, k_BSKH.shape[1], control, q_segment_BP)
  # finfo.min, not -inf: exp(-inf - -inf) of a row that sees nothing is NaN.
  s_BNPS = jnp.where(seen, s_BNPS, jnp.finfo(jnp.float32).min)
  e_BNPS = jnp.exp(s_BNPS - s_BNPS.max(-1, keepdims=True))
  e_BNPS = jnp.where(seen, e_BNPS, 0.0)
  total = e_BNPS.sum(-1, keepdims=True)
  return e_BNPS / jnp.where(total > 0, total, 1.0)


def _reduce(probe: Probe, a_BNPS: jax.Array) -> Measured:
  """Masses and profile of some heads' attention."""
  share_BPQ = row_shares(probe)
  is_region_BSR = jax.nn.one_hot(
    probe.region_BS, len(regions.REGIONS), dtype=jnp.float32
  )
  mass_BNPR = jnp.einsum(
    'BNPS,BSR->BNPR', a_BNPS, is_region_BSR, precision=_HIGHEST
  )
  mass_BQNR = jnp.einsum(
    'BPQ,BNPR->BQNR', share_BPQ, mass_BNPR, precision=_HIGHEST
  )
  if probe.profile_set is None:
    return Measured(mass_BQNR)
  if probe.visual_BI is None:
    raise ValueError('Probe: profile_set needs visual_BI')
  # As products of N matrices: a sum over P takes XLA on CPU 30 times as long.
  share_BNP = jnp.broadcast_to(
    share_BPQ[:, None, :, probe.profile_set], a_BNPS.shape[:3]
  )
  mean_BNS = jnp.einsum('BNP,BNPS->BNS', share_BNP, a_BNPS, precision=_HIGHEST)
  visual_B1I = probe.visual_BI[:, None]
  profile_BNI = jnp.take_along_axis(mean_BNS, jnp.maximum(visual_B1I, 0), 2)
  return Measured(mass_BQNR, jnp.where(visual_B1I >= 0, profile_BNI, 0.0))


def _head_by_head(
  reduced: Callable[..., Measured],
  q_BPNH: jax.Array,
  k_BSKH: jax.Array,
  control: control_lib.AttendControl | None,
) -> Measured:
  """`reduced(q_BPNH, k_BSKH, control)`, one head after the other.

  A third of the time on CPU: one head's scores stay in the cache, and keys are
  read where they lie instead of being copied into another order first. An
  accelerator would rather have one large step than N small ones.
  """
  n_heads = q_BPNH.shape[2]
  group = n_heads // k_BSKH.shape[2]

  def one(n):
    return reduced(
      jax.lax.dynamic_slice_in_dim(q_BPNH, n, 1, axis=2),
      jax.lax.dynamic_slice_in_dim(k_BSKH, n // group, 1, axis=2),
      None if control is None else control.of_head(n),
    )

  each = jax.lax.map(one, jnp.arange(n_heads))
  profile_NB1I = each.profile_BNI
  return Measured(
    jnp.moveaxis(each.mass_BQNR[..., 0, :], 0, 2),
    None if profile_NB1I is None else profile_NB1I[:, :, 0].swapaxes(0, 1),
  )


def measure(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None,
  probe: Probe,
) -> Measured:
  """Region masses (and what else the probe asks for) of one layer.

  Args:
    q_BTNH: queries as the attention sees them (after RoPE and norms).
    k_BSKH: keys likewise.
    mask: who may read whom.
    control: one layer's control or None; a limited head is measured as limited.
    probe: the request.

  Returns:
    A Measured.
  """
  batch, length = q_BTNH.shape[:2]
  i_BT = masks.row_positions(mask, batch, length)
  rows_BP = jnp.maximum(probe.rows_BP, 0)
  with jax.named_scope('probe'):
    q_BPNH = take_rows(probe, q_BTNH)
    i_BP = jnp.take_along_axis(i_BT, rows_BP, axis=1)
    q_segment_BP = None
    if mask.q_segment_BT is not None:
      q_segment_BP = jnp.take_along_axis(mask.q_segment_BT, rows_BP, axis=1)
    limits = control
    if control is not None and control.rows_BT is not None:
      limits = dataclasses.replace(
        control, rows_BT=jnp.take_along_axis(control.rows_BT, rows_BP, axis=1)
      )

    def reduced(q_BPNH, k_BSKH, control):
      a_BNPS = attention_weights(
        q_BPNH, k_BSKH, i_BP, mask, control, q_segment_BP
      )
      return _reduce(probe, a_BNPS)

    measured = jax.lax.platform_dependent(
      q_BPNH,
      k_BSKH,
      limits,
      cpu=functools.partial(_head_by_head, reduced),
      default=reduced,
    )
    weights_BNTS = None
    if probe.weights:
      weights_BNTS = attention_weights(
        q_BTNH, k_BSKH, i_BT, mask, control, mask.q_segment_BT
      )
  return dataclasses.replace(measured, weights_BNTS=weights_BNTS)
