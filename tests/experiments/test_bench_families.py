"""bench_families: the same logits on both sides, the table, refusals."""

import dataclasses

import numpy as np
import pytest

from corejax.experiments import bench_families
from corejax.experiments import bench_family
from corejax.experiments import bench_model
from corejax.experiments import bench_ours
from corejax.experiments import bench_processes
from corejax.experiments import cli
from helpers import torch_only

TINY = bench_model.Spec(
  layers=2,
  heads=4,
  hidden=64,
  mlp=48,
  vocab=64,
  tower_layers=2,
  tower_heads=2,
  tower_hidden=16,
  image_size=28,
  patch_size=14,
)
LENGTH = 90
FLAGS = [
  f'--{name}={value}'
  for name, value in dataclasses.asdict(TINY).items()
  if name != 'family'
]


def test_every_family_is_offered():
  assert bench_families.FAMILIES == tuple(bench_family.FAMILIES)


@pytest.mark.parametrize('family', bench_family.FAMILIES)
def test_both_sides_compute_the_same(family):
  """Weights by name, layouts, positions: all told by hand in bench_family."""
  assert torch_only.torch
  from helpers import bench_hf

  spec = dataclasses.replace(TINY, family=family)
  ours, facts = bench_ours.prepare('ours', spec, LENGTH)
  theirs, _ = bench_hf.prepare('hf_sdpa', spec, LENGTH)
  expected = np.array(theirs())
  assert expected.shape == (8, bench_model.SHOWN) and facts['flops'] > 0
  assert np.abs(ours() - expected).max() < 1e-4 * expected.std()


def test_a_prompt_is_full_of_pictures():
  found = {}
  for family in bench_family.FAMILIES:
    spec = bench_model.Spec(family=family)
    prompt = bench_model.prompt(spec, 2048)
    n_visual = (prompt.tokens_T == spec.image_token).sum()
    found[family] = (int(n_visual), len(prompt.pixels))
  grids = {'internvl_qwen2': (13 * 144, 13), 'internvl_qwen3': (13 * 144, 13)}
  for family in ('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'qwen3_vl_moe'):
    grids[family] = (13 * 144, 13)
  for family in ('llava_next', 'llava_onevision'):
    grids[family] = (576 + 24 * (48 + 1), 3)
  assert found == {'llava': (3 * 576, 3), **grids}


def test_positions_of_three_axes():
  spec = dataclasses.replace(TINY, family='qwen3_vl', image_size=56)
  shown = bench_family.pictures(spec, 9)
  at_3T = bench_family.positions(13, 2, shown)
  assert at_3T.tolist() == [
    [0, 1, 2, 2, 2, 2, 4, 4, 4, 4, 6, 7, 8],
    [0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8],
    [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 8],
  ]


def _samples(cpu, logits):
  return [bench_processes.Sample(c, 2 * c, 3 << 20, logits) for c in cpu]


def test_the_table():
  cpu = np.linspace(10.0, 11.0, 6)
  logits = np.arange(8.0).reshape(2, 4)
  one = bench_families.Measured(
    'llava',
    576,
    {
      'ours': _samples(0.9 * cpu, logits.tolist()),
      'hf_sdpa': _samples(cpu, (logits + 1e-3).tolist()),
    },
  )
  two = dataclasses.replace(
    one, samples={**one.samples, 'ours': _samples(1.1 * cpu, logits.tolist())}
  )
  rows = bench_families.table([one, two])
  assert rows[0] == [
    'llava',
    '576',
    '9.45',
    '10.50',
    '0.900 [0.900, 0.900]',
    'met',
    '3, 3',
    '4.4e-04',
  ]
  assert rows[1][4:6] == ['1.100 [1.100, 1.100]', 'missed']


def test_a_run_prints_and_writes(tmp_path, capsys):
  assert torch_only.torch
  out = tmp_path / 'run'
  argv = [
    'bench_families',
    *FLAGS,
    '--families=internvl_qwen3',
    f'--length={LENGTH}',
    '--pairs=2',
    f'--out={out}',
  ]
  assert bench_families.cli(argv) == 0
  said = capsys.readouterr().out
  assert '| internvl_qwen3 | 26 | ' in said
  lines = (out / 'samples.csv').read_text().splitlines()
  assert len(lines) == 1 + 2 * 2
  for line in lines[1:]:
    cpu, wall, extra = map(float, line.split(',')[3:])
    assert cpu > 0 and wall > 0 and extra > 0
  (row,) = (out / 'families.csv').read_text().splitlines()[1:]
  assert float(row.split(';')[-1]) < 1e-4
  assert '"state": "done"' in (out / 'run.json').read_text()


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--families=llava,bert', '--families=llava,bert: give all, or each of'),
    ('--families=', '--families=: give all'),
    ('--pairs=0', '--pairs=0: give 1 or more'),
    ('--heads=6', '--hidden=1024: must be a multiple of 4 times --heads=6'),
    ('--image_size=42', 'an even number of patches'),
    ('--length=100', '100 tokens has no room for a picture; give 632'),
  ],
)
def test_bad_flags_are_refused(flag, said, capsys, tmp_path):
  argv = ['bench_families', flag, f'--out={tmp_path}/run']
  assert bench_families.cli(argv) == cli.EX_USER
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert said in error
