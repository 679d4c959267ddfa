"""Floating point operations of a traced program: its matrix products.

    product [m, k] x [k, n]     2 m k n
    scan                        times its length
    attention                   of the pairs that its mask lets see

XLA's own count takes a loop's body once and a kernel for nothing. Counted here
is the trace itself, with `counted` for its attention, so that a kernel's tiles
(which cover more pairs) do not matter. Everything that is no product is left
out: it is less than a hundredth in a model worth asking about.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from corejax import attention
from corejax import probe as probe_lib

_CAUSAL, _FULL = 'counted_causal', 'counted_full'
# Loops whose length no trace knows; none of ours holds a product, but for an
# attention's, which `counted` takes the place of.
_NO_PRODUCTS = frozenset({'while'})


def _stored(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array):
  """Attention with its scores: only ever traced."""
  batch, length, n_heads, head_dim = q_BTNH.shape
  q = q_BTNH.reshape(batch, length, k_BSKH.shape[2], -1, head_dim)
  scores = jnp.einsum('BTKGH,BSKH->BKGTS', q, k_BSKH)
  out = jnp.einsum('BKGTS,BSKH->BTKGH', scores, v_BSKH)
  return out.reshape(batch, length, n_heads, head_dim)


def counted(q_BTNH, k_BSKH, v_BSKH, mask, control=None, probe=None):
  """An attend (corejax.attention) whose products `of` recognises."""

  def named(q, k, v):
    return _stored(q, k, v)

  named.__name__ = _CAUSAL if mask.causal else _FULL
  out_BTNH = jax.jit(named)(q_BTNH, k_BSKH, v_BSKH)
  measured = None
  if probe is not None:
    measured = probe_lib.measure(q_BTNH, k_BSKH, mask, control, probe)
  return attention.AttendOut(out_BTNH.astype(v_BSKH.dtype), measured)


def of(jaxpr: Any) -> float:
  """FLOPs of a (closed) jaxpr.

  Causal attention counts the pairs on and below the diagonal; a window or the
  padding of a batch counts as if it were seen.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (lhs, _), _ = params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    summed = math.prod(shape[axis] for axis in lhs)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * summed
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    out_channels = kernel[params['dimension_numbers'].rhs_spec[0]]
    per_value = math.prod(kernel) // out_channels
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * per_value
  if name == 'cond':
    return max(map(of, params['branches']))
  if name == 'scan':
    return params['length'] * of(params['jaxpr'])
  if name in _NO_PRODUCTS:
    if of(params['body_jaxpr']):
      raise ValueError('flops: a loop of unknown length holds products')
    return 0.0
  inner = sum(of(p) for p in params.values() if hasattr(p, 'eqns'))
  if params.get('name') == _CAUSAL:
    length, n_keys = (x.aval.shape[1] for x in eqn.invars[:2])
    # Row t of T sees the keys up to its own place, the last row all of them.
    seen = length * n_keys - length * (length - 1) / 2
    return inner * seen / (length * n_keys)
  return inner
