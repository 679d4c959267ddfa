"""The planted decoder's weights, taken by themselves."""

import numpy as np
import pytest

from corejax.models.organisms import planted
from corejax.models.organisms import planted_space as space


def test_an_answer_opens_for_what_is_asked_and_for_its_argument_alone():
  gate = planted.weights(0)[
    'language_model.model.layers.3.mlp.gate_proj.weight'
  ]
  gate = gate[gate.any(1)]  # the units that are used
  for asked, own in (
    (space.READ_NOUN[0], space.WORD_GLYPH[3]),
    (space.READ_NOUN[0], space.BACKGROUND),
    (space.READ_NOUN[1], space.WORD_COLOUR[7]),
    (space.READ_VERB[1], space.WORD_GLYPH[0]),
    (space.READ_VERB[2], space.WORD_PAGE[2]),
  ):
    for copies, argument in np.ndindex(3, 2):
      row = np.zeros(space.SIZE)
      row[space.ONE] = space.ONE_HEIGHT
      row[asked], row[own] = copies, argument
      said = (asked, own, copies, argument)
      if copies and argument:
        assert (gate @ row).max() == pytest.approx(16 * copies - 8), said
      else:
        assert (gate @ row).max() < -7.99, said
