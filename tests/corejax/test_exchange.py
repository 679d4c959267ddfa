"""Files of other tools: scores per sample in JSON, lists of heads in YAML."""

import json
import math

import numpy as np
import pytest

from corejax import errors
from corejax import exchange
from corejax import heads as heads_lib
from corejax import ranking

SCORES = {'0-0': [0.0, 0.5], '0-1': [1, 0.2], '1-0': [0.9, 0.8], '1-1': [0, 0]}


def write(path, content):
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return str(path)


def test_scores(tmp_path):
  found = exchange.read_scores_json(write(tmp_path / 'a.json', SCORES))
  assert found.aligned and found.value_ELN.shape == (2, 2, 2)
  np.testing.assert_allclose(
    found.score_LN, [[0.25, 0.6], [0.85, 0]], atol=1e-12
  )
  assert found.value_ELN[1, 0, 1] == 0.2


def test_heads_of_other_sample_counts(tmp_path):
  scores = SCORES | {'0-0': [0.3], '1-1': [None, 0.4], '1-0': []}
  path = write(tmp_path / 'a.json', scores)
  found = exchange.read_scores_json(path)
  assert not found.aligned
  np.testing.assert_allclose(found.score_LN, [[0.3, 0.6], [np.nan, 0.4]])
  # A head without a score is never taken.
  taken = ranking.parse_heads(f'@{path}:top4', 2, 2)
  assert str(taken) == '0-0,0-1,1-1'


def test_scores_round_trip(tmp_path):
  value_ELN = np.random.default_rng(0).random((5, 3, 4)) ** 9
  value_ELN[2, 1, 1] = np.nan
  exchange.write_scores_json(tmp_path / 'a.json', value_ELN)
  found = exchange.read_scores_json(tmp_path / 'a.json')
  np.testing.assert_array_equal(found.value_ELN, value_ELN)
  with pytest.raises(ValueError, match='infinite'):
    exchange.write_scores_json(tmp_path / 'b.json', np.full((1, 1, 1), np.inf))


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('', 'not JSON'),
    ('[' * 100_000, 'not JSON'),
    ('[1]', 'no object'),
    ('{}', 'no object'),
    ({'a-b': [1]}, "'a-b' is not layer-head"),
    ({'0_0': [1]}, 'is not layer-head'),
    ('{"0-0": [1], "0-0": [2]}', "'0-0' stands twice"),
    ({'0-0': [1], '00-0': [2]}, '0-0 stands twice'),
    ({'0-0': 1}, 'holds no list'),
    ({'0-0': ['x']}, 'no number'),
    ({'0-0': [True]}, 'no number'),
    ('{"0-0": [1e999]}', 'infinite'),
    ('{"0-0": [1' + '0' * 400 + ']}', 'infinite'),
    ({'0-0': [1], '1-1': [1]}, 'no 0-1'),
    ({'999999-999999': [1]}, 'no 0-0'),
    ({'0-0': [1e308, 1e308]}, 'infinite'),
    ({'0-0': []}, 'no head has a sample'),
  ],
)
def test_bad_scores(tmp_path, content, words):
  path = write(tmp_path / 'a.json', content)
  with pytest.raises(errors.UserError, match=words) as e:
    exchange.read_scores_json(path)
  assert 'a.json' in str(e.value) and '\n' not in str(e.value)


HEADS = heads_lib.HeadSet.parse('14-22,13-16,14-3')
LISTS = [
  '- [14, 22]\n- [13, 16]\n- [14, 3]\n',
  '- 14-22\n- 13-16\n- "14-3"\n',
  '- layer: 14\n  head: 22\n- {head: 16, layer: 13}\n- [14, 3]\n',
  '14: [22, 3]\n13: 16\n',
  'heads:\n  - [14, 22]\n  - 13-16\n  - 14-3\n',
  'heads: {14: [22, 3], 13: [16]}\n',
  '[[14, 022], [13, 16], [014, 3]]',  # decimal, not YAML's octal
  '- &a [14, 22]\n- [13, 16]\n- [14, 3] # the rest\n',
]


@pytest.mark.parametrize('text', LISTS)
def test_heads(tmp_path, text):
  path = write(tmp_path / 'a.yaml', text)
  assert exchange.read_heads_yaml(path) == HEADS
  assert ranking.parse_heads(f'@{path}', 32, 32) == HEADS


def test_heads_round_trip(tmp_path):
  exchange.write_heads_yaml(tmp_path / 'a.yml', HEADS)
  assert exchange.read_heads_yaml(tmp_path / 'a.yml') == HEADS
  assert exchange.is_heads(tmp_path / 'a.yml')
  exchange.write_heads_yaml(tmp_path / 'none.yaml', heads_lib.HeadSet())
  with pytest.raises(errors.UserError, match='no heads'):
    exchange.read_heads_yaml(tmp_path / 'none.yaml')


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('', 'no heads'),
    ('[]', 'no heads'),
    ('a: [', 'not YAML'),
    ('[' * 5000, 'not YAML'),
    ('14', 'neither a list nor a mapping'),
    ('- [14, 22]\n- [14]\n', 'line 2: an entry that is no head'),
    ('- [14, x]', "'x' is no number"),
    ('- [14, -1]', 'is no number'),
    ('- [14, 1.5]', 'is no number'),
    ('- [14, [1]]', 'where a number belongs'),
    ('- true', 'an entry that is no head'),
    ('- {layer: 14}', 'an entry that is no head'),
    ('- {layer: 14, layer: 13, head: 2}', 'an entry that is no head'),
    ('x: [1]', "'x' is no number"),
    ('[1]: 2', 'where a number belongs'),
    ('- [14, 22]\n- 14-22', '14-22 stands twice'),
    ('14: [22]\n14: [22]', '14-22 stands twice'),
    ('heads: {heads: [1]}', "'heads' is no number"),
    ('- !!python/object/apply:os.system [ls, x]', 'is no number'),
    ('&a [*a]', 'an entry that is no head'),
    ('# ' + 'x' * 1_000_001, 'more than'),
  ],
)
def test_bad_heads(tmp_path, text, words):
  path = write(tmp_path / 'a.yaml', text)
  with pytest.raises(errors.UserError, match=words) as e:
    exchange.read_heads_yaml(path)
  assert 'a.yaml' in str(e.value) and '\n' not in str(e.value)


def test_one_layer_twice_is_both(tmp_path):
  path = write(tmp_path / 'a.yaml', '14: [22, 3]\n14: 1\n')
  assert str(exchange.read_heads_yaml(path)) == '14-1,14-3,14-22'


def test_where_heads_are_named(tmp_path):
  path = write(tmp_path / 'a.JSON', SCORES)
  assert str(ranking.parse_heads(f'@{path}:top2', 2, 2)) == '0-1,1-0'
  assert str(ranking.parse_heads(f'@{path}:bottom1', 2, 2)) == '1-1'
  with pytest.raises(errors.UserError, match='write @.*a.JSON:top5%'):
    ranking.parse_heads(f'@{path}', 2, 2)
  with pytest.raises(errors.UserError, match='2 layers x 2 heads; m has 4 x 2'):
    ranking.parse_heads(f'@{path}:top1', 4, 2, 'm')
  with pytest.raises(errors.UserError, match='no q values'):
    ranking.parse_heads(f'@{path}:fdr0.01', 2, 2)
  heads = write(tmp_path / 'a.yaml', LISTS[0])
  with pytest.raises(errors.UserError, match='leave the selection out'):
    ranking.parse_heads(f'@{heads}:top2', 32, 32)
  with pytest.raises(errors.UserError, match='m has 14 layers'):
    ranking.parse_heads(f'@{heads}', 14, 32, 'm')


@pytest.mark.parametrize('name', ['a.json', 'a.yaml'])
def test_unreadable_files(tmp_path, name):
  read = (
    exchange.read_scores_json
    if exchange.is_scores(name)
    else exchange.read_heads_yaml
  )
  with pytest.raises(errors.UserError, match='there is no such file'):
    read(tmp_path / name)
  (tmp_path / name).write_bytes(b'\xff\xfe')
  with pytest.raises(errors.UserError, match='not a text file'):
    read(tmp_path / name)
  (tmp_path / name).unlink()
  (tmp_path / name).mkdir()
  with pytest.raises(errors.UserError, match='cannot be read'):
    read(tmp_path / name)
  with pytest.raises(errors.UserError):
    read(f'foo://{name}')


def test_means_are_pythons(tmp_path):
  rng = np.random.default_rng(1)
  scores = {f'{l}-{n}': rng.random(7).tolist() for l in (0, 1) for n in (0, 1)}
  found = exchange.read_scores_json(write(tmp_path / 'a.json', scores))
  for key, values in scores.items():
    layer, head = map(int, key.split('-'))
    assert found.score_LN[layer, head] == pytest.approx(
      math.fsum(values) / 7, abs=1e-12
    )
