"""`route` end to end on the planted model, whose true heads are known."""

import csv
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from corejax import heads as heads_lib
from corejax import regions
from corejax import routing
from corejax.experiments import cli
from corejax.experiments import route
from corejax.experiments import route_run
from corejax.experiments import route_table
from corejax.experiments import timed
from corejax.experiments import timed_table
from corejax.models.organisms import planted
from helpers import run_folders

KNOWN = planted.known_heads(0)
SMALL = [
  '--checkpoint=planted',
  '--pages=6',
  '--rank_limit=32',
  '--limit=48',
  '--draws=2',
  '--batch_size=16',
  '--rhos=0.0625',  # 2 of 32 heads, as many as colours are looked up with
  '--probe_rows=1',
  '--repeats=2',
]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  out = tmp_path_factory.mktemp('route') / 'run'
  config = route.config_lib.parse(
    route.Config, ['route', *SMALL, f'--out={out}']
  )
  before = timed.prefill._cache_size()
  result = route.run(config)
  return result, timed.prefill._cache_size() - before


def _rows(result, kind='retrieval'):
  return {row.method: row for row in result.table if row.kind == kind}


def test_the_probe_finds_the_planted_heads_on_each_input(ran):
  rows = _rows(ran[0])
  assert set(rows) == set(route_run.METHODS)
  assert rows['static'].n_dense == len(KNOWN.tasks['colour']) == 2
  for method in ('all_dense', 'static', 'probe', 'oracle', 'oracle_layers'):
    assert rows[method].level.value == 1, method
  assert rows['all_sparse'].level.value < 0.5
  assert rows['random'].level.value < 0.8  # one of the pair is enough
  assert rows['probe'].gap.value == 0
  assert rows['random'].gap.low > 0
  assert 0 < rows['probe'].flops_share < 0.05
  assert rows['static'].flops_share == 0


def test_two_executables_whatever_is_chosen(ran):
  assert ran[1] == 2  # one for all controls, one for the probe


def test_twins_have_no_oracle(ran):
  rows = _rows(ran[0], 'twin')
  assert set(rows) == set(route_run.METHODS) - {'oracle', 'oracle_layers'}
  assert all(row.level.value == 1 for row in rows.values())
  assert all(row.gap is None for row in rows.values())


def test_files_and_columns(ran):
  result, _ = ran
  names = {path.name for path in result.out.iterdir()}
  assert {*route.RESULTS, 'run.json', 'ranking'} <= names
  assert (result.out / 'route.png').read_bytes()[:4] == b'\x89PNG'
  with open(result.out / 'route.csv') as f:
    table = list(csv.DictReader(f))
  assert tuple(table[0]) == route_table.COLUMNS
  assert len(table) == len(result.table)
  for row in table:
    assert float(row['first_token_ms']) > 0
    ends = row['method'] in ('all_dense', 'all_sparse')
    assert (row['added_ms'] == '') == ends
  record = json.loads((result.out / 'run.json').read_text())
  assert record['state'] == 'done' and record['experiment'] == 'route'
  assert record['kernel'] == 'xla'
  told = '\n'.join(record['summary'])
  assert 'the probe answers 1.000' in told
  assert 'of the FLOPs; time to the first token' in told
  page = (result.out / 'report.html').read_text()
  assert 'oracle minus this' in page and '<script src' not in page


def test_the_same_command_again_changes_nothing(ran, capsys):
  result, _ = ran
  before = run_folders.contents(result.out)
  assert route.cli(['route', *SMALL, f'--out={result.out}']) == 0
  run_folders.assert_same(result.out, before)
  assert 'the probe answers' in capsys.readouterr().out


def test_what_is_behind_the_prompt_is_told_to_the_probe():
  def example(n_prompt, n_answer):
    n = n_prompt + n_answer - 1
    return types.SimpleNamespace(
      tokens_T=np.zeros(n, np.int32),
      prompt_len=n_prompt,
      answer_A=np.zeros(n_answer, np.int32),
      region_T=np.full(n, regions.QUESTION, np.int8),
      rows={'answer': np.arange(n_answer) + n_prompt - 1},
      n_pictures=0,
    )

  batch = types.SimpleNamespace()
  made = [example(9, 3), example(7, 1)]
  batch.examples = batch.encoded = batch.annotated = made
  loaded = types.SimpleNamespace(
    processor=types.SimpleNamespace(
      collate=lambda encoded, length, n: jnp.zeros((3, length), jnp.int32)
    )
  )
  resources = types.SimpleNamespace(loaded=loaded, mesh=None)
  region_BS = np.asarray(timed.ready(resources, batch, 3).region_BS)
  for b, (end, stop) in enumerate([(9, 11), (7, 7), (9, 11)]):
    assert (region_BS[b, :end] == regions.QUESTION).all()
    assert (region_BS[b, end:stop] == routing.BEHIND).all()
    assert (region_BS[b, stop:] == regions.OTHER_TEXT).all()


# -- parts, without a model ----------------------------------------------------

SHAPE = 3, 4
PLAN = heads_lib.HeadSet.parse('0-1,2-0,2-3')
MASS_BLN = np.random.default_rng(0).random((5, *SHAPE))


def _chosen(method, seed=None, indices=range(5)):
  way = route_run.Way(method, 0.25, PLAN, seed)
  return route_run.chosen(way, MASS_BLN, list(indices), SHAPE)


def test_every_way_keeps_its_budget():
  per_layer = PLAN.mask(*SHAPE).sum(1)
  for method in ('static', 'probe', 'oracle_layers'):
    assert (_chosen(method).sum(2) == per_layer).all(), method
  drawn = _chosen('random', 0)
  assert (drawn.sum(2) == per_layer).all()
  assert (_chosen('static') == PLAN.mask(*SHAPE)).all()
  oracle = _chosen('oracle')
  assert (oracle.sum((1, 2)) == len(PLAN)).all()
  for dense_LN, mass_LN in zip(oracle, MASS_BLN):
    assert mass_LN[dense_LN].min() > mass_LN[~dense_LN].max()
  for dense_LN, mass_LN in zip(_chosen('oracle_layers'), MASS_BLN):
    for dense_N, mass_N in zip(dense_LN, mass_LN):
      if dense_N.any():
        assert mass_N[dense_N].min() > mass_N[~dense_N].max()


def test_random_heads_follow_from_the_record_alone():
  drawn = _chosen('random', 0)
  np.testing.assert_array_equal(
    _chosen('random', 0, [3, 1, 4, 0, 2]), drawn[[3, 1, 4, 0, 2]]
  )
  assert (_chosen('random', 1) != drawn).any()
  assert (drawn[0] != drawn[1]).any()


def _table(right, first=(2, 1, 1, 1.2, 1, 1)):
  """Rows of dense, sparse, static, probe, oracle, oracle_layers."""
  n = 60
  rng = np.random.default_rng(0)
  everything = heads_lib.HeadSet.from_mask(np.ones(SHAPE, bool))
  ways = [
    route_run.Way('all_dense', 1, everything),
    route_run.Way('all_sparse', 0, heads_lib.HeadSet()),
    *(
      route_run.Way(method, 0.25, PLAN)
      for method in ('static', 'probe', 'oracle', 'oracle_layers')
    ),
  ]
  score_XE = (rng.random((6, n)) < np.array(right)[:, None]) * 1.0
  found = timed_table.Timed(
    score_XE=score_XE,
    first_XR=np.array(first)[:, None] * rng.uniform(0.99, 1.01, (6, 9)),
    kernel_XR=np.full((6, 1), np.nan),
    clusters=[str(e) for e in range(n)],
    tasks=['colour'] * n,
    twin_E=np.zeros(n, bool),
    batch_size=4,
  )
  share = dict.fromkeys((0, 3, 12), 0.01)
  return route_table.rows(ways, found, 12, share)


@pytest.mark.parametrize(
  'right, so, left',
  [
    ((1, 0, 0.3, 1, 1, 1), 'better than the static', 'no gap to the oracle'),
    ((1, 0, 1, 0.3, 1, 1), 'WORSE than the static', 'the oracle is better'),
    ((1, 0, 1, 1, 0.3, 1), 'neither better nor worse', 'the oracle is worse'),
  ],
)
def test_whatever_it_is_is_told(right, so, left):
  text = '\n'.join(route_table.verdict(_table(right), 3))
  assert so in text and left in text
  assert 'the probe takes 1.0% of the FLOPs' in text
  assert '1.2' in text.rsplit(',', 1)[1]


def test_flops_of_the_probe_are_counted():
  geometry = timed.Geometry(2, 4, 2, 8, np.dtype('float32'))
  cost = types.SimpleNamespace(length=10, attended=0.5)

  from flax import nnx

  class Layered(nnx.Module):
    def __init__(self):
      self.layers = nnx.Dict(w=nnx.Param(np.zeros((2, 3, 5))))
      self.embed = nnx.Param(np.zeros((2, 100)))

  share = route_table.probe_flops_share(Layered(), geometry, cost, 3)
  probe = 2 * (2 * 4 * 8) * 3 * 10
  rest = 2 * 30 * 10 + 4 * (2 * 4 * 8) * 0.5 * 55
  assert share == pytest.approx(probe / (rest + probe))


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--rhos=0,0.1'], 'with 0 there is nothing to choose'),
    (['--rhos=0.1,1'], 'with 1 there is nothing to choose'),
    (['--rhos=x'], "'x' is no share"),
    (['--window=0'], '--window=0: give 1'),
    (['--probe_rows=-1'], '--probe_rows=-1'),
    (['--probe_score=best'], '--probe_score=best: not one of mass, peak'),
    (['--pages=40'], 'the model takes 256: show fewer --pages'),
    (['--heads=1-1'], 'no budgets to choose within'),
    (['--rank_split=test'], 'is --split too'),
  ],
)
def test_bad_input(argv, words, capsys, tmp_path):
  flags = ['--checkpoint=planted', '--limit=16', f'--out={tmp_path / "run"}']
  assert route.cli(['route', *flags, *argv]) == cli.EX_USER
  told = capsys.readouterr().err
  assert words in told and told.count('\n') == 1


def test_without_draws_random_is_left_out_and_it_is_said():
  said = [
    route._left_out(types.SimpleNamespace(draws=draws)) for draws in (0, 1)
  ]
  assert said == [['left out random: no draws (--draws=0)'], []]
  ways = route_run.ways([0.25], [PLAN], SHAPE, 0)
  assert {way.method for way in ways} == set(route_run.METHODS) - {'random'}


def test_dry_run_writes_nothing(tmp_path, capsys):
  flags = ['--checkpoint=planted', '--dry_run', f'--out={tmp_path / "x"}']
  assert route.cli(['route', *flags]) == 0
  assert not (tmp_path / 'x').exists()
  assert '222 tokens (12 pages), window 20' in capsys.readouterr().out
