"""Several data sets in one command: `--data=a,b,c`.

    rank      <out>/a, ..           a ranking of each, as --data=a alone gives
    ablate    <out>/ranking/a, ..   a ranking of each, on other examples
              <out>/a, ..           an ablation of each by its own ranking
              <out>/cross/a, ..     every data set's heads, its own ones and the
                                    shared ones, cut on each (corejax/cross.py)
    compare   <out>/a, ..           a ranking of each
    all       <out>                 one report over all, by compare

`--data_dir` is then one of

    a=DIR,b=DIR   a folder for each that needs files
    DIR           a folder with one subfolder each, named as the data set; or
                  the folder itself where a single one needs files

All other flags are for every data set alike; --depth is scenes_haystack's. The
same command again continues with whatever is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import re
from typing import TYPE_CHECKING, Any

from corejax import errors
from corejax.experiments import cli as cli_lib

if TYPE_CHECKING:
  from corejax import cross as cross_lib
  from corejax.experiments import ablate as ablate_lib
  from corejax.experiments import compare as compare_lib
  from corejax.experiments import rank as rank_lib

_HAYSTACK = 'scenes_haystack'  # the only one with a --depth


@dataclasses.dataclass(frozen=True)
class Result:
  """What a command over several data sets returns.

  Attributes:
    compared: the rankings, side by side.
    ranked: data set -> its ranking; of compare and ablate too.
    cut: data set -> its ablation; ablate's alone.
    cells: the cross table; ablate's alone.
    out: the folder of all.
  """

  compared: compare_lib.Result
  ranked: Mapping[str, rank_lib.Result]
  cut: Mapping[str, ablate_lib.Result]
  cells: Sequence[cross_lib.Cell]
  out: pathlib.Path


def asked(data: str) -> bool:
  """Does --data name several?"""
  return ',' in data


def names(data: str) -> list[str]:
  """The data sets that --data names.

  Raises:
    UserError: an unknown one, one twice, or nothing between two commas.
  """
  from corejax.data import sources

  found = [name.strip() for name in data.split(',')]
  for i, name in enumerate(found):
    if not name:
      raise errors.UserError(
        f'--data={data[:80]}: a name is missing; write a,b,c'
      )
    sources.splits(name)  # known?
    if name in found[:i]:
      raise errors.UserError(f'--data={data[:80]}: {name} stands twice')
  return found


def folders(data_dir: str, wanted: Sequence[str]) -> dict[str, str]:
  """data set -> its --data_dir, '' for those that need none.

  Args:
    data_dir: as given.
    wanted: the data sets.

  Raises:
    UserError: a folder for a data set that is not asked for, two for one, or
      none for one that needs files.
  """
  from corejax.data import sources

  needing = [name for name in wanted if sources.needs_files(name)]
  known = '|'.join(sorted(sources.catalogue(), key=len, reverse=True))
  # A comma within a folder's name is one that no `name=` follows.
  parts = re.split(rf',(?=(?:{known})=)', data_dir)
  pairs = [re.fullmatch(rf'({known})=(.*)', part, re.S) for part in parts]
  found: dict[str, str] = {}
  if pairs[0]:
    for match in pairs:
      assert match is not None, 'split before each of them'
      name, folder = match[1], match[2]
      if name not in needing:
        raise errors.UserError(
          f'--data_dir={data_dir[:120]}: {name} '
          + ('needs no files' if name in wanted else 'is not in --data')
          + '; leave its folder out'
        )
      if name in found or not folder:
        raise errors.UserError(
          f'--data_dir={data_dir[:120]}: give one folder for {name}'
        )
      found[name] = folder
  elif data_dir:
    whole = pathlib.Path(data_dir).expanduser()
    found = {
      name: str(whole / name) for name in needing if (whole / name).is_dir()
    }
    if not found and len(needing) == 1:
      found = {needing[0]: data_dir}
  lacking = [name for name in needing if name not in found]
  if lacking:
    written = ','.join(f'{name}=DIR' for name in needing)
    raise errors.UserError(
      f'--data_dir={data_dir[:120]}: no folder for {", ".join(lacking)}; write '
      f'--data_dir={written}, or give a folder with one subfolder each'
    )
  return {name: found.get(name, '') for name in wanted}


def each(config: Any, out: pathlib.Path) -> dict[str, Any]:
  """data set -> the settings of its own run, in its own folder.

  Args:
    config: of an experiment, with several data sets.
    out: the folder of all.

  Raises:
    UserError: see `names` and `folders`.
  """
  wanted = names(config.data)
  where = folders(config.data_dir, wanted)
  made = {}
  for name in wanted:
    depth = config.depth if name == _HAYSTACK or _HAYSTACK not in wanted else ''
    made[name] = dataclasses.replace(
      config,
      data=name,
      data_dir=where[name],
      depth=depth or 'any',
      out=str(out / name),
    )
  return made


def folder(config: Any, experiment: str, rest: str = '') -> pathlib.Path:
  """The folder of all.

  Raises:
    UserError: it holds something else than runs of several data sets.
  """
  from corejax.experiments import runs

  joined = '+'.join(names(config.data))
  out = runs.folder_path(
    config.out or f'runs/{experiment}/{config.model}-{joined}{rest}'
  )
  try:
    told = json.loads((out / 'run.json').read_text('utf-8'))
    kind = told.get('experiment', 'rank')
  except FileNotFoundError:
    return out
  except (OSError, ValueError, AttributeError) as e:
    raise errors.UserError(
      f'{out}/run.json: unreadable ({e}); choose another --out'
    ) from e
  if kind != 'compare':
    raise errors.UserError(
      f'--out={out}: holds a run {kind!r} of one data set; choose another --out'
    )
  return out


def rank(config: rank_lib.Config) -> Result | None:
  """Ranks on every data set and compares.

  Returns:
    None with dry_run, and on all processes but the first.

  Raises:
    UserError: see rank.run and compare.run.
  """
  from corejax import compare as compare_rule

  compare_rule.check_rule(config.select)
  out = folder(config, 'rank')
  with cli_lib.Stop() as stop:
    ranked = _rank_all(each(config, out), stop)
  if config.dry_run or not ranked:
    return None
  return _compare(config, config.select, out, ranked)


def compare(config: compare_lib.Config) -> Result:
  """Ranks on every data set what is not ranked yet, and compares.

  Raises:
    UserError: see rank.run and compare.run.
  """
  from corejax import compare as compare_rule
  from corejax.experiments import compare as compare_experiment
  from corejax.experiments import pods
  from corejax.experiments import rank as rank_experiment

  compare_rule.check_rule(config.select)
  ranking = rank_experiment.Config(
    model=config.model,
    checkpoint=config.checkpoint,
    data=config.data,
    data_dir=config.data_dir,
    limit=config.limit,
    seed=config.seed,
    out=config.out,
    resume=config.resume,
  )
  out = folder(ranking, 'compare')
  settings = each(ranking, out)
  pods.initialize()
  if not pods.is_alone():
    raise errors.UserError(
      'compare runs in one process; rank with experiments.rank, then compare'
    )
  with cli_lib.Stop() as stop:
    ranked = _rank_all(settings, stop)
  compared = compare_experiment.run(
    dataclasses.replace(
      config,
      runs=tuple(one.out for one in settings.values()),
      data='',
      out=str(out),
      resume=False,
    )
  )
  return Result(compared, ranked, {}, (), out)


def ablate(config: ablate_lib.Config) -> Result | None:
  """Ranks and cuts on every data set, and every one's heads on each.

  Returns:
    None with dry_run.

  Raises:
    UserError: see rank.run, ablate.run and compare.run; several processes.
  """
  from corejax.experiments import ablate as ablate_experiment
  from corejax.experiments import ablate_sets
  from corejax.experiments import pods

  if config.heads:
    raise errors.UserError(
      f'--heads={config.heads[:60]}: with several data sets each has heads of '
      'its own; leave it out, or give one --data'
    )
  out = folder(config, 'ablate', f'-{config.mode}')
  settings = each(config, out)
  pods.initialize()
  if not pods.is_alone():
    raise errors.UserError(
      f'--data={config.data}: ablate takes several data sets in one process '
      'alone; give one at a time'
    )
  places = {name: out / 'ranking' / name for name in settings}
  with cli_lib.Stop() as stop:
    if config.dry_run:
      for name, one in settings.items():
        print(f'\n== {name}')
        ablate_experiment.run(one)
      return None
    ranked = _rank_all(
      {
        name: ablate_sets.rank_config(one, places[name])
        for name, one in settings.items()
      },
      stop,
    )
    cut = {}
    for name, one in settings.items():
      stop.check()
      _say(name, 'ablate')
      settings[name] = dataclasses.replace(one, heads=f'@{places[name]}')
      made = ablate_experiment.run(settings[name])
      assert made is not None, 'one process, no dry run'
      cut[name] = made
    cells, k = _cross(settings, ranked, out, stop)
  found = _compare(config, f'top{k}', out, ranked, cells)
  return dataclasses.replace(found, cut=cut)


def _rank_all(
  settings: Mapping[str, rank_lib.Config], stop: cli_lib.Stop
) -> dict[str, rank_lib.Result]:
  """Of every data set; nothing on processes that are not the first."""
  from corejax.experiments import pods
  from corejax.experiments import rank as rank_experiment

  found = {}
  for i, (name, one) in enumerate(settings.items()):
    if i:
      stop.check(pods.every)
    if pods.is_first():
      _say(name, 'rank')
    ranked = rank_experiment.run(one)
    if ranked is not None:
      found[name] = ranked
  return found


def _compare(
  config: Any,
  select: str,
  out: pathlib.Path,
  ranked: Mapping[str, rank_lib.Result],
  cells: Sequence[cross_lib.Cell] = (),
) -> Result:
  """The report over all; it takes the place of an earlier one."""
  from corejax.experiments import compare as compare_experiment

  print('\n== all', flush=True)
  compared = compare_experiment.run(
    compare_experiment.Config(
      runs=tuple(str(result.out) for result in ranked.values()),
      select=select,
      query=config.query,
      norm=getattr(config, 'norm', 'mass'),
      bootstrap=getattr(config, 'bootstrap', 1000),
      permutations=getattr(config, 'permutations', 2000),
      seed=config.seed,
      out=str(out),
      resume=False,
    ),
    cells,
  )
  return Result(compared, ranked, {}, cells, out)


def _cross(
  settings: Mapping[str, ablate_lib.Config],
  ranked: Mapping[str, rank_lib.Result],
  out: pathlib.Path,
  stop: cli_lib.Stop,
) -> tuple[list[cross_lib.Cell], int]:
  """(cells of every data set's heads on each, heads of a data set)."""
  from corejax import cross
  from corejax import groups as groups_lib
  from corejax.experiments import ablate_sets
  from corejax.experiments import cutting
  from corejax.experiments import resources as resources_lib

  first = next(iter(settings.values()))
  with stop.at_once():
    resources = resources_lib.load(first, ablate_sets.judged(first))
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  (k,) = groups_lib.resolve([first.endpoint], *shape)
  chosen = cross.cuts(
    {
      name: groups_lib.make('top', result.ranking.score_LN, k).heads
      for name, result in ranked.items()
    }
  )
  planned = cross.plan(chosen, shape, range(first.draws))
  cells = []
  for name, one in settings.items():
    stop.check()
    _say(name, f'{len(chosen)} sets of heads of all data sets')
    source, reference = ablate_sets.sources(one)
    outcomes, _ = cutting.swept(
      one,
      resources,
      source,
      reference,
      planned.groups,
      out / 'cross' / name,
      stop,
    )
    cells += cross.cells(chosen, planned, outcomes, name)
  return cells, k


def _say(name: str, what: str) -> None:
  print(f'\n== {name}: {what}', flush=True)
