"""Which heads of a ranking are taken: `top5%`, `top30`, `fdr0.01`, ...

    top5%  bottom5%      a share of all heads of the model, at least one
    top30  bottom30      a number of heads
    per_layer2           the best 2 of every layer
    fdr0.01              q_value < 0.01 under the primary null

The order is that of the ranking: by score, equal scores by (layer, head). A
head whose score is not finite is never taken, neither from the top nor from
the bottom: where too few have one, fewer heads are taken.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from corejax import errors
from corejax.stats import reliability

DEFAULT = 'top5%'
_GRAMMAR = 'top5%, top30, bottom5%, bottom30, per_layer2 or fdr0.01'
_NUMBER = r'(\d{1,9}(?:\.\d{1,9})?)'
_PERCENT = re.compile(rf'(top|bottom){_NUMBER}%', re.ASCII)
_COUNT = re.compile(r'(top|bottom|per_layer)(\d{1,9})', re.ASCII)
_FDR = re.compile(rf'fdr{_NUMBER}', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Selection:
  """One rule.

  Attributes:
    kind: 'top_fraction', 'bottom_fraction', 'top_k', 'bottom_k', 'per_layer'
      or 'fdr'.
    value: the fraction, the number of heads (per layer), or the q.
  """

  kind: str = 'top_fraction'
  value: float = 0.05

  @classmethod
  def parse(cls, text: str) -> Selection:
    """Reads the grammar above.

    Raises:
      UserError: anything else, or a number that selects nothing or too much.
    """
    text = text.strip()
    if match := _PERCENT.fullmatch(text):
      rule = cls(f'{match[1]}_fraction', float(match[2]) / 100)
      good = 0 < rule.value <= 1
    elif match := _COUNT.fullmatch(text):
      kind = match[1] if match[1] == 'per_layer' else f'{match[1]}_k'
      rule = cls(kind, int(match[2]))
      good = rule.value >= 1
    elif match := _FDR.fullmatch(text):
      rule = cls('fdr', float(match[1]))
      good = 0 < rule.value <= 1
    else:
      raise errors.UserError(f'selection {text[:40]!r} is none of {_GRAMMAR}')
    if not good:
      raise errors.UserError(
        f'selection {text[:40]!r} is out of range; write {_GRAMMAR}'
      )
    return rule

  @property
  def from_bottom(self) -> bool:
    return self.kind.startswith('bottom')

  def count(self, n_layers: int, n_heads: int) -> int | None:
    """How many heads it takes, None where the q values decide.

    A fraction is rounded to the nearest number of heads, halves up.

    Raises:
      UserError: more heads than there are.
    """
    total = n_layers * n_heads
    if self.kind == 'fdr':
      return None
    if self.kind.endswith('fraction'):
      return max(1, math.floor(self.value * total + 0.5))
    limit = n_heads if self.kind == 'per_layer' else total
    if self.value > limit:
      raise errors.UserError(
        f'selection {self}: there are {limit} heads'
        + (' in a layer' if self.kind == 'per_layer' else '')
      )
    return int(self.value) * (n_layers if self.kind == 'per_layer' else 1)

  def mask(
    self, score_ZLN: np.ndarray, q_LN: np.ndarray | None = None
  ) -> np.ndarray:
    """The heads it takes.

    Args:
      score_ZLN: float [..., L, N].
      q_LN: float [L, N], for fdr alone; nan does not pass.

    Returns:
      bool [..., L, N], False wherever the score is not finite.

    Raises:
      UserError: fdr without any q value; more heads than there are.
    """
    score_ZLN = np.asarray(score_ZLN, np.float64)
    n_layers, n_heads = score_ZLN.shape[-2:]
    count = self.count(n_layers, n_heads)
    finite_ZLN = np.isfinite(score_ZLN)
    if count is None:
      if q_LN is None or np.isnan(q_LN).all():
        raise errors.UserError(
          f'selection {self}: this ranking has no q values; measure with '
          '--profiles and --permutations, or select by top5%'
        )
      passed_LN = np.nan_to_num(q_LN, nan=np.inf) < self.value
      return finite_ZLN & passed_LN
    if self.kind == 'per_layer':
      best_ZLN = reliability.positions(score_ZLN) < count // n_layers
      return finite_ZLN & best_ZLN
    score_ZX = score_ZLN.reshape(*score_ZLN.shape[:-2], -1)
    place_ZX = reliability.positions(score_ZX)
    if self.from_bottom:
      # Scores that are not finite are last: count from before them.
      n_finite_Z1 = np.isfinite(score_ZX).sum(-1, keepdims=True)
      chosen_ZX = place_ZX >= n_finite_Z1 - count
    else:
      chosen_ZX = place_ZX < count
    return finite_ZLN & chosen_ZX.reshape(score_ZLN.shape)

  def __str__(self) -> str:
    name = self.kind.split('_')[0]
    if self.kind.endswith('fraction'):
      return f'{name}{100 * self.value:.9g}%'
    if self.kind == 'fdr':
      return f'fdr{self.value:.9g}'
    return f'{self.kind if self.kind == "per_layer" else name}{self.value:.0f}'
