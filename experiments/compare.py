"""Compare rankings over data sets, query sets, models and scales.

    python -m experiments.compare runs/rank/a runs/rank/b
    python -m experiments.compare runs/rank/a other_tool.json --select=top30
    python -m experiments.compare runs/ablate/small runs/ablate/large
    python -m experiments.compare runs/rank/a runs/rank/b --transfer
    python -m experiments.compare --data=scenes_referring,scenes_pages

RUN is the folder of a finished rank or ablate run, or a JSON file of scores per
sample ({"layer-head": [..], ..}). A rank run gives one ranking a query set.
Models of one shape are compared head by head (Spearman, overlap, RBO, against
chance and noise), others by sparsity, relative depth and ablation curves.
--transfer also cuts the heads of each run on the data of each (experiments.
ablate, which runs the models). With --data and no RUN, the data sets are ranked
first (experiments.rank, with its own settings but for those flags that are here
too), in folders of --out that later comparisons can name. Writes report.html,
compare.csv, structure.csv, curves.csv, transfer.csv, cross.csv (of ablate
--data=a,b), figures and run.json into --out.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib
from corejax.experiments import several

if TYPE_CHECKING:
  from corejax import compare as compare_lib
  from corejax import cross as cross_lib
  from corejax.experiments import compare_runs
  from corejax.experiments import transfer as transfer_lib

setting = config_lib.setting

RANKINGS, STRUCTURE, CURVES = PARTS = ('rankings', 'structure', 'curves')
RESULTS = (
  'report.html',
  'compare.csv',
  'structure.csv',
  'curves.csv',
  'transfer.csv',
  'cross.csv',
  'cross.png',
  'matrix.png',
  'structure.png',
  'curves.png',
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a comparison."""

  runs: tuple[str, ...] = config_lib.arguments(
    'RUN', 'run folders or JSON files of scores per sample, two or more'
  )
  data: str = setting(
    '', 'instead of RUNs: data sets to rank first, two or more, comma-separated'
  )
  data_dir: str = setting('', 'with --data: their folders, as a=DIR,b=DIR')
  model: str = setting('llava_flax', 'with --data: model family')
  checkpoint: str = setting('', 'with --data: checkpoint, as experiments.rank')
  limit: int = setting(400, 'with --data: records of each; 0 is all')
  select: str = setting('top5%', 'which heads are the set: top5% or top30')
  query: str = setting(
    'all',
    'rows by which the heads of rank runs are ranked',
    ('all', 'question', 'last', 'answer'),
  )
  norm: str = setting(
    'mass',
    'what they are ranked by, whatever the run itself took',
    ('mass', 'share', 'lift', 'excess'),
  )
  parts: str = setting(
    '',
    f"what to compare, of {','.join(PARTS)}; '' is whatever the runs allow",
  )
  transfer: bool = setting(
    False, "cut each run's first heads on each run's data, by ablate"
  )
  export: bool = setting(
    False, 'write the rankings and sets for other tools, into exchange/'
  )
  bootstrap: int = setting(1000, 'bootstrap resamples of the clusters')
  permutations: int = setting(2000, 'permutations of the heads, for p values')
  seed: int = setting(0, 'of resamples and permutations')
  out: str = setting('', "run folder; '' is runs/compare/<names of the runs>")
  resume: bool = setting(
    True, '--noresume overwrites another comparison in the run folder'
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, choices = getattr(self, field.name), field.metadata['choices']
      if choices and value not in choices:
        raise errors.UserError(
          f'--{field.name}={value}: not one of {", ".join(choices)}'
        )
    for name in ('bootstrap', 'permutations', 'seed', 'limit'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; give 0 or more'
        )
    for part in self.asked:
      if part not in PARTS:
        raise errors.UserError(
          f'--parts={self.parts}: {part!r} is none of {", ".join(PARTS)}'
        )
    if self.data:
      if self.runs or not several.asked(self.data):
        raise errors.UserError(
          f'--data={self.data[:80]}: '
          + (
            'give RUNs or --data'
            if self.runs
            else 'a comparison needs two data sets or more'
          )
        )
    elif len(self.runs) < 2:
      given = (
        f'only {self.runs[0]!r} is given' if self.runs else 'none is given'
      )
      raise errors.UserError(
        f'a comparison needs two runs or more, {given}; see --help'
      )

  @property
  def asked(self) -> tuple[str, ...]:
    """Parts asked for by name."""
    return tuple(p.strip() for p in self.parts.split(',') if p.strip())

  def wants(self, part: str) -> bool:
    return not self.asked or part in self.asked


@dataclasses.dataclass(frozen=True)
class Result:
  """What a comparison returns.

  Attributes:
    comparison: of the rankings; None if the runs hold none.
    transfers: what the heads of one run do on the data of another.
    runs: what was compared.
    out: the run folder.
  """

  comparison: compare_lib.Comparison | None
  transfers: tuple[transfer_lib.Effect, ...]
  runs: tuple[compare_runs.Run, ...]
  out: pathlib.Path


def run(config: Config, cells: Sequence[cross_lib.Cell] = ()) -> Result:
  """Compares, writes, and says what was found.

  Args:
    config: with runs; several.compare takes one with data sets.
    cells: what heads of each data set do on each, to be reported beside.

  Raises:
    UserError: a run cannot be read, or what was asked for cannot be compared.
  """
  with cli_lib.Stop() as stop, stop.at_once():
    from corejax import compare as compare_lib
    from corejax.experiments import compare_runs
    from corejax.experiments import runs as runs_lib

    compare_lib.check_rule(config.select)
    compared = compare_runs.load(config.runs, config.query, config.norm)
    _check(config, compared)
    labels = '-'.join(each.label for each in compared)
    out = runs_lib.folder_path(config.out or f'runs/compare/{labels[:80]}')
    planned = []
    if config.transfer:
      from corejax.experiments import transfer as transfer_lib

      planned = transfer_lib.plan(
        compared, config.select, out / 'transfer', config.resume
      )
    identity = {
      'experiment': 'compare',
      'runs': {each.label: each.digest for each in compared},
    }
    record = {
      'experiment': 'compare',
      'flags': dataclasses.asdict(config),
    }
    with runs_lib.open_run(out, identity, record, config.resume) as folder:
      return _finish(config, folder, compared, planned, cells)


def _check(config: Config, compared) -> None:
  """Refuses parts that were asked for and cannot be had."""
  ranked = [each for each in compared if each.sides]
  if RANKINGS in config.asked:
    shapes = {each.sides[0].shape: each.label for each in ranked}
    if len(ranked) < 2:
      raise errors.UserError(
        f'--parts={config.parts}: {len(ranked)} of these runs hold rankings; '
        'give two rank runs'
      )
    if len(shapes) > 1:
      told = ', '.join(
        f'{label} {layers} x {heads}'
        for (layers, heads), label in shapes.items()
      )
      raise errors.UserError(
        f'--parts={config.parts}: rankings of one shape can be compared head '
        f'by head, these have {told}; use --parts={STRUCTURE}'
      )
  if STRUCTURE in config.asked and not ranked:
    raise errors.UserError(
      f'--parts={config.parts}: none of these runs holds a ranking'
    )
  if CURVES in config.asked and not any(each.curve for each in compared):
    raise errors.UserError(
      f'--parts={config.parts}: none of these runs is an ablation'
    )


def _finish(config: Config, folder, compared, planned, cells) -> Result:
  """Compares and writes everything."""
  from corejax import compare as compare_lib
  from corejax import parts as parts_lib
  from corejax.experiments import compare_figures
  from corejax.experiments import compare_report
  from corejax.experiments import compare_runs
  from corejax.experiments import compare_text
  from corejax.experiments import report

  for name in RESULTS:  # of an earlier comparison, of other parts
    with parts_lib.changing(folder.path / name):
      (folder.path / name).unlink(missing_ok=True)
  sides = [side for each in compared for side in each.sides]
  curves = compare_runs.curves(compared) if config.wants(CURVES) else []
  comparison, figures = None, {}
  if sides and (config.wants(RANKINGS) or config.wants(STRUCTURE)):
    comparison = compare_lib.compare(
      sides,
      select=config.select,
      bootstrap=config.bootstrap,
      permutations=config.permutations,
      seed=config.seed,
    )
    if not config.wants(RANKINGS):
      comparison = dataclasses.replace(comparison, agreements=())
    if not config.wants(STRUCTURE):
      comparison = dataclasses.replace(comparison, structures=())
    if comparison.agreements:
      folder.write('compare.csv', compare_text.to_csv(comparison.agreements))
      figures['matrix.png'] = compare_figures.matrix(comparison, config.select)
    if comparison.structures:
      folder.write('structure.csv', compare_text.to_csv(comparison.structures))
      figures['structure.png'] = compare_figures.structure(comparison)
  if curves:
    folder.write('curves.csv', compare_text.to_csv(curves))
    figures['curves.png'] = compare_figures.curves(curves)
  transfers = []
  if planned:
    from corejax.experiments import transfer as transfer_lib

    transfers = transfer_lib.run(planned)
    folder.write('transfer.csv', compare_text.to_csv(transfers))
  if cells:
    folder.write('cross.csv', compare_text.to_csv(cells))
    figures['cross.png'] = compare_figures.cross(cells)
  for name, picture in figures.items():
    folder.write(name, picture)
  if config.export and comparison is not None:
    compare_runs.export(
      compared, comparison, config.norm, folder.path / 'exchange'
    )
  summary = compare_text.summary(
    compared, comparison, curves, transfers, config.norm, cells
  )
  folder.write(
    report.FILE,
    compare_report.page(
      compared,
      comparison,
      curves,
      transfers,
      figures,
      summary,
      cells,
      compare_runs.links(compared, folder.path),
    ),
  )
  folder.record['summary'] = summary
  print('\n'.join(summary))
  written = [name for name in RESULTS if (folder.path / name).exists()]
  print(f'files    {folder.path}/{", ".join(written)}, run.json')
  return Result(comparison, tuple(transfers), compared, folder.path)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(
    argv,
    Config,
    lambda c: (several.compare if c.data else run)(c),
    __doc__ or '',
  )


if __name__ == '__main__':
  sys.exit(cli())
