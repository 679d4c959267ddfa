"""Annotation-free rankings, against values by hand and by brute force."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import ndimage
from scipy import stats
from scipy.spatial import distance

from corejax import errors
from corejax import layout as layout_lib
from corejax import proxies
from helpers import fake_scores


def grid(rows, columns, media=0, cell=(14.0, 14.0), base=False, start=(0, 0)):
  """A layout of one picture, row by row."""
  y, x = np.mgrid[:rows, :columns].reshape(2, -1)
  x0, y0 = start[0] + x * cell[0], start[1] + y * cell[1]
  n = rows * columns
  return layout_lib.VisualLayout(
    media_I=np.full(n, media, np.int32),
    cell_IW=np.stack([x0, y0, x0 + cell[0], y0 + cell[1]], 1),
    size_M2=np.array([[600, 600]] * (media + 1), np.int32),
    base_I=np.full(n, base),
  )


def joined(*layouts):
  return layout_lib.VisualLayout(
    np.concatenate([x.media_I for x in layouts]),
    np.concatenate([x.cell_IW for x in layouts]),
    layouts[-1].size_M2,
    np.concatenate([x.base_I for x in layouts]),
  )


def as_set(pairs):
  return {tuple(sorted(pair)) for pair in pairs.tolist()}


def touching(rows, columns, offset=0):
  """Pairs of a grid, by brute force."""
  cells = [(r, c) for r in range(rows) for c in range(columns)]
  return {
    (offset + i, offset + j)
    for i, (r, c) in enumerate(cells)
    for j, (s, d) in enumerate(cells)
    if i < j and abs(r - s) <= 1 and abs(c - d) <= 1
  }


@pytest.mark.parametrize('rows, columns', [(1, 1), (1, 5), (3, 4), (7, 2)])
@pytest.mark.parametrize('cell', [(14.0, 14.0), (3.7, 61.3), (1 / 3, 2 / 7)])
def test_neighbours_of_a_grid(rows, columns, cell):
  found = proxies.neighbours(grid(rows, columns, cell=cell, start=(17.3, 0.1)))
  assert as_set(found) == touching(rows, columns)
  assert len(found) == len(as_set(found))


def test_neighbours_stay_on_their_picture_and_tile_size():
  parts = (
    grid(2, 2),
    grid(2, 3, media=1),
    # The whole of picture 1 again, coarser: a thumbnail.
    grid(1, 2, media=1, cell=(21.0, 28.0), base=True),
  )
  found = proxies.neighbours(joined(*parts))
  assert as_set(found) == (
    touching(2, 2) | touching(2, 3, offset=4) | touching(1, 2, offset=10)
  )


def test_neighbours_across_tiles_of_one_picture():
  left, right = grid(2, 2), grid(2, 2, start=(28.0, 0.0))
  found = as_set(proxies.neighbours(joined(left, right)))
  assert found == {
    tuple(sorted((a, b)))
    for a, b in [
      *touching(2, 2),
      *touching(2, 2, offset=4),
      *[(i, j) for i in (1, 3) for j in (4, 6)],
    ]
  }


def test_spatial_entropy_against_ndimage():
  rng = np.random.default_rng(0)
  p_XI = rng.random((40, 42)) ** 4
  p_XI[7] = 0.0  # reads nothing
  p_XI[8] = 0.25  # even
  p_XI[9] = np.eye(42)[5]  # one token
  found = proxies.spatial_entropy(p_XI, proxies.neighbours(grid(6, 7)))
  for x, p_I in enumerate(p_XI):
    map_RC = p_I.reshape(6, 7)
    on_RC = map_RC > map_RC.mean()
    piece_RC, n = ndimage.label(on_RC, structure=np.ones((3, 3)))
    mass = ndimage.sum_labels(map_RC, piece_RC, range(1, n + 1))
    wanted = stats.entropy(mass / mass.sum()) if n else math.log(42)
    assert found[x] == pytest.approx(wanted, abs=1e-12)
  assert found[9] == 0


def test_concentration_by_hand():
  p_XI = np.array(
    [
      [0.5, 0.0, 0.0, 0.0, 0.0],  # half of one token holds half
      [0.1, 0.1, 0.1, 0.1, 0.1],  # two and a half of five
      [0.4, 0.3, 0.2, 0.1, 0.0],  # .5 of 1.0: .4 and a third of .3
      [0.0, 0.0, 0.0, 0.0, 0.0],
    ]
  )
  found = proxies.concentration(p_XI)
  np.testing.assert_allclose(
    found, [1 - 0.1, 0.5, 1 - (1 + 1 / 3) / 5, 0.0], atol=1e-12
  )


def test_divergence_against_scipy():
  rng = np.random.default_rng(1)
  p_XI, q_XI = rng.dirichlet(np.ones(9), (2, 30))[..., :8]
  p_XI[0, 2:] = 0
  found = proxies.divergence(p_XI, q_XI)
  for x in range(30):
    p, q = (np.append(a, 1 - a.sum()) for a in (p_XI[x], q_XI[x]))
    wanted = distance.jensenshannon(p, q, base=2) ** 2
    assert found[x] == pytest.approx(wanted, abs=1e-9)
  apart = proxies.divergence(np.eye(2)[:1], np.eye(2)[1:])
  assert apart == pytest.approx(1.0)
  assert proxies.divergence(p_XI, p_XI).max() < 1e-12


def test_consensus_by_hand():
  p_XI = np.array([[0.3, 0.0], [0.1, 0.0], [0.0, 0.2], [0.0, 0.0]])
  found = proxies.consensus(p_XI)
  np.testing.assert_allclose(
    found, [0.1 / math.hypot(0.1, 0.2), 0.3 / math.hypot(0.3, 0.2), 0, 0]
  )


def with_baselines(scores, rng):
  return dataclasses.replace(
    scores,
    baseline_profiles=[
      (p.astype(np.float32) * rng.random(p.shape)).astype(np.float16)
      for p in scores.profiles
    ],
  )


def pairs_of(scores):
  return {
    layout: proxies.neighbours(grid(1, scores.profiles[e].shape[-1]))
    for e, layout in enumerate(scores.layouts)
  }


def test_question_variance_is_the_unbiased_variance():
  scores = fake_scores.make(n_clusters=6)
  lone = len(scores) - 1
  media = [*scores.media[:lone], 'a picture of its own']
  scores = dataclasses.replace(scores, media=media)
  found = proxies.measure(scores, pairs_of(scores))['question_variance']
  assert np.isnan(found[lone]).all()
  for name in dict.fromkeys(media[:lone]):
    asked = [e for e in range(lone) if media[e] == name]
    stack = np.stack([scores.profiles[e].astype(np.float64) for e in asked])
    np.testing.assert_allclose(
      found[asked].mean(0), stack.var(0, ddof=1).sum(-1), atol=1e-12
    )


def test_what_is_measured():
  scores = fake_scores.make(n_clusters=4)
  pairs = pairs_of(scores)
  found = proxies.measure(scores, pairs)
  assert set(found) == set(proxies.NAMES) - {'content_free'}
  both = with_baselines(scores, np.random.default_rng(0))
  found = proxies.measure(both, pairs)
  assert tuple(found) == proxies.NAMES
  shape = len(scores), scores.n_layers, scores.n_heads
  for name, value_ELN in found.items():
    assert value_ELN.shape == shape, name
    assert np.isfinite(value_ELN).all(), name
  e, layer, head = 3, 1, 2
  p_I = both.profiles[e][layer, head].astype(np.float64)
  assert found['visual_mass'][e, layer, head] == pytest.approx(p_I.sum())
  wanted = proxies.divergence(
    p_I[None], both.baseline_profiles[e][layer, head].astype(np.float64)[None]
  )
  assert found['content_free'][e, layer, head] == pytest.approx(wanted[0])


def test_a_head_that_follows_the_question_is_found():
  planted = (1, 2)
  scores = fake_scores.make(n_clusters=30, planted=[planted], salient=[(2, 0)])
  found = proxies.measure(scores, pairs_of(scores))
  value_LN = np.nanmean(found['question_variance'], 0)
  best = np.unravel_index(value_LN.argmax(), value_LN.shape)
  assert tuple(int(i) for i in best) == planted


def test_without_profiles_there_is_one_line():
  scores = fake_scores.make(n_clusters=3, profiles=False)
  with pytest.raises(errors.UserError, match='--profiles'):
    proxies.measure(scores, {})
