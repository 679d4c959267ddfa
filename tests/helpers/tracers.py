"""A white box on black: the tokens it lights must be those called evidence."""

from collections.abc import Callable
import dataclasses

import numpy as np
import pytest

from corejax import errors
from corejax import inputs as inputs_lib
from corejax.data import example as example_lib
from helpers import pictures

BAND = 0.12  # the resize rings around edges by so much


def example(
  media: tuple[bytes, ...],
  question: str = 'What colour is the star',
  answer: str | None = 'red',
  kind: str = 'image',
  clips: tuple[example_lib.Clip, ...] = (),
) -> example_lib.Example:
  """An example without evidence."""
  return example_lib.Example(
    id='test/x/1',
    source='test',
    split='x',
    task='colour',
    media=media,
    question=question,
    answers=(answer,) if answer is not None else (),
    cluster='c',
    kind=kind,
    clips=clips,
  )


@dataclasses.dataclass
class Seen:
  """What a check has come across.

  Attributes:
    cropped: boxes that no token shows.
    shown: boxes that some token shows.
    layouts: numbers of tokens that pictures had.
  """

  cropped: int = 0
  shown: int = 0
  layouts: set[int] = dataclasses.field(default_factory=set)


def check(
  encode: Callable[[example_lib.Example], inputs_lib.Encoded],
  light: Callable[[inputs_lib.Encoded, np.ndarray], np.ndarray],
  *,
  sides: tuple[int, int],
  rounds: int = 60,
  seed: int = 7,
) -> Seen:
  """Random boxes in pictures of random sizes, one picture a prompt.

  Args:
    encode: the processor's.
    light: (encoded, pixel_values of the white box less those of black, per
      channel in units of white) -> brightness [I] of each visual token.
    sides: least and largest side of a picture in pixels.
    rounds: pictures.
    seed: of sizes and boxes.
  """
  rng, seen = np.random.default_rng(seed), Seen()
  for _ in range(rounds):
    width, height = (int(x) for x in rng.integers(*sides, 2))
    x0, x1 = sorted(int(x) for x in rng.choice(width + 1, 2, replace=False))
    y0, y1 = sorted(int(y) for y in rng.choice(height + 1, 2, replace=False))
    values = []
    for corners in ((0, 0, 0, 0), (x0, y0, x1, y1)):
      pixels = pictures.white_box(width, height, corners)
      encoded = encode(example((pictures.png(pixels),)))
      values.append(encoded.vision['pixel_values'].astype(np.float64))
    light_I = light(encoded, values[1] - values[0])
    box = example_lib.Box(0, x0 / width, y0 / height, x1 / width, y1 / height)
    cover_I = encoded.layout.cover(box)
    assert light_I.shape == cover_I.shape
    assert np.abs(light_I - cover_I).max() < BAND, (width, height, box)
    seen.layouts.add(len(cover_I))
    if cover_I.max() <= 0:
      seen.cropped += 1
      with pytest.raises(errors.Rejected):
        encoded.layout.tokens([box])
      continue
    seen.shown += 1
    for include_base in (True, False):
      counted_I = include_base | ~encoded.layout.base_I
      light_J, cover_J = light_I[counted_I], cover_I[counted_I]
      if cover_J.max() <= 0:
        continue
      evidence_I = encoded.layout.tokens([box], include_base)
      assert not evidence_I[~counted_I].any()
      evidence_J = evidence_I[counted_I]
      if light_J.max() > 0.5 + BAND:
        assert evidence_J[light_J > 0.5 + BAND].all()
        assert not evidence_J[light_J < 0.5 - BAND].any()
      elif light_J.max() < 0.5 - BAND:
        assert evidence_J.sum() == 1
        assert light_J[evidence_J] > light_J.max() - BAND
  return seen
