"""How far two rankings agree, how sure that is, and whether it is chance.

**Intervals.** Noise lowers agreement, and a resample has the data's noise and
its own on top: resampled agreement lies below the measured one, and percentile
intervals of well agreeing rankings held the truth in as few as 0% of simulated
data sets. So the resamples give the width alone, on a scale on which it is even
(Fisher's z for correlations, arcsine of the root for shares), around the
measured value:

    t(value) -+ q s,   s the standard deviation of t(resamples)

with Student's q of (clusters - 1) degrees of freedom. The interval is of the
agreement that two such data sets drawn anew would show on average; it is the
scale on which Spearman's noise ceiling lies. `simulate_agreement.table()`
prints its coverage (README.md in this folder).

**Chance** is a random assignment of the heads, in p values: exact for the
overlap of two sets (hypergeometric), by permutation for the others. Resampling
examples could not tell: two orders of 16 heads can agree by accident, and do so
in every resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math

import numpy as np
from scipy import stats

LEVEL = 0.95


def _fisher(n_columns: int) -> Callable[[np.ndarray], np.ndarray]:
  """Fisher's z; a perfect correlation counts as half a step from it.

  The greatest Spearman below 1 is 1 - 12 / (X^3 - X): two neighbours swapped.
  """
  limit = 1 - 6 / max(n_columns**3 - n_columns, 12)
  return lambda r: np.arctanh(np.clip(r, -limit, limit))


def _arcsine(share: np.ndarray) -> np.ndarray:
  return np.arcsin(np.sqrt(np.clip(share, 0.0, 1.0)))


def _share(angle: np.ndarray) -> np.ndarray:
  return np.sin(np.clip(angle, 0.0, np.pi / 2)) ** 2


def correlation_interval(
  value: float,
  value_Z: np.ndarray,
  n_clusters: int,
  n_columns: int,
  level: float = LEVEL,
) -> tuple[float, float]:
  """(low, high) of a rank correlation.

  Args:
    value: as measured.
    value_Z: of resamples; those that are not finite say nothing.
    n_clusters: of the smaller data set.
    n_columns: X, how many are ranked.
    level: coverage aimed at.

  Returns:
    nan without a value, with one cluster, or with fewer than 2 resamples.
  """
  return _interval(
    value, value_Z, n_clusters, level, _fisher(n_columns), np.tanh
  )


def share_interval(
  value: float,
  value_Z: np.ndarray,
  n_clusters: int,
  step: float = 0.0,
  level: float = LEVEL,
) -> tuple[float, float]:
  """(low, high) of a value in [0, 1]; see `correlation_interval`.

  Args:
    value, value_Z, n_clusters, level: as there.
    step: between two values that it can take, 1 / k of k heads. Half of it is
      added to both sides: where no resample leaves a value, the average over
      data sets need not lie on one.
  """
  low, high = _interval(value, value_Z, n_clusters, level, _arcsine, _share)
  return (
    float(np.clip(low - step / 2, 0.0, 1.0)),
    float(np.clip(high + step / 2, 0.0, 1.0)),
  )


def _interval(value, value_Z, n_clusters, level, forth, back):
  value_Z = np.asarray(value_Z, np.float64)
  value_Z = value_Z[np.isfinite(value_Z)]
  if not math.isfinite(value) or n_clusters < 2 or len(value_Z) < 2:
    return math.nan, math.nan
  moved_Z = forth(value_Z)
  if np.ptp(moved_Z) == 0:  # there and back would round, and cut a perfect 1
    return float(value), float(value)
  half = moved_Z.std(ddof=1) * stats.t.ppf((1 + level) / 2, n_clusters - 1)
  centre = forth(np.float64(value))
  low, high = float(back(centre - half)), float(back(centre + half))
  return min(low, float(value)), max(high, float(value))


def set_overlap_p(
  n_common: int, n_left: int, n_right: int, n_columns: int
) -> float:
  """P(a random set of n_right columns has n_common or more of the n_left)."""
  return float(stats.hypergeom.sf(n_common - 1, n_columns, n_left, n_right))


def common_chance(sizes: Sequence[int], n_columns: int) -> float:
  """Columns that random sets of these sizes all hold, on average."""
  return n_columns * math.prod(size / n_columns for size in sizes)


def common_p(n_common: int, sizes: Sequence[int], n_columns: int) -> float:
  """P(random sets of these sizes all hold n_common or more columns).

  Exact: what the first i sets have in common is drawn from by the next, a
  hypergeometric law each time. Of two sets it is `set_overlap_p`.

  Args:
    n_common: as found.
    sizes: of the sets, each drawn by itself.
    n_columns: drawn from.
  """
  first, *rest = sizes
  probability_M = np.zeros(n_columns + 1)  # of m columns in common so far
  probability_M[first] = 1.0
  m_M = np.arange(n_columns + 1)
  for size in rest:
    given_MM = stats.hypergeom.pmf(m_M[:, None], n_columns, m_M[None], size)
    probability_M = given_MM @ probability_M
  return float(min(probability_M[n_common:].sum(), 1.0))


def permutation_p(
  measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
  left_X: np.ndarray,
  right_X: np.ndarray,
  n_permutations: int,
  seed: int,
) -> float:
  """P(a random order agrees as well), of the permutations and the data itself.

  Args:
    measure: of agreement, ([1, X], [P, X]) -> [P].
    left_X, right_X: scores.
    n_permutations: of the right one's columns; 0 gives nan.
    seed: same seed, same permutations.
  """
  value = float(measure(left_X[None], right_X[None])[0])
  if not n_permutations or not math.isfinite(value):
    return math.nan
  rng = np.random.default_rng([seed, 0xA6EE])
  right_PX = rng.permuted(np.tile(right_X, (n_permutations, 1)), axis=1)
  # A hair below: sums of the same ranks in another order may round.
  reached = int((measure(left_X[None], right_PX) >= value - 1e-12).sum())
  return (1 + reached) / (1 + n_permutations)


def noise_ceiling(left: float, right: float) -> float:
  """Greatest Spearman that noise lets two rankings show.

  Args:
    left, right: each one's reliability at full size (Spearman-Brown).

  Returns:
    Their geometric mean; nan where one is not positive.
  """
  if not (left > 0 and right > 0):
    return math.nan
  return math.sqrt(left * right)
