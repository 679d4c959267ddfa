"""Cut heads and see which answers go: top heads against fair controls.

    python -m experiments.ablate --model=llava_flax
    python -m experiments.ablate --heads=@runs/rank/llava_flax-scenes_pages
    python -m experiments.ablate --heads=14-22,13-16 --mode=mean
    python -m experiments.ablate --data=scenes_referring,scenes_pages

Without --heads the heads are ranked first, on other examples (--rank_split),
in <out>/ranking. Groups of every k: top, bottom, median, random, and random
heads of the top's own layers (layer_matched), the fair control. Beside each
look-up stands its twin, which needs none. Writes report.html, curve.csv,
curve.png, outcomes.npz, examples.jsonl, rejected.jsonl and run.json into --out.
The same command again continues where it stopped. Several data sets are each
ranked and ablated in folders of --out, the heads of each, its own ones and the
shared ones also on every other, in one table (experiments/several.py, which
also says how --data_dir is then written).
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib
from corejax.experiments import cutting
from corejax.experiments import several

if TYPE_CHECKING:
  from corejax import effects as effects_lib

setting = config_lib.setting

RESULTS = (
  'report.html',
  'curve.csv',
  'curve.png',
  'outcomes.npz',
  'examples.jsonl',
  'rejected.jsonl',
)


@dataclasses.dataclass(frozen=True)
class Config(cutting.Settings):
  """Settings of an ablation."""

  heads: str = setting(
    '',
    "heads to cut: '' ranks them on other examples, @RUN takes a ranking, "
    '@RUN:top5% or 14-22,13-16 one set',
  )
  k: str = setting(
    '',
    "numbers of heads, or shares, comma-separated; '' is 0,1,3,5,10,20,30,5%,"
    '10% as far as they fit',
  )
  endpoint: str = setting('5%', 'the k of the primary endpoint')


@dataclasses.dataclass(frozen=True)
class Result:
  """What an ablation run returns.

  Attributes:
    outcomes: every example under every set of heads.
    effects: the rows of curve.csv.
    endpoint: the primary endpoint; None where it cannot be said.
    out: the run folder.
    rejected: the records left out, as in rejected.jsonl.
  """

  outcomes: effects_lib.Outcomes
  effects: list[effects_lib.Effect]
  endpoint: effects_lib.Endpoint | None
  out: pathlib.Path
  rejected: list[dict]


def out_folder(config: Config) -> pathlib.Path:
  """Where the run goes."""
  from corejax.experiments import runs

  return runs.folder_path(
    config.out or f'runs/ablate/{config.model}-{config.data}-{config.mode}'
  )


def _identity(config: Config, resources, groups) -> dict:
  """What the outcomes depend on."""
  return {
    **cutting.identity(config, resources),
    'sets': [f'{g.name} {g.k} {g.seed}: {g.heads}' for g in groups],
  }


def run(config: Config) -> Result | None:
  """Ranks if need be, cuts, writes, and says what was found.

  Returns:
    The Result; None with dry_run, and on all processes but the first.

  Raises:
    UserError: something outside is wrong.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  resources, reference = cutting.start(config, stop)
  from corejax import groups as groups_lib
  from corejax.experiments import ablate_sets
  from corejax.experiments import pods
  from corejax.experiments import session

  source = resources.source
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  asked = config.k.split(',') if config.k else []
  groups_lib.resolve(asked, *shape)
  if not groups_lib.resolve([config.endpoint], *shape)[0]:
    raise errors.UserError(
      f'--endpoint={config.endpoint}: no head would be cut; give 1 or more'
    )
  if config.dry_run:
    print(_plan(config, resources, source))
    return None
  groups, told, caveat = ablate_sets.groups(
    config, resources, out_folder(config) / 'ranking'
  )
  identity = _identity(config, resources, groups)
  out = out_folder(config)
  store = cutting.store(config, source, out, identity)
  record = {
    'experiment': 'ablate',
    'flags': dataclasses.asdict(config),
    'ranking': told,
    **resources.describe(),
  }
  if pods.is_first():
    print(
      f'{config.model}: {shape[0]} layers x {shape[1]} heads'
      + (f' ({resources.embedded})' if resources.embedded else '')
      + f'\n{source.name}/{source.split}: '
      f'{session.describe(source, config.limit)} under {len(groups)} sets of '
      f'heads -> {out}\nranking  {told}',
      flush=True,
    )
  with session.opened(
    out, identity, record, config.resume, store, RESULTS
  ) as folder:
    cutting.fill(config, resources, reference, groups, store, out, stop)
    if folder is None:
      return None
    with stop.at_once():
      return _finish(config, folder, store, resources, groups, caveat)


def _plan(config: Config, resources, source) -> str:
  """What --dry_run prints."""
  from corejax.experiments import ablate_sets
  from corejax.experiments import session

  loaded = resources.loaded
  heads = (
    config.heads or f'ranked on {config.data}/{ablate_sets.splits(config)[0]}'
  )
  return '\n'.join(
    [
      f'model    {loaded.key}: {loaded.n_layers} layers x {loaded.n_heads} '
      f'heads, {config.dtype}, {loaded.fingerprint}',
      f'data     {source.name}/{source.split}: '
      f'{session.describe(source, config.limit)}, {source.fingerprint}',
      f'heads    {heads}',
      f'cut      {config.mode}, {config.phase}, rows: {config.rows}',
      f'out      {out_folder(config)}',
    ]
  )


def _finish(config, folder, store, resources, groups, caveat) -> Result:
  """The offline half: store -> outcomes -> files."""
  from corejax import effects as effects_lib
  from corejax import groups as groups_lib
  from corejax.experiments import ablate_report
  from corejax.experiments import figures
  from corejax.experiments import report

  shape = resources.loaded.n_layers, resources.loaded.n_heads
  outcomes, rows, rejected = cutting.load(
    config, folder, store, resources, groups
  )
  curve = effects_lib.curve(outcomes)
  k = (
    groups[1].k
    if groups[1].name == 'given'
    else groups_lib.resolve([config.endpoint], *shape)[0]
  )
  endpoint = effects_lib.endpoint(outcomes, k)
  folder.write(
    'curve.csv',
    effects_lib.write_csv(
      curve, shape[0] * shape[1], config.mode, config.phase, config.rows
    ),
  )
  cutting.write_outcomes(folder, outcomes, rows)
  summary = effects_lib.summary(outcomes, curve, endpoint)
  if caveat:
    summary.insert(0, f'note     {caveat}')
  folder.write(
    'curve.png',
    figures.curves(
      outcomes,
      curve,
      f'{config.model} on {resources.source.name}, {len(rows)} examples\n'
      f'{config.mode}, {config.phase}, rows: {config.rows}',
    ),
  )
  folder.write(
    report.FILE,
    ablate_report.page(
      outcomes,
      curve,
      endpoint,
      summary,
      report.About.of(resources),
      rows,
      ablate_report.Cut(
        config.mode,
        config.phase,
        config.rows,
        config.answers,
        folder.record['ranking'],
        caveat,
      ),
    ),
  )
  folder.record['summary'] = summary
  folder.record['examples'] = len(rows)
  folder.record['rejected'] = dict(
    collections.Counter(r['reason'] for r in rejected)
  )
  if endpoint is not None:
    folder.record['endpoint'] = dataclasses.asdict(endpoint)
  if rejected:
    print(f'{len(rejected)} records rejected, see {folder.path}/rejected.jsonl')
  print('\n'.join(summary))
  print(f'files    {folder.path}/report.html, curve.csv, curve.png, run.json')
  return Result(outcomes, curve, endpoint, folder.path, rejected)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(
    argv,
    Config,
    lambda c: (several.ablate if several.asked(c.data) else run)(c),
    __doc__ or '',
  )


if __name__ == '__main__':
  sys.exit(cli())
