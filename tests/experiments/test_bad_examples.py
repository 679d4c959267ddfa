"""Bad examples through `rank`: left out, with their reason, and counted."""

import collections
import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import sources
from corejax.experiments import cli
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import rank
from corejax.experiments import resources
from corejax.models.llava import templates
from corejax.models.organisms import planted
from helpers import pictures

Reason = errors.Reason
Box = example_lib.Box

LIMIT = 24


def png_header(width, height):
  """A PNG that claims this size and holds nothing of it."""
  head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  data = b'\x89PNG\r\n\x1a\n'
  for body in (b'IHDR' + head, b'IDAT' + zlib.compress(bytes(99)), b'IEND'):
    data += struct.pack('>I', len(body) - 4) + body
    data += struct.pack('>I', zlib.crc32(body))
  return data


def changed(**fields):
  return lambda example: dataclasses.replace(example, **fields)


def boxed(*corners):
  """The evidence elsewhere; made when asked for, as by a source."""
  return lambda example: dataclasses.replace(
    example, evidence=(Box(0, *corners),)
  )


def picture(data):
  return changed(media=(data,), distractors=())


WIDE = pictures.png(np.zeros((56, 168, 3), np.uint8))
STRIP = pictures.png(np.zeros((1, 30_000, 3), np.uint8))
CUT = pictures.jpeg(pictures.noise(np.random.default_rng(0), 64, 48))[:900]
NAN = float('nan')

# index -> (what is done to the record, its reason, words of the detail)
BAD = {
  1: (changed(evidence=()), Reason.NO_EVIDENCE, ''),
  2: (
    changed(media=(WIDE,), distractors=(), evidence=(Box(0, 0, 0, 0.2, 1),)),
    Reason.EVIDENCE_CROPPED,
    'outside of what the model is shown',
  ),
  3: (changed(kind='pages'), Reason.EVIDENCE_AFTER_QUERY, 'question starts at'),
  4: (boxed(0.5, 0.5, 1.5, 0.9), Reason.BAD_BOX, 'reaches beyond'),
  5: (boxed(0.6, 0.5, 0.2, 0.9), Reason.BAD_BOX, 'empty or inverted'),
  6: (boxed(0.1, NAN, 0.2, 0.9), Reason.BAD_BOX, 'not finite'),
  7: (picture(b'GIF89a' + bytes(99)), Reason.BAD_MEDIA, 'neither PNG nor JPEG'),
  8: (picture(CUT), Reason.BAD_MEDIA, 'JPEG of size'),
  9: (
    picture(png_header(20_000, 20_000)),
    Reason.MEDIA_TOO_LARGE,
    '400000000 pixels; at most',
  ),
  10: (picture(STRIP), Reason.MEDIA_TOO_LARGE, '30000x1 picture resized'),
  11: (
    changed(question='what shape is <image>'),
    Reason.IMAGE_TOKENS,
    '2 times, for 1 pictures',
  ),
  12: (changed(answers=('<image>',)), Reason.IMAGE_TOKENS, ''),
  13: (
    lambda e: dataclasses.replace(e, media=e.media * 20),
    Reason.TOO_LONG,
    '20 pictures take 320 tokens; the model takes 256: show fewer --pages',
  ),
  14: (
    lambda e: dataclasses.replace(e, question=e.question + ' what' * 300),
    Reason.TOO_LONG,
    'the model takes 256',
  ),
  15: (changed(question='what \ud800'), Reason.BAD_RECORD, 'no Unicode text'),
  16: (changed(question=' \n'), Reason.BAD_RECORD, 'empty question'),
  17: (changed(answers=('zeppelin',)), Reason.BAD_ANSWER, 'no words for'),
  18: (boxed(0.1, 0.1, 0.4, 0.1), Reason.BAD_BOX, 'empty or inverted'),
}


@dataclasses.dataclass(frozen=True)
class Spoiled:
  """The scenes, some of them spoiled; an example.Source."""

  good: example_lib.Source
  name: str = 'spoiled'
  split: str = 'test'
  fingerprint: str = 'spoiled'

  def __len__(self):
    return len(self.good)

  def __getitem__(self, index):
    example = self.good[index]
    return BAD[index][0](example) if index in BAD else example


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A checkpoint whose pictures are cropped to their middle."""
  path = tmp_path_factory.mktemp('model')
  planted.write(path)
  file = path / 'preprocessor_config.json'
  side = planted.config().vision.image_size
  config = json.loads(file.read_text()) | {
    'size': {'shortest_edge': side},
    'crop_size': {'height': side, 'width': side},
    'do_center_crop': True,
  }
  file.write_text(json.dumps(config))
  return path


@pytest.fixture
def spoiled(monkeypatch, folder):
  """Flags of a run on the spoiled scenes."""
  source = Spoiled(sources.load('scenes_referring', limit=LIMIT))
  monkeypatch.setattr(resources, 'load_source', lambda config: source)
  # No template that is built puts the question first.
  late = dataclasses.replace(
    templates.SETS['plain']['pages'], body='{question} {media}'
  )
  monkeypatch.setitem(templates.SETS['plain'], 'pages', late)
  return [f'--checkpoint={folder}', '--bootstrap=0', '--permutations=0']


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_is_rejected_for_its_reason_and_counted(spoiled, tmp_path, capsys):
  line = ['rank', f'--out={tmp_path}', '--max_bad=1', *spoiled]
  assert rank.cli(line) == 0
  rejected = lines(tmp_path / 'rejected.jsonl')
  assert [row['index'] for row in rejected] == sorted(BAD)
  for row in rejected:
    _, reason, words = BAD[row['index']]
    assert row['reason'] == reason, row
    assert words in row['detail'] and row['detail'].isprintable(), row
    assert row['id'] == f'spoiled/test/{row["index"]}'
  measured = [row['index'] for row in lines(tmp_path / 'examples.jsonl')]
  assert measured == sorted(set(range(LIMIT)) - set(BAD))
  record = json.loads((tmp_path / 'run.json').read_text())
  counts = collections.Counter(reason for _, reason, _ in BAD.values())
  assert record['rejected'] == {str(r): n for r, n in counts.items()}
  assert record['examples'] == LIMIT - len(BAD)
  assert f'{len(BAD)} records rejected' in capsys.readouterr().out


def test_more_than_max_bad_is_one_line(spoiled, tmp_path, capsys):
  assert rank.cli(['rank', f'--out={tmp_path}', *spoiled]) == cli.EX_USER
  err = capsys.readouterr().err
  assert err.startswith('error: ') and err.count('\n') == 1
  assert 'records rejected' in err and '--max_bad=0.01' in err
  assert (tmp_path / 'rejected.jsonl').exists()


@pytest.mark.parametrize('index', [6, 9, 15])
def test_inspect_says_why(spoiled, tmp_path, capsys, index):
  line = ['inspect', f'--out={tmp_path}', f'--example={index}', *spoiled[:1]]
  assert inspect_lib.cli(line) == cli.EX_USER
  err = capsys.readouterr().err
  assert err.startswith('error: ') and err.count('\n') == 1
  assert str(BAD[index][1]) in err and BAD[index][2] in err


def test_a_context_too_short_for_every_example(
  folder, tmp_path, monkeypatch, capsys
):
  """One picture would fit; no document of four pages does."""
  path = folder / 'config.json'
  before = path.read_text()
  config = json.loads(before)
  config['text_config']['max_position_embeddings'] = 40
  path.write_text(json.dumps(config))
  line = ['rank', '--data=scenes_pages', '--limit=8', f'--out={tmp_path}']
  try:
    assert rank.cli([*line, f'--checkpoint={folder}']) == cli.EX_USER
  finally:
    path.write_text(before)
  err = capsys.readouterr().err
  assert '8 of 8 records rejected (8 longer than the context)' in err
  detail = lines(tmp_path / 'rejected.jsonl')[0]['detail']
  assert 'the model takes 40: show fewer --pages' in detail
