"""Rules that are read off the source text."""

import ast
import re
import sys

import pytest

from helpers import tree

_ALL = (*tree.SOURCES, 'tests')
_MAX_LINES = 500

# import name -> the declared distribution that brings it
_DISTRIBUTIONS = {
  'PIL': 'pillow',
  'absl': 'absl-py',
  'huggingface_hub': 'transformers',
  'orbax': 'orbax-checkpoint',
  'yaml': 'flax',
}


def _relative(path):
  return str(path.relative_to(tree.ROOT))


def _top_level_imports(*folders):
  return [
    (f'{_relative(path)}:{line}', name.split('.')[0], name)
    for path in tree.python_files(*folders)
    for line, name in tree.imports(path)
  ]


def test_torch_stays_under_tests():
  found = [
    place
    for place, top, _ in _top_level_imports(*tree.SOURCES)
    if top in ('torch', 'torchvision', 'tensorflow', 'plotly')
  ]
  assert not found


def test_our_packages_are_imported_through_corejax():
  found = [
    place for place, top, _ in _top_level_imports(*_ALL) if top in tree.LINKS
  ]
  assert not found


def test_only_experiments_know_flags_and_processes():
  found = [
    f'{place} {name}'
    for place, _, name in _top_level_imports('corejax', 'models', 'kernels')
    if name.startswith(('absl.flags', 'absl.app', 'jax.distributed'))
  ]
  for path in tree.python_files('corejax', 'models', 'kernels'):
    if 'jax.distributed.initialize' in path.read_text():
      found.append(_relative(path))
  assert not found


def test_our_modules_are_imported_not_their_names():
  found = []
  for place, top, name in _top_level_imports(*_ALL):
    if top not in ('corejax', 'helpers') or '.' not in name:
      continue
    home = tree.ROOT if top == 'corejax' else tree.ROOT / 'tests'
    target = home / name.replace('.', '/')
    if not (target.with_suffix('.py').is_file() or target.is_dir()):
      found.append(f'{place} {name}')
  assert not found


@pytest.mark.parametrize('folder', _ALL)
def test_files_are_short(folder):
  lengths = {
    _relative(path): len(path.read_text().splitlines())
    for path in tree.python_files(folder)
  }
  assert not {k: v for k, v in lengths.items() if v > _MAX_LINES}


@pytest.mark.parametrize('folder', _ALL)
def test_nothing_is_left_to_do(folder):
  mark = re.compile(r'\b(TO' r'DO|FIX' r'ME|X' r'XX)\b|except\s*:')
  found = [
    f'{_relative(path)}:{number}'
    for path in tree.python_files(folder)
    for number, text in enumerate(path.read_text().splitlines(), 1)
    if mark.search(text)
  ]
  assert not found


@pytest.mark.parametrize('folder', tree.SOURCES)
def test_what_catches_all_raises_again(folder):
  """A handler of (Base)Exception holds a bare `raise`."""
  found = []
  for path in tree.python_files(folder):
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.ExceptHandler):
        continue
      caught = ast.unparse(node.type) if node.type else 'Exception'
      again = any(
        isinstance(inner, ast.Raise) and inner.exc is None
        for inner in ast.walk(node)
      )
      if re.search(r'\b(Base)?Exception\b', caught) and not again:
        found.append(f'{_relative(path)}:{node.lineno}')
  assert not found


def _declared(*extras):
  """Names of the distributions in setup.cfg, of the core and these extras."""
  text = (tree.ROOT / 'setup.cfg').read_text()
  blocks = [re.search(r'^install_requires =\n((?: +.*\n)+)', text, re.M)]
  blocks += [re.search(rf'^{e} =\n((?: +.*\n)+)', text, re.M) for e in extras]
  names = set()
  for block in blocks:
    for line in block[1].split('\n'):
      if line.strip():
        names.add(re.match(r'[\w-]+', line.strip())[0].lower())
  return names


@pytest.mark.parametrize(
  ('folders', 'extras'),
  [(tree.SOURCES, ('data', 'gpu')), (('tests',), ('data', 'test'))],
)
def test_what_is_imported_is_declared(folders, extras):
  declared = _declared(*extras)
  assert {'jax', 'numpy'} <= declared
  ours = {'corejax', 'helpers', *sys.stdlib_module_names}
  found = [
    place + ' ' + top
    for place, top, _ in _top_level_imports(*folders)
    if top not in ours and _DISTRIBUTIONS.get(top, top).lower() not in declared
  ]
  assert not found
