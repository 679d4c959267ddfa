"""The benchmark of sweeps: that it runs, counts and refuses."""

import json

import pytest

from corejax.experiments import bench_sweep
from corejax.experiments import cli

FLAGS = ['--checkpoint=planted', '--batch_size=4', '--limit=8', '--pairs=2']


def test_it_prints_and_writes(tmp_path, capsys):
  out = tmp_path / 'run'
  argv = ['bench_sweep', *FLAGS, '--sets=3', f'--out={out}']
  assert bench_sweep.cli(argv) == 0
  said = capsys.readouterr().out
  assert '4 examples of scenes_referring' in said and '4 sets' in said
  assert '| <= 1.3 ' in said
  lines = (out / 'samples.csv').read_text().splitlines()
  assert len(lines) == 1 + 2
  for line in lines[1:]:
    assert all(float(x) > 0 for x in line.split(',')[1:])
  assert json.loads((out / 'run.json').read_text())['state'] == 'done'


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--sets=0', '--sets=0: give 1 or more'),
    ('--k=33', '--k=33: the model has 32 heads'),
    ('--mode=shuffle', 'knockout_evidence'),
  ],
)
def test_bad_flags(flag, said, tmp_path, capsys):
  out = tmp_path / 'run'
  argv = ['bench_sweep', *FLAGS, flag, f'--out={out}']
  assert bench_sweep.cli(argv) == cli.EX_USER
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1
  assert not out.exists()
