"""A score as a smooth function of means over clusters.

Every normalisation of RAM is a mean, a ratio of means, or the difference of
two of these (calibration):

    mean_u num                      mass, excess
    mean_u num / mean_u den         share, lift

Written like this once, the point estimate, the bootstrap, the split halves
and the subsamples are all the same few matrix products.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Ratio:
  """mean(num) / mean(den), column by column.

  Attributes:
    num_UX: float64 [U, X].
    den_UX: float64 [U, X], or None for 1 (a plain mean).
  """

  num_UX: np.ndarray
  den_UX: np.ndarray | None = None

  def value(self, weights_ZU: np.ndarray) -> np.ndarray:
    """float64 [Z, X]; not finite where the weighted mean of den is 0."""
    num_ZX = weights_ZU @ self.num_UX
    if self.den_UX is None:
      return num_ZX
    with np.errstate(divide='ignore', invalid='ignore'):
      return num_ZX / (weights_ZU @ self.den_UX)

  def columns(self, part: slice) -> Ratio:
    """The same of some columns."""
    den_UX = None if self.den_UX is None else self.den_UX[:, part]
    return Ratio(self.num_UX[:, part], den_UX)

  def group(self, group_U: np.ndarray) -> Ratio:
    """The same with the units of a group averaged into one."""
    den_UX = None if self.den_UX is None else means(self.den_UX, group_U)
    return Ratio(means(self.num_UX, group_U), den_UX)


@dataclasses.dataclass(frozen=True, eq=False)
class Estimand:
  """plus - minus.

  Attributes:
    plus: the score.
    minus: what is subtracted, None for nothing; over the same units.
    bounds: (least, greatest) value that the score can take.
  """

  plus: Ratio
  minus: Ratio | None = None
  bounds: tuple[float, float] = (-np.inf, np.inf)

  @property
  def shape(self) -> tuple[int, int]:
    """(units, columns)."""
    n_units, n_columns = self.plus.num_UX.shape
    return n_units, n_columns

  def value(self, weights_ZU: np.ndarray | None = None) -> np.ndarray:
    """The score.

    Args:
      weights_ZU: float [Z, U], rows sum to 1; None weighs units alike.

    Returns:
      float64 [Z, X], or [X] without weights. Not finite where a denominator
      is 0.
    """
    if weights_ZU is None:
      n_units = self.shape[0]
      return self.value(np.full((1, n_units), 1 / n_units))[0]
    value_ZX = self.plus.value(weights_ZU)
    if self.minus is not None:
      value_ZX = value_ZX - self.minus.value(weights_ZU)
    return value_ZX

  def columns(self, part: slice) -> Estimand:
    """The same of some columns."""
    minus = None if self.minus is None else self.minus.columns(part)
    return dataclasses.replace(self, plus=self.plus.columns(part), minus=minus)

  def group(self, group_U: np.ndarray) -> Estimand:
    """The same over groups of units, e.g. examples to clusters.

    Args:
      group_U: int [U], group of each unit, every group 0..max present.
    """
    minus = None if self.minus is None else self.minus.group(group_U)
    return dataclasses.replace(self, plus=self.plus.group(group_U), minus=minus)


def means(values_UX: np.ndarray, group_U: np.ndarray) -> np.ndarray:
  """float64 mean over the units of each group.

  Args:
    values_UX: [U, ...].
    group_U: int [U], every group 0..max present.

  Returns:
    float64 [groups, ...].
  """
  order = np.argsort(group_U, kind='stable')
  sizes = np.bincount(group_U)
  starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
  sums = np.add.reduceat(
    np.asarray(values_UX, np.float64)[order], starts, axis=0
  )
  return sums / sizes.reshape(-1, *[1] * (sums.ndim - 1))


def group_weights(group_E: np.ndarray) -> np.ndarray:
  """float64 [E], weights of examples in a mean over groups of group means."""
  sizes = np.bincount(group_E)
  present = np.count_nonzero(sizes)
  return 1.0 / (present * sizes[group_E])
