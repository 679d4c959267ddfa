"""How few heads hold the mass."""

import dataclasses

import numpy as np

N_BINS = 10
HIGH = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Sparsity:
  """Attributes:

  gini: 0 all heads alike, (X-1)/X one head holds everything.
  effective: 1 / sum p^2 with p each head's share of the total, in heads.
  half: number of heads that together hold half of the mass.
  half_share: the same as a share of all heads.
  high_share: share of heads whose mass is above HIGH.
  by_depth: float64 [N_BINS], share of the total mass that lies in each
    tenth of the depth; 0 where a bin has no layer.
  mean_by_depth: float64 [N_BINS], mean mass per head; nan without layers.
  """

  gini: float
  effective: float
  half: int
  half_share: float
  high_share: float
  by_depth: np.ndarray
  mean_by_depth: np.ndarray


def gini(mass_X: np.ndarray) -> float:
  """Gini coefficient of non-negative values; nan if all are 0.

  sum_ij |x_i - x_j| / (2 X sum x), by the sorted form.
  """
  ordered_X = np.sort(np.asarray(mass_X, np.float64).ravel())
  total = ordered_X.sum()
  if total <= 0:
    return float('nan')
  n = len(ordered_X)
  weight_X = 2 * np.arange(1, n + 1) - n - 1
  return float((weight_X * ordered_X).sum() / (n * total))


def effective_number(mass_X: np.ndarray) -> float:
  """1 / sum p^2, in 1..X; nan if all are 0."""
  mass_X = np.asarray(mass_X, np.float64).ravel()
  total = mass_X.sum()
  if total <= 0:
    return float('nan')
  return float(1 / ((mass_X / total) ** 2).sum())


def half_count(mass_X: np.ndarray) -> int:
  """Fewest heads that hold at least half of the mass; 0 if all are 0."""
  ordered_X = np.sort(np.asarray(mass_X, np.float64).ravel())[::-1]
  total = ordered_X.sum()
  if total <= 0:
    return 0
  # A hair below: two halves that sum to 0.5 must count as a half.
  half = 0.5 * total * (1 - 1e-12)
  return int(np.searchsorted(np.cumsum(ordered_X), half) + 1)


def relative_depth(n_layers: int) -> np.ndarray:
  """float64 [L], the middle of each layer in [0, 1]."""
  return (np.arange(n_layers) + 0.5) / n_layers


def measure(mass_LN: np.ndarray) -> Sparsity:
  """All of them.

  Args:
    mass_LN: RAM per head, >= 0.
  """
  mass_LN = np.asarray(mass_LN, np.float64)
  n_layers, n_heads = mass_LN.shape
  bin_L = (relative_depth(n_layers) * N_BINS).astype(int)
  sums = np.bincount(bin_L, mass_LN.sum(1), N_BINS)
  counts = np.bincount(bin_L, minlength=N_BINS) * n_heads
  total = mass_LN.sum()
  half = half_count(mass_LN)
  return Sparsity(
    gini=gini(mass_LN),
    effective=effective_number(mass_LN),
    half=half,
    half_share=half / mass_LN.size,
    high_share=float((mass_LN > HIGH).mean()),
    by_depth=sums / total if total > 0 else np.full(N_BINS, np.nan),
    mean_by_depth=np.divide(
      sums, counts, out=np.full(N_BINS, np.nan), where=counts > 0
    ),
  )
