"""The protocol's program: cases by hand, and a small run end to end."""

import csv
import json
import re

import pytest

from corejax import claims
from corejax.experiments import cli
from corejax.experiments import reproduce
from corejax.experiments import reproduce_cases
from corejax.experiments import reproduce_runs
from corejax.experiments import train_organism

SMALL = [
  '--models=',
  '--also=planted',
  '--rank_limit=32',
  '--limit=32',
  '--draws=2',
  '--k=2',
  '--bootstrap=50',
  '--permutations=100',
]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  out = tmp_path_factory.mktemp('reproduce') / 'run'
  assert reproduce.cli(['reproduce', *SMALL, f'--out={out}']) == 0
  return out


@pytest.mark.slow
def test_a_small_run(ran):
  names = {path.name for path in ran.iterdir()}
  assert {*reproduce.RESULTS, 'run.json'} <= names
  with open(ran / 'cases.csv') as f:
    cases = list(csv.DictReader(f))
  # One model: no claim on scales; five reduced runs; ten rankings.
  number = {case['claim'].split(' ')[0] for case in cases}
  assert number == {'1', '2', '3', '4', '6', '7', '8'}
  assert sum(case['claim'] == '7' for case in cases) == 5
  assert sum(case['claim'].startswith('8') for case in cases) == 10
  wrecked = {c['data']: c for c in cases if c['claim'] == '2'}
  assert set(wrecked) == set(reproduce_runs.DATA)
  with open(ran / 'claims.csv') as f:
    rows = list(csv.DictReader(f))
  # What is shown beside counts nowhere.
  assert {row['verdict'] for row in rows} == {claims.UNTESTED}
  with open(ran / 'grid.csv') as f:
    grid = list(csv.DictReader(f))
  assert {row['mode'] for row in grid} == {
    'zero',
    'mean',
    'resample',
    'uniform',
    'knockout_evidence',
  }
  assert {row['rows'] for row in grid} == {'all', 'query'}
  assert {row['model'] for row in grid} == {'planted'}
  record = json.loads((ran / 'run.json').read_text())
  assert record['state'] == 'done'
  assert '--also=planted' in record['deviations']
  page = (ran / 'report.html').read_text()
  assert 'not the protocol' in page and 'planted (not counted)' in page


@pytest.mark.slow
def test_again_it_only_reports(ran, capsys):
  before = (ran / 'cases.csv').read_bytes()
  assert reproduce.cli(['reproduce', *SMALL, f'--out={ran}']) == 0
  assert (ran / 'cases.csv').read_bytes() == before
  assert 'claim' in capsys.readouterr().out


def test_the_defaults_are_the_protocols():
  config = reproduce.Config()
  assert not config.deviations
  sizes, seeds = zip(*(name.split('-') for name in config.counted))
  assert set(sizes) == {'base', 'small'} and set(seeds) == {'1', '2', '3'}
  assert len(config.counted) == 6
  other = reproduce.Config(limit=10, models='base-7', also='')
  assert other.deviations == ['--models=base-7', '--also=', '--limit=10']


def case(claim, model, verdict, data='scenes_pages'):
  return claims.Case(claim, model, data, '', 0.0, 0.0, 0.0, verdict)


def test_verdicts_are_told_for_every_claim():
  found = reproduce_cases.verdicts(
    [
      *(case('2', f'm{i}', claims.FOR) for i in range(6)),
      case('8 consensus', 'm1', claims.AGAINST),
    ]
  )
  assert list(found)[: len(reproduce_cases.TITLES)] == list(
    reproduce_cases.TITLES
  )
  assert found['2'] == claims.SUPPORTED
  assert found['3'] == claims.UNTESTED
  assert found['8 consensus'] == claims.CONTRADICTED
  assert 'consensus' in reproduce_cases.title('8 consensus')


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--models=huge-1'], 'base-1'),
    (['--models=base-1,base-1'], 'twice'),
    (['--models=', '--also='], 'no model'),
    (['--limit=0'], '--limit=0'),
    (['--draws=-1'], '--draws=-1'),
  ],
)
def test_bad_input(argv, words, capsys, tmp_path):
  out = tmp_path / 'run'
  assert reproduce.cli(['reproduce', f'--out={out}', *argv]) == cli.EX_USER
  told = capsys.readouterr().err
  assert words in told and told.count('\n') == 1
  assert not out.exists()


def trained(folder, state='done', **settings):
  """A folder that says it is a training."""
  folder.mkdir(parents=True)
  config = train_organism.Config(**settings)
  identity = train_organism.identity(config)
  record = {'state': state, 'identity': identity}
  (folder / 'run.json').write_text(json.dumps(record))


def test_trained_models_are_taken_if_they_are_the_protocols(tmp_path):
  config = reproduce.Config(trained=str(tmp_path))
  out = tmp_path / 'unused'
  trained(tmp_path / 'small-2', size='small', seed=2)
  found = reproduce_runs.model_folder(config, out, 'small', 2)
  assert found == tmp_path / 'small-2' / 'model'


@pytest.mark.parametrize(
  'settings, words',
  [
    ({'size': 'small', 'seed': 3}, 'seed=3, not 2'),
    ({'size': 'small', 'seed': 2, 'muon': 0.02}, 'muon=0.02, not 0.01'),
    ({'size': 'small', 'seed': 2, 'state': 'running'}, 'no finished run'),
  ],
)
def test_other_trainings_are_refused(tmp_path, settings, words):
  trained(tmp_path / 'small-2', **settings)
  config = reproduce.Config(trained=str(tmp_path))
  with pytest.raises(reproduce.errors.UserError, match=re.escape(words)):
    reproduce_runs.model_folder(config, tmp_path, 'small', 2)


def test_a_training_that_is_missing_is_named(tmp_path):
  config = reproduce.Config(trained=str(tmp_path))
  with pytest.raises(reproduce.errors.UserError, match='--size=base --seed=1'):
    reproduce_runs.model_folder(config, tmp_path, 'base', 1)
