"""torch's side of `bench_kernel`, in a process of its own.

Causal scaled_dot_product_attention in the layout that it likes best, with K and
V repeated to all heads before the clock starts. `bench_kernel` starts this
file; it lies under tests/ because torch does.
"""

import json
import os
import sys

import numpy as np
import torch

from corejax.experiments import bench_attention
from corejax.experiments import bench_processes


def prepare(spec: bench_attention.Spec):
  """() -> digest."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  q, k, v = (
    torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1)))[None]
    for x in spec.draw()
  )
  group = spec.heads // spec.kv_heads
  k, v = (x.repeat_interleave(group, 1) for x in (k, v))

  @torch.inference_mode()
  def work():
    out = torch.nn.functional.scaled_dot_product_attention(
      q, k, v, is_causal=True
    )
    return bench_attention.digest(out[0].transpose(0, 1).numpy())

  return work, {'torch': torch.__version__}


def main(argv: list[str]) -> None:
  spec = bench_attention.Spec(**json.loads(argv[1])['spec'])
  bench_processes.serve(lambda: prepare(spec))


if __name__ == '__main__':
  main(sys.argv)
