"""Sides in processes: what is measured, who goes when, how an end is told."""

import os

import pytest

from corejax import errors
from corejax.experiments import bench_processes

_SERVE = """
import sys
from corejax.experiments import bench_processes
def prepare():
  print('noise on standard output')
  return work, {{'side': 'told'}}
def work():
  print('more noise')
  {work}
bench_processes.serve(prepare)
"""


def _side(work, name='side'):
  return bench_processes.Side(name, ['-c', _SERVE.format(work=work)])


def test_memory_and_time_are_those_of_the_work_alone():
  work = 'x = bytearray(b"1") * (64 << 20); return len(x)'
  with _side(work) as side:
    assert side.wait().facts == {'side': 'told'}
    for _ in range(2):  # the peak is reset, not remembered
      sample = side.go()
      assert sample.result == 64 << 20
      assert 60 < sample.extra / 2**20 < 80
      assert 0 < sample.cpu < 5 and sample.wall > 0
  with _side('return None') as side:
    assert side.wait().go().extra < 8 << 20


def test_sides_take_turns_in_alternating_order(tmp_path):
  log = tmp_path / 'log'
  done = []
  with (
    _side(f'open({str(log)!r}, "a").write("a")', 'a') as a,
    _side(f'open({str(log)!r}, "a").write("b")', 'b') as b,
  ):
    samples = bench_processes.interleave([a.wait(), b.wait()], 3, done.append)
  assert log.read_text() == 'ab' + 'ab' + 'ba' + 'ab'  # warm-up, three rounds
  assert {name: len(each) for name, each in samples.items()} == {'a': 3, 'b': 3}
  assert done == [1, 2, 3]


@pytest.mark.parametrize(
  ('work', 'said'),
  [
    ('raise ValueError("so it is")', 'exit code 1: ValueError: so it is'),
    ('import os; os.kill(os.getpid(), 9)', 'signal 9: out of memory?'),
  ],
)
def test_an_end_is_told_in_one_line(work, said):
  with _side(work, 'hf_eager') as side:
    with pytest.raises(errors.UserError) as caught:
      side.wait().go()
  assert str(caught.value).startswith(f'hf_eager: ended with {said}')
  assert '\n' not in str(caught.value)


def test_cores_hold_for_those_started_meanwhile_and_no_longer():
  before = os.sched_getaffinity(0)
  with bench_processes.on_cores(1):
    with _side('import os; return len(os.sched_getaffinity(0))') as side:
      assert side.wait().go().result == 1
  assert os.sched_getaffinity(0) == before
