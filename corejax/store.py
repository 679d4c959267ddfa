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
import zipfile

from etils import epath
import numpy as np

from corejax import errors
from corejax import scores as scores_lib

_RAGGED = ('evidence', 'shifted', 'profile')


@dataclasses.dataclass(frozen=True)
class Part:
  """What one batch left behind.

  Attributes:
    rows: per measured example a JSON-able dict: index, id, cluster, task,
      layout, correct, logprob, and whatever else examples.jsonl should say.
    rejected: per rejected record a JSON-able dict: index, id, reason, detail.
    mass_ELNQR, count_ER, evidence, shifted, profiles, baseline_ELNQR: as in
      scores.Scores, for this batch's measured examples.
  """

  rows: Sequence[dict]
  rejected: Sequence[dict]
  mass_ELNQR: np.ndarray
  count_ER: np.ndarray
  evidence: Sequence[np.ndarray]
  shifted: Sequence[np.ndarray]
  profiles: Sequence[np.ndarray] | None = None
  baseline_ELNQR: np.ndarray | None = None


def write_atomic(path: os.PathLike | str, data: bytes) -> None:
  """Writes a file that is either whole or absent.

  Raises:
    UserError: the disk is full or the folder cannot be written.
  """
  path = epath.Path(path)
  temporary = path.parent / f'.{path.name}.tmp'
  try:
    if '://' in os.fspath(path):
      path.write_bytes(data)  # an object store's put is whole or absent
      return
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
  """

  def __init__(self, folder: os.PathLike | str, n_parts: int):
    self.folder = epath.Path(folder)
    self.n_parts = n_parts

  def path(self, index: int) -> epath.Path:
    return self.folder / f'part-{index:05d}.npz'

  def missing(self) -> list[int]:
    """Indices of the parts that are still to be measured."""
    return [i for i in range(self.n_parts) if not self.path(i).exists()]

  def clear(self) -> None:
    """Removes every part."""
    for path in self.folder.glob('*part-*.npz*'):
      path.unlink()

  def write(self, index: int, part: Part) -> None:
    """Writes one part, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    arrays = {
      'head': np.array(
        json.dumps({'rows': part.rows, 'rejected': part.rejected})
      ),
      'mass': part.mass_ELNQR.astype(np.float32),
      'count': part.count_ER.astype(np.int32),
    }
    if part.baseline_ELNQR is not None:
      arrays['baseline'] = part.baseline_ELNQR.astype(np.float32)
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
        baseline_ELNQR=arrays.get('baseline'),
      )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
      raise errors.UserError(
        f'{path}: not a readable store part ({type(e).__name__}: {e}); remove '
        'this file and run the same command again'
      ) from e

  def load(
    self, profile_set: str | None
  ) -> tuple[scores_lib.Scores, list[dict], list[dict]]:
    """All parts as (Scores, rows of examples.jsonl, rejected records).

    Args:
      profile_set: the query set of the profiles, None if none were kept.

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

    baselines = [
      part.baseline_ELNQR for part in parts if part.baseline_ELNQR is not None
    ]
    return (
      scores_lib.Scores(
        mass_ELNQR=np.concatenate([part.mass_ELNQR for part in parts]),
        count_ER=np.concatenate([part.count_ER for part in parts]),
        ids=[row['id'] for row in rows],
        clusters=[row['cluster'] for row in rows],
        tasks=[row['task'] for row in rows],
        layouts=[row['layout'] for row in rows],
        correct_E=np.array([row['correct'] for row in rows], bool),
        logprob_E=np.array([row['logprob'] for row in rows], np.float32),
        evidence=joined('evidence'),
        shifted=joined('shifted'),
        profiles=joined('profiles') if profile_set else None,
        profile_set=profile_set,
        baseline_ELNQR=(np.concatenate(baselines) if baselines else None),
      ),
      rows,
      rejected,
    )
