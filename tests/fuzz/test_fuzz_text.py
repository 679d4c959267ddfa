"""What a user types, under mutation: `python -m pytest -m fuzz -s`."""

import pytest

from corejax import heads
from corejax import ranking
from corejax import selection
from corejax import table
from corejax.experiments import config as config_lib
from corejax.experiments import resources
from helpers import mutation

pytestmark = pytest.mark.fuzz

_HEADS = ('0', '1', '14-22', '13-16', '-', ',', ' ', '000001-2', '@', ':', '٣')
_RULES = (
  *('top', 'bottom', 'per_layer', 'fdr', '5', '30', '0.01', '%', '.', '0'),
  *('1e3', '-', ' ', '999999999', '²'),
)
_MESH = ('data', 'model', ':', ',', '2', '4', '0', '-1', '99999', ' ', 'x', '²')
_TASKS = ('colour', 'shape', '_twin', ',', ' ', 'page', 'dance', 'figure')


def _text(pieces, good):
  """Draws of a grammar's own pieces, and mutated good texts."""

  def make(rng):
    if rng.random() < 0.5:
      return mutation.from_pieces(rng, pieces)
    return mutation.mutate_text(rng, rng.choice(good), pieces)

  return make


def test_head_sets():
  make = _text(_HEADS, ('14-22,13-16', '0-0', '1-2, 3-4,5-6'))

  def parse(text):
    assert heads.HeadSet.parse(str(heads.HeadSet.parse(text))) is not None

  found = mutation.count_outcomes('head sets', make, parse, 200_000)
  assert min(found['accepted'], found['UserError']) > 1000


def test_heads_of_a_ranking(tmp_path):
  columns = {name: ['0.5'] * 12 for name in table.REQUIRED}
  columns['rank'] = [str(n + 1) for n in range(12)]
  columns['layer'] = [str(n // 4) for n in range(12)]
  columns['head'] = [str(n % 4) for n in range(12)]
  lines = [','.join(columns), *map(','.join, zip(*columns.values()))]
  path = tmp_path / table.FILE
  path.write_text('\n'.join(lines))
  pieces = (*_HEADS, *_RULES, '@', ':', str(path), str(tmp_path), '/', '\0')
  good = (f'@{path}:top5%', f'@{tmp_path}:per_layer2', f'@{path}', '1-2')

  def parse(text):
    ranking.parse_heads(text, 3, 4)

  found = mutation.count_outcomes(
    '@RUN:selection', _text(pieces, good), parse, 100_000
  )
  assert min(found['accepted'], found['UserError']) > 1000


def test_selections():
  make = _text(_RULES, ('top5%', 'bottom30', 'per_layer2', 'fdr0.01'))

  def parse(text):
    rule = selection.Selection.parse(text)
    assert selection.Selection.parse(str(rule)) == rule
    rule.count(100, 100)

  found = mutation.count_outcomes('selections', make, parse, 200_000)
  assert min(found['accepted'], found['UserError']) > 1000


def test_meshes():
  make = _text(_MESH, ('data:2,model:4', 'model:2', 'data:1'))

  def parse(text):
    sizes = resources.parse_mesh(text)
    assert set(sizes) == {'data', 'model'} and min(sizes.values()) > 0

  found = mutation.count_outcomes('meshes', make, parse, 200_000)
  assert min(found['accepted'], found['UserError']) > 1000


@pytest.mark.parametrize('name', ['scenes_referring', 'scenes_pages'])
def test_tasks(name):
  make = _text(_TASKS, ('colour,shape', 'colour', 'page,colour_twin'))

  def parse(text):
    resources.load_source(config_lib.Shared(data=name, tasks=text))

  found = mutation.count_outcomes(f'tasks, {name}', make, parse, 100_000)
  assert min(found['accepted'], found['UserError']) > 1000
