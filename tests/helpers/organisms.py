"""Untrained organisms, made in a moment."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from corejax.models.organisms import trained


def untrained(key: str, seed: int = 0) -> Any:
  """As trained.new, of size tiny: jax would compile a program a shape."""
  rng = np.random.default_rng(seed)

  def normal(_, shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))

  with mock.patch.object(jax.random, 'normal', normal):
    return trained.new(trained.SIZES['tiny'], seed, key)
