"""Bad input through `rank`, as a user meets it: exit code 2 and one line.

Each case is a good checkpoint folder, spoiled in one way. What a reader makes
of a damaged file in all its variants is tested beside the reader
(tests/models/test_tensors.py and its neighbours); here it is told.
"""

import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from corejax.data import mmdocir
from corejax.experiments import cli
from corejax.experiments import rank
from corejax.models.organisms import planted
from helpers import pdfs

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
PAGE = b'<!DOCTYPE html><html><body>404: not found</body></html>'


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  folder = tmp_path_factory.mktemp('good')
  planted.write(folder)
  return folder


@pytest.fixture
def folder(good, tmp_path):
  return shutil.copytree(good, tmp_path / 'model')


@pytest.fixture
def refused(tmp_path, capsys):
  """refused(*flags): the one line that rank ends with."""

  def run(*flags):
    out = tmp_path / 'out'
    # The limits are for a case that is not refused: it is told soon.
    line = ['rank', f'--out={out}', '--limit=1', '--permutations=0', *flags]
    assert rank.cli(line) == cli.EX_USER
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.count('\n') == 1, err
    assert err.rstrip('\n').isprintable()
    assert not out.exists()  # told before anything is written
    return err

  return run


def told(message, words):
  for word in words:
    assert word in message, (word, message)


def change(folder, name, part='', **values):
  """Sets keys of a JSON file; `part` names an object within it."""
  path = folder / name
  content = json.loads(path.read_text())
  (content[part] if part else content).update(values)
  path.write_text(json.dumps(content))


def read(folder):
  """All tensors, in memory, so that their file can be written anew."""
  content = safetensors.numpy.load((folder / WEIGHTS).read_bytes())
  return {name: array.copy() for name, array in content.items()}


def write(folder, content, name=WEIGHTS):
  safetensors.numpy.save_file(content, folder / name)


# -- the file of weights ------------------------------------------------------


def cut(data):
  return data[: len(data) // 2]


def scrambled(data):
  return data[:40] + bytes(200) + data[240:]


def long_header(data):
  return struct.pack('<Q', 3 << 30) + data[8:]


BYTES = {
  'empty': (lambda data: b'', ['empty file', 'fetch it again']),
  'truncated': (cut, ['(truncated)', 'fetch the file again']),
  'cut in the header': (lambda data: data[:90], ['header claims', 'fetch it']),
  'corrupt': (scrambled, ['bad safetensors header', 'fetch the file again']),
  '3 GB header': (long_header, [f'claims {3 << 30} bytes', 'fetch it again']),
  'a web page': (lambda data: PAGE, ['HTML', 'download failed']),
  'a pointer': (lambda data: LFS, ['Git LFS pointer', '`git lfs pull`']),
  'a pickle': (lambda data: b'PK\3\4' + data, ['pickle', 'run code']),
}


@pytest.mark.parametrize('case', BYTES)
def test_weights_that_are_none(folder, refused, case):
  spoil, words = BYTES[case]
  path = folder / WEIGHTS
  path.write_bytes(spoil(path.read_bytes()))
  told(refused(f'--checkpoint={folder}'), [str(path), *words])


@pytest.mark.parametrize('name', ['~nobody-here/x', 'x' * 300])
def test_names_of_no_folder(refused, name):
  words = [f'--checkpoint={name}', 'no such folder can be', 'config.json']
  told(refused(f'--checkpoint={name}'), words)
  message = refused('--data=mmdocir', f'--data_dir={name}')
  told(message, [f'--data_dir={name}', 'no such folder can be'])


@pytest.mark.parametrize(
  'name', ['pytorch_model.bin', 'consolidated.00.pth', 'last.ckpt']
)
def test_pickled_weights(folder, refused, name):
  (folder / WEIGHTS).rename(folder / name)
  words = [str(folder), name, 'convert them', 'safe_serialization=True']
  told(refused(f'--checkpoint={folder}'), words)


def test_no_weights(folder, refused):
  (folder / WEIGHTS).unlink()
  words = [str(folder), WEIGHTS, INDEX, 'fetch the weights']
  told(refused(f'--checkpoint={folder}'), words)


def split(folder, second='two.safetensors'):
  """The weights in two files with their index."""
  content = read(folder)
  (folder / WEIGHTS).unlink()
  names = sorted(content)
  files = {'one.safetensors': names[::2], 'two.safetensors': names[1::2]}
  for file, names in files.items():
    write(folder, {name: content[name] for name in names}, file)
  files[second] = files.pop('two.safetensors')
  where = {name: file for file, names in files.items() for name in names}
  (folder / INDEX).write_text(json.dumps({'weight_map': where}))


@pytest.mark.parametrize(
  'name, words',
  [
    ('/etc/two.safetensors', ['points out of the folder; refused']),
    ('../two.safetensors', ['points out of the folder; refused']),
    ('link.safetensors', ['outside of the folder; refused', 'copy the file']),
    ('three.safetensors', ['no such file', 'fetch all weight files']),
    ('folder', ['a folder, not a file of weights']),
    ('\ud800', ['surrogates not allowed']),
    ('x' * 300, ['File name too long', 'fetch all weight files']),
  ],
)
def test_an_index_that_leads_elsewhere(folder, refused, name, words):
  split(folder, name)
  (folder / 'folder').mkdir()
  outside = folder.parent / 'two.safetensors'
  shutil.copy(folder / 'two.safetensors', outside)
  os.symlink(outside, folder / 'link.safetensors')
  told(refused(f'--checkpoint={folder}'), [str(folder), *words])


@pytest.mark.parametrize('where', ['here', '.'])
def test_the_hubs_own_links_are_followed(
  good, tmp_path, where, monkeypatch, capsys
):
  """snapshots/REV/model.safetensors -> ../../blobs/HASH, and no further."""
  blobs = tmp_path / 'models--a--b' / 'blobs'
  snapshot = tmp_path / 'models--a--b' / 'snapshots' / 'rev'
  blobs.mkdir(parents=True)
  snapshot.mkdir(parents=True)
  for path in good.iterdir():
    shutil.copy(path, blobs / f'hash-{path.name}')
    os.symlink(f'../../blobs/hash-{path.name}', snapshot / path.name)
  if where == '.':
    monkeypatch.chdir(snapshot)
  flags = [f'--checkpoint={snapshot if where == "here" else where}']
  line = ['rank', '--dry_run', '--limit=1', f'--out={tmp_path / "out"}', *flags]
  assert rank.cli(line) == 0
  (blobs / f'hash-{WEIGHTS}').rename(tmp_path / WEIGHTS)
  os.symlink(tmp_path / WEIGHTS, blobs / f'hash-{WEIGHTS}')
  assert rank.cli(line) == cli.EX_USER
  assert 'outside of the folder; refused' in capsys.readouterr().err


# -- tensors that do not fit --------------------------------------------------

_LAYER = 'language_model.model.layers.'
_DOWN = f'{_LAYER}2.mlp.down_proj.weight'


def test_missing_extra_and_misshapen_tensors(folder, refused):
  content = read(folder)
  gone = [name for name in content if name.startswith(f'{_LAYER}1.')]
  gone += [name for name in content if name.startswith(f'{_LAYER}3.')]
  assert len(gone) == 18
  content = {name: a for name, a in content.items() if name not in gone}
  for n in range(12):
    content[f'language_model.adapter.{n}.weight'] = np.ones(3, np.float32)
  content[_DOWN] = content[_DOWN].T.copy()
  write(folder, content)
  message = refused(f'--checkpoint={folder}')
  told(message, [str(folder), '18 missing', '12 not in the model'])
  told(message, ['1 misshapen', 'down_proj.weight is (96, 128), not (128, 96)'])
  told(message, ['fetch config and weights of one revision'])
  assert message.count('.adapter.') == 10
  assert message.count('.layers.1.') + message.count('.layers.3.') == 10


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite(folder, refused, value, dtype):
  content = {name: a.astype(dtype) for name, a in read(folder).items()}
  content[_DOWN][3, 4] = value
  write(folder, content)
  message = refused(f'--checkpoint={folder}', '--dtype=float32')
  told(message, [str(folder), '1 tensors hold NaN or infinity as float32'])
  told(message, [f'{_DOWN} ({WEIGHTS})', 'fetch the weights again'])


def test_two_tensors_of_one_name(folder, refused):
  path = folder / WEIGHTS
  data = path.read_bytes()
  size = struct.unpack('<Q', data[:8])[0]
  name, entry = next(iter(json.loads(data[8 : 8 + size]).items()))
  entry = f'{json.dumps(name)}:{json.dumps(entry)}'.encode()
  header = data[8 : 8 + size].rstrip()[:-1] + b',' + entry + b'}'
  assert json.loads(header)
  path.write_bytes(struct.pack('<Q', len(header)) + header + data[8 + size :])
  told(refused(f'--checkpoint={folder}'), [str(path), 'a name stands twice'])


# -- config.json --------------------------------------------------------------

CONFIG = {
  'list': ('', '[]', ['holds a list', 'fetch the file again']),
  'no JSON': ('', '{"a": 1', ['not JSON', 'fetch the file again']),
  'a pointer': ('', LFS.decode(), ['Git LFS pointer', 'git lfs pull']),
  'another model': ('', {'model_type': 'qwen2_vl'}, ['not a LLaVA']),
  'unknown key': ('', {'mm_newline': 'yes'}, ['mm_newline="yes"', 'refused']),
  'unknown text key': (
    'text_config',
    {'logit_softcap': 30.0},
    ['text_config.logit_softcap=30.0', 'refused'],
  ),
  'heads': (
    'text_config',
    {'num_attention_heads': -8},
    ['text_config.num_attention_heads=-8', 'from 1'],
  ),
  'no heads': (
    'vision_config',
    {'num_attention_heads': 0},
    ['vision_config.num_attention_heads=0', 'from 1'],
  ),
  'head_dim': (
    'text_config',
    {'head_dim': 0},
    ['text_config.head_dim=0', 'from 1'],
  ),
  'layers': (
    'text_config',
    {'num_hidden_layers': 10**9},
    ['num_hidden_layers=1000000000', 'to 4096'],
  ),
  'text for a number': (
    'text_config',
    {'hidden_size': 'x\n\x1b[31m'},
    [r"hidden_size='x\n\x1b[31m'", 'whole numbers'],
  ),
  'not a number': (
    'text_config',
    {'rms_norm_eps': float('nan')},
    ['text_config.rms_norm_eps=nan', 'numbers from'],
  ),
  'rope': (
    'text_config',
    {'rope_scaling': {'rope_type': 'linear', 'factor': 'x'}},
    ["rope_parameters: factor='x'", 'a number above 0'],
  ),
  'no context': (
    'text_config',
    {'max_position_embeddings': 12},
    ['max_position_embeddings=12', 'no example fits', 'correct config.json'],
  ),
  'few embeddings': (
    'text_config',
    {'vocab_size': 46},
    ["token '8' has id 46", '46 embeddings', 'different checkpoints'],
  ),
  'image token': (
    '',
    {'image_token_index': 47},
    ['image_token_index=47 is outside 0..46'],
  ),
  'patches': (
    'vision_config',
    {'patch_size': 0},
    ['vision_config.patch_size=0', 'from 1'],
  ),
  'channels': (
    'vision_config',
    {'num_channels': 4},
    ['vision_config.num_channels=4', 'from 3 to 3'],
  ),
  'labels': ('', {'num_labels': 10**9}, ['num_labels=1000000000']),
}


@pytest.mark.parametrize('case', CONFIG)
def test_configs(folder, refused, case):
  part, values, words = CONFIG[case]
  if isinstance(values, str):
    (folder / 'config.json').write_text(values)
  else:
    change(folder, 'config.json', part, **values)
  told(refused(f'--checkpoint={folder}'), [str(folder), *words])


# -- tokenizer and processor --------------------------------------------------


def without_image_token(folder):
  path = folder / 'tokenizer.json'
  path.write_text(path.read_text().replace('<image>', '<imago>'))


def broken_model(folder):
  change(folder, 'tokenizer.json', 'model', vocab=3)


def no_json(folder):
  (folder / 'tokenizer.json').write_text('{')


def pointer(folder):
  (folder / 'tokenizer.json').write_bytes(LFS)


def no_size(folder):
  change(folder, 'preprocessor_config.json', size={'shortest_edge': 0})


def negative_crop(folder):
  crop = {'height': -56, 'width': 56}
  name = 'preprocessor_config.json'
  change(folder, name, crop_size=crop, do_center_crop=True)


def huge_size(folder):
  change(folder, 'preprocessor_config.json', size={'shortest_edge': 10**9})


def no_spread(folder):
  change(folder, 'preprocessor_config.json', image_std=[0.0, 1.0, 1.0])


def template(folder):
  change(folder, 'corejax.json', templates=['plain'])


def content_free(folder):
  change(folder, 'corejax.json', content_free='')


def chat_template(folder):
  (folder / 'chat_template.jinja').write_bytes(b'\xff\xfe{{ x }}')


PROCESSOR = {
  without_image_token: ["no token '<image>'", 'add it as a special token'],
  broken_model: ['no tokenizer could be read', 'fetch them again'],
  no_json: ['no tokenizer could be read', 'fetch them again'],
  pointer: ['tokenizer.json', 'Git LFS pointer', 'git lfs pull'],
  no_size: ["size={'shortest_edge': 0}", 'in pixels'],
  negative_crop: ["'height': -56", 'in pixels'],
  huge_size: ["'shortest_edge': 1000000000", 'in pixels up to'],
  no_spread: ['image_std=[0.0, 1.0, 1.0]', 'other than 0'],
  template: ["templates=['plain']", 'expected one of vicuna'],
  chat_template: ['chat_template.jinja', 'no chat template', 'fetch it again'],
  content_free: ["content_free=''", 'a question as text'],
}


@pytest.mark.parametrize('spoil', PROCESSOR, ids=lambda f: f.__name__)
def test_tokenizer_and_processor(folder, refused, spoil):
  spoil(folder)
  message = refused(f'--checkpoint={folder}')
  told(message, [str(folder), *PROCESSOR[spoil]])


@pytest.mark.parametrize(
  'key, value',
  [
    ('patch_size', 0),
    ('num_additional_image_tokens', None),
    ('image_token', 7),
  ],
)
def test_processor_config(folder, refused, key, value):
  content = {
    'patch_size': 14,
    'num_additional_image_tokens': 1,
    'vision_feature_select_strategy': 'default',
  }
  path = folder / 'processor_config.json'
  path.write_text(json.dumps(content | {key: value}))
  told(
    refused(f'--checkpoint={folder}'), [f'{path}: {key}={value}', 'expected']
  )


# -- data ---------------------------------------------------------------------

LINE = {
  'doc_name': 'one.pdf',
  'page_indices': [0, 0],
  'questions': [
    {
      'Q': 'what shape is red',
      'A': 'star',
      'type': "['Figure']",
      'page_id': [0],
      'layout_mapping': [
        {'page': 0, 'page_size': [200.0, 300.0], 'bbox': [9, 99, 90, 190]}
      ],
    }
  ],
}
DATA = {
  'no annotations': (
    None,
    [mmdocir.ANNOTATIONS, 'github.com', 'need no files'],
  ),
  'a web page': (PAGE, ['none of 1 lines', 'github.com']),
  'a pointer': (LFS, ['none of 3 lines', 'github.com']),
  'nothing': (b'', ['holds no question', 'github.com']),
  'no PDF': (json.dumps(LINE).encode(), ['lacks 1. all 1 PDFs', 'one.pdf']),
}


@pytest.mark.parametrize('case', DATA)
def test_documents_that_are_missing(refused, tmp_path, case):
  content, words = DATA[case]
  if content is not None:
    (tmp_path / mmdocir.ANNOTATIONS).write_bytes(content)
  message = refused('--data=mmdocir', f'--data_dir={tmp_path}')
  told(message, [str(tmp_path), 'github.com', *words])


def test_names_that_no_file_can_have_are_rejected(good, tmp_path, capsys):
  names = ['a\0.pdf', 'x' * 300 + '.pdf', '\ud800.pdf', '..']
  lines = [json.dumps(LINE | {'doc_name': name}) for name in names]
  question = LINE['questions'][0] | {'Q': 'what \ud800'}
  lines.append(json.dumps(LINE | {'questions': [question]}))
  (tmp_path / mmdocir.ANNOTATIONS).write_text('\n'.join(lines))
  pdfs.write(tmp_path / 'one.pdf', [[]])
  line = [
    'rank',
    f'--checkpoint={good}',
    '--data=mmdocir',
    f'--data_dir={tmp_path}',
    f'--out={tmp_path / "out"}',
  ]
  assert rank.cli(line) == cli.EX_USER
  err = capsys.readouterr().err
  assert '5 of 5 records rejected (5 bad record)' in err
  assert err.count('\n') == 1
