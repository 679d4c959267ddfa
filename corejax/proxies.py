"""Rankings of heads that need no boxes, from attention over visual tokens.

    question_variance   varies with the question on the same pictures
    content_free        differs from what it is under a content-free question
    spatial_entropy     lies in few connected pieces (less entropy ranks first)
    concentration       few tokens hold half of it
    consensus           lies where the other heads' attention lies
    visual_mass         how much there is of it: the baseline of them all

Each is a value per example and head, made so that more is better; a ranking is
its mean over clusters of the mean over a cluster's examples, as RAM's. With p a
head's profile (attention of the query rows' mean to every visual token, so that
it sums to the head's visual mass) and s = p / sum p:

    question_variance   sum_i var(p_i) over the questions on the same media,
                        unbiased; the share of it that each question brings
    content_free        Jensen-Shannon divergence, in bits, between p and the
                        profile under the content-free question, both with what
                        is not visual as one more outcome
    spatial_entropy     sum_c P_c ln P_c over the connected pieces c of the
                        tokens above the mean, P_c their share of the attention
                        there (after Peruzzo et al. 2022 and Kang et al. 2025,
                        who chose grounding heads by it)
    concentration       1 - n / I, n the fewest tokens that hold half of p, the
                        last of them counted by the part of it that is needed
    consensus           cosine between p and the sum of all other heads'

A head that reads no visual token has no shape: it gets the least value of
spatial_entropy (-ln I) and 0 of concentration and consensus.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse
from scipy import spatial
from scipy.sparse import csgraph

from corejax import errors
from corejax import layout as layout_lib
from corejax import scores as scores_lib

NAMES = (
  'question_variance',
  'content_free',
  'spatial_entropy',
  'concentration',
  'consensus',
  'visual_mass',
)
BASELINE = 'visual_mass'
HELD = 0.5  # of the mass, for concentration


def neighbours(layout: layout_lib.VisualLayout) -> np.ndarray:
  """int [P, 2], pairs of visual tokens whose cells touch, corners included.

  Cells are neighbours if they show the same picture in the same size (a token
  of a thumbnail is none of a detail tile's).
  """
  size_I2 = layout.cell_IW[:, 2:] - layout.cell_IW[:, :2]
  # Relative to the cell, so that neighbours' centres are 1 apart; in units of
  # 1/64, as cells of one grid differ by rounding.
  kind_I3 = np.column_stack([layout.media_I, np.round(size_I2 * 64)])
  found = [np.zeros((0, 2), np.intp)]
  for kind in np.unique(kind_I3, axis=0):
    (at,) = np.nonzero((kind_I3 == kind).all(1))
    centre_I2 = layout.cell_IW[at, :2] / size_I2[at]
    tree = spatial.KDTree(centre_I2)
    found.append(at[tree.query_pairs(1.01, p=np.inf, output_type='ndarray')])
  return np.concatenate(found)


def measure(
  scores: scores_lib.Scores, pairs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Name -> float64 [E, L, N] of each of NAMES that can be measured.

  Args:
    scores: of one pass with profiles. Without profiles of the content-free
      question (`rank --calibrate`) there is no 'content_free'.
    pairs: layout (a name in scores.layouts) -> `neighbours` of it.

  Returns:
    nan where an example says nothing: question_variance, where no other
    question is about the same media.

  Raises:
    UserError: no profiles were kept.
  """
  if scores.profiles is None:
    raise errors.UserError(
      'proxies are measured on profiles, and none were kept; rank with '
      '--profiles'
    )
  shape = len(scores), scores.n_layers, scores.n_heads
  names = [
    name
    for name in NAMES
    if name != 'content_free' or scores.baseline_profiles is not None
  ]
  found = {name: np.full(shape, np.nan) for name in names}
  for e, profile in enumerate(scores.profiles):
    p_XI = _flat(profile)
    values = {
      'visual_mass': p_XI.sum(1),
      'concentration': concentration(p_XI),
      'spatial_entropy': -spatial_entropy(p_XI, pairs[scores.layouts[e]]),
      'consensus': consensus(p_XI),
    }
    if scores.baseline_profiles is not None:
      baseline_XI = _flat(scores.baseline_profiles[e])
      values['content_free'] = divergence(p_XI, baseline_XI)
    for name, value_X in values.items():
      found[name][e] = value_X.reshape(shape[1:])
  for media in dict.fromkeys(scores.media):
    (asked,) = np.nonzero(np.asarray(scores.media) == media)
    if len(asked) > 1:
      found['question_variance'][asked] = _variance(
        [scores.profiles[int(e)] for e in asked]
      )
  return found


def _flat(profile_LNI: np.ndarray) -> np.ndarray:
  return profile_LNI.reshape(-1, profile_LNI.shape[-1]).astype(np.float64)


def _variance(profiles) -> np.ndarray:
  """[questions, L, N], whose mean is sum_i of the unbiased variance."""
  n = len(profiles)
  mean_LNI = sum(p.astype(np.float64) for p in profiles) / n
  return np.stack(
    [
      n / (n - 1) * ((p.astype(np.float64) - mean_LNI) ** 2).sum(-1)
      for p in profiles
    ]
  )


def divergence(p_XI: np.ndarray, q_XI: np.ndarray) -> np.ndarray:
  """Jensen-Shannon divergence in bits, row by row; float64 [X] in [0, 1].

  Args:
    p_XI, q_XI: >= 0; what their rows lack to 1 is one more outcome.
  """

  def whole(x_XI):
    rest_X1 = np.clip(1 - x_XI.sum(1, keepdims=True), 0, None)
    x_XJ = np.concatenate([x_XI, rest_X1], 1)
    return x_XJ / x_XJ.sum(1, keepdims=True)

  p_XJ, q_XJ = whole(p_XI), whole(q_XI)
  middle_XJ = (p_XJ + q_XJ) / 2

  def relative(x_XJ):
    ratio_XJ = np.divide(
      x_XJ, middle_XJ, out=np.ones_like(x_XJ), where=x_XJ > 0
    )
    return (x_XJ * np.log2(ratio_XJ)).sum(1)

  return np.clip((relative(p_XJ) + relative(q_XJ)) / 2, 0.0, 1.0)


def concentration(p_XI: np.ndarray) -> np.ndarray:
  """float64 [X] in [0, 1), 1 - the share of tokens that hold HELD of a row."""
  n_tokens = p_XI.shape[1]
  best_XI = -np.sort(-p_XI, axis=1)
  held_XI = np.cumsum(best_XI, axis=1)
  wanted_X1 = HELD * held_XI[:, -1:]
  # Whole tokens before the one that reaches it, and the part of that one.
  whole_X = (held_XI < wanted_X1).sum(1)
  at_X1 = np.minimum(whole_X, n_tokens - 1)[:, None]
  last_X1 = np.take_along_axis(best_XI, at_X1, 1)
  before_X1 = np.take_along_axis(held_XI, at_X1, 1) - last_X1
  part_X1 = np.divide(
    wanted_X1 - before_X1,
    last_X1,
    out=np.zeros_like(last_X1),
    where=last_X1 > 0,
  )
  value_X = 1 - (whole_X + part_X1[:, 0]) / n_tokens
  return np.where(wanted_X1[:, 0] > 0, value_X, 0.0)


def spatial_entropy(p_XI: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
  """float64 [X] in [0, ln I], nats: entropy over connected pieces.

  Args:
    p_XI: >= 0.
    pairs_P2: tokens that touch.
  """
  n_rows, n_tokens = p_XI.shape
  on_XI = p_XI > p_XI.mean(1, keepdims=True)
  # One graph of all rows: row x's token i is node x * I + i.
  row, pair = np.nonzero(on_XI[:, pairs_P2[:, 0]] & on_XI[:, pairs_P2[:, 1]])
  ends = row[:, None] * n_tokens + pairs_P2[pair]
  nodes = n_rows * n_tokens
  graph = sparse.coo_array(
    (np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), (nodes, nodes)
  )
  _, piece_N = csgraph.connected_components(graph, directed=False)
  mass_N = np.where(on_XI, p_XI, 0.0).ravel()
  mass_C = np.bincount(piece_N, mass_N)
  row_C = np.zeros(len(mass_C), np.intp)
  row_C[piece_N] = np.repeat(np.arange(n_rows), n_tokens)
  total_X = np.bincount(row_C, mass_C, n_rows)
  share_C = np.divide(
    mass_C, total_X[row_C], out=np.zeros_like(mass_C), where=mass_C > 0
  )
  term_C = share_C * np.log(np.where(share_C > 0, share_C, 1.0))
  entropy_X = -np.bincount(row_C, term_C, n_rows)
  # Even attention has no token above its mean: no shape either.
  return np.where(total_X > 0, np.abs(entropy_X), np.log(n_tokens))


def consensus(p_XI: np.ndarray) -> np.ndarray:
  """float64 [X] in [0, 1], cosine of each row with the sum of the others."""
  others_XI = p_XI.sum(0) - p_XI
  scale_X = np.linalg.norm(p_XI, axis=1) * np.linalg.norm(others_XI, axis=1)
  dot_X = (p_XI * others_XI).sum(1)
  return np.divide(dot_X, scale_X, out=np.zeros_like(dot_X), where=scale_X > 0)
