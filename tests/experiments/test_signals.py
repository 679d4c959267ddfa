"""SIGTERM and Ctrl-C: what is saved, the exit code, and how soon."""

import contextlib
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from corejax import ranking
from corejax import store
from corejax.experiments import cli
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import measure
from corejax.experiments import organism_loop
from corejax.experiments import rank
from corejax.experiments import resources
from corejax.experiments import session
from corejax.experiments import train_organism
from helpers import run_folders

LONG = 60.0  # seconds that nothing here may wait for


def start(out: pathlib.Path) -> int:
  flags = run_folders.flags(**run_folders.SMALL, out=out)
  return rank.cli(['rank', *flags])


def interrupted(monkeypatch, module, name, number, wait=True):
  """A function that, once, gets a signal when it starts, and then goes on."""
  original, sent = getattr(module, name), []

  def call(*args, **kwargs):
    if not sent:
      sent.append(time.monotonic())
      os.kill(os.getpid(), number)
      if wait:
        time.sleep(LONG)
    return original(*args, **kwargs)

  monkeypatch.setattr(module, name, call)
  return sent


def state(out) -> str:
  return json.loads((out / 'run.json').read_text())['state']


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  out = tmp_path_factory.mktemp('straight') / 'run'
  assert start(out) == 0
  return run_folders.contents(out)


SIGNALS = pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])


@SIGNALS
def test_while_loading(number, tmp_path, monkeypatch, capfd):
  out = tmp_path / 'run'
  sent = interrupted(monkeypatch, resources, 'load', number)
  assert start(out) == cli.EX_PREEMPTED
  assert time.monotonic() - sent[0] < LONG / 2
  assert not out.exists()
  assert capfd.readouterr().err.splitlines() == [
    'stopping; a second signal ends this at once',
    'preempted; the same command again continues',
  ]


@SIGNALS
@pytest.mark.parametrize('step', [0, 1, 2])
def test_while_measuring(number, step, straight, tmp_path, monkeypatch):
  """What was begun is saved: nothing measured is lost."""
  out, begun = tmp_path / 'run', []
  original = measure.start_batch

  def start_batch(*args):
    begun.append(None)
    if len(begun) == step + 1:
      os.kill(os.getpid(), number)
    return original(*args)

  with monkeypatch.context() as patch:
    patch.setattr(measure, 'start_batch', start_batch)
    # The last batch may end before anybody looks; the offline half does then.
    assert start(out) == cli.EX_PREEMPTED
  assert state(out) == 'preempted'
  assert len(list((out / 'scores').iterdir())) == step + 1
  run_folders.assert_whole(out)
  assert start(out) == 0
  run_folders.assert_same(out, straight)


@SIGNALS
@pytest.mark.parametrize(
  ('module', 'name'),
  [(ranking, 'rank'), (store.ScoreStore, 'load'), (session, 'check_rejected')],
)
def test_in_the_offline_half(
  number, module, name, straight, tmp_path, monkeypatch
):
  out = tmp_path / 'run'
  with monkeypatch.context() as patch:
    sent = interrupted(patch, module, name, number)
    assert start(out) == cli.EX_PREEMPTED
  assert time.monotonic() - sent[0] < LONG / 2
  assert state(out) == 'preempted'
  assert start(out) == 0
  run_folders.assert_same(out, straight)


def test_after_the_last_result_a_signal_stops_nothing(
  straight, tmp_path, monkeypatch
):
  out, original = tmp_path / 'run', rank._finish

  def finish(*args):
    result = original(*args)
    os.kill(os.getpid(), signal.SIGTERM)
    return result

  monkeypatch.setattr(cli.Stop, 'at_once', lambda *_: contextlib.nullcontext())
  monkeypatch.setattr(rank, '_finish', finish)
  assert start(out) == 0
  run_folders.assert_same(out, straight)


def test_a_signal_that_python_drops_comes_again():
  """What is raised while garbage is collected goes no further."""

  def callback(*_):
    if not sent:
      sent.append(time.monotonic())
      os.kill(os.getpid(), signal.SIGTERM)

  sent = []
  gc.callbacks.append(callback)
  try:
    with cli.Stop() as stop, pytest.raises(cli.Preempted), stop.at_once():
      gc.collect()
      time.sleep(LONG)
  finally:
    gc.callbacks.remove(callback)
  assert time.monotonic() - sent[0] < LONG / 2


def test_a_signal_that_somebody_swallowed_ends_the_block():
  with cli.Stop() as stop, pytest.raises(cli.Preempted):
    with stop.at_once():
      try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LONG)
      except BaseException:
        pass


def test_what_a_library_makes_of_a_signal_is_no_fault():
  def library():
    try:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(LONG)
    except BaseException:
      raise TypeError('cannot compare') from None

  with cli.Stop() as stop, pytest.raises(cli.Preempted) as caught:
    with stop.at_once():
      library()
  assert isinstance(caught.value.__cause__, TypeError)


def test_a_fault_without_a_signal_is_a_fault():
  with cli.Stop() as stop, pytest.raises(TypeError, match='bug'):
    with stop.at_once():
      raise TypeError('bug')


def test_elsewhere_a_signal_waits_for_check():
  done = []
  with cli.Stop() as stop, pytest.raises(cli.Preempted):
    with stop.at_once(alone=False):
      os.kill(os.getpid(), signal.SIGTERM)
      done.append('with others')
    done.append('saving')
    assert stop.asked
    stop.check()
  assert done == ['with others', 'saving']


def test_handlers_and_threads_are_put_back():
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  threads, files = threading.active_count(), len(os.listdir('/dev/fd'))
  for _ in range(3):
    with cli.Stop():
      assert signal.getsignal(signal.SIGTERM) != before[0]
  after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  assert after == before
  assert threading.active_count() == threads
  assert len(os.listdir('/dev/fd')) == files


def test_outside_the_main_thread_nothing_is_caught():
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def work():
    with cli.Stop() as stop, stop.at_once():
      stop.check()
      seen.append(signal.getsignal(signal.SIGTERM))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [before]


# A call that Python cannot interrupt, as a compilation is.
_BUSY = """
import hashlib
from corejax.experiments import cli, config
def run(_):
  with cli.Stop():
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
raise SystemExit(cli.main(['x'], config.Shared, run, ''))
"""


@SIGNALS
def test_a_second_signal_acts_at_once(number, checkout):
  process = subprocess.Popen(
    [sys.executable, '-c', _BUSY],
    cwd=checkout,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stderr
  try:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    told = process.stderr.readline()
    assert told == 'stopping; a second signal ends this at once\n'
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(0.3)
    process.send_signal(number)
    assert process.wait(LONG / 2) == cli.EX_PREEMPTED
    told = process.stderr.readline()
    assert told == 'stopped; the same command again continues\n'
  finally:
    process.kill()
    process.communicate()


# ---- the other experiments


def test_inspect(tmp_path, monkeypatch):
  sent = interrupted(monkeypatch, resources, 'load_source', signal.SIGTERM)
  code = inspect_lib.cli(['inspect', f'--out={tmp_path / "run"}'])
  assert code == cli.EX_PREEMPTED
  assert time.monotonic() - sent[0] < LONG / 2
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('module', 'name', 'wait'),
  [(train_organism, 'job', True), (organism_loop, 'train', False)],
)
def test_train_organism(module, name, wait, tmp_path, monkeypatch):
  out = tmp_path / 'run'
  if name == 'train':
    monkeypatch.setattr(train_organism, 'job', lambda _: None)
    monkeypatch.setattr(organism_loop, 'train', lambda _, __, check: check())
  sent = interrupted(monkeypatch, module, name, signal.SIGTERM, wait)
  code = train_organism.cli(['train', '--size=tiny', f'--out={out}'])
  assert code == cli.EX_PREEMPTED
  assert time.monotonic() - sent[0] < LONG / 2
  assert state(out) == 'preempted'
