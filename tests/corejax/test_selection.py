"""Selections: their text, how many heads, and which."""

import numpy as np
import pytest

from corejax import errors
from corejax import selection


def test_only_finite_scores_are_selected():
  score = np.full((2, 4), np.nan)
  score[0, 1], score[1, 0], score[1, 3] = 0.3, 0.1, 0.2
  score[0, 2] = np.inf
  take = selection.Selection.parse
  masks = {
    'top5': {(0, 1), (1, 0), (1, 3)},
    'top2': {(0, 1), (1, 3)},
    'bottom2': {(1, 0), (1, 3)},
    'bottom100%': {(0, 1), (1, 0), (1, 3)},
    'per_layer2': {(0, 1), (1, 0), (1, 3)},
  }
  for rule, expected in masks.items():
    mask = take(rule).mask(score)
    assert set(zip(*np.nonzero(mask))) == expected, rule
    # A stack of scores, each with its own number of finite ones.
    stack = take(rule).mask(np.stack([score, np.nan_to_num(score)]))
    np.testing.assert_array_equal(stack[0], mask)
    if rule != 'per_layer2':
      assert stack[1].sum() == take(rule).count(2, 4)
  q_LN = np.zeros((2, 4))
  assert take('fdr0.01').mask(score, q_LN).sum() == 3


@pytest.mark.parametrize(
  'text',
  [
    'top5%',
    'top30',
    'bottom5%',
    'bottom30',
    'per_layer2',
    'fdr0.01',
    'top2.5%',
  ],
)
def test_selection_text_round_trip(text):
  assert str(selection.Selection.parse(f' {text} ')) == text


@pytest.mark.parametrize(
  'text',
  [
    *('', 'top', 'top0', 'top0%', 'top101%', 'top-3', 'top5 %', 'best5'),
    *('fdr0', 'fdr2', 'fdr', 'fdr1e-3', 'topnan%', 'top1.5', 'per_layer0'),
  ],
)
def test_selections_that_are_none(text):
  with pytest.raises(errors.UserError, match='top5%, top30'):
    selection.Selection.parse(text)


@pytest.mark.parametrize(
  'fraction, total, count',
  [
    ('5%', 1024, 51),
    ('5%', 32, 2),
    ('5%', 8, 1),
    ('50%', 3, 2),
    ('100%', 9, 9),
  ],
)
def test_fractions_round_to_the_nearest(fraction, total, count):
  assert selection.Selection.parse(f'top{fraction}').count(1, total) == count


def test_too_many_heads():
  with pytest.raises(errors.UserError, match='top13: there are 12 heads'):
    selection.Selection.parse('top13').count(3, 4)
  with pytest.raises(errors.UserError, match='4 heads in a layer'):
    selection.Selection.parse('per_layer5').count(3, 4)
