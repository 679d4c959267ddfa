"""Compiled programs on disk: found again, and never in the way."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from corejax.experiments import compile_cache
from helpers import run_folders
from helpers import tree

# One run in a process of its own; prints what jax says of its cache.
_RUN = """
import collections, json, sys
from jax import monitoring
from corejax.experiments import rank
said = collections.Counter()
monitoring.register_event_listener(lambda event, **_: said.update([event]))
code = rank.cli(['rank', *sys.argv[1:]])
names = ('cache_hits', 'cache_misses', 'compile_requests_use_cache')
print(json.dumps([code, *(said[f'/jax/compilation_cache/{n}'] for n in names)]))
"""


def measured(out):
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      _RUN,
      *run_folders.flags(**run_folders.SMALL, out=out),
    ],
    env={k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    | {'JAX_PLATFORMS': 'cpu'},
    cwd=tree.ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert done.stderr == ''
  return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_compiles_nothing_and_makes_the_same_bytes(tmp_path):
  code, hits, misses, asked = measured(tmp_path / 'one')
  assert code == 0 and misses > 1 and hits + misses == asked
  code, hits, misses, asked = measured(tmp_path / 'two')
  assert code == 0 and asked > 0 and hits == asked and misses == 0
  folder = tmp_path / compile_cache.FOLDER
  assert {p.name for p in tmp_path.iterdir()} == {'one', 'two', folder.name}
  for out in ('one', 'two'):
    record = json.loads((tmp_path / out / 'run.json').read_text())
    assert record['compile_cache'] == str(next(folder.iterdir()))
  one, two = (
    {
      name: data
      for name, data in run_folders.contents(tmp_path / out).items()
      if name.startswith('scores/')
    }
    for out in ('one', 'two')
  )
  assert one == two and len(one) == run_folders.PARTS


@pytest.fixture
def settings(monkeypatch):
  """No cache is set up, as in a user's shell; what is set up is undone."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def compile_something(n):
  return float(jax.jit(lambda x: (x * n).sum())(jnp.ones(n)))


def entries(folder):
  return sorted(p.name for p in folder.glob('*/*-cache'))


def test_programs_are_kept_within_the_context_alone(settings, tmp_path):
  folder = tmp_path / compile_cache.FOLDER
  with compile_cache.beside(tmp_path / 'run') as used:
    assert used == str(next(folder.iterdir()))
    compile_something(101)
  inside = entries(folder)
  assert inside and folder.stat().st_mode & 0o777 == 0o700
  compile_something(102)
  assert entries(folder) == inside
  assert jax.config.jax_compilation_cache_dir is None


def test_a_users_own_folder_is_left_as_it_is(settings, tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  with compile_cache.beside(tmp_path / 'run') as used:
    assert used == str(tmp_path / 'mine')
  assert not list(tmp_path.iterdir())


def test_a_cache_that_is_switched_off_stays_off(settings, tmp_path):
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    with compile_cache.beside(tmp_path / 'run') as used:
      assert used == ''
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
  assert not list(tmp_path.iterdir())


def a_file(folder):
  folder.write_text('no folder')


def open_to_all(folder):
  folder.mkdir()
  folder.chmod(0o777)


def a_link(folder):
  (folder.parent / 'elsewhere').mkdir()
  folder.symlink_to('elsewhere')


@pytest.mark.parametrize('make', [a_file, open_to_all, a_link])
def test_a_folder_that_is_not_ours_is_not_used(make, settings, tmp_path):
  make(tmp_path / compile_cache.FOLDER)
  with compile_cache.beside(tmp_path / 'run') as used:
    assert used == ''
    compile_something(103)
  assert not list(tmp_path.rglob('*-cache'))


def test_no_folder_at_all(settings, tmp_path):
  with compile_cache.beside(tmp_path / 'gone' / 'run') as used:
    assert used == ''


def test_what_a_killed_run_left_half_written_is_removed(settings, tmp_path):
  with compile_cache.beside(tmp_path / 'run') as used:
    compile_something(104)
  folder = tmp_path / compile_cache.FOLDER
  whole = entries(folder)
  name = whole[0].removesuffix('-cache')
  stamp = next(folder.glob(f'*/{name}-atime'))
  stamp.unlink()
  with compile_cache.beside(tmp_path / 'run'):
    assert entries(folder) == whole[1:]
  assert used


def test_trouble_later_on_neither_ends_nor_floods_a_run(settings, tmp_path):
  # Warnings are errors here: one of jax's would fail this test.
  with compile_cache.beside(tmp_path / 'run') as used:
    compile_something(105)
    for path in (tmp_path / compile_cache.FOLDER).glob('*/*'):
      path.unlink()
    os.rmdir(used)
    with open(used, 'w') as f:
      f.write('no folder')
    assert compile_something(106) == 106 * 106
