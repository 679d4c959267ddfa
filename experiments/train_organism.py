"""Train a small model from scratch on the scenes and write it as an HF folder.

    python -m experiments.train_organism
    python -m experiments.train_organism --size=small --out=runs/small
    python -m experiments.train_organism --model=qwen3_vl_flax --size=small

Writes model/ (a checkpoint that transformers loads too), accuracy.json,
history.csv and run.json into --out. The same command again continues from the
last checkpoint, to the same weights bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax.experiments import organism_loop

setting = config_lib.setting
MODELS = ('llava_flax', 'internvl_flax', 'qwen3_vl_flax')
SIZES = ('base', 'small', 'tiny')


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a training run."""

  model: str = setting('llava_flax', 'family of the model', MODELS)
  size: str = setting('base', 'size of the model', SIZES)
  seed: int = setting(0, 'seed of the weights and of the scenes')
  align_steps: int = setting(60, 'steps that align the tower with the words')
  few_steps: int = setting(
    3000, 'most steps with documents of 3 pages; they end when all is answered'
  )
  skill: float = setting(
    0.9, 'share of right answers in every task that ends those steps'
  )
  many_steps: int = setting(600, 'steps with documents of 2 to 8 pages')
  scenes: int = setting(12, 'pictures and documents each in a step')
  muon: float = setting(0.01, "learning rate of the decoder's matrices")
  adam: float = setting(3e-3, 'learning rate of everything else')
  decay: float = setting(0.1, "weight decay of the decoder's matrices")
  save_every: int = setting(100, 'steps between two checkpoints')
  questions: int = setting(
    1000, 'questions a task and data set in the last check; 0 leaves it out'
  )
  split: str = setting('validation', 'split of the last check')
  out: str = setting(
    '', "run folder; '' is runs/train_organism/[<family>-]<size>-<seed>"
  )
  resume: bool = setting(
    True, 'continue what the run folder holds; --noresume starts it over'
  )

  def __post_init__(self):
    for name, known in (('model', MODELS), ('size', SIZES)):
      if getattr(self, name) not in known:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: not one of {", ".join(known)}'
        )
    for name in ('scenes', 'few_steps', 'many_steps', 'save_every'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    for name in ('seed', 'align_steps', 'questions', 'decay'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; give 0 or more'
        )
    if not 0 <= self.skill <= 1:
      raise errors.UserError(f'--skill={self.skill}: a share, so give 0 to 1')
    for name in ('muon', 'adam'):
      if not 0 < getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: a rate, so give more than 0 and '
          'less than 1'
        )


@dataclasses.dataclass(frozen=True)
class Result:
  """What a training run returns.

  Attributes:
    folder: the HF folder.
    steps: how many were made.
    accuracy: data set -> task -> (right, asked).
    out: the run folder.
  """

  folder: pathlib.Path
  steps: int
  accuracy: Mapping[str, Mapping[str, tuple[int, int]]]
  out: pathlib.Path


def name(config: Config) -> str:
  """The model in short: base-1 (a LLaVA), internvl-small-2."""
  size = f'{config.size}-{config.seed}'
  if config.model == MODELS[0]:
    return size
  return f'{config.model.removesuffix("_flax")}-{size}'


def out_folder(config: Config) -> pathlib.Path:
  """Where the run goes."""
  from corejax.experiments import runs

  return runs.folder_path(config.out or f'runs/train_organism/{name(config)}')


# few_steps is a bound: a run that stays within it does not depend on it.
_OFFLINE = ('out', 'resume', 'save_every', 'questions', 'split', 'few_steps')


def identity(config: Config) -> dict[str, Any]:
  """What the weights depend on."""
  found = {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name not in _OFFLINE
  }
  if config.model == MODELS[0]:
    # Not named by runs that are older than the other families.
    del found['model']
  return found


def description(config: Config) -> str:
  """The line that corejax.json and `rank` say of the model."""
  from corejax.models.organisms import trained

  return (
    f'trained model ({config.size}, seed {config.seed}): a small '
    f'{trained.KINDS[config.model].title}, trained from scratch on drawn scenes'
  )


def job(config: Config) -> organism_loop.Job:
  """What these settings train, from its first step on."""
  from corejax.experiments import organism_loop
  from corejax.experiments import organism_schedule
  from corejax.experiments import organism_training
  from corejax.models.organisms import hf_folder
  from corejax.models.organisms import trained

  return organism_loop.Job(
    model=trained.new(trained.SIZES[config.size], config.seed, config.model),
    spec=hf_folder.cell_pixels(),
    plan=organism_schedule.Plan(
      config.align_steps, config.few_steps, config.many_steps, config.skill
    ),
    rates=organism_training.Rates(config.muon, config.adam, config.decay),
    scenes=config.scenes,
    seed=config.seed,
    save_every=config.save_every,
  )


def _record(config: Config) -> dict[str, Any]:
  """What run.json says beside what decides the weights."""
  import importlib.metadata

  import jax

  return {
    'flags': dataclasses.asdict(config),
    'device': jax.devices()[0].device_kind,
    'training': {
      name: importlib.metadata.version(name)
      for name in ('optax', 'orbax-checkpoint')
    },
  }


def run(config: Config) -> Result:
  """Trains, writes the folder, and asks it questions of another split.

  Raises:
    UserError: something outside is wrong, or the tasks were not learned.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _run(config: Config, stop: cli_lib.Stop) -> Result:
  import json
  import shutil
  import time

  from corejax import parts
  from corejax.experiments import compile_cache
  from corejax.experiments import organism_check
  from corejax.experiments import organism_loop
  from corejax.experiments import resources
  from corejax.experiments import runs
  from corejax.models.organisms import trained

  resources.quiet()
  out, size = out_folder(config), trained.SIZES[config.size]
  print(
    f'{trained.KINDS[config.model].title}, {config.size}: {size.layers} layers '
    f'x {size.heads} heads, seed {config.seed} -> {out}',
    flush=True,
  )
  saved = out / organism_loop.CHECKPOINTS

  def forget():
    if saved.exists():
      with parts.changing(saved):
        shutil.rmtree(saved)

  with (
    runs.open_run(
      out,
      identity(config),
      _record(config),
      config.resume,
      forget,
      organism_loop.CHECKPOINTS,
    ) as folder,
    compile_cache.beside(out),
  ):
    began = time.monotonic(), time.process_time()
    with stop.at_once():
      what = job(config)
    model, steps = organism_loop.train(what, folder, stop.check)
    folder.record['steps'] = steps
    # Of this call alone: a run that was resumed took longer.
    folder.record['wall_s'] = round(time.monotonic() - began[0], 1)
    folder.record['cpu_s'] = round(time.process_time() - began[1], 1)
    with stop.at_once():
      with parts.changing(out / 'model'):
        path = trained.write(out / 'model', model, description(config))
      accuracy = {}
      if config.questions:
        accuracy = organism_check.accuracy(
          path, config.split, config.questions, stop.check, config.model
        )
        folder.write('accuracy.json', json.dumps(accuracy, indent=2) + '\n')
        print(organism_check.table(accuracy))
    print(f'files    {path}, {out}/history.csv, run.json')
    return Result(path, steps, accuracy, out)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
