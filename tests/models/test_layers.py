"""Norms, projections and activations against torch, in both dtypes."""

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.models.llama import modeling_llama

from corejax import errors
from corejax.models import layers
from helpers import torch_only

torch = torch_only.torch


def _norm_inputs(dtype: str):
  """A row far from zero and one of large numbers: bad for narrow sums."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((64, 96)).astype(np.float32)
  x[0] += 30
  x[1] *= 200
  weight = rng.uniform(0.5, 1.6, 96).astype(np.float32)
  bias = rng.standard_normal(96).astype(np.float32)
  narrow = [
    torch.tensor(a).to(getattr(torch, dtype)) for a in (x, weight, bias)
  ]
  ours = [jnp.asarray(a.float().numpy(), dtype) for a in narrow]
  return narrow, ours


def _check(ours, theirs, dtype: str):
  """Equal but for the last bit of a few values."""
  ours = np.asarray(ours.astype(jnp.float32))
  theirs = theirs.detach().float().numpy()
  if dtype == 'float32':
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
    return
  np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=1e-6)
  assert (ours == theirs).mean() > 0.98


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rms_norm(dtype):
  (x, weight, _), (x_, weight_, _) = _norm_inputs(dtype)
  theirs = modeling_llama.LlamaRMSNorm(96, eps=1e-5)
  theirs.weight.data = weight
  ours = layers.Norm(96, dtype=jnp.dtype(dtype))
  ours.weight[...] = weight_
  found = layers.rms_norm(ours, x_, 1e-5)
  assert found.dtype == jnp.dtype(dtype)
  _check(found, theirs(x), dtype)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_layer_norm(dtype):
  (x, weight, bias), (x_, weight_, bias_) = _norm_inputs(dtype)
  theirs = torch.nn.functional.layer_norm(x, (96,), weight, bias, 1e-6)
  ours = layers.Norm(96, bias=True, dtype=jnp.dtype(dtype))
  ours.weight[...], ours.bias[...] = weight_, bias_
  found = layers.layer_norm(ours, x_, 1e-6)
  assert found.dtype == jnp.dtype(dtype)
  _check(found, theirs, dtype)


@pytest.mark.parametrize('name', layers.ACTIVATIONS)
def test_activations(name):
  x = np.linspace(-6, 6, 301, dtype=np.float32)
  theirs = transformers.activations.ACT2FN[name](torch.tensor(x)).numpy()
  ours = layers.ACTIVATIONS[name](jnp.asarray(x))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_activations_differ():
  """Close relatives, told apart by more than the tolerance above."""
  x = jnp.linspace(-3, 3, 61)
  exact, tanh, quick = (
    layers.ACTIVATIONS[name](x)
    for name in ('gelu', 'gelu_pytorch_tanh', 'quick_gelu')
  )
  assert 1e-4 < np.abs(exact - tanh).max() < 1e-3 < np.abs(exact - quick).max()


def test_unknown_activation():
  with pytest.raises(errors.UserError, match="there: activation 'mish'"):
    layers.check_activation('mish', 'there')
  assert layers.check_activation('silu', 'there') == 'silu'


def test_bias_is_added_to_the_outputs():
  linear = layers.Linear((2, 3), (4,), bias=True, dtype=jnp.dtype('float32'))
  linear.bias[...] = jnp.arange(6.0).reshape(2, 3)
  out = layers.project(linear, jnp.zeros((5, 4)), 'TD,NHD->TNH')
  np.testing.assert_array_equal(out[3], np.arange(6.0).reshape(2, 3))
