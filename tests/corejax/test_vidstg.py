"""The VidSTG reader on invented records and, where they are, real ones."""

import collections
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from corejax import errors
from corejax import scoring
from corejax.data import sources
from corejax.data import vidstg
from corejax.data import vidstg_records
from corejax.models import images
from helpers import pictures

Reason = errors.Reason

_FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures/vidstg'
_FRAMES = 40

# What each record of the fixture is rejected for; None is a good one.
_EXPECTED = [
  *(None,) * 6,
  (Reason.BAD_RECORD, r'/3: temporal_gt \[20, 20\) does not lie in'),
  (Reason.BAD_RECORD, r'/4: temporal_gt \[25, 20\)'),
  (Reason.BAD_RECORD, r'/5: temporal_gt \[30, 41\) .*\[0, 41\) of 40 frames'),
  (Reason.BAD_RECORD, r'/6: temporal_gt \[5, 10\) does not lie in .*\[8, 30\)'),
  (Reason.BAD_RECORD, '/7: fps=nan is no frame rate'),
  (Reason.BAD_RECORD, '/8: width=0'),
  (Reason.BAD_RECORD, "/9: no field 'captions'"),
  (Reason.BAD_RECORD, '/10-c0: target_id=7 is none of subject/objects'),
  (Reason.BAD_RECORD, '/11-c0: description is empty'),
  (Reason.NO_EVIDENCE, '/12-c0: no box of thing 2 in frames 0 to 4'),
  (Reason.BAD_BOX, r'/13-c0: box \(20, 30, 10, 48\) .* is empty or inverted'),
  (Reason.BAD_BOX, '/14-c0: bbox=.* is not four finite numbers'),
  (Reason.MISSING_MEDIA, 'unboxed/15-c0: no boxes; VidOR'),
  (Reason.MISSING_MEDIA, 'unseen/16-c0: VidOR'),
  (Reason.BAD_RECORD, 'wide/17-c0: frame 2: a picture of 64x64 pixels'),
  (Reason.BAD_MEDIA, 'cut/18-c0: frame 32: a JPEG that ends before its size'),
  (Reason.BAD_RECORD, 'longer/19-c0: 64x48 pixels and 41 frames in VidOR'),
  (Reason.BAD_RECORD, r'one_based/20-c0: .*count from 0 \(ffmpeg'),
  (Reason.BAD_RECORD, 'annotation 21/21: vid=.* is not a bare file name'),
  (Reason.EVIDENCE_MISSED, 'none of the pictures shows it; extract more'),
  (Reason.BAD_RECORD, "annotation 23/23: no field 'vid'"),
]


def picture(frame: int, size=(48, 64)) -> np.ndarray:
  """Red where thing 0 is, blue where thing 1 is."""
  pixels = np.zeros((*size, 3), np.uint8)
  pixels[8:24, frame : frame + 16] = 255, 0, 0
  if frame >= 5:
    pixels[30:48, 40:64] = 0, 0, 255
  return pixels


def _frames(folder, numbers, size=(48, 64)):
  folder.mkdir(parents=True)
  for number in numbers:
    data = pictures.jpeg(picture(number, size), quality=95)
    (folder / f'{number:06d}.jpg').write_bytes(data)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('vidstg') / 'root'
  shutil.copytree(_FIXTURE, root)
  everything = range(_FRAMES)
  _frames(root / 'frames/moving', everything)
  _frames(root / 'frames/0001/unboxed', everything)
  _frames(root / 'frames/wide', everything, size=(64, 64))
  _frames(root / 'frames/cut', everything)
  for number in (32, 37):
    path = root / f'frames/cut/{number:06d}.jpg'
    path.write_bytes(path.read_bytes()[:60])
  _frames(root / 'frames/longer', everything)
  _frames(root / 'frames/one_based', range(1, _FRAMES + 1))
  _frames(root / 'frames/sparse', range(0, _FRAMES, 10))
  return root


@pytest.fixture(scope='module')
def source(folder):
  return vidstg.VidSTG(folder)


def _outcome(source, index):
  try:
    return source[index]
  except errors.Rejected as e:
    return e


@pytest.mark.parametrize('index', range(len(_EXPECTED)))
def test_each_defect_is_rejected_for_its_reason(source, index):
  if _EXPECTED[index] is None:
    assert source[index].source == 'vidstg'
    return
  reason, detail = _EXPECTED[index]
  with pytest.raises(errors.Rejected, match=detail) as caught:
    source[index]
  assert caught.value.reason is reason


def test_counts_add_up(folder, source):
  assert len(source) == len(_EXPECTED)
  by_task = [len(vidstg.VidSTG(folder, tasks=[t])) for t in ('what', 'when')]
  untold = sum(r.task is None for r in source._records)
  assert sum(by_task) == len(source) + untold


def test_a_question_and_a_caption(source):
  when, what = source[0], source[1]
  assert what.question == 'what moves?' and what.answers == ('dog',)
  assert (what.task, what.scorer, what.kind) == ('what', 'contains', 'video')
  assert what.meta['media_index'] == [2, 7, 12, 17, 22, 27, 32, 37]
  assert what.meta['media_time'][:2] == [0.2, 0.7]
  # Seconds of the whole video, as those of the span: one clip of 8 frames.
  assert [c.first for c in what.clips] == [0]
  assert list(what.clips[0].seconds) == what.meta['media_time']
  inside = [1.0 <= s < 2.0 for s in what.clips[0].seconds]
  assert [n for n, s in enumerate(inside) if s] == [2, 3]
  assert what.span == (1.0, 2.0)
  assert when.question == (
    'In which frames, counted from 1, is this so: a square moves'
  )
  # Frames 12 and 17 of [10, 20) are the third and the fourth shown.
  assert when.answers == ('3 to 4',)
  assert scoring.score(when, 'Frames 3 to 4') == 1
  assert scoring.score(when, '4') == 0.5
  assert scoring.score(what, 'It is a dog.') == 1
  assert what.cluster == when.cluster == 'moving'
  assert source[3].answers == ('cattle', 'cow')


def test_evidence_is_where_the_red_is(source):
  example = source[1]
  assert [box.media for box in example.evidence] == [2, 3]
  for box in example.evidence:
    pixels = images.decode(example.media[box.media]).astype(int)
    red = pixels[..., 0] - pixels[..., 2] > 128
    rows, columns = np.nonzero(red)
    assert abs(columns.min() / 64 - box.x0) < 0.03
    assert abs((columns.max() + 1) / 64 - box.x1) < 0.03
    assert abs(rows.min() / 48 - box.y0) < 0.03
    assert abs((rows.max() + 1) / 48 - box.y1) < 0.03
  # Thing 1 is in all frames from 5 on; thing 3's boxes are none.
  assert [box.media for box in example.distractors] == list(range(1, 8))
  assert {dataclasses.astuple(b)[1:] for b in example.distractors} == {
    (40 / 64, 30 / 48, 1, 1)
  }


def test_frames_that_miss_the_evidence_are_moved_or_rejected(folder, source):
  example = source[2]
  assert example.meta['moved'] and not source[0].meta['moved']
  # 12 is the nearest to 11.
  assert example.meta['media_index'] == [2, 7, 11, 17, 22, 27, 32, 37]
  assert [box.media for box in example.evidence] == [2]
  assert example.answers == ('3 to 3',)
  strict = vidstg.VidSTG(folder, missed='reject')
  with pytest.raises(errors.Rejected, match='--missed=move') as caught:
    strict[2]
  assert caught.value.reason is Reason.EVIDENCE_MISSED
  good = sum(not r.fault for r in source._records)
  assert f'miss the evidence of 3 of {good} sentences' in source.remarks[0]
  assert 'they are rejected' in strict.remarks[0]
  assert strict.fingerprint != source.fingerprint


def test_a_segment_ends_where_the_later_of_two_does(source):
  """Annotation 2: the segment's end is the last frame, not one behind it."""
  record = source._records[5]
  assert record.segment == (0, 40) and record.span == (30, 40)
  assert source[5].answers == ('7 to 8',)


@pytest.mark.parametrize(
  'segment, count, available, expected',
  [
    ((0, 40), 4, None, [5, 15, 25, 35]),
    ((10, 13), 2, None, [10, 12]),
    ((10, 13), 8, None, [10, 11, 12]),
    ((0, 1), 3, None, [0]),
    ((0, 40), 4, range(40), [5, 15, 25, 35]),
    ((0, 40), 4, range(0, 40, 10), [0, 10, 20, 30]),
    ((5, 40), 2, [0, 10, 20, 30], [10, 30]),
    ((5, 9), 2, [0, 10, 20, 30], []),
  ],
)
def test_samples(segment, count, available, expected):
  assert vidstg_records.sample(segment, count, available) == expected


@pytest.mark.parametrize(
  'frames, wanted, expected',
  [
    ([5, 15, 25], [14, 15], [5, 15, 25]),
    ([5, 15, 25], [17, 18, 19], [5, 18, 25]),
    ([5, 15, 25], [10], [10, 15, 25]),  # the earlier of two
    ([5, 15, 25], [26, 27], [5, 15, 27]),
    ([5], [0], [0]),
  ],
)
def test_moving(frames, wanted, expected):
  assert vidstg_records.with_evidence(frames, wanted) == expected


def test_settings(folder):
  settings = ({}, {'frames': 4}, {'missed': 'reject'}, {'tasks': ['what']})
  prints = {vidstg.VidSTG(folder, **s).fingerprint for s in settings}
  assert len(prints) == 4
  for setting, message in (
    ({'split': 'dev'}, '--split=dev: vidstg has train, val, test'),
    ({'frames': 0}, '--frames=0: expected 1 to 1000'),
    ({'missed': 'cry'}, '--missed=cry'),
    ({'tasks': ['who']}, '--tasks=who: .* what, when'),
  ):
    with pytest.raises(errors.UserError, match=message):
      vidstg.VidSTG(folder, **setting)


def test_missing_files_are_listed_in_one_message(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    vidstg.VidSTG(tmp_path)
  for part in (
    '1. test_annotations.json',
    '2. the boxes',
    '3. the frames or files',
    'github.com/Guaranteer',
    'xdshang.github.io',
    'scenes_haystack, scenes_video) need no files',
  ):
    assert part in str(caught.value)
  shutil.copy(_FIXTURE / 'test_annotations.json', tmp_path)
  with pytest.raises(errors.UserError, match='1. the boxes of 8 videos'):
    vidstg.VidSTG(tmp_path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [(b'', 'no JSON'), (b'{}', 'no list of ann'), (b'[1]', 'none of 1 annot')],
)
def test_a_file_that_is_something_else(tmp_path, content, message):
  (tmp_path / 'test_annotations.json').write_bytes(content)
  with pytest.raises(errors.UserError, match=message):
    vidstg.VidSTG(tmp_path)


@pytest.mark.parametrize(
  'content', [b'', b'[]', b'{"trajectories": 1}', b'{"trajectories": []}']
)
def test_boxes_that_are_something_else(content):
  with pytest.raises(errors.Rejected) as caught:
    vidstg_records.Tracks(content)
  assert caught.value.reason is Reason.BAD_RECORD


def test_sources_open_it(folder):
  opened = sources.load(
    'vidstg', data_dir=str(folder), frames=4, evidence='whole', limit=2
  )
  assert opened[0].meta['media_index'] == [5, 15, 25, 35]
  (box,) = opened[0].evidence
  assert (box.x0, box.x1) == (0, 1)
  assert sources.splits('vidstg') == ('train', 'val', 'test')


def test_real_excerpts(samples, tmp_path):
  """Real sentences; boxes and frames, which are not there, are invented."""
  for split in ('val', 'test'):
    rows = json.loads(
      (samples / f'vidstg/{split}_annotations.json').read_text()
    )
    content = (samples / f'vidstg/{split}_annotations.json').read_bytes()
    records = vidstg_records.parse(content)
    assert not [r.fault for r in records if r.fault]
    assert len(records) == sum(
      len(r['captions']) + len(r['questions']) for r in rows
    )
    root = tmp_path / split
    root.mkdir()
    (root / f'{split}_annotations.json').write_bytes(content)
    group = root / 'annotation/training/0001'
    group.mkdir(parents=True)
    for row in rows:
      thing = {'bbox': dict(xmin=1, ymin=1, xmax=30, ymax=30)}
      things = [thing | {'tid': t['tid']} for t in row['subject/objects']]
      video = {k: row[k] for k in ('frame_count', 'fps', 'width', 'height')}
      video['trajectories'] = [things] * row['frame_count']
      (group / f'{row["vid"]}.json').write_text(json.dumps(video))
      frames = root / 'frames' / row['vid']
      if not frames.exists():
        frames.mkdir(parents=True)
        shape = (row['height'] // 8, row['width'] // 8, 3)
        data = pictures.png(np.zeros(shape, np.uint8))
        for number in range(0, row['frame_count'], 5):
          (frames / f'{number}.png').write_bytes(data)
    source = vidstg.VidSTG(root, split=split)
    reasons = collections.Counter(
      o.reason if isinstance(o, errors.Rejected) else o.task
      for o in (_outcome(source, n) for n in range(len(source)))
    )
    assert reasons.keys() <= {'what', 'when', Reason.EVIDENCE_MISSED}
    assert reasons['what'] and reasons['when'] == 24
