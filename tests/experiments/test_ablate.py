"""`ablate` end to end on the planted model, whose true heads are known."""

import csv
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import ablation
from corejax import groups
from corejax import heads as heads_lib
from corejax import likelihood
from corejax.data import sources
from corejax.experiments import ablate
from corejax.experiments import cli
from corejax.experiments import config as config_lib
from corejax.experiments import resources as resources_lib
from corejax.experiments import sweep_steps
from corejax.models.organisms import planted

KNOWN = planted.known_heads(0)
COLOUR, SHAPE = KNOWN.tasks['colour'], KNOWN.tasks['shape']
# Two scenes: 4 questions a task, each with its twin.
SMALL = dict(checkpoint='planted', limit=32, draws=2, batch_size=16)


def _run(tmp_path, **settings):
  return ablate.run(ablate.Config(out=str(tmp_path), **SMALL | settings))


def _rows(out):
  with open(out / 'curve.csv') as f:
    return list(csv.DictReader(f))


def _accuracy(out, group, task, k=None):
  """Of the mean over the draws, where there are any; k if it has several."""
  found = [
    float(row['accuracy'])
    for row in _rows(out)
    if (row['group'], row['task']) == (group, task)
    and row['seed'] in ('', 'all')
    and (k is None or int(row['k']) == k)
  ]
  assert len(found) == 1, (group, task, found)
  return found[0]


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  """The heads that serve colour, cut."""
  before = sweep_steps.force._cache_size()
  out = tmp_path_factory.mktemp('ablate') / 'given'
  result = _run(out, heads=str(COLOUR))
  return result, sweep_steps.force._cache_size() - before


def test_planted_heads_break_exactly_their_task(given):
  result, _ = given
  assert _accuracy(result.out, 'intact', 'retrieval') == 1
  assert _accuracy(result.out, 'given', 'colour') < 0.5
  for task in ('shape', 'colour_twin', 'shape_twin', 'twin'):
    assert _accuracy(result.out, 'given', task) == 1
  controls = [
    x for x, g in enumerate(result.outcomes.groups) if g.name in groups.RANDOM
  ]
  assert len(controls) == 4
  assert (result.outcomes.score_XE[controls] == 1).all()
  for task in ('colour', 'shape', 'retrieval', 'twin'):
    assert _accuracy(result.out, 'layer_matched', task) == 1


@pytest.mark.parametrize('data', ['scenes_referring', 'scenes_pages'])
def test_the_top_breaks_look_ups_and_no_control_anything(tmp_path, data):
  outcomes = _run(
    tmp_path, data=data, rank_limit=64, k='1,2,3,5', endpoint='4'
  ).outcomes
  names = {(g.name, g.k) for g in outcomes.groups}
  assert names == {('top', 0), *itertools.product(groups.NAMES, range(1, 6))}
  for group, score_E in zip(outcomes.groups, outcomes.score_XE):
    if group.name != 'top':
      assert (score_E == 1).all(), group
  for task in ('retrieval', 'colour', outcomes.tasks[-1].removesuffix('_twin')):
    assert _accuracy(tmp_path, 'top', task, 4) < 0.5
  # The pair that reads colours comes first, then the one that reads shapes.
  assert _accuracy(tmp_path, 'top', 'colour', 2) < 0.5
  if data == 'scenes_referring':
    assert _accuracy(tmp_path, 'top', 'shape', 2) == 1
  for k in range(1, 6):
    assert _accuracy(tmp_path, 'top', 'twin', k) == 1


def test_the_flags_offer_what_there_is():
  """They are written again, as flags are told without importing jax."""
  choices = {
    field.name: field.metadata['choices']
    for field in config_lib.flag_fields(ablate.Config)
  }
  assert tuple(choices['mode']) == ablation.MODES
  assert tuple(choices['phase']) == ablation.PHASES
  assert tuple(choices['rows']) == ablation.ROWS


def test_one_compilation_for_all_sets(given):
  result, compiled = given
  assert len(result.outcomes.groups) == 6
  assert compiled == 1


def test_files(given):
  result, _ = given
  names = {path.name for path in result.out.iterdir()}
  assert set(ablate.RESULTS) | {'run.json'} <= names
  assert (result.out / 'curve.png').read_bytes()[:4] == b'\x89PNG'
  record = json.loads((result.out / 'run.json').read_text())
  assert record['state'] == 'done' and record['experiment'] == 'ablate'
  assert record['endpoint']['k'] == len(COLOUR)
  assert any('primary endpoint' in line for line in record['summary'])
  with np.load(result.out / 'outcomes.npz') as f:
    assert f['score'].shape == f['logprob'].shape == (6, 32)
    assert [str(s) for s in f['sets']][:2] == ['', str(COLOUR)]
  examples = (result.out / 'examples.jsonl').read_text().splitlines()
  assert [json.loads(line)['twin'] for line in examples[:4]] == [
    False,
    True,
    False,
    True,
  ]


def test_a_set_is_what_its_ablation_does_alone(given):
  """Against the plain forward with a static Ablation, one example at a time."""
  result, _ = given
  config = ablate.Config(**SMALL)
  resources = resources_lib.load(
    config, sources.load('scenes_referring', twins=True)
  )
  loaded = resources.loaded
  shape = loaded.n_layers, loaded.n_heads
  for index in (0, 1, 9):
    encoded = loaded.processor.encode(resources.source[index])
    inputs = loaded.processor.collate([encoded], 64, 1)
    for x in (0, 1, 4):
      cut = ablation.Ablation(result.outcomes.groups[x].heads)
      out = loaded.forward(
        loaded.model,
        inputs,
        attend=resources.attend,
        control=cut.expand(*shape),
        logit_rows_BP=jnp.array([[encoded.prompt_len - 1]]),
      )
      alone = likelihood.forced(out.logits_BPV, encoded.answer_A[None])
      np.testing.assert_allclose(
        result.outcomes.logprob_XE[x, index], alone.logprob_B[0], atol=2e-4
      )
      assert result.outcomes.score_XE[x, index] == alone.correct_B[0]


def test_a_lost_part_comes_again_to_the_same_bytes(given):
  result, _ = given
  part = result.out / 'scores' / 'part-00001.npz'
  names = ('curve.csv', 'curve.png', 'report.html', 'outcomes.npz')
  before = [(result.out / n).read_bytes() for n in names] + [part.read_bytes()]
  part.unlink()
  _run(result.out, heads=str(COLOUR))
  after = [(result.out / n).read_bytes() for n in names] + [part.read_bytes()]
  assert after == before


def test_other_heads_in_the_same_folder_are_refused(given, capsys):
  result, _ = given
  argv = [f'--{k}={v}' for k, v in SMALL.items()]
  argv += [f'--out={result.out}', f'--heads={SHAPE}']
  assert ablate.cli(['ablate', *argv]) == cli.EX_USER
  assert 'holds another run' in capsys.readouterr().err


def test_without_heads_they_are_ranked_on_other_examples(tmp_path, capsys):
  result = _run(
    tmp_path, tasks='colour', rank_limit=24, k='2,4', endpoint='2', limit=16
  )
  top = next(g for g in result.outcomes.groups if (g.name, g.k) == ('top', 2))
  assert top.heads == COLOUR
  ranked = json.loads((tmp_path / 'ranking' / 'run.json').read_text())
  assert ranked['identity']['split'] == 'validation'
  assert result.endpoint.k == 2
  assert result.endpoint.retrieval.value < -0.5
  assert result.endpoint.twin.value == 0
  printed = capsys.readouterr().out
  assert 'primary endpoint' in printed and 'scenes_referring/validation' in (
    printed
  )


def test_a_ranking_of_the_same_examples_is_said_to_be_one(tmp_path, capsys):
  ranking = tmp_path / 'heads.csv'
  _run(tmp_path / 'a', rank_limit=8, k='2', endpoint='2', limit=16)
  ranking = tmp_path / 'a' / 'ranking'
  record = json.loads((ranking / 'run.json').read_text())
  record['identity']['split'] = 'test'
  (ranking / 'run.json').write_text(json.dumps(record))
  capsys.readouterr()
  _run(tmp_path / 'b', heads=f'@{ranking}', k='2', endpoint='2', limit=16)
  assert 'judged on the examples that chose them' in capsys.readouterr().out


@pytest.mark.parametrize('rows', ['all', 'query'])
@pytest.mark.parametrize(
  'mode',
  ['mean', 'resample', 'uniform', 'knockout_evidence', 'knockout_visual'],
)
def test_every_mode_takes_the_evidence_away(tmp_path, mode, rows):
  result = _run(
    tmp_path, heads=str(COLOUR), mode=mode, rows=rows, draws=0, limit=16
  )
  assert _accuracy(tmp_path, 'intact', 'retrieval') == 1
  assert _accuracy(tmp_path, 'given', 'colour') < 0.75
  assert _accuracy(tmp_path, 'given', 'shape') == 1
  assert result.endpoint is None


def test_generated_answers_are_the_forced_ones(given, tmp_path):
  """One word long, and judged word by word."""
  result, _ = given
  made = _run(
    tmp_path, heads=str(COLOUR), answers='generated', max_tokens=1, draws=1
  )
  forced = result.outcomes
  for x, group in enumerate(made.outcomes.groups):
    same = [
      y for y, other in enumerate(forced.groups) if other.heads == group.heads
    ]
    np.testing.assert_array_equal(
      made.outcomes.score_XE[x], forced.score_XE[same[0]]
    )
  assert np.isnan(made.outcomes.logprob_XE).all()


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    (['--mode=shuffle'], 'knockout_evidence'),
    (['--k=33'], '4 x 8 = 32 heads'),
    (['--k=few'], 'write 10 or 5%'),
    (['--endpoint=0'], 'no head would be cut'),
    (['--heads=4-0'], 'layer 4 is outside 0..3'),
    (['--heads=', '--rank_split=test'], 'is --split too'),
    (['--phase=decode', '--heads=3-1'], 'answers of one token'),
    (['--split=nowhere'], 'nowhere'),
    (['--split=test:3/2'], 'test:1/2'),
    (['--heads=@/nonexistent'], 'nonexistent'),
    (['--answers=generated', '--mode=resample', '--heads=3-1'], 'resample'),
    (['--draws=-1'], '--draws=-1'),
    (['--batch_size=0'], '--batch_size=0'),
  ],
)
def test_bad_input(argv, words, capsys, tmp_path):
  flags = ['--checkpoint=planted', '--limit=16', f'--out={tmp_path / "run"}']
  assert ablate.cli(['ablate', *flags, *argv]) == cli.EX_USER
  told = capsys.readouterr().err
  assert words in told and told.count('\n') == 1


def test_a_ranking_of_another_shape_is_refused(tmp_path, capsys):
  _run(tmp_path / 'a', rank_limit=8, k='2', endpoint='2', limit=16)
  argv = [f'--heads=@{tmp_path}/a/ranking', '--limit=8']
  assert ablate.cli(['ablate', *argv, f'--out={tmp_path}/b']) == cli.EX_USER
  told = capsys.readouterr().err
  assert '4 layers x 8 heads' in told and '8 x 8' in told


def test_dry_run_writes_nothing(tmp_path, capsys):
  _run(tmp_path / 'x', dry_run=True)
  assert not (tmp_path / 'x').exists()
  assert 'ranked on scenes_referring/validation' in capsys.readouterr().out


def test_heads_are_parsed_from_a_selection(tmp_path):
  first = _run(tmp_path / 'a', rank_limit=8, k='2', endpoint='2', limit=16)
  text = f'@{first.out}/ranking:top3'
  result = _run(tmp_path / 'b', heads=text, limit=16, draws=0)
  (cut,) = [g for g in result.outcomes.groups if g.k]
  assert (cut.name, cut.k) == ('given', 3)
  assert isinstance(cut.heads, heads_lib.HeadSet)


def test_mesh_equals_one_device(given, tmp_path):
  result, _ = given
  if len(jax.devices()) < 4:
    pytest.skip('needs four (virtual) devices')
  spread = _run(tmp_path, heads=str(COLOUR), mesh='data:2,model:2')
  np.testing.assert_allclose(
    spread.outcomes.logprob_XE, result.outcomes.logprob_XE, atol=1e-4
  )
  np.testing.assert_array_equal(
    spread.outcomes.score_XE, result.outcomes.score_XE
  )


def test_flags_of_an_ablation_hold_the_shared_ones():
  names = {f for f in config_lib.Shared.__dataclass_fields__}
  assert names < set(ablate.Config.__dataclass_fields__)
