"""The two permutation nulls of a ranking, from kept profiles and covers.

What is permuted is the score, as far as it depends on where the evidence is:

    mass, share   mass on the evidence (the visual mass of share stays)
    lift          the ratio, as |Ev| in its denominator moves too
    excess        mass on the evidence minus the even share
    contrast      mass per evidence token; what is subtracted for the distractor
                  and the denominator of lift stay as they are

So a small q of a contrasted score says that the head reads its own evidence
more than that of another question, not that it reads it more than the
distractor: the interval of the score tells that. The expectation under the
null (`expected_LN`) is always of the numerator.

A calibrated score is not tested: the content-free question's masses are kept,
its profiles are not, and so what it reads of another evidence is unknown.
"""

import dataclasses

import numpy as np

from corejax import describe
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
    expected_LN: mean of the score's numerator under it.
    p_shift_LN, q_shift_LN: secondary null: evidence shifted.
    n_permutations: made for each null.
    n_media, n_layout, n_fixed: examples that exchanged evidence on the same
      media, on other media of the same layout, with nobody.
    n_shift_fixed: examples without another place.
    statistic: what was permuted, in words.
    untested: why there is no primary test, and how to get one; '' if there is.
    untested_shift: why there is no secondary test; '' if there is.
  """

  p_LN: np.ndarray
  q_LN: np.ndarray
  expected_LN: np.ndarray
  p_shift_LN: np.ndarray
  q_shift_LN: np.ndarray
  n_permutations: int
  n_media: int
  n_layout: int
  n_fixed: int
  n_shift_fixed: int
  statistic: str
  untested: str
  untested_shift: str

  __repr__ = describe.fields


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
  untested = unavailable(scores, ram.options, n_permutations)
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
      [scores.media[e] for e in used], [scores.layouts[e] for e in used], seed
    )
    slope_X = _slope(ram)
    primary = permutation.exchange(
      profiles, covers, weights_E, groups, n_permutations, seed, slope_X
    )
    if primary is None:
      untested = (
        'no two examples have the same media or layout; take data with several '
        'questions on a picture, or more examples'
      )
    shifted = [
      _cover(np.asarray(scores.shifted[e], bool), ram.options) for e in used
    ]
    n_shift_fixed = sum(not len(s) for s in shifted)
    secondary = permutation.shift(
      profiles, covers, shifted, weights_E, n_permutations, seed, slope_X
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
    n_media=groups.n_media,
    n_layout=groups.n_layout,
    n_fixed=groups.n_fixed,
    n_shift_fixed=n_shift_fixed,
    statistic=_statistic(ram.options),
    untested=untested,
    untested_shift=untested_shift,
  )


def unavailable(
  scores: scores_lib.Scores, options: ram_lib.Options, n_permutations: int
) -> str:
  """Why the score cannot be tested, and how to mend it; '' if it can."""
  if options.calibrate:
    return (
      'a calibrated score has no null, as no profiles of the content-free '
      'question are kept; rank without --calibrate to test'
    )
  if n_permutations == 0:
    return 'no permutations were asked for; give --permutations=5000'
  if scores.profiles is None:
    return 'no profiles were kept; measure again with --profiles --noresume'
  if scores.profile_set != options.query:
    return (
      f'profiles were kept for the query set {scores.profile_set}, not for '
      f'{options.query}; measure again with --query={options.query} --noresume'
    )
  return ''


def _statistic(options: ram_lib.Options) -> str:
  if options.contrast:
    return 'mass per evidence token, distractor held'
  named = {'lift': 'lift', 'excess': 'excess over an even look'}
  return named.get(options.norm, 'mass on the evidence')


def _slope(ram: ram_lib.Ram) -> np.ndarray | None:
  if ram.options.norm != 'lift' or ram.options.contrast:
    return None
  # A head that reads no visual token ties with itself at any slope.
  return np.nan_to_num(
    ram.by_norm['lift'].ravel(), nan=0.0, posinf=0.0, neginf=0.0
  )


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
