"""The benchmark of GPUs, without one: what it prints of given times."""

import json

import pytest

from corejax import heads
from corejax import plan
from corejax.experiments import bench_attention
from corejax.experiments import bench_gpu
from corejax.experiments import cli
from corejax.kernels import dispatch
from corejax.kernels import xla


def _prepared(config):
  """A card on which sparse meets its aims, dense just not; no cuDNN at 64k."""

  def layer(length):
    times = {'dense': 10.0, 'sparse': 2.0, 'cudnn': 7.0}
    if length == 65536:
      del times['cudnn']
    return bench_gpu.Layer(
      {side: lambda x=x: x for side, x in times.items()}, 0.004
    )

  return 'Card', layer


def test_it_prints_and_writes(tmp_path, capsys):
  out = tmp_path / 'run'
  config = bench_gpu.Config(lengths='16384,65536,1000', rounds=7, out=str(out))
  timed = bench_gpu.run(config, _prepared)
  assert [each.length for each in timed] == [16384, 65536, 1000]
  said = capsys.readouterr().out
  assert 'Card; jax ' in said and '2 of 28 heads dense' in said
  first, second, third = (
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in said.splitlines()
    if line.startswith(('| 16384', '| 65536', '| 1000'))
  )
  assert first == [
    '16384',
    '10000.000',
    '0',
    '2000.000',
    '5.000 [5.000, 5.000]',
    '5.07',
    '0.99 (aim 0.85 met)',
    '7000.000',
    '0.70 (aim 0.75 missed)',
    '3.50 (aim 3.2 met)',
    '4.0e-03',
  ]
  assert second[6:10] == ['0.52 (aim 0.92 missed)', *['not served'] * 3]
  assert third[6] == '5.00' and third[9] == '3.50'  # no aim there
  lines = (out / 'samples.csv').read_text().splitlines()
  assert len(lines) == 1 + 7 * (3 + 2 + 3)
  assert lines[1] == '16384,dense,0,10.000000000'
  assert json.loads((out / 'run.json').read_text())['state'] == 'done'


@pytest.mark.parametrize('wrong', [False, True])
def test_what_is_measured_is_checked(wrong, tmp_path, monkeypatch, capsys):
  """All of it but the kernels themselves."""

  def kernel(q_BTNH, k_BSKH, v_BSKH, mask, control, **kwargs):
    return xla.head_sparse_attention(
      q_BTNH, k_BSKH, v_BSKH, mask, None if wrong else control, **kwargs
    )

  for name, unsupported in (('triton', None), ('cudnn', 'is not here')):
    monkeypatch.setitem(
      dispatch.IMPLEMENTATIONS,
      name,
      dispatch.Implementation(kernel, lambda *_, why=unsupported: why),
    )
  config = bench_gpu.Config(
    lengths='96',
    n_heads=4,
    n_kv=2,
    head_dim=16,
    dense=1,
    window=9,
    sink=3,
    rounds=2,
    fill_s=1e-4,
    out=str(tmp_path / 'run'),
  )
  (timed,) = bench_gpu.run(config)
  assert set(timed.seconds) == {'dense', 'sparse'}
  assert all(x > 0 for side in timed.seconds.values() for x in side)
  assert (timed.error > 0.3) == wrong
  assert wrong or timed.error < 0.02
  assert '(aim' not in capsys.readouterr().out


@pytest.mark.parametrize(
  ('dense', 'length', 'ideal'),
  # rho = .05 and .50, window + sink = 2176: as the definition's own examples.
  [(1, 8192, 2.05), (1, 32768, 5.8), (1, 131072, 12.3), (10, 131072, 1.9)],
)
def test_element_ideal(dense, length, ideal):
  got = bench_gpu.element_ideal(length, 20, dense, 2048, 128)
  assert got == pytest.approx(ideal, abs=0.06)


def test_element_ideal_counts_the_pairs():
  pairs = [min(i + 1, 5 + 3) for i in range(40)]
  share = sum(pairs) / (40 * 41 / 2)
  assert bench_gpu.element_ideal(40, 4, 1, 5, 3) == pytest.approx(
    1 / (0.25 + 0.75 * share)
  )


@pytest.mark.parametrize('length', [40, 1000, 16384])
@pytest.mark.parametrize('window, sink', [(5, 3), (1024, 128), (1, 0)])
def test_all_programs_have_one_ideal(length, window, sink):
  """Three forms of it: here, of `bench_kernel` and of a plan."""
  here = bench_gpu.element_ideal(length, 28, 2, window, sink)
  spec = bench_attention.Spec(length, 28, 4, 8, 2, window, sink)
  ideal = bench_attention.ideal(spec, 128)
  cost = plan.HeadPlan(heads.HeadSet([(0, 0), (0, 14)]), window, sink).cost(
    length, 1, 28
  )
  assert cost.element_ideal == pytest.approx(here, rel=1e-12)
  assert 1 / ideal.elements == pytest.approx(here, rel=1e-12)
  assert cost.tile_ideal == pytest.approx(1 / ideal.tiles, rel=1e-12)


def test_a_timer_divides_by_its_calls():
  calls = []
  seconds = bench_gpu.timer(lambda: calls.append(1), 1e-4)
  n_before = len(calls)
  assert 0 < seconds() < 1e-4
  assert len(calls) > n_before


def test_without_a_gpu_it_says_so(tmp_path, capsys):
  out = tmp_path / 'run'
  assert bench_gpu.cli(['bench_gpu', f'--out={out}']) == cli.EX_USER == 2
  error = capsys.readouterr().err
  assert 'needs an NVIDIA GPU' in error and error.count('\n') == 1
  assert not out.exists()


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--lengths=16k', '--lengths=16k: give numbers'),
    ('--lengths=32', '--lengths=32: give 64 tokens or more'),
    ('--n_heads=30', '--n_heads=30: give a multiple of --n_kv=4'),
    ('--dense=29', '--dense=29: give 0 to --n_heads=28'),
    ('--rounds=0', '--rounds=0: give 1 or more'),
    ('--head_dim=72', 'head dim 72; it serves 64, 80, 96, 128'),
  ],
)
def test_bad_flags(flag, said, tmp_path, capsys):
  argv = ['bench_gpu', flag, f'--out={tmp_path / "run"}']
  assert bench_gpu.cli(argv) == cli.EX_USER
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1
