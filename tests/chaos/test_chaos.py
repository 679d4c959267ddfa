"""Rankings that are killed again and again, and what comes out of them.

    python -m pytest -m chaos

KILLS times a process is killed at a moment drawn from a seed (while it starts,
when so many parts are there, in the offline half), by SIGKILL or SIGTERM, and
the same command is given again until the run is done; then the next run starts.
Runs take turns: on 1, 2 and 4 virtual devices, and on another number of them at
every start. Each must end with every example once and with the bytes of an
uninterrupted run; where meshes are mixed, with the same RAM of every head
within 1e-6. COREJAX_CHAOS_SEED draws other moments.
"""

import collections
from collections.abc import Callable
import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from corejax.experiments import cli
from helpers import run_folders
from helpers import tree

pytestmark = pytest.mark.chaos

KILLS = 50
LATE = 2  # kills of one run once all is measured; then it is left to finish
SEED = int(os.environ.get('COREJAX_CHAOS_SEED', '0'))
EXAMPLES, BATCH = 120, 4
PARTS = EXAMPLES // BATCH
FLAGS = run_folders.flags(
  checkpoint='planted',
  data='scenes_pages',
  limit=EXAMPLES,
  batch_size=BATCH,
  bootstrap=200,
  permutations=200,
)
MESHES = {1: '', 2: 'data:2', 4: 'data:2,model:2'}
TURNS = (1, 2, 4, None)  # None: another number of devices at every start
PATIENCE_S = 1800  # on a machine that is busy otherwise


class Process:
  """One start of the command.

  Attributes:
    opened: is set once the run folder is open (or the process over).
  """

  def __init__(self, out: pathlib.Path, devices: int):
    self.opened = threading.Event()
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'experiments.rank',
        *FLAGS,
        f'--mesh={MESHES[devices]}',
        f'--out={out}',
      ],
      cwd=tree.ROOT,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self._out = threading.Thread(target=self._read)
    self._out.start()

  def _read(self):
    assert self._process.stdout
    for line in self._process.stdout:
      if ' -> ' in line:
        self.opened.set()
    self.opened.set()

  def kill(self, number: int) -> bool:
    """Sends a signal; False if there was nothing left to kill."""
    if self._process.poll() is not None:
      return False
    self._process.send_signal(number)
    return True

  def wait(self, seconds: float) -> None:
    """Returns after that time, or sooner if the process ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(seconds)

  def wait_for(self, there: Callable[[], bool]) -> None:
    """Returns when something is there, or the process has ended."""
    patience = time.monotonic() + PATIENCE_S
    while not there() and self._process.poll() is None:
      assert time.monotonic() < patience
      time.sleep(0.002)

  def end(self) -> tuple[int, str]:
    """(exit code, stderr), when the process has ended."""
    assert self._process.stdout and self._process.stderr
    try:
      error = self._process.stderr.read()
      code = self._process.wait(PATIENCE_S)
    finally:
      self._process.kill()
      self._process.wait()
      self._out.join()
      self._process.stdout.close()
      self._process.stderr.close()
    return code, error


@dataclasses.dataclass(frozen=True)
class Straight:
  """An uninterrupted run; how long its start and its offline half took."""

  folder: pathlib.Path
  files: dict[str, bytes]
  start_s: float
  offline_s: float


def straight(folder: pathlib.Path, devices: int) -> Straight:
  """Runs undisturbed, twice: the first one compiles."""
  for out in (folder / f'cold-{devices}', folder / f'straight-{devices}'):
    began = time.monotonic()
    process = Process(out, devices)
    process.opened.wait(PATIENCE_S)
    opened = time.monotonic()
    process.wait_for(lambda out=out: n_parts(out) == PARTS)
    measured = time.monotonic()
    code, error = process.end()
    assert code == 0, error
  ended = time.monotonic()
  files = run_folders.contents(out)
  run_folders.assert_same(folder / f'cold-{devices}', files)
  return Straight(out, files, opened - began, ended - measured)


def n_parts(out: pathlib.Path) -> int:
  return len(list((out / 'scores').glob('part-*')))


def wait_for_the_moment(
  draw: random.Random, process: Process, out: pathlib.Path, usual: Straight
) -> str:
  """Waits until the process is to be killed; says in which phase that is."""
  phase = draw.choice(('start', 'measuring', 'measuring', 'offline half'))
  before, share = n_parts(out), draw.random()
  if phase == 'start':
    process.wait(share * usual.start_s)
  elif phase == 'measuring' and before < PARTS:
    wanted = before + 1 + int(share * min(8, PARTS - before))
    process.wait_for(lambda: n_parts(out) >= wanted)
  else:
    phase = 'offline half'
    process.opened.wait(PATIENCE_S)
    process.wait_for(lambda: n_parts(out) == PARTS)
    process.wait(share * usual.offline_s)
  return phase


def test_killed_runs(tmp_path, capsys):
  draw = random.Random(SEED)
  began = time.monotonic()
  runs = {n: straight(tmp_path, n) for n in MESHES}
  kills, codes, ended = (collections.Counter() for _ in range(3))
  worst, turn = 0.0, 0
  while sum(kills.values()) < KILLS or turn % len(TURNS):
    fixed = TURNS[turn % len(TURNS)]
    out, late = tmp_path / f'run-{turn}', 0
    while True:
      devices = fixed or draw.choice(list(MESHES))
      process = Process(out, devices)
      number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
      phase, killed = '', False
      if sum(kills.values()) < KILLS and late < LATE:
        phase = wait_for_the_moment(draw, process, out, runs[devices])
        killed = process.kill(number)
        late += killed and n_parts(out) == PARTS
      code, error = process.end()
      codes[code] += 1
      run_folders.assert_whole(out)
      if killed:
        kills[number.name, phase] += 1
        # 0: it was over but for its last breath; -SIGTERM: Python had not
        # begun, or had ended.
        assert code in (0, -number) or (
          number == signal.SIGTERM and code == cli.EX_PREEMPTED
        ), error
      else:
        assert code == 0, error
      if fixed and (out / 'scores').exists():
        for part in (out / 'scores').glob('part-*'):
          name = str(part.relative_to(out))
          assert part.read_bytes() == runs[fixed].files[name], name
      if code == 0:
        break
    assert run_folders.indices(out) == list(range(EXAMPLES))
    if fixed:
      run_folders.assert_same(out, runs[fixed].files)
    else:
      for other in runs.values():
        apart = run_folders.largest_difference(out, other.folder)
        worst = max(worst, apart)
        assert apart < 1e-6
    ended[f'{fixed or "mixed"} devices'] += 1
    turn += 1
  between = max(
    run_folders.largest_difference(runs[1].folder, runs[n].folder)
    for n in MESHES
  )
  with capsys.disabled():
    print(f'\nseed {SEED}: {sum(kills.values())} kills')
    for (name, where), count in sorted(kills.items()):
      print(f'  {name:8} {where:13} {count}')
    print(f'  exit codes {dict(codes)}')
    print(f'  finished runs {dict(ended)}; 0 examples lost or doubled')
    print(f'  RAM, mixed meshes against each: at most {worst:.2g} apart')
    print(f'  RAM, uninterrupted, between meshes: {between:.2g} apart')
    print(f'  {time.monotonic() - began:.0f} s')
  assert sum(kills.values()) == KILLS
  assert set(ended) == {f'{n or "mixed"} devices' for n in TURNS}
