"""The RefCOCOg reader on invented records and, where they are, real ones."""

import collections
import dataclasses
import json
import pathlib
import pickle
import shutil

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax import grounding
from corejax import scoring
from corejax.data import boxes
from corejax.data import refcocog
from corejax.data import refcocog_records
from corejax.data import sources
from corejax.models import images
from helpers import pictures

Reason = errors.Reason

_FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures/refcocog'

# What each record of the fixture is rejected for; None is a good one.
_EXPECTED = [
  None,
  None,
  None,
  (Reason.BAD_BOX, '3/0: box .* is empty or inverted'),
  (Reason.BAD_BOX, '4/0: box .* is empty or inverted'),
  (Reason.BAD_BOX, '5/0: bbox=.*nan.* is not 4 finite numbers'),
  (Reason.BAD_BOX, 'of 64x48 pixels reaches 16 pixels beyond the edge'),
  None,
  (Reason.NO_EVIDENCE, '8/0: no annotation 99 on plain.jpg'),
  (Reason.BAD_RECORD, '9/0: no picture of id 77'),
  (Reason.BAD_RECORD, "10/0: no field 'sent'"),
  (Reason.BAD_RECORD, '11/0: sent is empty'),
  (Reason.BAD_RECORD, '12: no sentences'),
  (Reason.MISSING_MEDIA, '13/0: gone.jpg; COCO train2014'),
  None,  # cut short behind its size: whoever decodes it rejects it
  (Reason.BAD_MEDIA, '15/0: stump.jpg: a JPEG that ends before its size'),
  (Reason.MEDIA_TOO_LARGE, '16/0: vast.png: a picture of 20000x10000'),
  (Reason.BAD_RECORD, r'17/0: turned.jpg: .* \(its EXIF turns it'),
  None,
  None,
  None,
  (Reason.BAD_RECORD, '64x48 pixels, annotated are 640x480'),
  (Reason.BAD_MEDIA, 'moving.gif: .* neither PNG nor JPEG'),
  (Reason.BAD_RECORD, '1: ref_id is there twice'),
  (Reason.BAD_RECORD, "reference 23: no field 'split'"),
  (Reason.BAD_RECORD, r"25/0: file_name='\.\./plain\.jpg' is not a bare file"),
  (Reason.BAD_RECORD, 'reference 26: ref_id=.* is no name'),
]
_CUT = 14


def _photographs(folder: pathlib.Path) -> None:
  """What the fixture's records name, or not quite."""
  red = np.zeros((48, 64, 3), np.uint8)
  red[12:30, 16:40] = 255, 0, 0
  plain = pictures.jpeg(red, quality=95)
  deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64))
  for name, data in {
    'plain.jpg': plain,
    'cut.jpg': plain[: len(plain) * 2 // 3],
    'stump.jpg': plain[:100],
    'vast.png': pictures.png_head(20000, 10000),
    'turned.jpg': pictures.turned(red),
    'exif.jpg': pictures.turned(red),
    'deep.png': pictures.png(deep),
    'cmyk.jpg': pictures.jpeg(Image.fromarray(red).convert('CMYK')),
    'moving.gif': b'GIF89a' + bytes(30),
  }.items():
    (folder / name).write_bytes(data)


@pytest.fixture(scope='module')
def refer(tmp_path_factory):
  """REFER's layout."""
  root = tmp_path_factory.mktemp('refer')
  (root / 'refcocog').mkdir()
  for name in ('refs(umd).p', 'refs(google).p', 'instances.json'):
    shutil.copy(_FIXTURE / name, root / 'refcocog')
  photographs = root / 'images/mscoco/images/train2014'
  photographs.mkdir(parents=True)
  _photographs(photographs)
  return root


@pytest.fixture(scope='module')
def tfds(tmp_path_factory):
  """The layout that tensorflow_datasets has one make."""
  root = tmp_path_factory.mktemp('tfds')
  shutil.copy(_FIXTURE / 'refcoco.json', root)
  (root / 'coco_train2014').mkdir()
  _photographs(root / 'coco_train2014')
  return root


@pytest.fixture(scope='module', params=['refer', 'tfds'])
def source(request):
  return refcocog.RefCOCOg(request.getfixturevalue(request.param))


def _outcome(source, index):
  try:
    return source[index]
  except errors.Rejected as e:
    return e


@pytest.mark.parametrize('index', range(len(_EXPECTED)))
def test_each_defect_is_rejected_for_its_reason(source, index):
  if _EXPECTED[index] is None:
    assert source[index].source == 'refcocog'
    return
  reason, detail = _EXPECTED[index]
  with pytest.raises(errors.Rejected, match=detail) as caught:
    source[index]
  assert caught.value.reason is reason
  assert str(_outcome(source, index)) == str(caught.value)


def test_counts_add_up(source):
  assert len(source) == len(_EXPECTED)
  for index in (-1, len(source)):
    with pytest.raises(IndexError):
      source[index]


def test_both_layouts_say_the_same(refer, tfds):
  for part in ('umd', 'google'):
    split = 'test' if part == 'umd' else 'val'
    one = refcocog.RefCOCOg(refer, split=split, split_by=part)
    other = refcocog.RefCOCOg(tfds, split=split, split_by=part)
    for n in range(len(one)):
      assert repr(_outcome(one, n)) == repr(_outcome(other, n))
    assert one[0] == other[0]


def test_an_example_says_what_the_record_says(source):
  example = source[1]
  assert example.id == 'refcocog/test/umd-1/1'
  assert example.question.endswith('these words describe: a square , all red')
  assert (example.task, example.kind, example.scorer) == (
    'box',
    'image',
    'iou50',
  )
  assert example.cluster == 'plain.jpg'
  assert example.answers == ('[0.25, 0.25, 0.62, 0.62]',)
  assert example.meta['media_hw'] == [[48, 64]]
  (box,) = example.evidence
  assert dataclasses.astuple(box) == (0, 0.25, 0.25, 0.625, 0.625)
  # Not the crowd, the empty box, those beyond the edge, nor the same square
  # under another category.
  others = {dataclasses.astuple(b)[1:] for b in example.distractors}
  assert others == {(0, 0, 0.125, 8 / 48), (0.625, 10 / 48, 1, 22 / 48)}


def test_evidence_is_where_the_red_is(source):
  example = source[0]
  pixels = images.decode(example.media[0]).astype(int)
  red = pixels[..., 0] - pixels[..., 1] > 128
  rows, columns = np.nonzero(red)
  (box,) = example.evidence
  assert abs(columns.min() / 64 - box.x0) < 0.02
  assert abs((columns.max() + 1) / 64 - box.x1) < 0.02
  assert abs(rows.min() / 48 - box.y0) < 0.02
  assert abs((rows.max() + 1) / 48 - box.y1) < 0.02


def test_what_is_handled_is_decoded_or_rejected_by_the_decoder(source):
  with pytest.raises(errors.Rejected) as caught:
    images.decode(source[_CUT].media[0])
  assert caught.value.reason is Reason.BAD_MEDIA
  good = [n for n, e in enumerate(_EXPECTED) if e is None and n != _CUT]
  for n in good:
    assert images.decode(source[n].media[0]).shape == (48, 64, 3)


@pytest.mark.parametrize('convention', grounding.CONVENTIONS)
def test_answers_are_right_in_every_convention(refer, convention):
  source = boxes.Written(
    refcocog.RefCOCOg(refer),
    convention,
    (lambda size: (56, 28)) if convention == 'resized' else None,
  )
  for n in (0, 2, 7):
    example = source[n]
    assert scoring.score(example, example.answers[0]) == 1
    assert scoring.score(example, '[0, 0, 0.01, 0.01]') == 0
  spelt = {
    'share': '[0.25, 0.25, 0.62, 0.62]',
    'square': '[0.25, 0.31, 0.62, 0.59]',  # 8 rows of 64 above it
    'thousand': '[250, 250, 625, 625]',
    'pixel': '[16, 12, 40, 30]',
    'resized': '[14, 7, 35, 18]',
  }
  # Python rounds halves to even: 0.625 is .62, 17.5 is 18, and 0.59375 .59.
  assert source[0].answers == (spelt[convention],)


def test_everything_is_decided_by_the_settings(refer):
  settings = [
    {},
    {'split': 'train'},
    {'split': 'val', 'split_by': 'google'},
  ]
  prints = [refcocog.RefCOCOg(refer, **s).fingerprint for s in settings]
  prints.append(boxes.Written(refcocog.RefCOCOg(refer), 'pixel').fingerprint)
  assert len(set(prints)) == 4
  assert refcocog.RefCOCOg(refer).fingerprint == prints[0]


def test_splits(refer):
  train = refcocog.RefCOCOg(refer, split='train')
  # Its own, and the one of which no split can be told.
  assert len(train) == 2
  assert train[1].id == 'refcocog/train/umd-26/0'
  google = refcocog.RefCOCOg(refer, split='val', split_by='google')
  assert google[0].id == 'refcocog/val/google-501/0'
  assert google.cluster(0) == 'plain.jpg'


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'split': 'testA'}, '--split=testA: refcocog .* train, val, test'),
    ({'split_by': 'google'}, '--split=test: .* google has train, val'),
    ({'split_by': 'unc'}, '--split_by=unc: not one of umd, google'),
    ({'tasks': ['colour']}, '--tasks=colour: .*there are box'),
  ],
)
def test_settings_out_of_range(refer, settings, message):
  with pytest.raises(errors.UserError, match=message):
    refcocog.RefCOCOg(refer, **settings)


def test_missing_files_are_listed_in_one_message(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    refcocog.RefCOCOg(tmp_path)
  for part in (
    str(tmp_path),
    '1. refs(umd).p with instances.json',
    '2. the photographs',
    'github.com/lichengunc/refer',
    'train2014',
    'need no files',
  ):
    assert part in str(caught.value)
  for name in ('refs(umd).p', 'instances.json'):
    shutil.copy(_FIXTURE / name, tmp_path)
  with pytest.raises(errors.UserError, match='all 10 photographs, cmyk.jpg'):
    refcocog.RefCOCOg(tmp_path)
  _photographs(tmp_path)
  assert len(refcocog.RefCOCOg(tmp_path)) == len(_EXPECTED)
  with pytest.raises(errors.UserError, match='no such folder'):
    refcocog.RefCOCOg(tmp_path / 'nowhere')
  with pytest.raises(errors.UserError, match='holds no reference of --split'):
    refcocog.RefCOCOg(tmp_path, split='val')


@pytest.mark.parametrize(
  ('refs', 'instances', 'message'),
  [
    (b'', b'{}', 'no pickle of plain data: ends after 0 bytes'),
    (b'<html>', b'{}', 'no pickle of plain data'),
    (pickle.dumps(print), b'{}', 'STACK_GLOBAL at byte .* makes no plain data'),
    (pickle.dumps({}), b'{}', 'the references are no list'),
    (pickle.dumps([]), b'{"a"', 'the instances are no JSON'),
    (pickle.dumps([]), b'[' * 100_000, 'no JSON: nested too deeply'),
    (pickle.dumps([]), b'[]', 'no list images'),
    (pickle.dumps([]), b'{"images": []}', 'no list annotations'),
  ],
)
def test_files_that_are_something_else(tmp_path, refs, instances, message):
  (tmp_path / 'refs(umd).p').write_bytes(refs)
  (tmp_path / 'instances.json').write_bytes(instances)
  with pytest.raises(errors.UserError, match=message):
    refcocog.RefCOCOg(tmp_path)


@pytest.mark.parametrize(
  'content', [b'', b'[]', b'{"ref": {}}', b'{"ref": [], "coco_anns": []}']
)
def test_a_tfds_file_that_is_something_else(tmp_path, content):
  (tmp_path / 'refcoco.json').write_bytes(content)
  with pytest.raises(errors.UserError, match='refcoco.json: .*refer'):
    refcocog.RefCOCOg(tmp_path)


def test_sources_open_it(refer):
  opened = sources.load(
    'refcocog', data_dir=str(refer), limit=2, box_answers='thousand'
  )
  assert len(opened) == 2 and opened[0].answers == ('[250, 250, 625, 625]',)
  assert boxes.of(opened) == 'thousand'
  assert boxes.of(sources.load('refcocog', data_dir=str(refer))) == 'share'
  assert not boxes.of(sources.load('scenes_pages'))
  with pytest.raises(errors.UserError, match='--box_answers=miles: not one of'):
    sources.load('refcocog', data_dir=str(refer), box_answers='miles')
  with pytest.raises(
    errors.UserError, match='the size follows from a checkpoint'
  ):
    sources.load('refcocog', data_dir=str(refer), box_answers='resized')
  assert sources.splits('refcocog') == ('train', 'val', 'test')
  halves = [
    sources.load('refcocog', data_dir=str(refer), split=f'test:{n}/2')
    for n in (1, 2)
  ]
  assert sum(map(len, halves)) == len(_EXPECTED)


def test_real_excerpts(samples, tmp_path):
  """Five references of one photograph, which is not among the excerpts."""
  found = collections.Counter()
  for root in ('refer', 'tfds'):
    folder = tmp_path / root
    folder.mkdir()
    for path in (samples / 'refcocog').iterdir():
      if (path.name == 'refcoco.json') == (root == 'tfds'):
        shutil.copy(path, folder)
    photograph = Image.new('RGB', (640, 427))
    photograph.save(folder / 'COCO_train2014_000000460986.jpg')
    for part, splits in refcocog_records.SPLITS.items():
      for split in splits:
        try:
          source = refcocog.RefCOCOg(folder, split=split, split_by=part)
        except errors.UserError as e:
          assert 'holds no reference' in str(e)
          continue
        for n in range(len(source)):
          example = source[n]
          found[root, part] += 1
          assert len(example.evidence) == 1 and example.distractors
  # Two sentences each; two references are umd's, three google's.
  assert found['refer', 'umd'] == found['tfds', 'umd'] == 4
  assert found['refer', 'google'] == found['tfds', 'google'] == 6
  coco = json.loads((samples / 'refcocog/instances.json').read_text())
  assert len(coco['annotations']) == 6
