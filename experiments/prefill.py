"""Sparse prefill: accuracy and speed of one and the same call.

    python -m experiments.prefill --model=llava_flax
    python -m experiments.prefill --heads=@runs/rank/llava_flax-scenes_pages
    python -m experiments.prefill --kernel_only --lengths=4096,8192

A few heads read the whole prompt, every other one a sink and a causal window.
Without --heads they are ranked first, on other examples (--rank_split, at
--pages pages), in <out>/ranking. Every set of dense heads answers every batch
in turns, at several lengths (--page_counts); what is timed is what is judged:
from pixels and tokens to the first token. The attention alone is timed beside
it, never in its place. Writes report.html, prefill.csv, speed.png,
accuracy.png, examples.jsonl, rejected.jsonl and run.json into --out. The same
command again continues where it stopped. --kernel_only times one layer's
attention alone, on random numbers, and writes kernel.csv, speed.png,
report.html and run.json; it begins anew each time.
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
  from corejax.experiments import prefill_kernel
  from corejax.experiments import prefill_table

setting = config_lib.setting

RESULTS = (
  'report.html',
  'prefill.csv',
  'kernel.csv',
  'speed.png',
  'accuracy.png',
  'examples.jsonl',
  'rejected.jsonl',
)


@dataclasses.dataclass(frozen=True)
class Config(cutting.Judging):
  """Settings of a comparison."""

  heads: str = setting(
    '',
    "heads that stay dense: '' ranks them on other examples, @RUN takes a "
    'ranking, @RUN:top5% or 14-22,13-16 one set',
  )
  page_counts: str = setting(
    '',
    "numbers of pages that are answered, comma-separated; '' is 4,8,12 for "
    'scenes_haystack, else --pages',
  )
  rhos: str = setting(
    '0,0.02,0.05,0.1,0.2,0.25,0.5,1', 'dense fractions, comma-separated'
  )
  assignments: str = setting(
    '',
    "which heads are dense, comma-separated; '' is all_dense,all_sparse,top,"
    'kv_top,layer_matched,random,bottom',
  )
  window: str = setting(
    'auto',
    'keys that a sparse head reads back, its own included; auto is 2048, but '
    'below 4352 tokens what makes window and sink a tenth of the prompt',
  )
  sink: str = setting(
    'auto', 'first keys that every head reads; auto is 128, or as --window'
  )
  block: int = setting(128, "edge of a kernel's tile, for ideals")
  repeats: int = setting(6, 'timed rounds of each length, at least')
  kernel_only: bool = setting(
    False, "time one layer's attention alone, without a model"
  )
  lengths: str = setting(
    '4096,8192,16384,32768,65536,131072', 'tokens, with --kernel_only'
  )
  geometries: str = setting(
    '28/4,32/8', 'query heads / kv heads, with --kernel_only'
  )
  head_dim: int = setting(128, 'numbers of a head, with --kernel_only')
  max_seconds: float = setting(
    60.0, 'with --kernel_only: a length that would take longer is left out'
  )
  # Other defaults than those of experiments that cut heads.
  data: str = setting('scenes_haystack', 'data set; see --list_data')
  pages: int = setting(8, 'pages of the documents that heads are ranked on')
  limit: int = setting(
    200, 'use the first so many records at each length; 0 is all'
  )
  rank_limit: int = setting(200, 'records to rank on; 0 is all')
  draws: int = setting(3, 'draws of each random assignment')
  batch_size: int = setting(8, 'prompts of a timed call')

  def __post_init__(self):
    super().__post_init__()
    for name in ('block', 'repeats', 'head_dim'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    if not self.max_seconds > 0:
      raise errors.UserError(
        f'--max_seconds={self.max_seconds:g}: give more than 0'
      )
    from corejax.experiments import prefill_sets

    prefill_sets.parse_fractions(self.rhos)
    prefill_sets.parse_names(self.assignments)
    prefill_sets.parse_counts(self.lengths, '--lengths')
    prefill_sets.span(self.window, self.sink, 1)
    if self.page_counts:
      prefill_sets.parse_counts(self.page_counts, '--page_counts')

  @property
  def counts(self) -> tuple[int, ...]:
    """Numbers of pages that are answered."""
    from corejax.experiments import prefill_sets

    text = self.page_counts
    if not text:
      text = '4,8,12' if self.data == 'scenes_haystack' else str(self.pages)
    return prefill_sets.parse_counts(text, '--page_counts')

  @property
  def counts_flag(self) -> str:
    """Where they come from."""
    given = self.page_counts or self.data == 'scenes_haystack'
    return '--page_counts' if given else '--pages'


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    table: rows of prefill.csv.
    compared: the best heads of every length and budget against all else.
    out: the run folder.
    rejected: the records left out, as in rejected.jsonl.
  """

  table: list[prefill_table.Row]
  compared: list[prefill_table.Compared]
  out: pathlib.Path
  rejected: list[dict]


def out_folder(config: Config) -> pathlib.Path:
  """Where the run goes."""
  from corejax.experiments import runs

  name = f'{config.model}-{config.data}'
  if config.kernel_only:
    name = 'kernel'
  return runs.folder_path(config.out or f'runs/prefill/{name}')


def run(config: Config) -> Result | prefill_kernel.Result | None:
  """Ranks if need be, times and judges, writes, and says what was found.

  Returns:
    The Result; None with dry_run, and on all processes but the first.

  Raises:
    UserError: something outside is wrong.
  """
  with cli_lib.Stop() as stop:
    if config.kernel_only:
      from corejax.experiments import prefill_kernel

      return prefill_kernel.run(config, out_folder(config), stop)
    return _run(config, stop)


def _scales(config: Config, stop: cli_lib.Stop):
  """(resources, the lengths)."""
  with stop.at_once():
    from corejax.experiments import ablate_sets
    from corejax.experiments import pods
    from corejax.experiments import prefill_run
    from corejax.experiments import resources as resources_lib

    pods.initialize()
  sources = {
    pages: ablate_sets.judged(dataclasses.replace(config, pages=pages))
    for pages in config.counts
  }
  with stop.at_once(pods.is_alone()):
    resources = resources_lib.load(config, next(iter(sources.values())))
  resources.check_batch(config.batch_size)
  return resources, [
    prefill_run.scale(
      resources,
      source,
      pages,
      config.window,
      config.sink,
      config.block,
      config.counts_flag,
    )
    for pages, source in sources.items()
  ]


def _sets(config: Config, resources, ranking_folder: pathlib.Path):
  """(sets, left out, which heads they are of, caveat)."""
  from corejax.experiments import ablate_sets
  from corejax.experiments import prefill_sets

  loaded = resources.loaded
  chosen = ablate_sets.choose(config, resources, ranking_folder)
  names = prefill_sets.parse_names(config.assignments)
  if chosen.heads is not None:
    made = prefill_sets.make_given(
      names, chosen.heads, loaded.n_layers, loaded.n_heads, config.draws
    )
  else:
    assert chosen.ranking is not None, 'one of the two'
    made = prefill_sets.make(
      names,
      prefill_sets.parse_fractions(config.rhos),
      loaded.n_kv_heads,
      config.draws,
      chosen.ranking.score_LN,
    )
  return *made, chosen.told, chosen.caveat


def _identity(config: Config, resources, scales, sets) -> dict:
  """What answers and times depend on."""
  import corejax

  names = (
    'model data split tasks pages dpi limit seed dtype image_policy twins '
    'batch_size repeats'
  )
  return {
    'corejax': corejax.__version__,
    'prefill': 1,
    **{name: getattr(config, name) for name in names.split()},
    **resources.identity(),
    'device': resources.describe()['device'],
    'scales': [
      f'{s.pages} {s.source.fingerprint} {s.window} {s.sink}' for s in scales
    ],
    'sets': [f'{s.name} {s.seed}: {s.heads}' for s in sets],
  }


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  resources, scales = _scales(config, stop)
  from corejax import parts as parts_lib
  from corejax.experiments import measure
  from corejax.experiments import pods
  from corejax.experiments import prefill_run
  from corejax.experiments import prefill_words
  from corejax.experiments import runs
  from corejax.experiments import session
  from corejax.experiments import timed

  out = out_folder(config)
  if config.dry_run:
    print(prefill_words.plan(config, resources, scales, out))
    return None
  sets, left_out, told, caveat = _sets(config, resources, out / 'ranking')
  identity = _identity(config, resources, scales, sets)
  offsets = prefill_run.offsets(scales)
  batches = [
    [offset + i for i in batch]
    for offset, scale in zip(offsets, scales)
    for batch in measure.batches(len(scale.source), config.batch_size)
  ]
  store = parts_lib.PartStore(
    out / 'scores', len(batches), runs.fingerprint(identity)
  )
  geometry = timed.Geometry.of(resources)
  record = {
    'experiment': 'prefill',
    'flags': dataclasses.asdict(config),
    'ranking': told,
    'kernel': geometry.picked(config.batch_size, scales[-1].tokens),
    **resources.describe(),
  }
  if pods.is_first():
    print(
      prefill_words.head(config, resources, scales, sets, left_out, told, out),
      flush=True,
    )
  with session.opened(
    out, identity, record, config.resume, store, RESULTS
  ) as folder:
    runner = prefill_run.Runner(
      resources, scales, sets, config.batch_size, config.repeats
    )
    session.fill(
      store,
      batches,
      config.max_bad * sum(len(scale.source) for scale in scales),
      stop,
      read=lambda numbers, closing: prefill_run.read(
        resources, scales, config.batch_size, numbers, closing
      ),
      n_rejected=lambda read: len(read.batch.rejected),
      start=lambda read: (read.head(), runner.start(read)),
      finish=lambda started: started,
      trace=session.trace(out, config.trace_steps),
    )
    if folder is None:
      return None
    with stop.at_once():
      return _finish(config, folder, store, resources, scales, sets, caveat)


def _finish(config, folder, store, resources, scales, sets, caveat) -> Result:
  """The offline half: store -> table -> files."""
  import numpy as np

  from corejax.experiments import prefill_report
  from corejax.experiments import prefill_table
  from corejax.experiments import prefill_words
  from corejax.experiments import report
  from corejax.experiments import session
  from corejax.experiments import timed_table

  shape = resources.loaded.n_layers, resources.loaded.n_heads
  total = sum(len(scale.source) for scale in scales)
  arrays, examples, rejected = session.read_parts(
    folder, store, total, config.max_bad
  )
  table, compared, summary = [], [], []
  for s, scale in enumerate(scales):
    mine = [each for each in arrays if int(each['scale']) == s]
    rows = [row for row in examples if row['pages'] == scale.pages]
    if not rows:
      raise errors.UserError(
        f'{folder.path}: no record of {scale.pages} pages could be used'
      )
    found = timed_table.Timed(
      score_XE=np.concatenate([a['score'] for a in mine], 1),
      first_XR=np.concatenate([a['first'] for a in mine], 1),
      kernel_XR=timed_table.rounds([a['kernel'] for a in mine]),
      clusters=[row['cluster'] for row in rows],
      tasks=[row['task'] for row in rows],
      twin_E=np.array([row['twin'] for row in rows], bool),
      batch_size=config.batch_size,
    )
    here = prefill_table.rows(scale, sets, found, shape)
    table += here
    compared += prefill_table.compare(scale, sets, found, here)
    longest = max(row['prompt'] for row in rows)
    summary.append(prefill_words.placed(scale, rows, longest))
    if np.isnan(found.kernel_XR).any():
      summary.append(prefill_words.not_timed(scale))
  summary += prefill_words.summary(table, scales, compared)
  notes = dict.fromkeys(
    f'note     {prefill_words.TITLES[each.name]}, {len(each.heads)} heads: '
    f'{each.note}'
    for each in sets
    if each.note
  )
  summary = [*([f'note     {caveat}'] if caveat else []), *notes, *summary]
  folder.write('prefill.csv', prefill_table.to_csv(table, config.batch_size))
  title = (
    f'{config.model} on {config.data}, {len(examples)} prompts; batches of '
    f'{config.batch_size} on {resources.describe()["device"]}'
  )
  speed = prefill_report.speed(table, scales, title)
  accuracy = prefill_report.accuracy(table, scales, title)
  folder.write('speed.png', speed)
  folder.write('accuracy.png', accuracy)
  folder.write(
    report.FILE,
    prefill_report.page(
      table,
      scales,
      compared,
      summary,
      report.About.of(resources),
      (speed, accuracy),
      config.batch_size,
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
  print(
    f'files    {folder.path}/report.html, prefill.csv, speed.png, '
    'accuracy.png, run.json'
  )
  return Result(table, compared, folder.path, rejected)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
