"""What lies in folders, under mutation: `python -m pytest -m fuzz -s`."""

import io
import json
import struct
from typing import Any

import numpy as np
import pytest

from corejax import errors
from corejax import ranking
from corejax import store
from corejax import table
from corejax.models import checkpoint
from corejax.models import pixels
from corejax.models import registry
from corejax.models import tensors
from corejax.models.llava import config as config_lib
from corejax.models.organisms import planted
from helpers import mutation

pytestmark = pytest.mark.fuzz

_HEADER = {
  '__metadata__': {'format': 'pt'},
  'a.weight': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]},
  'b': {'dtype': 'BF16', 'shape': [4], 'data_offsets': [24, 32]},
  'c': {'dtype': 'I64', 'shape': [], 'data_offsets': [32, 40]},
}


def _safetensors(header: bytes, length: int | None = None) -> bytes:
  size = len(header) if length is None else length
  return struct.pack('<Q', size % (1 << 64)) + header + bytes(40)


def test_safetensors(tmp_path):
  path = tmp_path / tensors.SINGLE
  write = path.write_bytes
  good = json.dumps(_HEADER).encode()

  def make(rng):
    chance = rng.random()
    if chance < 0.4:
      return mutation.mutate_bytes(rng, _safetensors(good))
    header = mutation.dumps(rng, mutation.mutate_json(rng, _HEADER))
    if chance < 0.9:
      return _safetensors(header)
    return _safetensors(header, rng.choice((0, -1, 3 << 30, len(header) - 1)))

  def parse(data):
    write(data)
    for tensor in tensors.open_folder(tmp_path).values():
      if tensor.dtype in tensors.FLOATS:
        assert tensor.open().shape == tensor.shape

  found = mutation.count_outcomes('safetensors', make, parse, 100_000)
  assert min(found['accepted'], found['UserError']) > 1000


def test_index(tmp_path):
  names = ('one.safetensors', 'two.safetensors')
  for name in names:
    header = json.dumps(
      {name[:3]: {'dtype': 'F32', 'shape': [10], 'data_offsets': [0, 40]}}
    )
    (tmp_path / name).write_bytes(_safetensors(header.encode()))
  (tmp_path / 'folder').mkdir()
  write = (tmp_path / tensors.INDEX).write_bytes
  index = {
    'metadata': {'total_size': 80},
    'weight_map': {name[:3]: name for name in names},
  }
  pieces = [b'"folder"', b'"../one.safetensors"', b'"\\u0000"', b'"\\ud800"']

  def make(rng):
    if rng.random() < 0.3:
      return mutation.mutate_bytes(rng, json.dumps(index).encode(), pieces)
    return mutation.dumps(rng, mutation.mutate_json(rng, index))

  def parse(data):
    write(data)
    tensors.open_folder(tmp_path)

  found = mutation.count_outcomes('weight index', make, parse, 100_000)
  assert min(found['accepted'], found['UserError']) > 1000


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('planted')
  planted.write(path)
  return path


def test_json(tmp_path, folder):
  path = tmp_path / 'config.json'
  write = path.write_bytes
  good = json.loads((folder / 'config.json').read_text())

  def make(rng):
    return mutation.dumps(rng, mutation.mutate_json(rng, good))

  def parse(data):
    write(data)
    raw = checkpoint.read_json(path)
    config_lib.check_numbers(raw)
    checkpoint.check_keys(
      raw, config_lib.HANDLED_KEYS, config_lib.IGNORED_KEYS, ''
    )

  found = mutation.count_outcomes('config.json, raw', make, parse, 100_000)
  assert min(found['accepted'], found['UserError']) > 1000


def _spoiled(folder, name):
  """(make, write) of one JSON file of a folder."""
  path = folder / name
  good = json.loads(path.read_text())
  write = path.write_bytes

  def make(rng):
    return mutation.dumps(rng, mutation.mutate_json(rng, good))

  return make, write


def test_config(folder):
  before = (folder / 'config.json').read_bytes()
  make, write = _spoiled(folder, 'config.json')

  def parse(data):
    write(data)
    config_lib.read(folder)

  try:
    found = mutation.count_outcomes('config.json', make, parse, 15_000)
  finally:
    write(before)
  assert min(found['accepted'], found['UserError']) > 100


@pytest.mark.parametrize(
  'name', ['tokenizer.json', 'tokenizer_config.json', 'corejax.json']
)
def test_processor_files(folder, name):
  before = (folder / name).read_bytes()
  make, write = _spoiled(folder, name)
  load = registry.get('llava_flax').load_processor

  def parse(data):
    write(data)
    load(folder)

  try:
    mutation.count_outcomes(name, make, parse, 1_000)
  finally:
    write(before)


def test_preprocessor():
  good = {
    'crop_size': {'height': 336, 'width': 336},
    'do_center_crop': True,
    'do_normalize': True,
    'do_resize': True,
    'image_mean': [0.48, 0.45, 0.40],
    'image_std': [0.26, 0.26, 0.27],
    'image_processor_type': 'CLIPImageProcessor',
    'resample': 3,
    'rescale_factor': 1 / 255,
    'size': {'shortest_edge': 336},
  }
  sizes = ((1, 1), (640, 480), (1, 9000), (3, 2))
  allowed = (errors.UserError, errors.Rejected)

  def make(rng):
    pad = rng.choice((None, True, False))
    return mutation.mutate_json(rng, good), pad, rng.choice(sizes)

  def parse(given):
    content, pad, size = given
    spec = pixels.parse(content, 'here', pad)
    pixels.fixed_size(spec)
    assert min(pixels.plan(spec, size).out) > 0

  found = mutation.count_outcomes(
    'preprocessor', make, parse, 100_000, allowed=allowed
  )
  assert min(found['accepted'], found['UserError']) > 1000


def test_rankings(tmp_path):
  rows = [list(table.REQUIRED), *([['0.5'] * len(table.REQUIRED)] * 6)]
  for n, row in enumerate(rows[1:]):
    rows[1 + n] = [str(n + 1), str(n // 2), str(n % 2), *row[3:]]
  good = '\n'.join(','.join(row) for row in rows).encode()
  path = tmp_path / table.FILE
  write = path.write_bytes
  pieces = b', " \n \r \0 nan -1 1e400 selected'.split(b' ')

  def make(rng):
    return mutation.mutate_bytes(rng, good, pieces)

  def parse(data):
    write(data)
    columns = table.read(path)
    assert len(columns['rank']) == len(columns['layer']) > 0

  found = mutation.count_outcomes('heads.csv', make, parse, 100_000)
  assert min(found['accepted'], found['UserError']) > 1000


def _part() -> store.Part:
  shape = (2, 3, 4, 3, 9)
  names = ('id', 'cluster', 'task', 'media', 'layout')
  return store.Part(
    rows=[
      {'index': n, 'correct': True, 'logprob': -0.5}
      | {name: f'{name} {n}' for name in names}
      for n in range(2)
    ],
    rejected=[{'index': 2, 'id': 'x', 'reason': 'bad box', 'detail': 'y'}],
    mass_ELNQR=np.full(shape, 1 / 9, np.float32),
    count_ER=np.ones((2, 9), np.int32),
    evidence=[np.ones(5, bool)] * 2,
    shifted=[np.ones((2, 5), bool)] * 2,
    profiles=[np.zeros((3, 4, 5), np.float16)] * 2,
    profile_set='question',
    written_ELNQ=np.ones(shape[:-1], np.float32),
  )


_SCORES = {'0-0': [0.0, 0.5], '0-1': [None, 1], '1-0': [2], '1-1': []}
_LISTS = (
  '- [1, 0]\n- [0, 1]\n',
  '- 0-1\n- 1-1\n',
  '0: [0, 1]\n1: 0\n',
  'heads:\n- layer: 0\n  head: 1\n- {layer: 1, head: 1}\n',
)


@pytest.mark.parametrize('name', ['scores.json', 'heads.yaml'])
def test_files_of_other_tools(tmp_path, name):
  path = tmp_path / name
  pieces = [b'- ', b': ', b'[', b'{', b'&a ', b'*a', b'!!int ', b'\n', b'  ']

  def make(rng):
    if name == 'heads.yaml':
      good = rng.choice(_LISTS).encode()
      return mutation.mutate_bytes(rng, good, pieces)
    return mutation.dumps(rng, mutation.mutate_json(rng, _SCORES))

  def parse(data):
    path.write_bytes(data)
    ranking.parse_heads(f'@{path}:top1', 2, 2)

  def parse_list(data):
    path.write_bytes(data)
    ranking.parse_heads(f'@{path}', 2, 2)

  found = mutation.count_outcomes(
    name, make, parse_list if name == 'heads.yaml' else parse, 100_000
  )
  assert min(found['accepted'], found['UserError']) > 500


def test_store_parts(tmp_path):
  made = store.ScoreStore(tmp_path, 1, 'this')
  made.write(0, _part())
  good = made.path(0).read_bytes()
  with np.load(io.BytesIO(good)) as f:
    arrays: dict[str, Any] = dict(f)
  head = json.loads(str(arrays['head']))
  write = made.path(0).write_bytes

  def make(rng):
    if rng.random() < 0.7:
      return mutation.mutate_bytes(rng, good)
    changed = mutation.dumps(rng, mutation.mutate_json(rng, head))
    buffer = io.BytesIO()
    text = np.array(changed.decode('utf-8', 'replace'))
    forged: dict[str, Any] = {**arrays, 'head': text}
    np.savez(buffer, **forged)
    return buffer.getvalue()

  def parse(data):
    write(data)
    made.load()

  found = mutation.count_outcomes('store part', make, parse, 100_000)
  assert min(found['accepted'], found['UserError']) > 1000
