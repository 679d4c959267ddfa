"""Names on import: nobody's package replaces ours, ours replace nobody's."""

import os

from absl import flags
import pytest

from helpers import tree


def _package(folder, name, text=''):
  (folder / name).mkdir(parents=True)
  (folder / name / '__init__.py').write_text(text)


def test_links_are_relative_and_the_folders_are_what_they_must_be():
  for name in tree.LINKS:
    assert os.readlink(tree.ROOT / 'corejax' / name) == f'../{name}'
  # With an __init__.py, `kernels` would be taken for Hugging Face's; without
  # one, `experiments` would give way to an installed package of that name.
  assert not (tree.ROOT / 'models/__init__.py').exists()
  assert not (tree.ROOT / 'kernels/__init__.py').exists()
  assert (tree.ROOT / 'experiments/__init__.py').exists()


# Whatever transformers asks of it is a decorator that changes nothing.
_STUB = """
class _Anything:
  def __init__(self, *args, **kwargs):
    pass
  def __call__(self, decorated):
    return decorated
def __getattr__(name):
  if name.startswith('__'):
    raise AttributeError(name)
  return _Anything
"""

_AUTO = """
import kernels
assert kernels.__file__ == {stub!r}, kernels.__file__
from transformers import AutoProcessor
from transformers.utils import is_kernels_available
assert is_kernels_available()
import importlib.util
if importlib.util.find_spec('torch'):
  # Takes a dozen names from `kernels`, and cannot be imported without torch.
  import transformers.integrations.hub_kernels
import corejax.models.registry
print(AutoProcessor.__name__)
"""


def test_transformers_finds_hugging_face_kernels(tmp_path):
  from transformers.utils import import_utils

  _package(tmp_path, 'kernels', _STUB)
  version = import_utils.KERNELS_MIN_VERSION
  metadata = tmp_path / f'kernels-{version}.dist-info' / 'METADATA'
  metadata.parent.mkdir()
  metadata.write_text(
    f'Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n'
  )
  # Installed packages come after the working folder, so the stub goes to the
  # end of the path and not into PYTHONPATH.
  program = f'import sys; sys.path.append({str(tmp_path)!r})\n' + _AUTO.format(
    stub=str(tmp_path / 'kernels/__init__.py')
  )
  result = tree.run('-c', program, cwd=tree.ROOT)
  assert result.stdout.strip() == 'AutoProcessor'


_OURS = """
import importlib, os
for name in ('models.registry', 'kernels.dispatch', 'experiments.cli'):
  module = importlib.import_module('corejax.' + name)
  folder = os.path.realpath(os.path.dirname(module.__file__))
  assert folder == os.path.join({root!r}, name.split('.')[0]), module.__file__
"""


def test_foreign_folders_in_the_working_folder_do_not_replace_ours(tmp_path):
  for name in tree.LINKS:
    _package(tmp_path, name, 'raise RuntimeError(f"{__file__} is foreign")')
    (tmp_path / name / 'registry.py').write_text('raise RuntimeError')
  program = _OURS.format(root=str(tree.ROOT))
  tree.run('-c', program, cwd=tmp_path, path=(tree.ROOT,))


def test_an_installed_experiments_does_not_win_over_the_checkout(tmp_path):
  _package(tmp_path, 'experiments', 'raise RuntimeError("installed")')
  (tmp_path / 'experiments/rank.py').write_text('raise RuntimeError')
  result = tree.run(
    *('-m', 'experiments.rank', '--help'), cwd=tree.ROOT, path=(tmp_path,)
  )
  assert '--checkpoint' in result.stdout


_OWN_FLAGS = """
import importlib, sys
from absl import app, flags
import jax
names = {names!r}
def ours():
  for name in names:
    importlib.import_module('corejax.experiments.' + name)
def theirs():
  flags.DEFINE_string('model', 'theirs', 'model')
  flags.DEFINE_integer('data', 1, 'data')
  flags.DEFINE_string('out', None, 'out')
before = set(flags.FLAGS)
{order}
assert set(flags.FLAGS) - before == {{'model', 'data', 'out'}}, set(flags.FLAGS)
def main(argv):
  assert argv == ['program', 'rest'], argv
  print(flags.FLAGS.model, flags.FLAGS.data)
app.run(main, ['program', '--model=mine', '--data=2', 'rest'])
"""


@pytest.mark.parametrize('order', ['ours(); theirs()', 'theirs(); ours()'])
def test_a_program_with_its_own_model_flag_works(order, tmp_path):
  names = sorted(
    path.relative_to(tree.ROOT / 'experiments')
    .with_suffix('')
    .as_posix()
    .replace('/', '.')
    for path in tree.python_files('experiments')
    if path.name != '__init__.py'
  )
  assert {'rank', 'inspect'} <= set(names)
  program = _OWN_FLAGS.format(names=names, order=order)
  result = tree.run('-c', program, cwd=tmp_path, path=(tree.ROOT,))
  assert result.stdout.splitlines()[-1] == 'mine 2'


def test_this_very_process_has_no_flag_of_ours():
  # Other tests have imported experiments by now, or will: either way absl's
  # global flags must not know them.
  assert 'model' not in flags.FLAGS
  assert 'checkpoint' not in flags.FLAGS
