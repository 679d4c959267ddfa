"""VisualLayout: cover and evidence of boxes on hand-made cells."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from corejax import errors
from corejax import layout as layout_lib
from corejax.data import example as example_lib

Box = example_lib.Box


def _grid(cells=4, side=80, n_media=1, base=False):
  """cells x cells tokens a picture of side x side pixels, row by row.

  With `base`, one token that shows the whole picture goes first.
  """
  step = side / cells
  y, x = np.divmod(np.arange(cells**2), cells)
  cell = np.stack([x, y, x + 1, y + 1], 1) * step
  if base:
    cell = np.concatenate([[[0, 0, side, side]], cell])
  return layout_lib.VisualLayout(
    media_I=np.repeat(np.arange(n_media), len(cell)),
    cell_IW=np.tile(cell, (n_media, 1)).astype(np.float64),
    size_M2=np.full((n_media, 2), side, np.int32),
    base_I=np.tile(np.arange(len(cell)) < base, n_media),
  )


def test_a_box_along_cell_edges_is_those_cells():
  layout = _grid()
  box = Box(0, 0.25, 0.5, 0.75, 1.0)
  assert layout.tokens([box]).nonzero()[0].tolist() == [9, 10, 13, 14]
  assert layout.cover(box).tolist() == [0] * 9 + [1, 1, 0, 0, 1, 1, 0]


def test_edges_survive_rounding():
  for cells in (3, 7, 9, 24):
    layout = _grid(cells, side=cells * 14)
    for x in range(cells):
      box = Box(0, x / cells, 1 / cells, (x + 1) / cells, 2 / cells)
      assert layout.tokens([box]).nonzero()[0].tolist() == [cells + x]


def test_half_a_cell_is_evidence_and_less_is_not():
  layout = _grid()
  half = Box(0, 0.0, 0.0, 0.375, 0.25)  # one cell and half of the next
  assert layout.tokens([half]).nonzero()[0].tolist() == [0, 1]
  less = Box(0, 0.0, 0.0, 0.37, 0.25)
  assert layout.tokens([less]).nonzero()[0].tolist() == [0]


def test_a_small_box_is_its_best_covered_token():
  layout = _grid()
  box = Box(0, 0.20, 0.26, 0.29, 0.30)  # 0.05 in one column, 0.04 in the next
  assert layout.tokens([box]).nonzero()[0].tolist() == [4]
  np.testing.assert_allclose(layout.cover(box)[[4, 5]], [0.032, 0.0256])


def test_the_fallback_is_per_box():
  layout = _grid()
  large, small = Box(0, 0, 0, 0.5, 0.25), Box(0, 0.9, 0.9, 0.95, 0.95)
  assert layout.tokens([large, small]).nonzero()[0].tolist() == [0, 1, 15]


def test_a_box_lies_on_its_own_picture():
  layout = _grid(n_media=3)
  chosen = layout.tokens([Box(1, 0, 0, 0.25, 0.25), Box(2, 0, 0, 0.25, 0.25)])
  assert chosen.nonzero()[0].tolist() == [16, 32]


def test_base_tiles_can_be_left_out():
  layout = _grid(base=True)
  box = Box(0, 0, 0, 1, 0.5)
  assert layout.tokens([box]).nonzero()[0].tolist() == list(range(9))
  assert layout.tokens([box], False).nonzero()[0].tolist() == list(range(1, 9))
  small = Box(0, 0.1, 0.1, 0.11, 0.11)
  assert layout.tokens([small]).nonzero()[0].tolist() == [1]


def test_a_cropped_box_is_rejected():
  grid = _grid()
  layout = layout_lib.VisualLayout(  # the picture is wider than what is shown
    grid.media_I,
    grid.cell_IW + [20, 0, 20, 0],
    grid.size_M2 + [40, 0],
    grid.base_I,
  )
  for box in (Box(0, 0, 0, 20 / 120, 1), Box(0, 100 / 120, 0, 1, 1)):
    assert not layout.cover(box).any()
    with pytest.raises(errors.Rejected, match='media 0') as caught:
      layout.tokens([box])
    assert caught.value.reason is errors.Reason.EVIDENCE_CROPPED
  partly = Box(0, 0, 0, 40 / 120, 0.25)
  assert layout.tokens([partly]).nonzero()[0].tolist() == [0]


def test_no_token_is_a_rejection_not_a_crash():
  empty = layout_lib.VisualLayout(
    np.zeros(0, int), np.zeros((0, 4)), np.array([[4, 4]]), np.zeros(0, bool)
  )
  with pytest.raises(errors.Rejected):
    empty.tokens([Box(0, 0, 0, 1, 1)])


def test_padding_counts_as_outside():
  grid = _grid()
  layout = layout_lib.VisualLayout(  # rows above and below are padding
    grid.media_I,
    grid.cell_IW - [0, 20, 0, 20],
    grid.size_M2 - [0, 40],
    grid.base_I,
  )
  whole = layout.tokens([Box(0, 0, 0, 1, 1)])
  assert whole.nonzero()[0].tolist() == list(range(4, 12))


_SHARE = st.integers(0, 40)


@hypothesis.given(_SHARE, _SHARE, _SHARE, _SHARE)
@hypothesis.settings(deadline=None, max_examples=80, derandomize=True)
def test_cover_counts_pixels(x0, x1, y0, y1):
  hypothesis.assume(x0 < x1 and y0 < y1)
  layout = _grid(cells=4, side=40)
  pixels = np.zeros((40, 40))
  pixels[y0:y1, x0:x1] = 1
  expected = pixels.reshape(4, 10, 4, 10).mean((1, 3)).reshape(16)
  box = Box(0, x0 / 40, y0 / 40, x1 / 40, y1 / 40)
  np.testing.assert_allclose(layout.cover(box), expected, atol=1e-12)


@pytest.mark.parametrize(
  'corners',
  [
    (0.5, 0, 0.5, 1),
    (0.6, 0, 0.5, 1),
    (-0.1, 0, 1, 1),
    (0, 0, 1, 1.01),
    (0, 0, float('nan'), 1),
    (0, 0, float('inf'), 1),
  ],
)
def test_boxes_are_checked_when_made(corners):
  with pytest.raises(errors.Rejected) as caught:
    Box(0, *corners)
  assert caught.value.reason is errors.Reason.BAD_BOX


def test_a_blend_covers_what_its_cells_do():
  """A token of a quarter of one cell and three of the next."""
  plain = np.array([[0.0, 0, 10, 10], [10, 0, 20, 10]])
  layout = layout_lib.VisualLayout(
    media_I=np.zeros(2, np.int32),
    cell_IW=np.array([[7.5, 0, 17.5, 10], [10, 0, 20, 10]]),
    size_M2=np.array([[20, 10]], np.int32),
    base_I=np.zeros(2, bool),
    blend=layout_lib.Blend(
      share_IK=np.array([[0.25, 0.75], [1, 0]]),
      cell_IKW=np.stack([plain, plain[[1, 1]]]),
    ),
  )
  left, middle = (
    example_lib.Box(0, x0, 0, x1, 1) for x0, x1 in ((0, 0.5), (0.25, 0.75))
  )
  np.testing.assert_allclose(layout.cover(left), [0.25, 0])
  np.testing.assert_allclose(layout.cover(middle), [0.5, 0.5])
  assert layout.tokens([left]).tolist() == [True, False]


def test_a_token_may_show_several_frames():
  # Media 0 is a picture, 1 to 3 are a video: 1 and 2 share tokens.
  cell = np.array([[0.0, 0, 10, 10], [10, 0, 20, 10]])
  made = layout_lib.VisualLayout(
    media_I=np.array([0, 0, 1, 1, 3, 3], np.int32),
    cell_IW=np.tile(cell, (3, 1)),
    size_M2=np.array([[20, 10]] * 4, np.int32),
    base_I=np.zeros(6, bool),
    frames_I=np.array([1, 1, 2, 2, 1, 1], np.int32),
  )
  shown = [made.shows(m).nonzero()[0].tolist() for m in range(4)]
  assert shown == [[0, 1], [2, 3], [2, 3], [4, 5]]
  left = [example_lib.Box(m, 0, 0, 0.4, 1) for m in range(4)]
  right = example_lib.Box(2, 0.6, 0, 1, 1)
  found = [made.tokens([box]).nonzero()[0].tolist() for box in left]
  assert found == [[0], [2], [2], [4]]
  # The larger cover counts: neither frame's box takes from the other's.
  assert made.tokens([left[1], right]).nonzero()[0].tolist() == [2, 3]
  np.testing.assert_allclose(made.cover(right), [0, 0, 0, 0.8, 0, 0])
