"""The two permutation nulls of a ranking, from kept profiles and covers.

What is permuted is the score's numerator, since that alone depends on where
the evidence is: mass on the evidence (mass, share, lift), that minus the even
share of the visual mass (excess), or mass per evidence token (contrast; what
is subtracted for the distractor and for the content-free question stays the
same in every permutation and drops out).
"""

import dataclasses

import numpy as np

from corejax import ram as ram_lib
from corejax import regions
from corejax import scores as scores_lib
from corejax.stats import estimand as estimand_lib
from corejax.stats import multiple
from corejax.stats import permutation

# float16 profiles: 2**-11 of a mass of 1, and sums of subnormals.
_PROFILE_TOLERANCE = 2e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Tests:
  """Outcome per head; [L, N] float64, nan where there was no test.

  Attributes:
    p_LN, q_LN: primary null: evidence of another question.
    expected_LN: mean of the statistic under it.
    p_shift_LN, q_shift_LN: secondary null: evidence shifted.
    n_permutations: made for each null.
    n_cluster, n_layout, n_fixed: examples that exchanged evidence within their
      cluster, with another cluster's of the same layout, with nobody.
    n_shift_fixed: examples without another place.
    untested: why there is no primary test; '' if there is.
    untested_shift: why there is no secondary test; '' if there is.
  """

  p_LN: np.ndarray
  q_LN: np.ndarray
  expected_LN: np.ndarray
  p_shift_LN: np.ndarray
  q_shift_LN: np.ndarray
  n_permutations: int
  n_cluster: int
  n_layout: int
  n_fixed: int
  n_shift_fixed: int
  untested: str
  untested_shift: str


def test(
  scores: scores_lib.Scores,
  ram: ram_lib.Ram,
  n_permutations: int,
  seed: int,
) -> Tests:
  """Tests every head against both nulls.

  Args:
    scores: with profiles of the query set that `ram` is about.
    ram: which examples take part, and what the score is.
    n_permutations: for each null; 0 for no test.
    seed: same seed, same permutations.

  Raises:
    ValueError: profiles and evidence that do not belong to the masses.
  """
  shape = scores.n_layers, scores.n_heads
  untested = _unavailable(scores, ram.options.query, n_permutations)
  primary = secondary = None
  groups = permutation.Groups((), 0, 0, 0)
  untested_shift = untested
  n_shift_fixed = 0
  kept = scores.profiles
  if not untested and kept is not None:
    used = [int(e) for e in ram.used_E]
    profiles = [kept[e].reshape(shape[0] * shape[1], -1) for e in used]
    evidence = [np.asarray(scores.evidence[e], bool) for e in used]
    _check(scores, ram, profiles, evidence)
    weights_E = estimand_lib.group_weights(ram.cluster_E)
    covers = [_cover(e[None], ram.options)[0] for e in evidence]
    groups = permutation.groups(
      ram.cluster_E.tolist(), [scores.layouts[e] for e in used], seed
    )
    primary = permutation.exchange(
      profiles, covers, weights_E, groups, n_permutations, seed
    )
    if primary is None:
      untested = 'no two examples share a cluster and layout, or a layout'
    shifted = [
      _cover(np.asarray(scores.shifted[e], bool), ram.options) for e in used
    ]
    n_shift_fixed = sum(not len(s) for s in shifted)
    secondary = permutation.shift(
      profiles, covers, shifted, weights_E, n_permutations, seed
    )
    if secondary is None:
      untested_shift = 'no example has shifted evidence'

  def grid(null, name):
    if null is None:
      return np.full(shape, np.nan)
    return getattr(null, name).reshape(shape)

  def q(null):
    p_LN = grid(null, 'p_X')
    return multiple.benjamini_hochberg(p_LN.ravel()).reshape(shape)

  return Tests(
    p_LN=grid(primary, 'p_X'),
    q_LN=q(primary),
    expected_LN=grid(primary, 'expected_X'),
    p_shift_LN=grid(secondary, 'p_X'),
    q_shift_LN=q(secondary),
    n_permutations=n_permutations,
    n_cluster=groups.n_cluster,
    n_layout=groups.n_layout,
    n_fixed=groups.n_fixed,
    n_shift_fixed=n_shift_fixed,
    untested=untested,
    untested_shift=untested_shift,
  )


def _unavailable(scores, query, n_permutations) -> str:
  if n_permutations == 0:
    return 'no permutations were asked for'
  if scores.profiles is None:
    return 'no profiles were kept'
  if scores.profile_set != query:
    return (
      f'profiles were kept for the query set {scores.profile_set}, not for '
      f'{query}'
    )
  return ''


def _check(scores, ram, profiles, evidence) -> None:
  mass_EX = ram.mass.plus.num_UX
  for e, (profile_XI, evidence_I) in enumerate(zip(profiles, evidence)):
    name = scores.ids[ram.used_E[e]]
    if profile_XI.shape[1] != len(evidence_I):
      raise ValueError(
        f'example {name}: profiles over {profile_XI.shape[1]} visual tokens, '
        f'evidence over {len(evidence_I)}'
      )
    mass_X = profile_XI[:, evidence_I].astype(np.float64).sum(1)
    off_X = np.abs(mass_X - mass_EX[e])
    # Written so that a nan in a profile is off, too.
    if not (off_X <= _PROFILE_TOLERANCE).all():
      x = int(np.argmax(np.nan_to_num(off_X, nan=np.inf)))
      raise ValueError(
        f'example {name}, head {x // scores.n_heads}-{x % scores.n_heads}: the '
        f'profile holds {mass_X[x]:.6f} on the evidence, the mass on '
        f'{regions.REGIONS[regions.EVIDENCE]} is {mass_EX[e, x]:.6f}'
      )


def _cover(evidence_JI: np.ndarray, options: ram_lib.Options) -> np.ndarray:
  """float64 [J, I], weight of each token in the statistic."""
  if not len(evidence_JI):
    return np.zeros(evidence_JI.shape)
  cover_JI = evidence_JI.astype(np.float64)
  size_J1 = cover_JI.sum(1, keepdims=True)
  if options.contrast:
    # A place whose boxes cover no token reads nothing.
    return cover_JI / np.maximum(size_J1, 1)
  if options.norm == 'excess':
    return cover_JI - size_J1 / cover_JI.shape[1]
  return cover_JI
