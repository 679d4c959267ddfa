"""Competing rankings from the same pass, to judge RAM by.

    written             norm of what the head writes to the residual stream
    contribution        mass on the evidence times that norm, per example: the
                        value-weighted attention
    gate_gradient       d log p(forced answer) / d gate, at the intact model
    gate_gradient_abs   its absolute value, per example

Each is the mean over clusters of the mean over a cluster's examples, over the
examples and (but for the gradients) the query set of the ranking.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from corejax import ram as ram_lib
from corejax import regions
from corejax import scores as scores_lib
from corejax import selection as selection_lib
from corejax.stats import estimand as estimand_lib
from corejax.stats import reliability

NAMES = ('written', 'contribution', 'gate_gradient', 'gate_gradient_abs')


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How far another ranking agrees with this one.

  Attributes:
    spearman: rank correlation with the score.
    overlap: share of the ranking's top set that is in the other's; nan if the
      top set is empty.
  """

  spearman: float
  overlap: float


def per_example(scores: scores_lib.Scores, query: str) -> dict[str, np.ndarray]:
  """Name -> float64 [E, L, N] of those of NAMES that were measured.

  Args:
    scores: of one pass over the data.
    query: query set.
  """
  found = {}
  if scores.written_ELNQ is not None:
    q = regions.QUERY_SETS.index(query)
    written_ELN = scores.written_ELNQ[..., q].astype(np.float64)
    mass_ELN = scores.mass_ELNQR[:, :, :, q, regions.EVIDENCE]
    found['written'] = written_ELN
    found['contribution'] = mass_ELN * written_ELN
  if scores.gradient_ELN is not None:
    gradient_ELN = scores.gradient_ELN.astype(np.float64)
    found['gate_gradient'] = gradient_ELN
    found['gate_gradient_abs'] = np.abs(gradient_ELN)
  return found


def measure(
  scores: scores_lib.Scores, ram: ram_lib.Ram
) -> dict[str, np.ndarray]:
  """Name -> float64 [L, N] of each of NAMES; nan where it was not measured.

  Args:
    scores: of one pass over the data.
    ram: which examples take part, and the query set.
  """
  shape = scores.n_layers, scores.n_heads
  weights_E = estimand_lib.group_weights(ram.cluster_E)
  found = per_example(scores, ram.options.query)
  return {
    name: np.tensordot(weights_E, found[name][ram.used_E], 1)
    if name in found
    else np.full(shape, np.nan)
    for name in NAMES
  }


def compare(
  rankings: Mapping[str, np.ndarray],
  score_LN: np.ndarray,
  rule: selection_lib.Selection,
) -> dict[str, Agreement]:
  """Name -> agreement, of the rankings that were measured.

  Args:
    rankings: name -> float64 [L, N], all nan if not measured.
    score_LN: what the heads are ranked by.
    rule: which heads are the top set of either.
  """
  own_LN = rule.mask(score_LN)
  return {
    name: Agreement(
      float(reliability.spearman(score_LN.ravel(), value_LN.ravel())[0]),
      overlap(own_LN, rule.mask(value_LN)),
    )
    for name, value_LN in rankings.items()
    if not np.isnan(value_LN).all()
  }


def overlap(own_LN: np.ndarray, other_LN: np.ndarray) -> float:
  """Share of the heads of one set that are in the other; nan if there are none.

  Args:
    own_LN, other_LN: bool [L, N].
  """
  n_own = int(own_LN.sum())
  return float((own_LN & other_LN).sum() / n_own) if n_own else float('nan')
