"""The Triton kernel on CPU, for corejax.kernels.triton's `launch`."""

import atexit
import functools
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax.kernels import triton as wrapper

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@functools.cache
def _worker() -> subprocess.Popen:
  """The interpreter's process."""
  pytest.importorskip('triton', reason='Triton exists for Linux only')
  pytest.importorskip('torch', reason="Triton's interpreter wants its tensors")
  path = [str(_ROOT), os.environ.get('PYTHONPATH', '')]
  worker = subprocess.Popen(
    [sys.executable, '-m', 'tests.helpers.triton_worker'],
    cwd=_ROOT,
    env=os.environ
    | {
      'TRITON_INTERPRET': '1',
      'PYTHONPATH': os.pathsep.join(filter(None, path)),
      'OMP_NUM_THREADS': '1',
      'OPENBLAS_NUM_THREADS': '1',
    },
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  atexit.register(worker.communicate)  # ends its input and waits
  return worker


def ask(arrays, constants):
  """(out_BTNH, lse_BNT) of the kernel's arguments, numpy arrays."""
  worker = _worker()
  assert worker.stdin is not None and worker.stdout is not None
  pickle.dump(([np.asarray(x) for x in arrays], constants), worker.stdin)
  worker.stdin.flush()
  try:
    return pickle.load(worker.stdout)
  except EOFError:
    raise AssertionError(
      f'the interpreter ended with {worker.wait()}'
    ) from None


def launch(static: wrapper.Static, *arrays: jax.Array):
  """What jax-triton does on a GPU; head dims need only be a power of two."""
  from corejax.kernels import triton_kernel

  q_BTNH, k_BSKH, v_BSKH, *_ = arrays
  batch, n_rows, n_heads, head_dim = q_BTNH.shape
  constants = triton_kernel.constants(
    static.block_sizes,
    n_heads,
    k_BSKH.shape[2],
    triton_kernel.HEAD_DIMS.get(head_dim, (head_dim, 0)),
    static.causal,
  )
  shapes = (
    jax.ShapeDtypeStruct(q_BTNH.shape, v_BSKH.dtype),
    jax.ShapeDtypeStruct((batch, n_heads, n_rows), jnp.float32),
  )
  return jax.pure_callback(
    lambda *arrays: ask(arrays, constants), shapes, *arrays
  )


def attention(*args, blocks, **kwargs):
  """corejax.kernels.triton's function with BlockSizes(*blocks) on CPU."""
  _worker()  # skips here, and not inside of a callback
  from corejax.kernels import triton_kernel

  return wrapper.head_sparse_attention(
    *args,
    **kwargs,
    launch=launch,
    block_sizes=triton_kernel.BlockSizes(*blocks, warps=4, stages=2),
  )
