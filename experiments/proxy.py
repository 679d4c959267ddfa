"""Rank heads without boxes, and judge each such ranking against RAM.

    python -m experiments.proxy --model=llava_flax
    python -m experiments.proxy --data=scenes_pages --select=top10%

One pass over --rank_split (in <out>/ranking) gives RAM, the proxies of
corejax/proxies.py, which need no annotation, and what else ranks heads: what
they write, the value-weighted contribution and the gradient of their gate. Each
is held against RAM by rank agreement, and the first heads of each are cut on
--split, beside as many of the same layers. Writes report.html, proxy.csv,
scores.csv (every ranking of every head), proxy.png, outcomes.npz,
examples.jsonl, rejected.jsonl and run.json into --out. The same command again
continues where it stopped.
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

if TYPE_CHECKING:
  from corejax import effects as effects_lib
  from corejax import judge as judge_lib

setting = config_lib.setting

RESULTS = (
  'report.html',
  'proxy.csv',
  'scores.csv',
  'proxy.png',
  'outcomes.npz',
  'examples.jsonl',
  'rejected.jsonl',
)


@dataclasses.dataclass(frozen=True)
class Config(cutting.Settings):
  """Settings of a judgement."""

  select: str = setting('top5%', 'which heads of each ranking are cut')
  gradients: bool = setting(
    True, "rank by the gradient of each head's gate too, with a backward pass"
  )
  bootstrap: int = setting(1000, 'bootstrap resamples of the clusters')
  permutations: int = setting(2000, 'permutations of the heads, for p values')

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
    judged: every ranking, RAM first, random heads last.
    outcomes: every example under every set of heads.
    out: the run folder.
    rejected: the records left out, as in rejected.jsonl.
  """

  judged: list[judge_lib.Judged]
  outcomes: effects_lib.Outcomes
  out: pathlib.Path
  rejected: list[dict]


def out_folder(config: Config) -> pathlib.Path:
  """Where the run goes."""
  from corejax.experiments import runs

  return runs.folder_path(
    config.out or f'runs/proxy/{config.model}-{config.data}'
  )


def run(config: Config) -> Result | None:
  """Ranks, cuts, judges, writes, and says what was found.

  Returns:
    The Result; None with dry_run, and on all processes but the first.

  Raises:
    UserError: something outside is wrong.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  resources, reference = cutting.start(config, stop)
  from corejax import compare as compare_lib
  from corejax import judge
  from corejax.experiments import ablate_sets
  from corejax.experiments import pods
  from corejax.experiments import session

  source = resources.source
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  k = compare_lib.check_rule(config.select).count(*shape)
  out, rank_split = out_folder(config), ablate_sets.splits(config)[0]
  about = (
    f'{config.model}: {shape[0]} layers x {shape[1]} heads'
    + (f' ({resources.embedded})' if resources.embedded else '')
    + f'\nranked on {config.data}/{rank_split}, {config.query} rows; the first '
    f'{k} heads ({config.select}) of each ranking are cut'
  )
  if config.dry_run:
    print(
      f'{about} on {source.name}/{source.split}: '
      f'{session.describe(source, config.limit)}\nout  {out}'
    )
    return None
  sides, scores = ranked(config, resources, out / 'ranking')
  sets = judge.plan(scores, config.select, range(config.draws))
  identity = {
    **cutting.identity(config, resources),
    'sets': [f'{g.name} {g.k} {g.seed}: {g.heads}' for g in sets.groups],
  }
  store = cutting.store(config, source, out, identity)
  record = {
    'experiment': 'proxy',
    'flags': dataclasses.asdict(config),
    **resources.describe(),
  }
  if pods.is_first():
    print(
      f'{about}\n{source.name}/{source.split}: '
      f'{session.describe(source, config.limit)} under {len(sets.groups)} sets '
      f'of heads -> {out}',
      flush=True,
    )
  with session.opened(
    out, identity, record, config.resume, store, RESULTS
  ) as folder:
    cutting.fill(config, resources, reference, sets.groups, store, out, stop)
    if folder is None:
      return None
    with stop.at_once():
      return _finish(config, folder, store, resources, sides, sets)


def ranked(config: Config, resources, folder: pathlib.Path):
  """Every ranking of corejax.judge, RAM first; made if the folder lacks it.

  Args:
    config: whose rank_split and query are ranked by.
    resources: the model.
    folder: of the run of experiments.rank that measures them.

  Returns:
    (as they can be drawn again, None on all processes but the first; name ->
    float64 [L, N]).

  Raises:
    UserError: see rank.run.
  """
  from corejax import judge
  from corejax import parts
  from corejax.experiments import ablate_sets
  from corejax.experiments import pods
  from corejax.experiments import proxy_text
  from corejax.experiments import rank

  settings = dataclasses.replace(
    ablate_sets.rank_config(config, folder),
    calibrate=True,  # keeps the profiles of the content-free question too
    gradients=config.gradients,
  )
  made = rank.run(settings)
  file, sides = folder / 'scores.csv', None
  if made is not None:
    pairs = _neighbours(config, resources, made.rows)
    sides = judge.rankings(made.scores, pairs)
    text = proxy_text.scores_csv({side.name: side.score_LN for side in sides})
    parts.write_atomic(file, text.encode())
  pods.every(True)  # the others read what process 0 has written
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  return sides, proxy_text.read_scores(file, *shape)


def _neighbours(config, resources, rows):
  """Layout -> which of its tokens touch; one example of each is encoded."""
  from corejax import proxies
  from corejax.experiments import ablate_sets
  from corejax.experiments import resources as resources_lib

  settings = ablate_sets.rank_config(config, pathlib.Path())
  source = resources_lib.load_source(settings)
  found = {}
  for row in rows:
    if row['layout'] not in found:
      encoded = resources.loaded.processor.encode(source[row['index']])
      found[row['layout']] = proxies.neighbours(encoded.layout)
  return found


def _finish(config, folder, store, resources, sides, sets) -> Result:
  """The offline half: store -> judgement -> files."""
  from corejax import judge
  from corejax.experiments import proxy_report
  from corejax.experiments import proxy_text
  from corejax.experiments import report

  outcomes, rows, rejected = cutting.load(
    config, folder, store, resources, sets.groups
  )
  judged = judge.judge(
    sides,
    sets,
    outcomes,
    bootstrap=config.bootstrap,
    permutations=config.permutations,
    seed=config.seed,
  )
  folder.write('proxy.csv', proxy_text.to_csv(judged))
  folder.write(
    'scores.csv',
    proxy_text.scores_csv({side.name: side.score_LN for side in sides}),
  )
  cutting.write_outcomes(folder, outcomes, rows)
  summary = proxy_text.summary(judged, outcomes)
  title = f'{config.model} on {resources.source.name}, {len(rows)} examples'
  figure = proxy_report.figure(judged, f'{title}; {config.select} cut')
  folder.write('proxy.png', figure)
  folder.write(
    report.FILE,
    proxy_report.page(judged, figure, summary, report.About.of(resources)),
  )
  folder.record['summary'] = summary
  folder.record['examples'] = len(rows)
  folder.record['rejected'] = dict(
    collections.Counter(r['reason'] for r in rejected)
  )
  if rejected:
    print(f'{len(rejected)} records rejected, see {folder.path}/rejected.jsonl')
  print('\n'.join(summary))
  print(f'files    {folder.path}/report.html, proxy.csv, proxy.png, run.json')
  return Result(judged, outcomes, folder.path, rejected)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
