"""What several processes do when one of them ends, played by threads."""

import threading

import jax
import pytest

from corejax import errors
from corejax.experiments import cli
from corejax.experiments import pods

ROUNDS = 3
FULL = errors.UserError('the disk is full')


class Pod:
  """Threads for which `every` asks each of them, as processes would."""

  def __init__(self, monkeypatch, n):
    self._n = n
    self._met = threading.Barrier(n, timeout=20)
    self._flags = {}
    monkeypatch.setattr(pods, 'every', self._every)

  def _every(self, flag):
    self._met.wait()
    self._flags[threading.get_ident()] = flag
    self._met.wait()
    return all(self._flags.values())

  def run(self, work):
    """work(i) in thread i; what each raised."""
    ended: list[BaseException | None] = [None] * self._n

    def one(i):
      try:
        work(i)
      except (errors.UserError, cli.Preempted) as e:
        ended[i] = e

    threads = [threading.Thread(target=one, args=(i,)) for i in range(self._n)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return ended


@pytest.fixture(params=[1, 2, 3])
def pod(request, monkeypatch):
  return Pod(monkeypatch, request.param)


def loop(stops, fail_in=None, asked_in=None):
  """A loop as experiments have it; `fail_in` is when process 0 fails."""

  def work(i):
    with pods.together():
      for step in range(ROUNDS):
        stops[i].asked |= i == len(stops) - 1 and step == asked_in
        stops[i].check(pods.every)
        if i == 0 and step == fail_in:
          raise FULL

  return work


def test_all_is_well(pod):
  stops = [cli.Stop() for _ in range(3)]
  assert not any(pod.run(loop(stops)))


@pytest.mark.parametrize('step', range(ROUNDS))
def test_one_fails(pod, step):
  """In the last round the others are past their last question."""
  stops = [cli.Stop() for _ in range(3)]
  first, *others = pod.run(loop(stops, fail_in=step))
  assert first is FULL
  for other in others:
    assert str(other) == 'another process failed; see its line'


@pytest.mark.parametrize('step', range(ROUNDS))
def test_one_is_asked_to_stop(pod, step):
  stops = [cli.Stop() for _ in range(pod._n)]
  ended = pod.run(loop(stops, asked_in=step))
  assert all(isinstance(e, cli.Preempted) for e in ended)


def test_one_fails_while_another_is_asked_to_stop(monkeypatch):
  pod, stops = Pod(monkeypatch, 2), [cli.Stop(), cli.Stop()]
  first, other = pod.run(loop(stops, fail_in=0, asked_in=1))
  assert first is FULL
  assert 'another process failed' in str(other)


def test_sigterm_is_left_to_us(monkeypatch):
  """jax installs a handler of its own below Python's when it initializes."""
  seen = []
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '127.0.0.1:1')
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  monkeypatch.setenv('JAX_PROCESS_ID', '1')
  name = 'jax_enable_preemption_service'
  before = getattr(jax.config, name)
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda *_: seen.append(getattr(jax.config, name)),
  )
  try:
    pods.initialize()
  finally:
    jax.config.update(name, before)
  assert seen == [False]
