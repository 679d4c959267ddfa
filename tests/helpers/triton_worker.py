"""Runs the Triton kernel in Triton's interpreter, one request after another.

A program of its own: the interpreter is chosen by TRITON_INTERPRET when the
kernel is defined, and for the whole process. Pickled requests come in on
standard input, pickled answers leave on standard output.
"""

import pickle
import sys

import ml_dtypes
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from corejax.kernels import triton_kernel


class _Builder(interpreter.InterpreterBuilder):
  """bfloat16 as GPUs compute it.

  Triton keeps its bits as uint16, multiplies those in a dot, and cuts what does
  not fit off instead of rounding to the nearest.
  """

  def cast_impl(self, src, dst_type):
    of, to = src.dtype.scalar, dst_type.scalar
    if (of, to) != (tl.float32, tl.bfloat16):
      return super().cast_impl(src, dst_type)
    bits = src.data.astype(ml_dtypes.bfloat16).view(np.uint16)
    return interpreter.TensorHandle(bits, to)

  def create_dot(self, a, b, *rest):
    a, b = (
      self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x
      for x in (a, b)
    )
    return super().create_dot(a, b, *rest)


def _tensor(x: np.ndarray) -> torch.Tensor:
  x = np.ascontiguousarray(x)
  if x.dtype.name == 'bfloat16':
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(x)


def _array(x: torch.Tensor, dtype: np.dtype) -> np.ndarray:
  if x.dtype == torch.bfloat16:
    return x.view(torch.int16).numpy().view(dtype)
  return x.numpy()


def _answer(arrays, constants):
  q_BTNH, k_BSKH, v_BSKH, work_WX, scale_BN = map(_tensor, arrays)
  batch, n_rows, n_heads, _ = q_BTNH.shape
  # Whatever is not written must show.
  out_BTNH = torch.full(q_BTNH.shape, torch.nan, dtype=v_BSKH.dtype)
  lse_BNT = torch.full((batch, n_heads, n_rows), torch.nan)
  grid = (batch * n_heads * -(-n_rows // constants['BLOCK_Q']),)
  triton_kernel.attention[grid](
    q_BTNH,
    k_BSKH,
    v_BSKH,
    work_WX,
    scale_BN,
    n_rows,
    k_BSKH.shape[1],
    out_BTNH,
    lse_BNT,
    **constants,
  )
  return _array(out_BTNH, arrays[2].dtype), lse_BNT.numpy()


def main() -> None:
  # Used all over the interpreter, which makes its only one on import.
  interpreter.interpreter_builder.__class__ = _Builder
  requests, answers = sys.stdin.buffer, sys.stdout.buffer
  sys.stdout = sys.stderr  # nobody else writes there
  while True:
    try:
      arrays, constants = pickle.load(requests)
    except EOFError:
      return
    pickle.dump(_answer(arrays, constants), answers)
    answers.flush()


if __name__ == '__main__':
  main()
