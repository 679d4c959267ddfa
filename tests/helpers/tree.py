"""The checkout as files: copies of it and what its modules import."""

import ast
from collections.abc import Iterator
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ('corejax', 'experiments', 'kernels', 'models')
LINKS = ('experiments', 'kernels', 'models')


def copy(destination: pathlib.Path) -> pathlib.Path:
  """Copies what an install reads, links kept as links.

  Args:
    destination: a folder that does not exist.

  Returns:
    destination.
  """
  destination.mkdir(parents=True)
  for name in SOURCES:
    shutil.copytree(
      ROOT / name,
      destination / name,
      symlinks=True,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for name in (
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'pyproject.toml',
    'setup.cfg',
  ):
    shutil.copy(ROOT / name, destination / name)
  return destination


def python_files(*folders: str) -> list[pathlib.Path]:
  """Every .py of these folders of the checkout, links not followed."""
  files = []
  for folder in folders:
    for path, _, names in os.walk(ROOT / folder):
      files += [pathlib.Path(path) / n for n in names if n.endswith('.py')]
  return sorted(files)


def experiments() -> list[str]:
  """The programs: modules of experiments/ that have an entry point."""
  return [
    path.stem
    for path in sorted((ROOT / 'experiments').glob('*.py'))
    if '\ndef cli(' in path.read_text()
  ]


def imports(
  path: pathlib.Path, nested: bool = True
) -> Iterator[tuple[int, str]]:
  """(line, dotted name) of every import in a file.

  `from a import b` gives `a.b`: b may be a module or a name in one.

  Args:
    path: the file.
    nested: count imports within functions and blocks too.
  """
  module = ast.parse(path.read_text(), str(path))
  for node in ast.walk(module) if nested else module.body:
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        yield node.lineno, f'{node.module}.{alias.name}'


def run(
  *arguments: str | os.PathLike[str],
  cwd: os.PathLike[str],
  path: tuple[os.PathLike[str], ...] = (),
  check: bool = True,
) -> subprocess.CompletedProcess[str]:
  """Runs this Python with these arguments in a folder.

  Args:
    *arguments: of the interpreter.
    cwd: the working folder.
    path: goes before the installed packages, as PYTHONPATH.
    check: fail the test, with all output, unless the exit code is 0.
  """
  environment = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join(map(str, path)),
    'PYTHONDONTWRITEBYTECODE': '1',
  }
  result = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  if check:
    assert result.returncode == 0, result.stdout + result.stderr
  return result
