"""What is written in an ablated head's place: alignment and means."""

import jax.numpy as jnp
import numpy as np
import pytest

from corejax import errors
from corejax import regions
from corejax import replacement
from corejax import rows as rows_lib

_L, _N, _H = 2, 3, 4


def _row(text):
  """v visual, q question, t other text, a decoded answer row, `.` padding."""
  class_T = np.array(['vqta.'.index(c) for c in text])
  decoded_T = class_T == 3
  class_T = np.where(decoded_T, regions.OTHER_TEXT_ROW, class_T)
  return np.where(class_T == 4, regions.PADDING_ROW, class_T), decoded_T


def _rows(*texts):
  class_BT, decoded_BT = (np.stack(x) for x in zip(*map(_row, texts)))
  return rows_lib.Rows(
    jnp.asarray(class_BT, jnp.int8),
    jnp.zeros(class_BT.shape, bool),
    jnp.asarray(decoded_BT),
  )


@pytest.mark.parametrize(
  'recipient, donor, expected',
  [
    # Itself.
    ('ttvvqqtta', 'ttvvqqtta', [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    # The donor's picture and question are shorter: the first row is repeated.
    ('tvvvqqt', 'tvvqt', [0, 1, 1, 2, 3, 3, 4]),
    # It is longer: its rows on the left are not used.
    ('tvvqt', 'tvvvqqt', [0, 2, 3, 5, 6]),
    # Text on both sides of the picture counts from the right.
    ('ttvqtt', 'tvqttt', [0, 3, 1, 2, 4, 5]),
    # Answers are paired from the prompt's end on, the donor's last repeated.
    ('vqtaaa', 'vvqtaa', [1, 2, 3, 4, 5, 5]),
    ('vqta', 'vqtaaa', [0, 1, 2, 3]),
    # A donor's one-token answer is predicted by its last prompt row.
    ('vqtaa', 'vqt', [0, 1, 2, 2, 2]),
    # Padding takes row 0; the donor's padding is never taken.
    ('vqt..', 'vvqta..', [1, 2, 3, 0, 0]),
    # Classes that the recipient does not have are not asked for.
    ('qt', 'vqt', [1, 2]),
  ],
)
def test_rows_are_aligned_from_the_right_by_class(recipient, donor, expected):
  got = replacement.align(_row(recipient), _row(donor))
  assert got.dtype == np.int32 and got.tolist() == expected


def test_a_donor_without_a_class_is_refused():
  with pytest.raises(errors.UserError, match='no visual row.* has 2'):
    replacement.align(_row('vvqt'), _row('qt'))


def test_each_recipient_takes_its_donors_rows():
  donors, recipients = _rows('vvqt', 'vqqt'), _rows('vqt.', 'vqqt', 'vvqt')
  out = jnp.arange(_L * 2 * 4 * _N * _H, dtype=jnp.float32)
  out_LBTNH = out.reshape(_L, 2, 4, _N, _H)
  got = replacement.by_donor(out_LBTNH, donors, recipients, [0, 0, 1])
  assert got.source_BT.tolist() == [[1, 2, 3, 0], [1, 2, 2, 3], [0, 0, 2, 3]]
  np.testing.assert_array_equal(got.out_LBTNH, out_LBTNH[:, [0, 0, 1]])


def test_each_row_takes_its_classs_mean():
  mean_LCNH = np.random.default_rng(0).normal(size=(_L, 3, _N, _H))
  got = replacement.by_class(jnp.asarray(mean_LCNH), _rows('tvqta', 'vqt..'))
  assert got.out_LBTNH.shape == (_L, 1, 3, _N, _H)
  assert got.source_BT.dtype == jnp.int32
  assert got.source_BT.tolist() == [[2, 0, 1, 2, 2], [0, 1, 2, 0, 0]]


def _batches():
  """Three batches of class means and counts; one class is absent at times."""
  rng = np.random.default_rng(1)
  mean = rng.normal(size=(3, _L, 2, 3, _N, _H)).astype(np.float32)
  count = rng.integers(0, 3, (3, 2, 3))
  mean = mean * (count[:, None, :, :, None, None] > 0)
  return mean, count


@pytest.mark.parametrize('weighted', [False, True])
def test_the_mean_over_a_reference_set(weighted):
  means, counts = _batches()
  clusters = ['a', 'b', 'a', 'a', 'c', 'b']
  weights = replacement.cluster_weights(clusters) if weighted else np.ones(6)
  np.testing.assert_allclose(
    weights, [1 / 3, 1 / 2, 1 / 3, 1 / 3, 1, 1 / 2] if weighted else 1
  )
  running = replacement.MeanOutputs.empty(_L, _N, _H)
  for index, (mean, count) in enumerate(zip(means, counts)):
    weight_B = weights[2 * index : 2 * index + 2] if weighted else None
    running = running.add(mean, count, weight_B)
  got = running.mean()
  assert got.dtype == np.float32
  for c in range(3):
    total, weight = np.zeros((_L, _N, _H)), 0.0
    for e in range(6):
      if counts[e // 2, e % 2, c]:
        total += weights[e] * means[e // 2, :, e % 2, c].astype(np.float64)
        weight += weights[e]
    np.testing.assert_allclose(running.total_LCNH[:, c], total, atol=1e-9)
    np.testing.assert_allclose(got[:, c], total / weight, rtol=1e-6)


def test_copies_that_fill_a_batch_do_not_count():
  means, _ = _batches()
  counts = np.ones((2, 3), int)
  empty = replacement.MeanOutputs.empty(_L, _N, _H)
  got = empty.add(means[0], counts, [1, 0]).mean()
  np.testing.assert_array_equal(got, means[0, :, 0])


def test_a_class_that_never_occurred_is_told():
  means, _ = _batches()
  running = replacement.MeanOutputs.empty(_L, _N, _H)
  running = running.add(means[0], [[1, 0, 2], [1, 0, 2]])
  with pytest.raises(errors.UserError, match='no question row'):
    running.mean()


def test_a_head_that_overflowed_is_told():
  means = _batches()[0][0]
  means[1, 1, 2, 0] = np.inf
  running = replacement.MeanOutputs.empty(_L, _N, _H)
  with pytest.raises(errors.UserError, match='head 1-0 .*example 1 of'):
    running.add(means, np.ones((2, 3)))
  running.add(means, np.ones((2, 3)), [1, 0])  # nobody's example
