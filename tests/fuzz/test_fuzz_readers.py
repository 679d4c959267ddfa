"""Readers of annotations under mutation: `python -m pytest -m fuzz -s`."""

import json
import pathlib
import pickle

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import mmlongbench_records
from corejax.data import pictures as pictures_lib
from corejax.data import plain_pickle
from corejax.data import refcocog_records
from corejax.data import vidstg_records
from helpers import mutation
from helpers import pictures

pytestmark = pytest.mark.fuzz

_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


def _check(records) -> str:
  """An outcome for the count; a record without a fault is whole."""
  for record in records:
    if record.fault:
      text = str(record.fault)
      assert text.isprintable() and len(text) < 4200
    assert isinstance(record.cluster, str)
  faults = [r.fault for r in records if r.fault]
  if faults:
    return str(faults[0].reason)
  return f'{min(len(records), 1)} good'


def test_pickles():
  seeds = [
    *(_FIXTURES.joinpath(f'refcocog/refs({n}).p') for n in ('umd', 'google'))
  ]
  value = pickle.loads(seeds[1].read_bytes())
  goods = [seed.read_bytes() for seed in seeds]
  goods += [pickle.dumps(value, protocol) for protocol in range(6)]
  pieces = [b'(', b'l', b'd', b'.', b'a', b's', b'p0\n', b'g0\n', b'cos\n']

  def make(rng):
    return mutation.mutate_bytes(rng, rng.choice(goods), pieces)

  found = mutation.count_outcomes(
    'pickles',
    make,
    lambda data: [plain_pickle.loads(data)],
    100_000,
    allowed=(plain_pickle.NotPlain,),
  )
  assert min(found['accepted'], found['NotPlain']) > 1000


def test_refcocog():
  raw = json.loads(_FIXTURES.joinpath('refcocog/refcoco.json').read_text())
  malformed = (refcocog_records.Malformed,)
  coco = raw['coco_anns']

  def make(rng):
    ref = rng.choice(raw['ref'])
    image = str(ref['image_id'])
    small = {
      'ref': [ref],
      'coco_anns': {k: coco[k] for k in (image, '1') if k in coco},
    }
    if rng.random() < 0.2:
      return mutation.mutate_bytes(rng, json.dumps(small).encode())
    return mutation.dumps(rng, mutation.mutate_json(rng, small))

  def parse(data):
    return _check(refcocog_records.parse_tfds(data, 'test', 'umd'))

  found = mutation.count_outcomes(
    'refcoco.json', make, parse, 100_000, allowed=malformed
  )
  assert min(found['1 good'], found['bad record'], found['bad box']) > 1000

  def pair(rng):
    ref = rng.choice(raw['ref'])
    entry = coco.get(str(ref.get('image_id')), coco['1'])
    instances = {'images': [entry['info']], 'annotations': entry['anns']}
    return (
      pickle.dumps([mutation.mutate_json(rng, ref)], rng.choice((0, 2))),
      mutation.dumps(rng, mutation.mutate_json(rng, instances)),
    )

  def parse_pair(data):
    return _check(refcocog_records.parse_refer(*data, 'test'))

  found = mutation.count_outcomes(
    'refs(umd).p', pair, parse_pair, 100_000, allowed=malformed
  )
  assert min(found['1 good'], found['bad record']) > 1000


def test_mmlongbench():
  rows = json.loads(_FIXTURES.joinpath('mmlongbench/samples.json').read_text())

  def make(rng):
    if rng.random() < 0.2:
      data = json.dumps([rng.choice(rows)]).encode()
      return mutation.mutate_bytes(rng, data)
    return mutation.dumps(rng, mutation.mutate_json(rng, [rng.choice(rows)]))

  def parse(data):
    records = mmlongbench_records.parse_doc(data)
    for record in records:
      if not record.fault:
        assert record.question and record.answer and record.task
        assert all(page >= 0 for page in record.pages)
    return _check(records)

  found = mutation.count_outcomes(
    'samples.json',
    make,
    parse,
    100_000,
    allowed=(mmlongbench_records.Malformed,),
  )
  assert min(found['1 good'], found['bad record']) > 1000
  folder = _FIXTURES / 'mmlongbench_docqa'
  lines = folder.joinpath('mmlongdoc_K8.jsonl').read_bytes().splitlines()[:-1]

  def make_line(rng):
    line = rng.choice(lines)
    if rng.random() < 0.2:
      return mutation.mutate_bytes(rng, line)
    return mutation.dumps(rng, mutation.mutate_json(rng, json.loads(line)))

  def parse_line(data):
    records = mmlongbench_records.parse_docqa(data, 'mmlongdoc')
    for record in records:
      if not record.fault:
        assert all(0 <= n < len(record.pictures) for n in record.pages)
    return _check(records)

  found = mutation.count_outcomes(
    'documentQA', make_line, parse_line, 100_000, allowed=()
  )
  assert min(found['1 good'], found['bad record']) > 1000


def test_vidstg():
  folder = _FIXTURES / 'vidstg'
  rows = json.loads(folder.joinpath('test_annotations.json').read_text())
  boxes = folder / 'annotation/validation/0001/moving.json'
  tracks = json.loads(boxes.read_text())
  tracks['trajectories'] = tracks['trajectories'][28:40]

  def make(rng):
    if rng.random() < 0.2:
      data = json.dumps([rng.choice(rows)]).encode()
      return mutation.mutate_bytes(rng, data)
    return mutation.dumps(rng, mutation.mutate_json(rng, [rng.choice(rows)]))

  def parse(data):
    records = vidstg_records.parse(data)
    for record in records:
      if not record.fault:
        shown = vidstg_records.sample(record.segment, 8)
        assert 1 <= len(shown) <= 8 and shown[-1] < record.frame_count
        assert vidstg_records.answers(record.category)
    return _check(records)

  found = mutation.count_outcomes(
    'annotations.json',
    make,
    parse,
    100_000,
    allowed=(vidstg_records.Malformed,),
  )
  assert min(found['1 good'], found['bad record']) > 1000

  def make_tracks(rng):
    changed = mutation.mutate_json(rng, tracks)
    data = json.dumps(changed).encode('utf-8', 'surrogatepass')
    return mutation.mutate_bytes(rng, data) if rng.random() < 0.3 else data

  def parse_tracks(data):
    made = vidstg_records.Tracks(data)
    for frame in made.frames_of(0, (0, 12)):
      for tid, thing in made.boxes(frame):
        if tid == 0:
          x0, y0, x1, y1 = made.corners(thing, frame)
          assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1

  found = mutation.count_outcomes(
    'boxes of VidOR',
    make_tracks,
    parse_tracks,
    100_000,
    allowed=(errors.Rejected,),
  )
  assert min(found['accepted'], found['bad record'], found['bad box']) > 1000


def test_videos(tmp_path):
  pytest.importorskip('av', reason="PyAV is not installed (extra 'video')")
  from corejax.data import frames
  from helpers import videos

  shades = [np.full((32, 32, 3), 20 * n, np.uint8) for n in range(8)]
  goods = [
    videos.write(tmp_path / name, shades).read_bytes()
    for name in ('a.mp4', 'a.mkv', 'a.avi')
  ]
  path = tmp_path / 'mutated'
  pieces = [b'moov', b'trak', b'stsz', b'mdat', b'idx1', b'\x1a\x45\xdf\xa3']

  def make(rng):
    return mutation.mutate_bytes(rng, rng.choice(goods), pieces)

  def parse(data):
    path.write_bytes(data)
    assert set(frames.decode(path, [0, 5])) == {0, 5}

  found = mutation.count_outcomes(
    'videos', make, parse, 20_000, allowed=(errors.Rejected,)
  )
  assert min(found['accepted'], found['undecodable picture']) > 1000


def test_picture_heads():
  noise = pictures.noise(np.random.default_rng(0), 11, 9)
  exif = Image.Exif()
  exif[0x0112] = 6
  seeds = [
    pictures.jpeg(noise, progressive=True, exif=exif),
    pictures.jpeg(noise),
    pictures.png(noise, exif=exif),
    pictures.png(noise),
  ]

  def make(rng):
    return mutation.mutate_bytes(rng, rng.choice(seeds))

  def parse(data):
    found = pictures_lib.header(data)
    assert min(found.size) > 0 and 1 <= found.orientation <= 8

  found = mutation.count_outcomes(
    'picture heads', make, parse, 150_000, allowed=(errors.Rejected,)
  )
  assert min(found['accepted'], found['undecodable picture']) > 1000
