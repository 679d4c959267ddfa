"""The score store: what every batch of a ranking's run left behind.

A batch is records [b * size, (b + 1) * size) of the source whatever the number
of processes and devices, so a resumed run makes the same files (parts.py
says which).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from corejax import errors
from corejax import parts as parts_lib
from corejax import scores as scores_lib

_OPTIONAL = ('baseline_ELNQR', 'written_ELNQ', 'gradient_ELN')
_RAGGED = ('evidence', 'shifted', 'profile', 'baseline_profile')
# What `load` asks of every row.
_ROW = {
  **dict.fromkeys(('id', 'cluster', 'task', 'media', 'layout'), str),
  **{'index': int, 'correct': bool, 'logprob': float},
}


@dataclasses.dataclass(frozen=True)
class Part:
  """What one batch left behind.

  Attributes:
    rows: per measured example a JSON-able dict: index, id, cluster, task,
      layout, correct, logprob, and whatever else examples.jsonl should say.
    rejected: per rejected record a JSON-able dict: index, id, reason, detail.
    mass_ELNQR, count_ER, evidence, shifted, profiles, profile_set,
      baseline_ELNQR, baseline_profiles, written_ELNQ, gradient_ELN: as in
      scores.Scores, for this batch's measured examples.
  """

  rows: Sequence[dict]
  rejected: Sequence[dict]
  mass_ELNQR: np.ndarray
  count_ER: np.ndarray
  evidence: Sequence[np.ndarray]
  shifted: Sequence[np.ndarray]
  profiles: Sequence[np.ndarray] | None = None
  profile_set: str | None = None
  baseline_ELNQR: np.ndarray | None = None
  baseline_profiles: Sequence[np.ndarray] | None = None
  written_ELNQ: np.ndarray | None = None
  gradient_ELN: np.ndarray | None = None


def _check(part: Part) -> None:
  """Does a part hold what `load` takes for granted?

  Raises:
    ValueError, KeyError, TypeError: it does not.
  """
  for row in part.rows:
    for key, kind in _ROW.items():
      if not isinstance(row[key], kind):
        raise TypeError(f'{key}={row[key]!r} is no {kind.__name__}')
    if abs(row['logprob']) > float(np.finfo(np.float32).max):
      raise ValueError(f'logprob={row["logprob"]} is beyond float32')
  if not all(isinstance(row['reason'], str) for row in part.rejected):
    raise TypeError('a rejection without its reason')
  if part.profile_set is not None and not isinstance(part.profile_set, str):
    raise TypeError(f'profile_set={part.profile_set!r}')
  if part.rows and (part.profile_set is None) != (part.profiles is None):
    raise ValueError('profiles without their query set, or the other way')
  if part.profiles is None and part.baseline_profiles is not None:
    raise ValueError('profiles of a content-free question alone')
  optional = (getattr(part, name) for name in _OPTIONAL)
  for array in (part.mass_ELNQR, part.count_ER, *optional):
    if array is not None and len(array) != len(part.rows):
      raise ValueError(f'{len(array)} arrays for {len(part.rows)} rows')


def pack(part: Part) -> tuple[dict, dict[str, np.ndarray]]:
  """(head, arrays) of a part, as PartStore.put takes them."""
  head = {
    'profile_set': part.profile_set,
    'rows': part.rows,
    'rejected': part.rejected,
  }
  arrays = {
    'mass': part.mass_ELNQR.astype(np.float32),
    'count': part.count_ER.astype(np.int32),
  }
  for name in _OPTIONAL:
    array = getattr(part, name)
    if array is not None:
      arrays[name] = array.astype(np.float32)
  ragged = (
    part.evidence,
    part.shifted,
    part.profiles,
    part.baseline_profiles,
  )
  for name, values in zip(_RAGGED, ragged):
    for e, value in enumerate(values if values is not None else ()):
      arrays[f'{name}_{e}'] = value
  return head, arrays


class ScoreStore(parts_lib.PartStore):
  """The parts of a ranking's run."""

  def write(self, index: int, part: Part) -> None:
    """Writes one part, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    self.put(index, *pack(part))

  def read(self, index: int) -> Part:
    """Reads one part back.

    Raises:
      UserError: it is unreadable (the message says to remove it), or a part of
        another run.
    """
    head, arrays = self.open(index)
    with parts_lib.readable(self.path(index)):
      n = len(head['rows'])
      ragged = {
        name: [arrays[f'{name}_{e}'] for e in range(n)]
        for name in _RAGGED
        if f'{name}_0' in arrays or name in ('evidence', 'shifted')
      }
      part = Part(
        rows=head['rows'],
        rejected=head['rejected'],
        mass_ELNQR=arrays['mass'],
        count_ER=arrays['count'],
        evidence=ragged['evidence'],
        shifted=ragged['shifted'],
        profiles=ragged.get('profile'),
        baseline_profiles=ragged.get('baseline_profile'),
        profile_set=head['profile_set'],
        **{name: arrays.get(name) for name in _OPTIONAL},
      )
      _check(part)
      return part

  def load(self) -> tuple[scores_lib.Scores, list[dict], list[dict]]:
    """All parts as (Scores, rows of examples.jsonl, rejected records).

    What some parts hold and others lack (another profile set, say, after the
    settings of an unfinished run were changed) is left out.

    Raises:
      UserError: a part is missing or unreadable, or nothing was measured.
    """
    parts = [self.read(i) for i in range(self.n_parts)]
    rejected = [r for part in parts for r in part.rejected]
    parts = [part for part in parts if part.rows]
    if not parts:
      reasons = sorted({r['reason'] for r in rejected})
      raise errors.UserError(
        f'{self.folder}: none of {len(rejected)} examples could be used '
        f'({"; ".join(reasons) or "the split is empty"}); see rejected.jsonl'
      )
    rows = [row for part in parts for row in part.rows]

    def joined(name):
      return [value for part in parts for value in getattr(part, name)]

    def stacked(name):
      arrays = [getattr(part, name) for part in parts]
      if any(array is None for array in arrays):
        return None
      return np.concatenate(arrays)

    profile_sets = {part.profile_set for part in parts}
    profile_set = profile_sets.pop() if len(profile_sets) == 1 else None
    kept = profile_set and all(part.baseline_profiles for part in parts)
    return (
      scores_lib.Scores(
        mass_ELNQR=np.concatenate([part.mass_ELNQR for part in parts]),
        count_ER=np.concatenate([part.count_ER for part in parts]),
        ids=[row['id'] for row in rows],
        clusters=[row['cluster'] for row in rows],
        tasks=[row['task'] for row in rows],
        media=[row['media'] for row in rows],
        layouts=[row['layout'] for row in rows],
        correct_E=np.array([row['correct'] for row in rows], bool),
        logprob_E=np.array([row['logprob'] for row in rows], np.float32),
        evidence=joined('evidence'),
        shifted=joined('shifted'),
        profiles=joined('profiles') if profile_set else None,
        baseline_profiles=joined('baseline_profiles') if kept else None,
        profile_set=profile_set,
        **{name: stacked(name) for name in _OPTIONAL},
      ),
      rows,
      rejected,
    )
