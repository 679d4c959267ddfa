"""Several processes: one program per host of a pod.

Every process runs the same command. Process 0 holds the run folder, decides
what is still to be measured, and writes; the others only compute.

    TPU pod, Slurm, Open MPI   found by jax itself
    anything else              JAX_COORDINATOR_ADDRESS=host:port
                               JAX_NUM_PROCESSES=n  JAX_PROCESS_ID=0..n-1
"""

from collections.abc import Iterator
import contextlib
import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from corejax import errors
from corejax.experiments import cli as cli_lib

_NAMED = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def _found_by_jax() -> bool:
  """Does the environment say that this is one of several processes?"""
  tpu_hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  return (
    len(tpu_hosts) > 1
    or int(os.environ.get('SLURM_NTASKS', '1')) > 1
    or int(os.environ.get('OMPI_COMM_WORLD_SIZE', '1')) > 1
  )


def initialize() -> None:
  """Joins the other processes, if the environment names any; once.

  Raises:
    UserError: the environment names them incompletely.
  """
  if jax.distributed.is_initialized():
    return
  # jax would take SIGTERM for itself, and cli.Stop would never hear of it.
  jax.config.update('jax_enable_preemption_service', False)
  given = {name: os.environ.get(name, '') for name in _NAMED}
  if given['JAX_NUM_PROCESSES']:
    missing = [name for name, value in given.items() if not value]
    if missing or not all(given[name].isdecimal() for name in _NAMED[1:]):
      raise errors.UserError(
        f'{", ".join(missing or _NAMED[1:])}: several processes need '
        'JAX_COORDINATOR_ADDRESS=host:port and whole numbers in '
        'JAX_NUM_PROCESSES and JAX_PROCESS_ID'
      )
    jax.distributed.initialize(
      given['JAX_COORDINATOR_ADDRESS'],
      int(given['JAX_NUM_PROCESSES']),
      int(given['JAX_PROCESS_ID']),
    )
  elif _found_by_jax():
    jax.distributed.initialize()


def is_alone() -> bool:
  """Is this the only process?"""
  return jax.process_count() == 1


def is_first() -> bool:
  """Is this the process that writes?"""
  return jax.process_index() == 0


def every(flag: bool) -> bool:
  """Is it so on every process? All must ask together."""
  if is_alone():
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Around a loop that asks `every` each time round: one fails, all end.

  All processes enter together. A failure that one process alone meets between
  two rounds (its disk is full) reaches the others where they ask next, in the
  loop or at its end; left alone, they would wait for it for minutes.

  Raises:
    UserError: as it came, or that another process failed.
  """
  try:
    yield
  except errors.UserError:
    every(False)  # shall we go on?
    every(False)  # has nobody failed?
    raise
  except cli_lib.Preempted:
    if every(True):
      raise
  else:
    if every(True):
      return
    every(True)
  raise errors.UserError('another process failed; see its line')


def agree(values: list[int], size: int) -> list[int]:
  """Process 0's list of distinct integers below `size`, on every process."""
  if is_alone():
    return values
  chosen = np.zeros(size, bool)
  chosen[values] = True
  told = multihost_utils.broadcast_one_to_all(chosen)
  return [int(i) for i in np.flatnonzero(told)]
