"""Which heads stay dense: the sets that `prefill` compares.

all_dense      the baseline
all_sparse     what window and sinks alone can do
top            the best of the ranking by RAM
kv_top         the best whole key/value groups within the same budget (GQA)
layer_matched  drawn outside the top, as many of each layer as the top has
random         drawn from all heads outside the top
bottom         the worst of the ranking
given          the heads that --heads names
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from corejax import errors
from corejax import groups as groups_lib
from corejax import heads as heads_lib
from corejax import plan as plan_lib

DENSE, SPARSE, TOP, KV_TOP = 'all_dense', 'all_sparse', 'top', 'kv_top'
GIVEN = groups_lib.GIVEN
NAMES = (DENSE, SPARSE, TOP, KV_TOP, 'layer_matched', 'random', 'bottom')
AUTO = 'auto'


@dataclasses.dataclass(frozen=True)
class Assigned:
  """One set of dense heads.

  Attributes:
    name: one of NAMES, or GIVEN.
    heads: the dense heads.
    asked: the dense fraction that it was made for.
    seed: of a random set, else None.
    note: what is to be told beside its results, or ''.
  """

  name: str
  heads: heads_lib.HeadSet
  asked: float
  seed: int | None = None
  note: str = ''


def parse_names(text: str) -> tuple[str, ...]:
  """--assignments; '' is all of them. all_dense is always one.

  Raises:
    UserError: one is unknown.
  """
  names = [name.strip() for name in text.split(',') if name.strip()]
  for name in names:
    if name not in NAMES:
      raise errors.UserError(
        f'--assignments: {name[:40]!r} is unknown; choose of {", ".join(NAMES)}'
      )
  chosen = names or NAMES
  return tuple(name for name in NAMES if name in chosen or name == DENSE)


def parse_fractions(text: str, flag: str = '--rhos') -> tuple[float, ...]:
  """Dense fractions, ascending, each once.

  Raises:
    UserError: one is no share.
  """
  found = set()
  for part in text.split(','):
    try:
      value = float(part)
    except ValueError:
      value = math.nan
    if not 0 <= value <= 1:
      raise errors.UserError(
        f'{flag}={text[:60]}: {part.strip()[:40]!r} is no share; write numbers '
        'from 0 to 1, as 0.05,0.1'
      )
    found.add(value)
  return tuple(sorted(found))


def parse_counts(text: str, flag: str) -> tuple[int, ...]:
  """Positive whole numbers, ascending, each once.

  Raises:
    UserError: one is none.
  """
  found = set()
  for part in text.split(','):
    word = part.strip()
    if not (word.isascii() and word.isdigit() and 0 < int(word) <= 2**24):
      raise errors.UserError(
        f'{flag}={text[:60]}: {word[:40]!r} is no length; write whole numbers '
        f'from 1 to {2**24}, as 4096,8192'
      )
    found.add(int(word))
  return tuple(sorted(found))


def span(window: str, sink: str, length: int) -> tuple[int, int]:
  """(window, sink) at a length, as --window and --sink say.

  'auto' is the protocol's 2048 and 128 from twice their sum up; in a shorter
  prompt a tenth of it, a ninth of that sinks. (At most an eighth is asked for
  there. With a tenth, nine of ten look-ups whose evidence may lie anywhere have
  it outside: a window that holds it leaves nothing to retrieve.)

  Raises:
    UserError: a number out of range.
  """
  whole = plan_lib.WINDOW + plan_lib.SINK
  reach = whole if length >= 2 * whole else max(length // 10, 1)
  sink_auto = plan_lib.SINK if reach == whole else reach // 9
  numbers = []
  for flag, text, auto, least in (
    ('--sink', sink, sink_auto, 0),
    ('--window', window, max(reach - sink_auto, 1), 1),
  ):
    word = text.strip()
    if word == AUTO:
      numbers.append(auto)
      continue
    if not (word.isascii() and word.isdigit() and least <= int(word) < 2**30):
      raise errors.UserError(
        f'{flag}={text[:40]}: give {least} or more keys, or {AUTO}'
      )
    numbers.append(int(word))
  return numbers[1], numbers[0]


def make(
  names: Sequence[str],
  fractions: Sequence[float],
  n_kv_heads: int,
  draws: int,
  score_LN: np.ndarray,
) -> tuple[list[Assigned], list[str]]:
  """Every assignment at every dense fraction, the baseline first.

  Args:
    names: of `parse_names`.
    fractions: of `parse_fractions`; 0 is all_sparse, 1 is all_dense.
    n_kv_heads: K.
    draws: of each random set.
    score_LN: float [L, N], the ranking.

  Returns:
    (sets, what was left out and why).
  """
  shape = np.shape(score_LN)
  made, seen = _ends(names, *shape), set()
  left_out = _undrawn(names, draws)
  n_usable = int(np.isfinite(score_LN).sum())
  for fraction in fractions:
    k = plan_lib.budget(fraction, *shape)
    if k in (0, shape[0] * shape[1]) or k in seen:
      continue
    seen.add(k)
    if k > n_usable:
      left_out.append(f'{k} dense heads: only {n_usable} have a score')
      continue
    for name in names:
      if name in (DENSE, SPARSE):
        continue
      if name == KV_TOP:
        group = shape[1] // n_kv_heads
        if group == 1:
          continue  # every head is its own group
        if k < group:
          left_out.append(f'{name}, {k} heads: less than a group of {group}')
          continue
        heads = plan_lib.snapped(score_LN, k, n_kv_heads)
        if any(one.name == name and one.heads == heads for one in made):
          left_out.append(f'{name}, {k} heads: the same {len(heads)} again')
          continue
        made.append(Assigned(name, heads, fraction))
        continue
      drawn = name in groups_lib.RANDOM
      if drawn and draws and 2 * k > n_usable:
        left_out.append(
          f'{name}, {k} heads: outside the top there are {n_usable - k}'
        )
        continue
      for seed in range(draws) if drawn else (None,):
        group = groups_lib.make(name, score_LN, k, seed)
        made.append(Assigned(name, group.heads, fraction, seed, group.note))
  return made, left_out


def make_given(
  names: Sequence[str],
  given: heads_lib.HeadSet,
  n_layers: int,
  n_heads: int,
  draws: int,
) -> tuple[list[Assigned], list[str]]:
  """The given heads dense, with the controls that need no ranking."""
  asked = len(given) / (n_layers * n_heads)
  made = [*_ends(names, n_layers, n_heads), Assigned(GIVEN, given, asked)]
  left_out = _undrawn(names, draws)
  usable_LN = np.ones((n_layers, n_heads), bool)
  for name in groups_lib.RANDOM:
    if name not in names or not draws:
      continue
    if 2 * len(given) > usable_LN.size:
      left_out.append(f'{name}: more than half of all heads are given')
      continue
    for seed in range(draws):
      group = groups_lib.control(name, given, usable_LN, seed)
      made.append(Assigned(name, group.heads, asked, seed, group.note))
  return made, left_out


def _undrawn(names: Sequence[str], draws: int) -> list[str]:
  """Random assignments that --draws=0 leaves out."""
  if draws:
    return []
  return [f'{n}: no draws (--draws=0)' for n in names if n in groups_lib.RANDOM]


def _ends(names, n_layers: int, n_heads: int) -> list[Assigned]:
  everything = heads_lib.HeadSet.from_mask(np.ones((n_layers, n_heads), bool))
  made = [Assigned(DENSE, everything, 1.0)]
  if SPARSE in names:
    made.append(Assigned(SPARSE, heads_lib.HeadSet(), 0.0))
  return made
