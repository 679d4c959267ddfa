"""One signature, several implementations, and who serves when.

out = head_sparse_attention(q, k, v, mask, control)      # picks, always works
out = head_sparse_attention(..., implementation='xla')   # this one or an error
model.forward(..., attend=dispatch.attend())             # what a model takes
attend = dispatch.sharded(dispatch.attend(), mesh)       # over heads, batch
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax

from corejax import attention
from corejax import control as control_lib
from corejax import errors
from corejax import masks
from corejax import probe as probe_lib
from corejax.kernels import cudnn
from corejax.kernels import limits
from corejax.kernels import reference
from corejax.kernels import sharding
from corejax.kernels import targets
from corejax.kernels import tpu_pallas
from corejax.kernels import triton
from corejax.kernels import xla

sharded = sharding.sharded


def _serves_all(*args, **options) -> None:
  del args, options


@dataclasses.dataclass(frozen=True)
class Implementation:
  """One way to compute attention.

  Attributes:
    run: (q, k, v, mask, control, *, return_lse) -> out or (out, lse).
    unsupported: (q, k, v, mask, control) -> why it cannot serve this call on
      this machine, or None; with target=, on that one.
    for_target: (target) -> what `run` takes beside, to be compiled for it.
  """

  run: Callable[..., Any]
  unsupported: Callable[..., str | None] = _serves_all
  for_target: Callable[[targets.Target], dict[str, Any]] = lambda _: {}


# In order of preference. `reference` serves every call, so that what comes
# after it is taken by name only (cudnn: its docstring says why).
IMPLEMENTATIONS = {
  'triton': Implementation(
    triton.head_sparse_attention,
    triton.unsupported,
    lambda target: {'compute_capability': target.capability},
  ),
  'tpu_pallas': Implementation(
    tpu_pallas.head_sparse_attention, tpu_pallas.unsupported
  ),
  'xla': Implementation(xla.head_sparse_attention),
  'reference': Implementation(reference.head_sparse_attention),
  'cudnn': Implementation(cudnn.head_sparse_attention, cudnn.unsupported),
}


def _named(name: str) -> Implementation:
  if name not in IMPLEMENTATIONS:
    raise errors.UserError(
      f'attention implementation {name!r} does not exist; choose one of'
      f' {", ".join(IMPLEMENTATIONS)}, or None for the best that serves'
    )
  return IMPLEMENTATIONS[name]


def _refused(
  each: Implementation, call: tuple, target: targets.Target | None
) -> str | None:
  if target is None:
    return each.unsupported(*call)
  return each.unsupported(*call, target=target)


def picked(
  q_BTNH: Any,
  k_BSKH: Any,
  v_BSKH: Any,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  target: targets.Target | None = None,
) -> str:
  """Name of the implementation that None picks for this call, here.

  Args:
    q_BTNH, k_BSKH, v_BSKH: arrays, or shapes and dtypes alone.
    mask, control: as of `head_sparse_attention`.
    target: picks for a call that is compiled for it instead.
  """
  call = (q_BTNH, k_BSKH, v_BSKH, mask, control)
  return next(
    name
    for name, each in IMPLEMENTATIONS.items()
    if _refused(each, call, target) is None
  )


def head_sparse_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.AttnMask,
  control: control_lib.AttendControl | None = None,
  *,
  return_lse: bool = False,
  implementation: str | None = None,
  target: targets.Target | None = None,
):
  """Attention of one layer, each head within its own window and sinks.

  Args:
    q_BTNH: queries, after RoPE and norms; float32, bfloat16 or float16.
    k_BSKH: keys; query head n reads kv head n // (N / K).
    v_BSKH: values.
    mask: who may read whom.
    control: one layer's control; None is dense.
    return_lse: also return the log-sum-exp of the scores.
    implementation: a name in IMPLEMENTATIONS; None picks one that serves.
    target: what it is compiled for; None is this machine.

  Returns:
    out_BTNH in v's dtype, or (out_BTNH, lse_BNT) with lse_BNT float32, natural
    logarithm, -inf at rows that may read nothing (their output is 0).

  Raises:
    NotImplementedError: the named implementation cannot serve this call.
    UserError: no such implementation, or arrays that do not belong together.
  """
  limits.check(q_BTNH, k_BSKH, v_BSKH, mask, control)
  call = (q_BTNH, k_BSKH, v_BSKH, mask, control)
  if implementation is not None:
    chosen = _named(implementation)
    reason = _refused(chosen, call, target)
    if reason is not None:
      raise NotImplementedError(f'attention {implementation!r}: {reason}')
  else:
    chosen = IMPLEMENTATIONS[picked(*call, target)]
  options = {} if target is None else chosen.for_target(target)
  return chosen.run(*call, return_lse=return_lse, **options)


@functools.cache  # one function a name: jit knows a static argument by identity
def attend(
  implementation: str | None = None, target: targets.Target | None = None
) -> attention.Attend:
  """The function that a model takes (corejax.attention), by a kernel.

  Args:
    implementation, target: as of `head_sparse_attention`.

  Returns:
    attend(q, k, v, mask, control=None, probe=None) -> AttendOut; without a
    probe nothing is measured, with one only its rows' scores are stored.

  Raises:
    UserError: no such implementation.
  """
  if implementation is not None:
    _named(implementation)

  def kernel(q_BTNH, k_BSKH, v_BSKH, mask, control=None, probe=None):
    out_BTNH = head_sparse_attention(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      mask,
      control,
      implementation=implementation,
      target=target,
    )
    measured = None
    if probe is not None:
      measured = probe_lib.measure(q_BTNH, k_BSKH, mask, control, probe)
    return attention.AttendOut(out_BTNH, measured)

  return kernel
