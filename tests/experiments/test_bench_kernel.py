"""bench_kernel: both ideals, equal outputs of all sides, tables, refusals."""

import dataclasses
import json

import numpy as np
import pytest

from corejax.experiments import bench_attention
from corejax.experiments import bench_kernel
from corejax.experiments import bench_processes
from corejax.experiments import cli
from corejax.kernels import blockwise
from corejax.kernels import xla

SPEC = bench_attention.Spec(70, 4, 2, 8, 1, 20, 5)


@pytest.mark.parametrize('length', [64, 70])
@pytest.mark.parametrize('window', [1, 9, 20, 100])
@pytest.mark.parametrize('sink', [0, 5, 8, 33, 100])
def test_ideals_by_counting(length, window, sink):
  spec = dataclasses.replace(SPEC, length=length, window=window, sink=sink)
  i, j = np.ogrid[:length, :length]
  dense = j <= i
  seen = dense & ((i - j < window) | (j < sink))
  block = 8

  def tiles(pairs):
    pairs = np.pad(pairs, (0, -length % block))
    n = len(pairs) // block
    return pairs.reshape(n, block, n, block).any((1, 3)).sum()

  got = bench_attention.ideal(spec, block)
  elements = 0.25 + 0.75 * seen.sum() / dense.sum()
  assert got.elements == pytest.approx(elements)
  by_tiles = 0.25 + 0.75 * tiles(seen) / tiles(dense)
  assert got.tiles == pytest.approx(by_tiles)


def test_blocks_reach_the_kernel(monkeypatch):
  given, real = [], xla.head_sparse_attention

  def noted(*args, block_sizes):
    given.append(block_sizes)
    return real(*args, block_sizes=block_sizes)

  monkeypatch.setattr(xla, 'head_sparse_attention', noted)
  spec = dataclasses.replace(SPEC, blocks=(16, 8, 2))
  work, _ = bench_attention.prepare('ours_dense', spec)
  work()
  assert given == [blockwise.BlockSizes(16, 8, 2)]


def test_it_prints_and_writes(tmp_path, capsys):
  pytest.importorskip('torch', reason="torch's side needs torch")
  out = tmp_path / 'run'
  flags = ['--lengths=70', '--heads=4/2', '--head_dim=8', '--pairs=2']
  flags += ['--window=20', '--sink=5', '--dense=0.25', f'--out={out}']
  flags += ['--blocks=16,8,2']
  assert bench_kernel.cli(['bench_kernel', *flags]) == 0
  said = capsys.readouterr().out
  assert '25.0% of the heads dense, window 20, sink 5' in said
  for what in (
    'dense / torch dense',
    'tile ideal 1.000',
    'element ideal 0.688',
  ):
    assert what in said
  # Below 4096 tokens nothing is aimed at.
  assert 'met' not in said and 'missed' not in said
  lines = (out / 'samples.csv').read_text().splitlines()
  assert len(lines) == 1 + 3 * 2
  assert all(float(x.split(',')[5]) > 0 for x in lines[1:])
  assert json.loads((out / 'run.json').read_text())['state'] == 'done'


def test_what_is_aimed_at():
  ideal = bench_attention.Ideal(tiles=0.5, elements=0.4)

  def sides(dense, sparse, torch):
    seconds = dict(zip(bench_kernel.SIDES, (dense, sparse, torch)))
    samples = {
      side: [bench_processes.Sample(s, s, 0)] * 6 for side, s in seconds.items()
    }
    spec = dataclasses.replace(SPEC, length=4096)
    return bench_kernel.compare([bench_kernel.Measured(spec, samples, ideal)])

  rows = {row[2]: row[3:] for row in sides(2.0, 1.1, 2.0)}
  assert rows['dense / torch dense'][1] == '<= 1 met'
  assert rows['sparse / torch dense'] == ['0.550 [0.550, 0.550]', '']
  reached = rows['reached of the tile ideal 0.500']
  assert reached == ['0.909 [0.909, 0.909]', '>= 0.9 met']
  rows = {row[2]: row[4] for row in sides(2.0, 1.2, 1.9)}
  assert rows['dense / torch dense'] == '<= 1 missed'
  assert rows['reached of the tile ideal 0.500'] == '>= 0.9 missed'


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--lengths=x', '--lengths=x: give whole numbers'),
    ('--heads=28', '--heads=28: give pairs as 28/4,32/8'),
    ('--heads=28/5', '28 must be a multiple of 5'),
    ('--dense=1.5', '--dense=1.5: give 0 to 1'),
    ('--sides=hf', 'give one or more of ours_dense'),
    ('--window=0', '--window=0: give 1 or more'),
    ('--blocks=128,128', '--blocks=128,128: give three whole numbers'),
    ('--blocks=128,128,0', '--blocks=128,128,0: give three'),
  ],
)
def test_bad_flags(flag, said, tmp_path, capsys):
  out = tmp_path / 'run'
  argv = ['bench_kernel', flag, f'--out={out}']
  assert bench_kernel.cli(argv) == cli.EX_USER
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1
  assert not out.exists()
