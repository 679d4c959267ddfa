"""The score store: whole parts or none, and what a broken one says."""

import dataclasses
import os

import numpy as np
import pytest

from corejax import errors
from corejax import parts
from corejax import store as store_lib

SHAPE = (2, 3, 3, 9)


def part(n, start=0, profiles='last', baseline=False, rejected=()):
  rng = np.random.default_rng(start)
  return store_lib.Part(
    rows=[
      {
        'index': start + i,
        'id': f'x/test/{start + i}',
        'cluster': 'c',
        'task': 't',
        'media': 'm',
        'layout': 'l',
        'correct': bool(i % 2),
        'logprob': -0.5 * i,
      }
      for i in range(n)
    ],
    rejected=list(rejected),
    mass_ELNQR=rng.random((n, *SHAPE), np.float32),
    count_ER=rng.integers(0, 5, (n, 9)),
    evidence=[rng.random(4 + i) > 0.5 for i in range(n)],
    shifted=[rng.random((i, 4 + i)) > 0.5 for i in range(n)],
    profiles=(
      [rng.random((2, 3, 4 + i)).astype(np.float16) for i in range(n)]
      if profiles
      else None
    ),
    profile_set=profiles,
    baseline_ELNQR=rng.random((n, *SHAPE), np.float32) if baseline else None,
    written_ELNQ=rng.random((n, *SHAPE[:-1]), np.float32),
  )


@pytest.mark.parametrize('profiles', ['last', None])
@pytest.mark.parametrize('baseline', [True, False])
def test_round_trip(tmp_path, profiles, baseline):
  store = store_lib.ScoreStore(tmp_path / 'scores', 1)
  written = part(3, profiles=profiles, baseline=baseline)
  store.write(0, written)
  read = store.read(0)
  assert read.rows == written.rows
  np.testing.assert_array_equal(read.mass_ELNQR, written.mass_ELNQR)
  for name in ('evidence', 'shifted', 'profiles'):
    a, b = getattr(read, name), getattr(written, name)
    assert (a is None) == (b is None)
    for x, y in zip(a or (), b or ()):
      np.testing.assert_array_equal(x, y)
      assert x.dtype == y.dtype
  assert (read.baseline_ELNQR is None) == (not baseline)
  assert read.profile_set == profiles
  assert read.gradient_ELN is None
  np.testing.assert_array_equal(read.written_ELNQ, written.written_ELNQ)


def test_missing_then_load_in_order(tmp_path):
  store = store_lib.ScoreStore(tmp_path, 3)
  bad = {'index': 4, 'id': 'x/test/4', 'reason': 'bad box', 'detail': 'd'}
  store.write(2, part(1, start=5))
  store.write(0, part(2))
  assert store.missing() == [1]
  store.write(1, part(0, start=2, rejected=[bad]))
  assert store.missing() == []
  scores, rows, rejected = store.load()
  assert scores.ids == ['x/test/0', 'x/test/1', 'x/test/5']
  assert [r['id'] for r in rows] == list(scores.ids)
  assert rejected == [bad]
  assert scores.mass_ELNQR.shape == (3, *SHAPE)
  assert scores.profile_set == 'last' and len(scores.profiles) == 3


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
  store = store_lib.ScoreStore(tmp_path, 1)
  store.write(
    0, part(0, rejected=[{'index': 0, 'id': 'a', 'reason': 'bad box'}])
  )
  with pytest.raises(errors.UserError, match='none of 1 examples .*bad box'):
    store.load()


@pytest.mark.parametrize('cut', [0, 10, 200, -1])
def test_broken_part_names_its_file(tmp_path, cut):
  store = store_lib.ScoreStore(tmp_path, 1)
  store.write(0, part(2))
  data = store.path(0).read_bytes()
  store.path(0).write_bytes(data[:cut])
  with pytest.raises(errors.UserError, match='part-00000.npz.*remove'):
    store.read(0)


@pytest.mark.parametrize(
  'changes',
  [
    dict(layout=None),
    dict(id=['x']),
    dict(logprob='much'),
    dict(logprob=1e308),
    dict(correct=1),
  ],
)
def test_a_part_that_somebody_made_up(tmp_path, changes):
  good = part(2)
  rows = [good.rows[0], {**good.rows[1], **changes}]
  store = store_lib.ScoreStore(tmp_path, 1)
  for forged in (
    dataclasses.replace(good, rows=rows),
    dataclasses.replace(good, mass_ELNQR=good.mass_ELNQR[:1]),
    dataclasses.replace(good, profile_set=None),
    dataclasses.replace(good, rejected=[{'index': 3}]),
  ):
    store.write(0, forged)
    with pytest.raises(errors.UserError, match='part-00000.npz.*remove'):
      store.load()


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  target = tmp_path / 'a.txt'
  parts.write_atomic(target, b'old')

  def full(fd):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(errors.UserError, match='No space left'):
    parts.write_atomic(target, b'new')
  assert target.read_bytes() == b'old'
  assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


@pytest.mark.parametrize('other', ['question', None])
def test_profiles_of_another_set_are_left_out(tmp_path, other):
  store = store_lib.ScoreStore(tmp_path, 2)
  store.write(0, part(2))
  store.write(1, part(2, start=2, profiles=other))
  scores, _, _ = store.load()
  assert scores.profiles is None and scores.profile_set is None
  assert len(scores) == 4


def test_a_part_of_another_run_is_refused(tmp_path):
  store_lib.ScoreStore(tmp_path, 1, 'aaa').write(0, part(1))
  with pytest.raises(errors.UserError, match='another run .aaa, this is bbb'):
    store_lib.ScoreStore(tmp_path, 1, 'bbb').read(0)
