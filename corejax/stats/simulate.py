"""Do the intervals cover? Measured by simulation, on the hard cases.

Scores are skewed and close to 0, accuracies close to 1; clusters hold 1 to 8
examples that resemble one another. `table()` prints what README.md in this
folder shows; nothing here needs a model.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from corejax.stats import accuracy
from corejax.stats import bootstrap
from corejax.stats import estimand as estimand_lib

_MAX_CLUSTER = 8
_COLUMNS = 250  # simulated heads that share cluster sizes and resamples


@dataclasses.dataclass(frozen=True)
class Shape:
  """A distribution of masses.

  Attributes:
    text: for the table.
    draw: (rng, cluster_E, X) -> float64 [E, X].
    mean: the true cluster mean.
  """

  text: str
  draw: Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
  mean: float


def lognormal(sigma: float, scale: float = 0.02) -> Shape:
  """exp(normal) with total sd `sigma` in the log, 60% of its variance between
  clusters."""

  def draw(rng, cluster_E, n_columns):
    n_clusters = cluster_E.max() + 1
    between = rng.standard_normal((n_clusters, n_columns))[cluster_E]
    within = rng.standard_normal((len(cluster_E), n_columns))
    return scale * np.exp(
      sigma * (np.sqrt(0.6) * between + np.sqrt(0.4) * within)
    )

  return Shape(
    f'lognormal, sigma {sigma:g}', draw, scale * float(np.exp(sigma**2 / 2))
  )


def beta(a: float, b: float, concentration: float = 10.0) -> Shape:
  """Clusters' levels from Beta(a, b), examples beta around their level."""

  def draw(rng, cluster_E, n_columns):
    level = rng.beta(a, b, (cluster_E.max() + 1, n_columns))
    level = np.clip(level, 1e-12, 1 - 1e-12)[cluster_E]
    return rng.beta(concentration * level, concentration * (1 - level))

  return Shape(f'beta({a:g}, {b:g})', draw, a / (a + b))


SHAPES = (
  beta(2, 2),
  beta(0.5, 5),
  beta(0.2, 20),
  lognormal(1.0),
  lognormal(1.5),
)
ACCURACIES = (0.80, 0.95, 0.98, 0.995)
CLUSTERS = (5, 20, 50, 200)


def cluster_sizes(rng: np.random.Generator, n_clusters: int) -> np.ndarray:
  """int [E], cluster of each example; 1 to 8 examples a cluster."""
  sizes = rng.integers(1, _MAX_CLUSTER + 1, n_clusters)
  return np.repeat(np.arange(n_clusters), sizes)


def score_coverage(
  shape: Shape,
  n_clusters: int,
  *,
  ratio: bool = False,
  method: Callable[..., bootstrap.Intervals] = bootstrap.studentised,
  n_simulations: int = 2000,
  n_resamples: int = 1000,
  seed: int = 0,
) -> float:
  """Share of 95% intervals that hold the true score.

  Args:
    shape: of the masses.
    n_clusters: clusters of each simulated data set.
    ratio: the score is mass / (mass + other), both of the same shape and
      independent, whose ratio of means is 1/2; else the mean mass.
    method: `bootstrap.studentised` or `bootstrap.bca`.
    n_simulations: rounded up to a multiple of 250.
    n_resamples: of each interval.
    seed: same seed, same result.
  """
  hits = []
  for part in range(-(-n_simulations // _COLUMNS)):
    rng = np.random.default_rng([seed, n_clusters, part])
    cluster_E = cluster_sizes(rng, n_clusters)
    mass_EX = shape.draw(rng, cluster_E, _COLUMNS)
    total_EX = None
    truth = shape.mean
    if ratio:
      total_EX = mass_EX + shape.draw(rng, cluster_E, _COLUMNS)
      truth = 0.5
    score = estimand_lib.Estimand(estimand_lib.Ratio(mass_EX, total_EX))
    weights_ZU = bootstrap.resample(
      n_clusters, n_resamples, int(rng.integers(2**31))
    )
    interval = method(score.group(cluster_E), weights_ZU)
    hits.append((interval.low <= truth) & (truth <= interval.high))
  return float(np.mean(hits))


def accuracy_coverage(
  p: float,
  n_clusters: int,
  *,
  paired: Callable[..., tuple[float, float]] | None = None,
  icc: float = 0.3,
  n_simulations: int = 2000,
  seed: int = 0,
) -> float:
  """Share of 95% intervals that hold the true accuracy, or difference.

  Args:
    p: accuracy; clusters' own levels are beta with this mean.
    n_clusters: clusters of each simulated data set.
    paired: an interval of `accuracy` for the difference to a second accuracy
      instead, which loses 5% of what was right and gains 5% of what was
      wrong, cluster by cluster.
    icc: correlation of two examples of a cluster.
    n_simulations: how many.
    seed: same seed, same result.
  """
  a, b = (share * (1 - icc) / icc for share in (p, 1 - p))
  change = 0.05
  hits = 0
  for simulation in range(n_simulations):
    rng = np.random.default_rng([seed, n_clusters, simulation])
    cluster_E = cluster_sizes(rng, n_clusters)
    level_E = rng.beta(a, b, n_clusters)[cluster_E]
    before_E = rng.random(len(cluster_E)) < level_E
    if paired is not None:
      odds = (1 - icc) / icc
      flip_U = rng.beta(change * odds, (1 - change) * odds, n_clusters)
      after_E = before_E ^ (rng.random(len(cluster_E)) < flip_U[cluster_E])
      estimate = accuracy.difference(
        after_E, before_E, cluster_E, interval=paired
      )
      truth = change * (1 - 2 * p)
    else:
      estimate = accuracy.wilson(before_E, cluster_E)
      truth = p
    hits += estimate.low <= truth <= estimate.high
  return hits / n_simulations


def table(n_simulations: int = 4000) -> str:
  """Coverage of the nominal 95% intervals, in percent, as Markdown."""
  lines = [
    '| interval of | method | ' + ' | '.join(f'{c}' for c in CLUSTERS) + ' |',
    '|---|---|' + '---:|' * len(CLUSTERS),
  ]

  def row(what, method, cover):
    cells = (f'{100 * cover(c):.1f}' for c in CLUSTERS)
    lines.append(f'| {what} | {method} | ' + ' | '.join(cells) + ' |')

  for name, method in (
    ('studentised', bootstrap.studentised),
    ('BCa', bootstrap.bca),
  ):
    for shape in SHAPES:
      for ratio in (False, True):
        row(
          f'{"share" if ratio else "mass"}, {shape.text}',
          name,
          lambda c, shape=shape, ratio=ratio, method=method: score_coverage(
            shape, c, ratio=ratio, method=method, n_simulations=n_simulations
          ),
        )
  for name, paired in (
    ('Wilson', None),
    ('Newcombe', accuracy.newcombe_interval),
    ('Agresti-Min', accuracy.agresti_min_interval),
  ):
    for p in ACCURACIES:
      row(
        f'{"difference from" if paired else "accuracy"} {p:g}',
        name,
        lambda c, p=p, paired=paired: accuracy_coverage(
          p, c, paired=paired, n_simulations=n_simulations
        ),
      )
  return '\n'.join(lines)
