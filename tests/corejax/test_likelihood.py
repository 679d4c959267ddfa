"""Forced answers on logits whose probabilities are known."""

import jax
import jax.numpy as jnp
import numpy as np

from corejax import likelihood


def test_by_hand():
  p_BAV = np.array(
    [
      [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]],
      [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]],
      [[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]],
      [[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]],
    ]
  )
  # A constant per row changes no probability.
  logits_BAV = jnp.asarray(np.log(p_BAV) + [[[5.0], [-3.0]]], jnp.float32)
  answer_BA = jnp.array([[0, 2], [0, 1], [1, -1], [-1, -1]])
  found = jax.jit(likelihood.forced)(logits_BAV, answer_BA)
  np.testing.assert_array_equal(found.correct_B, [True, False, True, True])
  np.testing.assert_allclose(
    found.logprob_B,
    [np.log(0.7 * 0.6), np.log(0.7 * 0.3), np.log(0.5), 0.0],
    rtol=1e-6,
  )


def test_half_precision_logits_are_summed_in_float32():
  logits_BAV = jnp.zeros((1, 64, 512), jnp.bfloat16)
  found = likelihood.forced(logits_BAV, jnp.zeros((1, 64), jnp.int32))
  assert found.logprob_B.dtype == jnp.float32
  np.testing.assert_allclose(found.logprob_B, -64 * np.log(512), rtol=1e-5)
