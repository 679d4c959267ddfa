"""Who may read whom: the attention mask as a few integers per sequence.

No [T, S] array is stored: a mask is a handful of integers from which any
block's visibility follows.

    keys j ->   0 1 2 3 4 5 6 7
    kv_start=1  . o o o o o . .   kv_len=6
    q_offset=3: row t stands at key position i = t + 3

    causal, window=2, sink=1 (both counted from the first real key):
    i=3         . s . w w . . .        s seen as sink, w seen in the window
    i=4         . s . . w w . .
"""

import dataclasses

import jax
import jax.numpy as jnp

from corejax import describe

DENSE = 2**30  # a window that never ends; i - j stays far from int32's end


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttnMask:
  """What a layer may see, apart from what a HeadControl forbids.

  Attributes:
    causal: static; False for vision towers.
    q_offset_B: int32 [B], key position of query row 0 (chunked prefill,
      decode); None is 0.
    kv_start_B: int32 [B], first real key (left padding); None is 0.
    kv_len_B: int32 [B], end (exclusive) of the real keys, in key positions;
      None is S.
    q_segment_BT, kv_segment_BS: int32, packed questions, windows or frames: a
      query of segment s reads keys of segment s and of segment 0 (the shared
      prefix). Both or neither.
    window: int32 scalar, the model's own sliding window (key j seen only if
      i - j < window); it bounds the sinks of a control too. None is none.
  """

  q_offset_B: jax.Array | None = None
  kv_start_B: jax.Array | None = None
  kv_len_B: jax.Array | None = None
  q_segment_BT: jax.Array | None = None
  kv_segment_BS: jax.Array | None = None
  window: jax.Array | None = None
  causal: bool = dataclasses.field(default=True, metadata=dict(static=True))

  __repr__ = describe.fields


def row_positions(mask: AttnMask, batch: int, length: int) -> jax.Array:
  """Key positions int32 [B, T] of all query rows."""
  i_1T = jnp.arange(length, dtype=jnp.int32)[None]
  if mask.q_offset_B is not None:
    i_1T = i_1T + mask.q_offset_B[:, None]
  return jnp.broadcast_to(i_1T, (batch, length))


def visible(
  mask: AttnMask,
  i_BP: jax.Array,
  kv_size: int,
  control=None,
  q_segment_BP: jax.Array | None = None,
) -> jax.Array:
  """Which keys the given rows may read.

  Args:
    mask: the mask.
    i_BP: int32 [B, P], the rows' key positions (`row_positions`).
    kv_size: S.
    control: one layer's AttendControl or None; its rows_BT, if any, are those
      same rows [1|B, P].
    q_segment_BP: int32 [B, P], segments of those rows; needed if the mask has
      segments.

  Returns:
    bool [B, 1|N, P, S]; N only if a control is given.
  """
  batch = i_BP.shape[0]
  j_S = jnp.arange(kv_size, dtype=jnp.int32)
  zero_B = jnp.zeros(batch, jnp.int32)
  start_B = zero_B if mask.kv_start_B is None else mask.kv_start_B
  end_B = zero_B + kv_size if mask.kv_len_B is None else mask.kv_len_B
  real_BS = (j_S >= start_B[:, None]) & (j_S < end_B[:, None])
  seen_BPS = jnp.broadcast_to(real_BS[:, None], (batch, i_BP.shape[1], kv_size))
  back_BPS = i_BP[:, :, None] - j_S
  if mask.causal:
    seen_BPS &= back_BPS >= 0
  if mask.window is not None:
    seen_BPS &= back_BPS < mask.window
  if mask.kv_segment_BS is not None:
    if q_segment_BP is None:
      raise ValueError(
        'visible: the mask has segments, so the rows need theirs'
      )
    kv_segment_B1S = mask.kv_segment_BS[:, None, :]
    seen_BPS &= (kv_segment_B1S == q_segment_BP[:, :, None]) | (
      kv_segment_B1S == 0
    )
  seen = seen_BPS[:, None]
  if control is None:
    return seen
  from_start_B11S = (j_S - start_B[:, None])[:, None, None, :]
  allowed = (back_BPS[:, None] < control.window_BN[..., None, None]) | (
    from_start_B11S < control.sink_BN[..., None, None]
  )
  if control.blocked_BNR is not None:
    # [B, N, S]: is this head barred from the region in which key j lies?
    barred_BNS = jnp.take_along_axis(
      jnp.broadcast_to(
        control.blocked_BNR, (batch, *control.blocked_BNR.shape[1:])
      ),
      control.region_BS[:, None, :].astype(jnp.int32),
      axis=2,
    )
    allowed &= ~barred_BNS[:, :, None, :]
  if control.rows_BT is not None:
    allowed |= ~control.rows_BT[:, None, :, None]
  return seen & allowed
