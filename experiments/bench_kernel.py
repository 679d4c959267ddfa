"""What one layer's attention costs on this CPU: dense, sparse, torch, ideal.

    python -m experiments.bench_kernel
    python -m experiments.bench_kernel --lengths=16384 --heads=28/4 --pairs=6

Causal, one sequence, float32, random inputs, the kernel `xla`. Sides, each in a
process of its own, all on the same cores, take turns:

    ours_dense    every head reads everything
    ours_sparse   the same program; but for --dense of the heads, each reads a
                  window and sinks
    torch_dense   torch's scaled_dot_product_attention

The tile ideal is the share of tiles that the sparse side must touch, the
element ideal that of (row, key) pairs; what is reached of them is judged by our
own dense side. Prints tables; writes samples.csv, compared.csv and run.json to
--out. torch_dense needs torch and a checkout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import statistics
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import bench_sides
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax.experiments import bench_attention
  from corejax.experiments import bench_processes

setting = config_lib.setting
TORCH = 'torch_dense'
SIDES = ('ours_dense', 'ours_sparse', TORCH)
_LONG = 4096  # tokens from which on the aims hold
_DENSE_AIM = 1.0  # of torch's CPU seconds, at most
_TILE_AIM = 0.9  # of the tile ideal, at least


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a run."""

  lengths: str = setting('4096,8192', 'tokens')
  heads: str = setting('28/4,32/8', 'query heads / key-value heads')
  head_dim: int = setting(128, 'numbers a head')
  dense: float = setting(2 / 28, 'share of the heads that stay dense')
  window: int = setting(1024, 'keys that a sparse head reads back')
  sink: int = setting(128, 'first keys that it reads too')
  sides: str = setting(','.join(SIDES), 'what is compared, comma-separated')
  pairs: int = setting(10, 'rounds')
  cores: int = setting(0, 'cores that every side gets; 0 is all there are')
  blocks: str = setting(
    '',
    'rows and keys of a tile of ours, and how many of them a wide tile holds '
    "both ways, as 128,128,4; '' is the kernel's own, by which ideals are told",
  )
  seed: int = setting(0, 'seed of the inputs')
  out: str = setting(
    'runs/bench_kernel', 'run folder; what it holds is replaced'
  )

  def __post_init__(self):
    chosen = self.chosen
    if not chosen or not set(chosen) <= set(SIDES):
      raise errors.UserError(
        f'--sides={self.sides}: give one or more of {", ".join(SIDES)}'
      )
    if not all(n.isdecimal() and int(n) for n in self.lengths.split(',')):
      raise errors.UserError(
        f'--lengths={self.lengths}: give whole numbers, as 4096,8192'
      )
    bench_sides.check_least(self, ('cores', 'seed', 'sink'))
    words = self.blocks.split(',') if self.blocks else []
    if words and not (
      len(words) == 3 and all(w.isdecimal() and int(w) for w in words)
    ):
      raise errors.UserError(
        f'--blocks={self.blocks}: give three whole numbers, as 128,128,4'
      )
    if not 0 <= self.dense <= 1:
      raise errors.UserError(f'--dense={self.dense:g}: give 0 to 1')
    self.specs()

  @property
  def chosen(self) -> tuple[str, ...]:
    """The sides, each once."""
    given = (s.strip() for s in self.sides.split(','))
    return tuple(dict.fromkeys(s for s in given if s))

  def specs(self) -> list[bench_attention.Spec]:
    """What is measured.

    Raises:
      UserError: heads that are no pair of numbers, or do not divide.
    """
    from corejax.experiments import bench_attention

    specs = []
    for pair in self.heads.split(','):
      parts = pair.split('/')
      numbers = [int(p) for p in parts if p.isdecimal()]
      if len(parts) != 2 or len(numbers) != 2 or 0 in numbers:
        raise errors.UserError(f'--heads={self.heads}: give pairs as 28/4,32/8')
      heads, kv_heads = numbers
      if heads % kv_heads:
        raise errors.UserError(
          f'--heads={pair}: {heads} must be a multiple of {kv_heads}'
        )
      specs += [
        bench_attention.Spec(
          int(length),
          heads,
          kv_heads,
          self.head_dim,
          round(self.dense * heads),
          self.window,
          self.sink,
          self.seed,
          tuple(map(int, self.blocks.split(','))) if self.blocks else (),
        )
        for length in self.lengths.split(',')
      ]
    return specs


@dataclasses.dataclass(frozen=True)
class Measured:
  """One problem.

  Attributes:
    spec: which.
    samples: side -> one a round.
    ideal: of the tiles that the kernel cuts; None without our sides.
  """

  spec: bench_attention.Spec
  samples: Mapping[str, Sequence[bench_processes.Sample]]
  ideal: bench_attention.Ideal | None

  def seconds(self, side: str, what: str = 'cpu') -> list[float]:
    return [getattr(sample, what) for sample in self.samples[side]]


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    measured: one a problem.
    out: the run folder.
  """

  measured: tuple[Measured, ...]
  out: pathlib.Path


def _torch_program() -> str:
  """torch's side; see bench_sides.torch_program."""
  who, others = f'--sides: {TORCH}', SIDES[:-1]
  return bench_sides.torch_program('bench_torch.py', who, others)


def start(side: str, spec: bench_attention.Spec) -> bench_processes.Side:
  """A side's process; a context manager, not ready yet."""
  from corejax.experiments import bench_attention

  program = ['-m', 'corejax.experiments.bench_attention']
  if side == TORCH:
    program = [_torch_program()]
  return bench_sides.process(
    side, *program, bench_attention.request(side, spec)
  )


def measure(
  config: Config, spec: bench_attention.Spec, stop: cli_lib.Stop
) -> Measured:
  """All rounds of one problem.

  Raises:
    UserError: a side ended.
  """
  import contextlib

  import numpy as np

  from corejax.experiments import bench_attention
  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  what = f'{spec.heads}/{spec.kv_heads} heads, {spec.length} tokens'
  with (
    contextlib.ExitStack() as running,
    runs.Progress(what, config.pairs) as progress,
  ):
    sides = [
      running.enter_context(start(side, spec)).wait() for side in config.chosen
    ]

    def on_round(_):
      progress.advance(1)
      stop.check()

    samples = bench_processes.interleave(sides, config.pairs, on_round)
    blocks = [side.facts['block'] for side in sides if side.name != TORCH]
  if {'ours_dense', TORCH} <= set(samples):
    ours, theirs = (samples[s][0].result for s in ('ours_dense', TORCH))
    # Two float32 sums of the same products; a benchmark of something else
    # would be off by about 1.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
  ideal = bench_attention.ideal(spec, blocks[0]) if blocks else None
  return Measured(spec, samples, ideal)


def costs(measured: Sequence[Measured]) -> list[list[str]]:
  """Rows of the first table: medians."""
  rows = []
  for one in measured:
    for side in one.samples:
      cpu, wall = (
        statistics.median(one.seconds(side, what)) for what in ('cpu', 'wall')
      )
      heads = f'{one.spec.heads}/{one.spec.kv_heads}'
      rows.append(
        [heads, str(one.spec.length), side, f'{cpu:.3f}', f'{wall:.3f}']
      )
  return rows


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A row of the second table: factor x CPU seconds of top / of bottom.

  Attributes:
    what: its name.
    top, bottom: sides.
    factor: constant.
    most, least: what is aimed at from _LONG tokens on.
  """

  what: str
  top: str
  bottom: str
  factor: float = 1.0
  most: float | None = None
  least: float | None = None

  def verdict(self, value: float) -> str:
    """Whether the aim is met."""
    if self.most is not None:
      return f'<= {self.most:g} {"met" if value <= self.most else "missed"}'
    if self.least is not None:
      return f'>= {self.least:g} {"met" if value >= self.least else "missed"}'
    return ''


def comparisons(ideal: bench_attention.Ideal | None) -> list[Comparison]:
  """All rows of one problem."""
  dense, sparse, _ = SIDES
  rows = [
    Comparison('dense / torch dense', dense, TORCH, most=_DENSE_AIM),
    Comparison('sparse / torch dense', sparse, TORCH),
    Comparison('sparse / dense', sparse, dense),
  ]
  if ideal is None:
    return rows
  tiles, elements = ideal.tiles, ideal.elements
  what = f'reached of the tile ideal {tiles:.3f}'
  rows.append(Comparison(what, dense, sparse, tiles, least=_TILE_AIM))
  what = f'reached of the element ideal {elements:.3f}'
  rows.append(Comparison(what, dense, sparse, elements))
  return rows


def compare(measured: Sequence[Measured]) -> list[list[str]]:
  """Rows of the second table: ratios of CPU seconds with intervals."""
  from corejax.experiments import bench_processes

  rows = []
  for one in measured:
    for pair in comparisons(one.ideal):
      if not {pair.top, pair.bottom} <= set(one.samples):
        continue
      ratio = bench_processes.ratio(
        [pair.factor * s for s in one.seconds(pair.top)],
        one.seconds(pair.bottom),
      )
      verdict = ''
      if one.spec.length >= _LONG:
        verdict = pair.verdict(ratio.value)
      heads = f'{one.spec.heads}/{one.spec.kv_heads}'
      length = str(one.spec.length)
      rows.append([heads, length, pair.what, str(ratio), verdict])
  return rows


_COSTS = ('heads', 'tokens', 'side', 'CPU s', 'wall s')
_COMPARED = ('heads', 'tokens', 'CPU seconds', 'median [95%]', 'aim')


def _save(folder, result: Sequence[Measured], compared) -> None:
  lines = ['heads,kv_heads,length,side,round,cpu_s,wall_s']
  for one in result:
    problem = f'{one.spec.heads},{one.spec.kv_heads},{one.spec.length}'
    for side, samples in one.samples.items():
      lines += [
        f'{problem},{side},{i},{s.cpu:.6f},{s.wall:.6f}'
        for i, s in enumerate(samples)
      ]
  folder.write('samples.csv', '\n'.join(lines) + '\n')
  lines = ['heads;length;ratio;median;aim', *(';'.join(r) for r in compared)]
  folder.write('compared.csv', '\n'.join(lines) + '\n')


def run(config: Config) -> Result:
  """Measures, prints and writes.

  Raises:
    UserError: something outside is missing, or a side ended.
  """
  import datetime
  import importlib.metadata

  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  bench_processes.check_system()
  out = runs.folder_path(config.out)
  packages = []
  if TORCH in config.chosen:
    _torch_program()
    packages = ['torch']
  versions = {p: importlib.metadata.version(p) for p in packages}
  with cli_lib.Stop() as stop, bench_processes.on_cores(config.cores):
    machine = bench_processes.machine()
    record = {
      'flags': dataclasses.asdict(config),
      'machine': machine,
      'compared_with': versions,
    }
    with runs.open_run(out, {'bench_kernel': 1}, record, False) as folder:
      with stop.at_once():
        measured = [measure(config, spec, stop) for spec in config.specs()]
      compared = compare(measured)
      _save(folder, measured, compared)
  versions = runs.versions() | versions
  print(
    f'{datetime.date.today()}, {machine}; '
    + ', '.join(f'{p} {versions[p]}' for p in ('python', 'jax', *packages))
    + f'; head_dim {config.head_dim}, float32; sparse: '
    f'{config.dense:.1%} of the heads dense, window {config.window}, sink '
    f'{config.sink}; medians of {config.pairs} rounds\n'
  )
  print(bench_processes.markdown(_COSTS, costs(measured)), end='\n\n')
  print(bench_processes.markdown(_COMPARED, compared))
  print(f'\nfiles    {out}: samples.csv, compared.csv, run.json')
  return Result(tuple(measured), out)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
