"""Would other examples have given the same ranking?

Split halves by cluster, overlap of the top sets, rank-biased overlap, and how
many examples the top set needs.

Rankings here are float columns, the higher the better; equal values are
ordered by column, a value that is not finite comes last.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import stats

from corejax.stats import estimand as estimand_lib

# Expected depth 1 / (1 - p) = 20 heads: the first 20 carry 64% of the weight
# (SCIENCE's cuts are the top 30 and the top 5%).
PERSISTENCE = 0.95
SIZES = (5, 10, 20, 40, 80, 160, 320, 640, 1280)


@dataclasses.dataclass(frozen=True)
class SplitHalf:
  """Agreement of two halves of the clusters, mean over random splits.

  Attributes:
    spearman: rank correlation of the halves' scores (plain: of two rankings
      that each saw half of the data).
    spearman_brown: 2r / (1 + r) of it, what two rankings of the full size
      would be expected to reach.
    overlap: share of the top set that the halves have in common.
    overlap_chance: the same for random rankings, k / X.
    rbo: extrapolated rank-biased overlap at PERSISTENCE.
    rbo_chance: the same for random rankings.
    top: k.
    n_splits: splits made; 0 if there are fewer than 2 clusters (all nan).
  """

  spearman: float
  spearman_brown: float
  overlap: float
  overlap_chance: float
  rbo: float
  rbo_chance: float
  top: int
  n_splits: int


def order(values_ZX: np.ndarray) -> np.ndarray:
  """int [..., X], columns from best to worst; ties and nan as above."""
  values_ZX = np.asarray(values_ZX, np.float64)
  last_ZX = np.where(np.isfinite(values_ZX), -values_ZX, np.inf)
  return np.argsort(last_ZX, axis=-1, kind='stable')


def positions(values_ZX: np.ndarray) -> np.ndarray:
  """int [..., X], place of each column, 0 the best."""
  return np.argsort(order(values_ZX), axis=-1, kind='stable')


def top_overlap(
  left_ZX: np.ndarray, right_ZX: np.ndarray, top: int
) -> np.ndarray:
  """float64 [...], share of the `top` best columns common to both."""
  both = (positions(left_ZX) < top) & (positions(right_ZX) < top)
  return both.sum(-1) / top


def rbo(
  left_ZX: np.ndarray, right_ZX: np.ndarray, p: float = PERSISTENCE
) -> np.ndarray:
  """Extrapolated rank-biased overlap of full rankings of the same columns.

  Webber, Moffat, Zobel (2010), eq. 30, at depth X, with X_d columns in common
  among the first d:

      X_X / X p^X + (1 - p) / p  sum_{d=1..X} X_d / d  p^d

  Args:
    left_ZX, right_ZX: float [..., X].
    p: persistence in (0, 1); 1 / (1 - p) is the expected depth of a reader.

  Returns:
    float64 [...] in [0, 1].
  """
  deeper_ZX = np.maximum(positions(left_ZX), positions(right_ZX))
  n_columns = deeper_ZX.shape[-1]
  depth_X = np.arange(1, n_columns + 1)
  rows = deeper_ZX.reshape(-1, n_columns)
  cells = rows + n_columns * np.arange(len(rows))[:, None]
  counts = np.bincount(cells.ravel(), minlength=rows.size)
  common_ZX = np.cumsum(counts.reshape(deeper_ZX.shape), axis=-1)
  weight_X = (1 - p) * p ** (depth_X - 1.0) / depth_X
  return common_ZX @ weight_X + p**n_columns


def rbo_chance(n_columns: int, p: float = PERSISTENCE) -> float:
  """Expected `rbo` of two random rankings (X_d is d^2 / X on average)."""
  depth_X = np.arange(1, n_columns + 1)
  weight_X = (1 - p) * p ** (depth_X - 1.0)
  return float((weight_X * depth_X / n_columns).sum() + p**n_columns)


def spearman(left_ZX: np.ndarray, right_ZX: np.ndarray) -> np.ndarray:
  """float64 [...], rank correlation, ties at their mean rank.

  Columns that are not finite on either side are left out; nan where fewer
  than 2 are left or a side is constant.
  """
  left_ZX, right_ZX = np.atleast_2d(left_ZX), np.atleast_2d(right_ZX)
  if np.isfinite(left_ZX).all() and np.isfinite(right_ZX).all():
    return _rank_correlation(left_ZX, right_ZX)
  pairs = np.broadcast_arrays(left_ZX, right_ZX)
  result = np.full(len(pairs[0]), np.nan)
  for z, (left_X, right_X) in enumerate(zip(*pairs)):
    finite_X = np.isfinite(left_X) & np.isfinite(right_X)
    result[z] = _rank_correlation(left_X[finite_X], right_X[finite_X])
  return result


def _rank_correlation(left_ZX: np.ndarray, right_ZX: np.ndarray) -> np.ndarray:
  """Of finite values; nan where a side is constant, or has fewer than 2."""
  left_ZX, right_ZX = (
    stats.rankdata(side, axis=-1) - (side.shape[-1] + 1) / 2
    for side in (left_ZX, right_ZX)
  )
  norm_Z = np.sqrt((left_ZX**2).sum(-1) * (right_ZX**2).sum(-1))
  product_Z = (left_ZX * right_ZX).sum(-1)
  return np.divide(
    product_Z,
    norm_Z,
    out=np.full(np.shape(product_Z), np.nan),
    where=norm_Z > 0,
  )


def split_half(
  score: estimand_lib.Estimand, top: int, seed: int, n_splits: int = 100
) -> SplitHalf:
  """Scores two random halves of the clusters and compares them.

  Args:
    score: over clusters. Of an odd number of clusters one is left out.
    top: size of the top set.
    seed: same seed, same splits.
    n_splits: how many.
  """
  n_clusters, n_columns = score.shape
  chance = top / n_columns
  if n_clusters < 2:
    nan = float('nan')
    return SplitHalf(nan, nan, nan, chance, nan, rbo_chance(n_columns), top, 0)
  rng = np.random.default_rng([seed, 0x5B11])
  half = n_clusters // 2
  shuffled_ZU = rng.permuted(
    np.tile(np.arange(n_clusters), (n_splits, 1)), axis=1
  )
  sides = []
  for part in (slice(0, half), slice(half, 2 * half)):
    weights_ZU = np.zeros((n_splits, n_clusters))
    np.put_along_axis(weights_ZU, shuffled_ZU[:, part], 1 / half, axis=1)
    sides.append(score.value(weights_ZU))
  left_ZX, right_ZX = sides
  correlation_Z = spearman(left_ZX, right_ZX)
  known_Z = correlation_Z[np.isfinite(correlation_Z)]
  correlation = float(known_Z.mean()) if len(known_Z) else float('nan')
  return SplitHalf(
    spearman=correlation,
    spearman_brown=2 * correlation / (1 + correlation)
    if correlation > -1
    else float('nan'),
    overlap=float(top_overlap(left_ZX, right_ZX, top).mean()),
    overlap_chance=chance,
    rbo=float(rbo(left_ZX, right_ZX).mean()),
    rbo_chance=rbo_chance(n_columns),
    top=top,
    n_splits=n_splits,
  )


def sample_size(
  score: estimand_lib.Estimand,
  cluster_E: np.ndarray,
  top: int,
  seed: int,
  sizes: Sequence[int] = SIZES,
  n_draws: int = 50,
) -> dict[int, float]:
  """Overlap of the top set of n examples with that of all of them.

  Clusters are taken in random order, whole, until n examples are reached (the
  last one is cut). The n examples are among all, so that the overlap reaches
  1 at the full size by construction: it says how soon the ranking settles,
  not how it would do on new data.

  Args:
    score: over **examples**.
    cluster_E: int [E], cluster of each example, 0..max.
    top: size of the top set.
    seed: same seed, same draws.
    sizes: n; those not below the number of examples are left out.
    n_draws: random orders.

  Returns:
    n -> mean overlap with the full ranking, in [0, 1].
  """
  n_examples = score.shape[0]
  full_X = score.value(estimand_lib.group_weights(cluster_E)[None])[0]
  rng = np.random.default_rng([seed, 0x512E])
  n_clusters = int(cluster_E.max()) + 1
  orders = []
  for _ in range(n_draws):
    place_U = rng.permutation(n_clusters)
    # Random within a cluster too: the cut one must not favour its first.
    orders.append(np.lexsort((rng.random(n_examples), place_U[cluster_E])))
  result = {}
  for size in sizes:
    if size >= n_examples:
      break
    weights_ZE = np.zeros((n_draws, n_examples))
    for z, order_E in enumerate(orders):
      chosen = order_E[:size]
      weights_ZE[z, chosen] = estimand_lib.group_weights(
        np.unique(cluster_E[chosen], return_inverse=True)[1]
      )
    overlap_Z = top_overlap(score.value(weights_ZE), full_X[None], top)
    result[size] = float(overlap_Z.mean())
  return result
