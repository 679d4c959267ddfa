"""Safetensors files that are not what they claim to be."""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from corejax import errors
from corejax.models import tensors


def _file(header, data: bytes = b'', length: int | None = None) -> bytes:
  """Bytes of a safetensors file; `header` is JSON-able or raw bytes."""
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(raw) if length is None else length) + raw + data


def _entry(dtype='F32', shape=(2,), span=(0, 8)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(span)}


def test_reads_what_the_reference_library_writes(tmp_path):
  rng = np.random.default_rng(0)
  content = {
    'a': rng.standard_normal((3, 4)).astype(np.float32),
    'b.weight': rng.standard_normal(5).astype(ml_dtypes.bfloat16),
    'c': rng.standard_normal((2, 1, 2)).astype(np.float16),
    'empty': np.zeros((0, 7), np.float32),
    'scalar': np.array(2.5, np.float32),
    'ids': np.arange(3),
  }
  safetensors.numpy.save_file(
    content, tmp_path / tensors.SINGLE, {'format': 'pt'}
  )
  found = tensors.open_folder(tmp_path)
  assert found.keys() == content.keys()
  for name, tensor in found.items():
    assert tensor.shape == content[name].shape
    if name == 'ids':
      assert tensor.dtype == 'I64'
      continue
    np.testing.assert_array_equal(tensor.open(), content[name])
    assert not tensor.open().flags.writeable or not tensor.n_bytes


def test_unaligned_data_is_read(tmp_path):
  """The format does not promise alignment."""
  data = np.array([1.5, -2.0], np.float32)
  for pad in range(4):
    header = json.dumps({'a': _entry()}).encode() + b' ' * pad
    path = tmp_path / f'{pad}.safetensors'
    path.write_bytes(_file(header, data.tobytes()))
    np.testing.assert_array_equal(tensors.read_header(path)['a'].open(), data)


_OK = {'a': _entry()}
_BAD = {
  'empty': (b'', 'empty file'),
  'tiny': (b'abc', '3 bytes; truncated'),
  'lfs': (
    b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
    'git lfs pull',
  ),
  'html': (b'\n <!DOCTYPE html><html><body>404</body></html>', 'HTML'),
  'zip_pickle': (b'PK\x03\x04' + b'\0' * 60, 'a pickle under another name'),
  'pickle': (b'\x80\x02}q\x00.' + b'\0' * 60, 'a pickle under another name'),
  'long_header': (_file(_OK, b'\0' * 8, length=1 << 40), 'header claims'),
  'cut_in_header': (_file(_OK)[:20], 'header claims'),
  'not_json': (_file(b'{"a": '), 'bad safetensors header'),
  'not_utf8': (_file(b'{"\xff\xfe": 1}'), 'bad safetensors header'),
  'list': (_file(b'{}'.replace(b'{}', b'[1]')), 'bad safetensors header'),
  'deep': (_file(b'{"a":' + b'[' * 100000), 'bad safetensors header'),
  'twice': (
    _file(b'{"a":{},"a":{}}'),
    'a name stands twice',
  ),
  'no_shape': (_file({'a': {'dtype': 'F32'}}), 'a lacks dtype, shape'),
  'not_an_entry': (_file({'a': 3}), 'a lacks dtype, shape'),
  'dtype': (_file({'a': _entry('F4')}, b'\0' * 8), "unknown dtype 'F4'"),
  'no_dtype': (_file({'a': _entry() | {'dtype': []}}, b'\0' * 8), 'dtype []'),
  'axes': (
    _file({'a': _entry(shape=(1,) * 33, span=(0, 4))}, b'\0' * 4),
    'a has 33 axes',
  ),
  'negative': (
    _file({'a': _entry(shape=(-2,), span=(0, 8))}, b'\0' * 8),
    'a has shape [-2]',
  ),
  'float_shape': (
    _file({'a': _entry(shape=(2.0,))}, b'\0' * 8),
    'a has shape [2.0]',
  ),
  'bool_shape': (
    _file({'a': _entry(shape=(True, 2))}, b'\0' * 8),
    'a has shape [True, 2]',
  ),
  'text_offsets': (
    _file({'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': '08'}}),
    "a has data_offsets '08'",
  ),
  'three_offsets': (
    _file({'a': _entry(span=(0, 8, 8))}, b'\0' * 8),
    'its offsets are [0, 8, 8]',
  ),
  'size': (_file({'a': _entry(span=(0, 4))}, b'\0' * 4), 'takes 8 bytes'),
  'backwards': (_file({'a': _entry(span=(8, 0))}, b'\0' * 8), 'takes 8 bytes'),
  'overflow': (
    _file({'a': _entry(shape=(1 << 61, 1 << 61), span=(0, 0))}),
    'its offsets are [0, 0]',
  ),
  'truncated': (_file(_OK, b'\0' * 7), '(truncated)'),
  'beyond': (_file({'a': _entry(span=(8, 16))}, b'\0' * 16), 'not at'),
  'overlap': (
    _file({'a': _entry(), 'b': _entry(span=(4, 12))}, b'\0' * 12),
    'b starts at byte',
  ),
  'gap': (
    _file({'a': _entry(), 'b': _entry(span=(12, 20))}, b'\0' * 20),
    'b starts at byte',
  ),
  'rest': (_file(_OK, b'\0' * 9), 'tensors end at byte'),
}


@pytest.mark.parametrize('kind', _BAD)
def test_malformed(tmp_path, kind):
  content, part = _BAD[kind]
  (tmp_path / tensors.SINGLE).write_bytes(content)
  with pytest.raises(errors.UserError) as caught:
    tensors.open_folder(tmp_path)
  message = str(caught.value)
  assert part in message
  assert str(tmp_path / tensors.SINGLE) in message
  assert '\n' not in message


@pytest.mark.parametrize('first', [b'P', b'\x80', b'<'])
def test_a_header_length_may_look_like_anything(tmp_path, first):
  """A length of 0x4b50 starts with 'PK'; it is safetensors all the same."""
  length = {b'P': 0x4B50, b'\x80': 0x180, b'<': 0x13C}[first]
  header = json.dumps(_OK).encode()
  path = tmp_path / tensors.SINGLE
  path.write_bytes(_file(header.ljust(length), b'\0' * 8))
  assert path.read_bytes()[:1] == first
  assert tensors.open_folder(tmp_path)['a'].shape == (2,)


def test_nothing_there(tmp_path):
  with pytest.raises(errors.UserError, match='holds neither model.safetensors'):
    tensors.open_folder(tmp_path)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'consolidated.00.pth'])
def test_pickles_are_not_read(tmp_path, name):
  (tmp_path / name).write_bytes(b'\x80\x02.')
  with pytest.raises(errors.UserError, match=r'save_pretrained\(\.\.\., safe'):
    tensors.open_folder(tmp_path)


def _index(folder, weight_map):
  (folder / tensors.INDEX).write_text(json.dumps({'weight_map': weight_map}))


@pytest.mark.parametrize(
  'name', ['/etc/passwd', '../x.safetensors', 'a/../../x', 'a\\..\\x', 'a\0b']
)
def test_index_stays_in_the_folder(tmp_path, name):
  _index(tmp_path, {'a': name})
  with pytest.raises(errors.UserError, match='points out of the folder'):
    tensors.open_folder(tmp_path)


@pytest.mark.parametrize('via_index', [False, True])
def test_links_out_are_refused(tmp_path, via_index):
  outside = tmp_path / 'outside.safetensors'
  outside.write_bytes(_file(_OK, b'\0' * 8))
  folder = tmp_path / 'folder'
  folder.mkdir()
  name = 'part.safetensors' if via_index else tensors.SINGLE
  os.symlink(outside, folder / name)
  if via_index:
    _index(folder, {'a': name})
  with pytest.raises(errors.UserError, match='outside of the folder; refused'):
    tensors.open_folder(folder)


def test_links_of_the_hub_cache_are_followed(tmp_path):
  """models--x/snapshots/REV/model.safetensors -> ../../blobs/HASH."""
  snapshot = tmp_path / 'models--x' / 'snapshots' / 'rev'
  blobs = tmp_path / 'models--x' / 'blobs'
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  (blobs / 'hash').write_bytes(_file(_OK, b'\0' * 8))
  os.symlink('../../blobs/hash', snapshot / tensors.SINGLE)
  assert list(tensors.open_folder(snapshot)) == ['a']


def test_loops_and_dead_links(tmp_path):
  os.symlink(tensors.SINGLE, tmp_path / tensors.SINGLE)
  with pytest.raises(errors.UserError):
    tensors.open_folder(tmp_path)
  os.unlink(tmp_path / tensors.SINGLE)
  os.symlink('gone', tmp_path / tensors.SINGLE)
  with pytest.raises(errors.UserError, match='no such file'):
    tensors.open_folder(tmp_path)


@pytest.mark.parametrize(
  'name, part',
  [('.', 'a folder'), ('\ud800', 'surrogates'), ('x' * 300, 'File name too')],
)
def test_names_of_no_file(tmp_path, name, part):
  _index(tmp_path, {'a': name})
  with pytest.raises(errors.UserError, match=part) as caught:
    tensors.open_folder(tmp_path)
  assert '\n' not in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
  path = tmp_path / tensors.SINGLE
  path.write_bytes(_file(_OK, b'\0' * 8))

  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(type(path), 'open', refuse)
  with pytest.raises(errors.UserError, match=r'\(Permission denied\)'):
    tensors.open_folder(tmp_path)


def test_missing_shard(tmp_path):
  _index(tmp_path, {'a': 'model-00001-of-00002.safetensors'})
  with pytest.raises(errors.UserError, match='00001-of-00002.*no such file'):
    tensors.open_folder(tmp_path)


@pytest.mark.parametrize(
  'text, part',
  [
    ('{}', 'no weight_map'),
    ('[]', 'not a JSON object'),
    ('{', 'not JSON'),
    ('{"weight_map": {"a": 3}}', 'no weight_map'),
    ('{"weight_map": ["a"]}', 'no weight_map'),
  ],
)
def test_malformed_index(tmp_path, text, part):
  (tmp_path / tensors.INDEX).write_text(text)
  with pytest.raises(errors.UserError, match=part):
    tensors.open_folder(tmp_path)


def test_tensor_in_another_file_than_the_index_says(tmp_path):
  for name in ('x', 'y'):
    content = _file({name: _entry()}, b'\0' * 8)
    (tmp_path / f'{name}.safetensors').write_bytes(content)
  _index(tmp_path, {'x': 'x.safetensors', 'y': 'y.safetensors'})
  assert tensors.open_folder(tmp_path).keys() == {'x', 'y'}
  _index(tmp_path, {'x': 'y.safetensors', 'y': 'y.safetensors'})
  with pytest.raises(errors.UserError, match='x is not in y.safetensors'):
    tensors.open_folder(tmp_path)
  _index(tmp_path, {'x': 'x.safetensors', 'z': 'y.safetensors'})
  with pytest.raises(errors.UserError, match='y lies in y.safetensors, not in'):
    tensors.open_folder(tmp_path)
