"""Do the heads stay the same where the data shift? Axes of drawn scenes.

    python -m experiments.shift --model=llava_flax
    python -m experiments.shift --axes=noise,length --noise=1,2 --length=4,8

Ranks the heads on the usual scenes (the reference set), then shifts one thing
at a time and leaves the rest as usual: noise, resolution, size of the evidence,
distractors, length, depth (shift_levels.py says what each is). At each level:
accuracy on look-ups and twins, RAM of the reference set, overlap and Spearman
of the level's own ranking with the usual one, beside what the usual scenes give
when they are drawn anew, and what cutting the reference set and the level's own
set costs against layer-matched heads (the endpoint of ablate). Heads are ranked
on one split (--rank_split) and judged on another.

Writes report.html, shift.csv, shift.png and run.json into --out. The same
command again continues where it stopped; other axes and levels are added to
what is there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib
from corejax.experiments import cutting

if TYPE_CHECKING:
  from corejax.experiments import shift_levels
  from corejax.experiments import shift_table

setting = config_lib.setting

RESULTS = ('report.html', 'shift.csv', 'shift.png')
_OF_THE_SET = "; '' is a few that suit the data set"


@dataclasses.dataclass(frozen=True)
class Config(cutting.Settings):
  """Settings of a shift."""

  axes: str = setting(
    '',
    'what is shifted, of noise,resolution,size,distractors,length,depth; '
    "'' is all that the data set has",
  )
  noise: str = setting(
    '1,2,4',
    'levels: standard deviation of what is added to every pixel, as a share '
    'of 255',
  )
  resolution: str = setting(
    '0.25,0.125,0.0625', 'levels: share of the pixels kept along an edge'
  )
  size: str = setting(
    '0.5,0.75,1.25',
    'levels: edge of a glyph, times the usual; 1.25 fills its cell',
  )
  distractors: str = setting(
    '', 'levels: other marks on each page' + _OF_THE_SET
  )
  length: str = setting(
    '', 'levels: pages of a document, frames of a video' + _OF_THE_SET
  )
  depth: str = setting(
    '0,0.5,1',
    'levels: where the page with the evidence lies, 0 (first) to 1 (last); '
    'the usual scenes have it anywhere',
  )
  select: str = setting('top5%', 'which heads are the set: top5% or top30')
  bootstrap: int = setting(1000, 'bootstrap resamples of the clusters')
  permutations: int = setting(2000, 'permutations of the heads, for p values')
  # Other defaults than those of experiments that cut heads on one data set.
  data: str = setting('scenes_haystack', 'scenes; see --list_data')
  limit: int = setting(200, 'use the first so many records; 0 is all')
  rank_limit: int = setting(200, 'records to rank on; 0 is all')
  draws: int = setting(5, 'draws of each random group')

  def __post_init__(self):
    super().__post_init__()
    for name in ('bootstrap', 'permutations'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; give 0 or more'
        )


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    table: every level.
    out: the run folder.
  """

  table: shift_table.Table
  out: pathlib.Path


def out_folder(config: Config) -> pathlib.Path:
  """Where the run goes."""
  from corejax.experiments import runs

  return runs.folder_path(
    config.out or f'runs/shift/{config.model}-{config.data}'
  )


def run(config: Config) -> Result | None:
  """Measures the levels that lack, compares, writes, says what was found.

  Returns:
    The Result; None with dry_run.

  Raises:
    UserError: something outside is wrong.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _identity(config: Config, resources) -> dict:
  """What all levels have in common: others may be added to a folder."""
  names = 'select query draws rank_limit'
  return {
    **cutting.identity(config, resources),
    'experiment': 'shift',
    **{name: getattr(config, name) for name in names.split()},
  }


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  with stop.at_once():
    from corejax import compare as compare_lib
    from corejax.experiments import ablate_sets
    from corejax.experiments import compile_cache
    from corejax.experiments import pods
    from corejax.experiments import resources as resources_lib
    from corejax.experiments import runs
    from corejax.experiments import shift_levels
    from corejax.experiments import shift_run

    pods.initialize()
    if not pods.is_alone():
      raise errors.UserError('shift runs in one process; start one alone')
    rule = compare_lib.check_rule(config.select)
    levels = shift_levels.plan(config)
    split = ablate_sets.splits(config)[1]
    source = shift_levels.source(
      config, levels[0], split, config.limit, config.twins
    )
    resources = resources_lib.load(config, source)
    rule.count(resources.loaded.n_layers, resources.loaded.n_heads)
    resources.check_batch(config.batch_size)
    tokens = _tokens(config, resources, levels, split)
  out = out_folder(config)
  about = _about(config, resources, levels, tokens, out)
  print(about, flush=True)
  if config.dry_run:
    return None
  record = {
    'experiment': 'shift',
    'flags': dataclasses.asdict(config),
    **resources.describe(),
  }
  with (
    runs.open_run(
      out, _identity(config, resources), record, config.resume
    ) as folder,
    compile_cache.beside(out),  # one for the folders of all levels
  ):
    _forget(out)
    measured: list[shift_run.Measured] = []
    for number, level in enumerate(levels):
      print(f'level {number + 1}/{len(levels)}: {level.name}', flush=True)
      measured.append(
        shift_run.level(
          config,
          resources,
          level,
          out / 'levels' / level.name,
          measured[0] if measured else None,
          stop,
        )
      )
    with stop.at_once():
      return _finish(config, folder, resources, measured)


def _forget(out: pathlib.Path) -> None:
  """Removes the results of an earlier run, of other levels."""
  from corejax import parts

  for name in RESULTS:
    with parts.changing(out / name):
      (out / name).unlink(missing_ok=True)


def _tokens(
  config: Config, resources, levels: list[shift_levels.Level], split: str
) -> list[int]:
  """Tokens of each level's first record.

  Raises:
    UserError: the model cannot take it; names the level's flag.
  """
  from corejax.experiments import shift_levels

  found = []
  for level in levels:
    first = shift_levels.source(config, level, split, 1)[0]
    try:
      encoded = resources.loaded.processor.encode(first)
    except errors.Rejected as e:
      flag = f'{level.axis}={level.text}' if level.axis else 'data'
      raise errors.UserError(
        f'--{flag}: the model cannot take such examples ({e}); leave this '
        'level out, or give fewer pages'
      ) from e
    found.append(len(encoded.tokens_T))
  return found


def _about(config: Config, resources, levels, tokens, out) -> str:
  """What is going to be measured."""
  from corejax.experiments import ablate_sets
  from corejax.experiments import session
  from corejax.experiments import shift_levels

  loaded = resources.loaded
  rank_split, split = ablate_sets.splits(config)
  lines = [
    f'{loaded.key}: {loaded.n_layers} layers x {loaded.n_heads} heads'
    + (f' ({resources.embedded})' if resources.embedded else ''),
    f'{config.data}: ranked on {rank_split}, judged on {split}: '
    f'{session.describe(resources.source, config.limit)} of {tokens[0]} tokens '
    f'-> {out}',
  ]
  for axis in shift_levels.axes(config):
    told = [
      f'{level.text} ({n} tokens)' if n != tokens[0] else level.text
      for level, n in zip(levels, tokens)
      if level.axis == axis
    ]
    lines.append(f'{axis:12} {", ".join(told) or "as usual alone"}')
  return '\n'.join(lines)


def _finish(config: Config, folder, resources, measured) -> Result:
  """The offline half: what was measured -> table -> files."""
  from corejax.experiments import report
  from corejax.experiments import shift_report
  from corejax.experiments import shift_table

  table = shift_table.build(
    measured,
    query=config.query,
    select=config.select,
    bootstrap=config.bootstrap,
    permutations=config.permutations,
    seed=config.seed,
  )
  summary = shift_table.summary(table)
  folder.write('shift.csv', shift_table.to_csv(table))
  usual = shift_report.usual_texts(config)
  picture = shift_report.figure(
    table,
    usual,
    f'{config.model} on {config.data}, {table.usual.lookups.n} look-ups a '
    f'level; {config.select}, {config.mode}',
  )
  folder.write('shift.png', picture)
  folder.write(
    report.FILE,
    shift_report.page(
      table,
      usual,
      summary,
      report.About.of(resources),
      picture,
      shift_report.shown(config, [each.level for each in measured]),
      config.mode,
    ),
  )
  folder.record['summary'] = summary
  print('\n'.join(summary))
  print(f'files    {folder.path}/{", ".join(RESULTS)}, run.json')
  return Result(table, folder.path)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
