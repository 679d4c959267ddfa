"""`prefill` end to end on the planted model, whose true heads are known."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest

from corejax import heads as heads_lib
from corejax import inputs as inputs_lib
from corejax import masks
from corejax import plan as plan_lib
from corejax.experiments import cli
from corejax.experiments import prefill
from corejax.experiments import prefill_report
from corejax.experiments import prefill_run
from corejax.experiments import prefill_sets
from corejax.experiments import prefill_table
from corejax.experiments import prefill_words
from corejax.experiments import timed
from corejax.experiments import timed_table
from corejax.models.organisms import planted
from helpers import run_folders

KNOWN = planted.known_heads(0)
SMALL = [
  '--checkpoint=planted',
  '--page_counts=3,6',
  '--pages=4',
  '--rank_limit=32',
  '--limit=48',
  '--draws=2',
  '--batch_size=16',
  '--rhos=0,0.125,1',
  '--repeats=2',
]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  out = tmp_path_factory.mktemp('prefill') / 'run'
  config = prefill.config_lib.parse(
    prefill.Config, ['prefill', *SMALL, f'--out={out}']
  )
  compiled = timed.prefill._cache_size(), timed.attention._cache_size()
  result = prefill.run(config)
  after = timed.prefill._cache_size(), timed.attention._cache_size()
  return result, [b - a for a, b in zip(compiled, after)]


def _table(result):
  with open(result.out / 'prefill.csv') as f:
    return list(csv.DictReader(f))


def _examples(result):
  lines = (result.out / 'examples.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_planted_heads_alone_keep_the_look_ups(ran):
  result, _ = ran
  assert set(KNOWN.tasks['colour']) <= set(
    heads_lib.HeadSet.parse(
      next(r['heads'] for r in _table(result) if r['assignment'] == 'top')
    )
  )
  for row in result.table:
    if row.kind == 'twin':
      assert row.level.value == 1  # the window holds what they need
    elif row.name in ('top', 'all_dense'):
      assert row.level.value == 1
    elif row.name in ('all_sparse', 'bottom'):
      assert row.level.value < 0.5
  for each in result.compared:
    assert each.controls['layer_matched'].low > 0


def test_one_executable_a_length_for_all_sets(ran):
  assert ran[1] == [2, 2]


def test_files_and_columns(ran):
  result, _ = ran
  names = {path.name for path in result.out.iterdir()}
  assert {*prefill.RESULTS, 'run.json', 'ranking'} - {'kernel.csv'} <= names
  for name in ('speed.png', 'accuracy.png'):
    assert (result.out / name).read_bytes()[:4] == b'\x89PNG'
  table = _table(result)
  assert tuple(table[0]) == prefill_table.COLUMNS
  assert {row['length'] for row in table} == {'60', '114'}
  assert {row['kind'] for row in table} == {'retrieval', 'twin'}
  assert {row['n'] for row in table} == {'24'}
  assert {row['seed'] for row in table} == {'', '0', '1', 'all'}
  for row in table:
    assert float(row['first_token_ms']) > 0 and float(row['kernel_ms']) > 0
    assert float(row['first_token_ms']) != float(row['kernel_ms'])
    assert int(row['window']) + int(row['sink']) <= int(row['length']) / 8
    heads = heads_lib.HeadSet((0, n) for n in range(int(row['dense_heads'])))
    if int(row['dense_heads']) <= 8:
      plan = plan_lib.HeadPlan(heads, int(row['window']), int(row['sink']))
      cost = plan.cost(int(row['length']), 4, 8)
      for name in ('attended', 'element_ideal', 'tile_ideal'):
        assert float(row[name]) == pytest.approx(getattr(cost, name), rel=1e-4)
  record = json.loads((result.out / 'run.json').read_text())
  assert record['state'] == 'done' and record['experiment'] == 'prefill'
  assert record['kernel'] == 'xla'
  page = (result.out / 'report.html').read_text()
  assert 'to the first token' in page and '<script src' not in page
  rows = _examples(result)
  assert [row['index'] for row in rows] == list(range(96))


def test_it_says_how_much_of_the_evidence_lies_outside(ran):
  result, _ = ran
  record = json.loads((result.out / 'run.json').read_text())
  told = [line for line in record['summary'] if 'evidence lies outside' in line]
  assert len(told) == 2
  assert all('at most 1/8 of the prompt' in line for line in told)
  rows = _examples(result)
  for row in rows:
    assert (row['outside'] is None) == row['twin']
  for pages, line in zip((3, 6), told):
    flags = [row['outside'] for row in rows if row['pages'] == pages]
    flags = [flag for flag in flags if flag is not None]
    assert f'{100 * np.mean(flags):.1f}% of 24 look-ups' in line
    assert ('LESS than the 90%' in line) == (np.mean(flags) < 0.9)


def test_it_says_what_the_intact_model_answers_at_every_length(ran):
  record = json.loads((ran[0].out / 'run.json').read_text())
  for tokens in (60, 114):
    told = f'{tokens} tokens, all heads dense: look-ups 1.000 [0.7'
    assert any(line.startswith(told) for line in record['summary'])


def test_the_same_command_again_changes_nothing(ran, capsys):
  result, _ = ran
  before = run_folders.contents(result.out)
  assert prefill.cli(['prefill', *SMALL, f'--out={result.out}']) == 0
  run_folders.assert_same(result.out, before)
  assert 'first token' in capsys.readouterr().out


# -- words, without a model ----------------------------------------------------


class _Source:
  name, split, fingerprint = 'fake', 'test', 'x'

  def __len__(self):
    return 0


SCALE = prefill_run.Scale(4, _Source(), 4096, 448, 64, 128)


def _found(right, first, n_scenes=60):
  """Timed of dense, sparse, top, layer-matched x 2; look-ups and twins."""
  rng = np.random.default_rng(0)
  score_XE = (rng.random((5, 2 * n_scenes)) < np.array(right)[:, None]) * 1.0
  return timed_table.Timed(
    score_XE=score_XE,
    first_XR=np.array(first)[:, None] * rng.uniform(0.99, 1.01, (5, 9)),
    kernel_XR=np.array(first)[:, None] * np.ones((5, 3)) / 2,
    clusters=[str(e // 2) for e in range(2 * n_scenes)],
    tasks=['colour', 'colour_twin'] * n_scenes,
    twin_E=np.arange(2 * n_scenes) % 2 == 1,
    batch_size=8,
  )


SETS = [
  prefill_sets.Assigned(
    'all_dense', heads_lib.HeadSet((0, n) for n in range(8)), 1.0
  ),
  prefill_sets.Assigned('all_sparse', heads_lib.HeadSet(), 0.0),
  prefill_sets.Assigned('top', heads_lib.HeadSet.parse('0-1'), 0.125),
  prefill_sets.Assigned(
    'layer_matched', heads_lib.HeadSet.parse('0-2'), 0.1, 0
  ),
  prefill_sets.Assigned(
    'layer_matched', heads_lib.HeadSet.parse('0-3'), 0.1, 1
  ),
]


def _told(right, first):
  found = _found(right, first)
  table = prefill_table.rows(SCALE, SETS, found, (1, 8))
  (compared,) = prefill_table.compare(SCALE, SETS, found, table)
  return '\n'.join(prefill_words.verdict(compared)), table


def test_a_benefit_is_told_with_its_interval():
  text, table = _told([1, 0.1, 1, 0.1, 0.2], [4, 1, 2, 2, 2])
  assert 'no loss is shown' in text
  assert 'so these heads matter more than others of their layers' in text
  assert 'x as fast as all dense: faster' in text
  (row,) = [r for r in table if r.name == 'top' and r.kind == 'retrieval']
  assert row.first_up.value == pytest.approx(2, rel=0.03)
  assert row.first_up.low < row.first_up.value < row.first_up.high
  assert row.first_s == pytest.approx(2, rel=0.02)
  assert row.kernel_s == pytest.approx(1)  # never one for the other


def test_no_benefit_is_told_too():
  text, _ = _told([1, 0.1, 0.5, 0.5, 0.5], [2, 2, 2, 2, 2])
  assert 'dense attention of these heads alone does not keep' in text
  assert 'not shown to matter more than others of their layers' in text
  assert 'no faster, as far as these rounds tell' in text
  text, _ = _told([1, 0.1, 0.1, 0.9, 0.9], [2, 2, 4, 2, 2])
  assert 'OTHERS of their layers matter more' in text
  assert 'SLOWER' in text


def test_what_there_is_none_of_stays_empty_and_is_said():
  found = _found([1, 0.1, 1, 0.1, 0.2], [4, 1, 2, 2, 2])
  found = dataclasses.replace(
    found,
    first_XR=found.first_XR[:, :3],  # too few rounds for an interval
    kernel_XR=timed_table.rounds([np.zeros((5, 0))] * 2),  # all rejected
    twin_E=np.zeros(len(found.twin_E), bool),
  )
  table = prefill_table.rows(SCALE, SETS, found, (1, 8))
  compared = prefill_table.compare(SCALE, SETS, found, table)
  told = '\n'.join(prefill_words.summary(table, [SCALE], compared))
  assert 'nan' not in told and told.count('not timed') == 4
  assert '; no twins asked' in told and 'twins,' not in told
  assert 'nan' not in str(prefill_report._table(table, SCALE))
  for row in csv.DictReader(prefill_table.to_csv(table, 8).splitlines()):
    assert 'nan' not in row.values()
    assert row['kernel_ms'] == '' == row['first_token_speedup_ci_low']
    assert float(row['first_token_speedup']) > 0
  line = prefill_words.not_timed(SCALE)
  assert 'were rejected' in line and '\n' not in line
  kept = timed_table.rounds([np.zeros((5, 0)), np.ones((5, 2))])
  np.testing.assert_array_equal(kept, np.ones((5, 2)))


def test_nothing_is_in_doubt_about_what_is_held_against_itself():
  _, table = _told([0.7, 0.1, 0.5, 0.1, 0.3], [4, 1, 2, 2, 2])
  for row in table:
    same = row.name == 'all_dense'
    assert (row.change.low == row.change.value == row.change.high) == same


@pytest.mark.parametrize('kept, lines', [([0, 1, 3, 4], 2), ([0], 0)])
def test_speed_is_drawn_without_the_top_too(kept, lines, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    prefill_report.figures, 'png', lambda picture, _: drawn.append(picture)
  )
  found = _found([1, 0.1, 1, 0.1, 0.2], [4, 1, 2, 2, 2])
  found = dataclasses.replace(
    found,
    score_XE=found.score_XE[kept],
    first_XR=found.first_XR[kept],
    kernel_XR=found.kernel_XR[kept],
  )
  sets = [SETS[x] for x in kept]
  table = prefill_table.rows(SCALE, sets, found, (1, 8))
  prefill_report.speed(table, [SCALE], 'title')  # a warning is an error
  assert len(drawn[0].axes[1].containers) == lines


def test_a_longer_answer_is_another_executable(monkeypatch):
  """So it is called once before it is timed, at the same length too."""
  calls = []

  def called(*args, **kwargs):
    calls.append(args)
    return np.zeros((2, 2), np.float32)

  def ready(resources, batch, size):
    tokens_BT = np.zeros((size, 24), np.int32)
    answer_BA = np.zeros((size, batch.n_rows), np.int32)
    inputs = inputs_lib.Inputs(
      tokens_BT, tokens_BT, masks.AttnMask(), {}, tokens_BT
    )
    return timed.Ready(inputs, answer_BA, answer_BA, tokens_BT, size)

  geometry = timed.Geometry(1, 8, 8, 4, np.dtype('float32'))
  monkeypatch.setattr(timed.Geometry, 'of', lambda resources: geometry)
  for name, fake in (
    ('ready', ready),
    ('prefill', called),
    ('attention', called),
  ):
    monkeypatch.setattr(timed, name, fake)
  loaded = types.SimpleNamespace(
    n_layers=1, n_heads=8, model=None, forward=None
  )
  resources = types.SimpleNamespace(
    loaded=loaded, mesh=None, attend=None, precision='default'
  )
  runner = prefill_run.Runner(resources, [SCALE], SETS, 2, 1)
  made = []
  for turn, n_rows in enumerate((16, 16, 32, 16)):
    batch = types.SimpleNamespace(examples=[0, 0], n_rows=n_rows)
    runner.start(prefill_run.Read(0, 0, turn, SCALE, batch))
    made.append(len(calls))
    calls.clear()
  # Five sets and once all dense before them; the same of attention alone,
  # which is timed at the first batch only.
  assert made == [2 * (1 + 5), 5, 2 + 5, 5]


def test_draws_count_one_by_one_and_together():
  _, table = _told([1, 0.1, 1, 0.1, 0.3], [4, 1, 2, 2, 2])
  rows = [r for r in table if r.name == 'layer_matched']
  rows = {r.seed: r for r in rows if r.kind == 'retrieval'}
  assert set(rows) == {'0', '1', 'all'}
  mean = (rows['0'].level.value + rows['1'].level.value) / 2
  assert rows['all'].level.value == pytest.approx(mean)
  assert not rows['all'].heads and rows['0'].heads == '0-2'


def test_turns_are_interleaved():
  order, calls = [], []
  for x in range(3):
    calls.append(lambda x=x: order.append(x) or np.zeros(1))
  _, seconds = timed.take_turns(calls, 0, 24)
  assert seconds.shape == (3, 24) and (seconds >= 0).all()
  rounds = [tuple(order[3 * r : 3 * r + 3]) for r in range(24)]
  assert all(sorted(each) == [0, 1, 2] for each in rounds)
  assert len(set(rounds)) > 3
  assert {each[0] for each in rounds} == {0, 1, 2}
  first = order.copy()
  order.clear()
  timed.take_turns(calls, 0, 24)
  assert order == first


# -- attention alone -----------------------------------------------------------


def test_kernel_only_times_and_skips(tmp_path, capsys):
  out = tmp_path / 'kernel'
  argv = ['--kernel_only', '--lengths=64,160,1048576', '--geometries=4/2']
  argv += ['--head_dim=16', '--repeats=2', '--rhos=0,0.25', f'--out={out}']
  before = timed.attention._cache_size()
  assert prefill.cli(['prefill', *argv]) == 0
  # A length each, the first one's probe being of the same shape.
  assert timed.attention._cache_size() - before == 2
  printed = capsys.readouterr().out
  assert 'skipped  4/2 heads at 1048576 tokens: about' in printed
  assert 'over --max_seconds=60' in printed
  with open(out / 'kernel.csv') as f:
    rows = list(csv.DictReader(f))
  keys = [(row['length'], row['dense_heads']) for row in rows]
  assert keys == [(n, k) for n in ('64', '160') for k in '014']
  assert all(row['first_token_ms'] == '' for row in rows)
  # Float32 on an accelerator is not by the kernel for it: so it is told.
  assert all(row['implementation'] == 'xla' for row in rows)
  assert 'by xla' in printed
  assert 'heads of 16, by xla' in (out / 'report.html').read_text()
  for row in rows:
    share = float(row['kernel_speedup']) / float(row['tile_ideal'])
    assert float(row['of_tile_ideal']) == pytest.approx(share, rel=1e-3)
  assert (out / 'speed.png').read_bytes()[:4] == b'\x89PNG'
  assert 'Left out: 4/2 heads' in (out / 'report.html').read_text()


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--assignments=best'], "'best' is unknown"),
    (['--rhos=2'], 'no share'),
    (['--window=0'], '--window=0: give 1'),
    (['--sink=-2'], '--sink=-2'),
    (['--page_counts=3,x'], '--page_counts=3,x'),
    (['--page_counts=40'], 'the model takes 256: show fewer --page_counts'),
    (['--depth=2'], '--depth=2: give 0'),
    (['--heads=9-0'], 'layer 9 is outside 0..3'),
    (['--rank_split=test'], 'is --split too'),
    (['--repeats=0'], '--repeats=0'),
    (['--kernel_only', '--geometries=7/2'], "'7/2' is not query heads"),
    (['--kernel_only', '--mesh=data:2'], '--kernel_only times one device'),
    (
      ['--kernel_only', '--lengths=65536', '--max_seconds=0.5'],
      'all left out',
    ),
  ],
)
def test_bad_input(argv, words, capsys, tmp_path):
  flags = ['--checkpoint=planted', '--limit=16', f'--out={tmp_path / "run"}']
  assert prefill.cli(['prefill', *flags, *argv]) == cli.EX_USER
  told = capsys.readouterr().err
  assert words in told and told.count('\n') == 1


def test_dry_run_writes_nothing(tmp_path, capsys):
  flags = ['--checkpoint=planted', '--dry_run', f'--out={tmp_path / "x"}']
  assert prefill.cli(['prefill', *flags]) == 0
  assert not (tmp_path / 'x').exists()
  assert '78 tokens (4 pages, window 7, sink 0)' in capsys.readouterr().out
