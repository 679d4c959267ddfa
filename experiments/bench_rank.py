"""What a ranking's forward pass costs, beside Hugging Face's, on this CPU.

    python -m experiments.bench_rank
    python -m experiments.bench_rank --lengths=1024 --sides=ours,ours_ram

A random LLaVA, one prompt a length. Sides, each in a process of its own, all on
the same cores, take turns:

    ours      our forward
    ours_ram  our forward with the probe of a ranking
    hf_sdpa   transformers' forward, scaled_dot_product_attention
    hf_eager  transformers with output_attentions, weights then summed
    hf_rows   hf_sdpa and hooks that compute the probe's rows' scores alone

Prints the tables of the README; writes samples.csv (every measurement),
compared.csv and run.json into --out. The hf_ sides need torch and a checkout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import bench_sides
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax.experiments import bench_model
  from corejax.experiments import bench_processes

setting = config_lib.setting
SIDES = (*bench_sides.OURS, 'hf_sdpa', 'hf_eager', 'hf_rows')
_LONG = 4096  # tokens; shorter prompts are measured twice as often


@dataclasses.dataclass(frozen=True)
class Config(bench_sides.Sizes):
  """Settings of a run."""

  lengths: str = setting('1024,2048,4096', 'tokens of the prompts')
  sides: str = setting(','.join(SIDES), 'what is compared, comma-separated')
  pairs: int = setting(
    10, f'rounds at {_LONG} tokens or more; twice as many below'
  )
  profile: bool = setting(
    False, 'also say where the time of our forward with RAM goes'
  )
  out: str = setting('runs/bench_rank', 'run folder; what it holds is replaced')

  def __post_init__(self):
    super().__post_init__()
    unknown = [s for s in self.chosen if s not in SIDES]
    if unknown or not self.chosen or len(set(self.chosen)) < len(self.chosen):
      raise errors.UserError(
        f'--sides={self.sides}: give each of {", ".join(SIDES)} at most once'
      )
    if not all(n.isdecimal() and int(n) for n in self.lengths.split(',')):
      raise errors.UserError(
        f'--lengths={self.lengths}: give whole numbers, as 1024,4096'
      )

  @property
  def chosen(self) -> tuple[str, ...]:
    """The sides."""
    return tuple(s.strip() for s in self.sides.split(',') if s.strip())

  def rounds(self, length: int) -> int:
    return self.pairs if length >= _LONG else 2 * self.pairs


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two sides, and what is aimed at for 4096 tokens.

  Attributes:
    what: field of a Sample: 'cpu', 'wall' or 'extra'.
    top, bottom: sides; the ratio is top / bottom.
    aim: largest ratio; None where nothing is promised.
    whole: must the whole interval lie below the aim?
  """

  what: str
  top: str
  bottom: str
  aim: float | None = None
  whole: bool = False


COMPARISONS = (
  Comparison('cpu', 'ours', 'hf_sdpa', 1.0),
  Comparison('cpu', 'ours_ram', 'ours', 1.03, whole=True),
  Comparison('cpu', 'ours_ram', 'hf_eager', 0.40),
  Comparison('cpu', 'ours_ram', 'hf_rows'),
  Comparison('wall', 'ours', 'hf_sdpa'),
  Comparison('wall', 'ours_ram', 'hf_eager'),
  Comparison('extra', 'ours_ram', 'hf_sdpa', 2.0),
  Comparison('extra', 'ours_ram', 'hf_eager', 1 / 8),
)
_UNITS = {'cpu': 'CPU seconds', 'wall': 'wall seconds', 'extra': 'memory'}


@dataclasses.dataclass(frozen=True)
class Measured:
  """All of one length.

  Attributes:
    length: T.
    samples: side -> one a round.
    flops: side -> what XLA counts (bench_ours.flops), our sides only.
    parts: bench_ours.parts; empty if it was not asked for.
  """

  length: int
  samples: Mapping[str, Sequence[bench_processes.Sample]]
  flops: Mapping[str, float]
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    measured: one a length.
    out: the run folder.
  """

  measured: tuple[Measured, ...]
  out: pathlib.Path


def measure(config: Config, length: int, stop: cli_lib.Stop) -> Measured:
  """All rounds of one length.

  Raises:
    UserError: a side ended.
  """
  import contextlib

  from corejax.experiments import bench_ours
  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  rounds = config.rounds(length)
  with (
    contextlib.ExitStack() as running,
    runs.Progress(f'{length} tokens', rounds) as progress,
  ):
    sides = [
      running.enter_context(
        bench_sides.start(side, config.spec(), length)
      ).wait()
      for side in config.chosen
    ]

    def on_round(_):
      progress.advance(1)
      stop.check()

    samples = bench_processes.interleave(sides, rounds, on_round)
    flops = {
      s.name: s.facts['flops'] for s in sides if s.name in bench_sides.OURS
    }
  parts = {}
  if config.profile:
    with bench_sides.start(bench_ours.PROFILE, config.spec(), length) as side:
      side.wait().go()  # a warm-up
      parts = side.go().result
  return Measured(length, samples, flops, parts)


def added_flops(spec: bench_model.Spec, measured: Measured) -> float | None:
  """RAM's share of the forward's FLOPs; None without both of our sides.

  XLA counts the body of a loop once. What the probe adds, as counted, stands
  in the body of the loop over layers and in no inner one, so the difference of
  the two programs is that of one layer. The forward itself has loops over
  tiles with bounds that XLA does not know: its products are counted by hand.
  """
  from corejax.experiments import bench_model

  if not set(bench_sides.OURS) <= set(measured.flops):
    return None
  layer = measured.flops['ours_ram'] - measured.flops['ours']
  whole = bench_model.product_flops(spec, measured.length)
  return spec.layers * layer / whole


def costs(measured: Sequence[Measured]) -> list[list[str]]:
  """Rows of the first table: medians."""
  import statistics

  rows = []
  for one in measured:
    for side, samples in one.samples.items():
      cpu, wall, extra = (
        statistics.median(getattr(s, what) for s in samples)
        for what in ('cpu', 'wall', 'extra')
      )
      rows.append(
        [
          str(one.length),
          side,
          f'{cpu:.2f}',
          f'{wall:.2f}',
          f'{extra / 2**20:.0f}',
        ]
      )
  return rows


def compare(
  spec: bench_model.Spec, measured: Sequence[Measured]
) -> list[list[str]]:
  """Rows of the second table: ratios with intervals."""
  from corejax.experiments import bench_processes

  rows = []
  for one in measured:
    for pair in COMPARISONS:
      if not {pair.top, pair.bottom} <= set(one.samples):
        continue
      ratio = bench_processes.ratio(
        *(
          [getattr(sample, pair.what) for sample in one.samples[side]]
          for side in (pair.top, pair.bottom)
        )
      )
      verdict = ''
      if pair.aim is not None and one.length == _LONG:
        reached = ratio.high if pair.whole else ratio.value
        met = 'met' if reached <= pair.aim else 'missed'
        verdict = f'<= {pair.aim:g} {met}'
      rows.append(
        [
          str(one.length),
          f'{_UNITS[pair.what]}: {pair.top} / {pair.bottom}',
          str(ratio),
          verdict,
        ]
      )
    added = added_flops(spec, one)
    if added is not None:
      verdict = ''
      if one.length == _LONG:
        verdict = f'<= 1.02 {"met" if added <= 0.02 else "missed"}'
      rows.append(
        [
          str(one.length),
          'FLOPs: ours_ram / ours',
          f'{1 + added:.4f}',
          verdict,
        ]
      )
  return rows


def profiles(measured: Sequence[Measured]) -> list[list[str]]:
  """Rows of the third table: where the time of one forward goes."""
  rows = []
  for one in measured:
    whole = sum(one.parts.values())
    for part, seconds in sorted(one.parts.items(), key=lambda p: -p[1]):
      share = f'{seconds / whole:.1%}'
      rows.append([str(one.length), part, f'{seconds:.2f}', share])
  return rows


_COSTS = ('tokens', 'side', 'CPU s', 'wall s', 'extra MiB')
_COMPARED = ('tokens', 'ratio', 'median [95%]', 'aim')
_PROFILE = ('tokens', 'part of ours_ram', 'thread s', 'share')


def _save(folder, result: Sequence[Measured], compared) -> None:
  lines = ['length,side,round,cpu_s,wall_s,extra_bytes']
  for one in result:
    for side, samples in one.samples.items():
      lines += [
        f'{one.length},{side},{i},{s.cpu:.6f},{s.wall:.6f},{s.extra}'
        for i, s in enumerate(samples)
      ]
  folder.write('samples.csv', '\n'.join(lines) + '\n')
  lines = ['length;ratio;median;aim', *(';'.join(row) for row in compared)]
  folder.write('compared.csv', '\n'.join(lines) + '\n')


def run(config: Config) -> Result:
  """Measures, prints and writes.

  Raises:
    UserError: something outside is missing, or a side ended.
  """
  import datetime
  import importlib.metadata

  from corejax.experiments import bench_model
  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  bench_processes.check_system()
  spec, out = config.spec(), runs.folder_path(config.out)
  lengths = [int(n) for n in config.lengths.split(',')]
  for length in lengths:
    bench_model.prompt(spec, length)
  packages = []
  if not set(config.chosen) <= set(bench_sides.OURS):
    bench_sides.hf_program(without=bench_sides.OURS)
    packages = ['torch']
  with cli_lib.Stop() as stop, bench_processes.on_cores(config.cores):
    machine = bench_processes.machine()
    record = {
      'flags': dataclasses.asdict(config),
      'machine': machine,
      'compared_with': {p: importlib.metadata.version(p) for p in packages},
    }
    with runs.open_run(out, {'bench_rank': 1}, record, False) as folder:
      measured = []
      with stop.at_once():
        for length in lengths:
          measured.append(measure(config, length, stop))
      compared = compare(spec, measured)
      _save(folder, measured, compared)
  versions = runs.versions() | record['compared_with']
  print(
    f'{datetime.date.today()}, {machine}; '
    + ', '.join(
      f'{name} {versions[name]}'
      for name in ('python', 'jax', 'transformers', *packages)
    )
    + f'; {spec.layers} layers, {spec.heads} heads, width {spec.hidden}, '
    f'float32; medians of {config.pairs} rounds ({2 * config.pairs} below '
    f'{_LONG} tokens)\n'
  )
  print(bench_processes.markdown(_COSTS, costs(measured)), end='\n\n')
  print(bench_processes.markdown(_COMPARED, compared))
  if config.profile:
    print()
    print(bench_processes.markdown(_PROFILE, profiles(measured)))
  print(f'\nfiles    {out}: samples.csv, compared.csv, run.json')
  return Result(tuple(measured), out)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
