"""Should each input choose its own dense heads? Routing against a static plan.

    python -m experiments.route --model=llava_flax
    python -m experiments.route --heads=@runs/rank/llava_flax-scenes_pages

Sparse prefill as in `prefill`, with the dense heads chosen in several ways
within the same budget: static (the best of a ranking made on other examples),
probe (each layer by its own queries and keys, nothing is trained; see
corejax/routing.py), oracle (RAM with the boxes of that very input), random.
Accuracy and time to the first token come out of the same calls; one executable
serves all but the probe, which has its own. Writes report.html, route.csv,
route.png, examples.jsonl, rejected.jsonl and run.json into --out. The same
command again continues where it stopped.
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
  from corejax.experiments import route_table

setting = config_lib.setting

RESULTS = (
  'report.html',
  'route.csv',
  'route.png',
  'examples.jsonl',
  'rejected.jsonl',
)


@dataclasses.dataclass(frozen=True)
class Config(cutting.Judging):
  """Settings of a comparison."""

  heads: str = setting(
    '', "the static plan's ranking: '' makes one on other examples, or @RUN"
  )
  rhos: str = setting('0.05,0.1,0.2', 'dense fractions, comma-separated')
  window: str = setting(
    'auto',
    'keys that a sparse head reads back, its own included; auto is 2048, but '
    'below 4352 tokens what makes window and sink a tenth of the prompt',
  )
  sink: str = setting(
    'auto', 'first keys that every head reads; auto is 128, or as --window'
  )
  block: int = setting(128, "edge of a kernel's tile, for ideals")
  probe_rows: int = setting(
    0,
    'last rows that the probe looks from; 0 is 64, or an eighth of the prompt '
    'if that is less',
  )
  probe_score: str = setting(
    'mass',
    'what a head loses by being sparse: all of its attention to visual keys '
    'outside of window and sinks, or that to one key',
    ('mass', 'peak'),
  )
  repeats: int = setting(6, 'timed rounds, at least')
  # Other defaults than those of experiments that cut heads.
  data: str = setting('scenes_haystack', 'data set; see --list_data')
  pages: int = setting(12, 'pages of a document shown at once')
  limit: int = setting(200, 'use the first so many records; 0 is all')
  rank_limit: int = setting(200, 'records to rank on; 0 is all')
  draws: int = setting(3, 'draws of the random choice')
  batch_size: int = setting(8, 'prompts of a timed call')

  def __post_init__(self):
    super().__post_init__()
    for name, least in (('block', 1), ('repeats', 1), ('probe_rows', 0)):
      if getattr(self, name) < least:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give {least} or more'
        )
    from corejax.experiments import prefill_sets

    prefill_sets.span(self.window, self.sink, 1)
    for share in prefill_sets.parse_fractions(self.rhos):
      if share in (0, 1):
        raise errors.UserError(
          f'--rhos={self.rhos[:60]}: with {share:g} there is nothing to '
          'choose; give shares between 0 and 1'
        )


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    table: rows of route.csv.
    out: the run folder.
    rejected: the records left out, as in rejected.jsonl.
  """

  table: list[route_table.Row]
  out: pathlib.Path
  rejected: list[dict]


def out_folder(config: Config) -> pathlib.Path:
  """Where the run goes."""
  from corejax.experiments import runs

  return runs.folder_path(
    config.out or f'runs/route/{config.model}-{config.data}'
  )


def run(config: Config) -> Result | None:
  """Ranks if need be, routes in every way, writes, and says what was found.

  Returns:
    The Result; None with dry_run, and on all processes but the first.

  Raises:
    UserError: something outside is wrong.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _start(config: Config, stop: cli_lib.Stop):
  """(resources, the length)."""
  with stop.at_once():
    from corejax.experiments import ablate_sets
    from corejax.experiments import pods
    from corejax.experiments import prefill_run
    from corejax.experiments import resources as resources_lib

    pods.initialize()
  source = ablate_sets.judged(config)
  with stop.at_once(pods.is_alone()):
    resources = resources_lib.load(config, source)
  resources.check_batch(config.batch_size)
  return resources, prefill_run.scale(
    resources, source, config.pages, config.window, config.sink, config.block
  )


def _ways(config: Config, resources, folder: pathlib.Path):
  """(ways, which ranking, caveat)."""
  from corejax import plan as plan_lib
  from corejax.experiments import ablate_sets
  from corejax.experiments import prefill_sets
  from corejax.experiments import route_run

  chosen = ablate_sets.choose(config, resources, folder)
  if chosen.ranking is None:
    raise errors.UserError(
      f'--heads={config.heads[:60]}: a set of heads has no budgets to choose '
      'within; give a whole ranking, as @RUN'
    )
  score_LN = chosen.ranking.score_LN
  plans: dict[int, tuple[float, plan_lib.HeadPlan]] = {}
  for share in prefill_sets.parse_fractions(config.rhos):
    plan = plan_lib.HeadPlan.top_fraction(score_LN, share)
    plans.setdefault(len(plan.heads), (share, plan))
  made = route_run.ways(
    [share for share, _ in plans.values()],
    [plan.heads for _, plan in plans.values()],
    score_LN.shape,
    config.draws,
  )
  return made, chosen.told, chosen.caveat


def _left_out(config: Config) -> list[str]:
  """What --draws=0 leaves out, in words."""
  return [] if config.draws else ['left out random: no draws (--draws=0)']


def _probe_rows(config: Config, tokens: int) -> int:
  return config.probe_rows or max(1, min(64, tokens // 8))


def _identity(config: Config, resources, scale, made) -> dict:
  """What answers and times depend on."""
  import corejax

  names = (
    'model data split tasks pages dpi limit seed dtype image_policy twins '
    'batch_size repeats query probe_score'
  )
  return {
    'corejax': corejax.__version__,
    'route': 1,
    **{name: getattr(config, name) for name in names.split()},
    **resources.identity(),
    'device': resources.describe()['device'],
    'span': [scale.window, scale.sink],
    'probe_rows': _probe_rows(config, scale.tokens),
    'ways': [f'{way.method} {way.seed}: {way.plan}' for way in made],
  }


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  resources, scale = _start(config, stop)
  from corejax import parts as parts_lib
  from corejax.experiments import measure
  from corejax.experiments import pods
  from corejax.experiments import prefill_run
  from corejax.experiments import route_run
  from corejax.experiments import runs
  from corejax.experiments import session
  from corejax.experiments import timed

  out, loaded = out_folder(config), resources.loaded
  rows = _probe_rows(config, scale.tokens)
  about = (
    f'{config.model}: {loaded.n_layers} layers x {loaded.n_heads} heads'
    + (f' ({resources.embedded})' if resources.embedded else '')
    + f'\n{config.data}/{scale.source.split}: {len(scale.source)} records of '
    f'{scale.tokens} tokens ({scale.pages} pages), window {scale.window}, sink '
    f'{scale.sink}; the probe looks from the last {rows} rows -> {out}'
  )
  if config.dry_run:
    print(about)
    return None
  made, told, caveat = _ways(config, resources, out / 'ranking')
  identity = _identity(config, resources, scale, made)
  batches = list(measure.batches(len(scale.source), config.batch_size))
  store = parts_lib.PartStore(
    out / 'scores', len(batches), runs.fingerprint(identity)
  )
  kernel = timed.Geometry.of(resources).picked(config.batch_size, scale.tokens)
  record = {
    'experiment': 'route',
    'flags': dataclasses.asdict(config),
    'ranking': told,
    'kernel': kernel,
    **resources.describe(),
  }
  if pods.is_first():
    print(
      '\n'.join(
        [about, f'ranking  {told}', f'kernel   {kernel}', *_left_out(config)]
      ),
      flush=True,
    )
  with session.opened(
    out, identity, record, config.resume, store, RESULTS
  ) as folder:
    runner = route_run.Runner(
      resources,
      scale,
      made,
      config.batch_size,
      config.repeats,
      rows,
      config.probe_score,
      config.query,
    )
    session.fill(
      store,
      batches,
      config.max_bad * len(scale.source),
      stop,
      read=lambda numbers, closing: prefill_run.read(
        resources, [scale], config.batch_size, numbers, closing
      ),
      n_rejected=lambda read: len(read.batch.rejected),
      start=lambda read: (read.head(), runner.start(read)),
      finish=lambda started: started,
      trace=session.trace(out, config.trace_steps),
    )
    if folder is None:
      return None
    with stop.at_once():
      return _finish(config, folder, store, resources, scale, made, caveat)


def _finish(config, folder, store, resources, scale, made, caveat) -> Result:
  """The offline half: store -> table -> files."""
  import numpy as np

  from corejax.experiments import prefill_words
  from corejax.experiments import report
  from corejax.experiments import route_report
  from corejax.experiments import route_table
  from corejax.experiments import session
  from corejax.experiments import timed
  from corejax.experiments import timed_table

  arrays, examples, rejected = session.read_parts(
    folder, store, len(scale.source), config.max_bad
  )
  found = timed_table.Timed(
    score_XE=np.concatenate([a['score'] for a in arrays], 1),
    first_XR=np.concatenate([a['first'] for a in arrays], 1),
    kernel_XR=np.full((len(made), 1), np.nan),
    clusters=[row['cluster'] for row in examples],
    tasks=[row['task'] for row in examples],
    twin_E=np.array([row['twin'] for row in examples], bool),
    batch_size=config.batch_size,
  )
  loaded = resources.loaded
  shape = loaded.n_layers, loaded.n_heads
  geometry = timed.Geometry.of(resources)
  rows = _probe_rows(config, scale.tokens)
  flops_share = {
    len(way.plan): route_table.probe_flops_share(
      loaded.model,
      geometry,
      scale.cost(way.plan, *shape),
      rows,
    )
    for way in made
  }
  table = route_table.rows(made, found, shape[0] * shape[1], flops_share)
  longest = max(row['prompt'] for row in examples)
  summary = [
    *([f'note     {caveat}'] if caveat else []),
    *_left_out(config),
    prefill_words.placed(scale, examples, longest),
    *route_table.summary(table),
  ]
  folder.write('route.csv', route_table.to_csv(table, scale, config.batch_size))
  picture = route_report.figure(
    table,
    f'{config.model} on {config.data}, {len(examples)} prompts of '
    f'{scale.tokens} tokens; batches of {config.batch_size} on '
    f'{resources.describe()["device"]}',
  )
  folder.write('route.png', picture)
  folder.write(
    report.FILE,
    route_report.page(
      table, summary, report.About.of(resources), picture, rows
    ),
  )
  folder.record['summary'] = summary
  folder.record['examples'] = len(examples)
  folder.record['rejected'] = dict(
    collections.Counter(r['reason'] for r in rejected)
  )
  if rejected:
    print(f'{len(rejected)} records rejected, see {folder.path}/rejected.jsonl')
  print('\n'.join(summary))
  print(f'files    {folder.path}/report.html, route.csv, route.png, run.json')
  return Result(table, folder.path, rejected)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
