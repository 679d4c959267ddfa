"""Head groups: what is drawn, from where, and what is said about it."""

import numpy as np
import pytest

from corejax import errors
from corejax import groups
from corejax import heads as heads_lib
from corejax import selection


def _scores(seed=0, n_layers=6, n_heads=8):
  return np.random.default_rng(seed).random((n_layers, n_heads))


def _per_layer(heads, n_layers=6):
  return np.bincount([layer for layer, _ in heads], minlength=n_layers)


def test_the_grid_of_released_and_of_small_models():
  # 7B: 5% of 1024 is 51; 8 x 8: 5% is 3 and 10% is 6; 4 x 4: 5% is 1.
  assert groups.resolve(groups.GRID, 32, 32) == (
    0,
    1,
    3,
    5,
    10,
    20,
    30,
    51,
    102,
  )
  assert groups.fitting(32, 32)[1] == []
  assert groups.fitting(8, 8) == ((0, 1, 3, 5, 6, 10, 20, 30), [])
  assert groups.fitting(4, 4) == ((0, 1, 2, 3, 5), ['10', '20', '30'])


def test_grid_is_sorted_and_each_k_once():
  assert groups.resolve([3, '5%', 3, '0%', '100%', '0.1%'], 4, 10) == (
    0,
    1,
    2,
    3,
    40,
  )


@pytest.mark.parametrize('share', ['5%', '7.5%', '1%', '12.5%', '10%'])
def test_a_share_is_as_many_as_a_selection_takes(share):
  for shape in ((8, 8), (3, 5), (32, 32), (28, 12)):
    expected = selection.Selection.parse(f'top{share}').count(*shape)
    assert groups.resolve([share], *shape) == (expected,)


@pytest.mark.parametrize(
  'text', ['41', '101%', '1e3', '-1', '', '5 %', 'top5%', '٣', '999999999%']
)
def test_bad_k_is_refused_in_one_line(text):
  with pytest.raises(errors.UserError) as caught:
    groups.resolve([text], 4, 10)
  assert '\n' not in str(caught.value) and f'{text}' in str(caught.value)


def test_ordered_groups_are_those_of_the_ranking():
  score_LN = _scores()
  order = [divmod(x, 8) for x in np.argsort(-score_LN.ravel())]
  for k in (1, 5, 16, 48):
    for name, expected in (
      ('top', order[:k]),
      ('bottom', order[48 - k :]),
      ('median', order[(48 - k) // 2 : (48 - k) // 2 + k]),
    ):
      group = groups.make(name, score_LN, k)
      assert group.heads == heads_lib.HeadSet(expected), (name, k)
      assert len(group.heads) == group.k == k and group.seed is None
    top = groups.make('top', score_LN, k).heads
    rule = selection.Selection('top_k', k)
    assert top == heads_lib.HeadSet.from_mask(rule.mask(score_LN))


def test_ties_break_by_layer_and_head():
  group = groups.make('top', np.ones((2, 3)), 4)
  assert str(group.heads) == '0-0,0-1,0-2,1-0'


def test_heads_without_a_score_are_in_no_group():
  score_LN = _scores()
  score_LN[2] = np.nan
  score_LN[3, :4] = np.inf
  for name in ('top', 'bottom', 'median'):
    heads = groups.make(name, score_LN, 36).heads
    assert not any(np.isnan(score_LN[pair]) for pair in heads)
    assert not any(np.isinf(score_LN[pair]) for pair in heads)
  for name in groups.RANDOM:
    heads = groups.make(name, score_LN, 18, seed=3).heads
    assert len(heads) == 18
    assert np.isfinite([score_LN[pair] for pair in heads]).all()
  with pytest.raises(errors.UserError, match='36 heads with a score'):
    groups.make('top', score_LN, 37)


def test_a_control_that_is_none_says_so():
  score_LN = _scores(1, 2, 8)
  assert groups.make('bottom', score_LN, 8).note == ''
  assert groups.make('bottom', score_LN, 10).n_top == 4
  assert 'in the top 10' in groups.make('bottom', score_LN, 10).note
  assert groups.make('median', score_LN, 6).n_top == 1
  assert groups.make('top', score_LN, 6).note == ''


@pytest.mark.parametrize('name', groups.RANDOM)
def test_random_sets_avoid_the_top_and_repeat_by_seed(name):
  score_LN = _scores(2)
  for k in (1, 4, 12, 24):
    top = groups.make('top', score_LN, k).heads
    drawn = [groups.make(name, score_LN, k, seed) for seed in range(10)]
    for group in drawn:
      assert len(group.heads) == k and group.n_top == 0
      assert not group.heads & top
    assert drawn == [groups.make(name, score_LN, k, s) for s in range(10)]
    if 1 < k < 24:
      assert len({group.heads for group in drawn}) == 10


def test_the_two_random_groups_of_a_seed_are_not_the_same():
  score_LN = _scores(2)
  random, matched = (
    groups.make(name, score_LN, 10, 0).heads for name in groups.RANDOM
  )
  assert random != matched


def test_uniform_draws_are_uniform():
  score_LN = _scores(3, 3, 4)
  times_LN = np.zeros((3, 4))
  for seed in range(3000):
    for pair in groups.make('random', score_LN, 3, seed).heads:
      times_LN[pair] += 1
  top_LN = groups.make('top', score_LN, 3).heads.mask(3, 4)
  assert not times_LN[top_LN].any()
  # Binomial of 3000 at 1/3: sd 26.
  assert abs(times_LN[~top_LN] - 1000).max() < 110


def test_layers_match_the_tops():
  for seed in range(20):
    score_LN = _scores(seed)
    group = groups.make('layer_matched', score_LN, 9, seed)
    top = groups.make('top', score_LN, 9).heads
    if (_per_layer(top) <= 4).all():
      assert group.moved == () and group.note == ''
      np.testing.assert_array_equal(_per_layer(group.heads), _per_layer(top))


def test_draws_within_a_layer_are_uniform():
  score_LN = _scores(3, 2, 6)
  score_LN[0, :2] += 9
  times_N = np.zeros(6)
  for seed in range(3000):
    group = groups.make('layer_matched', score_LN, 2, seed)
    for layer, head in group.heads:
      assert layer == 0
      times_N[head] += 1
  assert not times_N[:2].any()
  assert abs(times_N[2:] - 1500).max() < 140  # sd 27


def test_what_a_layer_lacks_comes_from_the_nearest():
  """The top takes 6 of layer 2, 7 of layer 3 and all of layer 5."""
  top_LN = np.zeros((6, 8), bool)
  top_LN[2, :6] = top_LN[3, :7] = top_LN[5] = True
  top = heads_lib.HeadSet.from_mask(top_LN)
  group = groups.control('layer_matched', top, np.ones((6, 8), bool), 0)
  # Layer 2 has 2 of 6: 4 more from layer 1 (as near as 3, which has none
  # left). Layer 3 has 1 of 7: 6 more, all from layer 4. Layer 5 has none of 8:
  # the 2 left in layer 4, then 4 of layer 1, then 2 of layer 0.
  assert group.moved == ((2, 1, 4), (3, 4, 6), (5, 4, 2), (5, 1, 4), (5, 0, 2))
  assert _per_layer(group.heads).tolist() == [2, 8, 2, 1, 8, 0]
  assert len(group.heads) == 21 and not group.heads & top
  assert group.note.startswith('layers do not match: 4 of layer 2 in 1, ')


def test_a_layers_own_need_comes_before_its_neighbours():
  top_LN = np.zeros((2, 4), bool)
  top_LN[0, :3] = top_LN[1, :1] = True
  group = groups.control(
    'layer_matched', heads_lib.HeadSet.from_mask(top_LN), np.ones((2, 4)), 5
  )
  assert _per_layer(group.heads, 2).tolist() == [1, 3]
  assert group.moved == ((0, 1, 2),)


def test_controls_of_any_set_of_heads():
  top = heads_lib.HeadSet.parse('0-1,3-2,3-3')
  usable_LN = np.ones((4, 4), bool)
  for name in groups.RANDOM:
    assert not groups.control(name, top, usable_LN, 0).heads & top
  with pytest.raises(errors.UserError, match='layer 3'):
    groups.control('random', top, usable_LN[:3], 0)


@pytest.mark.parametrize('name', groups.RANDOM)
def test_too_few_heads_outside_the_top(name):
  score_LN = _scores(0, 2, 5)
  assert len(groups.make(name, score_LN, 5, 0).heads) == 5
  with pytest.raises(errors.UserError, match='there are 4 heads.*at most 5'):
    groups.make(name, score_LN, 6, 0)


def test_unknown_group_and_misplaced_seed():
  score_LN = _scores()
  with pytest.raises(errors.UserError, match="'tip' is unknown"):
    groups.make('tip', score_LN, 3)
  with pytest.raises(ValueError, match='seed'):
    groups.make('random', score_LN, 3)
  with pytest.raises(ValueError, match='seed'):
    groups.make('top', score_LN, 3, 1)
  with pytest.raises(errors.UserError, match='give 0 to 48'):
    groups.make('top', score_LN, 49)


def test_a_plan_holds_every_group_once():
  found = groups.plan(_scores(), (0, 1, 5), range(10))
  keys = [(g.name, g.k, g.seed) for g in found]
  assert len(keys) == len(set(keys)) == 1 + 2 * (3 + 2 * 10)
  assert keys[0] == ('top', 0, None) and not found[0].heads
  assert ('layer_matched', 5, 9) in keys


def test_a_given_set_comes_with_its_controls():
  given = heads_lib.HeadSet.parse('0-1,3-2,3-3')
  intact, own, *drawn = groups.plan_given(given, 4, 4, range(3))
  assert (intact.k, len(intact.heads)) == (0, 0)
  assert (own.name, own.heads, own.note) == (groups.GIVEN, given, '')
  assert [(g.name, g.seed) for g in drawn] == [
    (name, seed) for name in groups.RANDOM for seed in range(3)
  ]
  assert all(len(g.heads) == 3 and not g.heads & given for g in drawn)
