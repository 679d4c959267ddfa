"""Devices to compile for on a machine that has none of them.

    v5e:4x4   v6e:2x4   v5p:2x2x1    TPU slices; the compiler is in libtpu
    h100                             one NVIDIA H100; it is in jax's CUDA plugin
    cpu                              what this machine has, for trying things

A topology stands for the machine. What is compiled for it cannot be run, and
no array can be put on it: shapes with a sharding take the place of arrays.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from corejax import errors

_GIB = 2**30
_H100 = pathlib.Path(__file__).with_name('h100_target_config.txtpb')
# What libtpu would ask a TPU's host for. It counts itself as the machine's only
# one, which matters to a device alone.
_TPU_ENV = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',  # no metadata server
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of device.

  Attributes:
    platform: as jax names it.
    memory: bytes that programs and their arrays can have.
    axes: of a slice; 0 where there is one device.
    capability: of an NVIDIA GPU, as 90.
  """

  platform: str
  memory: int
  axes: int = 0
  capability: int | None = None


# TPU: what the compiler itself lets a program have (of 16, 32 and 95 GiB).
# H100: of the description beside this file.
CHIPS = {
  'v5e': Chip('tpu', int(15.75 * _GIB), axes=2),
  'v6e': Chip('tpu', int(31.25 * _GIB), axes=2),
  'v5p': Chip('tpu', int(95.74 * _GIB), axes=3),
  'h100': Chip('cuda', 84_942_979_072, capability=90),
}
_SLICE = re.compile(r'(v5e|v6e|v5p):(\d{1,2}(?:x\d{1,2}){1,2})', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Target:
  """Some devices of one kind.

  Attributes:
    name: as parse takes it.
    chip: their kind.
    shape: of the slice; empty where it is no slice.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...] = ()

  @property
  def platform(self) -> str:
    return self.chip.platform

  @property
  def capability(self) -> int | None:
    return self.chip.capability

  def devices(self) -> list[Any]:
    """To compile for, in the order of the slice.

    Raises:
      UserError: the compiler is not installed, or knows no such slice.
    """
    if self.platform == 'cpu':
      return jax.devices('cpu')
    if self.platform == 'tpu':
      return self._tpu()
    return self._cuda()

  def _tpu(self) -> list[Any]:
    if importlib.util.find_spec('libtpu') is None:
      raise errors.UserError(
        f'--target={self.name}: the TPU compiler is missing; pip install '
        f"--no-deps --target libtpu '{_libtpu()}' and put that folder into "
        'PYTHONPATH (installed for good, it makes every run look for a TPU)'
      )
    with mock.patch.dict(os.environ, _TPU_ENV):
      try:
        topology = topologies.get_topology_desc(self.name, platform='tpu')
      except (jax.errors.JaxRuntimeError, ValueError) as e:
        reason = ' '.join(str(e).split())[:200]
        raise errors.UserError(
          f'--target={self.name}: libtpu refuses it ({reason}); give a slice '
          'that can be ordered, as v5e:4x4, v6e:2x4 or v5p:2x2x1'
        ) from e
    return list(topology.devices)

  def _cuda(self) -> list[Any]:
    for package in ('jax_cuda13_plugin', 'jax_triton'):
      if importlib.util.find_spec(package) is None:
        version = jax.__version__
        raise errors.UserError(
          f'--target={self.name}: {package} is missing; pip install --no-deps '
          f'jax-triton jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} '
          '(no GPU and no CUDA library is needed)'
        )
    with mock.patch.dict(os.environ, {'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1'}):
      topology = topologies.get_topology_desc(
        platform='cuda', target_config=_H100.read_text(), topology='1x1x1'
      )
    return list(topology.devices)


def _libtpu() -> str:
  """What jax asks for, as libtpu==0.0.42.*."""
  for line in importlib.metadata.requires('jax') or ():
    if found := re.match(r'libtpu[^\s;]*', line):
      return found[0]
  return 'libtpu'


def parse(name: str) -> Target:
  """The target of this name.

  Raises:
    UserError: there is none.
  """
  if name == 'cpu':
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return Target(name, Chip('cpu', memory))
  if name in CHIPS and not CHIPS[name].axes:
    return Target(name, CHIPS[name])
  if match := _SLICE.fullmatch(name):
    chip = CHIPS[match[1]]
    shape = tuple(int(n) for n in match[2].split('x'))
    if len(shape) == chip.axes and math.prod(shape):
      return Target(name, chip, shape)
  raise errors.UserError(
    f'--target={name[:60]}: no such target; give a slice, as v5e:4x4, v6e:2x4 '
    'or v5p:2x2x1, or h100 or cpu'
  )
