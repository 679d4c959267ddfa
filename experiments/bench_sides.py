"""What bench_rank, bench_families and bench_kernel share: flags and processes.

ours, ours_ram, profile      bench_ours.py
hf_sdpa, hf_eager, hf_rows   tests/helpers/bench_hf.py, with torch
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from corejax import errors
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax.experiments import bench_model
  from corejax.experiments import bench_processes

setting = config_lib.setting
OURS = ('ours', 'ours_ram')


def check_least(
  config: Any, from_zero: Sequence[str] = ('cores', 'seed')
) -> None:
  """Refuses whole numbers below 1, or below 0 where that means something.

  Raises:
    UserError: there is one.
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    least = 0 if field.name in from_zero else 1
    if type(value) is int and value < least:
      raise errors.UserError(f'--{field.name}={value}: give {least} or more')


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Flags of bench_rank and bench_families: the model, and where it runs."""

  per_head: ClassVar[int] = 2  # what the width of a head is a multiple of

  cores: int = setting(0, 'cores that every side gets; 0 is all there are')
  layers: int = setting(8, 'layers of the decoder')
  heads: int = setting(16, 'heads of the decoder')
  hidden: int = setting(1024, 'width of the decoder')
  mlp: int = setting(2752, "width of the decoder's MLP")
  vocab: int = setting(32000, 'words')
  tower_layers: int = setting(2, 'layers of the tower')
  tower_heads: int = setting(4, 'heads of the tower')
  tower_hidden: int = setting(256, 'width of the tower')
  image_size: int = setting(336, 'pixels along each side of a picture (tile)')
  patch_size: int = setting(14, 'pixels along each side of a patch')
  seed: int = setting(0, 'seed of weights, tokens and pixels')

  def __post_init__(self):
    check_least(self)
    for heads, width in (('heads', 'hidden'), ('tower_heads', 'tower_hidden')):
      if getattr(self, width) % (self.per_head * getattr(self, heads)):
        raise errors.UserError(
          f'--{width}={getattr(self, width)}: must be a multiple of '
          f'{self.per_head} times --{heads}={getattr(self, heads)}'
        )

  def spec(self, family: str = 'llava') -> bench_model.Spec:
    """Sizes of a family's model."""
    from corejax.experiments import bench_model

    names = {field.name for field in dataclasses.fields(bench_model.Spec)}
    sizes = {name: getattr(self, name) for name in names - {'family'}}
    return bench_model.Spec(**sizes, family=family)


def torch_program(name: str, who: str, without: Sequence[str] = ()) -> str:
  """A program of tests/helpers that needs torch.

  Args:
    name: its file.
    who: needs it; for the message.
    without: sides that can be had without it.

  Raises:
    UserError: it, or torch, is not here.
  """
  import importlib.util

  from corejax.experiments import bench_processes

  path = bench_processes.ROOT / 'tests/helpers' / name
  missing = '' if path.exists() else f'{path} (a checkout of the project)'
  if importlib.util.find_spec('torch') is None:
    missing = 'torch'
  if missing:
    instead = f', or give --sides={",".join(without)}' if without else ''
    raise errors.UserError(f'{who} needs {missing}; install it{instead}')
  return str(path)


def hf_program(without: Sequence[str] = ()) -> str:
  """The program of Hugging Face's sides; see torch_program."""
  return torch_program('bench_hf.py', 'comparing with Hugging Face', without)


def process(side: str, *command: str) -> bench_processes.Side:
  """A side's process; a context manager, not ready yet."""
  from corejax.experiments import bench_processes

  return bench_processes.Side(
    side,
    command,
    env={'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '2'},
    path=(bench_processes.ROOT, bench_processes.ROOT / 'tests'),
  )


def start(
  side: str, spec: bench_model.Spec, length: int
) -> bench_processes.Side:
  """The process of a side of bench_rank or bench_families."""
  from corejax.experiments import bench_ours

  program = ['-m', 'corejax.experiments.bench_ours']
  if side not in (*OURS, bench_ours.PROFILE):
    program = [hf_program()]
  return process(side, *program, bench_ours.request(side, spec, length))
