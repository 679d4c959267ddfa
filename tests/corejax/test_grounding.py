"""Boxes in words, IoU in space and time, against values worked by hand."""

import pytest

from corejax import grounding

_SIZE = (200, 100)


@pytest.mark.parametrize(
  'text, convention, expected',
  [
    ('[0.1, 0.2, 0.3, 0.4]', 'share', (0.1, 0.2, 0.3, 0.4)),
    ('[0.1, 0.2, 0.3, 0.4]', None, (0.1, 0.2, 0.3, 0.4)),
    # 200x100 in a square of 200: 50 rows above and below.
    ('[0.1, 0.25, 0.3, 0.75]', 'square', (0.1, 0.0, 0.3, 1.0)),
    ('(100,200),(300,400)', 'thousand', (0.1, 0.2, 0.3, 0.4)),
    ('(100,200),(300,400)', None, (0.1, 0.2, 0.3, 0.4)),
    ('[100,200,300,400]', None, (0.1, 0.2, 0.3, 0.4)),
    ('20 20 60 40', 'pixel', (0.1, 0.2, 0.3, 0.4)),
    ('{"bbox_2d": [20, 20, 60, 40]}', 'resized', (0.1, 0.2, 0.3, 0.4)),
    ('{"box 2": [20, 20, 60, 40]}', 'resized', None),  # a fifth number
    ('<box>20 20 60</box>', 'pixel', None),
    ('0.3 0.2 0.1 0.4', 'share', None),  # inverted
    ('-0.3 0.2 0.1 0.4', 'share', None),
    ('0 0 1 1', 'thousand', (0, 0, 0.001, 0.001)),
    ('9' * 400 + ' 1 1 1', 'share', None),
    ('', None, None),
  ],
)
def test_reading_boxes(text, convention, expected):
  found = grounding.read_box(text, convention, _SIZE)
  assert found == (expected and pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize('convention', ['pixel', 'square', 'resized'])
def test_a_size_is_needed(convention):
  with pytest.raises(ValueError, match='size of the picture is needed'):
    grounding.read_box('1 1 2 2', convention)


@pytest.mark.parametrize('convention', grounding.CONVENTIONS)
@pytest.mark.parametrize('size', [(200, 100), (100, 300), (64, 64)])
def test_what_is_written_is_read(convention, size):
  corners = (0.125, 0.25, 0.5, 0.875)
  text = grounding.write_box(corners, convention, size)
  found = grounding.read_box(text, convention, size)
  assert found == pytest.approx(corners, abs=0.02)


@pytest.mark.parametrize(
  'a, b, iou, overlap',
  [
    ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
    ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 4),
    ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16, 1),
    ((0, 0, 1, 1), (1, 0, 2, 1), 0, 0),  # they touch
    ((0, 0, 1, 1), (5, 5, 6, 6), 0, 0),
    ((0, 0, 1, 2), (0, 0, 2, 1), 1 / 3, 1 / 2),
  ],
)
def test_two_boxes(a, b, iou, overlap):
  for one, other in ((a, b), (b, a)):
    assert grounding.box_iou(one, other) == pytest.approx(iou)
    assert grounding.overlap(one, other) == pytest.approx(overlap)


@pytest.mark.parametrize(
  'a, b, expected',
  [
    ((2, 6), (2, 6), 1),
    ((2, 6), (4, 10), 2 / 8),
    ((2, 6), (3, 4), 1 / 4),
    ((2, 6), (6, 8), 0),
    ((2, 6), (9, 10), 0),
    ((2, 6), (4, 4), 0),
    ((6, 2), (2, 6), 0),
  ],
)
def test_two_spans(a, b, expected):
  assert grounding.t_iou(a, b) == pytest.approx(expected)
  assert grounding.t_iou(b, a) == pytest.approx(expected)


def test_two_tubes():
  whole, half = (0, 0, 1, 1), (0, 0, 0.5, 1)
  true = {3: whole, 4: whole, 5: whole}
  # Frames 4 and 5 are in both, IoU 1/2 and 1; 3 to 6 are in either.
  assert grounding.v_iou({4: half, 5: whole, 6: whole}, true) == 1.5 / 4
  assert grounding.v_iou(true, true) == 1
  assert grounding.v_iou({9: whole}, true) == 0
  assert grounding.v_iou({}, {}) == 0
