"""Data made ready is the same data, record by record, rejected ones too."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import prepared
from corejax.data import sources
from corejax.experiments import cli
from corejax.experiments import prepare
from helpers import pictures

_FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures/vidstg'


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
  """27 records in two parts; six of them good ones, the last."""
  root = tmp_path_factory.mktemp('raw') / 'root'
  shutil.copytree(_FIXTURE, root)
  # Bad records first, so that a good one's number is not its place.
  file = root / 'test_annotations.json'
  rows = json.loads(file.read_text())
  file.write_text(json.dumps(rows[3:] + rows[:3]))
  (root / 'frames/moving').mkdir(parents=True)
  for number in range(40):
    data = pictures.png(np.full((48, 64, 3), number, np.uint8))
    (root / f'frames/moving/{number}.png').write_bytes(data)
  return root


@pytest.fixture(scope='module')
def ready(raw, tmp_path_factory):
  out = tmp_path_factory.mktemp('ready') / 'out'
  result = prepare.run(_config(raw, out))
  assert result.out == out and result.records == 27
  return result


def _config(raw, out, **settings):
  options = dict(data='vidstg', frames=4) | settings
  return prepare.Config(data_dir=str(raw), out=str(out), **options)


def _load(folder, **settings):
  options = dict(frames=4) | settings
  return sources.load('vidstg', data_dir=str(folder), **options)


def _outcomes(source):
  found = []
  for index in range(len(source)):
    try:
      found.append(source[index])
    except errors.Rejected as e:
      found.append(str(e))
  return found


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'tasks': ['what']},
    {'limit': 5},
    {'evidence': 'whole', 'video_as': 'clip'},
    {'split': 'test:1/2'},
    {'video_as': 'clip'},
  ],
)
def test_every_record_is_what_it_was(raw, ready, settings):
  one, other = (_load(f, **settings) for f in (raw, ready.out))
  expected = _outcomes(one)
  assert _outcomes(other) == expected
  assert (other.name, other.split) == (one.name, one.split)
  assert sources.remarks(other) == sources.remarks(_load(raw))
  if 'tasks' not in settings:
    assert other.fingerprint == one.fingerprint
  clips = {bool(e.clips) for e in expected if not isinstance(e, str)}
  assert clips <= {settings.get('video_as') == 'clip'}
  assert clips or settings == {'limit': 5}
  if settings in ({}, {'limit': 5}):
    for index in range(len(one)):
      assert sources.told(one, index) == sources.told(other, index)
  assert 'tensorflow' not in sys.modules


def test_what_is_said_and_left(ready):
  index = [
    json.loads(line)
    for line in (ready.out / prepared.INDEX).read_text().splitlines()
  ]
  assert len(index) == ready.records
  assert sum('reason' in line for line in index) == ready.rejected.total() == 21
  assert ready.rejected['bad box'] == 2
  left = {path.name for path in ready.out.iterdir()}
  assert left == {
    *('prepared.json', 'index.jsonl', 'run.json', 'core_evidence', 'parts'),
    '.lock',
  }
  assert not any((ready.out / 'parts').iterdir())


def test_it_goes_on_where_it_stopped(raw, ready, tmp_path, monkeypatch):
  part, made = prepare._part, []

  def interrupted(source, records):
    if made:
      raise cli.Preempted
    made.append(records)
    return part(source, records)

  config = _config(raw, tmp_path / 'out')
  with monkeypatch.context() as patch:
    patch.setattr(prepare, '_part', interrupted)
    with pytest.raises(cli.Preempted):
      prepare.run(config)
  assert not prepared.is_prepared(tmp_path / 'out')
  rest = []
  monkeypatch.setattr(
    prepare, '_part', lambda s, r: rest.append(r) or part(s, r)
  )
  prepare.run(config)
  assert (made, rest) == ([range(16)], [range(16, 27)])
  assert _outcomes(_load(tmp_path / 'out')) == _outcomes(_load(ready.out))
  prepare.run(config)  # done already
  assert len(rest) == 1
  with pytest.raises(errors.UserError, match='holds another run: .*limit|reco'):
    prepare.run(_config(raw, tmp_path / 'out', limit=24))
  assert (
    prepare.run(_config(raw, tmp_path / 'out', limit=24, resume=False)).records
    == 24
  )
  assert len(_load(tmp_path / 'out')) == 24


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'frames': 8}, 'frames=4, wanted is 8'),
    ({'missed': 'reject'}, 'missed=move, wanted is reject'),
    ({'split': 'val'}, 'split=test, wanted is val'),
    ({'tasks': ['where']}, '--tasks=where: .* what, when'),
  ],
)
def test_other_settings_are_refused(ready, settings, message):
  with pytest.raises(errors.UserError, match=message):
    _load(ready.out, **settings)
  with pytest.raises(errors.UserError, match='data=vidstg, wanted is mmdocir'):
    sources.load('mmdocir', data_dir=str(ready.out))


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'data': 'scenes_pages'}, 'needs no preparing'),
    ({'split': 'test:1/2'}, 'prepare the whole split test'),
    ({'data': 'coco'}, 'no such data set'),
  ],
)
def test_what_is_not_prepared(raw, tmp_path, settings, message):
  with pytest.raises(errors.UserError, match=message):
    prepare.run(_config(raw, tmp_path, **settings))


def test_prepared_again_or_of_nothing(raw, ready, tmp_path, capsys):
  line = [
    *('prepare', '--data=vidstg', f'--out={tmp_path / "out"}', '--frames=4'),
  ]
  assert prepare.cli([*line, f'--data_dir={ready.out}']) == cli.EX_USER
  assert 'is prepared already' in capsys.readouterr().err
  root = tmp_path / 'raw'
  shutil.copytree(raw, root)
  rows = json.loads((root / 'test_annotations.json').read_text())
  (root / 'test_annotations.json').write_text(json.dumps(rows[12:14]))
  (root / 'frames/unboxed').mkdir()
  assert prepare.cli([*line, f'--data_dir={root}']) == cli.EX_USER
  err = capsys.readouterr().err
  assert 'none of 2 records can be used (media file missing)' in err


@pytest.mark.parametrize('damage', ['head', 'index', 'format', 'rows', 'lines'])
def test_a_damaged_folder_is_refused(ready, tmp_path, damage):
  folder = tmp_path / 'copy'
  shutil.copytree(ready.out, folder)
  head, index = folder / prepared.FILE, folder / prepared.INDEX
  if damage == 'head':
    head.write_text('{}')
  elif damage == 'index':
    index.write_text('{"cluster": 1}\n')
  elif damage == 'format':
    head.write_text(head.read_text().replace('"format": 2', '"format": 9'))
  elif damage == 'rows':
    shutil.rmtree(folder / 'core_evidence')
  else:
    index.write_text(''.join(index.read_text().splitlines(True)[:2]))
  with pytest.raises(errors.UserError, match='make it again|of prepared data'):
    _load(folder)


def test_an_example_comes_back_bit_for_bit():
  example = example_lib.Example(
    id='a/b/c',
    source='a',
    split='b',
    task='t',
    media=(b'\0\xff\x80', b'', b'x' * 999),
    question='Größe 数 \U0001f600?',
    answers=('one', 'zwei ü'),
    cluster='c',
    scorer='docqa',
    evidence=(example_lib.Box(1, 0.1, 1 / 3, 0.7, 1.0),),
    span=(1.25, 1 / 3 + 2),
    clips=(example_lib.Clip(1, (0.1, 1 / 3)),),
    kind='video',
    meta={'n': [1, 2.5, None], 'ü': 'x'},
  )
  assert prepared.from_row(prepared.to_row(example)) == example
