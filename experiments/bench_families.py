"""What each family's forward costs, beside Hugging Face's, on this CPU.

    python -m experiments.bench_families
    python -m experiments.bench_families --families=llava,qwen3_vl --pairs=10

A random model of each family, all with the same text sizes, and one prompt of
--length tokens, as many of them of pictures as fit (bench_family.py). Two
sides, each in a process of its own, on the same cores, take turns:

    ours      our forward, float32
    hf_sdpa   transformers' forward, scaled_dot_product_attention

They are the sides of bench_rank. Each tells logits, so that the table also says
by how much they differ. Prints one table; writes samples.csv, families.csv and
run.json into --out. Needs torch and a checkout.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import bench_sides
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax.experiments import bench_processes

setting = config_lib.setting
SIDES = ('ours', 'hf_sdpa')
# Of bench_family.FAMILIES, which needs numpy.
FAMILIES = (
  'llava',
  'llava_next',
  'llava_onevision',
  'internvl_qwen2',
  'internvl_qwen3',
  'qwen2_vl',
  'qwen2_5_vl',
  'qwen3_vl',
  'qwen3_vl_moe',
)
_AIM = 1.0  # CPU seconds, ours over theirs


@dataclasses.dataclass(frozen=True)
class Config(bench_sides.Sizes):
  """Settings of a run."""

  per_head = 4

  families: str = setting('all', f'comma-separated: {", ".join(FAMILIES)}')
  length: int = setting(2048, 'tokens of the prompt')
  pairs: int = setting(6, 'rounds of each family')
  out: str = setting(
    'runs/bench_families', 'run folder; what it holds is replaced'
  )

  def __post_init__(self):
    super().__post_init__()
    chosen = self.chosen
    unknown = [name for name in chosen if name not in FAMILIES]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
      raise errors.UserError(
        f'--families={self.families}: give all, or each of '
        f'{", ".join(FAMILIES)} at most once'
      )
    if self.heads > 4 and self.heads % 4:
      raise errors.UserError(
        f'--heads={self.heads}: must be a multiple of the four that share keys'
      )
    if self.image_size // self.patch_size % 2:
      raise errors.UserError(
        f'--image_size={self.image_size}: must hold an even number of patches '
        f'of --patch_size={self.patch_size} (some families join 2x2)'
      )

  @property
  def chosen(self) -> tuple[str, ...]:
    """The families."""
    if self.families == 'all':
      return FAMILIES
    return tuple(s.strip() for s in self.families.split(',') if s.strip())


@dataclasses.dataclass(frozen=True)
class Measured:
  """All of one family.

  Attributes:
    family: its name.
    visual: tokens of the prompt that are a picture's.
    samples: side -> one a round.
  """

  family: str
  visual: int
  samples: dict[str, list[bench_processes.Sample]]

  @property
  def ratio(self) -> bench_processes.Ratio:
    """CPU seconds, ours over theirs."""
    from corejax.experiments import bench_processes

    return bench_processes.ratio(
      *([sample.cpu for sample in self.samples[side]] for side in SIDES)
    )

  @property
  def off(self) -> float:
    """Largest difference of the logits over their spread."""
    import numpy as np

    ours, theirs = (
      np.array(self.samples[side][-1].result, np.float64) for side in SIDES
    )
    return float(np.abs(ours - theirs).max() / theirs.std())


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    measured: one a family.
    out: the run folder.
  """

  measured: tuple[Measured, ...]
  out: pathlib.Path


def measure(config: Config, family: str, stop: cli_lib.Stop) -> Measured:
  """All rounds of one family.

  Raises:
    UserError: a side ended.
  """
  import contextlib

  from corejax.experiments import bench_model
  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  spec = config.spec(family)
  with (
    contextlib.ExitStack() as running,
    runs.Progress(family, config.pairs) as progress,
  ):
    # Both are made at once, and wait for each other.
    sides = [
      running.enter_context(bench_sides.start(side, spec, config.length))
      for side in SIDES
    ]

    def on_round(_):
      progress.advance(1)
      stop.check()

    samples = bench_processes.interleave(
      [side.wait() for side in sides], config.pairs, on_round
    )
  prompt = bench_model.prompt(spec, config.length)
  visual = int((prompt.tokens_T == spec.image_token).sum())
  return Measured(family, visual, samples)


_HEAD = (
  'family',
  'visual tokens',
  'ours, CPU s',
  'HF sdpa, CPU s',
  'ours / HF [95%]',
  f'<= {_AIM:g}',
  'extra MiB, ours and HF',
  'logits differ by',
)


def table(measured: Sequence[Measured]) -> list[list[str]]:
  """One row a family: medians."""
  import statistics

  rows = []
  for one in measured:
    cpu, extra = (
      [
        statistics.median(getattr(sample, what) for sample in one.samples[side])
        for side in SIDES
      ]
      for what in ('cpu', 'extra')
    )
    rows.append(
      [
        one.family,
        str(one.visual),
        *(f'{seconds:.2f}' for seconds in cpu),
        str(one.ratio),
        'met' if one.ratio.value <= _AIM else 'missed',
        ', '.join(f'{size / 2**20:.0f}' for size in extra),
        f'{one.off:.1e}',
      ]
    )
  return rows


def _save(folder, measured: Sequence[Measured], rows) -> None:
  lines = ['family,side,round,cpu_s,wall_s,extra_bytes']
  for one in measured:
    for side, samples in one.samples.items():
      lines += [
        f'{one.family},{side},{i},{s.cpu:.6f},{s.wall:.6f},{s.extra}'
        for i, s in enumerate(samples)
      ]
  folder.write('samples.csv', '\n'.join(lines) + '\n')
  lines = [';'.join(row) for row in (_HEAD, *rows)]
  folder.write('families.csv', '\n'.join(lines) + '\n')


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
  out = runs.folder_path(config.out)
  for family in config.chosen:
    bench_model.prompt(config.spec(family), config.length)
  bench_sides.hf_program()
  with cli_lib.Stop() as stop, bench_processes.on_cores(config.cores):
    machine = bench_processes.machine()
    record = {
      'flags': dataclasses.asdict(config),
      'machine': machine,
      'compared_with': {'torch': importlib.metadata.version('torch')},
    }
    with runs.open_run(out, {'bench_families': 1}, record, False) as folder:
      with stop.at_once():
        measured = [measure(config, name, stop) for name in config.chosen]
      rows = table(measured)
      _save(folder, measured, rows)
  versions = runs.versions() | record['compared_with']
  print(
    f'{datetime.date.today()}, {machine}; '
    + ', '.join(
      f'{name} {versions[name]}'
      for name in ('python', 'jax', 'transformers', 'torch')
    )
    + f'; {config.length} tokens, {config.layers} layers, {config.heads} '
    f'heads, width {config.hidden}, float32; medians of {config.pairs} '
    'rounds\n'
  )
  print(bench_processes.markdown(_HEAD, rows))
  print(f'\nfiles    {out}: samples.csv, families.csv, run.json')
  return Result(tuple(measured), out)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
