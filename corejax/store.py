"""The score store: one immutable file per batch, and which exist is the state.

    <run>/scores/part-00000.npz
                 part-00001.npz        absent = still to be measured
                 .part-00002.npz.tmp   a write that was cut off; overwritten

A batch is records [b * size, (b + 1) * size) of the source whatever the number
of processes and devices, so a resumed run makes the same files.
"""

from collections.abc import Sequence
import dataclasses
import io
import json
import os
import pathlib
import zipfile

import numpy as np

from corejax import errors
from corejax import scores as scores_lib

_OPTIONAL = ('baseline_ELNQR', 'written_ELNQ', 'gradient_ELN')
_RAGGED = ('evidence', 'shifted', 'profile')


@dataclasses.dataclass(frozen=True)
class Part:
  """What one batch left behind.

  Attributes:
    rows: per measured example a JSON-able dict: index, id, cluster, task,
      layout, correct, logprob, and whatever else examples.jsonl should say.
    rejected: per rejected record a JSON-able dict: index, id, reason, detail.
    mass_ELNQR, count_ER, evidence, shifted, profiles, profile_set,
      baseline_ELNQR, written_ELNQ, gradient_ELN: as in scores.Scores, for this
      batch's measured examples.
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
  written_ELNQ: np.ndarray | None = None
  gradient_ELN: np.ndarray | None = None


def write_atomic(path: os.PathLike | str, data: bytes) -> None:
  """Writes a file that is either whole or absent.

  Raises:
    UserError: the disk is full or the folder cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.parent / f'.{path.name}.tmp'
  try:
    with open(temporary, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except OSError as e:
    temporary.unlink(missing_ok=True)
    raise errors.UserError(
      f'{path}: cannot be written ({e.strerror or e}); earlier parts are kept: '
      'make room or mend the folder and run the same command again'
    ) from e


class ScoreStore:
  """The parts of one run.

  Attributes:
    folder: where they lie.
    n_parts: how many there will be.
    run: what the parts belong to; a part of another run is not read.
  """

  def __init__(self, folder: os.PathLike | str, n_parts: int, run: str = ''):
    self.folder = pathlib.Path(folder)
    self.n_parts = n_parts
    self.run = run

  def path(self, index: int) -> pathlib.Path:
    return self.folder / f'part-{index:05d}.npz'

  def missing(self) -> list[int]:
    """Indices of the parts that are still to be measured."""
    return [i for i in range(self.n_parts) if not self.path(i).exists()]

  def clear(self) -> None:
    """Removes every part."""
    for path in self.folder.glob('*part-*.npz*'):  # cut-off writes too
      path.unlink()

  def write(self, index: int, part: Part) -> None:
    """Writes one part, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    head = {
      'run': self.run,
      'profile_set': part.profile_set,
      'rows': part.rows,
      'rejected': part.rejected,
    }
    arrays = {
      'head': np.array(json.dumps(head)),
      'mass': part.mass_ELNQR.astype(np.float32),
      'count': part.count_ER.astype(np.int32),
    }
    for name in _OPTIONAL:
      array = getattr(part, name)
      if array is not None:
        arrays[name] = array.astype(np.float32)
    ragged = (part.evidence, part.shifted, part.profiles)
    for name, values in zip(_RAGGED, ragged):
      for e, value in enumerate(values if values is not None else ()):
        arrays[f'{name}_{e}'] = value
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise errors.UserError(
        f'{self.folder}: cannot be made ({e.strerror}); choose another --out'
      ) from e
    write_atomic(self.path(index), buffer.getvalue())

  def read(self, index: int) -> Part:
    """Reads one part back.

    Raises:
      UserError: it is unreadable; the message says to remove it.
    """
    path = self.path(index)
    try:
      with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as f:
        arrays = dict(f)
      head = json.loads(str(arrays['head']))
      if head['run'] != self.run:
        raise errors.UserError(
          f'{path}: a part of another run ({head["run"]}, this is {self.run}); '
          'choose another --out, or --noresume to start this one over'
        )
      n = len(head['rows'])
      ragged = {
        name: [arrays[f'{name}_{e}'] for e in range(n)]
        for name in _RAGGED
        if f'{name}_0' in arrays or name != 'profile'
      }
      return Part(
        rows=head['rows'],
        rejected=head['rejected'],
        mass_ELNQR=arrays['mass'],
        count_ER=arrays['count'],
        evidence=ragged['evidence'],
        shifted=ragged['shifted'],
        profiles=ragged.get('profile'),
        profile_set=head['profile_set'],
        **{name: arrays.get(name) for name in _OPTIONAL},
      )
    except errors.UserError:
      raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
      raise errors.UserError(
        f'{path}: not a readable store part ({type(e).__name__}: {e}); remove '
        'this file and run the same command again'
      ) from e

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
        profile_set=profile_set,
        **{name: stacked(name) for name in _OPTIONAL},
      ),
      rows,
      rejected,
    )
