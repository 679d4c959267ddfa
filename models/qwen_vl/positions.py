"""M-RoPE positions: time, row and column of every token.

Text counts on all three axes at once. A picture's tokens share one time, have
the row and column of their cell, and the text behind it goes on from the
larger of its sides (transformers 5's get_rope_index; Qwen2-VL, section 2.1):

    token   a  b  v  v  v  v  v  v  c        a picture of 2 rows, 3 columns
    time    0  1  2  2  2  2  2  2  5
    row     0  1  2  2  2  3  3  3  5
    column  0  1  2  3  4  2  3  4  5

A video of Qwen2-VL and 2.5 is one run of tokens, its time goes on from one pair
of frames to the next: by 1 (Qwen2-VL), or by `tokens_per_second` times the
seconds between pairs (2.5, section 2.1.3). In Qwen3-VL text stands between
pairs of frames, so that each is a picture here.

transformers' versions differ in two things (RULES): whether the seconds are
cut to whole ones first, and where the text behind a video goes on: behind the
larger of its sides, as behind a picture, which may be *before* the video's last
time, or behind the largest of all its positions, as the papers have it.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
  """How a video's positions are counted.

  Attributes:
    whole_seconds: fractions of the seconds between pairs of frames are cut off.
    behind_all: text goes on behind the largest position on any axis.
  """

  whole_seconds: bool
  behind_all: bool


# By what counts so; the first is the default.
RULES: Mapping[str, Rule] = {
  'transformers-5.23': Rule(False, False),  # and later, up to 5.24 at least
  'transformers-5.17': Rule(True, False),
  'transformers-4.57': Rule(True, True),
  'paper': Rule(False, True),
}
DEFAULT = next(iter(RULES))


@dataclasses.dataclass(frozen=True)
class Grid:
  """The cells of a picture, or of a video that is one run of tokens.

  Attributes:
    rows, columns: features of one pair of frames.
    frames: pairs of frames; 1 for a picture.
    interval: positions from one pair to the next; fractions of the products are
      cut off.
  """

  rows: int
  columns: int
  frames: int = 1
  interval: float = 1.0

  def __len__(self) -> int:
    return self.frames * self.rows * self.columns


def interval(tokens_per_second: int, seconds: float, rule: str) -> float:
  """Positions between two pairs of frames (Qwen2.5-VL).

  Args:
    tokens_per_second: of config.json.
    seconds: between pairs of frames.
    rule: key of RULES.

  Returns:
    A number in float32, as transformers has it: what is cut off later depends
    on it.
  """
  if RULES[rule].whole_seconds:
    return float(tokens_per_second * int(seconds))
  return float(np.float32(tokens_per_second) * np.float32(seconds))


def of_tokens(
  is_visual_T: np.ndarray, grids: Sequence[Grid], rule: str = DEFAULT
) -> np.ndarray:
  """int32 [3, T].

  Args:
    is_visual_T: bool, tokens that stand for a visual feature.
    grids: of each picture or video, in prompt order.
    rule: key of RULES.

  Raises:
    ValueError: another number of visual tokens than the pictures have.
  """
  n_visual = sum(map(len, grids))
  if is_visual_T.sum() != n_visual:
    raise ValueError(f'{is_visual_T.sum()} visual tokens, expected {n_visual}')
  parts, token, start, seen = [], 0, 0, 0
  visual_I = np.flatnonzero(is_visual_T)
  for grid in grids:
    first, n_cells = visual_I[seen], len(grid)
    parts.append(_text(first - token, start))
    start += first - token
    time, cell = np.divmod(np.arange(n_cells), grid.rows * grid.columns)
    time = np.float32(time) * np.float32(grid.interval)
    own_3I = np.stack(
      [time.astype(int), cell // grid.columns, cell % grid.columns]
    )
    parts.append(start + own_3I)
    if RULES[rule].behind_all:
      start += own_3I.max() + 1
    else:
      start += max(grid.rows, grid.columns)
    token, seen = first + n_cells, seen + n_cells
  parts.append(_text(len(is_visual_T) - token, start))
  return np.concatenate(parts, 1).astype(np.int32)


def _text(count: int, start: int) -> np.ndarray:
  return np.broadcast_to(start + np.arange(count), (3, count))
