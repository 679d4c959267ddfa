"""Rank the heads of a model by Retrieval Attention Mass (RAM).

    python -m experiments.rank --model=llava_flax
    python -m experiments.rank --checkpoint=DIR --data=mmdocir --data_dir=DIR
    python -m experiments.rank --data=scenes_referring,scenes_pages
    python -m experiments.rank --checkpoint=DIR --compile_only --target=v5e:4x4

Writes report.html, heads.csv, heatmap.png, arrays.npz, examples.jsonl,
rejected.jsonl and run.json into --out. The same command again continues where
it stopped; other offline settings (--norm, --select, --contrast, --filter,
--bootstrap, --permutations) reuse what was measured. Several data sets are each
ranked in a folder of --out and compared (experiments/several.py, which also
says how --data_dir is then written).
Compiled programs are kept beside --out, in .jax_cache; another folder is named
by JAX_COMPILATION_CACHE_DIR, and JAX_ENABLE_COMPILATION_CACHE=false keeps none.
With --compile_only nothing is run or written: the last line says whether such a
run fits on devices that need not be here, from config.json alone.
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
from corejax.experiments import several

if TYPE_CHECKING:
  from corejax import ranking as ranking_lib
  from corejax import scores as scores_lib
  from corejax.experiments import ahead_report

setting = config_lib.setting


_MOST_TOKENS = 1 << 20
RESULTS = (
  'heads.csv',
  'heatmap.png',
  'arrays.npz',
  'examples.jsonl',
  'rejected.jsonl',
  'report.html',
)


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Shared):
  """Settings of a ranking."""

  query: str = setting(
    'question',
    'rows whose reading counts',
    ('question', 'last', 'answer'),
  )
  norm: str = setting(
    'mass', 'what is ranked by', ('mass', 'share', 'lift', 'excess')
  )
  select: str = setting(
    'top5%', 'which heads are the set: top5%, top30, per_layer2 or fdr0.01'
  )
  calibrate: bool = setting(
    False, 'subtract the same masses under a content-free question'
  )
  contrast: bool = setting(
    False, 'evidence minus the largest distractor, per token'
  )
  filter: bool = setting(
    False, 'use only examples whose teacher-forced answer is right'
  )
  profiles: bool = setting(
    True, 'keep attention over visual tokens; the nulls need it'
  )
  gradients: bool = setting(
    False, 'rank by |d log p(answer) / d gate| too, with a backward pass'
  )
  bootstrap: int = setting(2000, 'bootstrap resamples of the clusters')
  permutations: int = setting(5000, 'permutations of the null')
  batch_size: int = setting(8, 'examples per forward')
  compile_only: bool = setting(
    False, 'compile for --target; print memory, FLOPs and whether it fits'
  )
  target: str = setting(
    '', 'of --compile_only: a slice, as v5e:4x4, v6e:2x4, v5p:2x2x1; h100; cpu'
  )
  length: int = setting(16384, 'of --compile_only: tokens of an example')
  picture: int = setting(
    1024,
    'of --compile_only: visual tokens of a picture, where it keeps its own '
    'size (Qwen-VL)',
  )

  def __post_init__(self):
    super().__post_init__()
    if self.batch_size < 1:
      raise errors.UserError(f'--batch_size={self.batch_size}: give 1 or more')
    for name in ('bootstrap', 'permutations'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; 0 leaves it out'
        )
    for name in ('length', 'picture'):
      if not 1 <= getattr(self, name) <= _MOST_TOKENS:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 to {_MOST_TOKENS} tokens'
        )
    if self.compile_only != bool(self.target):
      raise errors.UserError(
        f'--target={self.target}: --compile_only and --target go together, as '
        '--compile_only --target=v5e:4x4'
      )


@dataclasses.dataclass(frozen=True)
class Result:
  """What a ranking run returns.

  Attributes:
    ranking: the heads.
    scores: what it was computed from.
    rows: of examples.jsonl, in the order of the scores.
    out: the run folder.
    rejected: the records left out, as in rejected.jsonl.
  """

  ranking: ranking_lib.HeadRanking
  scores: scores_lib.Scores
  rows: list[dict]
  out: pathlib.Path
  rejected: list[dict]


def out_folder(config: Config) -> pathlib.Path:
  """Where the run goes."""
  from corejax.experiments import runs

  return runs.folder_path(
    config.out or f'runs/rank/{config.model}-{config.data}'
  )


def _identity(config: Config, resources) -> dict:
  """What the masses depend on; the offline settings are not in it."""
  import corejax

  names = (
    'model data split tasks pages dpi limit seed dtype image_policy calibrate '
    'gradients batch_size'
  )
  return {
    'corejax': corejax.__version__,
    **{name: getattr(config, name) for name in names.split()},
    **resources.identity(),
  }


def _plan(config: Config, resources, n_parts: int) -> str:
  """What --dry_run prints."""
  from corejax.experiments import buckets
  from corejax.experiments import measure
  from corejax.experiments import session

  loaded, source = resources.loaded, resources.source
  lines = [
    f'model    {loaded.key}: {loaded.n_layers} layers x {loaded.n_heads} heads '
    f'({loaded.n_kv_heads} kv), {config.dtype}, {loaded.fingerprint}',
    f'data     {source.name}/{source.split}: '
    f'{session.describe(source, config.limit)} in {n_parts} batches of '
    f'{config.batch_size}, {source.fingerprint}',
    f'out      {out_folder(config)}',
  ]
  for index in range(min(3, len(source))):
    try:
      p = measure.prepare(source, loaded.processor, index, config.calibrate)
    except errors.Rejected as e:
      lines.append(f'record {index}: rejected, {e}')
      continue
    profile = 2 * loaded.n_layers * loaded.n_heads * len(p.annotated.visual_I)
    lines.append(
      f'record {index}: {len(p.encoded.tokens_T)} tokens (bucket '
      f'{buckets.tokens(len(p.encoded.tokens_T))}), '
      f'{len(p.annotated.visual_I)} visual, '
      f'{int(p.annotated.evidence_I.sum())} evidence; profile '
      f'{profile if config.profiles else 0} bytes'
    )
  return '\n'.join(lines)


def _measure(config: Config, resources, store, stop) -> None:
  """Measures the parts that are missing."""
  from corejax import store as store_lib
  from corejax.experiments import measure
  from corejax.experiments import session
  from corejax.experiments import step

  options = measure.Options(
    batch_size=config.batch_size,
    profile_set=config.query if config.profiles else None,
    calibrate=config.calibrate,
    gradients=config.gradients,
    seed=config.seed,
  )
  total = len(resources.source)
  runner = step.Runner(resources, config.batch_size)
  session.fill(
    store,
    list(measure.batches(total, config.batch_size)),
    config.max_bad * total,
    stop,
    read=lambda indices, closing: measure.prepare_batch(
      resources, indices, options, closing
    ),
    n_rejected=lambda batch: len(batch.rejected),
    start=lambda batch: measure.start_batch(runner, batch, options),
    finish=lambda started: store_lib.pack(
      measure.finish_batch(resources, started, options)
    ),
    trace=session.trace(out_folder(config), config.trace_steps),
  )


def compile_only(config: Config) -> ahead_report.Report:
  """Compiles for --target, and says what it takes there.

  Raises:
    UserError: no such model or target, or one that does not go with the other.
  """
  from corejax.experiments import ahead

  report = ahead.of(
    config,
    batch_size=config.batch_size,
    length=config.length,
    picture=config.picture,
    profile_set=config.query if config.profiles else None,
    gradients=config.gradients,
  )
  print(report.text())
  return report


def run(config: Config) -> Result | None:
  """Measures what is missing, ranks, writes, and says what was found.

  Returns:
    The Result; None with dry_run or compile_only, and on all processes but the
    first.

  Raises:
    UserError: something outside is wrong.
  """
  if config.compile_only:
    compile_only(config)
    return None
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  with stop.at_once():
    from corejax import selection as selection_lib
    from corejax import store as store_lib
    from corejax.experiments import pods
    from corejax.experiments import resources as resources_lib
    from corejax.experiments import runs
    from corejax.experiments import session

    pods.initialize()
  with stop.at_once(pods.is_alone()):
    resources = resources_lib.load(config)
  loaded, source, out = resources.loaded, resources.source, out_folder(config)
  n_parts = -(-len(source) // config.batch_size)
  # Refused before anything is measured.
  selection = selection_lib.Selection.parse(config.select)
  selection.count(loaded.n_layers, loaded.n_heads)
  if selection.kind == 'fdr' and (config.calibrate or not config.profiles):
    raise errors.UserError(
      f'--select={config.select}: needs the null, which is not tested with '
      '--calibrate or --noprofiles; select by top5%'
    )
  if not n_parts:
    raise errors.UserError(
      f'--data={config.data} --split={config.split}: no records'
    )
  resources.check_batch(config.batch_size)
  if config.dry_run:
    print(_plan(config, resources, n_parts))
    return None
  identity = _identity(config, resources)
  store = store_lib.ScoreStore(
    out / 'scores', n_parts, runs.fingerprint(identity)
  )
  record = {'flags': dataclasses.asdict(config), **resources.describe()}
  if pods.is_first():
    print(
      f'{loaded.key}: {loaded.n_layers} layers x {loaded.n_heads} heads'
      + (f' ({resources.embedded})' if resources.embedded else '')
      + f'\n{source.name}/{source.split}: '
      f'{session.describe(source, config.limit)} -> {out}',
      flush=True,
    )
  with session.opened(
    out, identity, record, config.resume, store, RESULTS
  ) as folder:
    _measure(config, resources, store, stop)
    if folder is None:
      return None
    with stop.at_once():
      return _finish(config, folder, store, source, resources)


def _finish(config: Config, folder, store, source, resources) -> Result:
  """The offline half: store -> ranking -> files."""
  import io

  import numpy as np

  from corejax import ranking as ranking_lib
  from corejax import regions
  from corejax.experiments import figures
  from corejax.experiments import report
  from corejax.experiments import report_examples
  from corejax.experiments import session

  missing = set(store.missing())
  parts = [store.read(i) for i in range(store.n_parts) if i not in missing]
  rejected = [r for part in parts for r in part.rejected]
  folder.write_lines('rejected.jsonl', rejected)
  measured = len(rejected) + sum(len(part.rows) for part in parts)
  session.check_rejected(
    rejected, measured, len(source), config.max_bad, folder.path
  )
  scores, rows, _ = store.load()
  seen = sorted(row['index'] for row in [*rows, *rejected])
  if seen != list(range(len(source))):
    raise AssertionError(f'{out_folder(config)}: records lost or doubled')
  folder.write_lines('examples.jsonl', rows)
  ranking = ranking_lib.rank(
    scores,
    query=config.query,
    norm=config.norm,
    calibrate=config.calibrate,
    contrast=config.contrast,
    correct_only=config.filter,
    bootstrap=config.bootstrap,
    permutations=config.permutations,
    select=config.select,
    seed=config.seed,
  )
  ranking.write_csv(folder.path / 'heads.csv')
  buffer = io.BytesIO()
  np.savez(
    buffer,
    mass=scores.mass_ELNQR,
    example_ids=np.array(scores.ids),
    query_sets=np.array(regions.QUERY_SETS),
    regions=np.array(regions.REGIONS),
  )
  folder.write('arrays.npz', buffer.getvalue())
  folder.write(
    'heatmap.png',
    figures.heatmap(
      ranking.grid('score'),
      ranking.grid('selected') == 1,
      f'{config.model} on {source.name}, {len(scores)} examples\n'
      f'{config.query} rows; outlined: {config.select}',
      'RAM' if config.norm == 'mass' else f'RAM, {config.norm}',
    ),
  )
  folder.write(
    report.FILE,
    report.rank_page(
      ranking,
      scores,
      report_examples.browse(resources, scores, rows),
      report.About.of(resources),
    ),
  )
  summary = ranking.summary()
  folder.record['summary'] = summary
  if ranking.findings is not None:
    folder.record['findings'] = ranking.findings.to_dict()
  folder.record['examples'] = len(scores)
  folder.record['rejected'] = dict(
    collections.Counter(r['reason'] for r in rejected)
  )
  if rejected:
    print(f'{len(rejected)} records rejected, see {folder.path}/rejected.jsonl')
  print('\n'.join(summary))
  print(f'files    {folder.path}/report.html, heads.csv, heatmap.png, run.json')
  return Result(ranking, scores, rows, folder.path, rejected)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(
    argv,
    Config,
    lambda c: (several.rank if several.asked(c.data) else run)(c),
    __doc__ or '',
  )


if __name__ == '__main__':
  sys.exit(cli())
