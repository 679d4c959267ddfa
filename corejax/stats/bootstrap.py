"""Cluster bootstrap intervals of many scores at once.

Clusters are drawn with replacement; a resample is its vector of counts, so
that all resamples of all heads are a few matrix products.

The default is the studentised interval. Per resample the score's error is
divided by its own standard error (delta method, exact for means and ratios):

    t* = (score* - score) / se*,   [score - se t*(.975), score - se t*(.025)]

It was chosen by measured coverage (README.md in this folder, printed by
`simulate.table()`): percentile and BCa intervals of skewed scores are too
short. At 50 clusters BCa covers 90.5% of the most skewed beta masses, this one
94.5%; of lognormal ones of sigma 1, 91% and 93%.
The price is length: with few clusters, of which one holds most of the mass,
an end may run to the bound of the score. That is what such data say.

Defined ends in degenerate cases:
    1 cluster                    nan (nothing can be said)
    all clusters alike           the point itself
    score or a resample of it    nan
      not finite
"""

import dataclasses

import numpy as np
from scipy import special

from corejax.stats import estimand as estimand_lib

LEVEL = 0.95
FEW_CLUSTERS = 50  # below this intervals were measured to fall short at times
_COLUMNS = 256  # heads at a time: 4 MB an array at 2000 resamples
# Below this share of the variance a resample's clusters are alike and what is
# left is rounding.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Intervals:
  """Attributes: all float64 [X].

  value: the score.
  low, high: ends of the interval.
  se: standard error by the delta method.
  """

  value: np.ndarray
  low: np.ndarray
  high: np.ndarray
  se: np.ndarray


def resample(n_clusters: int, n_resamples: int, seed: int) -> np.ndarray:
  """Weights of resamples with replacement.

  Args:
    n_clusters: how many are drawn, and from how many.
    n_resamples: how many resamples.
    seed: same seed, same resamples.

  Returns:
    float64 [Z, U], each row counts / U.
  """
  rng = np.random.default_rng([seed, 0xB007])
  counts_ZU = rng.multinomial(
    n_clusters, np.full(n_clusters, 1 / n_clusters), n_resamples
  )
  return counts_ZU / n_clusters


def studentised(
  score: estimand_lib.Estimand,
  weights_ZU: np.ndarray,
  level: float = LEVEL,
) -> Intervals:
  """Studentised (bootstrap-t) intervals, clipped to the score's bounds.

  Args:
    score: over clusters.
    weights_ZU: from `resample`.
    level: coverage aimed at.
  """
  return _by_columns(_studentised, score, weights_ZU, level)


def bca(
  score: estimand_lib.Estimand,
  weights_ZU: np.ndarray,
  level: float = LEVEL,
) -> Intervals:
  """Bias-corrected and accelerated intervals (Efron 1987).

  Not the default: see the module's text. Kept for comparison with other
  software; the acceleration is from the jackknife over clusters.
  """
  return _by_columns(_bca, score, weights_ZU, level)


def _by_columns(method, score, weights_ZU, level) -> Intervals:
  n_clusters, n_columns = score.shape
  if n_clusters == 1:
    nan_X = np.full(n_columns, np.nan)
    return Intervals(score.value(), nan_X, nan_X, nan_X)
  parts = [
    _guarded(method, score.columns(slice(at, at + _COLUMNS)), weights_ZU, level)
    for at in range(0, n_columns, _COLUMNS)
  ]
  return Intervals(
    *(
      np.concatenate([getattr(part, field.name) for part in parts])
      for field in dataclasses.fields(Intervals)
    )
  )


def _guarded(method, score, weights_ZU, level) -> Intervals:
  """Applies the method and puts the degenerate cases right."""
  value_X = score.value()
  value_ZX = score.value(weights_ZU)
  with np.errstate(divide='ignore', invalid='ignore'):
    se_X, low_X, high_X = method(score, weights_ZU, value_X, value_ZX, level)
  low_X, high_X = (np.clip(end_X, *score.bounds) for end_X in (low_X, high_X))
  alike_X = se_X <= _ROUNDING * np.abs(value_X)
  low_X, high_X = (np.where(alike_X, value_X, e) for e in (low_X, high_X))
  finite_X = np.isfinite(value_ZX).all(0) & np.isfinite(value_X)
  low_X, high_X, se_X = (
    np.where(finite_X, x, np.nan) for x in (low_X, high_X, se_X)
  )
  return Intervals(value_X, low_X, high_X, se_X)


def _studentised(score, weights_ZU, value_X, value_ZX, level):
  n_clusters = weights_ZU.shape[1]
  even_1U = np.full((1, n_clusters), 1 / n_clusters)
  variance_X = _variance(score, even_1U)[0]
  variance_ZX = _variance(score, weights_ZU)
  variance_ZX[variance_ZX <= _ROUNDING * variance_X] = 0.0
  se_X = np.sqrt(np.maximum(variance_X, 0.0) / (n_clusters - 1))
  t_ZX = (value_ZX - value_X) / np.sqrt(variance_ZX / (n_clusters - 1))
  t_ZX[np.isnan(t_ZX)] = 0.0  # 0/0: the resample is the original, or constant
  tail = (1 - level) / 2
  low_t_X = np.quantile(t_ZX, tail, axis=0, method='inverted_cdf')
  high_t_X = -np.quantile(-t_ZX, tail, axis=0, method='inverted_cdf')
  return se_X, value_X - se_X * high_t_X, value_X - se_X * low_t_X


def _variance(score, weights_ZU) -> np.ndarray:
  """[Z, X] variance over clusters of the score's linear part.

  For a ratio r = n/d the linear part of cluster u is (num_u - r den_u) / d.
  With a_u = num_u - r0 den_u at the unweighted r0 and delta = r - r0 it is
  (a_u - delta den_u) / d: products of a and den do not depend on the weights.
  """
  halves = []
  for ratio in (score.plus, score.minus):
    if ratio is None:
      continue
    r0_X = estimand_lib.Estimand(ratio).value()
    if ratio.den_UX is None:
      a_UX, den_UX = ratio.num_UX - r0_X, 1.0
    else:
      a_UX, den_UX = ratio.num_UX - r0_X * ratio.den_UX, ratio.den_UX
    halves.append((a_UX, den_UX, ratio.value(weights_ZU) - r0_X))

  def mean(x_UX):
    return x_UX if isinstance(x_UX, float) else weights_ZU @ x_UX

  def product(left, right):
    (a, d, delta), (b, e, epsilon) = left, right
    cross = (
      mean(a * b)
      - epsilon * mean(a * e)
      - delta * mean(d * b)
      + delta * epsilon * mean(d * e)
    )
    return cross / (mean(d) * mean(e))

  variance_ZX = product(halves[0], halves[0])
  if len(halves) == 2:
    variance_ZX = (
      variance_ZX
      + product(halves[1], halves[1])
      - 2 * product(halves[0], halves[1])
    )
  return variance_ZX


def _bca(score, weights_ZU, value_X, value_ZX, level):
  n_clusters = weights_ZU.shape[1]
  n_resamples = len(value_ZX)
  even_1U = np.full((1, n_clusters), 1 / n_clusters)
  se_X = np.sqrt(
    np.maximum(_variance(score, even_1U)[0], 0.0) / (n_clusters - 1)
  )
  leave_UU = (1 - np.eye(n_clusters)) / (n_clusters - 1)
  jack_UX = score.value(leave_UU)
  spread_UX = jack_UX.mean(0) - jack_UX
  acceleration_X = (spread_UX**3).sum(0) / (6 * (spread_UX**2).sum(0) ** 1.5)
  below_X = (value_ZX < value_X).mean(0) + (value_ZX <= value_X).mean(0)
  bias_X = special.ndtri(below_X / 2)
  ends = []
  ordered_ZX = np.sort(value_ZX, axis=0)
  for tail in ((1 - level) / 2, (1 + level) / 2):
    z_X = bias_X + special.ndtri(tail)
    at_X = special.ndtr(bias_X + z_X / (1 - acceleration_X * z_X))
    at_X = np.nan_to_num(at_X, nan=0.5) * (n_resamples - 1)
    floor_X = np.floor(at_X).astype(int)
    next_X = np.minimum(floor_X + 1, n_resamples - 1)
    columns_X = np.arange(ordered_ZX.shape[1])
    below, above = ordered_ZX[floor_X, columns_X], ordered_ZX[next_X, columns_X]
    ends.append(below + (at_X - floor_X) * (above - below))
  return se_X, ends[0], ends[1]
