"""The few pieces that every port is made of.

A module here is a named tree of parameters; what it computes is a pure
function beside it. Weights keep the axis order of the HF file (outputs first,
only split into heads), so that loading is a reshape and never a transpose.
"""

from collections.abc import Callable, Mapping
import functools
import types

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import errors

# torch's names (transformers.activations) -> what they compute.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = (
  types.MappingProxyType(
    {
      'gelu': functools.partial(jax.nn.gelu, approximate=False),
      'gelu_pytorch_tanh': functools.partial(jax.nn.gelu, approximate=True),
      'gelu_new': functools.partial(jax.nn.gelu, approximate=True),
      'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
      'silu': jax.nn.silu,
      'relu': jax.nn.relu,
    }
  )
)


def check_activation(name: str, where: str) -> str:
  """The name itself.

  Raises:
    UserError: there is no such activation here.
  """
  if name not in ACTIVATIONS:
    raise errors.UserError(
      f'{where}: activation {name!r} is not supported; supported are '
      f'{", ".join(ACTIVATIONS)}'
    )
  return name


class Linear(nnx.Module):
  """Parameters of y = x W^T + b.

  Attributes:
    weight: [*stack, *out, *in].
    bias: [*stack, *out] or None.
  """

  def __init__(
    self,
    out: tuple[int, ...],
    inp: tuple[int, ...],
    *,
    stack: tuple[int, ...] = (),
    bias: bool = False,
    dtype: jnp.dtype,
  ):
    self.weight = nnx.Param(jnp.zeros((*stack, *out, *inp), dtype))
    self.bias = nnx.Param(jnp.zeros((*stack, *out), dtype)) if bias else None


def project(linear: Linear, x: jax.Array, spec: str) -> jax.Array:
  """einsum(spec, x, weight) + bias, in the dtype of x.

  Args:
    linear: the parameters, without stack axes.
    x: the input.
    spec: such as 'BTD,NHD->BTNH'; the outputs must come last, as the bias is
      added to the trailing axes.
  """
  y = _einsum(spec, x, linear.weight[...])
  return y if linear.bias is None else y + linear.bias[...]


def _einsum(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
  """jnp.einsum; with several output axes as a product of two matrices.

  Given the heads as an axis of its own, XLA on CPU copies the weight into
  another order in every layer of every call.
  """
  terms, result = spec.split('->')
  x_axes, weight_axes = terms.split(',')
  if (x_axes[-1], result) != (weight_axes[-1], x_axes[:-1] + weight_axes[:-1]):
    return jnp.einsum(spec, x, weight)
  flat = weight.reshape(-1, weight.shape[-1])
  y = jnp.einsum('...i,oi->...o', x, flat)
  return y.reshape(*x.shape[:-1], *weight.shape[:-1])


class Norm(nnx.Module):
  """Parameters of a norm: weight and, for a LayerNorm, bias; [*stack, size]."""

  def __init__(
    self,
    size: int,
    *,
    stack: tuple[int, ...] = (),
    bias: bool = False,
    dtype: jnp.dtype,
  ):
    self.weight = nnx.Param(jnp.ones((*stack, size), dtype))
    self.bias = nnx.Param(jnp.zeros((*stack, size), dtype)) if bias else None


def rms_norm(norm: Norm, x: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * weight over the last axis.

  Float32 inside, rounded to x's dtype before the weight is applied, in the
  order of HF's LlamaRMSNorm.
  """
  wide = x.astype(jnp.float32)
  wide = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + eps)
  return norm.weight[...] * wide.astype(x.dtype)


def layer_norm(norm: Norm, x: jax.Array, eps: float) -> jax.Array:
  """(x - mean) / std * weight + bias over the last axis, float32 inside."""
  wide = x.astype(jnp.float32)
  wide = wide - wide.mean(-1, keepdims=True)
  wide = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + eps)
  wide = wide * norm.weight[...].astype(jnp.float32)
  assert norm.bias is not None
  return (wide + norm.bias[...].astype(jnp.float32)).astype(x.dtype)


def add_deep(
  x_BTD: jax.Array, deep_XBTD: jax.Array | None, layer: jax.Array
) -> jax.Array:
  """DeepStack: what a layer writes, with its own share of visual features.

  Args:
    x_BTD: what the layer writes.
    deep_XBTD: of the first X layers; 0 at rows that are not visual. None adds
      nothing.
    layer: int32, the layer's number; traced.
  """
  if deep_XBTD is None:
    return x_BTD
  n_deep = deep_XBTD.shape[0]
  own_BTD = deep_XBTD[jnp.minimum(layer, n_deep - 1)]
  return x_BTD + jnp.where(layer < n_deep, own_BTD, 0)
