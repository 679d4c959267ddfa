"""`rank` end to end on the planted model, and once on the default one."""

import csv
import json
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import control
from corejax import errors
from corejax import regions
from corejax.experiments import cli
from corejax.experiments import rank
from corejax.experiments import resources as resources_lib
from corejax.models import checkpoint as checkpoint_lib
from corejax.models import registry
from corejax.models.organisms import embedded
from corejax.models.organisms import planted
from helpers import tree

COLUMNS = (
  'rank layer head ram ci_low ci_high inclusion q_value share lift excess '
  'mass_evidence mass_distractor mass_visual mass_question mass_text mass_sink '
  'score'
).split()
PLANTED = planted.known_heads(0).planted
SMALL = dict(checkpoint='planted', limit=24, bootstrap=200, permutations=200)


def read_csv(path):
  with open(path) as f:
    return list(csv.DictReader(f))


def same_ranking(a, b):
  """The same heads, in the same order but for ties within 1e-6."""
  one, two = read_csv(a / 'heads.csv'), read_csv(b / 'heads.csv')
  by_head = {(r['layer'], r['head']): r for r in two}
  for row, in_place in zip(one, two, strict=True):
    other = by_head[row['layer'], row['head']]
    assert row['selected'] == other['selected']
    for name in ('ram', 'lift', 'q_value'):
      assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-4)
    assert float(row['ram']) == pytest.approx(float(other['ram']), abs=1e-6)
    assert float(row['ram']) == pytest.approx(float(in_place['ram']), abs=1e-6)


@pytest.fixture(scope='module')
def result(tmp_path_factory):
  out = tmp_path_factory.mktemp('rank') / 'run'
  return rank.run(rank.Config(out=str(out), **SMALL))


def test_files_and_columns(result):
  names = {p.name for p in result.out.iterdir()}
  assert names >= {
    'run.json',
    'heads.csv',
    'arrays.npz',
    'examples.jsonl',
    'rejected.jsonl',
    'heatmap.png',
  }
  rows = read_csv(result.out / 'heads.csv')
  assert list(rows[0])[: len(COLUMNS)] == COLUMNS
  n_layers, n_heads = result.scores.n_layers, result.scores.n_heads
  assert len(rows) == n_layers * n_heads
  assert [int(r['rank']) for r in rows] == list(range(1, len(rows) + 1))
  pairs = {(int(r['layer']), int(r['head'])) for r in rows}
  assert len(pairs) == len(rows)
  assert (result.out / 'heatmap.png').read_bytes()[:4] == b'\x89PNG'


def test_arrays(result):
  with np.load(result.out / 'arrays.npz') as f:
    mass = f['mass']
    assert tuple(f['regions']) == regions.REGIONS
    assert tuple(f['query_sets']) == regions.QUERY_SETS
    assert list(f['example_ids']) == list(result.scores.ids)
  shape = (24, result.scores.n_layers, result.scores.n_heads, 3, 9)
  assert mass.shape == shape and mass.dtype == np.float32
  np.testing.assert_allclose(mass.sum(-1), 1, atol=1e-4)


def test_ram_is_the_cluster_mean_of_the_mass_in_arrays(result):
  clusters = [
    json.loads(line)['cluster']
    for line in (result.out / 'examples.jsonl').read_text().splitlines()
  ]
  mass = np.float64(result.scores.mass_ELNQR[:, :, :, 0, regions.EVIDENCE])
  means = [
    mass[[i for i, c in enumerate(clusters) if c == name]].mean(0)
    for name in dict.fromkeys(clusters)
  ]
  ram = np.mean(means, 0)
  for row in read_csv(result.out / 'heads.csv'):
    where = int(row['layer']), int(row['head'])
    assert float(row['ram']) == pytest.approx(ram[where], abs=1e-9)


def test_planted_heads_come_first(result):
  rows = read_csv(result.out / 'heads.csv')[: len(PLANTED)]
  assert {(int(r['layer']), int(r['head'])) for r in rows} == set(PLANTED)


def test_run_json(result):
  record = json.loads((result.out / 'run.json').read_text())
  assert record['state'] == 'done' and record['examples'] == 24
  assert record['flags']['limit'] == 24
  assert record['versions']['jax'] and record['summary']
  for name in ('checkpoint_fingerprint', 'data_fingerprint', 'templates'):
    assert record['identity'][name]


def test_another_norm_reuses_the_store(result, tmp_path):
  parts = sorted((result.out / 'scores').iterdir())
  before = [p.stat().st_mtime_ns for p in parts]
  config = rank.Config(out=str(result.out), norm='lift', **SMALL)
  again = rank.run(config)
  assert [p.stat().st_mtime_ns for p in parts] == before
  rows = read_csv(result.out / 'heads.csv')
  assert float(rows[0]['score']) == pytest.approx(float(rows[0]['lift']))
  assert not np.allclose(
    again.ranking.grid('score'), result.ranking.grid('score')
  )
  rank.run(rank.Config(out=str(result.out), **SMALL))


def test_a_lost_part_is_measured_again_to_the_same_bytes(result):
  csv_before = (result.out / 'heads.csv').read_bytes()
  part = result.out / 'scores' / 'part-00001.npz'
  before = part.read_bytes()
  part.unlink()
  rank.run(rank.Config(out=str(result.out), **SMALL))
  assert part.read_bytes() == before
  assert (result.out / 'heads.csv').read_bytes() == csv_before


def test_other_settings_on_the_same_folder_are_refused(result, capsys):
  flags = ['--checkpoint=planted', '--limit=24', '--seed=5']
  code = rank.cli(['rank', f'--out={result.out}', *flags])
  assert code == cli.EX_USER
  assert 'seed was 0, is 5' in capsys.readouterr().err


def test_calibrate_contrast_filter_on_pages(tmp_path):
  result = rank.run(
    rank.Config(
      out=str(tmp_path),
      data='scenes_pages',
      calibrate=True,
      contrast=True,
      filter=True,
      query='last',
      **SMALL,
    )
  )
  baseline = result.scores.baseline_ELNQR
  assert baseline.shape == result.scores.mass_ELNQR.shape
  assert not np.allclose(baseline, result.scores.mass_ELNQR)
  assert result.ranking.heads[0] in PLANTED


def test_without_profiles_there_is_no_null_and_it_says_so(tmp_path, capsys):
  config = rank.Config(out=str(tmp_path), profiles=False, **SMALL)
  rank.run(config)
  assert 'profiles' in capsys.readouterr().out
  rows = read_csv(tmp_path / 'heads.csv')
  assert all(r['q_value'] == 'nan' for r in rows)


def test_the_default_is_the_trained_model(tmp_path, capsys):
  flags = ['--limit=16', '--query=last', '--bootstrap=0', '--permutations=0']
  assert rank.cli(['rank', f'--out={tmp_path}', *flags]) == 0
  out = capsys.readouterr().out
  assert '8 layers x 8 heads (trained model' in out
  record = json.loads((tmp_path / 'run.json').read_text())
  shipped = checkpoint_lib.fingerprint(embedded.folder('scenes-8x8'))
  assert record['identity']['checkpoint_fingerprint'] == shipped
  rows = read_csv(tmp_path / 'heads.csv')
  chance = float(rows[0]['chance'])
  assert float(rows[0]['ram']) > 4 * chance > float(rows[32]['ram'])


@pytest.mark.parametrize('name', embedded.names())
def test_embedded_models_by_name(name):
  config = rank.Config(checkpoint=name)
  folder, described = resources_lib.checkpoint(config)
  assert (folder / 'model.safetensors').is_file() and described
  assert embedded.folder('nobody') is None


def test_every_family_has_a_default_or_says_that_it_has_none():
  for key in registry.keys():
    config = rank.Config(model=key)
    names = registry.get(key).trained
    if names:
      folder, described = resources_lib.checkpoint(config)
      assert folder == embedded.folder(names[0]) and described
    else:
      with pytest.raises(errors.UserError, match=f'{key}: .*--checkpoint'):
        resources_lib.checkpoint(config)
  assert registry.shipped().keys() == {*embedded.names()} - {'planted'}


def test_a_folder_wins_over_an_embedded_model(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'planted').mkdir()
  found = resources_lib.checkpoint(rank.Config(checkpoint='planted'))
  assert found == ('planted', '')


def test_dry_run_writes_nothing(tmp_path, capsys):
  out = tmp_path / 'x'
  assert rank.cli(['rank', '--dry_run', f'--out={out}', '--limit=8']) == 0
  assert not out.exists()
  assert 'record 0:' in capsys.readouterr().out


@pytest.mark.parametrize('flag', ['--list_models', '--list_data'])
def test_lists(flag, capsys):
  assert rank.cli(['rank', flag]) == 0
  text = capsys.readouterr().out
  assert 'llava_flax' in text or 'scenes_pages' in text
  if flag == '--list_models':
    for name, key in registry.shipped().items():
      assert re.search(rf'^{name} +{key}: trained', text, re.MULTILINE)


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--model=gpt'], 'llava_flax'),
    (['--data=imagenet'], 'scenes_referring'),
    (['--data=mmdocir'], '--data_dir'),
    (['--checkpoint=/nonexistent/folder'], '/nonexistent/folder'),
    (['--select=best', '--limit=8'], 'top5%'),
    (['--select=fdr0.01', '--calibrate'], 'needs the null'),
    (['--select=top999'], 'there are 64 heads'),
    (['--tasks=dance'], 'dance'),
  ],
)
def test_user_errors(argv, words, capsys, tmp_path):
  assert rank.cli(['rank', f'--out={tmp_path}', *argv]) == cli.EX_USER
  err = capsys.readouterr().err
  assert words in err and err.strip().count('\n') == 0


def test_too_many_rejected_fail_the_run_but_keep_it(tmp_path, monkeypatch):
  from corejax.experiments import measure

  original = measure.prepare

  def sometimes(source, processor, index, calibrate=False):
    if index % 4 == 1:
      raise errors.Rejected(errors.Reason.BAD_MEDIA, f'record {index}')
    return original(source, processor, index, calibrate)

  monkeypatch.setattr(measure, 'prepare', sometimes)
  config = rank.Config(out=str(tmp_path), **SMALL)
  # Told as soon as it is certain: after the first of three batches.
  with pytest.raises(errors.UserError, match='2 of 8 .*--max_bad=0.01'):
    rank.run(config)
  lines = (tmp_path / 'rejected.jsonl').read_text().splitlines()
  assert [json.loads(l)['index'] for l in lines] == [1, 5]
  assert len(list((tmp_path / 'scores').iterdir())) == 1
  result = rank.run(rank.Config(out=str(tmp_path), max_bad=0.3, **SMALL))
  assert len(result.scores) == 18 and len(result.rejected) == 6


def test_mesh_of_four_equals_one_device(result, tmp_path):
  env = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    'JAX_PLATFORMS': 'cpu',
  }
  subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.rank',
      '--mesh=data:2,model:2',
      f'--out={tmp_path}',
      *(f'--{k}={v}' for k, v in SMALL.items()),
    ],
    check=True,
    env=env,
    cwd=tree.ROOT,
    capture_output=True,
  )
  with np.load(tmp_path / 'arrays.npz') as f:
    np.testing.assert_allclose(
      f['mass'], result.scores.mass_ELNQR, rtol=0, atol=1e-6
    )
  same_ranking(tmp_path, result.out)


def test_two_processes_equal_one(result, tmp_path):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'experiments.rank',
        '--mesh=data:2,model:2',
        f'--out={tmp_path}',
        *(f'--{k}={v}' for k, v in SMALL.items()),
      ],
      env=os.environ
      | {
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'JAX_PLATFORMS': 'cpu',
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(i),
      },
      cwd=tree.ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]
  for process in processes:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
  with np.load(tmp_path / 'arrays.npz') as f:
    assert list(f['example_ids']) == list(result.scores.ids)
    np.testing.assert_allclose(
      f['mass'], result.scores.mass_ELNQR, rtol=0, atol=1e-6
    )
  same_ranking(tmp_path, result.out)


def test_another_query_reuses_the_masses_and_says_there_is_no_null(
  result, capsys
):
  parts = sorted((result.out / 'scores').iterdir())
  before = [p.stat().st_mtime_ns for p in parts]
  again = rank.run(rank.Config(out=str(result.out), query='last', **SMALL))
  assert [p.stat().st_mtime_ns for p in parts] == before
  assert '--noresume' in capsys.readouterr().out
  mass = result.scores.mass_ELNQR[:, :, :, 1, regions.EVIDENCE]
  np.testing.assert_allclose(again.ranking.grid('ram').max(), 0.5, atol=0.01)
  np.testing.assert_allclose(
    again.ranking.grid('ram'), mass.mean(0), atol=1e-6
  )  # clusters are of one size here
  assert np.isnan(again.ranking.grid('q_value')).all()
  rank.run(rank.Config(out=str(result.out), **SMALL))


def test_parts_without_their_run_json_are_not_taken_for_another_run(
  tmp_path, capsys
):
  out = f'--out={tmp_path}'
  flags = ['--limit=8', '--bootstrap=0', '--permutations=0']
  assert rank.cli(['rank', out, *flags]) == 0
  (tmp_path / 'run.json').unlink()
  assert rank.cli(['rank', out, '--seed=7', *flags]) == cli.EX_USER
  assert 'part of another run' in capsys.readouterr().err
  assert rank.cli(['rank', out, '--seed=7', '--noresume', *flags]) == 0
  record = json.loads((tmp_path / 'run.json').read_text())
  assert (record['state'], record['identity']['seed']) == ('done', 7)


def test_a_url_is_refused_as_out(capsys):
  assert rank.cli(['rank', '--out=gs://b/x', '--limit=8']) == cli.EX_USER
  assert 'mount the bucket' in capsys.readouterr().err


def test_trace(tmp_path):
  rank.run(rank.Config(out=str(tmp_path), trace_steps=1, **SMALL))
  assert any((tmp_path / 'trace').rglob('*.xplane.pb'))


def test_gate_gradients_against_a_finite_difference(tmp_path):
  result = rank.run(
    rank.Config(
      out=str(tmp_path),
      checkpoint='planted',
      gradients=True,
      limit=4,
      batch_size=3,
      bootstrap=0,
      permutations=0,
    )
  )
  resources = resources_lib.load(rank.Config(checkpoint='planted', limit=4))
  intact = control.HeadControl.intact(4, 8)
  for index in (0, 3):
    example = resources.source[index]
    encoded = resources.loaded.processor.encode(example)
    inputs = resources.loaded.processor.collate([encoded], 64, 1)

    @jax.jit
    def logprob(gate_LN, inputs=inputs, encoded=encoded):
      out = resources.loaded.forward(
        resources.loaded.model,
        inputs,
        attend=attention.reference,
        control=intact.with_gate(gate_LN),
        logit_rows_BP=jnp.array([[encoded.prompt_len - 1]]),
      )
      logp_V = jax.nn.log_softmax(out.logits_BPV[0, 0])
      return logp_V[encoded.answer_A[0]]

    ones_LN = jnp.ones((4, 8))
    expected_LN = jax.grad(logprob)(ones_LN)
    np.testing.assert_allclose(
      result.scores.gradient_ELN[index], expected_LN, rtol=1e-3, atol=1e-5
    )
  assert 'gate_gradient' in read_csv(tmp_path / 'heads.csv')[0]
