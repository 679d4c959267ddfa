"""What one ranking looks like, in numbers that models of any size share.

How few heads hold the mass (Gini, share of the heads that hold half of it,
effective number), and at which relative depth they are.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from corejax import sides as sides_lib
from corejax.stats import agreement
from corejax.stats import bootstrap as bootstrap_lib
from corejax.stats import estimand as estimand_lib
from corejax.stats import sparsity

N_BINS = sparsity.N_BINS
GINI, HALF, EFFECTIVE = 'gini', 'half_share', 'effective_share'
DEPTH_MEAN, DEPTH_SHARE = 'depth_mean', 'depth_share'


@dataclasses.dataclass(frozen=True)
class Structure:
  """One number on the shape of one ranking; needs no second one.

  Attributes:
    ranking: its name.
    n_layers, n_heads: its shape.
    measure: 'gini', 'half_share' (share of the heads that hold half of the
      mass), 'effective_share' (effective number over all heads), 'depth_mean'
      (mass of a head) or 'depth_share' (share of all mass).
    depth: middle of the bin of relative depth, in (0, 1); nan for the others.
    value, low, high: with its 95% interval.
    n, n_clusters: examples and clusters.
  """

  ranking: str
  n_layers: int
  n_heads: int
  measure: str
  depth: float
  value: float
  low: float
  high: float
  n: int
  n_clusters: int


def measure(drawn: sides_lib.Drawn) -> list[Structure]:
  """All of them; none of a ranking without a mass, or without that of a head.

  Args:
    drawn: the ranking with its resamples.
  """
  side = drawn.side
  if side.mass is None:
    return []
  mass_X = side.mass.value()
  if not np.isfinite(mass_X).all():
    return []
  n_heads = len(mass_X)
  n_clusters = len(side.clusters)
  weights_ZU = drawn.weights_ZU[drawn.known_Z]
  mass_ZX = side.mass.value(weights_ZU)
  mass_ZX = mass_ZX[np.isfinite(mass_ZX).all(1)]
  rows = []

  def add(measure, value, low, high, depth=math.nan):
    rows.append(
      Structure(
        side.name,
        *side.shape,
        measure,
        depth,
        float(value),
        float(low),
        float(high),
        side.n_examples,
        n_clusters,
      )
    )

  for name, of, step in (
    (GINI, sparsity.gini, 0.0),
    (HALF, lambda x: sparsity.half_count(x) / n_heads, 1 / n_heads),
    (EFFECTIVE, lambda x: sparsity.effective_number(x) / n_heads, 0.0),
  ):
    value = of(mass_X)
    value_Z = np.array([of(x) for x in mass_ZX])
    interval = agreement.share_interval(value, value_Z, n_clusters, step)
    add(name, value, *interval)
  for name, part in ((DEPTH_MEAN, False), (DEPTH_SHARE, True)):
    by_depth = _by_depth(side.mass, side.shape, part)
    low_B = high_B = np.full(N_BINS, np.nan)
    if len(weights_ZU) and by_depth.shape[0] == n_clusters:
      interval = bootstrap_lib.studentised(by_depth, weights_ZU)
      low_B, high_B = interval.low, interval.high
    for b, value in enumerate(by_depth.value()):
      add(name, value, low_B[b], high_B[b], (b + 0.5) / N_BINS)
  return rows


def depth_overlap(n_layers: int, n_bins: int = N_BINS) -> np.ndarray:
  """float64 [L, bins], share of each layer that lies in each bin of the depth.

  A layer is the interval [l/L, (l+1)/L], so models of any depth compare: of 4
  layers and 10 bins the third bin holds half of layer 0 and half of layer 1.
  """
  edge_L = np.arange(n_layers + 1) / n_layers
  edge_B = np.arange(n_bins + 1) / n_bins
  low_LB = np.maximum(edge_L[:-1, None], edge_B[None, :-1])
  high_LB = np.minimum(edge_L[1:, None], edge_B[None, 1:])
  return np.maximum(high_LB - low_LB, 0.0) * n_layers


def _by_depth(
  mass: estimand_lib.Estimand, shape: tuple[int, int], part: bool
) -> estimand_lib.Estimand:
  """Mass by bin of the depth: of a head, or as a share of all mass."""
  n_layers, n_heads = shape
  ratio = mass.plus
  into_XB = np.repeat(depth_overlap(n_layers), n_heads, axis=0)
  if ratio.den_UX is not None:
    # Heads with samples of their own: each one's mean, over all samples.
    ratio = estimand_lib.Ratio(mass.value()[None])
  if part:
    return estimand_lib.Estimand(
      estimand_lib.Ratio(
        ratio.num_UX @ into_XB,
        np.repeat(ratio.num_UX.sum(1, keepdims=True), N_BINS, axis=1),
      ),
      bounds=(0.0, 1.0),
    )
  heads_B = into_XB.sum(0)
  return estimand_lib.Estimand(
    estimand_lib.Ratio(ratio.num_UX @ into_XB / heads_B),
    bounds=(0.0, math.inf),
  )
