"""What a notebook shows of our objects: short reprs, a table, a plot."""

import jax
import jax.numpy as jnp
from matplotlib import figure as mpl_figure
from matplotlib import pyplot
import numpy as np
import pytest

from corejax import control
from corejax import describe
from corejax import inputs
from corejax import layout
from corejax import masks
from corejax import ram
from corejax import ranking as ranking_lib
from corejax.data import example as example_lib
from helpers import fake_scores


@pytest.fixture(scope='module')
def scores():
  return fake_scores.make(n_layers=3, n_heads=8, planted=((2, 1),))


@pytest.fixture(scope='module')
def ranking(scores):
  return ranking_lib.rank(scores, bootstrap=20, permutations=20)


def test_scores(scores):
  assert repr(scores) == (
    'Scores(48 examples in 12 clusters, 3 layers x 8 heads; tasks colour; '
    'kept: profiles of question)'
  )


def test_ranking(ranking):
  text = repr(ranking)
  assert text.startswith('HeadRanking(3 layers x 8 heads; best first: 2-1, ')
  assert len(text) < 120


def test_example_shows_no_picture_bytes():
  shown = example_lib.Example(
    id='scenes/test/7',
    source='scenes',
    split='test',
    task='colour',
    media=(b'\x89PNG' * 5000,),
    question='What colour is the star, and why? ' * 9,
    answers=('red',),
    cluster='c',
    evidence=(example_lib.Box(0, 0, 0, 0.5, 0.5),),
  )
  text = repr(shown)
  assert text.startswith("Example('scenes/test/7', task 'colour', 1 picture, ")
  assert "-> 'red', evidence boxes 1, distractors 0)" in text
  assert len(text) < 200


def test_arrays_are_told_by_type_and_shape():
  packed = inputs.Inputs(
    tokens_BT=jnp.zeros((2, 7), jnp.int32),
    positions_BT=jnp.zeros((2, 7), jnp.int32),
    mask=masks.AttnMask(),
    vision={'pixel_values': np.zeros((2, 3, 4, 4), np.float32)},
    feature_BT=jnp.zeros((2, 7), jnp.int32),
  )
  assert repr(packed) == (
    'Inputs(tokens_BT=int32[2, 7], positions_BT=int32[2, 7], '
    'mask=AttnMask(causal=True), vision={pixel_values: float32[2, 3, 4, 4]}, '
    'feature_BT=int32[2, 7])'
  )


def test_nested_ones_are_whole():
  text = repr(control.HeadControl.intact(2, 3))
  assert text == (
    'HeadControl(attend=AttendControl(window_BN=int32[2, 1, 3], '
    'sink_BN=int32[2, 1, 3], score_scale_BN=float32[2, 1, 3]), '
    'output=OutputControl(gate_BN=float32[2, 1, 3]))'
  )


def test_inside_of_a_transformation():
  seen = []

  @jax.jit
  def look(held):
    seen.append(repr(held))
    return held.output.gate_BN.sum()

  look(control.HeadControl.intact(2, 3))
  assert 'gate_BN=float32[2, 1, 3]' in seen[0]
  # jax puts its own things into our trees: they must be printable too.
  spec = jax.sharding.PartitionSpec('x')
  assert repr(control.OutputControl(spec)) == f'OutputControl(gate_BN={spec!r})'


def test_a_computed_result_is_short(scores):
  text = repr(ram.measure(scores))
  assert 'ram_LN=float64[3, 8]' in text and len(text) < 2500
  cells = layout.VisualLayout(
    np.zeros(4, np.int32),
    np.zeros((4, 4)),
    np.zeros((1, 2), np.int32),
    np.zeros(4, bool),
  )
  assert repr(cells) == (
    'VisualLayout(media_I=int32[4], cell_IW=float64[4, 4], '
    'size_M2=int32[1, 2], base_I=bool[4], count_base=True)'
  )


def test_words():
  assert describe.count(1, 'layer') == '1 layer'
  assert describe.count(0, 'layer') == '0 layers'
  assert describe.value(b'123') == '<3 bytes>'
  assert len(describe.shorten('x' * 500)) == 60


def test_table_suits_a_data_frame(ranking):
  table = ranking.table()
  assert type(table) is dict and list(table)[:3] == ['rank', 'layer', 'head']
  assert {(len(column), column.ndim) for column in table.values()} == {(24, 1)}
  table['ram'][:] = -1
  assert ranking.columns['ram'].min() >= 0
  pandas = pytest.importorskip('pandas', reason='pandas is no dependency')
  frame = pandas.DataFrame(ranking.table())
  assert frame.shape == (24, len(table))


def test_notebook_table(ranking):
  html = ranking._repr_html_()
  assert html.count('<tr>') == 11 and '10 of 24 heads' in html
  first = html.split('<tr>')[2]
  assert first.startswith('<td>1</td><td>2</td><td>1</td>')
  assert f'<td>{ranking.columns["ram"][0]:.4g}</td>' in first


def test_plot_draws_on_given_axes_and_on_its_own(ranking):
  axes = mpl_figure.Figure().subplots()
  assert ranking.plot(axes) is axes
  (image,) = axes.get_images()
  np.testing.assert_array_equal(image.get_array(), ranking.score_LN)
  outlined = [tuple(patch.get_xy()) for patch in axes.patches]
  assert outlined == [
    (head - 0.5, layer - 0.5) for layer, head in ranking.selected
  ]
  before = pyplot.get_fignums()
  own = ranking.plot()
  assert len(pyplot.get_fignums()) == len(before) + 1
  pyplot.close(own.figure)


def test_a_table_from_a_file_without_selection_plots_too(ranking):
  columns = {k: v for k, v in ranking.columns.items() if k != 'selected'}
  bare = ranking_lib.HeadRanking(3, 8, columns)
  axes = bare.plot(mpl_figure.Figure().subplots())
  assert not axes.patches


def test_listed():
  assert [describe.listed('abc'[:n]) for n in (1, 2, 3)] == [
    'a',
    'a and b',
    'a, b and c',
  ]
