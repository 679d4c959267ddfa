"""What the pages name is there: files, flags, results."""

import csv
import dataclasses
import importlib
import re

import numpy as np
import pytest

from corejax.experiments import rank
from helpers import tree


def _pages():
  found = [tree.ROOT / 'README.md']
  for folder in tree.SOURCES:
    # The links in corejax/ lead to pages that are found in their own place.
    for path in (tree.ROOT / folder).rglob('README.md'):
      if path.resolve() == path:
        found.append(path)
  return sorted(found)


_PAGES = [str(p.relative_to(tree.ROOT)) for p in _pages()]


def _text(page):
  return (tree.ROOT / page).read_text()


def _links(text):
  """Targets of links and pictures that are no URL, and no place on the page."""
  targets = re.findall(r'\]\(<?([^)\s>]+)', text)
  targets += re.findall(r'\b(?:src|href)="([^"]+)"', text)
  return [t for t in targets if not re.match(r'[a-z]+:|#', t)]


def test_the_pages():
  assert {'README.md', 'models/llava/README.md', 'corejax/stats/README.md'} <= (
    set(_PAGES)
  )
  assert _links('![map](docs/a.png) [b](https://b) [c](#c) [d](d.py#L3)') == [
    'docs/a.png',
    'd.py#L3',
  ]


@pytest.mark.parametrize('page', _PAGES)
def test_links_lead_somewhere(page):
  folder = (tree.ROOT / page).parent
  lost = []
  for target in _links(_text(page)):
    path = (folder / target.split('#')[0]).resolve()
    if not path.exists() or not path.is_relative_to(tree.ROOT):
      lost.append(target)
  assert not lost


def test_the_front_page_has_links():
  assert len(_links(_text('README.md'))) >= 4


@pytest.mark.parametrize('page', _PAGES)
def test_no_placeholder_is_left(page):
  assert not re.findall(r'@[A-Z][A-Z_]*@', _text(page))


def test_flags_exist():
  # pip's and pytest's own, and what every program has.
  known = {'quiet', 'editable', 'numprocesses', 'dist', 'help'}
  for name in tree.experiments():
    module = importlib.import_module(f'corejax.experiments.{name}')
    for field in dataclasses.fields(module.Config):
      known.add(field.name)
      if field.type in (bool, 'bool'):
        known.add(f'no{field.name}')
  named = set(re.findall(r'(?<![\w-])--([a-z]\w*)', _text('README.md')))
  assert {'model', 'checkpoint', 'data_dir', 'query', 'norm'} <= named
  assert not named - known


def _results():
  """The table of a run's files: name -> what the page says of it."""
  section = _text('README.md').split("## A run's folder")[1]
  rows = re.findall(r'^\| (`.+`) \| (.+) \|$', section, re.M)
  return {name: says for names, says in rows for name in _quoted(names)}


def _quoted(text):
  return re.findall(r'`([^`]+)`', text)


def test_a_run_writes_what_the_page_lists(tmp_path):
  rank.run(rank.Config(out=str(tmp_path), limit=8, bootstrap=0, permutations=0))
  results = _results()
  assert {'heads.csv', 'heatmap.png', 'arrays.npz', 'run.json'} <= set(results)
  assert not [name for name in results if not (tmp_path / name).exists()]
  with open(tmp_path / 'heads.csv') as f:
    columns = next(csv.reader(f))
  assert set(_quoted(results['heads.csv'])) <= set(columns)
  with np.load(tmp_path / 'arrays.npz') as f:
    assert set(_quoted(results['arrays.npz'])) == set(f)
