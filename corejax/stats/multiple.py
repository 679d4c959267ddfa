"""False discovery rate over many heads."""

import numpy as np


def benjamini_hochberg(p_X: np.ndarray) -> np.ndarray:
  """q values: the least FDR at which each hypothesis would be rejected.

  Args:
    p_X: float [X] in [0, 1]; nan is no test and does not count.

  Returns:
    float64 [X], nan where p is.
  """
  p_X = np.asarray(p_X, np.float64)
  q_X = np.full(p_X.shape, np.nan)
  tested = np.flatnonzero(~np.isnan(p_X))
  if not len(tested):
    return q_X
  order = tested[np.argsort(p_X[tested], kind='stable')]
  scaled = p_X[order] * len(order) / np.arange(1, len(order) + 1)
  q_X[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
  return q_X


def least_discoveries(n_tests: int, n_permutations: int, q: float) -> int:
  """How many heads must reach the smallest p before any can have q < `q`.

  The smallest p of n permutations is 1 / (n + 1); with k heads there, BH
  gives them n_tests / (k (n + 1)).
  """
  return int(np.floor(n_tests / (q * (n_permutations + 1)))) + 1
