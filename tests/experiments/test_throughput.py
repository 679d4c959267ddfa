"""What a ranking does not do twice: buckets, and the loop that overlaps."""

import dataclasses
import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from corejax import errors
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax import regions
from corejax.data import example as example_lib
from corejax.experiments import buckets
from corejax.experiments import cli
from corejax.experiments import measure
from corejax.experiments import prefixes
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from corejax.experiments import step
from helpers import run_folders

OPTIONS = measure.Options(4, 'question', False, False, 0)


class TestPolicy:
  def test_lengths_and_what_is_too_much(self):
    sizes = [buckets.tokens(n) for n in range(1, 9000)]
    assert sizes == sorted(sizes)
    for n, size in enumerate(sizes, 1):
      assert size >= n and size % 8 == 0
      assert size - n < 8 if n <= 32 else (size - n) / size < 0.25
      assert buckets.tokens(size) == size
    assert [s for s in sorted(set(sizes)) if s <= 64] == [*range(8, 65, 8)]
    for octave in (64, 512, 4096):
      found = [s for s in sorted(set(sizes)) if octave <= s <= 2 * octave]
      assert found == [octave * n // 4 for n in range(4, 9)]

  def test_rows_and_what_is_too_much(self):
    for n in range(1, 2000):
      size = buckets.rows(n)
      assert size >= max(n, 16) and size & (size - 1) == 0
      assert size == 16 or (size - n) / size < 0.5

  def test_a_bucket_holds_its_batch(self):
    bucket = buckets.Bucket.of([60, 700, 3], [5, 1, 17])
    assert bucket == buckets.Bucket(768, 32)


@dataclasses.dataclass(frozen=True)
class LongQuestions:
  """Scenes whose questions are asked several times over."""

  source: example_lib.Source
  times: tuple[int, ...]
  name = 'long'
  split = 'test'
  fingerprint = '0'

  def __len__(self):
    return len(self.times)

  def __getitem__(self, index):
    example = self.source[index]
    question = ' '.join([example.question] * self.times[index])
    return dataclasses.replace(example, question=question)


@pytest.fixture(scope='module')
def resources():
  return resources_lib.load(rank.Config(checkpoint='planted', limit=40))


def counting(n_layers, n_heads):
  """A forward that computes nothing, and a list of its traces' shapes."""
  traces = []

  def forward(model, inputs, *, attend, control, probe, logit_rows_BP, cache):
    traces.append((inputs.tokens_BT.shape, probe.rows_BP.shape, cache))
    batch, n_sets = len(inputs.tokens_BT), len(regions.QUERY_SETS)
    shape = (n_layers, batch, n_sets, n_heads)
    return inputs_lib.Output(
      jnp.zeros((*logit_rows_BP.shape, 8)),
      probe_lib.Measured(
        jnp.zeros((*shape, len(regions.REGIONS))),
        profile_BNI=jnp.zeros((n_layers, batch, n_heads, 8)),
        written_BQN=jnp.zeros(shape),
      ),
    )

  return forward, traces


def test_one_compilation_a_bucket(resources):
  times = tuple(np.random.default_rng(0).integers(1, 30, 40))
  forward, traces = counting(4, 8)
  many = dataclasses.replace(
    resources,
    source=LongQuestions(resources.source, times),
    loaded=dataclasses.replace(resources.loaded, forward=forward),
  )
  runner = step.Runner(many, 4)
  expected, lengths = set(), set()
  for _ in range(2):  # the second pass finds everything compiled
    for indices in measure.batches(40, 4):
      batch = measure.prepare_batch(many, indices, OPTIONS)
      sizes = [len(p.encoded.tokens_T) for p in batch.prepared]
      rows = [len(p.annotated.rows['question']) for p in batch.prepared]
      lengths.add(max(sizes))
      expected.add((buckets.tokens(max(sizes)), buckets.rows(max(rows))))
      measure.start_batch(runner, batch, OPTIONS)
  assert len(lengths) > len(expected) > 2
  assert {(tokens[1], rows[1]) for tokens, rows, _ in traces} == {
    (length, 2 * n_rows + 1) for length, n_rows in expected
  }
  assert len(traces) == len(expected)


def test_one_compilation_a_bucket_of_shared_prefixes(resources, monkeypatch):
  monkeypatch.setattr(prefixes, 'LEAST_PARAMETERS', 0)
  original = resources.loaded.forward
  traces = []

  def counted(model, inputs, **kwargs):
    traces.append(inputs.tokens_BT.shape)
    return original(model, inputs, **kwargs)

  once = dataclasses.replace(
    resources, loaded=dataclasses.replace(resources.loaded, forward=counted)
  )
  runner = step.Runner(once, 4)
  for indices in ([0, 1, 2, 3], [9, 8, 10], [16, 17, 18, 19]):
    batch = measure.prepare_batch(once, indices, OPTIONS)
    measure.start_batch(runner, batch, OPTIONS)
  assert traces == [(1, 24), (4, 16)]  # the prefix, then the suffixes


def test_a_batch_is_started_before_the_one_before_it_is_waited_for(
  tmp_path, monkeypatch
):
  calls = []

  def noted(name):
    original = getattr(measure, name)

    def call(*args):
      calls.append(name)
      return original(*args)

    monkeypatch.setattr(measure, name, call)

  noted('start_batch')
  noted('finish_batch')
  rank.run(rank.Config(out=str(tmp_path / 'run'), **run_folders.SMALL))
  start, finish = 'start_batch', 'finish_batch'
  assert calls == [start, start, finish, start, finish, finish]


@pytest.mark.parametrize(
  'error', [errors.UserError('the disk went away'), RuntimeError('a bug')]
)
def test_an_error_while_reading_ahead_comes_up_as_itself(
  error, tmp_path, monkeypatch
):
  original = measure.prepare

  def prepare(source, processor, index, calibrate=False):
    if index == 2 * run_folders.SMALL['batch_size']:
      raise error
    return original(source, processor, index, calibrate)

  monkeypatch.setattr(measure, 'prepare', prepare)
  out = tmp_path / 'run'
  with pytest.raises(type(error)) as caught:
    rank.run(rank.Config(out=str(out), **run_folders.SMALL))
  assert caught.value is error
  # What had been begun is kept, and nobody is left at work.
  assert len(list((out / 'scores').iterdir())) == 2
  assert not [t for t in threading.enumerate() if t.name.startswith('ahead')]
  monkeypatch.undo()
  rank.run(rank.Config(out=str(out), **run_folders.SMALL))
  assert run_folders.indices(out) == list(range(run_folders.SMALL['limit']))


def test_rejections_of_an_earlier_session_count(tmp_path, monkeypatch, capsys):
  original, read = measure.prepare, []

  def prepare(source, processor, index, calibrate=False):
    read.append(index)
    if index == 1:
      raise errors.Rejected(errors.Reason.BAD_MEDIA, 'x')
    return original(source, processor, index, calibrate)

  monkeypatch.setattr(measure, 'prepare', prepare)
  out = tmp_path / 'run'
  flags = ['rank', *run_folders.flags(**run_folders.SMALL, out=out)]
  assert rank.cli(flags) == cli.EX_USER
  assert read
  read.clear()
  assert rank.cli(flags) == cli.EX_USER
  assert not read and len(list((out / 'scores').iterdir())) == 1
  told = capsys.readouterr().err.splitlines()
  assert len(told) == 2 and told[0] == told[1]
  assert json.loads((out / 'run.json').read_text())['state'] == 'failed'
