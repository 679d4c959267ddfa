"""The wheel, and that every way to install puts `corejax` alone in place."""

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest

from helpers import tree

_BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""

# Without the installed packages' own .pth files: an editable corejax in the
# testing environment must not answer for the one under test.
_ISOLATED = """
import importlib.metadata, site, sys
site.addsitedir({site!r})
sys.path.append({packages!r})
"""

_PROBE = """
import importlib.util
for name in ('errors', 'data.example', 'models.registry', 'kernels.dispatch',
             'models.organisms.planted', 'experiments.rank'):
  print(importlib.util.find_spec('corejax.' + name).origin)
for name in ('models', 'kernels', 'experiments', 'tests', 'helpers'):
  assert importlib.util.find_spec(name) is None, name
names = {e.name: e.value for e in
         importlib.metadata.distribution('corejax').entry_points}
assert names == {
  'corejax-ablate': 'corejax.experiments.ablate:cli',
  'corejax-rank': 'corejax.experiments.rank:cli',
  'corejax-inspect': 'corejax.experiments.inspect:cli',
  'corejax-compare': 'corejax.experiments.compare:cli',
  'corejax-convert': 'corejax.experiments.convert:cli',
  'corejax-proxy': 'corejax.experiments.proxy:cli',
  'corejax-prefill': 'corejax.experiments.prefill:cli',
  'corejax-prepare': 'corejax.experiments.prepare:cli',
  'corejax-reproduce': 'corejax.experiments.reproduce:cli',
  'corejax-retrieve': 'corejax.experiments.retrieve:cli',
  'corejax-route': 'corejax.experiments.route:cli',
  'corejax-shift': 'corejax.experiments.shift:cli',
  'corejax-train-organism': 'corejax.experiments.train_organism:cli',
}, names
"""


def _build(hook, source, destination):
  destination.mkdir()
  tree.run('-W', 'ignore', '-c', _BUILD, hook, destination, cwd=source)
  (archive,) = destination.iterdir()
  return archive


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A copy with a new family, and organisms with awkward names."""
  copied = tree.copy(tmp_path_factory.mktemp('install') / 'tree')
  for name in (
    'models/newcomer/family.py',
    'models/organisms/tiny-1.5/config.json',
    'models/organisms/tiny-1.5/deep/er/model.safetensors',
    'models/organisms/plain/tokenizer.json',
    'corejax/newcomer/part.py',
  ):
    path = copied / name
    path.parent.mkdir(parents=True)
    path.write_text('')
  return copied


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
  return _build('build_wheel', source, tmp_path_factory.mktemp('w') / 'wheel')


def _expected(source):
  """Every .py and everything under organisms, as named in the wheel."""
  names = set()
  for folder in tree.SOURCES:
    for path in (source / folder).rglob('*'):
      name = path.relative_to(source).as_posix()
      organism = name.startswith('models/organisms/')
      if path.is_file() and (path.suffix == '.py' or organism):
        names.add(name if folder == 'corejax' else f'corejax/{name}')
  return names


def _members(archive):
  with zipfile.ZipFile(archive) as opened:
    return [n for n in opened.namelist() if not n.endswith('/')]


def test_wheel_holds_every_file_and_nothing_else_on_top(source, wheel):
  members = _members(wheel)
  assert len(members) == len(set(members))
  expected = _expected(source)
  assert 'corejax/models/newcomer/family.py' in expected
  assert expected <= set(members)
  tops = {name.split('/')[0] for name in members}
  assert {re.sub(r'-[\d.]+\.', '-', top) for top in tops} == {
    'corejax',
    'corejax-dist-info',
  }
  assert not [n for n in members if '__pycache__' in n or n.endswith('.pyc')]
  assert not [n for n in members if n.startswith('corejax/tests')]


def test_source_archive_builds_the_same_wheel(source, wheel, tmp_path):
  archive = _build('build_sdist', source, tmp_path / 'sdist')
  shutil.unpack_archive(archive, tmp_path / 'unpacked', filter='data')
  (unpacked,) = (tmp_path / 'unpacked').iterdir()
  again = _build('build_wheel', unpacked, tmp_path / 'wheel')
  assert sorted(_members(again)) == sorted(_members(wheel))


def _metadata(wheel):
  with zipfile.ZipFile(wheel) as opened:
    (name,) = [n for n in opened.namelist() if n.endswith('/METADATA')]
    return email.message_from_bytes(opened.read(name))


def test_metadata_come_from_setup_cfg(wheel):
  metadata = _metadata(wheel)
  assert metadata['Name'] == 'corejax'
  version = (tree.ROOT / 'corejax/__init__.py').read_text()
  assert f"__version__ = '{metadata['Version']}'" in version
  assert metadata['Requires-Python'] == '>=3.11'
  assert metadata['License'] == 'Apache-2.0'
  requires = metadata.get_all('Requires-Dist')
  core = {re.match(r'[\w-]+', r)[0] for r in requires if ';' not in r}
  assert core == set(
    'jax flax optax orbax-checkpoint transformers tokenizers safetensors '
    'ml_dtypes absl-py numpy scipy pillow jinja2 etils rich matplotlib'.split()
  )
  assert set(metadata.get_all('Provides-Extra')) == {
    'gpu',
    'tpu',
    'data',
    'video',
    'test',
  }
  assert 'torch==2.13.0; extra == "test"' in requires
  assert 'jax>=0.10' in requires
  assert 'transformers<6,>=5.17' in requires


def test_pyproject_declares_the_build_alone():
  read = tomllib.loads((tree.ROOT / 'pyproject.toml').read_text())
  assert set(read) == {'build-system', 'project'}
  assert set(read['project']) == {'name', 'dynamic'}


def test_licence_is_apache(wheel):
  text = (tree.ROOT / 'LICENSE').read_text()
  assert 'Apache License' in text and 'END OF TERMS AND CONDITIONS' in text
  assert any(n.endswith('/licenses/LICENSE') for n in _members(wheel))


def _pip(*arguments):
  def install(source, prefix):
    tree.run(
      *('-m', 'pip', '--isolated', '--disable-pip-version-check', 'install'),
      *('--quiet', '--no-index', '--no-deps', '--no-build-isolation'),
      *('--ignore-installed', '--prefix', prefix, *arguments, '.'),
      cwd=source,
    )

  return install


def _uv(source, prefix):
  uv = shutil.which('uv')
  if not uv:
    pytest.skip('uv is not installed')
  subprocess.run(
    [
      *(uv, 'pip', 'install', '--quiet', '--offline', '--no-deps'),
      *('--no-build-isolation', '--python', sys.executable),
      *('--prefix', prefix, '.'),
    ],
    cwd=source,
    check=True,
    env={**os.environ, 'UV_CACHE_DIR': str(prefix) + '-cache'},
  )


@pytest.mark.parametrize(
  'install',
  [_pip(), _pip('-e'), _uv],
  ids=['pip', 'pip -e', 'uv'],
)
def test_an_install_brings_corejax_alone(source, install, tmp_path):
  copied = tmp_path / 'tree'
  shutil.copytree(source, copied, symlinks=True)
  prefix = tmp_path / 'prefix'
  install(copied, prefix)
  scheme = {'base': str(prefix), 'platbase': str(prefix)}
  packages = pathlib.Path(sysconfig.get_path('purelib', 'posix_prefix', scheme))
  tops = {path.name for path in packages.iterdir()}
  assert {
    top
    for top in tops
    if not top.startswith(('corejax-', '__editable__', '__pycache__'))
  } <= {'corejax'}
  isolated = _ISOLATED.format(
    site=str(packages), packages=sysconfig.get_path('purelib')
  )
  empty = tmp_path / 'empty'
  empty.mkdir()
  result = tree.run('-S', '-c', isolated + _PROBE, cwd=empty)
  for origin in result.stdout.splitlines():
    assert origin.startswith(str(tmp_path)), origin
  for script in ('corejax-rank', 'corejax-inspect'):
    assert (prefix / 'bin' / script).is_file()
