"""The processes that bench_rank and bench_families let take turns.

ours, ours_ram, profile     bench_ours.py
hf_sdpa, hf_eager, hf_rows   tests/helpers/bench_hf.py, with torch
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from corejax import errors

if TYPE_CHECKING:
  from corejax.experiments import bench_model
  from corejax.experiments import bench_processes

OURS = ('ours', 'ours_ram')


def hf_program() -> pathlib.Path:
  """The program of the sides that need torch.

  Raises:
    UserError: it, or torch, is not here.
  """
  import importlib.util

  from corejax.experiments import bench_processes

  path = bench_processes.ROOT / 'tests/helpers/bench_hf.py'
  missing = '' if path.exists() else f'{path} (a checkout of the project)'
  if importlib.util.find_spec('torch') is None:
    missing = 'torch'
  if missing:
    raise errors.UserError(
      f'--sides: those of Hugging Face need {missing}; install it, or give '
      f'--sides={",".join(OURS)}'
    )
  return path


def start(
  side: str, spec: bench_model.Spec, length: int
) -> bench_processes.Side:
  """A side's process; a context manager, not ready yet."""
  from corejax.experiments import bench_ours
  from corejax.experiments import bench_processes

  program = ['-m', 'corejax.experiments.bench_ours']
  if side not in (*OURS, bench_ours.PROFILE):
    program = [str(hf_program())]
  return bench_processes.Side(
    side,
    [*program, bench_ours.request(side, spec, length)],
    env={'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '2'},
    path=(bench_processes.ROOT, bench_processes.ROOT / 'tests'),
  )
