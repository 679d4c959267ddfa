"""Does a head read the evidence, or what is salient, central or recent?

Both nulls keep what every head looked at and change what is called evidence.
The statistic is the mean over clusters of the mean over examples of

    table[e, a, x]   reading of head x on example e, were choice a its evidence

and a permutation gives every example one choice:

- `exchange`, the primary null: choices are the evidence of the other examples
  of its group. Examples of one cluster and layout form a group; those alone
  there are pooled by layout, in random blocks; who has no partner is left as
  it is and counted. Every permutation of a group is as likely, the identity
  too, so that under exchangeable evidence the test is exact.
- `shift`, the secondary null: choices are the example's own evidence and the
  same boxes in other places, each as likely.

p = (1 + #{permuted >= observed}) / (1 + permutations), one-sided.
"""

from collections.abc import Callable, Hashable, Sequence
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
    n_cluster: examples that exchange within their cluster.
    n_layout: examples that exchange with another cluster's, same layout.
    n_fixed: examples without partner.
  """

  members: Sequence[np.ndarray]
  n_cluster: int
  n_layout: int
  n_fixed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Null:
  """Outcome of a permutation test of every head.

  Attributes:
    p_X: float64 [X].
    observed_X: float64 [X], the statistic.
    expected_X: float64 [X], its mean over the permutations.
    n_permutations: made.
  """

  p_X: np.ndarray
  observed_X: np.ndarray
  expected_X: np.ndarray
  n_permutations: int


def groups(
  clusters: Sequence[Hashable], layouts: Sequence[Hashable], seed: int
) -> Groups:
  """Groups of the primary null.

  Args:
    clusters: E labels.
    layouts: E labels; visual tokens of the same layout lie in the same places.
    seed: of the blocks into which lone examples are pooled.
  """
  rng = np.random.default_rng([seed, 0x6209])
  by_cluster: dict[tuple[Hashable, Hashable], list[int]] = {}
  for e, key in enumerate(zip(clusters, layouts, strict=True)):
    by_cluster.setdefault(key, []).append(e)
  members = [np.array(m) for m in by_cluster.values() if len(m) > 1]
  n_cluster = sum(map(len, members))
  by_layout: dict[Hashable, list[int]] = {}
  for (_, layout), alone in by_cluster.items():
    if len(alone) == 1:
      by_layout.setdefault(layout, []).extend(alone)
  n_layout = 0
  for alone in by_layout.values():
    if len(alone) > 1:
      blocks = np.array_split(rng.permutation(alone), -(-len(alone) // _BLOCK))
      members.extend(blocks)
      n_layout += len(alone)
  return Groups(
    members, n_cluster, n_layout, len(clusters) - n_cluster - n_layout
  )


def exchange(
  profiles: Sequence[np.ndarray],
  covers: Sequence[np.ndarray],
  weights_E: np.ndarray,
  groups: Groups,
  n_permutations: int,
  seed: int,
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

  Returns:
    The outcome, or None if no example has a partner. Examples without partner
    add the same to every permutation and are left out.

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
  picks, starts, weights = [], [], []
  start = 0
  for members in groups.members:
    n = len(members)
    picks.append(
      rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
    )
    starts.append(start + n * np.arange(n))
    weights.append(weights_E[members])
    start += n * n
  choices = [
    _Choices.make(np.stack([covers[e] for e in members]))
    for members in groups.members
  ]

  def table(part: slice) -> np.ndarray:
    return np.concatenate(
      [
        choice.read(profiles[e][part])
        for members, choice in zip(groups.members, choices)
        for e in members
      ]
    )

  own = np.concatenate([np.arange(len(m)) for m in groups.members])
  return _test(
    table,
    profiles[0].shape[0],
    start,
    np.concatenate(starts),
    own,
    np.concatenate(picks, axis=1),
    np.concatenate(weights),
  )


def shift(
  profiles: Sequence[np.ndarray],
  covers: Sequence[np.ndarray],
  shifted: Sequence[np.ndarray],
  weights_E: np.ndarray,
  n_permutations: int,
  seed: int,
) -> Null | None:
  """The secondary null.

  Args:
    profiles, covers, weights_E, n_permutations, seed: as in `exchange`.
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
  picks = rng.integers(0, sizes, (n_permutations, len(sizes)))

  def table(part: slice) -> np.ndarray:
    return np.concatenate(
      [choice.read(profiles[e][part]) for e, choice in zip(movable, choices)]
    )

  return _test(
    table,
    profiles[0].shape[0],
    int(sizes.sum()),
    np.concatenate([[0], np.cumsum(sizes)[:-1]]),
    np.zeros(len(sizes), np.int64),
    picks,
    weights_E[movable],
  )


def _test(
  table: Callable[[slice], np.ndarray],
  n_columns: int,
  n_rows: int,
  start_E: np.ndarray,
  own_E: np.ndarray,
  pick_ZE: np.ndarray,
  weight_E: np.ndarray,
) -> Null:
  """Sums one row of the table per example, for every permutation.

  Args:
    table: part of the heads -> [n_rows, heads].
    n_columns: heads in all.
    n_rows: choices of all examples.
    start_E: first row of each example.
    own_E: the choice that is the example's own evidence.
    pick_ZE: the choice in each permutation.
    weight_E: of each example.
  """
  n_permutations = len(pick_ZE)
  index_ZE = (start_E + np.concatenate([own_E[None], pick_ZE])).astype(np.int32)
  at_least_X = np.zeros(n_columns, np.int64)
  observed_X, total_X = np.zeros(n_columns), np.zeros(n_columns)
  step = max(8, min(256, _TABLE_BYTES // (8 * n_rows)))
  for at in range(0, n_columns, step):
    part = slice(at, min(at + step, n_columns))
    rows = table(part).astype(np.float64)
    # One reading of all heads is a sparse row: as a product it needs no
    # [permutations, examples, heads] array.
    observed_X[part] = (_choose(index_ZE[:1], weight_E, n_rows) @ rows)[0]
    scale_X = weight_E.sum() * np.abs(rows).max(0, initial=0.0)
    bar_X = observed_X[part] - _TIE * scale_X
    for z in range(1, n_permutations + 1, _PERMUTATIONS):
      sums_ZX = (
        _choose(index_ZE[z : z + _PERMUTATIONS], weight_E, n_rows) @ rows
      )
      at_least_X[part] += (sums_ZX >= bar_X).sum(0)
      total_X[part] += sums_ZX.sum(0)
  return Null(
    p_X=(1 + at_least_X) / (1 + n_permutations),
    observed_X=observed_X,
    expected_X=total_X / max(n_permutations, 1),
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
