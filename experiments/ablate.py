"""Cut heads and see which answers go: top heads against fair controls.

    python -m experiments.ablate --model=llava_flax
    python -m experiments.ablate --heads=@runs/rank/llava_flax-scenes_pages
    python -m experiments.ablate --heads=14-22,13-16 --mode=mean

Without --heads the heads are ranked first, on other examples (--rank_split),
in <out>/ranking. Groups of every k: top, bottom, median, random, and random
heads of the top's own layers (layer_matched), the fair control. Beside each
look-up stands its twin, which needs none. Writes report.html, curve.csv,
curve.png, outcomes.npz, examples.jsonl, rejected.jsonl and run.json into --out.
The same command again continues where it stopped.
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
_MODES = (
  'zero',
  'mean',
  'resample',
  'uniform',
  'knockout_evidence',
  'knockout_visual',
)


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Shared):
  """Settings of an ablation."""

  heads: str = setting(
    '',
    "heads to cut: '' ranks them on other examples, @RUN takes a ranking, "
    '@RUN:top5% or 14-22,13-16 one set',
  )
  query: str = setting(
    'last',
    'rows by which heads are ranked, where they are',
    ('question', 'last', 'answer'),
  )
  rank_split: str = setting(
    '',
    "split to rank on, and to take means and donors from; '' is another one "
    'than --split, or the half of it that is not ablated',
  )
  rank_limit: int = setting(400, 'records to rank on; 0 is all')
  mode: str = setting('zero', 'what a cut head writes or reads', _MODES)
  phase: str = setting(
    'prefill+decode',
    'when it is cut: decode spares the prompt',
    ('prefill+decode', 'decode'),
  )
  rows: str = setting(
    'all',
    'query rows in which it is cut: query is what RAM measures',
    ('all', 'query'),
  )
  k: str = setting(
    '',
    "numbers of heads, or shares, comma-separated; '' is 0,1,3,5,10,20,30,5%,"
    '10% as far as they fit',
  )
  endpoint: str = setting('5%', 'the k of the primary endpoint')
  draws: int = setting(10, 'draws of each random group')
  twins: bool = setting(
    True, 'ask the twin of each question too, if it has one'
  )
  answers: str = setting(
    'forced',
    'an answer is right if every token of it is the likeliest (forced), or by '
    "the data's own rule on what is decoded greedily (generated)",
    ('forced', 'generated'),
  )
  max_tokens: int = setting(32, 'of a generated answer')
  reference: int = setting(64, 'examples that means and donors are taken from')
  limit: int = setting(800, 'use the first so many records; 0 is all')
  batch_size: int = setting(32, 'examples per forward')

  def __post_init__(self):
    super().__post_init__()
    for name in ('batch_size', 'max_tokens', 'reference'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    for name in ('draws', 'rank_limit'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; give 0 or more'
        )


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
  import corejax
  from corejax.experiments import ablate_sets

  names = (
    'model data split tasks pages dpi limit seed dtype image_policy mode phase '
    'rows answers max_tokens reference batch_size twins'
  )
  return {
    'corejax': corejax.__version__,
    **{name: getattr(config, name) for name in names.split()},
    'rank_split': ablate_sets.splits(config)[0],
    'sets': [f'{g.name} {g.k} {g.seed}: {g.heads}' for g in groups],
    **resources.identity(),
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
  with stop.at_once():
    from corejax import groups as groups_lib
    from corejax import parts as parts_lib
    from corejax.experiments import ablate_sets
    from corejax.experiments import measure
    from corejax.experiments import pods
    from corejax.experiments import resources as resources_lib
    from corejax.experiments import runs
    from corejax.experiments import session
    from corejax.experiments import sweep

    pods.initialize()
  source, reference = ablate_sets.sources(config)
  with stop.at_once(pods.is_alone()):
    resources = resources_lib.load(config, source)
  resources.check_batch(config.batch_size)
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  asked = config.k.split(',') if config.k else []
  groups_lib.resolve(asked, *shape)
  if not groups_lib.resolve([config.endpoint], *shape)[0]:
    raise errors.UserError(
      f'--endpoint={config.endpoint}: no head would be cut; give 1 or more'
    )
  if not len(source):
    raise errors.UserError(
      f'--data={config.data} --split={source.split}: no records'
    )
  if config.dry_run:
    print(_plan(config, resources, source))
    return None
  groups, told, caveat = ablate_sets.groups(
    config, resources, out_folder(config) / 'ranking'
  )
  options = sweep.Options(
    mode=config.mode,
    phase=config.phase,
    rows=config.rows,
    answers=config.answers,
    max_tokens=config.max_tokens,
    batch_size=config.batch_size,
  )
  runner = sweep.Runner(resources, groups, options, reference, config.reference)
  identity = _identity(config, resources, groups)
  out = out_folder(config)
  batches = list(measure.batches(len(source), config.batch_size))
  store = parts_lib.PartStore(
    out / 'scores', len(batches), runs.fingerprint(identity)
  )
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
    session.fill(
      store,
      batches,
      config.max_bad * len(source),
      stop,
      read=lambda indices, closing: sweep.read(
        resources, source, indices, closing
      ),
      n_rejected=lambda batch: len(batch.rejected),
      start=lambda batch: (batch, runner.start(batch)),
      finish=lambda started: (
        {'rows': started[0].rows(), 'rejected': started[0].rejected},
        started[1](),
      ),
    )
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
  import io

  import numpy as np

  from corejax import effects as effects_lib
  from corejax import groups as groups_lib
  from corejax.experiments import ablate_report
  from corejax.experiments import figures
  from corejax.experiments import report
  from corejax.experiments import session

  shape = resources.loaded.n_layers, resources.loaded.n_heads
  missing = set(store.missing())
  parts = [store.open(i) for i in range(store.n_parts) if i not in missing]
  rows = [row for head, _ in parts for row in head['rows']]
  rejected = [row for head, _ in parts for row in head['rejected']]
  folder.write_lines('rejected.jsonl', rejected)
  total = len(resources.source)
  session.check_rejected(
    rejected, len(rejected) + len(rows), total, config.max_bad, folder.path
  )
  seen = sorted(row['index'] for row in [*rows, *rejected])
  if seen != list(range(total)):
    raise AssertionError(f'{folder.path}: records lost or doubled')
  if not rows:
    raise errors.UserError(f'{folder.path}: no example could be used')
  folder.write_lines('examples.jsonl', rows)
  outcomes = effects_lib.Outcomes(
    groups=groups,
    score_XE=np.concatenate([arrays['score'] for _, arrays in parts], 1),
    logprob_XE=np.concatenate([arrays['logprob'] for _, arrays in parts], 1),
    tasks=[row['task'] for row in rows],
    clusters=[row['cluster'] for row in rows],
    twin_E=np.array([row['twin'] for row in rows], bool),
    n_layers=shape[0],
    n_heads=shape[1],
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
  buffer = io.BytesIO()
  np.savez(
    buffer,
    score=outcomes.score_XE,
    logprob=outcomes.logprob_XE,
    example_ids=np.array([row['id'] for row in rows]),
    sets=np.array([str(g.heads) for g in groups]),
  )
  folder.write('outcomes.npz', buffer.getvalue())
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
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
