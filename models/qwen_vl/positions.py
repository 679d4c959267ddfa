"""M-RoPE positions: time, row and column of every token.

Text counts on all three axes at once. A picture's tokens share one time, have
the row and column of their cell, and the text behind it goes on from the
larger of its sides (transformers 5's get_rope_index; Qwen2-VL, section 2.1):

    token   a  b  v  v  v  v  v  v  c        a picture of 2 rows, 3 columns
    time    0  1  2  2  2  2  2  2  5
    row     0  1  2  2  2  3  3  3  5
    column  0  1  2  3  4  2  3  4  5
"""

from collections.abc import Sequence

import numpy as np


def of_tokens(
  is_visual_T: np.ndarray, grids: Sequence[tuple[int, int]]
) -> np.ndarray:
  """int32 [3, T].

  Args:
    is_visual_T: bool, tokens that stand for a visual feature.
    grids: (rows, columns) of each picture's features, in prompt order.

  Raises:
    ValueError: another number of visual tokens than the pictures have.
  """
  n_visual = sum(rows * columns for rows, columns in grids)
  if is_visual_T.sum() != n_visual:
    raise ValueError(f'{is_visual_T.sum()} visual tokens, expected {n_visual}')
  parts, token, start, seen = [], 0, 0, 0
  visual_I = np.flatnonzero(is_visual_T)
  for rows, columns in grids:
    first, n_cells = visual_I[seen], rows * columns
    parts.append(_text(first - token, start))
    start += first - token
    at = np.arange(n_cells)
    cell = np.stack([np.zeros_like(at), at // columns, at % columns])
    parts.append(start + cell)
    start += max(rows, columns)
    token, seen = first + n_cells, seen + n_cells
  parts.append(_text(len(is_visual_T) - token, start))
  return np.concatenate(parts, 1).astype(np.int32)


def _text(count: int, start: int) -> np.ndarray:
  return np.broadcast_to(start + np.arange(count), (3, count))
