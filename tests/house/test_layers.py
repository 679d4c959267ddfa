"""Who may import whom, judged by import-linter on the tree and on copies."""

import shutil
import sysconfig

import pytest

from helpers import tree

_PLANTED = [
  ('kernels/dispatch.py', 'from corejax.models import registry', 'models'),
  ('models/registry.py', 'from corejax.kernels import dispatch', 'kernels'),
  ('models/registry.py', 'from corejax.experiments import cli', 'experiments'),
  ('kernels/dispatch.py', 'import corejax.experiments.cli', 'experiments'),
  ('corejax/masks.py', 'from corejax.models import registry', 'models'),
  ('corejax/masks.py', 'import corejax.kernels.dispatch', 'kernels'),
  ('corejax/masks.py', 'from corejax.experiments import cli', 'experiments'),
  ('corejax/data/new.py', 'from corejax.models import registry', 'models'),
  ('models/llava/new.py', 'import corejax.kernels.dispatch', 'kernels'),
]


def _lint(folder):
  program = shutil.which('lint-imports', path=sysconfig.get_path('scripts'))
  assert program, 'import-linter is not installed; install the extra `test`'
  return tree.run(program, '--no-cache', cwd=folder, check=False)


@pytest.fixture(scope='module')
def copied(tmp_path_factory):
  return tree.copy(tmp_path_factory.mktemp('layers') / 'tree')


def test_the_tree_keeps_its_contracts(copied):
  result = _lint(copied)
  assert result.returncode == 0, result.stdout + result.stderr
  assert '2 kept, 0 broken' in result.stdout


@pytest.mark.parametrize(
  ('file', 'line', 'imported'), _PLANTED, ids=lambda value: value
)
def test_a_planted_violation_is_reported(copied, file, line, imported):
  path = copied / file
  before = path.read_text() if path.exists() else None
  path.write_text(f'{before or ""}\n\ndef _planted():\n  {line}\n')
  try:
    result = _lint(copied)
  finally:
    if before is None:
      path.unlink()
    else:
      path.write_text(before)
  assert result.returncode == 1, result.stdout + result.stderr
  importer = 'corejax.' + file.removesuffix('.py').removeprefix('corejax/')
  chain = f'{importer.replace("/", ".")} -> corejax.{imported}.'
  assert chain in result.stdout, result.stdout


def _entry_modules():
  """Modules of experiments/ that define `cli`, by file name."""
  return {
    path.stem
    for path in tree.python_files('experiments')
    if '\ndef cli(' in path.read_text()
  }


def test_experiments_do_not_share_flags():
  """One may run another (`rank.run(rank.Config(...))`) within a function."""
  entries = _entry_modules()
  assert {'rank', 'inspect'} <= entries
  for path in tree.python_files('experiments'):
    for line, name in tree.imports(path, nested=False):
      for entry in entries:
        assert not f'{name}.'.startswith(f'corejax.experiments.{entry}.'), (
          f'{path}:{line} imports the experiment {entry}'
        )
