"""The intervals cover what they say, on the hard cases (fixed seeds).

With 2000 simulations the standard error of a coverage of 95% is 0.5 points.
"""

import pathlib

import numpy as np
import pytest

from corejax.stats import accuracy
from corejax.stats import bootstrap
from corejax.stats import simulate

TABLE = pathlib.Path(simulate.__file__).with_name('README.md')


@pytest.mark.parametrize('ratio', [False, True], ids=['mass', 'share'])
@pytest.mark.parametrize('n_clusters', [50, 200])
@pytest.mark.parametrize('shape', simulate.SHAPES[:4], ids=lambda s: s.text)
def test_scores_from_50_clusters_up(shape, n_clusters, ratio):
  coverage = simulate.score_coverage(
    shape, n_clusters, ratio=ratio, n_resamples=600
  )
  # Lognormal masses of sigma 1 lie at the lower end: 93.1 with 4000 runs.
  lowest = 0.92 if 'lognormal' in shape.text else 0.93
  assert lowest <= coverage <= 0.97


@pytest.mark.parametrize('ratio', [False, True], ids=['mass', 'share'])
@pytest.mark.parametrize('n_clusters, lowest', [(50, 0.89), (200, 0.915)])
def test_the_exception_does_not_get_worse(n_clusters, lowest, ratio):
  """The most skewed shape falls short: 90.8 and 93.1 of its masses.

  Three standard errors below; README.md says so and is held to it.
  """
  shape = simulate.SHAPES[-1]
  coverage = simulate.score_coverage(
    shape, n_clusters, ratio=ratio, n_resamples=600
  )
  assert lowest <= coverage <= 0.97
  written = cells(f'{"share" if ratio else "mass"}, {shape.text}')
  written = written[simulate.CLUSTERS.index(n_clusters)]
  assert 100 * coverage == pytest.approx(written, abs=1.5)


@pytest.mark.parametrize('n_clusters', [50, 200])
@pytest.mark.parametrize('p', [0.8, 0.95, 0.98, 0.995])
def test_accuracies_from_50_clusters_up(p, n_clusters):
  """Discrete: at .95 and 50 clusters it is 97.6 whatever is done."""
  coverage = simulate.accuracy_coverage(p, n_clusters, n_simulations=1000)
  assert 0.93 <= coverage <= 0.985


@pytest.mark.parametrize('p', [0.8, 0.98])
def test_differences_from_50_clusters_up(p):
  coverage = simulate.accuracy_coverage(
    p, 50, paired=accuracy.newcombe_interval, n_simulations=1000
  )
  assert 0.93 <= coverage <= 0.97


def test_why_not_the_others():
  """What the defaults were chosen over does fall short."""
  shape = simulate.beta(0.2, 20)
  assert simulate.score_coverage(shape, 50, method=bootstrap.bca) < 0.92
  agresti_min = simulate.accuracy_coverage(
    0.98, 50, paired=accuracy.agresti_min_interval, n_simulations=1000
  )
  assert agresti_min < 0.92


@pytest.mark.parametrize('shape', simulate.SHAPES, ids=lambda s: s.text)
def test_the_true_means_are_true(shape):
  rng = np.random.default_rng(0)
  cluster_E = simulate.cluster_sizes(rng, 4000)
  draws = shape.draw(rng, cluster_E, 20)
  assert draws.mean() == pytest.approx(shape.mean, rel=0.03)


def cells(name):
  """Numbers of one row of the committed table."""
  for line in TABLE.read_text().splitlines():
    if line.startswith(f'| {name} |'):
      return [float(cell) for cell in line.split('|')[3:-1]]
  raise AssertionError(f'{TABLE} has no row {name!r}')


def test_the_committed_table_is_what_is_measured():
  shape = simulate.SHAPES[1]
  for n_clusters, written in zip(
    simulate.CLUSTERS, cells(f'mass, {shape.text}')
  ):
    measured = 100 * simulate.score_coverage(shape, n_clusters)
    assert measured == pytest.approx(written, abs=1.5)
  written = cells('accuracy 0.98')[simulate.CLUSTERS.index(50)]
  measured = 100 * simulate.accuracy_coverage(0.98, 50, n_simulations=1000)
  assert measured == pytest.approx(written, abs=2.0)


def test_the_table_has_all_rows(monkeypatch):
  """Printed by one function, here with next to no simulations."""
  monkeypatch.setattr(simulate, 'CLUSTERS', (5,))
  monkeypatch.setattr(simulate, '_COLUMNS', 2)
  lines = simulate.table(n_simulations=2).splitlines()
  assert len(lines) == 2 + 2 * 2 * len(simulate.SHAPES) + 3 * len(
    simulate.ACCURACIES
  )
  for line in lines[2:]:
    assert cells(line.split(' | ')[0].removeprefix('| '))
