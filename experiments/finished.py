"""Finished run folders, read back: what one run hands to another.

rank      arrays.npz, examples.jsonl -> Scores, without profiles, nulls,
          content-free questions and the sizes of single distractors
ablate    curve.csv -> its rows
"""

from __future__ import annotations

from collections.abc import Mapping
import csv
import dataclasses
import hashlib
import io
import json
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from corejax import errors
from corejax import regions
from corejax import scores as scores_lib

RANK, ABLATE = 'rank', 'ablate'
_FILES = {RANK: 'arrays.npz', ABLATE: 'curve.csv'}
_ROW = (
  'id',
  'cluster',
  'task',
  'media',
  'layout',
  'correct',
  'logprob',
  'visual_tokens',
  'evidence_tokens',
)
_TEXTS = ('group', 'seed', 'mode', 'phase', 'rows', 'task')
_INTEGERS = ('k', 'n')
_FLOATS = (
  'fraction',
  'accuracy',
  'ci_low',
  'ci_high',
  'delta',
  'delta_ci_low',
  'delta_ci_high',
)
# What zipfile, numpy and json say of bytes that are something else.
_UNREADABLE = (
  OSError,
  ValueError,
  LookupError,
  TypeError,
  EOFError,
  RuntimeError,
  zipfile.BadZipFile,
  zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Folder:
  """A finished run.

  Attributes:
    path: the folder.
    kind: RANK or ABLATE.
    record: its run.json.
  """

  path: pathlib.Path
  kind: str
  record: Mapping[str, Any]

  @property
  def identity(self) -> Mapping[str, Any]:
    """What decided its result."""
    return self.record['identity']

  @property
  def digest(self) -> str:
    """Hash of the results that `rank` or `ablate` left."""
    content = (self.path / _FILES[self.kind]).read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class CurveRow:
  """A row of curve.csv, see corejax.effects."""

  group: str
  k: int
  fraction: float
  seed: str
  mode: str
  phase: str
  rows: str
  task: str
  n: int
  accuracy: float
  ci_low: float
  ci_high: float
  delta: float
  delta_ci_low: float
  delta_ci_high: float


def open_folder(path: str) -> Folder:
  """Looks at a run folder.

  Raises:
    UserError: it is not there, holds no run, a run that is not finished, or
      one of another kind.
  """
  folder = pathlib.Path(path).expanduser()
  if not folder.is_dir():
    raise errors.UserError(
      f'{path!r}: no such run folder; give the --out of experiments.rank or '
      'experiments.ablate'
    )
  try:
    record = json.loads((folder / 'run.json').read_text('utf-8'))
    state = record['state']
    if not isinstance(record['identity'], dict):
      raise TypeError('its identity is no object')
  except FileNotFoundError as e:
    raise errors.UserError(
      f'{path!r}: not a run folder, there is no run.json in it'
    ) from e
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise errors.UserError(
      f'{path!r}: its run.json is unreadable ({e}); run it again'
    ) from e
  if state != 'done':
    raise errors.UserError(
      f'{path!r}: this run is not finished (its state is {state!r}); the same '
      'command again continues it'
    )
  there = [kind for kind, name in _FILES.items() if (folder / name).is_file()]
  kind = record.get('experiment') or (there[0] if there else 'of another kind')
  if kind not in there:
    raise errors.UserError(
      f'{path!r}: a run {kind!r} without '
      f'{_FILES.get(kind, " or ".join(_FILES.values()))}; give a run of '
      'experiments.rank or experiments.ablate'
    )
  return Folder(folder, kind, record)


def read_scores(folder: Folder) -> scores_lib.Scores:
  """What a ranking run measured, as far as its small files tell.

  Raises:
    UserError: they are unreadable, or do not belong together.
  """
  file = folder.path / _FILES[RANK]
  try:
    with np.load(file, allow_pickle=False) as f:
      mass_ELNQR, ids = f['mass'], [str(i) for i in f['example_ids']]
      axes = tuple(f['query_sets']), tuple(f['regions'])
  except _UNREADABLE as e:
    raise errors.UserError(
      f'{file}: unreadable ({type(e).__name__}: {e}); rank again'
    ) from e
  if axes != (regions.QUERY_SETS, regions.REGIONS) or (
    mass_ELNQR.ndim != 5
    or mass_ELNQR.shape[3:] != tuple(map(len, axes))
    or not mass_ELNQR.size
    or mass_ELNQR.dtype.kind != 'f'
  ):
    raise errors.UserError(
      f'{file}: not the query sets and regions of this version; rank again'
    )
  rows = _rows(folder.path / 'examples.jsonl')
  if [row['id'] for row in rows] != ids or len(ids) != len(mass_ELNQR):
    raise errors.UserError(
      f'{file}: {len(ids)} examples that are not the {len(rows)} of '
      'examples.jsonl; rank again'
    )
  count_ER = np.zeros((len(rows), len(regions.REGIONS)), np.int32)
  count_ER[:, regions.EVIDENCE] = [row['evidence_tokens'] for row in rows]
  count_ER[:, regions.OTHER_VISUAL] = [
    row['visual_tokens'] - row['evidence_tokens'] for row in rows
  ]
  return scores_lib.Scores(
    mass_ELNQR=mass_ELNQR,
    count_ER=count_ER,
    ids=ids,
    clusters=[row['cluster'] for row in rows],
    tasks=[row['task'] for row in rows],
    media=[row['media'] for row in rows],
    layouts=[row['layout'] for row in rows],
    correct_E=np.array([row['correct'] for row in rows], bool),
    logprob_E=np.array([row['logprob'] for row in rows], np.float32),
    evidence=(),
    shifted=(),
  )


def _rows(file: pathlib.Path) -> list[dict]:
  try:
    rows = [json.loads(line) for line in file.read_text('utf-8').splitlines()]
    for row in rows:
      for name in _ROW:
        if name.endswith('_tokens') and type(row[name]) is not int:
          raise TypeError(f'{name} is no whole number')
        if name in ('id', 'cluster', 'task', 'media') and (
          type(row[name]) is not str
        ):
          raise TypeError(f'{name} is no text')
  except _UNREADABLE as e:
    raise errors.UserError(
      f'{file}: unreadable ({type(e).__name__}: {e}); rank again'
    ) from e
  return rows


def cluster_keys(scores: scores_lib.Scores) -> list[str]:
  """A name of each example's cluster that is its own across data sets.

  The same name in two runs is the same pictures: two data sets may both number
  their documents, but they do not start with one picture.
  """
  first: dict[str, str] = {}
  for cluster, media in zip(scores.clusters, scores.media):
    first.setdefault(cluster, media)
  return [f'{cluster} {first[cluster]}' for cluster in scores.clusters]


def read_curve(folder: Folder) -> list[CurveRow]:
  """The rows of an ablation's curve.csv.

  Raises:
    UserError: it is unreadable, lacks a column, or holds no number where one
      belongs.
  """
  file = folder.path / _FILES[ABLATE]
  rows = []
  try:
    text = file.read_text('utf-8')
    for line in csv.DictReader(io.StringIO(text), strict=True):
      values: dict[str, Any] = {name: line[name] for name in _TEXTS}
      if None in line.values():
        raise ValueError(f'row {len(rows) + 1} is cut short')
      values |= {name: int(line[name]) for name in _INTEGERS}
      values |= {name: float(line[name]) for name in _FLOATS}
      if not (0 <= values['fraction'] <= 1 and 0 <= values['accuracy'] <= 1):
        raise ValueError(f'row {len(rows) + 1}: fraction or accuracy not 0..1')
      rows.append(CurveRow(**values))
  except KeyError as e:
    raise errors.UserError(f'{file}: no column {e}; ablate again') from e
  except (OSError, ValueError, TypeError, csv.Error) as e:
    raise errors.UserError(f'{file}: unreadable ({e}); ablate again') from e
  if not rows:
    raise errors.UserError(f'{file}: no rows; ablate again')
  return rows


def main_rows(rows: list[CurveRow]) -> list[CurveRow]:
  """Without the single draws of groups that were drawn several times."""
  merged = {
    (r.group, r.k, r.mode, r.phase, r.rows, r.task)
    for r in rows
    if r.seed == 'all'
  }
  return [
    r
    for r in rows
    if r.seed == 'all'
    or (r.group, r.k, r.mode, r.phase, r.rows, r.task) not in merged
  ]


def of_kind(rows: list[CurveRow], twin: bool) -> list[CurveRow]:
  """The rows of all look-ups together, or of all their twins.

  Where the data have one task of the kind, it is that task's rows.
  """
  kind = 'twin' if twin else 'retrieval'
  found = [r for r in rows if r.task == kind]
  if found:
    return found
  tasks = {
    r.task
    for r in rows
    if r.task not in ('twin', 'retrieval') and r.task.endswith('_twin') == twin
  }
  return [r for r in rows if r.task in tasks] if len(tasks) == 1 else []
