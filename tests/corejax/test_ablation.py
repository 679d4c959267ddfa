"""Ablation: what each mode says to one layer of attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import ablation
from corejax import attention
from corejax import control as control_lib
from corejax import errors
from corejax import heads as heads_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from corejax import replacement as replacement_lib
from corejax import rows as rows_lib

_L, _B, _T, _N, _K, _H = 2, 2, 10, 4, 2, 8
_HEADS = heads_lib.HeadSet.parse('0-1,1-3')

# Example 0 is t v v v v q q t a a, example 1 has two tokens less.
_CLASS = np.array(
  [[2, 0, 0, 0, 0, 1, 1, 2, 2, 2], [2, 0, 0, 0, 0, 1, 1, 2, -1, -1]]
)
_REGION = np.array(
  [[6, 0, 0, 1, 5, 7, 7, 8, 8, 8], [6, 0, 1, 1, 5, 7, 7, 8, 8, 8]]
)
_ROWS = rows_lib.Rows(
  jnp.asarray(_CLASS, jnp.int8),
  jnp.asarray(
    [[0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]], bool
  ),
  jnp.asarray([[0] * 8 + [1] * 2, [0] * 10], bool),
)
_MASK = masks.AttnMask(
  kv_start_B=jnp.array([0, 0]), kv_len_B=jnp.array([10, 8], jnp.int32)
)


def _random(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(0, 1.5, shape), jnp.float32)


def _extras():
  mean_LCNH = _random(9, _L, 3, _N, _H)
  return dict(
    rows=_ROWS,
    region_BS=jnp.asarray(_REGION, jnp.int8),
    replacement=replacement_lib.by_class(mean_LCNH, _ROWS),
  )


def _expand(mode, phase='prefill+decode', rows='all', heads=_HEADS):
  return ablation.Ablation(heads, mode, phase, rows).expand(_L, _N, **_extras())


@jax.jit
def _run(q, k, v, mask, control, layer=0):
  """(output [B, T, N, H], attention weights [B, N, T, S]) of one layer."""
  if control is None:
    one = control_lib.HeadControl(None, None)
  else:
    stacked, shared = control.per_layer()
    one = jax.tree.map(lambda x: x[layer], stacked).join(shared)
  out = attention.reference(q, k, v, mask, one.attend).out_BTNH
  i_BT = masks.row_positions(mask, _B, _T)
  seen = probe_lib.attention_weights(q, k, i_BT, mask, one.attend)
  return control_lib.apply_output(out, one.output), seen


@pytest.fixture(scope='module')
def qkv():
  return (
    _random(0, _B, _T, _N, _H),
    _random(1, _B, _T, _K, _H),
    _random(2, _B, _T, _K, _H),
  )


@pytest.fixture(scope='module')
def intact(qkv):
  return [np.asarray(x) for x in _run(*qkv, _MASK, None)]


def test_equal_ablations_are_one_static_argument():
  traces = []

  @functools.partial(jax.jit, static_argnames='what')
  def run(what):
    traces.append(what)
    return what.expand(_L, _N).output.gate_BN

  forth = ablation.Ablation(heads_lib.HeadSet([(0, 1), (1, 3), (1, 0)]))
  back = ablation.Ablation(heads_lib.HeadSet([(1, 0), (1, 3), (0, 1)]))
  assert forth == back and hash(forth) == hash(back)
  np.testing.assert_array_equal(run(forth), run(back))
  assert len(traces) == 1
  run(ablation.Ablation(_HEADS))
  assert len(traces) == 2


@pytest.mark.parametrize(
  'kw', [dict(mode='Zero'), dict(phase='prefill'), dict(rows='question')]
)
def test_unknown_words_are_refused(kw):
  with pytest.raises(errors.UserError, match='is unknown; choose one of'):
    ablation.Ablation(_HEADS, **kw)


def test_heads_of_another_model_are_refused():
  with pytest.raises(errors.UserError, match='layer 1 is outside'):
    ablation.Ablation(_HEADS).expand(1, _N)
  with pytest.raises(errors.UserError, match='head 3 of layer 1'):
    ablation.sweep([ablation.Ablation(_HEADS)], _L, 3)


@pytest.mark.parametrize(
  'what, missing',
  [
    (dict(mode='mean'), 'replacement'),
    (dict(mode='resample'), 'replacement'),
    (dict(mode='knockout_visual'), 'region_BS'),
    (dict(rows='query'), 'rows'),
    (dict(phase='decode'), 'rows'),
  ],
)
def test_what_a_mode_needs_is_asked_for(what, missing):
  with pytest.raises(ValueError, match=f'needs.* {missing}'):
    ablation.Ablation(_HEADS, **what).expand(_L, _N)


@pytest.mark.parametrize('mode', ablation.MODES)
def test_only_the_chosen_heads_and_rows_change(qkv, intact, mode):
  chosen = {
    ('prefill+decode', 'all'): np.ones((_B, _T), bool),
    ('prefill+decode', 'query'): np.asarray(_ROWS.query_BT),
    ('decode', 'all'): np.asarray(_ROWS.decoded_BT),
    ('decode', 'query'): np.asarray(_ROWS.decoded_BT),
  }
  for (phase, rows), chosen_BT in chosen.items():
    for layer, head in _HEADS:
      control = _expand(mode, phase, rows)
      out = np.asarray(_run(*qkv, _MASK, control, layer=layer)[0])
      changed_BTN = (out != intact[0]).any(-1)
      others = [n for n in range(_N) if n != head]
      assert not changed_BTN[..., others].any()
      assert not changed_BTN[~chosen_BT].any()
      # The first row of a softmax over itself alone reads as before.
      real_BT = chosen_BT & (_CLASS >= 0) & (np.arange(_T) > 0)
      assert changed_BTN[real_BT][:, head].all(), (phase, rows)


def test_zero_writes_zero_and_mean_its_classs_mean(qkv):
  out = np.asarray(_run(*qkv, _MASK, _expand('zero'))[0])
  assert not out[:, :, 1].any()
  extras = _extras()
  out = np.asarray(_run(*qkv, _MASK, _expand('mean'))[0])
  table = np.asarray(extras['replacement'].out_LBTNH)[0, 0, :, 1]
  for b, t in np.argwhere(_CLASS >= 0):
    np.testing.assert_array_equal(out[b, t, 1], table[_CLASS[b, t]])


@pytest.mark.parametrize('rows', ablation.ROWS)
@pytest.mark.parametrize(
  'mask, window',
  [
    (_MASK, 99),
    (masks.AttnMask(kv_start_B=jnp.array([0, 3])), 99),  # left padding
    (masks.AttnMask(window=jnp.int32(4)), 4),  # the model's own window
  ],
)
def test_uniform_is_uniform_over_the_real_keys_seen(qkv, mask, window, rows):
  out, seen = (
    np.asarray(x) for x in _run(*qkv, mask, _expand('uniform', rows=rows))
  )
  plain = np.asarray(_run(*qkv, mask, None)[1])
  v = np.asarray(qkv[2], np.float64)
  start = [0, 0] if mask.kv_start_B is None else mask.kv_start_B.tolist()
  stop = [_T, _T] if mask.kv_len_B is None else mask.kv_len_B.tolist()
  for b, t in np.ndindex(_B, _T):
    if rows == 'query' and not _ROWS.query_BT[b, t]:
      np.testing.assert_array_equal(seen[b, 1, t], plain[b, 1, t])
      continue
    keys = [j for j in range(start[b], min(t + 1, stop[b])) if t - j < window]
    expected = np.zeros(_T)
    expected[keys] = 1 / max(len(keys), 1)
    np.testing.assert_allclose(seen[b, 1, t], expected, atol=1e-7)
    np.testing.assert_allclose(
      out[b, t, 1], expected @ v[b, :, 1 // 2], atol=1e-5
    )


@pytest.mark.parametrize('mode', ablation.KNOCKOUTS)
def test_knockout_renormalises_what_is_left(qkv, intact, mode):
  out, seen = (np.asarray(x) for x in _run(*qkv, _MASK, _expand(mode)))
  gone = np.isin(_REGION, ablation.KNOCKOUTS[mode])
  if mode == 'knockout_visual':
    np.testing.assert_array_equal(gone, _CLASS == 0)
  left = intact[1][:, 1] * ~gone[:, None]
  total = left.sum(-1, keepdims=True)
  np.testing.assert_allclose(seen[:, 1], left / total, atol=1e-6)
  np.testing.assert_allclose(seen[:, 1].sum(-1), 1, atol=1e-6)
  assert not seen[:, 1][np.broadcast_to(gone[:, None], seen[:, 1].shape)].any()
  np.testing.assert_array_equal(seen[:, [0, 2, 3]], intact[1][:, [0, 2, 3]])


def test_a_row_with_nothing_left_to_read_writes_zero(qkv):
  """The picture comes first: row 0 could read itself alone."""
  region_BS = jnp.asarray(np.roll(_REGION, -1, axis=1), jnp.int8)
  control = ablation.Ablation(_HEADS, 'knockout_visual').expand(
    _L, _N, region_BS=region_BS
  )
  out, seen = (np.asarray(x) for x in _run(*qkv, _MASK, control))
  blind = np.isin(region_BS, regions.VISUAL)[:, 0]
  assert blind.all()
  assert not out[:, 0, 1].any() and not seen[:, 1, 0].any()
  assert np.isfinite(out).all() and out[:, 0, [0, 2, 3]].all()


@pytest.mark.parametrize('mode', ablation.MODES)
def test_the_empty_set_changes_no_bit(qkv, intact, mode):
  none = ablation.Ablation(heads_lib.HeadSet(), mode, rows='query')
  control = none.expand(_L, _N, **_extras())
  for one, other in zip(_run(*qkv, _MASK, control), intact):
    np.testing.assert_array_equal(one, other)
  control = ablation.sweep([none], _L, _N, **_extras()).at(0)
  for one, other in zip(_run(*qkv, _MASK, control), intact):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize('mode', ablation.MODES)
def test_a_sweep_holds_what_each_ablation_expands_to(mode):
  sets = [_HEADS, heads_lib.HeadSet.parse('0-0,0-1')]
  each = [ablation.Ablation(heads, mode, rows='query') for heads in sets]
  sweep = ablation.sweep(each, _L, _N, **_extras())
  assert len(sweep) == 2
  at = jax.jit(lambda sweep, x: sweep.at(x))
  for x, one in enumerate(each):
    expected = one.expand(_L, _N, **_extras())
    assert jax.tree.structure(expected) == jax.tree.structure(sweep.at(x))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(at(sweep, x))):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)


def test_a_sweep_is_of_one_kind():
  with pytest.raises(ValueError, match='0 kinds'):
    ablation.sweep([], _L, _N)
  kinds = [ablation.Ablation(_HEADS), ablation.Ablation(_HEADS, 'uniform')]
  with pytest.raises(ValueError, match='2 kinds'):
    ablation.sweep(kinds, _L, _N)


def test_a_step_of_generation_is_a_query_row_of_the_decode_phase():
  rows = rows_lib.Rows.decode_step()
  for phase in ablation.PHASES:
    for which in ablation.ROWS:
      control = ablation.Ablation(_HEADS, 'zero', phase, which).expand(
        _L, _N, rows=rows
      )
      chosen_BT = control.output.rows_BT
      assert chosen_BT is None or (chosen_BT.shape, chosen_BT.all()) == (
        (1, 1),
        True,
      )


def test_decode_is_refused_where_it_is_vacuous():
  decode = ablation.Ablation(_HEADS, phase='decode')
  ablation.refuse_vacuous(decode, [2, 3])
  ablation.refuse_vacuous(ablation.Ablation(_HEADS), [1, 1])
  with pytest.raises(errors.UserError, match='as 2 of 3 here are') as caught:
    ablation.refuse_vacuous(decode, [1, 3, 1])
  assert '\n' not in str(caught.value)
