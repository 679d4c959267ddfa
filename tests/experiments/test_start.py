"""How an experiment starts: as a fresh process, from the checkout."""

import importlib
import re
import resource

import pytest

from corejax.experiments import config as config_lib
from helpers import tree

_HEAVY = {
  'PIL',
  'flax',
  'jax',
  'jaxlib',
  'matplotlib',
  'numpy',
  'scipy',
  'torch',
  'transformers',
}
_EXPERIMENTS = tree.experiments()


def _start(name, *arguments, check=True):
  return tree.run(
    '-X',
    'importtime',
    '-m',
    f'experiments.{name}',
    *arguments,
    cwd=tree.ROOT,
    check=check,
  )


def _imported(stderr):
  """Top-level names, of lines like `import time:  5 |  9 |   json.decoder`."""
  names = re.findall(r'^import time:.*\| +([\w.]+)$', stderr, re.M)
  return {name.split('.')[0] for name in names}


@pytest.mark.parametrize('flag', ['--help', '-h'])
@pytest.mark.parametrize('name', _EXPERIMENTS)
def test_help(name, flag):
  done = _start(name, flag)
  module = importlib.import_module(f'corejax.experiments.{name}')
  listed = re.findall(r'^  --(\w+) ', done.stdout, re.M)
  flags = [field.name for field in config_lib.flag_fields(module.Config)]
  assert sorted(listed) == sorted(flags)
  imported = _imported(done.stderr)
  assert {'absl', 'corejax'} <= imported
  assert not imported & _HEAVY


def _seconds():
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


@pytest.mark.parametrize('name', _EXPERIMENTS)
def test_help_within_a_second(name):
  """Of processor time, which a busy machine does not lengthen."""
  before = _seconds()
  _start(name, '--help')
  assert 0 < _seconds() - before < 1


@pytest.mark.parametrize('name', _EXPERIMENTS)
@pytest.mark.parametrize(
  ('argument', 'words'),
  [('--lmit=3', 'lmit'), ('--seed=one', 'seed'), ('x', "'x'")],
)
def test_a_bad_command_line_is_told_as_fast(name, argument, words):
  done = _start(name, argument, check=False)
  assert done.returncode == 2
  assert not done.stdout
  told = [
    line
    for line in done.stderr.splitlines()
    if not line.startswith('import time:')
  ]
  assert len(told) == 1 and words in told[0]
  assert not _imported(done.stderr) & _HEAVY
