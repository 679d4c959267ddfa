"""Our sides of `bench_kernel`, and what both its sides are given.

python -m corejax.experiments.bench_attention '{"side": "ours_dense",
  "spec": {...}}'
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import numpy as np

from corejax.experiments import bench_processes


@dataclasses.dataclass(frozen=True)
class Spec:
  """One layer's causal attention, one sequence, float32.

  Attributes:
    length: T.
    heads, kv_heads: N, K.
    head_dim: H.
    dense_heads: of the sparse side, the first so many.
    window, sink: of its other heads.
    seed: of the inputs.
    blocks: query rows, keys and wide of our kernel's BlockSizes; empty is what
      it takes by itself.
  """

  length: int
  heads: int
  kv_heads: int
  head_dim: int
  dense_heads: int
  window: int
  sink: int
  seed: int = 0
  blocks: tuple[int, ...] = ()

  def draw(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q_TNH, k_SKH, v_SKH, float32 with unit variance."""
    rng = np.random.default_rng(self.seed)
    q, k, v = (
      rng.standard_normal((self.length, n, self.head_dim), np.float32)
      for n in (self.heads, self.kv_heads, self.kv_heads)
    )
    return q, k, v


def request(side: str, spec: Spec) -> str:
  """The argument of a side's program."""
  return json.dumps({'side': side, 'spec': dataclasses.asdict(spec)})


def digest(out_TNH: np.ndarray) -> list[float]:
  """Some of an output's numbers: what two sides must agree in."""
  length = len(out_TNH)
  rows = [0, length // 3, length - 1]
  return np.asarray(out_TNH[rows][:, :, :2], float).ravel().tolist()


@dataclasses.dataclass(frozen=True)
class Ideal:
  """Sparse / dense, of what has to be computed.

  Attributes:
    tiles: by tiles that hold a pair of which one reads the other.
    elements: by such pairs.
  """

  tiles: float
  elements: float


def ideal(spec: Spec, block: int) -> Ideal:
  """What the sparse side's time is of the dense side's, at best.

  Args:
    spec: the problem.
    block: rows and keys of a tile.
  """
  row_T = np.arange(spec.length)
  dense = (row_T + 1).sum()
  # Keys [0, stop) of the sinks and [low, row] of the window.
  low_T = np.maximum(row_T - spec.window + 1, 0)
  sparse = (row_T + 1 - low_T + np.minimum(spec.sink, low_T)).sum()
  first = np.arange(0, spec.length, block)
  last = np.minimum(first + block, spec.length) - 1
  dense_tiles = (last // block + 1).sum()
  band = np.maximum(first - spec.window + 1, 0) // block
  sinks = -(-np.minimum(spec.sink, spec.length) // block)
  sparse_tiles = (last // block + 1 - band + np.minimum(sinks, band)).sum()
  share = spec.dense_heads / spec.heads
  return Ideal(
    tiles=float(share + (1 - share) * sparse_tiles / dense_tiles),
    elements=float(share + (1 - share) * sparse / dense),
  )


def prepare(side: str, spec: Spec) -> tuple[Any, Any]:
  """() -> digest; both sides run the same program."""
  import jax
  import jax.numpy as jnp

  from corejax import control as control_lib
  from corejax import masks
  from corejax.kernels import blockwise
  from corejax.kernels import xla

  q, k, v = (jnp.asarray(x)[None] for x in spec.draw())
  window_1N = np.full((1, spec.heads), masks.DENSE, np.int32)
  sink_1N = np.zeros((1, spec.heads), np.int32)
  if side == 'ours_sparse':
    window_1N[:, spec.dense_heads :] = spec.window
    sink_1N[:, spec.dense_heads :] = spec.sink
  control = control_lib.AttendControl(
    jnp.asarray(window_1N),
    jnp.asarray(sink_1N),
    jnp.ones((1, spec.heads), jnp.float32),
  )
  sizes = blockwise.BlockSizes(*spec.blocks)
  run = jax.jit(functools.partial(xla.head_sparse_attention, block_sizes=sizes))

  def work():
    out = jax.block_until_ready(run(q, k, v, masks.AttnMask(), control))
    return digest(np.asarray(out[0]))

  facts = {'jax': jax.__version__}
  blocks = blockwise.BlockSizes().fit(spec.length, spec.length)
  return work, facts | {'block': max(blocks.q, blocks.k)}


def main(argv: list[str]) -> None:
  asked = json.loads(argv[1])
  spec = Spec(**asked['spec'])
  bench_processes.serve(lambda: prepare(asked['side'], spec))


if __name__ == '__main__':
  main(sys.argv)
