"""What a sweep over sets of heads costs, beside as many intact passes.

    python -m experiments.bench_sweep
    python -m experiments.bench_sweep --sets=40 --mode=knockout_evidence

One batch of --data, whose pictures have been looked at, is answered under the
intact model and --sets sets of heads, as `ablate` does it (one executable, the
set an array), and as often by a forward that knows no controls. Both take turns
in one process. Prints a table; writes samples.csv and run.json into --out.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib
from corejax.experiments import cutting

if TYPE_CHECKING:
  from corejax.experiments import bench_processes

setting = config_lib.setting
_AIM = 1.3


@dataclasses.dataclass(frozen=True)
class Config(cutting.Settings):
  """Settings of a run."""

  sets: int = setting(40, 'sets of heads beside the intact model')
  k: int = setting(3, 'heads of each')
  pairs: int = setting(10, 'rounds')
  out: str = setting(
    'runs/bench_sweep', 'run folder; what it holds is replaced'
  )

  def __post_init__(self):
    super().__post_init__()
    for name in ('sets', 'k', 'pairs'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    sweep_s, intact_s: CPU seconds, one a round.
    out: the run folder.
  """

  sweep_s: list[float]
  intact_s: list[float]
  out: pathlib.Path


def sides(
  config: Config, stop: cli_lib.Stop
) -> tuple[Callable[[], object], Callable[[], object], str]:
  """(the sweep, the intact passes, what they are on); nothing is compiled.

  Raises:
    UserError: something outside is wrong.
  """
  import functools

  import jax
  import jax.numpy as jnp

  from corejax import groups as groups_lib
  from corejax import heads as heads_lib
  from corejax import likelihood
  from corejax.experiments import sweep

  resources, reference = cutting.start(config, stop)
  source, loaded = resources.source, resources.loaded
  shape = loaded.n_layers, loaded.n_heads
  groups = [
    groups_lib.Group('top', 0, heads_lib.HeadSet()),
    *(
      groups_lib.Group('random', config.k, _random(shape, config.k, x), x)
      for x in range(config.sets)
    ),
  ]
  runner = sweep.Runner(
    resources,
    groups,
    cutting.options(config),
    reference,
    config.reference,
  )
  indices = range(min(config.batch_size, len(source)))
  batch = sweep.read(resources, source, indices)
  if not batch.examples:
    raise errors.UserError(
      f'--data={config.data}: none of the first {len(indices)} records can be '
      'used'
    )
  padded = runner.pad(batch)

  @functools.partial(jax.jit)
  def intact(model, inputs, rows_BA, answer_BA):
    out = loaded.forward(
      model,
      inputs,
      attend=resources.attend,
      logit_rows_BP=jnp.maximum(rows_BA, 0),
    )
    forced = likelihood.forced(out.logits_BPV, answer_BA)
    return jnp.stack([forced.correct_B.astype(jnp.float32), forced.logprob_B])

  def many():
    with jax.default_matmul_precision(resources.precision):
      made = [
        intact(
          loaded.model, padded.inputs, padded.answer_rows_BA, padded.answer_BA
        )
        for _ in groups
      ]
    return jax.block_until_ready(made)

  about = (
    f'{loaded.key} ({shape[0]} x {shape[1]} heads), {len(batch.examples)} '
    f'examples of {source.name} in one batch of {padded.length} tokens, '
    f'{len(groups)} sets'
  )
  return lambda: runner.start(batch)(), many, about


def _random(shape: tuple[int, int], k: int, seed: int):
  """A set of k heads."""
  import numpy as np

  from corejax import heads as heads_lib

  total = shape[0] * shape[1]
  if k > total:
    raise errors.UserError(f'--k={k}: the model has {total} heads')
  drawn = np.random.default_rng(seed).choice(total, k, replace=False)
  return heads_lib.HeadSet(divmod(int(x), shape[1]) for x in drawn)


def table(ratio: bench_processes.Ratio, result: Result) -> str:
  """What each side cost, and how they compare."""
  import statistics

  from corejax.experiments import bench_processes

  met = 'met' if ratio.value <= _AIM else 'missed'
  return bench_processes.markdown(
    ('sweep CPU s', 'intact CPU s', 'ratio [95%]', 'aim'),
    [
      [
        f'{statistics.median(result.sweep_s):.2f}',
        f'{statistics.median(result.intact_s):.2f}',
        str(ratio),
        f'<= {_AIM:g} {met}',
      ]
    ],
  )


def run(config: Config) -> Result:
  """Measures, prints and writes.

  Raises:
    UserError: something outside is wrong.
  """
  import datetime
  import time

  from corejax.experiments import bench_processes
  from corejax.experiments import runs

  out = runs.folder_path(config.out)
  machine = bench_processes.machine()
  record = {'flags': dataclasses.asdict(config), 'machine': machine}
  with cli_lib.Stop() as stop:
    swept, intact, about = sides(config, stop)
    with runs.open_run(out, {'bench_sweep': 1}, record, False) as folder:
      with stop.at_once():
        swept()  # a warm-up of both
        intact()
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for index in range(config.pairs):
          for side in (0, 1) if index % 2 else (1, 0):
            began = time.process_time()
            (swept, intact)[side]()
            seconds[side].append(time.process_time() - began)
      result = Result(seconds[0], seconds[1], out)
      lines = ['round,sweep_cpu_s,intact_cpu_s']
      lines += [
        f'{i},{a:.6f},{b:.6f}'
        for i, (a, b) in enumerate(zip(result.sweep_s, result.intact_s))
      ]
      folder.write('samples.csv', '\n'.join(lines) + '\n')
  ratio = bench_processes.ratio(result.sweep_s, result.intact_s)
  print(
    f'{datetime.date.today()}, {machine}; jax {runs.versions()["jax"]}; '
    f'{about}, mode {config.mode}; medians of {config.pairs} rounds\n'
  )
  print(table(ratio, result))
  print(f'\nfiles    {out}: samples.csv, run.json')
  return result


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
