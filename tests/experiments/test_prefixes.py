"""Common prefixes read once: the same masses, where it is exact."""

import dataclasses

import numpy as np
import pytest

from corejax.experiments import measure
from corejax.experiments import prefixes
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from corejax.experiments import step

NAMES = ('mass', 'written', 'logprob', 'correct', 'profile')
OPTIONS = measure.Options(8, 'question', False, False, 0)


@pytest.fixture(scope='module')
def resources():
  return resources_lib.load(rank.Config(checkpoint='scenes-8x8'))


@pytest.fixture(scope='module')
def records(resources):
  """Batches of records: `one` picture each, or three `pages`."""
  pages = dataclasses.replace(
    resources,
    source=resources_lib.load_source(rank.Config(data='scenes_pages', pages=3)),
  )

  def read(numbers, source):
    return measure.prepare_batch(source, numbers, OPTIONS)

  return {
    'one': read(range(16), resources),
    'pages': read(range(16), pages),
  }


def choose(records, one, pages):
  """(prepared, keys) of these records of `one` and of `pages`."""
  chosen = [('one', i) for i in one] + [('pages', i) for i in pages]
  return (
    [records[name].prepared[i] for name, i in chosen],
    [records[name].pictures[i] for name, i in chosen],
  )


def run(resources, chosen, monkeypatch, share, gradients=False, size=8):
  prepared, keys = chosen
  least = 0 if share else 10**12
  monkeypatch.setattr(prefixes, 'LEAST_PARAMETERS', least)
  runner = step.Runner(resources, size)
  plans = []
  original = runner._sharing.plan

  def plan(*args):
    plans.append(original(*args))
    return plans[-1]

  monkeypatch.setattr(runner._sharing, 'plan', plan)
  started = runner.start(
    [p.encoded for p in prepared],
    [p.annotated for p in prepared],
    keys,
    'question',
    gradients,
  )
  return step.fetch(started, len(prepared)), plans[0] if plans else None


# Records 0 to 7 of either kind show the same pictures, 8 to 15 others.
CASES = {
  'one picture, all share it': (range(8), ()),
  'two pictures, in any order': ((0, 9, 1, 2, 12, 13, 3, 14), ()),
  'prefixes of different lengths': ((0, 1, 2), (0, 5, 6, 7)),
}


@pytest.mark.parametrize('case', CASES)
def test_masses_are_those_of_the_plain_way(
  case, resources, records, monkeypatch
):
  chosen = choose(records, *CASES[case])
  plain, none = run(resources, chosen, monkeypatch, share=False)
  shared, plan = run(resources, chosen, monkeypatch, share=True)
  assert none is None and plan is not None and len(plan.prefixes) == 2
  lengths = {len(p.tokens_T) for p in plan.prefixes}
  assert len(lengths) == (2 if case.startswith('prefixes') else 1)
  # Masses of the plain way move by 1.4e-6 themselves if it is padded
  # differently: float32 through eight layers. Profiles are float16.
  for name, atol in zip(NAMES, (2e-6, 2e-5, 2e-5, 0, 1e-3)):
    np.testing.assert_allclose(
      shared[name][..., : plain[name].shape[-1]],
      plain[name][..., : shared[name].shape[-1]],
      rtol=0,
      atol=atol,
      err_msg=name,
    )


def test_three_prefixes_in_eight_records_are_read_the_plain_way(
  resources, records, monkeypatch
):
  chosen = choose(records, (0, 1, 2, 8, 9, 10), (0, 1))
  assert run(resources, chosen, monkeypatch, share=True)[1] is None


def test_gradients_are_taken_the_plain_way(resources, records, monkeypatch):
  chosen = choose(records, range(2), ())
  out, plan = run(
    resources, chosen, monkeypatch, share=True, gradients=True, size=2
  )
  assert plan is None and np.abs(out['gradient']).max() > 0


class TestPlan:
  """What is decided on the host."""

  def sharing(self, resources, monkeypatch, size=8, least=0):
    monkeypatch.setattr(prefixes, 'LEAST_PARAMETERS', least)
    return prefixes.Sharing(resources, size)

  def args(self, resources, chosen):
    prepared, keys = chosen
    cache = step.Runner(resources, 8).features
    encoded = [p.encoded for p in prepared]
    return cache.look(encoded, keys, 2048)[0], [p.annotated for p in prepared]

  def test_cut(self, resources, records, monkeypatch):
    chosen = choose(records, range(4), range(4))
    args = self.args(resources, chosen)
    plan = self.sharing(resources, monkeypatch).plan(*args)
    assert plan.index == [0] * 4 + [1] * 4
    for e, a, suffix, rows, u in zip(
      *args, plan.suffixes, plan.annotated, plan.index
    ):
      prefix = plan.prefixes[u]
      for name in ('tokens_T', 'positions_T', 'feature_T'):
        joined = [getattr(prefix, name), getattr(suffix, name)]
        np.testing.assert_array_equal(np.concatenate(joined), getattr(e, name))
      for name, row in rows.rows.items():
        assert row.min() >= 0
        np.testing.assert_array_equal(
          suffix.tokens_T[row], e.tokens_T[a.rows[name]]
        )

  def test_another_picture_is_another_prefix(
    self, resources, records, monkeypatch
  ):
    # Their tokens are the same: only the features tell them apart.
    args = self.args(resources, choose(records, (0, 8) * 4, ()))
    one, other = (e.tokens_T[: e.question[0]] for e in args[0][:2])
    np.testing.assert_array_equal(one, other)
    plan = self.sharing(resources, monkeypatch).plan(*args)
    assert plan.index == [0, 1] * 4

  def test_small_models_and_small_batches_are_left_alone(
    self, resources, records, monkeypatch
  ):
    args = self.args(resources, choose(records, range(8), ()))
    default = prefixes.LEAST_PARAMETERS
    assert self.sharing(resources, monkeypatch).plan(*args) is not None
    small = self.sharing(resources, monkeypatch, least=default)
    assert small.plan(*args) is None
    one = [x[:1] for x in args]
    assert self.sharing(resources, monkeypatch, size=1).plan(*one) is None

  def test_a_short_prefix_is_not_worth_it(
    self, resources, records, monkeypatch
  ):
    encoded, annotated = self.args(resources, choose(records, range(8), ()))
    early = [dataclasses.replace(e, question=(2, 4)) for e in encoded]
    sharing = self.sharing(resources, monkeypatch)
    assert sharing.plan(encoded, annotated) is not None
    assert sharing.plan(early, annotated) is None

  def test_keys_and_values_that_take_too_much_room(
    self, resources, records, monkeypatch
  ):
    args = self.args(resources, choose(records, range(8), ()))
    monkeypatch.setattr(prefixes, '_FREE_BYTES', 1000)
    assert self.sharing(resources, monkeypatch).plan(*args) is None
