"""Carry out PROTOCOL.md: train, rank, ablate, compare, judge; one report.

    python -m experiments.reproduce
    python -m experiments.reproduce --trained=runs/train_organism
    python -m experiments.reproduce --models=small-1 --also=
    python -m experiments.reproduce --models=internvl-small-1,small-1

Every run has its own folder under --out (train/, rank/, ablate/, proxy/,
compare/), so that the same command again goes on where it stopped, and each can
be looked at by itself. Writes report.html, claims.csv (the verdicts), cases.csv
(what they rest on), grid.csv (every ablation), claims.png and run.json.
On 2 cores: about 90 CPU minutes of training and as much again for the rest.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax import claims as claims_lib

setting = config_lib.setting

RESULTS = (
  'report.html',
  'claims.csv',
  'cases.csv',
  'grid.csv',
  'claims.png',
)
_MODEL = re.compile(
  r'((internvl|qwen3_vl)-)?(base|small|tiny)-(\d{1,6})', re.ASCII
)
PROTOCOL = 'base-1,base-2,base-3,small-1,small-2,small-3'
# Of amendment 2.
ADDED = (
  'internvl-small-1,internvl-small-2,internvl-small-3,'
  'qwen3_vl-small-1,qwen3_vl-small-2,qwen3_vl-small-3'
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a reproduction; the defaults are the protocol's."""

  models: str = setting(
    PROTOCOL,
    'what is trained and counted: sizes and seeds of train_organism, behind a '
    'family other than LLaVA (internvl-small-1, qwen3_vl-small-1)',
  )
  also: str = setting(
    'scenes-8x8,scenes-4x8',
    'checkpoints that are put through the same runs and counted nowhere, '
    "embedded ones or folders of LLaVAs; '' is none",
  )
  trained: str = setting(
    '',
    "folder of trained models, <name>/model; '' trains what <out>/train lacks",
  )
  rank_limit: int = setting(400, 'records to rank on')
  limit: int = setting(800, 'records to ablate on')
  draws: int = setting(10, 'draws of each random group')
  k: str = setting('', "numbers of heads of the main grid; '' is ablate's own")
  bootstrap: int = setting(1000, 'bootstrap resamples of the clusters')
  permutations: int = setting(2000, 'permutations of the heads, for p values')
  seed: int = setting(0, 'of the data that are ranked and judged on')
  out: str = setting('runs/reproduce', 'folder of all runs')
  resume: bool = setting(
    True, 'continue what the run folder holds; --noresume starts it over'
  )

  def __post_init__(self):
    for name in ('rank_limit', 'limit'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    for name in ('draws', 'bootstrap', 'permutations', 'seed'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; give 0 or more'
        )
    for name in self.counted:
      if not _MODEL.fullmatch(name):
        raise errors.UserError(
          f'--models={self.models}: {name!r} is no size and seed; write base-1 '
          'or internvl-small-1'
        )
    names = [*self.counted, *self.beside]
    if not names or len(set(names)) < len(names):
      raise errors.UserError(
        f'--models={self.models} --also={self.also}: '
        + ('a model stands twice' if names else 'no model is named')
      )

  @property
  def counted(self) -> tuple[str, ...]:
    """Models that the verdicts are on."""
    return tuple(m.strip() for m in self.models.split(',') if m.strip())

  @property
  def beside(self) -> tuple[str, ...]:
    """Checkpoints that are shown apart."""
    return tuple(m.strip() for m in self.also.split(',') if m.strip())

  @property
  def deviations(self) -> list[str]:
    """Settings that are not the protocol's, as flags."""
    free = {'trained', 'out', 'resume'}
    if self.models in (ADDED, f'{PROTOCOL},{ADDED}'):
      free.add('models')
    return [
      f'--{field.name}={getattr(self, field.name)}'
      for field in dataclasses.fields(self)
      if field.name not in free and getattr(self, field.name) != field.default
    ]


@dataclasses.dataclass(frozen=True)
class Result:
  """What a reproduction returns.

  Attributes:
    cases: every claim on every model and data set.
    verdicts: family -> claim -> what the counted cases come to; LLaVA's first,
      'families' last where there are several.
    out: the run folder.
  """

  cases: list[claims_lib.Case]
  verdicts: dict[str, dict[str, str]]
  out: pathlib.Path


def run(config: Config) -> Result:
  """Makes the runs that are not made yet, applies the rules, reports.

  Raises:
    UserError: something outside is wrong; see the experiments.
  """
  from corejax import parts
  from corejax.experiments import compile_cache
  from corejax.experiments import report
  from corejax.experiments import reproduce_cases
  from corejax.experiments import reproduce_report
  from corejax.experiments import reproduce_runs
  from corejax.experiments import resources
  from corejax.experiments import runs

  resources.quiet()
  out = runs.folder_path(config.out)
  # Not which models: others may be added to what is there.
  identity = {
    name: getattr(config, name)
    for name in ('rank_limit', 'limit', 'draws', 'k', 'seed')
  }
  record = {
    'experiment': 'reproduce',
    'flags': dataclasses.asdict(config),
    'deviations': config.deviations,
  }
  with (
    runs.open_run(out, identity, record, config.resume) as folder,
    compile_cache.beside(out / 'rank'),  # one for all of its runs
  ):
    for name in RESULTS:
      with parts.changing(out / name):
        (out / name).unlink(missing_ok=True)
    made = [
      reproduce_runs.make(config, out, name, name in config.counted)
      for name in (*config.counted, *config.beside)
    ]
    reproduce_runs.compare_all(config, out, made)
    cases = reproduce_cases.all_cases(made)
    counted = [case for case in cases if case.model not in config.beside]
    parts = reproduce_cases.by_family(made, counted)
    verdicts = {
      part: reproduce_cases.verdicts(cases_of, part)
      for part, cases_of in parts.items()
    }
    folder.write('cases.csv', reproduce_report.cases_csv(cases))
    folder.write('claims.csv', reproduce_report.claims_csv(parts, verdicts))
    folder.write('grid.csv', reproduce_report.grid_csv(made))
    picture = reproduce_report.figure(made, config.beside)
    folder.write('claims.png', picture)
    summary = reproduce_report.summary(config, parts, verdicts)
    folder.write(
      report.FILE,
      reproduce_report.page(
        made, cases, parts, verdicts, config.beside, picture, summary
      ),
    )
    folder.record['summary'] = summary
    folder.record['verdicts'] = verdicts
  print('\n'.join(summary))
  print(f'files    {out}/{", ".join(RESULTS)}, run.json')
  return Result(cases, verdicts, out)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
