"""Answers that are generated in `ablate`, on random models.

No such model says what is scored, so what a cut does shows in the tokens alone.
"""

from typing import Any

import numpy as np
import pytest

from corejax.experiments import sweep_steps

# Settings of `ablate`: half of the heads of a tiny model with 3 x 4.
CUT: dict[str, Any] = dict(
  heads='0-0,0-1,1-0,1-1,2-0,2-1',
  answers='generated',
  max_tokens=2,
  batch_size=2,
  draws=1,
)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
  """A list that gets what is generated: of each batch, each set of heads."""
  made, generate = [], sweep_steps.generate

  def noting(*args, **options):
    tokens_BA = generate(*args, **options)
    made.append(np.asarray(tokens_BA).tobytes())
    return tokens_BA

  monkeypatch.setattr(sweep_steps, 'generate', noting)
  return made
