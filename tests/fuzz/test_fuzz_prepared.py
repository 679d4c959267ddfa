"""Folders made ready, under mutation: `python -m pytest -m fuzz -s`.

Our own files and rows get 100,000 inputs each; those that TensorFlow Datasets
and array_record parse get 2,000, at a few milliseconds each.
"""

import json
import random

import numpy as np
import pytest

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import prepared
from corejax.data import tfds_builder
from helpers import mutation
from helpers import pictures

pytestmark = pytest.mark.fuzz

_SETTINGS = {'split': 'test', 'frames': 4, 'missed': 'move'}
_PICTURE = pictures.png(np.zeros((4, 4, 3), np.uint8))


def _example(number):
  return example_lib.Example(
    id=f'vidstg/test/{number}',
    source='vidstg',
    split='test',
    task='what',
    media=(_PICTURE, _PICTURE),
    question='What moves?',
    answers=('a dog', 'dog'),
    cluster=f'video {number}',
    evidence=(example_lib.Box(1, 0.1, 1 / 3, 0.7, 1.0),),
    distractors=(example_lib.Box(0, 0.0, 0.0, 0.5, 0.5),),
    span=(1.25, 3.5),
    kind='video' if number else 'frames',
    clips=(example_lib.Clip(0, (0.5, 1.75)),) if number else (),
    meta={'frames': [3, 9], 'moved': None},
  )


_LINES = [
  {'task': 'what', 'cluster': 'video 0'},
  {'task': None, 'cluster': '1', 'reason': 'bad box', 'detail': 'box of none'},
  {'task': 'what', 'cluster': 'video 1'},
]


def _write(folder, path):
  head = {
    'format': prepared.FORMAT,
    'data': 'vidstg',
    'settings': _SETTINGS,
    'tasks': ['what'],
    'fingerprint': '0123456789ab',
    'path': path,
    'remarks': ['2 sentences moved'],
  }
  (folder / prepared.FILE).write_text(json.dumps(head))
  lines = '\n'.join(map(json.dumps, _LINES))
  (folder / prepared.INDEX).write_text(lines)
  return head


def _read(folder):
  source = prepared.Prepared(folder, 'vidstg', _SETTINGS)
  outcome = 'whole'
  for index in range(len(source)):
    assert isinstance(source.cluster(index), str)
    try:
      assert source[index].media
    except errors.Rejected as e:
      outcome = str(e.reason)
  return outcome


def test_our_own_files(tmp_path, monkeypatch):
  rows = [prepared.to_row(_example(n)) for n in range(2)]
  monkeypatch.setattr(tfds_builder, 'open_rows', lambda path, split: rows)
  head = _write(tmp_path, 'core_evidence/x/1.0.0')
  good = {
    prepared.FILE: json.dumps(head).encode(),
    prepared.INDEX: (tmp_path / prepared.INDEX).read_bytes(),
  }

  def make(rng):
    name = rng.choice((prepared.FILE, prepared.INDEX))
    if rng.random() < 0.3:
      return name, mutation.mutate_bytes(rng, good[name])
    if name == prepared.FILE:
      return name, mutation.dumps(rng, mutation.mutate_json(rng, head))
    lines = [
      mutation.dumps(rng, mutation.mutate_json(rng, line))
      if rng.random() < 0.5
      else json.dumps(line).encode()
      for line in _LINES
    ]
    return name, b'\n'.join(lines)

  def parse(given):
    changed, data = given
    for name, whole in good.items():
      (tmp_path / name).write_bytes(data if name == changed else whole)
    return _read(tmp_path)

  found = mutation.count_outcomes('prepared folders', make, parse, 100_000)
  assert min(found['bad box'], found['UserError']) > 1000


def test_rows():
  goods = [prepared.to_row(_example(n)) for n in range(2)]

  def make(rng):
    row = dict(rng.choice(goods))
    for name in rng.sample(sorted(row), rng.choice((1, 1, 2, 3))):
      value = row[name]
      if name in ('exact', 'meta') and rng.random() < 0.8:
        changed = mutation.mutate_json(rng, json.loads(value))
        row[name] = mutation.dumps(rng, changed)
      elif isinstance(value, str) and rng.random() < 0.7:
        row[name] = mutation.mutate_bytes(rng, value.encode())
      elif rng.random() < 0.5:
        row[name] = mutation.hostile_value(rng)
      else:
        del row[name]
    return row

  def parse(row):
    example = prepared.from_row(row)
    for box in (*example.evidence, *example.distractors):
      assert 0 <= box.media < len(example.media)

  found = mutation.count_outcomes(
    'prepared rows', make, parse, 100_000, allowed=(errors.Rejected,)
  )
  assert min(found['accepted'], found['bad record']) > 1000
  assert found['bad box'] > 100  # a box is one field of many


@pytest.mark.parametrize(
  'name', ['dataset_info.json', 'features.json', '*.array_record*']
)
def test_files_of_tensorflow_datasets(tmp_path, name):
  rows = [prepared.to_row(_example(n)) for n in range(2)]
  made = tfds_builder.write(tmp_path, 'x', 'test', lambda: rows)
  _write(tmp_path, str(made.relative_to(tmp_path)))
  assert _read(tmp_path) == 'bad box'  # the one of the index
  (path,) = made.glob(name)
  good = path.read_bytes()

  def make(rng: random.Random):
    if path.suffix == '.json' and rng.random() < 0.7:
      return mutation.dumps(rng, mutation.mutate_json(rng, json.loads(good)))
    return mutation.mutate_bytes(rng, good)

  def parse(data):
    path.write_bytes(data)
    return _read(tmp_path)

  found = mutation.count_outcomes(f'tfds {name}', make, parse, 2_000)
  assert found['UserError'] or found['bad record']
