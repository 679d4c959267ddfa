"""Groups of heads to ablate: the top of a ranking and its controls.

    top             the k best
    bottom          the k worst
    median          the k around the middle rank
    random          k drawn from all heads outside the top
    layer_matched   drawn outside the top, as many of each layer as the top has

A top set that sits in a few middle layers may matter for where it is and not
for what it reads; layer_matched tells the two apart and is the harder control.
Where a layer has too few heads outside the top, the rest come from the nearest
layers that have some left (the lower of two as near), and the group says so.

The order is that of corejax.stats.reliability: by score, equal scores by
(layer, head). Heads whose score is not finite are in no group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import re

import numpy as np

from corejax import errors
from corejax import heads as heads_lib
from corejax import selection as selection_lib
from corejax.stats import reliability

RANDOM = ('random', 'layer_matched')
NAMES = ('top', 'bottom', 'median', *RANDOM)
GIVEN = 'given'

GRID = ('0', '1', '3', '5', '10', '20', '30', '5%', '10%')
_K = re.compile(r'\d{1,9}(?:\.\d{1,9})?%|\d{1,9}', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Group:
  """One group.

  Attributes:
    name: one of NAMES, or GIVEN.
    k: number of heads.
    heads: the heads.
    seed: of a random group, else None.
    moved: (from layer, to layer, heads) for what layer_matched had to take
      elsewhere; empty if all layers match.
    n_top: heads that it shares with the top k; a bottom or median group that
      shares some (k over a half or a third of all heads) is no control.
  """

  name: str
  k: int
  heads: heads_lib.HeadSet
  seed: int | None = None
  moved: tuple[tuple[int, int, int], ...] = ()
  n_top: int = 0

  @property
  def note(self) -> str:
    """What is to be told beside its results, or the empty string."""
    if self.moved:
      moves = ', '.join(f'{n} of layer {a} in {b}' for a, b, n in self.moved)
      return f'layers do not match: {moves}'
    if self.n_top and self.name not in ('top', GIVEN):
      return f'{self.n_top} of its heads are in the top {self.k}'
    return ''


def resolve(
  grid: Iterable[str | int], n_layers: int, n_heads: int
) -> tuple[int, ...]:
  """Numbers of heads, ascending, each once.

  Args:
    grid: numbers, or shares of all heads as '5%', rounded as `top5%` is.
    n_layers, n_heads: of the model.

  Raises:
    UserError: unreadable, or more heads than there are.
  """
  total = n_layers * n_heads
  found = set()
  for each in grid:
    text = str(each).strip()
    if not _K.fullmatch(text):
      raise errors.UserError(
        f'k {text[:40]!r} is neither a number of heads nor a share; write 10 '
        'or 5%'
      )
    k = _count(text, n_layers, n_heads)
    if k > total:
      raise errors.UserError(
        f'k {text}: the model has {n_layers} x {n_heads} = {total} heads; give '
        f'at most {total}'
      )
    found.add(k)
  return tuple(sorted(found))


def _count(text: str, n_layers: int, n_heads: int) -> int:
  if not text.endswith('%'):
    return int(text)
  fraction = float(text[:-1]) / 100
  if not fraction:
    return 0
  if fraction > 1:  # 100.4% would be rounded to all heads
    return n_layers * n_heads + 1
  rule = selection_lib.Selection('top_fraction', fraction)
  count = rule.count(n_layers, n_heads)
  assert count is not None, 'only fdr has no count'
  return count


def fitting(n_layers: int, n_heads: int) -> tuple[tuple[int, ...], list[str]]:
  """GRID for this model: (numbers of heads, entries that are left out).

  Left out is what is over half of all heads: random sets outside the top need
  as many again.
  """
  half = n_layers * n_heads // 2
  kept, left_out = [], []
  for text in GRID:
    fits = text.endswith('%') or int(text) <= half
    (kept if fits else left_out).append(text)
  return resolve(kept, n_layers, n_heads), left_out


def make(
  name: str, score_LN: np.ndarray, k: int, seed: int | None = None
) -> Group:
  """One group of a ranking.

  Args:
    name: one of NAMES.
    score_LN: float [L, N], the higher the better, as `HeadRanking.score_LN`.
    k: number of heads.
    seed: of a random group; same seed, same heads.

  Raises:
    UserError: an unknown name; k over the heads that there are (for random
      groups: outside the top).
    ValueError: a random group without a seed, or another with one.
  """
  if name not in NAMES:
    raise errors.UserError(
      f'group {name!r} is unknown; choose one of {", ".join(NAMES)}'
    )
  if (seed is None) == (name in RANDOM):
    raise ValueError(f'make: group {name!r} with seed {seed}')
  score_LN = np.asarray(score_LN, np.float64)
  usable_LN = np.isfinite(score_LN)
  n_usable = int(usable_LN.sum())
  if not 0 <= k <= n_usable:
    raise errors.UserError(
      f'k {k}: the ranking has {n_usable} heads with a score; give 0 to '
      f'{n_usable}'
    )
  # Heads without a score are the last ones of the order.
  best = reliability.order(score_LN.ravel())[:n_usable]
  top = _head_set(best[:k], score_LN.shape)
  if seed is not None:
    return control(name, top, usable_LN, seed)
  start = {'top': 0, 'bottom': n_usable - k, 'median': (n_usable - k) // 2}[
    name
  ]
  heads = _head_set(best[start : start + k], score_LN.shape)
  return Group(name, k, heads, n_top=len(heads & top))


def control(
  name: str, top: heads_lib.HeadSet, usable_LN: np.ndarray, seed: int
) -> Group:
  """A random control of any set of heads, of equal size.

  Args:
    name: one of RANDOM.
    top: the set, none of whose heads is drawn.
    usable_LN: bool [L, N], heads that may be drawn.
    seed: same seed, same heads.

  Raises:
    UserError: too few heads outside of the set, or it has heads that the
      model has not.
  """
  top_LN = top.mask(*usable_LN.shape)
  others_LN = np.asarray(usable_LN, bool) & ~top_LN
  k, n_others = len(top), int(others_LN.sum())
  if k > n_others:
    raise errors.UserError(
      f'group {name}: outside the top {k} there are {n_others} heads; give a k '
      f'of at most {(k + n_others) // 2}'
    )
  rng = np.random.default_rng([seed, k, RANDOM.index(name)])
  if name == 'random':
    drawn = rng.choice(np.flatnonzero(others_LN), k, replace=False)
    return Group(name, k, _head_set(drawn, top_LN.shape), seed)
  count_L, moved = _per_layer(top_LN.sum(1), others_LN.sum(1))
  pairs = []
  for layer, count in enumerate(count_L):
    heads = rng.choice(np.flatnonzero(others_LN[layer]), count, replace=False)
    pairs += [(layer, int(head)) for head in heads]
  return Group(name, k, heads_lib.HeadSet(pairs), seed, moved)


def plan(
  score_LN: np.ndarray, ks: Sequence[int], seeds: Sequence[int]
) -> list[Group]:
  """Every group of every k; random ones for every seed.

  k = 0, the intact model, is the one group ('top', 0).

  Raises:
    UserError: see `make`.
  """
  groups = []
  for k in ks:
    if k == 0:
      groups.append(make('top', score_LN, 0))
      continue
    for name in NAMES:
      drawn = seeds if name in RANDOM else (None,)
      groups += [make(name, score_LN, k, seed) for seed in drawn]
  return groups


def plan_given(
  given: heads_lib.HeadSet, n_layers: int, n_heads: int, seeds: Sequence[int]
) -> list[Group]:
  """The intact model, a set of heads, and its random controls.

  Args:
    given: the set, not empty; its group is called 'given'.
    n_layers, n_heads: of the model.
    seeds: of the controls.

  Raises:
    UserError: see `control`.
  """
  usable_LN = np.ones((n_layers, n_heads), bool)
  return [
    Group('top', 0, heads_lib.HeadSet()),
    Group(GIVEN, len(given), given, n_top=len(given)),
    *(control(name, given, usable_LN, s) for name in RANDOM for s in seeds),
  ]


def _head_set(flat: np.ndarray, shape: tuple[int, ...]) -> heads_lib.HeadSet:
  return heads_lib.HeadSet(divmod(int(x), shape[1]) for x in flat)


def _per_layer(
  want_L: np.ndarray, have_L: np.ndarray
) -> tuple[np.ndarray, tuple[tuple[int, int, int], ...]]:
  """Heads to draw from each layer, and what was moved as Group.moved says.

  First every layer serves itself, then what is lacking goes to the nearest.
  """
  count_L = np.minimum(want_L, have_L)
  moved = []
  for layer in np.flatnonzero(want_L > have_L):
    lacking = int(want_L[layer] - have_L[layer])
    layers = np.arange(len(want_L))
    for other in np.lexsort((layers, abs(layers - layer))):
      taken = int(min(lacking, have_L[other] - count_L[other]))
      if taken:
        count_L[other] += taken
        moved.append((int(layer), int(other), taken))
        lacking -= taken
  return count_L, tuple(moved)
