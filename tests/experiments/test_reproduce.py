"""The protocol's program: cases by hand, and a small run end to end."""

import csv
import json
import pathlib
import re
import types
from typing import Any

import pytest

from corejax import claims
from corejax.experiments import cli
from corejax.experiments import reproduce
from corejax.experiments import reproduce_cases
from corejax.experiments import reproduce_report
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
  # Last time it may have been other models that were compared.
  compared = ran / 'compare' / 'all' / 'run.json'
  record = json.loads(compared.read_text())
  record['identity']['models'] = 'others'
  compared.write_text(json.dumps(record))
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


def test_the_families_are_the_amendments():
  text = (pathlib.Path(reproduce.__file__).parent / 'PROTOCOL.md').read_text()
  assert '`internvl-small-1` to `qwen3_vl-small-3`' in text
  added = reproduce.ADDED.split(',')
  assert {reproduce_runs.parse(name) for name in added} == {
    (family, 'small', seed)
    for family in ('internvl', 'qwen3_vl')
    for seed in (1, 2, 3)
  }
  for models in (reproduce.ADDED, f'{reproduce.PROTOCOL},{reproduce.ADDED}'):
    assert not reproduce.Config(models=models).deviations
  assert reproduce.Config(models=added[0]).deviations
  keys = {key.removesuffix('_flax') for key in train_organism.MODELS}
  assert {reproduce_runs.parse(name)[0] for name in added} < keys


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


def made(name) -> Any:
  family, size, seed = reproduce_runs.parse(name)
  return types.SimpleNamespace(name=name, family=family, size=size, seed=seed)


def test_every_family_is_judged_apart():
  names = [
    'base-1',
    'small-1',
    'internvl-small-1',
    'qwen3_vl-small-1',
    'qwen3_vl-small-2',
  ]
  models = [made(name) for name in names]
  says = {
    'base-1': claims.FOR,
    'small-1': claims.FOR,
    'internvl-small-1': claims.AGAINST,
    'qwen3_vl-small-1': claims.UNTESTABLE,
    'qwen3_vl-small-2': claims.FOR,
  }
  cases = [
    case(claim, name, verdict, data)
    for name, verdict in says.items()
    for claim in ('2', '3')
    for data in reproduce_runs.DATA
  ]
  scales = list(reproduce_cases._scales(models, cases))
  assert {(c.model, c.verdict) for c in scales} == {
    ('base-1 and small-1', claims.FOR)
  }
  across = list(reproduce_cases._families(models, cases))
  assert {(c.claim, c.model, c.verdict) for c in across} == {
    (f'10 of {claim}', f'small-1 and {name}-small-1', verdict)
    for claim in ('2', '3')
    for name, verdict in (
      ('internvl', claims.AGAINST),
      ('qwen3_vl', claims.UNTESTABLE),
    )
  }
  parts = reproduce_cases.by_family(models, [*cases, *scales, *across])
  assert list(parts) == ['llava', 'internvl', 'qwen3_vl', 'families']
  told = {
    part: reproduce_cases.verdicts(of, part) for part, of in parts.items()
  }
  assert told['llava']['2'] == told['qwen3_vl']['2'] == claims.SUPPORTED
  assert told['internvl']['2'] == claims.CONTRADICTED
  assert told['internvl']['5 of 2'] == claims.UNTESTED
  assert told['families'] == dict.fromkeys(
    reproduce_cases.ACROSS, claims.CONTRADICTED
  )
  # LLaVA's are what they are without the others.
  llava = [*(c for c in cases if c.model in names[:2]), *scales]
  assert reproduce_cases.by_family(models[:2], llava) == {'llava': llava}
  assert parts['llava'] == llava
  rows = list(
    csv.DictReader(reproduce_report.claims_csv(parts, told).splitlines())
  )
  assert rows[-1]['family'] == 'families' and rows[-1]['against'] == '2'
  config = reproduce.Config(models=','.join(names), also='')
  lines = reproduce_report.summary(config, parts, told)
  heads = [line[1:] for line in lines if line.startswith('\n')]
  assert heads == list(parts)


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--models=huge-1'], 'base-1'),
    (['--models=gpt-small-1'], 'internvl-small-1'),
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


def test_a_familys_training_is_not_anothers(tmp_path):
  config = reproduce.Config(trained=str(tmp_path))
  folder = tmp_path / 'internvl-small-2'
  trained(folder, model='internvl_flax', size='small', seed=2)
  assert folder / 'model' == reproduce_runs.model_folder(
    config, tmp_path, 'small', 2, 'internvl'
  )
  folder.rename(tmp_path / 'small-2')
  with pytest.raises(reproduce.errors.UserError, match='other settings'):
    reproduce_runs.model_folder(config, tmp_path, 'small', 2)
  with pytest.raises(
    reproduce.errors.UserError, match='--model=qwen3_vl_flax --size=small'
  ):
    reproduce_runs.model_folder(config, tmp_path, 'small', 2, 'qwen3_vl')


def test_a_training_that_is_missing_is_named(tmp_path):
  config = reproduce.Config(trained=str(tmp_path))
  with pytest.raises(reproduce.errors.UserError, match='--size=base --seed=1'):
    reproduce_runs.model_folder(config, tmp_path, 'base', 1)
