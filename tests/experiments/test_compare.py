"""`compare` on run folders, most of them made of scores of no model."""

import csv
import json
import re

import numpy as np
import pytest

from corejax import compare as compare_lib
from corejax import errors
from corejax import exchange
from corejax import heads as heads_lib
from corejax import ranking as ranking_lib
from corejax.experiments import ablate
from corejax.experiments import cli
from corejax.experiments import compare
from corejax.experiments import compare_runs
from corejax.experiments import config as config_lib
from corejax.experiments import finished
from corejax.experiments import rank
from corejax.experiments import transfer
from helpers import fake_scores
from helpers import finished_runs

FAST = ('--bootstrap=30', '--permutations=40', '--select=top2')
PLANTED = ((1, 1), (2, 2))


def table(path):
  with open(path) as f:
    return list(csv.DictReader(f))


def scores(seed, **options):
  made = fake_scores.make(
    **dict(planted=PLANTED, profiles=False, seed=seed) | options
  )
  # Pictures of another seed are other pictures.
  media = [f'{seed} {m}' for m in made.media]
  return type(made)(**vars(made) | {'media': media})


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs')
  finished_runs.rank(path / 'a', scores(1))
  finished_runs.rank(path / 'b', scores(2), flags={'split': 'validation'})
  finished_runs.rank(path / 'large', scores(3, n_layers=6))
  finished_runs.ablate(path / 'cut')
  finished_runs.ablate(path / 'cut_large', finished_runs.curve(0.5))
  return path


def call(runs, *names, out, flags=()):
  argv = ['compare', *(str(runs / n) for n in names), f'--out={out}', *FAST]
  return compare.cli([*argv, *flags])


def error(capsys):
  text = capsys.readouterr().err
  assert text.startswith('error: ') and text.count('\n') == 1
  return text


def test_two_rankings(runs, tmp_path, capsys):
  assert call(runs, 'a', 'b', out=tmp_path / 'out') == 0
  printed = capsys.readouterr().out
  rows = table(tmp_path / 'out/compare.csv')
  names = [f'{r}/{q}' for r in 'ab' for q in ('question', 'last', 'answer')]
  assert len({(r['a'], r['b']) for r in rows}) == 15
  assert {r['a'] for r in rows} | {r['b'] for r in rows} == set(names)
  assert {r['measure'] for r in rows} == {'spearman', 'overlap', 'rbo'}
  own = next(r for r in rows if (r['a'], r['b']) == ('a/question', 'a/last'))
  other = next(
    r for r in rows if (r['a'], r['b']) == ('a/question', 'b/question')
  )
  assert own['clusters_shared'] == '12' and other['clusters_shared'] == '0'
  assert 'by all: 1-1,2-2 (2 heads)' in printed
  assert '  a/question and b/question: Spearman' in printed
  record = json.loads((tmp_path / 'out/run.json').read_text())
  assert record['state'] == 'done' and record['experiment'] == 'compare'
  assert '\n'.join(record['summary']) in printed
  assert len(table(tmp_path / 'out/structure.csv')) == 6 * (3 + 20)
  for name in ('matrix.png', 'structure.png'):
    assert (tmp_path / 'out' / name).read_bytes()[:4] == b'\x89PNG'
  page = (tmp_path / 'out/report.html').read_text()
  assert page.count('data:image/png;base64,') == 2
  assert 'http' not in page.split('<main>')[1] and 'Are they the same' in page
  assert not (tmp_path / 'out/curves.csv').exists()


def test_the_numbers_are_the_rankings(runs, tmp_path):
  """What a run's small files tell is what ranking its scores gives."""
  result = compare.run(
    compare.Config(
      runs=(str(runs / 'a'), str(runs / 'b')),
      out=str(tmp_path),
      query='last',
      norm='lift',
      select='top2',
      parts='rankings',
      bootstrap=5,
      permutations=5,
    )
  )
  for side, seed in zip(result.comparison.sides, (1, 2)):
    ranked = ranking_lib.rank(
      scores(seed), query='last', norm='lift', bootstrap=0, permutations=0
    )
    np.testing.assert_allclose(side.score_LN, ranked.score_LN, atol=1e-9)
    np.testing.assert_allclose(
      side.mass.value().reshape(3, 4), ranked.ram_LN, atol=1e-9
    )


def test_a_real_rank_run_is_read_as_it_ranked(tmp_path):
  done = rank.run(
    rank.Config(
      checkpoint='planted',
      limit=8,
      bootstrap=0,
      permutations=0,
      norm='lift',
      profiles=False,
      out=str(tmp_path / 'run'),
    )
  )
  folder = finished.open_folder(str(tmp_path / 'run'))
  assert folder.kind == finished.RANK
  found = ranking_lib.rank(
    finished.read_scores(folder), norm='lift', bootstrap=0, permutations=0
  )
  np.testing.assert_allclose(
    found.score_LN, done.ranking.score_LN, rtol=0, atol=1e-9
  )
  assert found.heads == done.ranking.heads
  (loaded,) = compare_runs.load([str(tmp_path / 'run')], 'all', 'mass')
  assert [side.name for side in loaded.sides] == [
    f'run/{q}' for q in ('question', 'last', 'answer')
  ]


def test_shapes_and_curves(runs, tmp_path, capsys):
  names = ('a', 'large', 'cut', 'cut_large')
  assert call(runs, *names, out=tmp_path / 'out') == 0
  printed = capsys.readouterr().out
  assert '(3 x 4: a; 6 x 4: large) are not compared head by head' in printed
  rows = table(tmp_path / 'out/structure.csv')
  assert {(r['ranking'], r['n_layers']) for r in rows} >= {
    ('a/last', '3'),
    ('large/last', '6'),
  }
  curves = table(tmp_path / 'out/curves.csv')
  # A mean over draws stands for its draws.
  assert len(curves) == 2 * len(
    [r for r in finished_runs.curve() if r['seed'] in ('', 'all')]
  )
  row = next(
    r
    for r in curves
    if (r['run'], r['group'], r['k'], r['kind'])
    == ('cut_large', 'top', '2', 'retrieval')
  )
  assert (row['accuracy'], row['task']) == ('0.5', 'colour')
  assert 'cut_large, retrieval, 6.2% of the heads cut' in printed
  assert 'intact 1.00, top 0.50' in printed
  assert (tmp_path / 'out/curves.png').read_bytes()[:4] == b'\x89PNG'


def test_parts_and_an_overwritten_comparison(runs, tmp_path, capsys):
  brief = '--query=last'
  assert call(runs, 'a', 'cut', out=tmp_path, flags=[brief]) == 0
  assert (tmp_path / 'structure.png').exists()
  assert call(runs, 'a', 'cut', out=tmp_path, flags=['--parts=curves']) == 0
  assert not (tmp_path / 'compare.csv').exists()
  assert not (tmp_path / 'structure.png').exists()
  assert (tmp_path / 'curves.csv').exists()
  capsys.readouterr()
  assert call(runs, 'a', 'b', out=tmp_path) == cli.EX_USER
  assert 'holds another run' in error(capsys)
  flags = ['--noresume', brief, '--parts=rankings']
  assert call(runs, 'a', 'b', out=tmp_path, flags=flags) == 0
  assert not (tmp_path / 'structure.csv').exists()


def test_files_of_other_tools(runs, tmp_path, capsys):
  out = tmp_path / 'out'
  flags = ['--export', '--parts=rankings']
  assert call(runs, 'a', 'b', out=out, flags=flags) == 0
  files = {p.name for p in (out / 'exchange').iterdir()}
  assert {'a.question.json', 'b.last.yaml', 'union-3x4.yaml'} <= files
  shared = exchange.read_heads_yaml(out / 'exchange/shared-3x4.yaml')
  assert shared == heads_lib.HeadSet(PLANTED)
  exported = out / 'exchange/a.question.json'
  assert str(ranking_lib.parse_heads(f'@{exported}:top2', 3, 4)) == '1-1,2-2'
  result = compare.run(
    compare.Config(
      runs=(str(runs / 'b'), str(exported)),
      out=str(tmp_path / 'again'),
      bootstrap=20,
      permutations=20,
      parts='rankings',
      query='question',
    )
  )
  # Clusters are of one size here, so that the mean is over examples.
  (ours,) = (
    s for s in compare_runs.load([str(runs / 'a')], 'question', 'mass')[0].sides
  )
  np.testing.assert_allclose(
    result.comparison.sides[-1].score_LN, ours.score_LN, atol=1e-9
  )
  assert 'taken for independent' in capsys.readouterr().out
  row = result.comparison.find('b/question', 'a.question', compare_lib.SPEARMAN)
  assert np.isfinite(row.low)


def test_what_a_reader_must_know(runs, tmp_path, capsys):
  finished_runs.rank(
    tmp_path / 'lift',
    scores(4),
    flags={'norm': 'lift', 'filter': True},
    identity={'checkpoint_fingerprint': 'other'},
  )
  argv = ['x', str(runs / 'a'), str(tmp_path / 'lift'), *FAST]
  argv += ['--query=last', '--parts=rankings']
  assert compare.cli([*argv, f'--out={tmp_path / "out"}']) == 0
  printed = capsys.readouterr().out
  assert 'lift was itself ranked with --norm=lift --filter=True' in printed
  assert 'a, lift: 2 checkpoints' in printed
  assert 'fewer than 50 clusters' in printed


def test_verdicts(runs, tmp_path, capsys):
  """Rankings of nothing but noise agree in nothing."""
  for seed in (5, 6):
    finished_runs.rank(tmp_path / f'n{seed}', scores(seed, planted=()))
  argv = ['x', str(tmp_path / 'n5'), str(tmp_path / 'n6'), '--query=question']
  assert compare.cli([*argv, *FAST, f'--out={tmp_path / "out"}']) == 0
  printed = capsys.readouterr().out
  assert 'no agreement beyond chance is shown' in printed
  assert 'beyond chance in the whole order: 0 of 1 pairs' in printed
  assert 'by all: none' in printed or 'by n5/question alone' in printed


def test_labels(tmp_path):
  def of(*paths):
    return compare_runs.labels([tmp_path / p for p in paths])

  assert of('x/a', 'x/b') == ['a', 'b']
  assert of('x/a', 'y/a') == ['x.a', 'y.a']
  assert of('x/a.json', 'x/b') == ['a', 'b']
  assert of('x/a.json', 'x/a') == ['a.json', 'a']


def spoil(path, name, change):
  content = json.loads((path / name).read_text())
  change(content)
  (path / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda p: (p / 'run.json').unlink(), 'no run.json'),
    (lambda p: (p / 'run.json').write_text('{'), 'unreadable'),
    (lambda p: (p / 'run.json').write_text('[]'), 'unreadable'),
    (
      lambda p: spoil(p, 'run.json', lambda c: c.update(state='running')),
      "not finished .its state is 'running'",
    ),
    (lambda p: (p / 'arrays.npz').unlink(), 'of another kind'),
    (
      lambda p: spoil(p, 'run.json', lambda c: c.update(experiment='proxy')),
      "a run 'proxy'",
    ),
    (lambda p: (p / 'arrays.npz').write_bytes(b'PK'), 'arrays.npz: unreadable'),
    (
      lambda p: np.savez(p / 'arrays.npz', mass=np.ones(3)),
      'arrays.npz: unreadable',
    ),
    (
      lambda p: np.savez(
        p / 'arrays.npz',
        mass=np.ones((1, 1, 1, 1, 1), np.float32),
        example_ids=['e'],
        query_sets=['question'],
        regions=['evidence'],
      ),
      'not the query sets',
    ),
    (lambda p: (p / 'examples.jsonl').unlink(), 'examples.jsonl: unreadable'),
    (lambda p: (p / 'examples.jsonl').write_text(''), 'are not the 0'),
    (lambda p: (p / 'examples.jsonl').write_text('{}\n'), 'unreadable'),
  ],
)
def test_bad_rank_runs(tmp_path, capsys, change, words):
  for name in 'ab':
    finished_runs.rank(tmp_path / name, scores(1, n_clusters=2))
  change(tmp_path / 'b')
  assert call(tmp_path, 'a', 'b', out=tmp_path / 'out') == cli.EX_USER
  assert re.search(words, error(capsys))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda rows: [r.pop('delta') for r in rows], "no column 'delta'"),
    (lambda rows: rows[0].update(accuracy='x'), 'unreadable'),
    (lambda rows: rows[0].update(accuracy='1.5'), 'not 0..1'),
    (lambda rows: rows[0].update(fraction='nan'), 'not 0..1'),
  ],
)
def test_bad_curves(tmp_path, change, words):
  rows = finished_runs.curve()
  change(rows)
  finished_runs.ablate(tmp_path, rows)
  folder = finished.open_folder(str(tmp_path))
  with pytest.raises(errors.UserError, match=words):
    finished.read_curve(folder)


@pytest.mark.parametrize(
  ('names', 'flags', 'words'),
  [
    (('a',), (), "only '"),
    ((), (), 'none is given'),
    (('a', 'a'), (), 'given twice'),
    (('a', 'nowhere'), (), 'no such run folder'),
    (('a', 'x.yaml'), (), 'a list of heads is no ranking'),
    (('a', 'x.json'), (), 'there is no such file'),
    (('a', 'large'), ('--parts=rankings',), 'a 3 x 4, large 6 x 4'),
    (('a', 'cut'), ('--parts=rankings',), '1 of these runs hold rankings'),
    (('cut', 'cut_large'), ('--parts=structure',), 'none of these runs holds'),
    (('a', 'b'), ('--parts=curves',), 'none of these runs is an ablation'),
    (('a', 'b'), ('--parts=curve',), "'curve' is none of rankings"),
    (('a', 'b'), ('--select=bottom5%',), 'top5% or top30'),
    (('a', 'b'), ('--select=top13',), 'there are 12 heads'),
    (('a', 'b'), ('--query=first',), 'all, question, last, answer'),
    (('a', 'b'), ('--bootstrap=-1',), 'negative'),
    (('a', 'large'), ('--transfer',), 'a 3 x 4; large 6 x 4'),
    (('cut', 'cut_large'), ('--transfer',), 'no rank run at all'),
  ],
)
def test_refusals(runs, tmp_path, capsys, names, flags, words):
  done = call(runs, *names, out=tmp_path / 'out', flags=flags)
  assert done == cli.EX_USER
  assert words in error(capsys)


def test_arguments_that_are_no_flag():
  config = config_lib.parse(compare.Config, ['x', 'a', '--seed=3', 'b'])
  assert (config.runs, config.seed) == (('a', 'b'), 3)
  text = config_lib.help_text(compare.Config, 'title')
  assert 'RUN ...' in text and '--runs' not in text


def test_transfer_plan(runs, tmp_path):
  paths = [str(runs / n) for n in ('a', 'b', 'large', 'cut')]
  loaded = compare_runs.load(paths, 'last', 'mass')
  plan = transfer.plan(loaded, 'top2', tmp_path)
  # large has no run of its shape but itself.
  pairs = {(t.heads_from, t.data_of): t.settings for t in plan}
  assert set(pairs) == {
    ('a', 'a'),
    ('a', 'b'),
    ('b', 'a'),
    ('b', 'b'),
    ('large', 'large'),
  }
  assert pairs['a', 'b']['heads'] == f'@{runs / "a"}:top2'
  # Heads are not judged on the examples that chose them.
  assert pairs['a', 'a']['split'] == 'validation'
  assert pairs['b', 'a']['split'] == 'test'
  assert pairs['a', 'b']['split'] == 'validation'
  assert pairs['b', 'b']['split'] == 'test'
  assert pairs['a', 'b']['out'] == str(tmp_path / 'a-on-b')
  assert pairs['a', 'b']['limit'] == 24 and pairs['a', 'b']['resume']
  again = transfer.plan(loaded, 'top2', tmp_path, resume=False)
  assert not any(t.settings['resume'] for t in again)


def test_transfer(runs, tmp_path, capsys, monkeypatch):
  """With an ablation that only writes what ablate writes."""
  made = []

  def run(config):
    made.append(config)
    drop = 0.1 if '/a:' in config.heads else 0.6
    finished_runs.ablate(
      ablate.out_folder(config), finished_runs.curve(drop, given=True)
    )

  monkeypatch.setattr(ablate, 'run', run)
  flags = ['--transfer', '--query=last', '--parts=rankings']
  assert call(runs, 'a', 'b', out=tmp_path, flags=flags) == 0
  assert len(made) == 4 and {c.checkpoint for c in made} == {'planted'}
  rows = table(tmp_path / 'transfer.csv')
  assert [(r['heads_from'], r['data_of'], r['kind']) for r in rows[:2]] == [
    ('a', 'a', 'retrieval'),
    ('a', 'a', 'twin'),
  ]
  assert rows[0]['accuracy'] == '0.1' and rows[0]['control'] == '0.9'
  assert rows[4]['accuracy'] == '0.6' and rows[0]['intact'] == '1.0'
  printed = capsys.readouterr().out
  assert 'heads of a (2) on b (validation), retrieval: 1.00 to 0.10' in printed
  page = (tmp_path / 'report.html').read_text()
  assert 'cut on the data of another' in page
