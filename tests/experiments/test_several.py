"""`--data=a,b`: a run of each, and one report over all."""

import csv
import json
import shutil

import numpy as np
import pytest

from corejax import errors
from corejax import heads as heads_lib
from corejax import ranking as ranking_lib
from corejax.data import sources
from corejax.experiments import ablate
from corejax.experiments import cli
from corejax.experiments import compare
from corejax.experiments import config as config_lib
from corejax.experiments import rank
from corejax.experiments import several
from corejax.models.organisms import planted
from helpers import fake_scores
from helpers import finished_runs
from helpers import run_folders

KNOWN = planted.known_heads(0)
A, B = 'scenes_referring', 'scenes_pages'
SMALL = [
  '--checkpoint=planted',
  f'--data={A},{B}',
  '--pages=2',
  '--rank_limit=16',
  '--limit=24',
  '--k=4',
  '--endpoint=4',  # colour's and shape's heads, of one; colour's, of the other
  '--draws=1',
  '--batch_size=8',
]


@pytest.fixture(scope='module')
def cut(tmp_path_factory):
  out = tmp_path_factory.mktemp('several') / 'run'
  assert ablate.cli(['ablate', *SMALL, f'--out={out}']) == 0
  return out


def _table(path):
  with open(path) as f:
    return list(csv.DictReader(f))


def test_every_set_of_heads_is_cut_on_every_data_set(cut):
  cells = {
    (row['kind'], row['heads_of'], row['data']): row
    for row in _table(cut / 'cross.csv')
  }
  colour = set(KNOWN.tasks['colour'])
  shape = set(KNOWN.tasks['shape'])
  heads = {
    key[:2]: set(heads_lib.HeadSet.parse(row['heads']))
    for key, row in cells.items()
  }
  assert heads['all', A] == colour | shape
  assert heads['shared', ''] >= colour
  assert heads['own', A] == heads['all', A] - heads['all', B]
  assert heads['own', A] <= shape
  assert heads['own', A] | heads['shared', ''] == heads['all', A]
  for row in cells.values():
    assert float(row['intact']) == float(row['twin_intact']) == 1
  assert float(cells['all', A, A]['accuracy']) < 0.5
  assert float(cells['shared', '', A]['accuracy']) < 0.8
  assert float(cells['shared', '', B]['accuracy']) < 0.5  # colour and page
  assert float(cells['own', A, A]['accuracy']) < 1  # shapes
  assert float(cells['own', A, B]['accuracy']) == 1  # where none is asked


def test_a_run_of_each_and_one_report(cut):
  for name in (A, B):
    told = json.loads((cut / name / 'run.json').read_text())
    assert told['experiment'] == 'ablate' and told['state'] == 'done'
    assert told['flags']['data'] == name
    assert (cut / name / 'curve.csv').exists()
    assert (cut / 'ranking' / name / 'heads.csv').exists()
  record = json.loads((cut / 'run.json').read_text())
  assert record['experiment'] == 'compare' and record['state'] == 'done'
  assert list(record['identity']['runs']) == [A, B]
  told = '\n'.join(record['summary'])
  assert f'{A}/last and {B}/last: Spearman' in told
  assert (
    f'own of {A}' in told and 'so: shared: cutting is not shown to cost' in told
  )
  assert 'by chance 0.5, p 0.066: not shown to be more' in told  # 4 x 4 / 32
  page = (cut / 'report.html').read_text()
  assert f'<a href="ranking/{A}/report.html">report of rank</a>' in page
  assert f'<a href="{B}/report.html">report of ablate</a>' in page
  assert 'Heads of each data set, cut on each' in page
  assert (cut / 'cross.png').read_bytes()[:4] == b'\x89PNG'


def test_the_same_command_again_measures_what_lacks(cut, capsys):
  before = run_folders.contents(cut)
  (cut / 'cross' / B / 'scores' / 'part-00001.npz').unlink()
  (cut / 'report.html').unlink()
  assert ablate.cli(['ablate', *SMALL, f'--out={cut}']) == 0
  after = run_folders.contents(cut)
  assert after.keys() == before.keys()
  for name in ('cross.csv', 'compare.csv', 'report.html', f'{A}/curve.csv'):
    assert after[name] == before[name]
  assert 'so: shared' in capsys.readouterr().out


@pytest.fixture
def ranked(monkeypatch):
  """Rankings without a model; the configs that asked for them."""
  made = []

  def run(config):
    seed = 1 + len(made) % 3
    made.append(config)
    scores = fake_scores.make(
      planted=((1, 1), (2, seed)), profiles=False, seed=seed
    )
    folder = finished_runs.rank(
      rank.out_folder(config), scores, flags={'data': config.data}
    )
    (folder / 'report.html').write_text('a page')
    ranking = ranking_lib.rank(scores, bootstrap=0, permutations=0)
    return rank.Result(ranking, scores, [], rank.out_folder(config), [])

  monkeypatch.setattr(rank, 'run', run)
  return made


FAST = ['--bootstrap=30', '--permutations=40', '--select=top2']


def test_rank(ranked, tmp_path, capsys):
  out = tmp_path / 'run'
  flags = [f'--data={A}, {B},scenes_haystack', '--depth=0.5', f'--out={out}']
  assert rank.cli(['rank', *FAST, *flags]) == 0
  assert [(c.data, c.depth) for c in ranked] == [
    (A, 'any'),
    (B, 'any'),
    ('scenes_haystack', '0.5'),
  ]
  printed = capsys.readouterr().out
  # 12 (2 / 12)^3 heads by chance; one of 2, 2 and 2 in common.
  assert 'by all: 1-1 (1 head); by chance 0.056, p 0.05' in printed
  assert 'not shown to be more than chance' in printed
  assert f'by {A}/question alone: 2-1 (1 head)' in printed
  assert len(_table(out / 'compare.csv')) == 3 * 3
  assert {r['ranking'] for r in _table(out / 'structure.csv')} == {
    f'{name}/question' for name in (A, B, 'scenes_haystack')
  }
  assert f'href="{B}/report.html"' in (out / 'report.html').read_text()
  # Other data sets beside those that are there: a report of these.
  flags = [f'--data={A},{B}', f'--out={out}']
  assert rank.cli(['rank', *FAST, *flags]) == 0
  assert len(_table(out / 'compare.csv')) == 3


def test_compare_ranks_first(ranked, tmp_path):
  out = tmp_path / 'run'
  flags = [f'--data={A},{B}', '--limit=7', '--checkpoint=planted']
  assert compare.cli(['x', *FAST, *flags, f'--out={out}']) == 0
  assert [(c.data, c.limit, c.checkpoint) for c in ranked] == [
    (A, 7, 'planted'),
    (B, 7, 'planted'),
  ]
  assert len(_table(out / 'compare.csv')) == 15 * 3  # query sets of both
  config = config_lib.parse(compare.Config, ['x', f'--data={A},{B}'])
  assert config.runs == ()


def test_where_files_are(tmp_path):
  wanted = [A, 'mmdocir', 'refcocog']
  given = several.folders('mmdocir=x/a,b,refcocog=y=z', wanted)
  assert given == {A: '', 'mmdocir': 'x/a,b', 'refcocog': 'y=z'}
  for name in ('mmdocir', 'refcocog'):
    (tmp_path / name).mkdir()
  assert several.folders(str(tmp_path), wanted) == {
    A: '',
    **{name: str(tmp_path / name) for name in wanted[1:]},
  }
  # The only one that needs files may have them in the folder itself.
  shutil.rmtree(tmp_path / 'mmdocir')
  assert several.folders(str(tmp_path), [A, 'mmdocir'])['mmdocir'] == str(
    tmp_path
  )
  assert several.folders('', [A, B]) == {A: '', B: ''}


@pytest.mark.parametrize(
  'data_dir, words',
  [
    ('', 'no folder for mmdocir, refcocog; write --data_dir=mmdocir=DIR,refc'),
    ('mmdocir=x', 'no folder for refcocog'),
    ('mmdocir=x,mmdocir=y,refcocog=z', 'give one folder for mmdocir'),
    ('mmdocir=,refcocog=z', 'give one folder for mmdocir'),
    ('vidstg=x', 'vidstg is not in --data'),
    (f'{A}=x', f'{A} needs no files'),
    ('nowhere', 'no folder for mmdocir, refcocog'),
  ],
)
def test_folders_that_cannot_be(data_dir, words):
  with pytest.raises(errors.UserError, match=words):
    several.folders(data_dir, [A, 'mmdocir', 'refcocog'])


@pytest.mark.parametrize(
  'run, argv, words',
  [
    (rank, [f'--data={A},{A}'], f'{A} stands twice'),
    (rank, [f'--data={A},x'], '--data=x: no such data set'),
    (rank, [f'--data={A},'], 'a name is missing'),
    (rank, [f'--data={A},{B}', '--select=fdr0.01'], 'top5% or top30'),
    (rank, [f'--data={A},{B}', '--depth=0.5'], f'{A} has none'),
    (ablate, [f'--data={A},{B}', '--heads=1-1'], 'heads of its own'),
    (ablate, [f'--data={A},{B},{A}'], 'stands twice'),
    (compare, [f'--data={A}'], 'two data sets or more'),
    (compare, [f'--data={A},{B}', 'runs/a'], 'give RUNs or --data'),
    (compare, [f'--data={A},{B},x'], 'no such data set'),
  ],
)
def test_bad_input(run, argv, words, capsys, tmp_path):
  argv = ['x', *argv, f'--out={tmp_path / "run"}']
  assert run.cli(argv) == cli.EX_USER
  told = capsys.readouterr().err
  assert words in told and told.count('\n') == 1


def test_a_folder_of_something_else(tmp_path, capsys):
  finished_runs.rank(tmp_path / 'run', fake_scores.make(profiles=False))
  argv = ['x', f'--data={A},{B}', f'--out={tmp_path / "run"}']
  assert rank.cli(argv) == cli.EX_USER
  assert "holds a run 'rank' of one data set" in capsys.readouterr().err
  (tmp_path / 'run/run.json').write_text('{')
  assert rank.cli(argv) == cli.EX_USER
  assert 'unreadable' in capsys.readouterr().err


def test_which_data_sets_need_files():
  needing = {n for n in sources.catalogue() if sources.needs_files(n)}
  assert needing == {
    n for n in sources.catalogue() if not n.startswith('scenes')
  }
  assert np.all([sources.has_twins(n) != (n in needing) for n in needing])
