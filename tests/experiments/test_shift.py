"""`shift`: levels, words and files; end to end on the planted model."""

import csv
import json
import math

import numpy as np
import pytest

from corejax import compare as compare_lib
from corejax import effects
from corejax import errors
from corejax import heads as heads_lib
from corejax.data.scenes import haystack
from corejax.experiments import cli
from corejax.experiments import config as config_lib
from corejax.experiments import shift
from corejax.experiments import shift_levels
from corejax.experiments import shift_report
from corejax.experiments import shift_table
from corejax.models.organisms import planted
from corejax.stats import accuracy
from helpers import run_folders

KNOWN = planted.known_heads(0)
SMALL = [
  '--checkpoint=planted',
  '--axes=resolution,depth',
  '--resolution=1,0.03125',  # one of them is the usual one
  '--depth=1',
  '--pages=2',
  '--rank_limit=16',
  '--limit=32',
  '--draws=1',
  '--batch_size=16',
  '--bootstrap=50',
  '--permutations=50',
]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  out = tmp_path_factory.mktemp('shift') / 'run'
  config = config_lib.parse(shift.Config, ['shift', *SMALL, f'--out={out}'])
  return shift.run(config)


def test_the_planted_heads_and_what_becomes_of_them(ran):
  table = ran.table
  assert set(table.heads) == set(KNOWN.tasks['colour'])
  assert [p.level.name for p in table.points] == [
    'resolution-0.03125',
    'depth-1',
  ]
  blurred, deep = table.points
  for point in (table.usual, deep):
    assert point.lookups.value == point.twins.value == 1
    assert point.reference_ram.value > 0.9
    assert point.own_heads == table.heads
    assert point.reference_cut.value < 0.6 and point.control_cut.value == 1
    assert point.reference.value.value < -0.4
  assert (deep.overlap.value, deep.own) == (1, deep.reference)
  # 7 x 7 pixels of 224: nothing is left that could be looked up.
  assert blurred.lookups.value < 0.6
  assert blurred.reference_ram.value < table.usual.reference_ram.value - 0.2
  change = table.changes[blurred.level.name, shift_table.LOOKUPS]
  assert change.value == blurred.lookups.value - 1
  # The same questions, so the change is paired: its interval is the narrower.
  apart = accuracy.interaction(blurred.lookups, table.usual.lookups)
  assert change.high - change.low < apart.high - apart.low
  assert table.again_overlap.value == 1
  assert table.usual.chance == 1 / 32


def test_files(ran):
  with open(ran.out / 'shift.csv') as f:
    rows = list(csv.DictReader(f))
  assert list(rows[0]) == shift_table.COLUMNS
  assert [(r['axis'], r['value'], r['usual']) for r in rows] == [
    ('', '', '1'),
    ('resolution', '0.03125', '0'),
    ('depth', '1', '0'),
  ]
  assert float(rows[2]['overlap']) == 1 and rows[0]['overlap_q'] == ''
  record = json.loads((ran.out / 'run.json').read_text())
  assert (record['experiment'], record['state']) == ('shift', 'done')
  told = '\n'.join(record['summary'])
  assert (
    'no change is shown in look-ups, twins and what cutting them costs' in told
  )
  assert 'first heads are the same at every level' in told
  assert (ran.out / 'shift.png').read_bytes()[:4] == b'\x89PNG'
  page = (ran.out / 'report.html').read_text()
  assert 'script src' not in page and 'resolution 1, depth any' in page
  assert page.count('data:image/png;base64,') == 1 + 3
  for part in ('rank', 'ram', 'cut'):
    assert (ran.out / 'levels/depth-1' / part / 'run.json').exists()
  assert not (ran.out / 'levels/again/cut').exists()


def test_again_and_with_another_level(ran, capsys):
  before = run_folders.contents(ran.out)
  (ran.out / 'levels/depth-1/cut/scores/part-00000.npz').unlink()
  (ran.out / 'shift.csv').unlink()
  argv = ['shift', *SMALL, f'--out={ran.out}']
  assert shift.cli(argv) == 0
  run_folders.assert_same(ran.out, before)
  # Fewer axes: a report of these; nothing is measured.
  assert shift.cli([*argv, '--axes=depth']) == 0
  with open(ran.out / 'shift.csv') as f:
    assert [r['axis'] for r in csv.DictReader(f)] == ['', 'depth']
  # Other settings are another run.
  assert shift.cli([*argv, '--limit=16']) == cli.EX_USER
  assert 'limit was 32, is 16' in capsys.readouterr().err


# -- parts, without a model ----------------------------------------------------


def _config(*argv):
  return config_lib.parse(shift.Config, ['shift', *argv])


def _names(*argv):
  return [level.name for level in shift_levels.plan(_config(*argv))]


def test_levels_of_each_data_set():
  assert _names()[:5] == ['usual', 'again', 'noise-1', 'noise-2', 'noise-4']
  assert _names('--axes=depth,distractors,length', '--length=2,04,12') == [
    'usual',
    'again',
    *(f'distractors-{n}' for n in (3, 5, 7)),
    *(f'length-{n}' for n in (2, 12)),  # 4 are the usual ones
    *(f'depth-{n}' for n in ('0', '0.5', '1')),
  ]
  assert _names('--data=scenes_referring')[-3:] == [
    f'distractors-{n}' for n in (5, 11, 15)
  ]
  assert _names('--data=scenes_pages', '--axes=distractors,length')[2:] == [
    *(f'distractors-{n}' for n in (0, 1, 3)),
    *(f'length-{n}' for n in (2, 6, 8)),
  ]
  argv = ['--data=scenes_video', '--axes=size,length', '--size=1.25']
  assert _names(*argv)[2:] == [
    'size-1.25',
    'length-4',
    'length-12',
    'length-16',
  ]


def test_what_a_level_shows():
  levels = {
    level.name: level
    for level in shift_levels.plan(_config('--noise=1', '--distractors=5'))
  }
  config = _config()

  def examples(name, **more):
    source = shift_levels.source(config, levels[name], 'test', 8, **more)
    return [source[i] for i in range(8)]

  usual = examples('usual')
  for name in ('noise-1', 'resolution-0.25', 'size-0.5'):
    for a, b in zip(usual, examples(name)):
      assert (a.question, a.answers) == (b.question, b.answers)
      assert a.media != b.media
  assert [e.id for e in examples('again')] == [e.id for e in usual]
  assert examples('again')[0].media != usual[0].media
  assert {len(e.distractors) for e in usual} == {2 * 4 - 1}
  assert {len(e.distractors) for e in examples('distractors-5')} == {6 * 4 - 1}
  assert {len(e.media) for e in examples('length-12')} == {12}
  assert {b.media for e in examples('depth-1') for b in e.evidence} == {3}
  video = _config('--data=scenes_video', '--frames=5', '--axes=length')
  usual, _, few, *_ = shift_levels.plan(video)
  for level, frames in ((usual, 5), (few, 4)):
    (shown,) = {
      len(shift_levels.source(video, level, 'test', 2)[i].media)
      for i in range(2)
    }
    assert shown == frames
  twins = examples('depth-1', twins=True)
  assert sum('twin_of' in e.meta for e in twins) == 4


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--data=refcocog'], 'only scenes can be drawn otherwise'),
    (['--axes=blur'], "scenes_haystack has no axis 'blur'"),
    (['--axes=noise,noise'], 'name each axis once'),
    (['--axes=depth', '--data=scenes_pages'], "no axis 'depth'; it has noise"),
    (['--noise=0.1,x'], "'x' is no number"),
    (['--noise=-1'], "'-1' is no number"),
    (['--noise=1,1.0'], 'a level stands twice'),
    (['--noise=9'], '--noise=9: scenes: noise=9, expected 0 to 4'),
    (['--size=2'], '--size=2: scenes: size=2'),
    (['--resolution=0'], '--resolution=0: scenes: resolution=0'),
    (['--distractors=8'], '--distractors=8: scenes: marks=9, expected 1 to 8'),
    (['--distractors=1.5'], 'is no whole number'),
    (['--length=1'], '--length=1: scenes: pages=1, expected 2'),
    (['--depth=2'], '--depth=2: --depth=2: give 0 (first page)'),
    (['--tasks=colour_twin'], 'name look-ups'),
    (['--split=test', '--rank_split=test'], 'is --split too'),
    (['--select=fdr0.01'], 'top5% or top30'),
    (['--bootstrap=-1'], 'negative'),
  ],
)
def test_bad_input(argv, words, capsys, tmp_path):
  argv = ['shift', *argv, f'--out={tmp_path / "run"}']
  assert shift.cli(argv) == cli.EX_USER
  told = capsys.readouterr().err
  assert words in told and told.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_what_the_model_cannot_take_is_refused_first(tmp_path, capsys):
  argv = ['shift', '--checkpoint=planted', f'--out={tmp_path / "run"}']
  argv += ['--axes=length']
  assert shift.cli([*argv, '--length=3,40']) == cli.EX_USER
  assert '--length=40: the model cannot take' in capsys.readouterr().err
  assert shift.cli([*argv, '--length=3', '--dry_run']) == 0
  assert 'length       3 (60 tokens)' in capsys.readouterr().out
  assert not (tmp_path / 'run').exists()


def _estimate(value, half=0.02, n=100):
  return accuracy.Estimate(value, value - half, value + half, n, 50, 1.0)


def _agreement(value, q):
  return compare_lib.Agreement(
    a='usual',
    b='noise',
    measure='overlap',
    k=3,
    value=value,
    low=value - 0.1,
    high=value + 0.1,
    chance=0.05,
    p=q,
    q=q,
    ceiling=math.nan,
    n_a=9,
    n_b=9,
    clusters_a=9,
    clusters_b=9,
    clusters_shared=0,
  )


HEADS = heads_lib.HeadSet.parse('1-1,2-2,3-3')


def _table(lookups=1.0, ram=0.9, effect=-0.5, overlap=1.0, q=1e-5, own=HEADS):
  """One axis of two levels: as usual, and then with these numbers."""

  def point(level, lookups, ram, effect, overlap, own):
    end = effects.Endpoint(3, _estimate(effect), None, None, 5)
    return shift_table.Point(
      level=level,
      lookups=_estimate(lookups),
      twins=None,
      chance=1 / 64,
      reference_ram=_estimate(ram),
      own_ram=_estimate(ram),
      overlap=overlap,
      spearman=overlap,
      reference=end,
      own=end,
      reference_cut=_estimate(0.4),
      own_cut=_estimate(0.4),
      control_cut=None,
      own_heads=own,
    )

  usual = shift_levels.Level('', math.nan, 'usual', 4)
  first = point(usual, 1.0, 0.9, -0.5, None, HEADS)
  found = [
    point(
      shift_levels.Level('noise', 1.0, '1', 4),
      1.0,
      0.9,
      -0.5,
      _agreement(1.0, 1e-5),
      HEADS,
    ),
    point(
      shift_levels.Level('noise', 2.0, '2', 4),
      lookups,
      ram,
      effect,
      _agreement(overlap, q),
      own,
    ),
  ]
  changes = {}
  for each in found:
    for name, pick in (
      ('lookups', lambda p: p.lookups),
      ('ram', lambda p: p.reference_ram),
      ('effect', lambda p: p.reference.retrieval),
    ):
      changes[each.level.name, name] = accuracy.interaction(
        pick(each), pick(first)
      )
  return shift_table.Table(
    first, found, _agreement(1.0, 1e-5), _agreement(0.97, 1e-5), HEADS, changes
  )


OTHER = heads_lib.HeadSet.parse('1-1,2-2,0-0')


@pytest.mark.parametrize(
  'changed, said, unsaid',
  [
    (
      {},
      [
        'no change is shown in look-ups, RAM of the reference heads and what '
        'cutting them costs; the first heads are the same at every level',
      ],
      ['at 1', 'at 2'],
    ),
    (
      dict(lookups=0.5),
      ['noise: look-ups fall at 2 (-0.500); no change'],
      ['at 1'],
    ),
    (
      dict(ram=0.5),
      ['RAM of the reference heads falls at 2 (-0.400);'],
      ['at 1'],
    ),
    (dict(ram=0.99), ['RAM of the reference heads rises at 2 (+0.090);'], []),
    (dict(effect=-0.1), ['what cutting them costs falls at 2 (+0.400)'], []),
    (dict(effect=-0.9), ['what cutting them costs rises at 2 (-0.400)'], []),
    (
      dict(overlap=0.33, q=0.2, own=OTHER),
      ['no overlap of the first heads beyond chance is shown at 2'],
      ['at 1'],
    ),
    (
      dict(overlap=0.67, own=OTHER),
      ['shared beyond chance at every level'],
      ['at 2'],
    ),
  ],
)
def test_whatever_it_is_is_told(changed, said, unsaid):
  told = shift_table.verdict(_table(**changed), 'noise')
  for words in said:
    assert words in told
  for words in unsaid:
    assert words not in told
  assert f'so: {told}' in shift_table.summary(_table(**changed))


def test_the_usual_scenes_stand_where_they_belong():
  config = _config('--axes=noise,resolution,depth')
  assert shift_report.usual_texts(config) == {
    'noise': '0',
    'resolution': '1',
    'depth': 'any',
  }
  for axis in ('noise', 'length', 'depth'):
    value = shift_levels.usual_value(axis, haystack.HaystackConfig(pages=4))
    assert value == {'noise': 0, 'length': 4, 'depth': None}[axis]
  table = _table()
  line = [t for t, _ in shift_report._line(table, 'noise', {'noise': '0'})]
  assert line == ['0', '1', '2']
  line = [t for t, _ in shift_report._line(table, 'noise', {'noise': 'any'})]
  assert line == ['any', '1', '2']
  picture = shift_report.figure(table, {'noise': '0'}, 'title')
  assert picture[:4] == b'\x89PNG'


def test_no_interval_is_no_finding():
  table = _table(lookups=0.2)
  blind = {
    key: accuracy.Estimate(c.value, math.nan, math.nan, c.n, 1, 1.0)
    for key, c in table.changes.items()
  }
  table = shift_table.Table(**{**vars(table), 'changes': blind})
  assert 'no interval of look-ups' in shift_table.verdict(table, 'noise')
  assert np.isnan(table.changes['noise-2', 'lookups'].low)


def test_a_level_that_cannot_be_drawn_names_its_flag():
  level = shift_levels.Level('noise', 9.0, '9', 4, picture=(('noise', 9.0),))
  with pytest.raises(errors.UserError, match='--noise=9: scenes'):
    level.alter(haystack.HaystackConfig())
