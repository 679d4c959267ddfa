"""What loading a checkpoint costs, beside a bare read of its bytes.

    python -m experiments.bench_load

Writes a random LLaVA of --gib GiB in bfloat16, as several safetensors files,
into a temporary folder, and reads it by turns, each time in a new process:

    load    `weights.load` onto four virtual devices, over which it is cut
    memmap  every file mapped into memory and copied into one array

Prints a table; writes samples.csv and run.json into --out. The files were just
written, so that both read from the system's cache and not from the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax.experiments import bench_processes

setting = config_lib.setting
SIDES = ('load', 'memmap')
_TIME_AIM, _MEMORY_AIM = 2.0, 1.2


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a run."""

  gib: float = setting(1.0, 'size of the checkpoint, about')
  shards: int = setting(4, 'files')
  devices: int = setting(4, 'virtual devices')
  pairs: int = setting(10, 'rounds')
  cores: int = setting(0, 'cores that both sides get; 0 is all there are')
  folder: str = setting(
    '', "where the checkpoint is made and removed; '' is the system's choice"
  )
  out: str = setting('runs/bench_load', 'run folder; what it holds is replaced')

  def __post_init__(self):
    for name in ('shards', 'devices', 'pairs'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    if self.cores < 0:
      raise errors.UserError(f'--cores={self.cores}: give 0 or more')
    if not 0 < self.gib <= 64:
      raise errors.UserError(f'--gib={self.gib}: give more than 0, at most 64')


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    samples: side -> one a round.
    n_bytes: of the arrays on all devices.
    out: the run folder.
  """

  samples: Mapping[str, Sequence[bench_processes.Sample]]
  n_bytes: int
  out: pathlib.Path


def measure(
  config: Config, folder: pathlib.Path, stop: cli_lib.Stop
) -> tuple[dict[str, list[bench_processes.Sample]], int]:
  """(side -> samples, bytes of the arrays).

  Raises:
    UserError: a side ended.
  """
  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  flag = f'--xla_force_host_platform_device_count={config.devices}'
  env = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flag}
  program = ['-m', 'corejax.experiments.bench_folder', str(folder)]
  samples: dict[str, list[bench_processes.Sample]] = {s: [] for s in SIDES}
  n_bytes = 0
  with runs.Progress('rounds', config.pairs) as progress:
    # The first round is a warm-up and does not count.
    for index in range(config.pairs + 1):
      for name in SIDES[:: -1 if index % 2 else 1]:
        with bench_processes.Side(name, [*program, name], env=env) as side:
          sample = side.wait().go()
        if name == 'load':
          n_bytes = sample.result
        if index:
          samples[name].append(sample)
      progress.advance(bool(index))
      stop.check()
  return samples, n_bytes


def tables(
  samples: Mapping[str, Sequence[bench_processes.Sample]], n_bytes: int
) -> str:
  """What each side cost, and how the two compare."""
  import statistics

  from corejax.experiments import bench_processes

  costs = []
  for side, each in samples.items():
    cpu, wall, extra = (
      statistics.median(getattr(sample, what) for sample in each)
      for what in ('cpu', 'wall', 'extra')
    )
    mib = f'{extra / 2**20:.0f}'
    costs.append([side, f'{cpu:.2f}', f'{wall:.2f}', mib])
  compared = []
  for what, name in (('wall', 'wall seconds'), ('cpu', 'CPU seconds')):
    ratio = bench_processes.ratio(
      *([getattr(s, what) for s in samples[side]] for side in SIDES)
    )
    met = 'met' if ratio.value <= _TIME_AIM else 'missed'
    label = f'{name}: load / memmap'
    compared.append([label, str(ratio), f'<= {_TIME_AIM:g} {met}'])
  memory = statistics.median(s.extra for s in samples['load']) / n_bytes
  met = 'met' if memory <= _MEMORY_AIM else 'missed'
  compared.append(
    ['memory: load / arrays', f'{memory:.3f}', f'<= {_MEMORY_AIM:g} {met}']
  )
  return '\n\n'.join(
    [
      bench_processes.markdown(('side', 'CPU s', 'wall s', 'extra MiB'), costs),
      bench_processes.markdown(('ratio', 'median [95%]', 'aim'), compared),
    ]
  )


def run(config: Config) -> Result:
  """Measures, prints and writes.

  Raises:
    UserError: something outside is wrong, or a side ended.
  """
  import datetime
  import tempfile

  from corejax import parts
  from corejax.experiments import bench_folder
  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  bench_processes.check_system()
  out = runs.folder_path(config.out)
  if config.folder and not pathlib.Path(config.folder).is_dir():
    raise errors.UserError(f'--folder={config.folder}: there is no such folder')
  with cli_lib.Stop() as stop, bench_processes.on_cores(config.cores):
    machine = bench_processes.machine()
    record = {'flags': dataclasses.asdict(config), 'machine': machine}
    with (
      runs.open_run(out, {'bench_load': 1}, record, False) as folder,
      tempfile.TemporaryDirectory(dir=config.folder or None) as made,
      stop.at_once(),
    ):
      path = pathlib.Path(made)
      with parts.changing(path):
        written = bench_folder.write(path, config.gib, config.shards)
      samples, n_bytes = measure(config, path, stop)
      lines = ['side,round,cpu_s,wall_s,extra_bytes']
      for side, each in samples.items():
        lines += [
          f'{side},{i},{s.cpu:.6f},{s.wall:.6f},{s.extra}'
          for i, s in enumerate(each)
        ]
      folder.write('samples.csv', '\n'.join(lines) + '\n')
  print(
    f'{datetime.date.today()}, {machine}; jax {runs.versions()["jax"]}; '
    f'{written / 2**30:.2f} GiB of bfloat16 in {config.shards} files onto '
    f'{config.devices} virtual devices; medians of {config.pairs} rounds\n'
  )
  print(tables(samples, n_bytes))
  print(f'\nfiles    {out}: samples.csv, run.json')
  return Result(samples, n_bytes, out)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
