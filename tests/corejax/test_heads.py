"""HeadSet and the grammar in which heads are written."""

import dataclasses
import pickle
import re

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from corejax import errors
from corejax import heads

HeadSet = heads.HeadSet

_PAIRS = st.frozensets(
  st.tuples(st.integers(0, 999_999), st.integers(0, 999_999)), max_size=12
)
_FEW = hypothesis.settings(deadline=None, max_examples=200, derandomize=True)


@hypothesis.given(_PAIRS)
@_FEW
def test_written_and_read_again(pairs):
  head_set = HeadSet(pairs)
  assert HeadSet.parse(str(head_set)) == head_set
  assert set(head_set) == pairs == head_set.heads
  assert list(head_set) == sorted(pairs)
  assert len(head_set) == len(pairs)


@hypothesis.given(_PAIRS, st.randoms())
@_FEW
def test_order_and_spaces_do_not_matter(pairs, random):
  parts = [f'{layer}-{head}' for layer, head in pairs]
  random.shuffle(parts)
  text = ' , '.join(parts)
  assert HeadSet.parse(text) == HeadSet(pairs)
  assert hash(HeadSet.parse(text)) == hash(HeadSet(pairs))


@hypothesis.given(st.text(alphabet='0123456789-, \t@:x٣²\n', max_size=14))
@_FEW
def test_any_text_is_read_or_refused_in_one_line(text):
  try:
    head_set = HeadSet.parse(text)
  except errors.UserError as e:
    assert str(e).startswith('HeadSet: ') and '\n' not in str(e)
    return
  parts = [p.strip() for p in text.split(',')] if text.strip() else []
  assert all(re.fullmatch('[0-9]{1,6}-[0-9]{1,6}', p) for p in parts)
  assert len(head_set) == len(parts)


@pytest.mark.parametrize(
  'text, said',
  [
    ('14', "'14'"),
    ('14-', "'14-'"),
    ('-1-2', "'-1-2'"),
    ('1--2', "'1--2'"),
    ('1-2,', "''"),
    (',1-2', "''"),
    ('1-2;3-4', "'1-2;3-4'"),
    ('1:2', "'1:2'"),
    ('١-٢', 'is not layer-head'),
    ('1234567-1', "'1234567-1'"),
    ('@runs/x', "'@runs/x'"),
    ('1-2,1-2', '1-2 stands twice'),
    ('1-2,01-2', '1-2 stands twice'),
  ],
)
def test_refused_with_the_part_that_is_wrong(text, said):
  with pytest.raises(errors.UserError, match=re.escape(said)):
    HeadSet.parse(text)


def test_long_rubbish_is_cut_in_the_message():
  with pytest.raises(errors.UserError) as caught:
    HeadSet.parse('x' * 10_000)
  assert len(str(caught.value)) < 200


@pytest.mark.parametrize('text', ['', '  ', '\t'])
def test_nothing_is_the_empty_set(text):
  assert HeadSet.parse(text) == HeadSet()
  assert len(HeadSet()) == 0 and str(HeadSet()) == ''


def test_negative_heads_are_refused():
  for pair in ((-1, 0), (0, -1)):
    with pytest.raises(errors.UserError, match='negative'):
      HeadSet([pair])


def test_set_algebra_and_membership():
  left, right = HeadSet.parse('0-1,2-3'), HeadSet.parse('2-3,4-5')
  assert left | right == HeadSet.parse('0-1,2-3,4-5')
  assert left & right == HeadSet.parse('2-3')
  assert left - right == HeadSet.parse('0-1')
  assert (0, 1) in left and (4, 5) not in left
  assert repr(left) == "HeadSet('0-1,2-3')"


def test_the_mask_has_the_heads_and_no_other():
  head_set = HeadSet.parse('0-2,1-0')
  assert head_set.mask(2, 3).tolist() == [
    [False, False, True],
    [True, False, False],
  ]
  assert HeadSet.from_mask(head_set.mask(2, 3)) == head_set


@pytest.mark.parametrize(
  'text, said',
  [
    ('32-0', 'layer 32 is outside 0..31 (llava has 32 layers)'),
    ('3-40', 'head 40 of layer 3 is outside 0..39 (llava has 40 heads'),
  ],
)
def test_heads_outside_the_model_are_refused(text, said):
  head_set = HeadSet.parse('0-0,' + text)
  with pytest.raises(errors.UserError, match=re.escape(said)):
    head_set.check(32, 40, 'llava')
  with pytest.raises(errors.UserError):
    head_set.mask(32, 40)
  HeadSet.parse('31-39').check(32, 40)


def test_frozen_hashable_and_static_under_jit():
  head_set = HeadSet.parse('0-1,1-0')
  with pytest.raises(dataclasses.FrozenInstanceError):
    (field,) = dataclasses.fields(head_set)
    setattr(head_set, field.name, frozenset())
  assert pickle.loads(pickle.dumps(head_set)) == head_set
  traces = []

  def count(x, chosen):
    traces.append(chosen)
    return x + len(chosen)

  jitted = jax.jit(count, static_argnums=1)
  assert jitted(1, head_set) == 3
  assert jitted(1, HeadSet.parse('1-0,0-1')) == 3
  assert len(traces) == 1  # equal sets share one executable


def test_numpy_integers_are_plain_inside():
  head_set = HeadSet(np.array([[3, 1]], np.int16))
  assert head_set == HeadSet([(3, 1)])
  assert str(head_set) == '3-1'
