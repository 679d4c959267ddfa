"""What the questions of a batch begin with is read once a set of heads."""

import dataclasses

import jax
import numpy as np
import pytest

from corejax import groups as groups_lib
from corejax import heads as heads_lib
from corejax.experiments import ablate
from corejax.experiments import prefixes
from corejax.experiments import resources as resources_lib
from corejax.experiments import sweep

SIZE = 16
SETS = ((), ((1, 0), (3, 6), (5, 2)))
BLIND = [
  ('zero', 'all'),
  ('zero', 'query'),
  ('mean', 'all'),
  ('uniform', 'query'),
]
SEEING = [('resample', 'all'), ('knockout_evidence', 'all')]


@pytest.fixture(scope='module')
def resources():
  config = ablate.Config(
    checkpoint='scenes-8x8', data='scenes_pages', pages=3, split='test'
  )
  return resources_lib.load(config)


def answer(resources, mode, rows, share, monkeypatch):
  """(what the sets come to, was anything shared?)"""
  least = 0 if share else 10**12
  monkeypatch.setattr(prefixes, 'LEAST_PARAMETERS', least)
  groups = [
    groups_lib.Group('top', len(heads), heads_lib.HeadSet(heads))
    for heads in SETS
  ]
  options = sweep.Options(mode, 'prefill+decode', rows, sweep.FORCED, 1, SIZE)
  runner = sweep.Runner(resources, groups, options, resources.source, SIZE)
  batch = sweep.read(resources, resources.source, range(SIZE - 3))
  padded = runner.pad(batch, share=True)
  return runner.start(batch)(), padded.prefix is not None


@pytest.mark.parametrize('mode, rows', BLIND)
def test_answers_are_those_of_the_plain_way(resources, mode, rows, monkeypatch):
  plain, none = answer(resources, mode, rows, False, monkeypatch)
  shared, some = answer(resources, mode, rows, True, monkeypatch)
  assert (none, some) == (False, True)
  logprob = plain['logprob']
  assert np.abs(logprob[1] - logprob[0]).max() > 1e-3  # the cut does something
  np.testing.assert_allclose(shared['logprob'], logprob, rtol=0, atol=3e-5)
  np.testing.assert_array_equal(shared['score'], plain['score'])


@pytest.mark.parametrize('mode, rows', SEEING)
def test_modes_that_know_the_question_read_all_of_it(
  resources, mode, rows, monkeypatch
):
  plain, _ = answer(resources, mode, rows, False, monkeypatch)
  same, _ = answer(resources, mode, rows, True, monkeypatch)
  np.testing.assert_array_equal(same['logprob'], plain['logprob'])


def test_rows_are_cut_where_the_prompts_are(resources, monkeypatch):
  monkeypatch.setattr(prefixes, 'LEAST_PARAMETERS', 0)
  batch = sweep.read(resources, resources.source, range(SIZE))
  groups = [groups_lib.Group('top', 0, heads_lib.HeadSet())] * 2
  options = sweep.Options(
    'zero', 'prefill+decode', 'query', sweep.FORCED, 1, SIZE
  )
  runner = sweep.Runner(resources, groups, options, resources.source, SIZE)
  whole, cut = runner.pad(batch), runner.pad(batch, share=True)
  index_B = np.asarray(cut.prefix.index_B)
  for field in dataclasses.fields(whole.rows):
    before, after, full = (
      np.asarray(getattr(rows, field.name))
      for rows in (cut.prefix_rows, cut.rows, whole.rows)
    )
    for b, encoded in enumerate(batch.encoded):
      start, end = encoded.question[0], len(encoded.tokens_T)
      joined = [before[index_B[b], :start], after[b, : end - start]]
      np.testing.assert_array_equal(np.concatenate(joined), full[b, :end])
  assert not np.asarray(cut.prefix_rows.query_BT).any()
  assert jax.tree.leaves(cut.region_BS) == []
