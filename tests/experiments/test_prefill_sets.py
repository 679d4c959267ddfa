"""Which heads `prefill` keeps dense, and what its flags may say."""

import numpy as np
import pytest

from corejax import errors
from corejax import heads
from corejax.experiments import prefill_kernel
from corejax.experiments import prefill_sets

L, N = 4, 8
SCORE_LN = np.random.default_rng(0).permutation(L * N).reshape(L, N) + 0.0
FRACTIONS = (0.0, 0.02, 0.05, 0.125, 0.5, 1.0)


def _make(names=prefill_sets.NAMES, n_kv_heads=N, fractions=FRACTIONS):
  return prefill_sets.make(names, fractions, n_kv_heads, 2, SCORE_LN)


def test_every_assignment_at_every_budget_the_baseline_first():
  made, left_out = _make()
  assert not left_out
  assert made[0].name == 'all_dense' and len(made[0].heads) == L * N
  assert made[1].name == 'all_sparse' and not len(made[1].heads)
  # .02 and .05 of 32 heads are 1 and 2.
  for k in (1, 2, 4, 16):
    here = [s for s in made if len(s.heads) == k]
    assert [s.name for s in here] == [
      'top',
      *['layer_matched'] * 2,
      *['random'] * 2,
      'bottom',
    ]
    top = here[0].heads
    assert top == heads.HeadSet.from_mask(SCORE_LN >= L * N - k)
    assert here[-1].heads == heads.HeadSet.from_mask(SCORE_LN < k)
    for drawn in here[1:5]:
      assert not len(drawn.heads & top)
      assert drawn.seed in (0, 1)
  assert len(made) == 2 + 4 * 6


def test_key_value_groups_only_where_there_are_any():
  made, left_out = _make(('all_dense', 'kv_top'), 2)
  snapped = [s for s in made if s.name == 'kv_top']
  assert [len(s.heads) for s in snapped] == [4, 16]
  assert all(
    {(layer, 4 * (n // 4) + g) for layer, n in s.heads for g in range(4)}
    == set(s.heads)
    for s in snapped
  )
  assert [line.split(':')[1] for line in left_out] == [
    ' less than a group of 4'
  ] * 2
  assert not [s for s in _make()[0] if s.name == 'kv_top']


def test_the_same_groups_are_not_taken_for_two_draws():
  names = ('all_dense', 'kv_top')
  made, left_out = _make(names, 2, (0.125, 0.2, 0.25))
  assert [len(s.heads) for s in made[1:]] == [4, 8]
  assert left_out == ['kv_top, 6 heads: the same 4 again']


def test_random_sets_need_as_many_others():
  made, left_out = _make(('all_dense', 'random', 'top'), fractions=(0.75,))
  assert [s.name for s in made] == ['all_dense', 'top']
  assert left_out == ['random, 24 heads: outside the top there are 8']


def test_given_heads_have_their_controls():
  given = heads.HeadSet.parse('0-1,3-2')
  made, _ = prefill_sets.make_given(prefill_sets.NAMES, given, L, N, 3)
  assert [s.name for s in made] == [
    'all_dense',
    'all_sparse',
    'given',
    *['random'] * 3,
    *['layer_matched'] * 3,
  ]
  for each in made[-3:]:
    assert [layer for layer, _ in each.heads] == [0, 3]
    assert not len(each.heads & given)


def test_without_draws_it_says_what_is_left_out():
  told = [f'{n}: no draws (--draws=0)' for n in ('layer_matched', 'random')]
  made, left_out = prefill_sets.make(
    prefill_sets.NAMES, (0.125, 0.75), N, 0, SCORE_LN
  )
  assert [s.name for s in made[2:]] == ['top', 'bottom'] * 2
  assert left_out == told
  given = heads.HeadSet((0, n) for n in range(N))
  _, left_out = prefill_sets.make_given(prefill_sets.NAMES, given, 1, N, 0)
  assert left_out == told
  assert not prefill_sets.make(('all_dense', 'top'), (0.1,), N, 0, SCORE_LN)[1]


@pytest.mark.parametrize(
  'length, window, sink',
  [
    (1, 1, 0),
    (78, 7, 0),
    (222, 20, 2),
    (4351, 387, 48),
    (4352, 2048, 128),
    (10**6, 2048, 128),
  ],
)
def test_the_automatic_window_is_the_protocols_or_a_tenth(length, window, sink):
  assert prefill_sets.span('auto', 'auto', length) == (window, sink)
  if length < 4352:  # SCIENCE asks for an eighth at most
    assert 8 * (window + sink) <= max(length, 8)
  assert prefill_sets.span('7', '2', length) == (7, 2)


@pytest.mark.parametrize(
  'seconds, said',
  [(0.0123, '0.012 s'), (9, '9 s'), (119, '119 s'), (840, '14 min')]
  + [(171831, '47.7 h')],
)
def test_an_estimate_is_told_in_a_unit_that_can_be_read(seconds, said):
  assert prefill_kernel._duration(seconds) == said


@pytest.mark.parametrize(
  'parse, text, said',
  [
    (prefill_sets.parse_names, 'top,best', "'best' is unknown; choose of"),
    (prefill_sets.parse_fractions, '0.1,1.5', "'1.5' is no share"),
    (prefill_sets.parse_fractions, '', "'' is no share"),
    (prefill_sets.parse_fractions, 'nan', "'nan' is no share"),
    (lambda t: prefill_sets.parse_counts(t, '--x'), '4,0', "--x=4,0: '0'"),
    (lambda t: prefill_sets.parse_counts(t, '--x'), '1e3', "'1e3' is no"),
    (lambda t: prefill_sets.parse_counts(t, '--x'), '9' * 9, 'from 1 to'),
    (lambda t: prefill_sets.span(t, 'auto', 9), '0', '--window=0: give 1'),
    (lambda t: prefill_sets.span(t, 'auto', 9), 'wide', '--window=wide'),
    (lambda t: prefill_sets.span('auto', t, 9), '-1', '--sink=-1: give 0'),
    (prefill_kernel.parse_geometries, '28/5', "'28/5' is not query heads"),
    (prefill_kernel.parse_geometries, '28', "'28' is not query heads"),
  ],
)
def test_what_is_wrong_is_said_in_one_line(parse, text, said):
  with pytest.raises(errors.UserError) as caught:
    parse(text)
  assert said in str(caught.value) and '\n' not in str(caught.value)
