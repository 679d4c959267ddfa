"""Head-sparse attention on an NVIDIA GPU (sm80 and later) through jax-triton.

The kernel is corejax.kernels.triton_kernel. Here it is told, per sequence and
head, what may be read, and which heads start first; gradients go through the
blocks of corejax.kernels.blockwise, from the output and the log-sum-exp.

jax-triton is imported here only, and when a call needs it: it is absent on most
machines, and `import jax_triton` (0.3.1) fails without CUDA.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp

from corejax import control as control_lib
from corejax import masks
from corejax.kernels import differentiable
from corejax.kernels import limits as limits_lib
from corejax.kernels import rows as rows_lib
from corejax.kernels import targets

HEAD_DIMS = (64, 80, 96, 128)
_LOWEST_CAPABILITY = 80


@dataclasses.dataclass(frozen=True)
class Static:
  """What one executable is compiled for, besides shapes and dtypes.

  Attributes:
    causal: of the mask.
    block_sizes: a triton_kernel.BlockSizes; None is what is shipped.
    compute_capability: as 90; None is that of the device.
  """

  causal: bool
  block_sizes: Any = None
  compute_capability: int | None = None


def unsupported(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None,
  *,
  target: targets.Target | None = None,
) -> str | None:
  """Why this call cannot be served on this machine (or target), or None."""
  return (
    _limits_refused(mask, control)
    or _arrays_refused(q_BTNH, k_BSKH, v_BSKH)
    or device_refused(_LOWEST_CAPABILITY, target)
    or _packages_refused()
  )


def _limits_refused(mask, control) -> str | None:
  if mask.kv_segment_BS is not None:
    return "serves no segments (packed questions, windows, frames); 'xla' does"
  if control is not None and control.blocked_BNR is not None:
    return "serves no blocked regions; 'xla' does"
  return None


def _arrays_refused(q_BTNH, k_BSKH, v_BSKH) -> str | None:
  head_dim = q_BTNH.shape[-1]
  if head_dim not in HEAD_DIMS:
    return f'head dim {head_dim}; it serves {", ".join(map(str, HEAD_DIMS))}'
  return dtypes_refused(q_BTNH, k_BSKH, v_BSKH)


def dtypes_refused(*arrays: jax.Array) -> str | None:
  """Why tensor cores cannot take these, or None."""
  dtypes = {str(x.dtype) for x in arrays}
  if dtypes in ({'bfloat16'}, {'float16'}):
    return None
  return (
    f'q, k, v are {", ".join(sorted(dtypes))}; it serves bfloat16 or float16,'
    ' the same for all three'
  )


def device_refused(
  lowest: int, target: targets.Target | None = None
) -> str | None:
  """Why what JAX computes on is no NVIDIA GPU of that capability, or None.

  Args:
    lowest: as 80.
    target: what is compiled for instead of what JAX computes on.
  """
  if target is not None:
    if (target.capability or 0) >= lowest:
      return None
    return f'needs compute capability {lowest / 10}; {target.name} has it not'
  config: Any = jax.config  # declares none of its options
  device = config.jax_default_device or jax.devices()[0]
  if isinstance(device, str):
    device = jax.devices(device)[0]
  if 'cuda' not in getattr(device.client, 'platform_version', ''):
    return f'needs an NVIDIA GPU; this process computes on {device.platform}'
  found = capability(device)
  if found < lowest:
    return (
      f'needs compute capability {lowest / 10}; {device.device_kind} has'
      f' {found / 10}'
    )
  return None


def _packages_refused() -> str | None:
  try:
    importlib.import_module('jax_triton')
    importlib.import_module('triton')
  except ImportError as error:
    return f'jax-triton is missing ({error}); pip install "corejax[gpu]"'
  return None


def capability(device) -> int:
  """Compute capability of a CUDA device, as 90."""
  major, minor = device.compute_capability.split('.')
  return 10 * int(major) + int(minor)


@rows_lib.by_rows
def head_sparse_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  *,
  return_lse: bool = False,
  block_sizes: Any = None,
  compute_capability: int | None = None,
  launch: Callable[..., Any] | None = None,
):
  """Attention of one layer on a GPU.

  Works under jit, vmap (folded into the batch), scan and reverse-mode grad;
  differentiable in q, k, v and the control's score_scale.

  Args:
    q_BTNH: queries, after RoPE and norms; bfloat16 or float16. Scores and sums
      are float32, the softmax's weights are rounded to the inputs' dtype.
    k_BSKH: keys; query head n reads kv head n // (N / K), nothing is repeated.
    v_BSKH: values.
    mask: who may read whom; no segments.
    control: one layer's control; no blocked regions.
    return_lse: also return the log-sum-exp of the scores.
    block_sizes: a triton_kernel.BlockSizes; None is what is shipped.
    compute_capability: of the GPU to compile for, as 90; None is the device's.
    launch: what runs the kernel, (static, q_BTNH, k_BSKH, v_BSKH, work_WX,
      scale_BN) -> (out_BTNH, lse_BNT); None is jax-triton.

  Returns:
    out_BTNH in v's dtype, or (out_BTNH, lse_BNT) with lse_BNT float32, natural
    logarithm, -inf at rows that may read nothing (their output is 0).

  Raises:
    NotImplementedError: the kernel does not serve such a call.
    UserError: shapes or dtypes that do not belong together.
  """
  limits_lib.check(q_BTNH, k_BSKH, v_BSKH, mask, control)
  reason = _limits_refused(mask, control)
  if launch is None:
    reason = reason or _arrays_refused(q_BTNH, k_BSKH, v_BSKH)
  if reason is not None:
    raise NotImplementedError(f"attention 'triton': {reason}")
  batch, _, n_heads, head_dim = q_BTNH.shape
  limits = limits_lib.make(mask, control, batch, n_heads, k_BSKH.shape[1])
  scale_BN = jnp.full((batch, n_heads), 1 / math.sqrt(head_dim), jnp.float32)
  if control is not None:
    scale_BN = scale_BN * control.score_scale_BN
  static = Static(mask.causal, block_sizes, compute_capability)
  attention = differentiable.attention(
    functools.partial(_forward, static, launch or _jax_triton),
    differentiable.blockwise_backward(mask.causal),
  )
  with jax.named_scope('head_sparse_attention'):
    out_BTNH, lse_BNT = attention(q_BTNH, k_BSKH, v_BSKH, scale_BN, limits)
  return (out_BTNH, lse_BNT) if return_lse else out_BTNH


def _forward(static, launch, q_BTNH, k_BSKH, v_BSKH, scale_BN, limits):
  """(out_BTNH, lse_BNT)."""
  return launch(
    static,
    q_BTNH,
    k_BSKH,
    v_BSKH,
    work_list(limits),
    scale_BN * jnp.float32(math.log2(math.e)),
  )


def work_list(limits: limits_lib.Limits) -> jax.Array:
  """Every (sequence, head) once, what reads most first.

  Args:
    limits: of the batch.

  Returns:
    int32 [B * N, X], columns as in triton_kernel.WORK.
  """
  batch, n_heads = limits.window_BN.shape

  def per_head(x_B):
    return jnp.broadcast_to(x_B[:, None], (batch, n_heads))

  start_BN, end_BN = per_head(limits.start_B), per_head(limits.end_B)
  model_window_BN = per_head(limits.model_window_B)
  window_BN = jnp.minimum(limits.window_BN, model_window_BN)
  columns = (
    per_head(jnp.arange(batch, dtype=jnp.int32)),
    jnp.broadcast_to(jnp.arange(n_heads, dtype=jnp.int32), (batch, n_heads)),
    per_head(limits.offset_B),
    start_BN,
    end_BN,
    window_BN,
    model_window_BN,
    limits.sink_BN,
  )
  # Keys that a late row reads. Stable: heads of one kv head stay neighbours.
  n_keys_BN = jnp.clip(window_BN, 0) + limits.sink_BN
  n_keys_W = jnp.minimum(n_keys_BN, end_BN - start_BN).ravel()
  # A sort and a gather would be four kernels ahead of each layer's attention;
  # comparing all with all is two.
  at_W = jnp.arange(n_keys_W.size)
  more_WW = n_keys_W > n_keys_W[:, None]
  equal_WW = (n_keys_W == n_keys_W[:, None]) & (at_W < at_W[:, None])
  place_W = (more_WW | equal_WW).sum(axis=1)
  columns_WX = jnp.stack([x.ravel() for x in columns], axis=1)
  is_at_WW = place_W == at_W[:, None]
  return jnp.where(is_at_WW[..., None], columns_WX, 0).sum(axis=1)


def _jax_triton(static, q_BTNH, k_BSKH, v_BSKH, work_WX, scale_BN):
  """Runs the kernel by jax-triton, 0.3.1 or 0.4."""
  jax_triton = importlib.import_module('jax_triton')
  from corejax.kernels import triton_kernel

  batch, n_rows, n_heads, head_dim = q_BTNH.shape
  n_keys, n_kv = k_BSKH.shape[1:3]
  target = static.compute_capability or capability(jax.devices('gpu')[0])
  blocks = static.block_sizes or triton_kernel.block_sizes(target)
  outputs = (
    jax.ShapeDtypeStruct(q_BTNH.shape, v_BSKH.dtype),
    jax.ShapeDtypeStruct((batch, n_heads, n_rows), jnp.float32),
  )
  # Without fused multiply-adds the softmax costs more; newer Triton has them
  # off unless asked.
  if 'out_type' in inspect.signature(jax_triton.triton_call).parameters:
    options = {
      'out_type': outputs,
      'backend_options': {'enable_fp_fusion': True},
    }
  else:
    options = {'out_shape': outputs, 'enable_fp_fusion': True}
  return jax_triton.triton_call(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    work_WX,
    scale_BN,
    n_rows,
    n_keys,
    kernel=triton_kernel.attention,
    grid=(batch * n_heads * -(-n_rows // blocks.q),),
    num_warps=blocks.warps,
    num_stages=blocks.stages,
    compute_capability=target,
    **options,
    **triton_kernel.constants(
      blocks,
      n_heads,
      n_kv,
      triton_kernel.HEAD_DIMS[head_dim],
      static.causal,
    ),
  )
