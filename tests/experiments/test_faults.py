"""Runs that are killed, refused, or out of disk, and what comes after."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import Any

import jax.numpy as jnp
import pytest

from corejax import errors
from corejax.experiments import cli
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import organism_loop
from corejax.experiments import organism_schedule
from corejax.experiments import rank
from corejax.experiments import runs
from corejax.experiments import train_organism
from corejax.models.llava import templates
from helpers import run_folders


def start(out: pathlib.Path, **settings) -> int:
  """The command, in this process; its exit code."""
  settings = {**run_folders.SMALL, 'out': out, **settings}
  return rank.cli(['rank', *run_folders.flags(**settings)])


def told(capsys) -> str:
  """The one line on stderr."""
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), lines
  return lines[0]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The files of a run that nothing disturbed."""
  out = tmp_path_factory.mktemp('straight') / 'run'
  assert start(out) == 0
  return run_folders.contents(out)


@pytest.fixture
def parted(tmp_path, straight):
  """A run that was killed after two of three parts."""
  out = tmp_path / 'run'
  assert start(out) == 0
  (out / 'scores' / 'part-00002.npz').unlink()
  for name in rank.RESULTS:
    (out / name).unlink()
  return out


def states(out, monkeypatch, run) -> list[tuple[str, pathlib.Path]]:
  """What kill -9 would leave of a run: a copy in the middle of every write."""
  replace, copies = os.replace, []

  def copying(source, target):
    if pathlib.Path(target).is_relative_to(out):
      copy = out.parent / f'killed-{len(copies)}'
      shutil.copytree(out, copy)
      draft = copy / pathlib.Path(source).relative_to(out)
      os.truncate(draft, draft.stat().st_size // 2)
      copies.append((f'at write {len(copies)}, {target}', copy))
    return replace(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', copying)
    assert run() == 0
  return copies


@pytest.mark.parametrize('before', ['nothing', 'another run', 'another norm'])
def test_killed_at_any_write(before, straight, tmp_path, monkeypatch):
  """The same command again gives the bytes of an undisturbed run."""
  out, again = tmp_path / 'run', {}
  if before == 'another run':
    assert start(out, data='scenes_pages') == 0
    again = {'resume': False}
  if before == 'another norm':
    assert start(out, norm='lift') == 0
  copies = states(out, monkeypatch, lambda: start(out, **again))
  run_folders.assert_same(out, straight)
  # run.json twice, six results, and the parts unless they are reused.
  assert len(copies) >= 8 + (before != 'another norm') * run_folders.PARTS
  for name, copy in copies:
    run_folders.assert_whole(copy)
    assert start(copy, **again) == 0
    run_folders.assert_same(copy, straight, name)


@pytest.mark.parametrize(
  'made', ['', '.lock', 'scores/', 'run.json', '.run.json.tmp', 'traceback.txt']
)
def test_killed_while_the_folder_was_made(made, straight, tmp_path):
  out = tmp_path / 'run'
  out.mkdir()
  if made.endswith('/'):
    (out / made).mkdir()
  elif made:
    (out / made).write_bytes(b'')
  assert start(out) == 0
  (out / '.run.json.tmp').unlink(missing_ok=True)
  run_folders.assert_same(out, straight)


@pytest.mark.parametrize('left', [b'', None])
def test_parts_outlive_a_lost_run_json(left, straight, parted):
  known = parted / 'run.json'
  known.unlink() if left is None else known.write_bytes(left)
  before = {p: p.stat().st_ino for p in (parted / 'scores').iterdir()}
  assert len(before) == 2
  assert start(parted) == 0
  assert all(p.stat().st_ino == inode for p, inode in before.items())
  run_folders.assert_same(parted, straight)


def test_kill_9_of_a_process(straight, tmp_path, checkout):
  out = tmp_path / 'run'
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'experiments.rank',
      *run_folders.flags(**run_folders.SMALL, out=out),
    ],
    cwd=checkout,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  patience = time.monotonic() + 120
  while not (out / 'scores' / 'part-00000.npz').exists():
    assert time.monotonic() < patience
    assert process.poll() is None, process.communicate()[1].decode()
    time.sleep(0.002)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  run_folders.assert_whole(out)
  assert start(out) == 0  # its lock went with it
  run_folders.assert_same(out, straight)


# ---- another run


def test_a_second_run_says_who_holds_the_folder(parted, capsys):
  before = run_folders.contents(parted)
  capsys.readouterr()
  with runs.locked(parted):
    assert start(parted) == cli.EX_USER
    with runs.locked(parted.parent):
      assert inspect_lib.cli(['i', f'--out={parted.parent}']) == cli.EX_USER
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  for line in lines:
    holder = re.search(r'held by process (\d+) on (\S+) since (\S+);', line)
    assert holder and int(holder[1]) == os.getpid()
    assert holder[2] == os.uname().nodename
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', holder[3])
  assert run_folders.contents(parted) == before


def test_a_file_system_without_locks(tmp_path, capsys, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(runs.fcntl, 'flock', refuse)
  assert start(tmp_path / 'run') == cli.EX_USER
  assert 'No locks available' in told(capsys)


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    ({'seed': 5}, r'seed was 0, is 5'),
    ({'limit': 8, 'batch_size': 2}, r'batch_size was 4, is 2; .*limit was 12'),
    ({'checkpoint': 'scenes-8x8'}, r"checkpoint_fingerprint was '\w+', is '"),
    ({'data': 'scenes_pages'}, r"data was 'scenes_referring', is 'scenes_p"),
    ({'split': 'validation'}, r"split was 'test', is 'validation'"),
  ],
)
def test_other_settings_are_named(settings, words, parted, capsys):
  before = run_folders.contents(parted)
  capsys.readouterr()
  assert start(parted, **settings) == cli.EX_USER
  line = told(capsys)
  assert re.search(words, line) and '--noresume' in line, line
  assert run_folders.contents(parted) == before


def test_another_template_is_named_by_its_kind_of_source(
  parted, capsys, monkeypatch
):
  plain = templates.SETS['plain']
  other = dataclasses.replace(plain['image'], name='another')
  monkeypatch.setitem(templates.SETS, 'plain', {**plain, 'image': other})
  capsys.readouterr()
  assert start(parted) == cli.EX_USER
  line = told(capsys)
  assert re.search(r"templates\.image was '\w{12}', is '\w{12}'", line), line
  assert 'templates.pages' not in line


# ---- disks


def writes(monkeypatch, number, error):
  """From write `number` on, counted from 0, the disk answers with an error."""
  count = [0]

  def fsync(_):
    count[0] += 1
    if count[0] > number:
      raise OSError(error, os.strerror(error))

  monkeypatch.setattr(os, 'fsync', fsync)


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EROFS])
def test_the_disk_fills_at_any_write(
  error, straight, tmp_path, monkeypatch, capsys
):
  for number in range(20):
    out = tmp_path / str(number)
    with monkeypatch.context() as patch:
      writes(patch, number, error)
      code = start(out)
    if code == 0:
      break
    assert code == cli.EX_USER
    line = told(capsys)
    assert f'cannot be written ({os.strerror(error)})' in line
    assert 'run the same command again' in line
    assert not list(out.rglob('*.tmp'))
    run_folders.assert_whole(out)
    parts = len(list(out.glob('scores/part-*')))
    assert parts == min(max(number - 1, 0), run_folders.PARTS)
    assert start(out) == 0
    run_folders.assert_same(out, straight, f'at write {number}')
    capsys.readouterr()
  assert number == 2 + run_folders.PARTS + len(rank.RESULTS)


@pytest.mark.parametrize(
  ('limit', 'name'), [(1000, 'run.json'), (20000, 'part-00000')]
)
def test_a_limit_of_the_system(limit, name, straight, tmp_path, capsys):
  """Not a fault that a test made up: write() itself comes back short."""
  out = tmp_path / 'run'
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    code = start(out)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert code == cli.EX_USER
  assert name in told(capsys)
  assert start(out) == 0
  run_folders.assert_same(out, straight)


@pytest.mark.parametrize('where', ['file/run', 'file', 'loop/run'])
def test_a_folder_that_cannot_be_made(where, tmp_path, capsys):
  (tmp_path / 'file').write_text('mine')
  (tmp_path / 'loop').symlink_to('loop')
  out = tmp_path / where
  for code in (
    start(out),
    inspect_lib.cli(['inspect', f'--out={out}']),
    train_organism.cli(['train', '--size=tiny', f'--out={out}']),
  ):
    assert code == cli.EX_USER
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3
  assert all(f'--out={out}: cannot be used' in line for line in lines)
  assert (tmp_path / 'file').read_text() == 'mine'
  assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'loop']


def test_a_folder_that_cannot_be_written(tmp_path, straight, parted, capsys):
  if os.geteuid() == 0:
    pytest.skip('root may write everywhere')
  capsys.readouterr()
  parted.chmod(0o500)
  try:
    assert start(parted) == cli.EX_USER
  finally:
    parted.chmod(0o700)
  assert 'cannot be' in told(capsys)
  assert start(parted) == 0
  run_folders.assert_same(parted, straight)


def test_a_failed_start_leaves_nothing_behind(tmp_path, capsys):
  for settings in (
    {'checkpoint': tmp_path / 'absent'},
    {'select': 'top999'},
    {'mesh': 'data:64'},
    {'mesh': 'data:3'},
    {'tasks': 'dance'},
  ):
    assert start(tmp_path / 'run', **settings) == cli.EX_USER
    told(capsys)
    assert list(tmp_path.iterdir()) == []


# ---- parts


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (lambda data: data[:-100], 'not a readable store part'),
    (lambda data: b'', 'not a readable store part'),
    (lambda data: b'<html>' * 99, 'not a readable store part'),
    (lambda data: data[:99] + b'x' * 99 + data[198:], 'not a readable store'),
    (None, 'a part of another run'),
  ],
  ids=['cut', 'empty', 'garbage', 'overwritten head', 'another run'],
)
def test_an_unreadable_part_is_told_before_others_are_measured(
  content, words, straight, parted, tmp_path, capsys
):
  part = parted / 'scores' / 'part-00001.npz'
  good = part.read_bytes()
  if content is None:
    assert start(tmp_path / 'other', seed=1) == 0
    content = (tmp_path / 'other/scores' / part.name).read_bytes
    part.write_bytes(content())
  else:
    part.write_bytes(content(good))
  capsys.readouterr()
  assert start(parted) == cli.EX_USER
  line = told(capsys)
  assert str(part) in line and words in line, line
  names = sorted(p.name for p in (parted / 'scores').iterdir())
  assert names == ['part-00000.npz', 'part-00001.npz']
  part.unlink()
  assert start(parted) == 0
  run_folders.assert_same(parted, straight)


def test_a_damaged_array_is_told_and_mended(straight, parted, capsys):
  part = parted / 'scores' / 'part-00001.npz'
  data = bytearray(part.read_bytes())
  data[len(data) // 2] ^= 1
  part.write_bytes(data)
  capsys.readouterr()
  assert start(parted) == cli.EX_USER
  line = told(capsys)
  assert str(part) in line and 'remove this file' in line
  part.unlink()
  assert start(parted) == 0
  run_folders.assert_same(parted, straight)


# ---- meshes


def test_a_resume_on_another_mesh(straight, parted, tmp_path):
  """2 x 2 virtual devices go on where one device stopped, and back."""
  mesh = 'data:2,model:2'
  assert start(parted, mesh=mesh) == 0
  assert run_folders.indices(parted) == list(range(12))
  whole = tmp_path / 'straight'
  assert start(whole) == 0
  assert run_folders.largest_difference(parted, whole) < 1e-6
  record = json.loads((parted / 'run.json').read_text())
  assert record['mesh'] == {'data': 2, 'model': 2}
  (parted / 'scores' / 'part-00000.npz').unlink()
  assert start(parted) == 0
  assert run_folders.largest_difference(parted, whole) < 1e-6


# ---- training


@pytest.fixture
def saved(tmp_path):
  """(checkpoints folder, a place like those saved in it)."""
  folder = tmp_path / 'run' / organism_loop.CHECKPOINTS
  state: Any = [jnp.arange(10.0) + i for i in range(40)]
  place = organism_loop._Place(state, step=1)
  with organism_loop.Saved(folder) as checkpoints:
    checkpoints.write(place)
  return folder, place


def test_a_checkpoint_that_does_not_fit(saved):
  """One line, and no traceback of a write that outlived the first to fail."""
  folder, place = saved
  place.step = 2
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
  try:
    with (
      organism_loop.Saved(folder) as checkpoints,
      pytest.raises(errors.UserError, match='step 2 cannot be saved') as e,
    ):
      checkpoints.write(place)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert '\n' not in str(e.value)
  with organism_loop.Saved(folder) as checkpoints:
    place.step = 0
    checkpoints.restore(place)
    assert place.step == 1  # the earlier one is kept
    place.step = 2
    checkpoints.write(place)  # and there is room for it again
  assert (folder / '2').is_dir()


def test_an_unreadable_checkpoint(saved):
  folder, place = saved
  (folder / '1' / 'default' / '_METADATA').write_bytes(b'')
  with (
    organism_loop.Saved(folder) as checkpoints,
    pytest.raises(errors.UserError, match='1: not a readable checkpoint'),
  ):
    checkpoints.restore(place)


@pytest.mark.parametrize('left', [b'', None])
def test_checkpoints_of_nobody_are_refused(left, saved, capsys):
  out = saved[0].parent
  if left is not None:
    (out / 'run.json').write_bytes(left)
  assert train_organism.cli(['t', '--size=tiny', f'--out={out}']) == cli.EX_USER
  assert 'holds checkpoints but no run.json' in told(capsys)
  assert (saved[0] / '1').is_dir()


def test_history_is_written_before_its_checkpoint():
  """What it lacks after a kill between the two could not be made again."""
  order = []

  class Written:
    def __init__(self, name):
      self.write = lambda *_: order.append(name)

  def check():
    if order:
      raise cli.Preempted

  plan = organism_schedule.Plan(4, 1, 1, 0.0)
  job: Any = types.SimpleNamespace(plan=plan, save_every=1, state=None)
  place = organism_loop._Place(job.state)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.Preempted):
    patch.setattr(organism_loop, '_one_step', lambda *_: 0.0)
    organism_loop._stages(
      job, None, place, Written('checkpoint'), Written('history'), check
    )
  assert order == ['history', 'checkpoint']
