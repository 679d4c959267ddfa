"""Heads as a retriever: which page of a document answers a question?

    python -m experiments.retrieve --heads=@runs/rank/A:top5% --data=mmdocir \\
        --data_dir=MMDocIR/

Shows a document's pages in chunks of --pages, with the question, and ranks all
its pages by the mean attention mass that a set of heads puts on each from the
question's rows. Nothing is generated, and no answer is given. Scored by page
recall@1, 3, 5 (corejax.recall), beside all heads and, as controls, as many
heads drawn from anywhere and from the same layers, and beside any order.

Writes retrieval.csv, questions.jsonl, rejected.jsonl and run.json into --out;
the same command again continues. Masses of different chunks are compared as
they are. Pages alone: the table of all layouts is not read, so that no recall
of layouts is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  import numpy as np

  from corejax import groups as groups_lib

setting = config_lib.setting
RESULTS = ('retrieval.csv', 'questions.jsonl', 'rejected.jsonl')
_WHOLE = 100_000  # pages: more than any document has
_PART = 8  # questions
ANY_ORDER, ALL = 'any order', 'all heads'


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
class Row:
  """One group's recall of pages.

  Attributes:
    name: 'given', a control's name of corejax.groups, ALL or ANY_ORDER.
    seed: of a random group, else None.
    heads: how many.
    recall: k -> 'micro' and 'macro'.
  """

  name: str
  seed: int | None
  heads: int
  recall: Mapping[int, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Result:
  """What a retrieval returns.

  Attributes:
    rows: of retrieval.csv, the given heads first.
    questions: how many were asked.
    rejected: rows of rejected.jsonl.
    out: the run folder.
  """

  rows: Sequence[Row]
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


def chunks(n_pages: int, size: int) -> list[range]:
  """Pages that are shown together."""
  return [
    range(first, min(first + size, n_pages))
    for first in range(0, n_pages, size)
  ]


@dataclasses.dataclass(frozen=True)
class Asked:
  """One chunk, as the model takes it."""

  encoded: Any
  annotated: Any
  n_pages: int


def ask(processor: Any, example: Any, pages: range) -> Asked:
  """The question about some pages of its document.

  Args:
    processor: of the model.
    example: shows the whole document.
    pages: at most 6 of them.

  Raises:
    Rejected: it shows a video, or see Processor.encode.
  """
  import numpy as np

  from corejax import evidence
  from corejax import regions

  if example.clips:
    raise errors.Rejected(
      errors.Reason.BAD_RECORD,
      f'{example.id}: it shows a video; pages are ranked, pictures each',
    )
  encoded = processor.encode(
    dataclasses.replace(
      example,
      media=tuple(example.media[page] for page in pages),
      answers=(),
      evidence=(),
      distractors=(),
    )
  )
  none_I = np.zeros(len(encoded.visual_I), bool)
  region_T = regions.partition(
    len(encoded.tokens_T), encoded.visual_I, none_I, [], encoded.question
  )
  # A page a region: the visual ones are the first of all.
  region_T[encoded.visual_I] = encoded.layout.media_I
  return Asked(
    encoded,
    evidence.Annotated(
      evidence_I=none_I,
      distractors_XI=np.zeros((0, len(none_I)), bool),
      region_T=region_T,
      rows=evidence.query_rows(encoded),
      visual_I=encoded.visual_I,
    ),
    len(pages),
  )


def _part(config: Config, resources: Any, runner: Any, records: range):
  """(head, arrays) of some questions, as PartStore.put takes them."""
  import numpy as np

  from corejax import regions
  from corejax.experiments import features
  from corejax.experiments import session
  from corejax.experiments import step

  rows, rejected, asked = [], [], []
  for index in records:
    try:
      example = resources.source[index]
      if not example.evidence:
        raise errors.Rejected(errors.Reason.NO_EVIDENCE, example.id)
      parts = [
        ask(resources.loaded.processor, example, pages)
        for pages in chunks(len(example.media), config.pages)
      ]
    except errors.Rejected as e:
      rejected.append(session.rejection(resources.source, index, e))
      continue
    asked += parts
    rows.append(
      {
        'index': index,
        'id': example.id,
        'cluster': example.cluster,
        'domain': str(example.meta.get('domain', '')),
        'question': example.question,
        'n_pages': len(example.media),
        'evidence': sorted({box.media for box in example.evidence}),
      }
    )
  row = regions.QUERY_SETS.index(config.query)
  masses = []
  for start in range(0, len(asked), config.batch_size):
    batch = asked[start : start + config.batch_size]
    out = runner.start(
      [each.encoded for each in batch],
      [each.annotated for each in batch],
      [features.keys(each.encoded) for each in batch],
      None,
    )
    mass_ELNR = step.fetch(out, len(batch))['mass'][:, :, :, row]
    masses += [
      mass_LNR[:, :, : each.n_pages].transpose(2, 0, 1)
      for mass_LNR, each in zip(mass_ELNR, batch)
    ]
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  mass_ILN = np.concatenate([np.zeros((0, *shape), np.float32), *masses])
  return {'rows': rows, 'rejected': rejected}, {'mass': mass_ILN}


def run(config: Config) -> Result | None:
  """Measures every page's mass once, then ranks by every set of heads.

  Raises:
    UserError: a setting or file is wrong, no question can be asked, or too many
      records are rejected.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _identity(config: Config, resources: Any) -> dict:
  names = (
    'model data split tasks pages dpi limit seed dtype image_policy query '
    'batch_size'
  )
  return {
    **{name: getattr(config, name) for name in names.split()},
    **resources.identity(),
  }


def _run(config: Config, stop: cli_lib.Stop) -> Result | None:
  from corejax import parts as parts_lib
  from corejax import ranking
  from corejax.experiments import pods
  from corejax.experiments import runs
  from corejax.experiments import session
  from corejax.experiments import step

  pods.initialize()
  if not pods.is_alone():
    raise errors.UserError('retrieve runs in one process; start one alone')
  with stop.at_once():
    resources = _resources(config)
  loaded, source = resources.loaded, resources.source
  resources.check_batch(config.batch_size)
  shape = loaded.n_layers, loaded.n_heads
  given = ranking.parse_heads(config.heads, *shape)
  out = runs.folder_path(
    config.out or f'runs/retrieve/{config.model}-{config.data}'
  )
  said = (
    f'{loaded.key}: {len(given)} heads of {shape[0]} x {shape[1]} rank the '
    f'pages of {source.name}/{source.split}, {config.pages} shown at once: '
    f'{session.describe(source, config.limit)} -> {out}'
  )
  print(said, flush=True)
  if config.dry_run:
    return None
  identity = _identity(config, resources)
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
        head, arrays = _part(config, resources, runner, records[number])
        store.put(number, head, arrays)
        progress.advance(1)
    with stop.at_once():
      return _finish(config, folder, store, given, shape, len(source))


def _finish(config, folder, store, given, shape, total) -> Result:
  """Ranks by every set of heads and writes what came of it."""
  import numpy as np

  from corejax import groups as groups_lib
  from corejax.experiments import session

  questions, rejected, masses = [], [], []
  for number in range(store.n_parts):
    head, arrays = store.open(number)
    rejected += head['rejected']
    at = 0
    for row in head['rows']:
      masses.append(arrays['mass'][at : at + row['n_pages']])
      questions.append(row)
      at += row['n_pages']
  folder.write_lines('rejected.jsonl', rejected)
  session.check_rejected(rejected, total, total, config.max_bad, folder.path)
  if not questions:
    raise errors.UserError(
      f'--data={config.data}: none of {total} questions could be asked; see '
      f'{folder.path / "rejected.jsonl"}'
    )
  sets = [groups_lib.Group(groups_lib.GIVEN, len(given), given)]
  everything_LN = np.ones(shape, bool)
  for name in groups_lib.RANDOM:
    sets += [
      groups_lib.control(name, given, everything_LN, seed)
      for seed in range(config.draws)
    ]
  found = [recalls(group, questions, masses, shape) for group in sets]
  found.insert(1, _of(ALL, None, everything_LN, questions, masses))
  found.append(_any_order(questions))
  folder.write('retrieval.csv', _csv(found))
  folder.write_lines('questions.jsonl', questions)
  folder.record['findings'] = {
    f'{row.name} {row.seed}'.replace(' None', ''): row.recall[1]['micro']
    for row in found
  }
  print(_table(found, len(questions)))
  print(f'files    {folder.path}/retrieval.csv, questions.jsonl, run.json')
  return Result(found, len(questions), rejected, folder.path)


def recalls(
  group: groups_lib.Group,
  questions: Sequence[dict],
  masses: Sequence[np.ndarray],
  shape: tuple[int, int],
) -> Row:
  """How a group of heads ranks the pages.

  Args:
    group: the heads.
    questions: 'evidence' and 'domain' of each.
    masses: float32 [pages, L, N] of each.
    shape: (L, N).
  """
  mask_LN = group.heads.mask(*shape)
  return _of(group.name, group.seed, mask_LN, questions, masses)


def _of(name, seed, mask_LN, questions, masses) -> Row:
  from corejax import recall

  ranked = [
    recall.first(mass_ILN[:, mask_LN].mean(1), len(mass_ILN))
    for mass_ILN in masses
  ]
  domains = [row['domain'] for row in questions]
  return Row(
    name,
    seed,
    int(mask_LN.sum()),
    {
      k: recall.means(
        [
          recall.page_recall(pages, row['evidence'], k)
          for pages, row in zip(ranked, questions)
        ],
        domains,
      )
      for k in recall.PAGE_KS
    },
  )


def _any_order(questions) -> Row:
  """What pages in any order come to: k of n, whatever the evidence is."""
  from corejax import recall

  domains = [row['domain'] for row in questions]
  return Row(
    ANY_ORDER,
    None,
    0,
    {
      k: recall.means(
        [min(k / row['n_pages'], 1.0) for row in questions], domains
      )
      for k in recall.PAGE_KS
    },
  )


def _csv(rows: Sequence[Row]) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['group', 'seed', 'heads', 'k', 'micro', 'macro'])
  for row in rows:
    for k, means in row.recall.items():
      seed = '' if row.seed is None else row.seed
      writer.writerow(
        [row.name, seed, row.heads, k, means['micro'], means['macro']]
      )
  return text.getvalue()


def _table(rows: Sequence[Row], n: int) -> str:
  """What is printed: of random groups the mean over draws."""
  lines = [f'page recall of {n} questions at 1, 3, 5 (mean over questions):']
  for name in dict.fromkeys(row.name for row in rows):
    of = [row for row in rows if row.name == name]
    values = [
      sum(row.recall[k]['micro'] for row in of) / len(of) for k in of[0].recall
    ]
    drawn = f', {len(of)} draws' if of[0].seed is not None else ''
    heads = f'{of[0].heads} heads{drawn}' if of[0].heads else ''
    told = '  '.join(f'{value:.3f}' for value in values)
    lines.append(f'  {name:14} {told}  {heads}'.rstrip())
  return '\n'.join(lines)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
