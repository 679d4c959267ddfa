"""The TPU kernel compiles for TPUs, on a machine that has none.

    pip install libtpu                    # the version that jax[tpu] asks for
    pytest -m aot tests/kernels/test_tpu_aot.py

libtpu holds the compiler; a topology stands for the machine. What is compiled
is never run: values are checked interpreted (tests/kernels/test_contract.py).
"""

import dataclasses
import os
from unittest import mock

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import control as control_lib
from corejax import masks
from corejax.kernels import dispatch
from corejax.kernels import tpu_pallas
from corejax.kernels import worklist

pytestmark = pytest.mark.aot

_TARGETS = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
_ENV = {
  'TPU_SKIP_MDS_QUERY': '1',  # no metadata server
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  # Nothing is run: others may compile at the same time.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of one layer's attention."""

  length: int = 2048
  n_heads: int = 14
  n_kv: int = 2
  head_dim: int = 128
  dtype: str = 'bfloat16'
  batch: int = 1

  def arrays(self):
    """(q, k, v, mask, control) as shapes."""

    def integers(*shape):
      return jax.ShapeDtypeStruct(shape, jnp.int32)

    def vectors(n):
      shape = self.batch, self.length, n, self.head_dim
      return jax.ShapeDtypeStruct(shape, self.dtype)

    per_head = self.batch, self.n_heads
    control = control_lib.AttendControl(
      integers(*per_head),
      integers(*per_head),
      jax.ShapeDtypeStruct(per_head, jnp.float32),
    )
    mask = masks.AttnMask(
      q_offset_B=integers(self.batch),
      kv_start_B=integers(self.batch),
      kv_len_B=integers(self.batch),
      window=integers(),
    )
    q, k = vectors(self.n_heads), vectors(self.n_kv)
    return q, k, k, mask, control


def _topology(name):
  pytest.importorskip('libtpu', reason='compiling for a TPU needs libtpu')
  with mock.patch.dict(os.environ, _ENV):
    return topologies.get_topology_desc(_TARGETS[name], platform='tpu')


@pytest.fixture(scope='module', params=_TARGETS)
def topology(request):
  return _topology(request.param)


def _compiled(topology, fun, *args) -> str:
  """The program's text, for one device of the topology."""
  device = jax.sharding.SingleDeviceSharding(topology.devices[0])
  return jax.jit(fun, in_shardings=device).lower(*args).compile().as_text()


def _kernels(text: str) -> int:
  return text.count('custom_call_target="tpu_custom_call"')


def _attend(*args):
  return tpu_pallas.head_sparse_attention(*args, return_lse=True)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('head_dim', [64, 80, 96, 128])
def test_one_layer(topology, head_dim, dtype):
  args = Shape(head_dim=head_dim, dtype=dtype).arrays()
  assert tpu_pallas.unsupported(*args, platform='tpu') is None
  assert _kernels(_compiled(topology, _attend, *args)) == 1


@pytest.mark.parametrize(
  'shape',
  [
    Shape(length=1, n_heads=4),
    Shape(length=37, n_heads=4, batch=3),
    Shape(length=1000, head_dim=256),
    Shape(length=2**17, n_heads=28, n_kv=4),
  ],
  ids=str,
)
def test_short_and_long(topology, shape):
  """One row; rows that fill no block; lists in many chunks."""
  assert _kernels(_compiled(topology, _attend, *shape.arrays())) == 1


def test_as_many_heads_as_fit_beside_a_list():
  """Scalar memory, 1 MiB, is what runs out."""
  shape = Shape(length=30, n_heads=32, n_kv=4, batch=1024)
  assert shape.batch * shape.n_heads == worklist.MOST_HEADS
  text = _compiled(_topology('v5e'), _attend, *shape.arrays())
  assert _kernels(text) == 1


def test_a_scan_over_layers_with_sets_of_their_own(topology):
  q, k, v, mask, control = Shape().arrays()
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((6, *x.shape), x.dtype), control
  )

  def layers(q, k, v, mask, stacked):
    def layer(q, control):
      return q + tpu_pallas.head_sparse_attention(q, k, v, mask, control), None

    return jax.lax.scan(layer, q, stacked)[0]

  assert _kernels(_compiled(topology, layers, q, k, v, mask, stacked)) == 1


@pytest.mark.parametrize(('n_kv', 'n_model'), [(4, 4), (2, 4), (4, 2)])
def test_over_a_mesh(topology, n_kv, n_model):
  """Heads over the devices: the kernel on each, and nothing is moved."""
  mesh = jax.sharding.Mesh(
    np.array(topology.devices).reshape(-1, n_model), ('data', 'model')
  )

  def attend(*args):
    return attention.AttendOut(
      tpu_pallas.head_sparse_attention(*args[:5]), None
    )

  spread = dispatch.sharded(attend, mesh)
  args = Shape(n_heads=28, n_kv=n_kv, batch=4 // n_model).arrays()
  spec = jax.sharding.PartitionSpec
  whole = jax.sharding.NamedSharding(mesh, spec('data'))
  heads = jax.sharding.NamedSharding(mesh, spec('data', None, 'model'))
  keys = heads if n_kv % n_model == 0 else whole
  window = jax.sharding.NamedSharding(mesh, spec())
  mask, control = jax.tree.map(lambda _: whole, args[3:])
  mask = dataclasses.replace(mask, window=window)
  placed = heads, keys, keys, mask, control
  text = jax.jit(spread, in_shardings=placed).lower(*args).compile().as_text()
  assert _kernels(text) == 1
  for moved in ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce'):
    assert moved not in text
