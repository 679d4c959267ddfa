"""Several processes: one program per host of a pod.

Every process runs the same command. Process 0 holds the run folder, decides
what is still to be measured, and writes; the others only compute.

    TPU pod, Slurm, Open MPI   found by jax itself
    anything else              JAX_COORDINATOR_ADDRESS=host:port
                               JAX_NUM_PROCESSES=n  JAX_PROCESS_ID=0..n-1
"""

import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from corejax import errors

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


def is_first() -> bool:
  """Is this the process that writes?"""
  return jax.process_index() == 0


def every(flag: bool) -> bool:
  """Is it so on every process? All must ask together."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def agree(values: list[int], size: int) -> list[int]:
  """Process 0's list of distinct integers below `size`, on every process."""
  if jax.process_count() == 1:
    return values
  chosen = np.zeros(size, bool)
  chosen[values] = True
  told = multihost_utils.broadcast_one_to_all(chosen)
  return [int(i) for i in np.flatnonzero(told)]
