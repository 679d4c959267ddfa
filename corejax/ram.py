"""Retrieval Attention Mass of every head, in all its normalisations.

With Ev an example's evidence tokens, Vis its visual tokens and mass_R what the
rows of the query set read from region R (post-softmax, over all keys):

    mass     E[mass_Ev]                                  `ram` in every table
    share    E[mass_Ev] / E[mass_Vis]
    lift     E[mass_Ev] / E[mass_Vis |Ev|/|Vis|]         even looking = 1
    excess   E[mass_Ev - mass_Vis |Ev|/|Vis|]            even looking = 0

E[.] is the mean over clusters of the mean over a cluster's examples. Where all
examples have the same |Ev|/|Vis| (chance), lift is share / chance. Two
options change the score, never `ram`:

    contrast     mass_Ev is replaced by mass_Ev/|Ev| - mass_D/|D|, D the largest
                 distractor: per token, or size would decide. The denominator
                 of lift is then E[mass_Vis / |Vis|]; excess equals mass, as
                 what is subtracted on both sides cancels.
    calibrate    minus the same score of a content-free question

An example takes part if the query set has rows in it, if it is answered right
(correct_only) and if it has a distractor (contrast).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import numpy as np

from corejax import describe
from corejax import errors
from corejax import regions
from corejax import scores as scores_lib
from corejax.stats import estimand as estimand_lib

NORMS = ('mass', 'share', 'lift', 'excess')
TOLERANCE = 1e-3  # of masses and their sum, SCIENCE "Guards"

NO_ROWS = 'no row in the query set'
WRONG = 'answered wrong'
NO_DISTRACTOR = 'no distractor'

_BOUNDS = {
  'mass': (0.0, 1.0),
  'share': (0.0, 1.0),
  'lift': (0.0, np.inf),
  'excess': (-1.0, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """What is called the score.

  Attributes:
    query: query set, one of regions.QUERY_SETS.
    norm: one of NORMS.
    calibrate: subtract the score of a content-free question.
    contrast: evidence minus largest distractor, per token.
    correct_only: only examples whose teacher-forced answer is right.
  """

  query: str = 'question'
  norm: str = 'mass'
  calibrate: bool = False
  contrast: bool = False
  correct_only: bool = False

  def __post_init__(self):
    for name, known in (('query', regions.QUERY_SETS), ('norm', NORMS)):
      value = getattr(self, name)
      if value not in known:
        raise errors.UserError(
          f'{name} {value!r} is unknown; choose one of {", ".join(known)}'
        )

  @property
  def plain(self) -> bool:
    """Is the score the mass itself?"""
    return self.norm == 'mass' and not (self.calibrate or self.contrast)


@dataclasses.dataclass(frozen=True, eq=False)
class Ram:
  """What `measure` finds. E counts the examples that take part.

  Attributes:
    options: as asked.
    used_E: int [E], their indices in the Scores.
    dropped: reason -> examples left out for it (the first that applies).
    cluster_E: int [E], cluster of each, 0..U-1.
    cluster_names: U names, sorted.
    chance_E: float64 [E], |Ev| / |Vis|.
    value_ELN: float64, each example's own score; nan where it has none (a
      share or lift of a head that reads no visual token there).
    score_LN: float64, cluster-mean score; not finite where undefined.
    ram_LN: float64, cluster-mean mass on the evidence.
    region_LNR: float64, cluster-mean mass of each region.
    by_norm: norm -> float64 [L, N], plain score of each of NORMS (without
      contrast and calibration).
    score, mass: score and plain mass over **examples**, heads flat.
  """

  options: Options
  used_E: np.ndarray
  dropped: Mapping[str, int]
  cluster_E: np.ndarray
  cluster_names: tuple[str, ...]
  chance_E: np.ndarray
  value_ELN: np.ndarray
  score_LN: np.ndarray
  ram_LN: np.ndarray
  region_LNR: np.ndarray
  by_norm: Mapping[str, np.ndarray]
  score: estimand_lib.Estimand
  mass: estimand_lib.Estimand

  __repr__ = describe.fields

  @property
  def chance(self) -> float:
    """Cluster-mean |Ev| / |Vis|."""
    weights_E = estimand_lib.group_weights(self.cluster_E)
    return float(weights_E @ self.chance_E)


def check(mass_ELNQR: np.ndarray, ids, what: str = 'mass') -> None:
  """Refuses masses that no softmax makes.

  Args:
    mass_ELNQR: float32.
    ids: E example ids.
    what: for the message.

  Raises:
    UserError: a mass is nan, below 0 or above 1, or the masses of a query set
      that has rows do not sum to 1; names example, layer, head and value.
  """
  for e, mass_LNQR in enumerate(mass_ELNQR):
    # A set without rows is 0 at every head; one head of 0 alone is a fault.
    rows_Q = (mass_LNQR != 0).any(axis=(0, 1, 3))
    sum_LNQ = mass_LNQR.sum(-1, dtype=np.float64)
    bad_LNQ = ~((mass_LNQR >= -TOLERANCE) & (mass_LNQR <= 1 + TOLERANCE)).all(
      -1
    )
    off_LNQ = ~(np.abs(sum_LNQ - 1) <= TOLERANCE) & rows_Q
    if not (bad_LNQ.any() or off_LNQ.any()):
      continue
    layer, head, q = np.argwhere(bad_LNQ if bad_LNQ.any() else off_LNQ)[0]
    place = (
      f'{what} of example {ids[e]}, head {layer}-{head}, query set '
      f'{regions.QUERY_SETS[q]}'
    )
    if bad_LNQ.any():
      values_R = mass_LNQR[layer, head, q]
      bad_R = ~((values_R >= -TOLERANCE) & (values_R <= 1 + TOLERANCE))
      r = int(np.flatnonzero(bad_R)[0])
      raise errors.UserError(
        f'{place}: {values_R[r]:.6g} on {regions.REGIONS[r]} is outside 0..1; '
        'the attention is broken, not the head: try --dtype=float32 and check '
        'the checkpoint'
      )
    raise errors.UserError(
      f'{place}: the regions sum to {sum_LNQ[layer, head, q]:.6f}, not to 1 '
      f'within {TOLERANCE:g}; try --dtype=float32 and check the checkpoint'
    )


def measure(scores: scores_lib.Scores, options: Options = Options()) -> Ram:
  """Scores every head.

  Args:
    scores: of one pass over the data.
    options: what is called the score.

  Raises:
    UserError: a mass is not one (`check`), no example takes part, calibration
      without a measured baseline.
  """
  _check(scores, options)
  keep_E, dropped = _take_part(scores, options)
  if not keep_E.any():
    reasons = ', '.join(f'{n} {reason}' for reason, n in dropped.items())
    raise errors.UserError(
      f'no example is left to rank by: of {len(scores)}, '
      f'{reasons or "none was measured"}; use other data or drop the option '
      'that leaves them out (query set, filter, contrast)'
    )
  return _measure(scores, options, keep_E, dropped)


def by_query(
  scores: scores_lib.Scores, options: Options = Options()
) -> dict[str, Ram]:
  """The same by each query set in which an example is left to rank by.

  Raises:
    UserError: as `measure`.
  """
  _check(scores, options)
  result = {}
  for query in regions.QUERY_SETS:
    other = dataclasses.replace(options, query=query)
    keep_E, dropped = _take_part(scores, other)
    if keep_E.any():
      result[query] = _measure(scores, other, keep_E, dropped)
  return result


def _check(scores, options) -> None:
  check(scores.mass_ELNQR, scores.ids)
  if options.calibrate:
    if scores.baseline_ELNQR is None:
      raise errors.UserError(
        'calibrate: no masses with a content-free question were kept; measure '
        'again with --calibrate'
      )
    check(scores.baseline_ELNQR, scores.ids, 'content-free mass')


def _measure(scores, options, keep_E, dropped) -> Ram:
  used_E = np.flatnonzero(keep_E)
  names, cluster_E = np.unique(
    np.asarray(scores.clusters, object)[used_E].astype(str),
    return_inverse=True,
  )
  count_ER = scores.count_ER[used_E].astype(np.float64)
  q = regions.QUERY_SETS.index(options.query)
  n_layers, n_heads = scores.n_layers, scores.n_heads

  def flat(mass_ELNQR):
    mass_ELNR = mass_ELNQR[:, :, :, q][used_E].astype(np.float64)
    return mass_ELNR.reshape(len(used_E), n_layers * n_heads, -1)

  mass_EXR = flat(scores.mass_ELNQR)
  plain = {
    norm: _score(mass_EXR, count_ER, norm, contrast=False) for norm in NORMS
  }
  score = _score(mass_EXR, count_ER, options.norm, options.contrast)
  if options.calibrate:
    base_EXR = flat(scores.baseline_ELNQR)
    base = _score(base_EXR, count_ER, options.norm, options.contrast)
    low, high = score.bounds
    score = estimand_lib.Estimand(
      score.plus, base.plus, (low - high, high - low)
    )

  def grid(estimand):
    value_X = estimand.value(estimand_lib.group_weights(cluster_E)[None])[0]
    return value_X.reshape(n_layers, n_heads)

  by_norm = {norm: grid(estimand) for norm, estimand in plain.items()}
  return Ram(
    options=options,
    used_E=used_E,
    dropped=dropped,
    cluster_E=cluster_E,
    cluster_names=tuple(names),
    chance_E=count_ER[:, regions.EVIDENCE] / _visual(count_ER),
    value_ELN=_per_example(score).reshape(-1, n_layers, n_heads),
    score_LN=grid(score),
    ram_LN=by_norm['mass'],
    region_LNR=estimand_lib.means(
      estimand_lib.means(mass_EXR, cluster_E), np.zeros(len(names), np.int64)
    )[0].reshape(n_layers, n_heads, -1),
    by_norm=by_norm,
    score=score,
    mass=plain['mass'],
  )


def kv_groups(score_LN: np.ndarray, n_kv_heads: int) -> np.ndarray:
  """Score of each key/value group: the greatest of its query heads.

  Args:
    score_LN: query heads; head n reads kv head n // (N / K).
    n_kv_heads: K.

  Returns:
    float64 [L, K]; a score that is not finite does not count.

  Raises:
    UserError: K does not divide N.
  """
  n_layers, n_heads = score_LN.shape
  if n_kv_heads < 1 or n_heads % n_kv_heads:
    raise errors.UserError(
      f'{n_kv_heads} key/value heads do not divide {n_heads} query heads'
    )
  score_LKG = np.asarray(score_LN, np.float64).reshape(n_layers, n_kv_heads, -1)
  best_LK = np.where(np.isfinite(score_LKG), score_LKG, -np.inf).max(-1)
  return np.where(np.isneginf(best_LK), np.nan, best_LK)


def _take_part(scores, options) -> tuple[np.ndarray, dict[str, int]]:
  """(bool [E], reason -> examples left out)."""
  q = regions.QUERY_SETS.index(options.query)
  no_rows_E = ~(scores.mass_ELNQR[:, :, :, q] != 0).any(axis=(1, 2, 3))
  if options.calibrate:
    no_rows_E |= ~(scores.baseline_ELNQR[:, :, :, q] != 0).any(axis=(1, 2, 3))
  wrong_E = ~np.asarray(scores.correct_E, bool) & options.correct_only
  alone_E = (scores.count_ER[:, regions.DISTRACTORS[0]] == 0) & options.contrast
  # Evidence is what this is about; a caller that lets such examples through
  # would dilute every head by the same share.
  if (scores.count_ER[:, regions.EVIDENCE] == 0).any():
    e = int(np.argmin(scores.count_ER[:, regions.EVIDENCE]))
    raise errors.UserError(
      f'example {scores.ids[e]} has no evidence token; rank only examples with '
      'evidence'
    )
  dropped: dict[str, int] = {}
  keep_E = np.ones(len(scores), bool)
  for reason, out_E in (
    (NO_ROWS, no_rows_E),
    (WRONG, wrong_E),
    (NO_DISTRACTOR, alone_E),
  ):
    if (keep_E & out_E).any():
      dropped[reason] = int((keep_E & out_E).sum())
    keep_E &= ~out_E
  return keep_E, dropped


def _visual(x_R: np.ndarray) -> np.ndarray:
  return x_R[..., list(regions.VISUAL)].sum(-1)


def _score(mass_EXR, count_ER, norm, contrast) -> estimand_lib.Estimand:
  """One normalisation over examples."""
  evidence_EX = mass_EXR[..., regions.EVIDENCE]
  visual_EX = _visual(mass_EXR)
  n_evidence_E1 = count_ER[:, [regions.EVIDENCE]]
  n_visual_E1 = _visual(count_ER)[:, None]
  low, high = _BOUNDS[norm]
  if contrast:
    distractor = regions.DISTRACTORS[0]
    num_EX = (
      evidence_EX / n_evidence_E1
      - mass_EXR[..., distractor] / count_ER[:, [distractor]]
    )
    even_EX = visual_EX / n_visual_E1
    low, high = min(low, -high), high
  else:
    num_EX = evidence_EX
    even_EX = visual_EX * (n_evidence_E1 / n_visual_E1)
    if norm == 'excess':
      num_EX = evidence_EX - even_EX
  den_EX = {'share': visual_EX, 'lift': even_EX}.get(norm)
  return estimand_lib.Estimand(
    estimand_lib.Ratio(num_EX, den_EX), bounds=(low, high)
  )


def _per_example(score: estimand_lib.Estimand) -> np.ndarray:
  """[E, X], the score of each example by itself."""

  def one(ratio):
    if ratio.den_UX is None:
      return ratio.num_UX
    return np.divide(
      ratio.num_UX,
      ratio.den_UX,
      out=np.full_like(ratio.num_UX, np.nan),
      where=ratio.den_UX > 0,
    )

  value_EX = one(score.plus)
  return value_EX if score.minus is None else value_EX - one(score.minus)
