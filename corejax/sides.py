"""Rankings as they are compared: what ranks the heads, and drawing it again.

Clusters are what is drawn again. Rankings that hold the same clusters (query
sets of one run, models on the same data) are drawn jointly, others apart.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import zlib

import numpy as np

from corejax import ram as ram_lib
from corejax import scores as scores_lib
from corejax.stats import bootstrap as bootstrap_lib
from corejax.stats import estimand as estimand_lib

_PLAIN = ram_lib.Options()


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
  """One ranking, as it can be drawn again.

  Attributes:
    name: of the ranking.
    n_layers, n_heads: L and N.
    score: what ranks the heads (flat), over clusters.
    clusters: U names; the same name in two rankings is the same cluster.
    n_examples: how many stand behind it.
    mass: what sparsity is measured of, >= 0; None if there is no such thing.
    aligned: False if the columns do not share their clusters, so that nothing
      can be drawn again.
  """

  name: str
  n_layers: int
  n_heads: int
  score: estimand_lib.Estimand
  clusters: tuple[str, ...]
  n_examples: int
  mass: estimand_lib.Estimand | None
  aligned: bool = True

  @property
  def shape(self) -> tuple[int, int]:
    return self.n_layers, self.n_heads

  @property
  def score_LN(self) -> np.ndarray:
    """float64 [L, N]."""
    return self.score.value().reshape(self.shape)


def of_scores(
  name: str,
  scores: scores_lib.Scores,
  options: ram_lib.Options = _PLAIN,
  cluster_keys: Sequence[str] | None = None,
) -> Side:
  """A ranking by RAM.

  Args:
    name: of the ranking.
    scores: of one pass over the data.
    options: what is called the score; the mass is the plain one of its rows.
    cluster_keys: E names of clusters that tell them apart across data sets;
      None takes scores.clusters.

  Raises:
    UserError: see ram.measure.
  """
  keys = scores.clusters if cluster_keys is None else cluster_keys
  ram = ram_lib.measure(dataclasses.replace(scores, clusters=keys), options)
  return Side(
    name=name,
    n_layers=scores.n_layers,
    n_heads=scores.n_heads,
    score=ram.score.group(ram.cluster_E),
    clusters=ram.cluster_names,
    n_examples=len(ram.used_E),
    mass=ram.mass.group(ram.cluster_E),
  )


def of_samples(name: str, value_ELN: np.ndarray, aligned: bool = True) -> Side:
  """A ranking by the mean of scores per sample, each a cluster of its own.

  Args:
    name: of the ranking.
    value_ELN: float; nan is no score.
    aligned: is row e the same sample for every head? (Without nan it is asked
      too.)
  """
  value_EX = np.asarray(value_ELN, np.float64).reshape(len(value_ELN), -1)
  known_EX = np.isfinite(value_EX)
  score = estimand_lib.Estimand(
    estimand_lib.Ratio(
      np.where(known_EX, value_EX, 0.0),
      None if known_EX.all() else known_EX.astype(np.float64),
    )
  )
  return Side(
    name=name,
    n_layers=value_ELN.shape[1],
    n_heads=value_ELN.shape[2],
    score=score,
    clusters=tuple(f'{name}\0{e}' for e in range(len(value_EX))),
    n_examples=len(value_EX),
    mass=score if (value_EX[known_EX] >= 0).all() else None,
    aligned=aligned,
  )


def of_values(
  name: str, value_ELN: np.ndarray, clusters: Sequence[str]
) -> Side:
  """A ranking by the mean over clusters of a value per example and head.

  Args:
    name: of the ranking.
    value_ELN: float; an example with nan, which says nothing, is left out.
    clusters: E names.

  Raises:
    ValueError: no example says anything.
  """
  value_EX = np.asarray(value_ELN, np.float64).reshape(len(value_ELN), -1)
  known_E = np.isfinite(value_EX).all(1)
  if not known_E.any():
    raise ValueError(f'of_values: {name}: no example has a value')
  names, cluster_E = np.unique(
    np.asarray(clusters)[known_E], return_inverse=True
  )
  each = estimand_lib.Estimand(estimand_lib.Ratio(value_EX[known_E]))
  return Side(
    name=name,
    n_layers=value_ELN.shape[1],
    n_heads=value_ELN.shape[2],
    score=each.group(cluster_E),
    clusters=tuple(str(cluster) for cluster in names),
    n_examples=int(known_E.sum()),
    mass=None,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
  """A ranking with its resamples.

  Attributes:
    side: the ranking.
    weights_ZU: float64, rows sum to 1, or are nan where none of its clusters
      was drawn; no rows if nothing can be drawn again.
    known_Z: bool, rows that are not nan.
    score_X: float64, as measured.
    score_ZX: float64, of the resamples.
  """

  side: Side
  weights_ZU: np.ndarray
  known_Z: np.ndarray
  score_X: np.ndarray
  score_ZX: np.ndarray

  @classmethod
  def of(cls, side: Side, weights_ZU: np.ndarray) -> Drawn:
    """Scores every resample."""
    return cls(
      side=side,
      weights_ZU=weights_ZU,
      known_Z=~np.isnan(weights_ZU[:, 0]),
      score_X=side.score.value(),
      score_ZX=side.score.value(weights_ZU),
    )


def draw(sides: Sequence[Side], n_resamples: int, seed: int) -> list[Drawn]:
  """Resamples of each ranking's clusters, joint where they share some.

  Clusters of rankings that are linked by shared ones are drawn from together;
  a ranking then has of each resample those that are its own.

  Args:
    sides: the rankings.
    n_resamples: 0 draws none.
    seed: same seed, same resamples.
  """
  weights = [np.empty((0, len(side.clusters))) for side in sides]
  able = [
    s
    for s, side in enumerate(sides)
    if side.aligned and len(side.clusters) > 1 and n_resamples > 0
  ]
  for group in _linked([(s, set(sides[s].clusters)) for s in able]):
    names = sorted(set().union(*(sides[s].clusters for s in group)))
    place = {name: u for u, name in enumerate(names)}
    # By what is drawn, not by its place, so that order changes nothing; and
    # data sets of as many clusters must not be drawn alike.
    own_seed = zlib.crc32('\n'.join(names).encode()) + seed
    weights_ZU = bootstrap_lib.resample(len(names), n_resamples, own_seed)
    for s in group:
      own_ZU = weights_ZU[:, [place[name] for name in sides[s].clusters]]
      total_Z1 = own_ZU.sum(1, keepdims=True)
      weights[s] = np.divide(
        own_ZU, total_Z1, out=np.full_like(own_ZU, np.nan), where=total_Z1 > 0
      )
  return [Drawn.of(side, each) for side, each in zip(sides, weights)]


def _linked(items: list[tuple[int, set[str]]]) -> list[list[int]]:
  """Groups of items that share members, directly or through others."""
  groups: list[tuple[list[int], set[str]]] = []
  for index, members in items:
    apart = []
    joined, union = [index], set(members)
    for group, known in groups:
      if known & union:
        joined, union = group + joined, union | known
      else:
        apart.append((group, known))
    groups = [*apart, (joined, union)]
  return [group for group, _ in groups]
