"""Does a head read the evidence, or what is salient, central or recent?

Both nulls keep what every head looked at and change what is called evidence.
The statistic is the mean over clusters of the mean over examples of

    table[e, a, x]   reading of head x on example e, were choice a its evidence

and a permutation gives every example one choice:

- `exchange`, the primary null: choices are the evidence of the other examples
  of its group. Examples on the same media (and so of one layout) form a group;
  those alone on theirs are pooled by layout, in random blocks; who has no
  partner is left as it is and counted. Every permutation of a group is as
  likely, the identity too, so that under exchangeable evidence the test is
  exact.
- `shift`, the secondary null: choices are the example's own evidence and the
  same boxes in other places, each as likely.

p = (1 + #{permuted >= observed}) / (1 + permutations), one-sided.

A score whose denominator moves with the evidence too, as that of lift does, is
tested as the ratio it is. With R the observed score, even[e, a, x] what an
even look would read of choice a, and the mean of even above 0,

    num' / even' >= R    if and only if    num' - R even' >= 0 = num - R even

so that the same sums of table - R even, R once per head (`slope_X`), decide.
"""

from collections.abc import Hashable, Sequence
import dataclasses

import numpy as np
from scipy import sparse

_BLOCK = 32  # largest group of pooled examples: the table is its square
_TABLE_BYTES = 64 * 2**20
_PERMUTATIONS = 500  # at a time
# Of the largest possible statistic: permutations that only exchange equal
# evidence, or equal profiles, must tie with the observed value whatever the
# order of summation.
_TIE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
  """Who may exchange evidence with whom.

  Attributes:
    members: int [n] each, n >= 2 examples.
    n_media: examples that exchange with others on the same media.
    n_layout: examples that exchange on other media of the same layout.
    n_fixed: examples without partner.
  """

  members: Sequence[np.ndarray]
  n_media: int
  n_layout: int
  n_fixed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Null:
  """Outcome of a permutation test of every head.

  Attributes:
    p_X: float64 [X].
    observed_X: float64 [X], mean reading over all examples, those that stay as
      they are among them.
    expected_X: float64 [X], the mean of that over the permutations.
    n_permutations: made.
  """

  p_X: np.ndarray
  observed_X: np.ndarray
  expected_X: np.ndarray
  n_permutations: int


def groups(
  media: Sequence[Hashable], layouts: Sequence[Hashable], seed: int
) -> Groups:
  """Groups of the primary null.

  Args:
    media: E labels; a document's questions may show different pages of it.
    layouts: E labels; visual tokens of the same layout lie in the same places.
    seed: of the blocks into which lone examples are pooled.
  """
  rng = np.random.default_rng([seed, 0x6209])
  by_media: dict[tuple[Hashable, Hashable], list[int]] = {}
  for e, key in enumerate(zip(media, layouts, strict=True)):
    by_media.setdefault(key, []).append(e)
  members = [np.array(m) for m in by_media.values() if len(m) > 1]
  n_media = sum(map(len, members))
  by_layout: dict[Hashable, list[int]] = {}
  for (_, layout), alone in by_media.items():
    if len(alone) == 1:
      by_layout.setdefault(layout, []).extend(alone)
  n_layout = 0
  for alone in by_layout.values():
    if len(alone) > 1:
      blocks = np.array_split(rng.permutation(alone), -(-len(alone) // _BLOCK))
      members.extend(blocks)
      n_layout += len(alone)
  return Groups(members, n_media, n_layout, len(media) - n_media - n_layout)


def exchange(
  profiles: Sequence[np.ndarray],
  covers: Sequence[np.ndarray],
  weights_E: np.ndarray,
  groups: Groups,
  n_permutations: int,
  seed: int,
  slope_X: np.ndarray | None = None,
) -> Null | None:
  """The primary null.

  Args:
    profiles: E float [X, I_e], what each head looked at.
    covers: E float [I_e], weight of each token in the reading of the example's
      own evidence (1 on evidence and 0 elsewhere for a mass).
    weights_E: float [E], of the examples in the mean.
    groups: from `groups`.
    n_permutations: how many.
    seed: same seed, same permutations.
    slope_X: finite float [X], subtract this times the reading of an even look
      (see the module); None for 0.

  Returns:
    The outcome, or None if no example has a partner. Examples without partner
    add the same to every permutation.

  Raises:
    ValueError: a group whose examples differ in their number of tokens.
  """
  if not groups.members:
    return None
  rng = np.random.default_rng([seed, 0xE5C4])
  for members in groups.members:
    lengths = {len(covers[e]) for e in members}
    if len(lengths) > 1:
      raise ValueError(f'examples of one layout have {sorted(lengths)} tokens')
  picks, choices = [], []
  for members in groups.members:
    n = len(members)
    picks.append(
      rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
    )
    choices += [_Choices.make(np.stack([covers[e] for e in members]))] * n
  return _test(
    profiles,
    covers,
    weights_E,
    np.concatenate(groups.members),
    choices,
    np.concatenate([np.arange(len(m)) for m in groups.members]),
    np.concatenate(picks, axis=1),
    slope_X,
  )


def shift(
  profiles: Sequence[np.ndarray],
  covers: Sequence[np.ndarray],
  shifted: Sequence[np.ndarray],
  weights_E: np.ndarray,
  n_permutations: int,
  seed: int,
  slope_X: np.ndarray | None = None,
) -> Null | None:
  """The secondary null.

  Args:
    profiles, covers, weights_E, n_permutations, seed, slope_X: as in
      `exchange`.
    shifted: E float [J_e, I_e], as `covers`, of the evidence in other places.

  Returns:
    The outcome, or None if no example has another place.
  """
  movable = [e for e in range(len(covers)) if len(shifted[e])]
  if not movable:
    return None
  rng = np.random.default_rng([seed, 0x5417])
  choices = [
    _Choices.make(np.concatenate([covers[e][None], shifted[e]]))
    for e in movable
  ]
  sizes = np.array([len(c.which) for c in choices])
  return _test(
    profiles,
    covers,
    weights_E,
    np.array(movable),
    choices,
    np.zeros(len(sizes), np.int64),
    rng.integers(0, sizes, (n_permutations, len(sizes))),
    slope_X,
  )


def _test(
  profiles: Sequence[np.ndarray],
  covers: Sequence[np.ndarray],
  weights_E: np.ndarray,
  who_M: np.ndarray,
  choices: 'Sequence[_Choices]',
  own_M: np.ndarray,
  pick_ZM: np.ndarray,
  slope_X: np.ndarray | None,
) -> Null:
  """Sums one row of the table per example, for every permutation.

  Args:
    profiles, covers, weights_E, slope_X: as in `exchange`.
    who_M: the examples whose evidence is permuted, M of them.
    choices: M, what each may be given.
    own_M: the choice that is the example's own evidence.
    pick_ZM: the choice in each permutation.
  """
  n_permutations = len(pick_ZM)
  n_columns = profiles[0].shape[0]
  weight_M = weights_E[who_M]
  sizes = np.array([len(choice.which) for choice in choices])
  start_M = np.cumsum(sizes) - sizes
  n_rows = int(sizes.sum())
  index_ZM = (start_M + np.concatenate([own_M[None], pick_ZM])).astype(np.int32)
  # How often each row is summed, of all permutations.
  often_R = np.bincount(
    index_ZM[1:].ravel(), np.tile(weight_M, n_permutations), n_rows
  ) / max(n_permutations, 1)
  fixed = np.setdiff1d(np.arange(len(covers)), who_M)
  at_least_X = np.zeros(n_columns, np.int64)
  observed_X, expected_X = np.zeros(n_columns), np.zeros(n_columns)
  step = max(8, min(256, _TABLE_BYTES // (8 * n_rows)))
  for at in range(0, n_columns, step):
    part = slice(at, min(at + step, n_columns))
    rows = np.concatenate(
      [choice.read(profiles[e][part]) for e, choice in zip(who_M, choices)]
    ).astype(np.float64)
    # One reading of all heads is a sparse row: as a product it needs no
    # [permutations, examples, heads] array.
    own = _choose(index_ZM[:1], weight_M, n_rows)
    still_X = np.zeros(rows.shape[1])
    for e in fixed:
      still_X += weights_E[e] * (
        profiles[e][part].astype(np.float32) @ covers[e].astype(np.float32)
      )
    observed_X[part] = (own @ rows)[0] + still_X
    expected_X[part] = often_R @ rows + still_X
    if slope_X is not None:
      rows -= slope_X[part] * np.concatenate(
        [choice.even(profiles[e][part]) for e, choice in zip(who_M, choices)]
      )
    scale_X = weight_M.sum() * np.abs(rows).max(0, initial=0.0)
    bar_X = (own @ rows)[0] - _TIE * scale_X
    for z in range(1, n_permutations + 1, _PERMUTATIONS):
      sums_ZX = (
        _choose(index_ZM[z : z + _PERMUTATIONS], weight_M, n_rows) @ rows
      )
      at_least_X[part] += (sums_ZX >= bar_X).sum(0)
  return Null(
    p_X=(1 + at_least_X) / (1 + n_permutations),
    observed_X=observed_X,
    expected_X=expected_X,
    n_permutations=n_permutations,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Choices:
  """Evidence to choose from; equal choices get bitwise equal readings.

  A matrix product alone does not promise that for its equal rows.
  """

  distinct_AI: np.ndarray
  which: np.ndarray

  @classmethod
  def make(cls, cover_AI: np.ndarray) -> '_Choices':
    distinct, which = np.unique(cover_AI, axis=0, return_inverse=True)
    return cls(distinct.astype(np.float32), which.ravel())

  def read(self, profile_XI: np.ndarray) -> np.ndarray:
    """float32 [A, X]."""
    return (self.distinct_AI @ profile_XI.astype(np.float32).T)[self.which]

  def even(self, profile_XI: np.ndarray) -> np.ndarray:
    """float64 [A, X], readings of heads that look at all tokens alike."""
    share_A = self.distinct_AI.mean(1, dtype=np.float64)[self.which]
    return np.outer(share_A, profile_XI.sum(1, dtype=np.float64))


def _choose(index_ZE, weight_E, n_rows) -> sparse.csr_array:
  """[Z, n_rows] with the weight of every example at its chosen row."""
  n_permutations, n_examples = index_ZE.shape
  return sparse.csr_array(
    (
      np.tile(weight_E, n_permutations),
      index_ZE.ravel(),
      np.arange(0, index_ZE.size + 1, n_examples, dtype=np.int32),
    ),
    shape=(n_permutations, n_rows),
  )
