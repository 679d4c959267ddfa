"""Heads found in one run, cut in the model and on the data of another."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

from corejax import errors
from corejax.data import sources
from corejax.experiments import compare_runs
from corejax.experiments import config as config_lib
from corejax.experiments import finished

# Of the run that the data are of; where and how it ran is this run's affair.
_NOT_TAKEN = {
  'split',
  'out',
  'resume',
  'dry_run',
  'list_models',
  'list_data',
  'trace_steps',
}


@dataclasses.dataclass(frozen=True)
class Transfer:
  """One ablation to make.

  Attributes:
    heads_from, data_of: labels of the runs.
    settings: fields of ablate.Config.
  """

  heads_from: str
  data_of: str
  settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Effect:
  """What cutting the heads of one run does on the data of another.

  Attributes:
    heads_from, data_of: labels of the runs.
    split: of the data.
    k: heads cut.
    kind: 'retrieval' or 'twin'.
    n: examples.
    intact: accuracy with all heads.
    accuracy, low, high: with the heads cut.
    control: with as many random heads of the same layers; nan without draws.
    delta, delta_low, delta_high: accuracy minus intact, paired.
  """

  heads_from: str
  data_of: str
  split: str
  k: int
  kind: str
  n: int
  intact: float
  accuracy: float
  low: float
  high: float
  control: float
  delta: float
  delta_low: float
  delta_high: float


def plan(
  runs: Sequence[compare_runs.Run],
  select: str,
  out: pathlib.Path,
  resume: bool = True,
) -> list[Transfer]:
  """The ablations of every pair of rank runs of one shape, its own included.

  Measured is on the split that the other run is of; where the heads were ranked
  on just that, on another split, if the data have one.

  Args:
    runs: what is compared; files and ablations have no part.
    select: which heads are cut, of each run's own ranking.
    out: folder for their run folders.
    resume: continue what those hold.

  Raises:
    UserError: there are no two rank runs of one shape.
  """
  ranked = [run for run in runs if run.kind == finished.RANK]
  found = [
    _transfer(a, b, select, out, resume)
    for a in ranked
    for b in ranked
    if a.sides[0].shape == b.sides[0].shape
  ]
  if len(found) <= len(ranked):
    raise errors.UserError(
      '--transfer: no two of these are rank runs of models of one shape '
      f'({"; ".join(_shape(run) for run in ranked) or "no rank run at all"})'
    )
  return found


def _shape(run: compare_runs.Run) -> str:
  layers, heads = run.sides[0].shape
  return f'{run.label} {layers} x {heads}'


def _transfer(a, b, select, out, resume) -> Transfer:
  flags = b.folder.record['flags']
  shared = {
    field.name: flags[field.name]
    for field in dataclasses.fields(config_lib.Shared)
    if field.name in flags and field.name not in _NOT_TAKEN
  }
  split = b.folder.identity['split']
  ranked_on = a.folder.identity['data'], a.folder.identity['split']
  if ranked_on == (shared['data'], split):
    others = [s for s in sources.splits(shared['data']) if s != split]
    # What a model was trained on comes last.
    split = next(
      (s for s in ('test', 'validation', *others) if s in others), split
    )
  return Transfer(
    a.label,
    b.label,
    shared
    | {
      'heads': f'@{a.path}:{select}',
      'split': split,
      'out': str(out / f'{a.label}-on-{b.label}'),
      'resume': resume,
    },
  )


def run(transfers: Sequence[Transfer]) -> list[Effect]:
  """Makes the ablations that are not made yet, and reads what they found.

  Raises:
    UserError: see ablate.run.
  """
  from corejax.experiments import ablate

  effects = []
  for each in transfers:
    print(f'transfer: heads of {each.heads_from} cut on {each.data_of}')
    config = ablate.Config(**each.settings)
    ablate.run(config)
    effects += read(each, ablate.out_folder(config))
  return effects


def read(transfer: Transfer, out: pathlib.Path) -> list[Effect]:
  """Reads a finished ablation of given heads.

  Raises:
    UserError: it cannot be read.
  """
  rows = finished.main_rows(finished.read_curve(finished.open_folder(str(out))))
  effects = []
  for kind in ('retrieval', 'twin'):
    of_kind = finished.of_kind(rows, kind == 'twin')
    intact = [r for r in of_kind if not r.k]
    cut = [r for r in of_kind if r.k and r.group == 'given']
    control = [r for r in of_kind if r.k and r.group == compare_runs.CONTROL]
    effects += [
      Effect(
        heads_from=transfer.heads_from,
        data_of=transfer.data_of,
        split=transfer.settings['split'],
        k=row.k,
        kind=kind,
        n=row.n,
        intact=intact[0].accuracy if intact else math.nan,
        accuracy=row.accuracy,
        low=row.ci_low,
        high=row.ci_high,
        control=control[0].accuracy if control else math.nan,
        delta=row.delta,
        delta_low=row.delta_ci_low,
        delta_high=row.delta_ci_high,
      )
      for row in cut
    ]
  return effects
