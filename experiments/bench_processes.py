"""Sides of a benchmark: each in a process of its own, asked by turns.

A side is a program that prepares (loads, compiles), says so, and then does its
work once for every line it is sent, answering with what that cost it:

    benchmark                     side
              <- {"ready": {...}}
      "go"    ->
              <- {"cpu": s, "wall": s, "extra": bytes, "result": ...}

CPU seconds are the process's user and system time over the work alone, all
threads. `extra` is the highest resident size during the work (VmHWM, which
Linux resets on request) above the resident size of the prepared process.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

import corejax
from corejax import errors

ROOT = pathlib.Path(corejax.__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Sample:
  """What one piece of work cost.

  Attributes:
    cpu, wall: seconds.
    extra: bytes.
    result: what it returned.
  """

  cpu: float
  wall: float
  extra: int
  result: Any = None


def _resident(field: str) -> int:
  """VmRSS or VmHWM of this process in bytes."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field + ':'):
      return int(line.split()[1]) * 1024
  raise errors.UserError(f'/proc/self/status: says nothing of {field}')


def settle() -> int:
  """Gives freed memory back and returns the resident size in bytes."""
  gc.collect()
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'malloc_trim'):
    libc.malloc_trim(0)
  return _resident('VmRSS')


def timed(work: Callable[[], Any], before: int) -> Sample:
  """Does the work; `before` is what `settle` said."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  cpu, wall = time.process_time(), time.perf_counter()
  result = work()
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return Sample(cpu, wall, _resident('VmHWM') - before, result)


def serve(prepare: Callable[[], tuple[Callable[[], Any], Any]]) -> None:
  """A side's main loop.

  Args:
    prepare: () -> (work, facts); `work` returns JSON once it is wholly done.
  """
  # Libraries print to standard output; the answers keep a way of their own.
  channel = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def tell(value):
    print(json.dumps(value), file=channel, flush=True)

  work, facts = prepare()
  before = settle()
  tell({'ready': facts})
  for _ in sys.stdin:
    tell(dataclasses.asdict(timed(work, before)))


class Side:
  """A side as the benchmark sees it; a context manager.

  Attributes:
    name: its name.
    facts: what it said when it was ready.
  """

  def __init__(
    self,
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    path: Sequence[pathlib.Path] = (ROOT,),
  ):
    """Starts it.

    Args:
      name: for messages.
      command: arguments of this Python.
      env: added to the environment.
      path: goes before the packages that are found anyway.
    """
    self.name = name
    before = os.environ.get('PYTHONPATH')
    found = os.pathsep.join([*map(str, path), *([before] if before else [])])
    self._log = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
      [sys.executable, *command],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      env={**os.environ, 'PYTHONPATH': found, **(env or {})},
      text=True,
    )
    self.facts: Any = None

  def __enter__(self) -> 'Side':
    return self

  def __exit__(self, *_) -> None:
    self._process.kill()
    self._process.wait()
    for stream in (self._process.stdin, self._process.stdout, self._log):
      assert stream is not None
      stream.close()

  def wait(self) -> 'Side':
    """Until it is ready.

    Raises:
      UserError: it ended instead.
    """
    self.facts = self._answer()['ready']
    return self

  def go(self) -> Sample:
    """Lets it work once.

    Raises:
      UserError: it ended instead.
    """
    stream = self._process.stdin
    assert stream is not None
    try:
      print('go', file=stream, flush=True)
    except BrokenPipeError:
      pass  # it ended; _answer says how
    return Sample(**self._answer())

  def _answer(self) -> Any:
    stream = self._process.stdout
    assert stream is not None
    line = stream.readline()
    if line:
      return json.loads(line)
    code = self._process.wait()
    self._log.seek(0)
    said = self._log.read().strip().splitlines()
    how = f'signal {-code}' if code < 0 else f'exit code {code}'
    why = said[-1][:300] if said else 'it said nothing'
    if code == -9:
      why = 'out of memory? leave it out with --sides, or shorten --lengths'
    raise errors.UserError(f'{self.name}: ended with {how}: {why}')


def interleave(
  sides: Sequence[Side], rounds: int, on_round: Callable[[int], None]
) -> dict[str, list[Sample]]:
  """Every side once a round, in an order that is reversed every time.

  A warm-up that is not counted comes first.

  Args:
    sides: ready.
    rounds: how many.
    on_round: told the number of rounds that are done.
  """
  for side in sides:
    side.go()
  samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
  for index in range(rounds):
    for side in sides[:: -1 if index % 2 else 1]:
      samples[side.name].append(side.go())
    on_round(index + 1)
  return samples


@dataclasses.dataclass(frozen=True)
class Ratio:
  """Median of paired ratios and its interval (nan: too few pairs)."""

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    if np.isnan(self.low):
      return f'{self.value:.3f}'
    return f'{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]'


def ratio(top: Sequence[float], bottom: Sequence[float]) -> Ratio:
  """How many times `bottom` is `top`, pair by pair.

  The interval is that of the sign test: between two order statistics, at
  least 95% whatever the distribution. It needs six pairs.
  """
  from scipy import stats

  pairs = np.sort(np.asarray(top, float) / np.asarray(bottom, float))
  n = len(pairs)
  # The k-th from either end: P(at most k - 1 pairs below the median) <= 2.5%.
  at_most_P = stats.binom.cdf(np.arange(n), n, 0.5)
  k = int(np.searchsorted(at_most_P, 0.025, 'right'))
  if k == 0:
    return Ratio(float(np.median(pairs)), np.nan, np.nan)
  return Ratio(float(np.median(pairs)), float(pairs[k - 1]), float(pairs[-k]))


@contextlib.contextmanager
def on_cores(n: int) -> Iterator[None]:
  """Keeps this process, and those started meanwhile, to n cores (0: all).

  Raises:
    UserError: there are fewer.
  """
  allowed = os.sched_getaffinity(0)
  if n > len(allowed):
    raise errors.UserError(
      f'--cores={n}: this process may use {len(allowed)}; give that or fewer'
    )
  os.sched_setaffinity(0, sorted(allowed)[: n or None])
  try:
    yield
  finally:
    os.sched_setaffinity(0, allowed)


def machine() -> str:
  """Processor, cores that this process may use, memory, system."""
  import platform

  model = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        model = line.split(':', 1)[1].strip()
        break
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  cores = len(os.sched_getaffinity(0))
  return f'{model}, {cores} cores, {memory:.0f} GiB, {platform.system()}'


def check_system() -> None:
  """Raises UserError where peaks of memory cannot be measured."""
  reset = pathlib.Path('/proc/self/clear_refs')
  if not reset.exists() or not os.access(reset, os.W_OK):
    raise errors.UserError(
      f'{reset}: cannot be written, so peaks of memory cannot be measured; run '
      'this on Linux with /proc writable'
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
