"""bench_load: the checkpoint that it makes, the run, the refusals."""

import numpy as np
import pytest
import safetensors.numpy

from corejax.experiments import bench_folder
from corejax.experiments import bench_load
from corejax.experiments import bench_processes
from corejax.experiments import cli


def test_a_run_prints_writes_and_removes_the_checkpoint(tmp_path, capsys):
  out, made = tmp_path / 'run', tmp_path / 'made'
  made.mkdir()
  argv = [
    'bench_load',
    '--gib=0.01',
    '--shards=3',
    '--pairs=1',
    f'--folder={made}',
    f'--out={out}',
  ]
  assert bench_load.cli(argv) == 0
  said = capsys.readouterr().out
  for text in (
    'in 3 files onto 4 virtual devices',
    '| load | ',
    '| memmap | ',
    '| CPU seconds: load / memmap | ',
    '| memory: load / arrays | ',
  ):
    assert text in said
  assert len((out / 'samples.csv').read_text().splitlines()) == 3
  assert not list(made.iterdir())


@pytest.mark.parametrize('gib', [0.02, 1.0, 8.0])
def test_the_model_has_the_asked_size_and_divides(gib):
  spec = bench_folder.spec(gib)
  layer = 4 * spec.hidden**2 + 3 * spec.hidden * spec.mlp
  n_bytes = 2 * (spec.layers * layer + 2 * spec.vocab * spec.hidden)
  assert 0.6 * gib < n_bytes / 2**30 < 1.5 * gib
  assert not spec.heads % 4 and not spec.mlp % 4 and not spec.vocab % 4
  assert spec.hidden % (2 * spec.heads) == 0


def test_the_folder_is_sharded_bfloat16(tmp_path):
  total = bench_folder.write(tmp_path, 0.01, 3)
  files = sorted(tmp_path.glob('*.safetensors'))
  assert len(files) == 3
  tensors = [t for f in files for t in safetensors.numpy.load_file(f).values()]
  assert {str(t.dtype) for t in tensors} == {'bfloat16'}
  assert sum(t.nbytes for t in tensors) == total
  assert all(np.isfinite(t.astype(np.float32)).all() for t in tensors)


def test_aims_are_judged():
  def samples(seconds, extra):
    return [bench_processes.Sample(seconds, seconds, extra)] * 6

  told = bench_load.tables(
    {'load': samples(1.5, 1300), 'memmap': samples(1.0, 900)}, 1000
  )
  assert (
    '| wall seconds: load / memmap | 1.500 [1.500, 1.500] | <= 2 met' in told
  )
  assert '| memory: load / arrays | 1.300 | <= 1.2 missed |' in told


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--gib=0', '--gib=0.0: give more than 0'),
    ('--shards=0', '--shards=0: give 1 or more'),
    ('--folder=/nowhere', '--folder=/nowhere: there is no such folder'),
  ],
)
def test_bad_flags_are_refused(flag, said, capsys, tmp_path):
  assert bench_load.cli(['bench_load', flag, f'--out={tmp_path}/run']) == (
    cli.EX_USER
  )
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1
