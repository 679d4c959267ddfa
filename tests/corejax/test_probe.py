"""The probe and the reference attention against float64 loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import control as control_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from helpers import brute

_B, _T, _H = 2, 9, 8
_SETS = len(regions.QUERY_SETS)


def _ints(*values):
  return jnp.array(values, jnp.int32)


def _arrays(n_heads, n_kv, length=_T, kv_size=_T, seed=0, scale=2.0):
  rng = np.random.default_rng(seed)

  def draw(size, heads):
    return jnp.asarray(rng.normal(0, scale, (_B, size, heads, _H)), jnp.float32)

  return draw(length, n_heads), draw(kv_size, n_kv), draw(kv_size, n_kv)


def _probe(kv_size=_T, **kwargs):
  rng = np.random.default_rng(1)
  set_PQ = np.zeros((6, _SETS), np.float32)
  set_PQ[[0, 1, 2], 0] = set_PQ[3, 1] = set_PQ[[4, 5], 2] = 1
  return probe_lib.Probe(
    # The last row is in two sets; one slot of `answer` is unused in example 1,
    # all of its `question` too.
    rows_BP=jnp.array([[2, 3, 5, 7, 7, 8], [-1, -1, -1, 4, 4, -1]], jnp.int32),
    set_PQ=jnp.asarray(set_PQ),
    region_BS=jnp.asarray(rng.integers(0, 9, (_B, kv_size)), jnp.int8),
    **kwargs,
  )


def _expected(q, k, mask, probe, control=None):
  """mass [B, Q, N, R] and set means [B, Q, N, S], in float64."""
  rows = np.asarray(probe.rows_BP)
  weights = brute.attention(q, k, mask, np.maximum(rows, 0), control)
  n_heads, kv_size = weights.shape[1], weights.shape[3]
  mean = np.zeros((_B, _SETS, n_heads, kv_size))
  for b in range(_B):
    for s in range(_SETS):
      slots = [
        p
        for p in range(rows.shape[1])
        if rows[b, p] >= 0 and probe.set_PQ[p, s]
      ]
      if slots:
        mean[b, s] = weights[b][:, slots].mean(1)
  mass = np.zeros((_B, _SETS, n_heads, len(regions.REGIONS)))
  region = np.asarray(probe.region_BS)
  for b, r in np.ndindex(_B, len(regions.REGIONS)):
    mass[b, :, :, r] = mean[b][..., region[b] == r].sum(-1)
  return mass, mean


_MASKS = {
  'causal': masks.AttnMask(),
  'right padding': masks.AttnMask(kv_len_B=_ints(9, 5)),
  'left padding': masks.AttnMask(kv_start_B=_ints(0, 3)),
  'own window': masks.AttnMask(window=jnp.int32(3)),
  'segments': masks.AttnMask(
    q_segment_BT=jnp.array([[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2, jnp.int32),
    kv_segment_BS=jnp.array([[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2, jnp.int32),
  ),
  'tower': masks.AttnMask(causal=False),
}


def _limited(n_heads, region_BS):
  rng = np.random.default_rng(2)
  return control_lib.AttendControl(
    jnp.asarray(rng.integers(1, 5, (1, n_heads)), jnp.int32),
    jnp.asarray(rng.integers(0, 3, (1, n_heads)), jnp.int32),
    jnp.asarray(rng.choice([0.0, 1.0, 0.5], (1, n_heads)), jnp.float32),
    jnp.asarray(rng.random((_B, n_heads, 9)) < 0.3),
    region_BS,
  )


def _spelled_out(mask):
  """The same mask with every array given, so that one program serves all."""
  zeros_BT = jnp.zeros((_B, _T), jnp.int32)
  defaults = dict(
    q_offset_B=_ints(0, 0),
    kv_start_B=_ints(0, 0),
    kv_len_B=_ints(_T, _T),
    q_segment_BT=zeros_BT,
    kv_segment_BS=zeros_BT,
    window=jnp.int32(masks.DENSE),
  )
  missing = {k: v for k, v in defaults.items() if getattr(mask, k) is None}
  return dataclasses.replace(mask, **missing)


_reference = jax.jit(attention.reference)
_measure = jax.jit(probe_lib.measure)


def _check_definition(n_heads, n_kv, mask, limited):
  q, k, v = _arrays(n_heads, n_kv)
  probe = _probe()
  control = _limited(n_heads, probe.region_BS) if limited else None
  got = _reference(q, k, v, _spelled_out(mask), control, probe)
  mass, _ = _expected(q, k, mask, probe, control)
  np.testing.assert_allclose(got.measured.mass_BQNR, mass, atol=1e-6)
  assert got.measured.profile_BNI is None
  assert got.measured.weights_BNTS is None
  weights = brute.attention(
    q, k, mask, np.tile(np.arange(_T), (_B, 1)), control
  )
  repeated = np.repeat(np.asarray(v, np.float64), n_heads // n_kv, axis=2)
  out = np.einsum('bnts,bsnh->btnh', weights, repeated)
  np.testing.assert_allclose(got.out_BTNH, out, atol=3e-6)


@pytest.mark.parametrize('limited', [False, True])
@pytest.mark.parametrize('name', _MASKS)
def test_masses_are_the_definition(name, limited):
  _check_definition(6, 2, _MASKS[name], limited)


@pytest.mark.parametrize('n_heads, n_kv', [(4, 4), (7, 1)])
def test_every_grouping_of_heads(n_heads, n_kv):
  _check_definition(n_heads, n_kv, _MASKS['right padding'], False)


@pytest.mark.parametrize('name', _MASKS)
def test_regions_sum_to_one_or_to_nothing(name):
  q, k, _ = _arrays(6, 2)
  probe = _probe()
  got = _reference(q, k, k, _spelled_out(_MASKS[name]), None, probe).measured
  total = np.asarray(got.mass_BQNR).sum(-1)
  # Example 1 has no question row: that set's masses are 0, not NaN.
  np.testing.assert_allclose(total[0], 1, atol=1e-6)
  np.testing.assert_allclose(total[1, 1:], 1, atol=1e-6)
  assert not total[1, 0].any()


def test_chunked_rows_stand_at_their_key_positions():
  q, k, _ = _arrays(4, 2, length=_T, kv_size=14)
  mask = masks.AttnMask(q_offset_B=_ints(5, 3), kv_len_B=_ints(14, 12))
  probe = _probe(kv_size=14)
  got = _measure(q, k, mask, None, probe)
  mass, _ = _expected(q, k, mask, probe)
  np.testing.assert_allclose(got.mass_BQNR, mass, atol=1e-6)


def test_rows_that_may_read_nothing_are_zero():
  q, k, v = _arrays(4, 2)
  mask = masks.AttnMask(kv_start_B=_ints(0, 6))  # rows 0..5 of example 1
  probe = dataclasses.replace(_probe(), weights=True)
  got = _reference(q, k, v, mask, None, probe)
  weights = np.asarray(got.measured.weights_BNTS)
  assert not weights[1, :, :6].any()
  np.testing.assert_allclose(weights[1, :, 6:].sum(-1), 1, atol=1e-6)
  assert not np.asarray(got.out_BTNH)[1, :6].any()
  # `last` and `answer` of example 1 are row 4 alone.
  assert not np.asarray(got.measured.mass_BQNR)[1].any()


def test_a_barred_head_reads_nothing_and_stays_finite():
  q, k, v = _arrays(2, 2)
  probe = _probe()
  control = control_lib.AttendControl(
    jnp.full((1, 2), masks.DENSE, jnp.int32),
    jnp.zeros((1, 2), jnp.int32),
    jnp.ones((1, 2), jnp.float32),
    jnp.array([[[True] * 9, [False] * 9]]),
    probe.region_BS,
  )
  got = _reference(q, k, v, masks.AttnMask(), control, probe)
  assert not np.asarray(got.out_BTNH)[:, :, 0].any()
  assert not np.asarray(got.measured.mass_BQNR)[:, :, 0].any()
  np.testing.assert_allclose(
    np.asarray(got.measured.mass_BQNR)[0, :, 1].sum(-1), 1, atol=1e-6
  )


def test_score_scale_zero_is_uniform():
  q, k, _ = _arrays(2, 1)
  control = control_lib.AttendControl(
    jnp.full((1, 2), masks.DENSE, jnp.int32),
    jnp.zeros((1, 2), jnp.int32),
    jnp.array([[0.0, 1.0]]),
  )
  probe = dataclasses.replace(_probe(), weights=True)
  got = _measure(q, k, masks.AttnMask(), control, probe)
  weights = np.asarray(got.weights_BNTS)
  uniform = np.tri(_T) / np.arange(1, _T + 1)[:, None]
  np.testing.assert_allclose(weights[:, 0], np.stack([uniform] * 2), atol=1e-7)
  assert np.abs(weights[:, 1] - uniform).max() > 0.1


@pytest.mark.parametrize('profile_set', range(_SETS))
def test_profiles_are_the_sets_mean_attention(profile_set):
  q, k, _ = _arrays(6, 2)
  visual_BI = _ints([1, 2, 4, 5], [3, 0, -1, -1])
  probe = _probe(visual_BI=visual_BI, profile_set=profile_set)
  mask = _MASKS['right padding']
  got = np.asarray(_measure(q, k, mask, None, probe).profile_BNI)
  _, mean = _expected(q, k, mask, probe)
  expected = np.zeros((_B, 6, 4))
  expected[0] = mean[0, profile_set][:, [1, 2, 4, 5]]
  expected[1, :, :2] = mean[1, profile_set][:, [3, 0]]
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_profiles_add_up_to_the_visual_mass():
  q, k, _ = _arrays(4, 4)
  probe = _probe()
  visual = [np.isin(r, regions.VISUAL).nonzero()[0] for r in probe.region_BS]
  visual_BI = np.full((_B, _T), -1)
  for b, positions in enumerate(visual):
    visual_BI[b, : len(positions)] = positions
  probe = dataclasses.replace(
    probe, visual_BI=jnp.asarray(visual_BI), profile_set=2
  )
  got = _measure(q, k, masks.AttnMask(), None, probe)
  np.testing.assert_allclose(
    got.profile_BNI.sum(-1),
    got.mass_BQNR[:, 2][..., list(regions.VISUAL)].sum(-1),
    atol=1e-6,
  )


def test_weights_are_every_heads_attention():
  q, k, _ = _arrays(6, 3)
  mask = _MASKS['left padding']
  probe = dataclasses.replace(_probe(), weights=True)
  got = _measure(q, k, mask, None, probe).weights_BNTS
  rows = np.tile(np.arange(_T), (_B, 1))
  np.testing.assert_allclose(got, brute.attention(q, k, mask, rows), atol=1e-6)


def test_large_scores_do_not_overflow():
  q, k, v = _arrays(2, 2, scale=40.0)  # scores of several thousand
  probe = dataclasses.replace(_probe(), weights=True)
  got = _reference(q, k, v, masks.AttnMask(), None, probe)
  weights = np.asarray(got.measured.weights_BNTS)
  assert np.isfinite(weights).all()
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
  assert np.isfinite(np.asarray(got.out_BTNH)).all()


def test_half_precision_inputs_are_measured_in_float32():
  q, k, v = (x.astype(jnp.bfloat16) for x in _arrays(4, 2))
  probe = _probe()
  got = _reference(q, k, v, masks.AttnMask(), None, probe)
  assert got.out_BTNH.dtype == jnp.bfloat16
  assert got.measured.mass_BQNR.dtype == jnp.float32
  mass, _ = _expected(q, k, masks.AttnMask(), probe)
  np.testing.assert_allclose(got.measured.mass_BQNR, mass, atol=1e-6)


def test_many_keys_sum_to_one():
  # A running sum in bfloat16 would stall at 256.
  size = 3000
  rng = np.random.default_rng(3)
  q = jnp.asarray(rng.normal(0, 0.01, (_B, 1, 2, _H)), jnp.bfloat16)
  k = jnp.asarray(rng.normal(0, 0.01, (_B, size, 2, _H)), jnp.bfloat16)
  region_BS = jnp.asarray(np.arange(_B * size).reshape(_B, size) % 9, jnp.int8)
  probe = probe_lib.Probe(
    jnp.zeros((_B, 1), jnp.int32), jnp.array([[0.0, 1.0, 0.0]]), region_BS
  )
  mask = masks.AttnMask(q_offset_B=_ints(size - 1, size - 1))
  mass = _measure(q, k, mask, None, probe).mass_BQNR
  np.testing.assert_allclose(mass[:, 1].sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(mass[:, 1], 1 / 9, atol=1e-3)


def test_measuring_does_not_change_the_output():
  q, k, v = _arrays(4, 2)
  mask = _MASKS['right padding']
  plain = _reference(q, k, v, mask)
  probed = _reference(q, k, v, mask, None, _probe())
  assert plain.measured is None
  np.testing.assert_array_equal(plain.out_BTNH, probed.out_BTNH)


def test_measured_leaves_a_scan_stacked():
  q, k, _ = _arrays(4, 2)
  probe = _probe(visual_BI=_ints([1, 2], [0, -1]), profile_set=1)
  # Only the arrays travel: the static fields must survive tree operations.
  assert jax.tree.map(lambda x: x, probe).profile_set == 1

  def body(carry, scale):
    measured = probe_lib.measure(q * scale, k, masks.AttnMask(), None, probe)
    return carry, measured

  _, stacked = jax.lax.scan(body, 0, jnp.array([1.0, 0.0, 2.0]))
  assert stacked.mass_BQNR.shape == (3, _B, _SETS, 4, 9)
  assert stacked.profile_BNI is not None
  assert stacked.profile_BNI.shape == (3, _B, 4, 2)
  one = _measure(q * 2.0, k, masks.AttnMask(), None, probe)
  np.testing.assert_allclose(stacked.mass_BQNR[2], one.mass_BQNR, atol=1e-6)


def test_written_is_the_mean_norm_over_the_sets_rows():
  rng = np.random.default_rng(3)
  out_BTNH = rng.normal(size=(2, 7, 3, 4)).astype(np.float32)
  weight_DNH = rng.normal(size=(5, 3, 4)).astype(np.float32)
  rows_BP = np.array([[1, 2, 6, 6], [0, -1, 5, -1]], np.int32)
  set_PQ = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
  probe = probe_lib.Probe(rows_BP, set_PQ, np.zeros((2, 7), np.int8))
  got_BQN = probe_lib.written(probe, out_BTNH, weight_DNH)
  for b in range(2):
    for q in range(3):
      rows = [r for p, r in enumerate(rows_BP[b]) if r >= 0 and set_PQ[p, q]]
      for n in range(3):
        norms = [
          np.linalg.norm(np.float64(weight_DNH[:, n]) @ out_BTNH[b, r, n])
          for r in rows
        ]
        expected = np.mean(norms) if norms else 0.0
        np.testing.assert_allclose(got_BQN[b, q, n], expected, rtol=1e-5)


@pytest.mark.parametrize('batch', [1, _B])
def test_limits_on_some_rows_are_measured_row_by_row(batch):
  q, k, v = _arrays(4, 2)
  probe = _probe(weights=True)
  limited = _limited(4, probe.region_BS)
  rows_BT = np.random.default_rng(5).random((batch, _T)) < 0.5
  control = dataclasses.replace(limited, rows_BT=jnp.asarray(rows_BT))
  mask = _spelled_out(masks.AttnMask())
  got = _reference(q, k, v, mask, control, probe)
  rows_BP = np.broadcast_to(np.arange(_T), (_B, _T))
  expected = np.where(
    rows_BT[:, None, :, None],
    brute.attention(q, k, masks.AttnMask(), rows_BP, limited),
    brute.attention(q, k, masks.AttnMask(), rows_BP),
  )
  np.testing.assert_allclose(got.measured.weights_BNTS, expected, atol=1e-6)
  region_BS = np.asarray(probe.region_BS)
  for b, row, slot in ((0, 7, 3), (1, 4, 3)):  # alone in the set `last`
    for r in range(9):
      mass_N = expected[b, :, row, region_BS[b] == r].sum(0)
      np.testing.assert_allclose(
        got.measured.mass_BQNR[b, 1, :, r], mass_N, atol=1e-6
      )
    assert probe.rows_BP[b, slot] == row


def test_class_means_are_the_means_over_a_classs_rows():
  rng = np.random.default_rng(4)
  out_BTNH = rng.normal(size=(2, 7, 3, 4)).astype(np.float32)
  class_BT = np.array([[0, 0, 1, 2, 2, 2, 1], [2, 0, 2, -1, -1, -1, -1]])
  probe = dataclasses.replace(_probe(), class_BT=jnp.asarray(class_BT, 'int8'))
  got = np.asarray(jax.jit(probe_lib.class_means)(probe, out_BTNH))
  assert got.shape == (2, 3, 3, 4)
  for b, c in np.ndindex(2, 3):
    rows = out_BTNH[b, class_BT[b] == c].astype(np.float64)
    expected = rows.mean(0) if len(rows) else np.zeros((3, 4))
    np.testing.assert_allclose(got[b, c], expected, atol=1e-6)
  half = probe_lib.class_means(probe, jnp.asarray(out_BTNH, jnp.bfloat16))
  assert half is not None and half.dtype == jnp.float32
  assert probe_lib.class_means(_probe(), jnp.asarray(out_BTNH)) is None
