"""Heads as a retriever: which page, which layout of a document answers?

    python -m experiments.retrieve --heads=@runs/rank/A:top5% --layouts
    python -m experiments.retrieve --heads=@runs/rank/A:top5% --layouts \\
        --data=mmdocir --data_dir=MMDocIR/

Shows a document's pages in chunks of --pages, with the question, and ranks all
its pages by the mean attention mass that a set of heads puts on each from the
question's rows; with --layouts its paragraphs, tables and figures too, by the
mass on the tokens that each one's box is. Nothing is generated, and no answer
is given. Scored by page recall@1, 3, 5 and layout recall@1, 5, 10
(corejax.recall), beside all heads and, as controls, as many heads drawn from
anywhere and from the same layers, any order, and layouts by size alone.

--layout_score says whether a larger layout, which has more tokens, counts for
more: `mass`, the default, adds up the attention to all of its tokens, as a
page's mass does; `density` is the mean over its tokens. MMDocIR's recall does
not charge for area that is retrieved beside the evidence, which favours the
first; the second points out the smallest thing that is looked at.

Writes report.html, retrieval.csv, retrieval.png, questions.jsonl,
rejected.jsonl and run.json into --out; the same command again continues, and
other heads, draws or scores reuse what was measured. Masses of different chunks
are compared as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax import groups as groups_lib
  from corejax.experiments import retrieve_table

setting = config_lib.setting
RESULTS = (
  'retrieval.csv',
  'retrieval.png',
  'report.html',
  'questions.jsonl',
  'rejected.jsonl',
)
_WHOLE = 100_000  # pages: more than any document has
_PART = 8  # questions


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Shared):
  """Settings of a retrieval."""

  data: str = setting('scenes_pages', 'data set of documents; see --list_data')
  heads: str = setting(
    '', 'the heads: 14-22,13-16 or @RUN[:top5%], see experiments.rank'
  )
  query: str = setting(
    'question', 'rows whose reading counts', ('question', 'last')
  )
  layouts: bool = setting(
    False, 'rank layouts too: those of MMDocIR_layouts.parquet, or cells'
  )
  layout_score: str = setting(
    'mass',
    'what a layout is ranked by: attention to all of its tokens, or per token',
    ('mass', 'density'),
  )
  draws: int = setting(5, 'random sets of heads of each kind of control')
  batch_size: int = setting(8, 'chunks per forward')

  def __post_init__(self):
    super().__post_init__()
    for name in ('draws', 'batch_size'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    if self.pages > 6:
      raise errors.UserError(
        f'--pages={self.pages}: at most 6 pages are told apart in a chunk'
      )


@dataclasses.dataclass(frozen=True)
class Result:
  """What a retrieval returns.

  Attributes:
    rows: of retrieval.csv.
    questions: how many were asked.
    rejected: rows of rejected.jsonl.
    out: the run folder.
  """

  rows: Sequence[retrieve_table.Row]
  questions: int
  rejected: Sequence[dict]
  out: pathlib.Path


def _resources(config: Config):
  """The model, and documents whole."""
  from corejax.experiments import resources as resources_lib

  if not config.heads:
    raise errors.UserError(
      '--heads: which heads? 14-22,13-16, or @RUN:top5% of a run of '
      'experiments.rank'
    )
  if config.video_as == 'clip':
    raise errors.UserError(
      '--video_as=clip: frames are ranked as pages are, each by itself; leave '
      'it out, or give pictures'
    )
  whole = 8 if config.data.startswith('scenes_') else _WHOLE
  settings = dataclasses.replace(config, pages=1)
  source = resources_lib.load_source(_widened(settings, whole))
  return resources_lib.load(settings, source)


def _widened(config: Config, pages: int) -> config_lib.Shared:
  """The same data with whole documents for windows."""
  names = [field.name for field in dataclasses.fields(config_lib.Shared)]
  values = {name: getattr(config, name) for name in names}
  # Frames are ranked as pages are: each by itself.
  return config_lib.Shared(**{**values, 'pages': pages, 'video_as': 'pictures'})


def run(config: Config) -> Result | None:
  """Measures every page's mass once, then ranks by every set of heads.

  Raises:
    UserError: a setting or file is wrong, no question can be asked, or too many
      records are rejected.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _identity(config: Config, resources: Any) -> dict:
  from corejax.data import layouts

  names = (
    'model data split tasks pages dpi limit seed dtype image_policy query '
    'layouts batch_size'
  )
  found = {}
  if config.layouts:
    found = {'layouts_table': list(layouts.identity(resources.source))}
  return {
    **{name: getattr(config, name) for name in names.split()},
    **found,
    **resources.identity(),
  }


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  from corejax import parts as parts_lib
  from corejax import ranking
  from corejax.experiments import pods
  from corejax.experiments import report
  from corejax.experiments import retrieve_run
  from corejax.experiments import runs
  from corejax.experiments import session
  from corejax.experiments import step

  pods.initialize()
  if not pods.is_alone():
    raise errors.UserError('retrieve runs in one process; start one alone')
  with stop.at_once():
    resources = _resources(config)
    identity = _identity(config, resources)
  loaded, source = resources.loaded, resources.source
  resources.check_batch(config.batch_size)
  shape = loaded.n_layers, loaded.n_heads
  given = ranking.parse_heads(config.heads, *shape)
  sets = _sets(given, shape, config.draws)
  out = runs.folder_path(
    config.out or f'runs/retrieve/{config.model}-{config.data}'
  )
  what = 'pages and layouts' if config.layouts else 'pages'
  said = (
    f'{loaded.key}: {len(given)} heads of {shape[0]} x {shape[1]} rank the '
    f'{what} of {source.name}/{source.split}, {config.pages} pages shown at '
    f'once: {session.describe(source, config.limit)} -> {out}'
  )
  print(said, flush=True)
  if config.dry_run:
    return None
  records = [
    range(first, min(first + _PART, len(source)))
    for first in range(0, len(source), _PART)
  ]
  store = parts_lib.PartStore(
    out / 'scores', len(records), runs.fingerprint(identity)
  )
  record = {
    'experiment': 'retrieve',
    'flags': dataclasses.asdict(config),
    **resources.describe(),
  }
  with session.opened(
    out, identity, record, config.resume, store, RESULTS
  ) as folder:
    assert folder is not None
    missing = store.missing()
    runner = step.Runner(resources, config.batch_size)
    with runs.Progress(
      'parts', len(records), len(records) - len(missing)
    ) as progress:
      for number in missing:
        stop.check()
        head, arrays = retrieve_run.part(
          resources,
          runner,
          records[number],
          pages=config.pages,
          query=config.query,
          layouts=config.layouts,
        )
        store.put(number, head, arrays)
        progress.advance(1)
    with stop.at_once():
      return _finish(
        config, folder, store, sets, len(source), report.About.of(resources)
      )


def _sets(
  given: Any, shape: tuple[int, int], draws: int
) -> list[groups_lib.Group]:
  """The heads, all heads, and the controls.

  Raises:
    UserError: too few heads are left for the controls.
  """
  import numpy as np

  from corejax import groups
  from corejax import heads
  from corejax.experiments import retrieve_table

  every_LN = np.ones(shape, bool)
  every = heads.HeadSet.from_mask(every_LN)
  return [
    groups.Group(groups.GIVEN, len(given), given),
    groups.Group(retrieve_table.ALL, len(every), every),
    *(
      groups.control(name, given, every_LN, seed)
      for name in groups.RANDOM
      for seed in range(draws)
    ),
  ]


def _finish(config, folder, store, sets, total, about) -> Result:
  """Ranks by every set of heads and writes what came of it."""
  from corejax.experiments import retrieve_report
  from corejax.experiments import retrieve_table
  from corejax.experiments import session

  rejected, questions, ranked, shares = [], [], [], {}
  for number in range(store.n_parts):
    head, arrays = store.open(number)
    rejected += head['rejected']
    for row, question, found in _rank(head['rows'], arrays, sets, config):
      questions.append(row)
      ranked.append(question)
      for key, values in found.items():
        shares.setdefault(key, []).append(values)
  folder.write_lines('rejected.jsonl', rejected)
  session.check_rejected(rejected, total, total, config.max_bad, folder.path)
  if not questions:
    raise errors.UserError(
      f'--data={config.data}: none of {total} questions could be asked; see '
      f'{folder.path / "rejected.jsonl"}'
    )
  founds = _founds(shares, sets, ranked)
  clusters = [row['cluster'] for row in questions]
  table = retrieve_table.rows(
    founds, clusters, [row['domain'] for row in questions]
  )
  summary = retrieve_table.summary(
    table, founds, clusters, config.draws, config.layout_score
  )
  summary += _left_out(questions)
  title = f'{about.model} on {about.data}: {len(questions)} questions'
  picture = retrieve_report.figure(table, title)
  folder.write('retrieval.csv', retrieve_table.to_csv(table))
  folder.write('retrieval.png', picture)
  folder.write_lines('questions.jsonl', questions)
  page = retrieve_report.page(table, picture, summary, about, config.pages)
  folder.write('report.html', page)
  folder.record['findings'] = {
    f'{row.what} {row.name}@{row.k}': [
      row.micro.value,
      row.micro.low,
      row.micro.high,
    ]
    for row in table
    if row.whole
  }
  print('\n'.join(summary))
  print(
    f'files    {folder.path}/report.html, retrieval.csv, retrieval.png, '
    'questions.jsonl, run.json'
  )
  return Result(table, len(questions), rejected, folder.path)


def _rank(rows, arrays, sets, config):
  """(row, retrieve_table.Ranked, (what, set) -> shares) of each question."""
  from corejax import recall
  from corejax.experiments import retrieve_table as table_lib

  shape = arrays['mass'].shape[1:]
  masks = [group.heads.mask(*shape) for group in sets]
  page, layout = 0, 0
  for row in rows:
    found = {}
    mass_PLN = arrays['mass'][page : page + row['n_pages']]
    page += row['n_pages']
    question = table_lib.Ranked(row['evidence'], row['n_pages'])
    best = {}
    for x, mask_LN in enumerate(masks):
      score_P = mass_PLN[:, mask_LN].mean(1)
      found[table_lib.PAGES, x] = table_lib.page_shares(question, score_P)
      if not x:
        best['pages'] = recall.first(score_P, 5)
    if config.layouts:
      part = slice(layout, layout + row['n_layouts'])
      layout = part.stop
      place_J5 = arrays['layout_place'][part].tolist()
      question = dataclasses.replace(
        question,
        evidence=[recall.Layout(int(p), (*c,)) for p, *c in row[_EVIDENCE]],
        layouts=[recall.Layout(int(p), (*c,)) for p, *c in place_J5],
      )
      for x, mask_LN in enumerate(masks):
        mass_J = arrays['layout_mass'][part][:, mask_LN].mean(1, dtype=float)
        score_J = table_lib.layout_scores(
          mass_J, arrays['layout_tokens'][part], config.layout_score
        )
        found[table_lib.LAYOUTS, x] = table_lib.layout_shares(question, score_J)
        if not x:
          best['layouts'] = [place_J5[j] for j in recall.first(score_J, 10)]
    yield {**row, 'given_heads_first': best}, question, found


_EVIDENCE = 'evidence_layouts'


def _founds(shares: Mapping, sets, ranked) -> list[retrieve_table.Found]:
  """Every order of the pages, then of the layouts if they were measured."""
  import numpy as np

  from corejax.experiments import retrieve_table as table_lib

  founds = []
  for what in table_lib.KS:
    if (what, 0) not in shares:
      continue
    for x, group in enumerate(sets):
      share_KE = np.array(shares[what, x]).T
      founds.append(
        table_lib.Found(
          what, group.name, group.seed, len(group.heads), share_KE
        )
      )
    if what == table_lib.LAYOUTS and table_lib.sizes_differ(ranked):
      founds.append(table_lib.largest_first(ranked))
    founds.append(table_lib.any_order(ranked, what))
  return founds


def _left_out(questions: Sequence[dict]) -> list[str]:
  """A line on rows of the table of layouts that are none."""
  counts: dict[str, int] = {}
  # Questions of a document share its layouts: count each document's once.
  for row in {row['cluster']: row for row in questions}.values():
    for reason, n in row.get('layouts_left_out', {}).items():
      counts[reason] = counts.get(reason, 0) + n
  if not counts:
    return []
  told = ', '.join(f'{n} {reason}' for reason, n in sorted(counts.items()))
  return [f'layouts left out, of all documents asked about: {told}']


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
