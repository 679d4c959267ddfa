"""What reading costs: does the device wait for pages to be drawn and laid out?

    python -m experiments.bench_read
    python -m experiments.bench_read --pdfs=mmlongbench_doc/documents

Makes --total_pages PDF pages in MMDocIR's layout (or takes those of --pdfs) and
measures them as `rank` does, in three ways that take turns:

    read     every batch read and laid out, one after the other, nothing else
    device   the same batches through the model, all of them read before
    rank     as a run has it: threads read ahead of the device

A round's batches are the same, and each side begins with nothing kept (pages,
pictures' features). Compilation is left out: a first pass does it. What the
device waited for is the time that `rank` took beyond `device`.
Prints a table and, of the reading, what its parts took; writes samples.csv and
run.json into --out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import sys
from typing import Any

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

setting = config_lib.setting
SIDES = ('read', 'device', 'rank')
STEPS = ('pages', 'pixels', 'evidence', 'keys')


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Shared):
  """Settings of a run."""

  data: str = setting('mmdocir', 'data set: this one', ('mmdocir',))
  limit: int = setting(0, 'use the first so many questions; 0 is all')
  total_pages: int = setting(500, 'pages that are shown in all')
  pdfs: str = setting('', "folder of real PDFs; '' invents some")
  rounds: int = setting(3, 'how often each side runs')
  batch_size: int = setting(8, 'examples per forward')

  def __post_init__(self):
    super().__post_init__()
    for name in ('total_pages', 'rounds', 'batch_size'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    if self.data_dir and self.pdfs:
      raise errors.UserError(
        f'--data_dir={self.data_dir} --pdfs={self.pdfs}: give one of them; the '
        'first has questions of its own'
      )


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    seconds: side -> wall seconds, one a round.
    steps: part of the reading -> seconds, one a round.
    examples: that were measured.
    pages: that they showed.
    out: the run folder.
  """

  seconds: Mapping[str, Sequence[float]]
  steps: Mapping[str, Sequence[float]]
  examples: int
  pages: int
  out: pathlib.Path

  @property
  def waited(self) -> float:
    """Share of rank's time, by medians, that the device waited."""
    import statistics

    rank, device = (
      statistics.median(self.seconds[side]) for side in ('rank', 'device')
    )
    return max(0.0, 1 - device / rank)


def _options(config: Config) -> Any:
  from corejax.experiments import measure

  return measure.Options(
    batch_size=config.batch_size,
    profile_set='question',
    calibrate=False,
    gradients=False,
    seed=config.seed,
  )


def read_steps(
  resources: Any, batches: Sequence[Sequence[int]], options: Any
) -> tuple[float, dict[str, float], list[Any]]:
  """(seconds, seconds by step, batches) of reading all of it in one thread."""
  import time

  from corejax.experiments import features
  from corejax.experiments import measure

  source, processor = resources.source, resources.loaded.processor
  steps: dict[str, float] = {step: 0.0 for step in STEPS}

  def timed(step, function):
    def call(*args, **kwargs):
      start = time.perf_counter()
      try:
        return function(*args, **kwargs)
      finally:
        steps[step] += time.perf_counter() - start

    return call

  class Source:
    name, split = source.name, source.split
    __getitem__ = staticmethod(timed('pages', source.__getitem__))

  class Processor:
    encode = staticmethod(timed('pixels', processor.encode))

  watched = dataclasses.replace(
    resources,
    source=Source(),
    loaded=dataclasses.replace(resources.loaded, processor=Processor()),
  )
  begin = time.perf_counter()
  made = [measure.prepare_batch(watched, batch, options) for batch in batches]
  whole = time.perf_counter() - begin
  # What prepare_batch does beside: hashes of pixels, boxes and their shifts.
  keys = timed('keys', features.keys)
  for batch in made:
    for each in batch.prepared:
      keys(each.encoded)
  steps['evidence'] = whole - sum(steps.values())
  return whole, steps, made


def _device(runner: Any, made: Sequence[Any], resources: Any, options) -> None:
  """As session.fill drives it: one batch in flight."""
  from corejax.experiments import measure

  before = None
  for batch in made:
    started = measure.start_batch(runner, batch, options)
    if before is not None:
      measure.finish_batch(resources, before, options)
    before = started
  if before is not None:
    measure.finish_batch(resources, before, options)


def _rank(
  config: Config, resources: Any, batches, options, folder: pathlib.Path, stop
) -> None:
  """The measuring half of `rank`."""
  from corejax import store as store_lib
  from corejax.experiments import measure
  from corejax.experiments import session
  from corejax.experiments import step

  runner = step.Runner(resources, config.batch_size)
  session.fill(
    store_lib.ScoreStore(folder, len(batches), 'bench_read'),
    batches,
    len(resources.source),
    stop,
    read=lambda indices, closing: measure.prepare_batch(
      resources, indices, options, closing
    ),
    n_rejected=lambda batch: len(batch.rejected),
    start=lambda batch: measure.start_batch(runner, batch, options),
    finish=lambda started: store_lib.pack(
      measure.finish_batch(resources, started, options)
    ),
  )


def measure_all(
  config: Config, folder: pathlib.Path, stop: cli_lib.Stop
) -> tuple[dict[str, list[float]], dict[str, list[float]], int, int]:
  """(side -> seconds, step -> seconds, examples, pages).

  Args:
    config: of the run.
    folder: empty, for what the sides write; its data lie in `data`.
    stop: asked between sides.

  Raises:
    UserError: no question can be measured.
  """
  import time

  from corejax.experiments import measure
  from corejax.experiments import resources as resources_lib
  from corejax.experiments import runs
  from corejax.experiments import step

  where = config.data_dir or str(folder / 'data')
  shared = dataclasses.replace(config, data_dir=where, pdfs='')
  resources = resources_lib.load(shared)
  resources.check_batch(config.batch_size)
  options = _options(config)
  batches = list(measure.batches(len(resources.source), config.batch_size))

  def fresh():
    """Nothing drawn is kept from the side before."""
    source = resources_lib.load_source(shared)
    return dataclasses.replace(resources, source=source)

  _, _, made = read_steps(fresh(), batches, options)
  examples = sum(len(batch.prepared) for batch in made)
  pages = sum(p.encoded.n_pictures for batch in made for p in batch.prepared)
  if not examples:
    reasons = {row['reason'] for batch in made for row in batch.rejected}
    raise errors.UserError(
      f'--data_dir={where}: none of {len(resources.source)} questions could be '
      f'measured ({", ".join(sorted(reasons))})'
    )
  # Compiles, and is not timed.
  _device(step.Runner(resources, config.batch_size), made, resources, options)
  seconds: dict[str, list[float]] = {side: [] for side in SIDES}
  steps: dict[str, list[float]] = {name: [] for name in STEPS}
  with runs.Progress('rounds', config.rounds) as progress:
    for number in range(config.rounds):
      for side in SIDES[:: -1 if number % 2 else 1]:
        stop.check()
        here, begin = fresh(), time.perf_counter()
        if side == 'read':
          took, parts, _ = read_steps(here, batches, options)
          for name, value in parts.items():
            steps[name].append(value)
        elif side == 'device':
          runner = step.Runner(resources, config.batch_size)
          begin = time.perf_counter()
          _device(runner, made, resources, options)
          took = time.perf_counter() - begin
        else:
          store = folder / f'scores{number}'
          _rank(config, here, batches, options, store, stop)
          took = time.perf_counter() - begin
        seconds[side].append(took)
      progress.advance(1)
  return seconds, steps, examples, pages


def table(result: Result) -> str:
  """Medians over rounds, and the share that the device waited."""
  import statistics

  from corejax.experiments import bench_processes

  def line(name, values, per):
    value = statistics.median(values)
    return [
      name,
      f'{value:.2f}',
      f'{min(values):.2f} to {max(values):.2f}',
      f'{1e3 * value / per:.1f}',
    ]

  names = {
    'read': 'reading and layout, one thread',
    'device': 'device, all read before',
    'rank': 'both, threads ahead (as rank)',
  }
  rows = [
    line(names[side], values, result.pages)
    for side, values in result.seconds.items()
  ]
  words = {
    'pages': 'of reading: pages drawn and packed',
    'pixels': 'of reading: unpacked, resized, tokens laid out',
    'evidence': 'of reading: boxes to tokens, the rest',
    'keys': 'of reading: hashes of pixels',
  }
  rows += [
    line(words[step], values, result.pages)
    for step, values in result.steps.items()
  ]
  return '\n\n'.join(
    [
      bench_processes.markdown(
        ('what', 'median s', 'range', 'ms a page'), rows
      ),
      f'the device waited {100 * result.waited:.0f}% of the time that rank '
      f'took ({result.examples} examples, {result.pages} pages)',
    ]
  )


def run(config: Config) -> Result:
  """Measures, prints and writes.

  Raises:
    UserError: something outside is wrong.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _run(config: Config, stop: cli_lib.Stop) -> Result:
  import datetime
  import tempfile

  from corejax import parts
  from corejax.experiments import bench_documents
  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  out = runs.folder_path(config.out or 'runs/bench_read')
  machine = bench_processes.machine()
  record = {'flags': dataclasses.asdict(config), 'machine': machine}
  with (
    runs.open_run(out, {'bench_read': 1}, record, False) as folder,
    tempfile.TemporaryDirectory() as made,
    stop.at_once(),
  ):
    data = pathlib.Path(made) / 'data'
    with parts.changing(data):
      data.mkdir()
      if not config.data_dir:
        bench_documents.write(
          data, config.total_pages, config.pages, config.pdfs
        )
    seconds, steps, examples, pages = measure_all(
      config, pathlib.Path(made), stop
    )
    result = Result(seconds, steps, examples, pages, out)
    lines = ['what,round,seconds']
    lines += [
      f'{name},{n},{value:.6f}'
      for name, values in {**seconds, **steps}.items()
      for n, value in enumerate(values)
    ]
    folder.write('samples.csv', '\n'.join(lines) + '\n')
    folder.record['findings'] = {'waited': result.waited, 'pages': pages}
  what = config.data_dir or config.pdfs or 'invented'
  print(
    f'{datetime.date.today()}, {machine}; jax {runs.versions()["jax"]}; '
    f'{config.model}, pages of {what} at {config.dpi} dpi, {config.pages} an '
    f'example; {config.rounds} rounds\n'
  )
  print(table(result))
  print(f'\nfiles    {out}: samples.csv, run.json')
  return result


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
