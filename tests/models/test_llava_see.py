"""Pictures apart from text: `see`, and a forward that is given its features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax.models.llava import modeling
from helpers import tiny_llava


@pytest.fixture(scope='module')
def model():
  return tiny_llava.build(tiny_llava.config())


def two():
  image = tiny_llava.IMAGE
  return tiny_llava.batch(
    tiny_llava.config(), [[2, image, 5], [image, 3, image, 4]]
  )


def test_a_forward_with_features_equals_one_with_pixels(model):
  inputs = two()
  calls = []

  def counted(*args, **kwargs):
    calls.append(args)
    return attention.reference(*args, **kwargs)

  expected = modeling.forward(model, inputs, tower_attend=counted)
  assert calls
  calls.clear()
  features_MID = modeling.see(model, inputs.vision)
  n_pictures = len(inputs.vision['pixel_values'])
  assert features_MID.shape == (n_pictures, 9, 32)
  given = dataclasses.replace(
    inputs, vision={}, features_ID=features_MID.reshape(-1, 32)
  )
  out = modeling.forward(model, given, tower_attend=counted)
  assert not calls  # the tower was not run again
  np.testing.assert_array_equal(out.logits_BPV, expected.logits_BPV)


def test_features_win_over_pixels(model):
  inputs = two()
  plain = modeling.forward(model, inputs).logits_BPV
  zeros_ID = jnp.zeros((9 * len(inputs.vision['pixel_values']), 32))
  given = dataclasses.replace(inputs, features_ID=zeros_ID)
  assert not np.allclose(modeling.forward(model, given).logits_BPV, plain)


def test_gradients_flow_into_the_features(model):
  inputs = two()
  features_ID = modeling.see(model, inputs.vision).reshape(-1, 32)

  def total(features_ID):
    given = dataclasses.replace(inputs, features_ID=features_ID)
    return modeling.forward(model, given).logits_BPV.sum()

  assert float(jnp.abs(jax.grad(total)(features_ID)).max()) > 0
