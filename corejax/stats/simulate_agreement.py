"""Do the intervals of agreement cover? Measured by simulation.

Two rankings of X heads; true scores are lognormal and correlate by rho in
their logarithm, examples scatter around them lognormally. What an interval is
to hold is the agreement that such data show on average, itself simulated.
`table()` prints what README.md in this folder shows.
"""

import numpy as np

from corejax.stats import agreement
from corejax.stats import bootstrap
from corejax.stats import reliability

_SCALE = 0.02
_BETWEEN = 1.2  # sd of the heads' log scores
_WITHIN = 1.0  # sd of a cluster's log score around its head's
CLUSTERS = (20, 50, 200)
CORRELATIONS = (0.0, 0.7, 0.98)
IN_USE, PERCENTILE = 'in use', 'percentile'
MEASURES = ('spearman', 'overlap', 'rbo')


def coverage(
  n_heads: int,
  n_clusters: int,
  correlation: float,
  *,
  top: int,
  n_simulations: int = 200,
  n_resamples: int = 300,
  seed: int = 0,
) -> dict[str, dict[str, float]]:
  """Share of 95% intervals that hold the expected agreement.

  Args:
    n_heads: X.
    n_clusters: of each of the two data sets.
    correlation: of the true log scores.
    top: k of the overlap.
    n_simulations: pairs of data sets that intervals are made for.
    n_resamples: of each interval.
    seed: same seed, same result.

  Returns:
    Method (IN_USE or PERCENTILE, for comparison) -> measure -> share.
  """
  rng = np.random.default_rng([seed, n_heads, n_clusters])
  first_X, other_X = rng.standard_normal((2, n_heads))
  second_X = correlation * first_X + np.sqrt(1 - correlation**2) * other_X
  true_2X = _SCALE * np.exp(_BETWEEN * np.stack([first_X, second_X]))

  def draw():
    noise = _WITHIN * rng.standard_normal((2, n_clusters, n_heads))
    return true_2X[:, None] * np.exp(noise - _WITHIN**2 / 2)

  measures = {
    'spearman': reliability.spearman,
    'overlap': lambda left, right: reliability.top_overlap(left, right, top),
    'rbo': reliability.rbo,
  }
  means = np.stack([draw().mean(1) for _ in range(3 * n_simulations)])
  truth = {
    name: measure(means[:, 0], means[:, 1]).mean()
    for name, measure in measures.items()
  }
  hits = {way: dict.fromkeys(measures, 0) for way in (IN_USE, PERCENTILE)}
  for simulation in range(n_simulations):
    data_2UX = draw()
    left_ZX, right_ZX = (
      np.vstack([data_UX.mean(0), weights_ZU @ data_UX])
      for data_UX, weights_ZU in zip(
        data_2UX,
        (
          bootstrap.resample(n_clusters, n_resamples, 2 * simulation + side)
          for side in (0, 1)
        ),
      )
    )
    for name, measure in measures.items():
      value_Z = measure(left_ZX, right_ZX)
      tails = np.quantile(value_Z[1:], [0.025, 0.975])
      intervals = {PERCENTILE: (float(tails[0]), float(tails[1]))}
      if name == 'spearman':
        intervals[IN_USE] = agreement.correlation_interval(
          value_Z[0], value_Z[1:], n_clusters, n_heads
        )
      else:
        intervals[IN_USE] = agreement.share_interval(
          value_Z[0],
          value_Z[1:],
          n_clusters,
          step=1 / top if name == 'overlap' else 0.0,
        )
      for way, (low, high) in intervals.items():
        hits[way][name] += bool(low - 1e-9 <= truth[name] <= high + 1e-9)
  return {
    way: {name: count / n_simulations for name, count in found.items()}
    for way, found in hits.items()
  }


def table(n_simulations: int = 200) -> str:
  """Coverage of the nominal 95% intervals, in percent, as Markdown."""
  head = ' | '.join(
    f'{clusters}, {measure}' for clusters in CLUSTERS for measure in MEASURES
  )
  lines = [
    f'| heads | true correlation | method | {head} |',
    '|---:|---:|---|' + '---:|' * len(CLUSTERS) * len(MEASURES),
  ]
  for n_heads, top in ((64, 3), (256, 13)):
    for correlation in CORRELATIONS:
      found = [
        coverage(
          n_heads, clusters, correlation, top=top, n_simulations=n_simulations
        )
        for clusters in CLUSTERS
      ]
      for way in (IN_USE, PERCENTILE):
        cells = ' | '.join(
          f'{100 * ways[way][name]:.0f}' for ways in found for name in MEASURES
        )
        lines.append(f'| {n_heads} | {correlation:g} | {way} | {cells} |')
  return '\n'.join(lines)
