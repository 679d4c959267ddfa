"""Folders, hub ids, config.json and fingerprints."""

import json
import os
import shutil

import pytest

from corejax import errors
from corejax.models import checkpoint
from corejax.models.llava import config as config_lib
from helpers import hf_llava


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  hf_llava.save(hf_llava.build(hf_llava.config()), folder)
  return folder


def test_folders_are_themselves(tmp_path, monkeypatch):
  assert checkpoint.resolve(tmp_path) == tmp_path
  assert checkpoint.resolve(str(tmp_path)) == tmp_path
  # A folder wins over a hub id of the same name.
  monkeypatch.chdir(tmp_path)
  os.makedirs('llava-hf/llava-1.5-7b-hf')
  found = checkpoint.resolve('llava-hf/llava-1.5-7b-hf')
  assert str(found) == 'llava-hf/llava-1.5-7b-hf'


@pytest.mark.parametrize(
  'name', ['nowhere', './a/b', '/a/b', 'a/b/c', '../x/y', 'a b/c', '-x/y']
)
def test_no_such_folder(name):
  with pytest.raises(errors.UserError, match='no such folder') as caught:
    checkpoint.resolve(name)
  assert 'hub gave' not in str(caught.value)


@pytest.mark.parametrize('name', ['~nobody-here/x', 'x' * 300])
def test_names_of_no_folder(name):
  with pytest.raises(errors.UserError, match='no such folder can be'):
    checkpoint.resolve(name)


def test_a_file_is_no_folder(tmp_path):
  path = tmp_path / 'config.json'
  path.write_text('{}')
  with pytest.raises(errors.UserError, match='is a file; name the folder'):
    checkpoint.resolve(path)


def test_hub_offline_is_one_line():
  """Tests run with HF_HUB_OFFLINE=1 (conftest)."""
  with pytest.raises(errors.UserError) as caught:
    checkpoint.resolve('corejax-nobody/corejax-nothing')
  message = str(caught.value)
  assert 'the hub gave no copy' in message and '\n' not in message


def test_hub_ids_fetch_only_data(monkeypatch, tmp_path):
  import huggingface_hub

  asked = {}

  def fake(repo, *, allow_patterns):
    asked[repo] = allow_patterns
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fake)
  assert checkpoint.resolve('some-one/a.model-1') == tmp_path
  assert '*.safetensors' in asked['some-one/a.model-1']
  assert not any('bin' in p or 'py' in p for p in asked['some-one/a.model-1'])


@pytest.mark.parametrize(
  'text, part',
  [
    (None, 'no such file'),
    ('', 'not JSON'),
    ('{"a": 1', 'not JSON'),
    ('[' * 100000, 'not JSON'),
    ('[]', 'holds a list'),
    ('version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    ('<html>404</html>', 'the download failed'),
    ('{"a": 1' + '0' * 5000 + '}', 'not JSON'),
    ('{"model_type": "llava", "dtype": 1e308}', 'transformers refuses it'),
    ('{"model_type": "llava", "num_labels": 1000000000}', 'num_labels=1000000'),
    ('{}', 'transformers refuses it'),
    ('{"model_type": "nothing-we-know"}', 'transformers refuses it'),
    ('{"model_type": "llava", "text_config": 3}', 'text_config=3 is no JSON'),
    (
      '{"model_type": "llava", "text_config": {"model_type": "gone"}}',
      'transformers refuses it',
    ),
    (
      '{"model_type": "llava", "image_token_index": "seven"}',
      "image_token_index='seven'; expected whole numbers from 0",
    ),
    ('{"model_type": "llama"}', "'llama' is not a LLaVA"),
  ],
)
def test_bad_configs(tmp_path, text, part):
  if text is not None:
    (tmp_path / 'config.json').write_text(text)
  with pytest.raises(errors.UserError, match=part) as caught:
    config_lib.read(tmp_path)
  assert str(tmp_path / 'config.json') in str(caught.value)
  assert '\n' not in str(caught.value)


def test_remote_code_is_not_run(tmp_path):
  """A folder whose config names its own Python: refused, not imported."""
  (tmp_path / 'config.json').write_text(
    json.dumps(
      {
        'model_type': 'evil',
        'auto_map': {'AutoConfig': 'evil.EvilConfig'},
      }
    )
  )
  (tmp_path / 'evil.py').write_text(
    f'open({str(tmp_path / "ran")!r}, "w")\nclass EvilConfig: pass\n'
  )
  with pytest.raises(errors.UserError, match='transformers refuses it'):
    config_lib.read(tmp_path)
  assert not (tmp_path / 'ran').exists()


def test_fingerprint(saved, tmp_path):
  mine = checkpoint.fingerprint(saved)
  assert len(mine) == 12 and int(mine, 16) >= 0
  copy = tmp_path / 'copy'
  shutil.copytree(saved, copy)
  (copy / 'README.md').write_text('anything')
  assert checkpoint.fingerprint(copy) == mine
  config = copy / 'config.json'
  text = config.read_text()
  config.write_text(text.replace('quick_gelu', 'gelu'))
  assert checkpoint.fingerprint(copy) != mine
  config.write_text(text)
  assert checkpoint.fingerprint(copy) == mine
  weights = copy / 'model.safetensors'
  content = bytearray(weights.read_bytes())
  content[-2] ^= 1
  weights.write_bytes(content)
  assert checkpoint.fingerprint(copy) != mine


def test_fingerprint_of_large_files_samples(tmp_path, monkeypatch):
  """Beyond the limit: size, both ends and blocks between them count."""
  monkeypatch.setattr(checkpoint, '_WHOLE', 1000)
  monkeypatch.setattr(checkpoint, '_SAMPLE', 10)
  monkeypatch.setattr(checkpoint, '_SAMPLES', 5)
  path = tmp_path / 'model.safetensors'
  path.write_bytes(bytes(2000))
  whole = checkpoint.fingerprint(tmp_path)
  seen = set()
  for place in (0, 1999, 1000, 100):
    content = bytearray(2000)
    content[place] = 1
    path.write_bytes(content)
    if checkpoint.fingerprint(tmp_path) != whole:
      seen.add(place)
  assert seen == {0, 1999, 1000}  # 100 lies between two blocks
  path.write_bytes(bytes(2001))
  assert checkpoint.fingerprint(tmp_path) != whole


def test_check_keys():
  handled, ignored = {'a'}, {'b'}
  checkpoint.check_keys(
    {'a': 1, 'b': 2, 'torch_dtype': 'float16', 'c': None, 'd': {}, 'e': []},
    handled,
    ignored,
    '',
  )
  checkpoint.check_keys({'c': False}, handled, ignored, '', {'c': False})
  with pytest.raises(errors.UserError, match='c=true'):
    checkpoint.check_keys({'c': True}, handled, ignored, '', {'c': False})
  for value in (0, False, '', 1):
    with pytest.raises(errors.UserError, match='text_config.c='):
      checkpoint.check_keys({'c': value}, handled, ignored, 'text_config.')


def test_check_ranges():
  ranges = {'n': (1, 9), 'x': (0.5, 2.0)}
  for good in ({}, {'n': None}, {'n': 9, 'x': 1}, {'n': [1, 2]}, {'x': 0.5}):
    checkpoint.check_ranges(good, ranges, '')
  for bad in (0, 10, 1.0, True, '1', [0], [[1]], {}, float('nan'), 10**400):
    with pytest.raises(errors.UserError, match='part.n=.*whole numbers from 1'):
      checkpoint.check_ranges({'n': bad}, ranges, 'part.')
  for bad in (0, 3, True, '1', float('nan'), float('inf')):
    with pytest.raises(errors.UserError, match='x=.*numbers from 0.5 to 2'):
      checkpoint.check_ranges({'x': bad}, ranges, '')
