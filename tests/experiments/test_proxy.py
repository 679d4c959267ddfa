"""`proxy` end to end on the planted model, whose true heads are known."""

import csv
import json

import numpy as np
import pytest

from corejax import judge
from corejax import proxies
from corejax.experiments import cli
from corejax.experiments import proxy
from corejax.experiments import proxy_text
from corejax.models.organisms import planted
from helpers import run_folders

KNOWN = planted.known_heads(0)
SMALL = [
  '--checkpoint=planted',
  '--rank_limit=48',
  '--limit=48',
  '--draws=2',
  '--batch_size=16',
  '--select=top4',
  '--bootstrap=50',
  '--permutations=100',
]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  out = tmp_path_factory.mktemp('proxy') / 'run'
  config = proxy.config_lib.parse(
    proxy.Config, ['proxy', *SMALL, f'--out={out}']
  )
  return proxy.run(config)


def test_ram_finds_the_planted_heads_and_cutting_them_breaks_look_ups(ran):
  ram = ran.judged[0]
  assert ram.name == judge.RAM
  assert set(ram.heads) == set(KNOWN.planted)
  assert ram.retrieval.accuracy.value < 0.5
  assert ram.twin.accuracy.value == 1
  assert ram.share == 1


def test_a_proxy_finds_them_without_boxes(ran):
  found = {each.name: each for each in ran.judged}
  assert set(found) == {*judge.NEEDS, judge.RANDOM}
  # By construction the planted heads alone follow the question.
  assert set(found['question_variance'].heads) == set(KNOWN.planted)
  assert found['question_variance'].share == 1
  assert found['question_variance'].overlap.value == 1
  # Others look at pictures more, whatever is asked.
  decoys = {*KNOWN.decoys['saliency'], *KNOWN.decoys['centre']}
  assert not set(KNOWN.planted) & set(found[proxies.BASELINE].heads)
  assert not decoys & set(found['content_free'].heads)


def test_files(ran):
  names = {path.name for path in ran.out.iterdir()}
  assert {*proxy.RESULTS, 'run.json', 'ranking'} <= names
  assert (ran.out / 'proxy.png').read_bytes()[:4] == b'\x89PNG'
  with open(ran.out / 'proxy.csv') as f:
    rows = {row['ranking']: row for row in csv.DictReader(f)}
  assert list(rows) == [each.name for each in ran.judged]
  assert float(rows['ram']['share_of_ram']) == 1
  assert rows['question_variance']['needs'] == 'nothing'
  assert {row['k'] for row in rows.values()} == {'4'}
  record = json.loads((ran.out / 'run.json').read_text())
  assert record['state'] == 'done' and record['experiment'] == 'proxy'
  assert any(line.startswith('so: ') for line in record['summary'])
  page = (ran.out / 'report.html').read_text()
  assert 'variance over questions' in page and '<script src' not in page


def test_scores_are_read_back(ran):
  scores = proxy_text.read_scores(ran.out / 'scores.csv', 4, 8)
  assert list(scores) == list(judge.NEEDS)
  again = proxy_text.read_scores(ran.out / 'ranking' / 'scores.csv', 4, 8)
  for name, score_LN in scores.items():
    np.testing.assert_array_equal(score_LN, again[name])


def test_the_same_command_again_changes_nothing(ran, capsys):
  before = run_folders.contents(ran.out)
  assert proxy.cli(['proxy', *SMALL, f'--out={ran.out}']) == 0
  run_folders.assert_same(ran.out, before)
  printed = capsys.readouterr().out
  assert 'variance over questions' in printed


def test_rankings_of_another_model_are_refused(ran):
  with pytest.raises(proxy.errors.UserError, match='not the rankings'):
    proxy_text.read_scores(ran.out / 'scores.csv', 4, 4)


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--select=fdr0.01'], 'top5%'),
    (['--select=top99'], '99'),
    (['--bootstrap=-1'], '--bootstrap=-1'),
    (['--rank_split=test'], 'is --split too'),
    (['--mode=resample', '--answers=generated'], 'resample'),
  ],
)
def test_bad_input(argv, words, capsys, tmp_path):
  flags = ['--checkpoint=planted', '--limit=16', f'--out={tmp_path / "run"}']
  assert proxy.cli(['proxy', *flags, *argv]) == cli.EX_USER
  told = capsys.readouterr().err
  assert words in told and told.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_dry_run_writes_nothing(tmp_path, capsys):
  flags = ['--checkpoint=planted', '--dry_run', f'--out={tmp_path / "x"}']
  assert proxy.cli(['proxy', *flags]) == 0
  assert not (tmp_path / 'x').exists()
  assert 'scenes_referring/validation' in capsys.readouterr().out
