"""Attention by the definition: Python loops and float64, for tests alone."""

import jax
import numpy as np


def visible(mask, rows_BP, kv_size, control=None, n_heads=1):
  """bool [B, N, P, S] by the words of AttnMask and AttendControl.

  Args:
    mask: corejax.masks.AttnMask.
    rows_BP: int, query rows (not key positions).
    kv_size: S.
    control: one layer's AttendControl or None.
    n_heads: N.
  """
  # Indexing a JAX array in a loop costs a dispatch each time.
  mask, control = jax.tree.map(np.asarray, (mask, control))
  batch, n_rows = rows_BP.shape
  seen = np.zeros((batch, n_heads, n_rows, kv_size), bool)
  for b, n, p, j in np.ndindex(seen.shape):
    row = int(rows_BP[b, p])
    seen[b, n, p, j] = _sees(mask, control, b, n, row, j, kv_size)
  return seen


def _sees(mask, control, b, n, row, j, kv_size):
  i = row + (0 if mask.q_offset_B is None else int(mask.q_offset_B[b]))
  start = 0 if mask.kv_start_B is None else int(mask.kv_start_B[b])
  end = kv_size if mask.kv_len_B is None else int(mask.kv_len_B[b])
  if not start <= j < end:
    return False
  if mask.causal and j > i:
    return False
  if mask.window is not None and i - j >= int(mask.window):
    return False
  if mask.kv_segment_BS is not None:
    segment = int(mask.kv_segment_BS[b, j])
    if segment not in (0, int(mask.q_segment_BT[b, row])):
      return False
  if control is None:
    return True

  def of_head(array):
    return array[min(b, len(array) - 1), n]

  window, sink = of_head(control.window_BN), of_head(control.sink_BN)
  if i - j >= int(window) and j - start >= int(sink):
    return False
  if control.blocked_BNR is not None:
    if of_head(control.blocked_BNR)[int(control.region_BS[b, j])]:
      return False
  return True


def attention(q_BTNH, k_BSKH, mask, rows_BP, control=None):
  """float64 [B, N, P, S], 0 where a row may read nothing."""
  q = np.asarray(q_BTNH, np.float64)
  k = np.asarray(k_BSKH, np.float64)
  n_heads, n_kv, kv_size = q.shape[2], k.shape[2], k.shape[1]
  seen = visible(mask, rows_BP, kv_size, control, n_heads)
  out = np.zeros(seen.shape)
  for b, n, p in np.ndindex(seen.shape[:3]):
    keys = seen[b, n, p]
    if not keys.any():
      continue
    score = k[b, :, n // (n_heads // n_kv)] @ q[b, rows_BP[b, p], n]
    score = score / np.sqrt(q.shape[-1])
    if control is not None:
      scale = np.asarray(control.score_scale_BN)
      score = score * float(scale[min(b, len(scale) - 1), n])
    e = np.where(keys, np.exp(score - score[keys].max()), 0.0)
    out[b, n, p] = e / e.sum()
  return out
