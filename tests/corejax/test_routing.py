"""Routing: the heads that lose most are chosen, within the layer's budget."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import control
from corejax import heads
from corejax import masks
from corejax import plan
from corejax import regions
from corejax import routing

B, T, N, K, H = 2, 24, 4, 2, 8
WINDOW, SINK, ROWS = 5, 2, 3
RNG = np.random.default_rng(0)
Q, KEYS, V = (
  jnp.asarray(RNG.normal(size=(B, T, n, H)), jnp.float32) for n in (N, K, K)
)
REGION_BS = np.full((B, T), regions.OTHER_TEXT, np.int8)
REGION_BS[:, 3:15] = regions.OTHER_VISUAL
REGION_BS[0, 6] = regions.EVIDENCE
REGION_BS[1, 7:9] = regions.DISTRACTORS[0]
LENGTHS = (24, 19)  # the second sequence is padded on the right


def _mask(**more):
  return masks.AttnMask(kv_len_B=jnp.array(LENGTHS), **more)


def _brute(score):
  """[B, N], row by row and key by key, from the whole attention matrix."""
  n_kv = N // K
  found = np.zeros((B, N))
  for b in range(B):
    for n in range(N):
      lost = np.zeros((ROWS, T))
      for p, t in enumerate(range(LENGTHS[b] - ROWS, LENGTHS[b])):
        s = np.asarray(KEYS)[b, : t + 1, n // n_kv] @ np.asarray(Q)[b, t, n]
        a = np.exp(s / np.sqrt(H) - (s / np.sqrt(H)).max())
        a /= a.sum()
        for j in range(t + 1):
          far = t - j >= WINDOW and j >= SINK
          if far and REGION_BS[b, j] in regions.VISUAL:
            lost[p, j] = a[j]
      mean = lost.mean(0)
      found[b, n] = mean.max() if score == 'peak' else mean.sum()
  return found


@pytest.mark.parametrize('score', routing.SCORES)
def test_scores_are_those_counted_one_by_one(score):
  found = routing.scores(
    Q,
    KEYS,
    _mask(),
    jnp.asarray(REGION_BS),
    window=WINDOW,
    sink=SINK,
    rows=ROWS,
    score=score,
  )
  np.testing.assert_allclose(found, _brute(score), atol=2e-6)


def test_scores_of_a_left_padded_sequence_are_those_without_padding():
  settings = dict(window=WINDOW, sink=SINK, rows=ROWS)
  alone = routing.scores(
    Q[:1], KEYS[:1], masks.AttnMask(), jnp.asarray(REGION_BS[:1]), **settings
  )
  pad = 7

  def padded(x, fill):
    rest = jnp.full((1, pad, *x.shape[2:]), fill, x.dtype)
    return jnp.concatenate([rest, x[:1]], 1)

  moved = routing.scores(
    padded(Q, 3.0),
    padded(KEYS, 3.0),
    masks.AttnMask(kv_start_B=jnp.array([pad])),
    padded(jnp.asarray(REGION_BS), regions.OTHER_VISUAL),
    **settings,
  )
  np.testing.assert_allclose(moved, alone, atol=2e-6)


def test_rows_that_are_not_there_do_not_count():
  short = masks.AttnMask(kv_len_B=jnp.array([2, 24]))
  rows = routing.last_rows(short, B, T, T, 4)
  np.testing.assert_array_equal(rows, [[-1, -1, 0, 1], [20, 21, 22, 23]])


def test_an_answer_that_is_forced_does_not_choose():
  """Rows behind the prompt would tell the heads what to look for."""
  end = 15
  settings = dict(window=WINDOW, sink=SINK, rows=ROWS)
  behind_BS = REGION_BS.copy()
  behind_BS[1, end : LENGTHS[1]] = routing.BEHIND
  found = routing.scores(Q, KEYS, _mask(), jnp.asarray(behind_BS), **settings)
  prompts = masks.AttnMask(kv_len_B=jnp.array([LENGTHS[0], end]))
  want = routing.scores(Q, KEYS, prompts, jnp.asarray(REGION_BS), **settings)
  np.testing.assert_allclose(found, want, atol=1e-6)
  chunk = masks.AttnMask(q_offset_B=jnp.array([4, 4]))
  rows = routing.last_rows(chunk, B, T - 4, T, 2, jnp.asarray(behind_BS))
  np.testing.assert_array_equal(rows, [[18, 19], [9, 10]])


def test_choice_is_the_best_and_ties_go_by_number():
  score_BN = jnp.array([[0.1, 0.5, 0.5, 0.2], [0.0, 0.0, 0.0, 0.0]])
  chosen = routing.choose(score_BN, jnp.array([[1]]))
  np.testing.assert_array_equal(chosen, [[0, 1, 0, 0], [1, 0, 0, 0]])
  chosen = routing.choose(score_BN, jnp.array([[3], [0]]))
  np.testing.assert_array_equal(chosen, [[0, 1, 1, 1], [0, 0, 0, 0]])


def _layer(dense, region=True):
  made = plan.HeadPlan(
    heads.HeadSet((0, n) for n in dense), WINDOW, SINK
  ).expand(1, N)
  region_BS = jnp.asarray(REGION_BS) if region else None
  return control.AttendControl(
    made.attend.window_BN[0],
    made.attend.sink_BN[0],
    made.attend.score_scale_BN[0],
    region_BS=region_BS,
  )


@pytest.mark.parametrize('budget', [0, 1, 2, 4])
def test_routed_attention_is_that_of_the_chosen_heads(budget):
  seen = []

  def spy(q, k, v, mask, control=None, probe=None):
    seen.append(control)
    return attention.reference(q, k, v, mask, control, probe)

  route = routing.router(spy, WINDOW, SINK, ROWS)
  # Which heads the plan has does not matter, how many does.
  out = route(Q, KEYS, V, _mask(), _layer(range(budget)))
  order_BN = np.argsort(-_brute('mass'), axis=1)
  for b in range(B):
    want = {int(n) for n in order_BN[b, :budget]}
    window_N = np.asarray(seen[0].window_BN)[b]
    sink_N = np.asarray(seen[0].sink_BN)[b]
    assert {n for n in range(N) if window_N[n] == masks.DENSE} == want
    assert set(window_N) <= {masks.DENSE, WINDOW}
    assert all(s == (0 if n in want else SINK) for n, s in enumerate(sink_N))
    alone = attention.reference(
      Q[b : b + 1],
      KEYS[b : b + 1],
      V[b : b + 1],
      masks.AttnMask(kv_len_B=jnp.array(LENGTHS[b : b + 1])),
      _layer(want, region=False),
    )
    np.testing.assert_allclose(
      out.out_BTNH[b, : LENGTHS[b]],
      alone.out_BTNH[0, : LENGTHS[b]],
      atol=2e-6,
    )


def test_one_program_for_all_budgets():
  route = routing.router(attention.reference, WINDOW, SINK, ROWS)
  assert route is routing.router(attention.reference, WINDOW, SINK, ROWS)

  @functools.partial(jax.jit, static_argnames='attend')
  def run(layer, attend):
    return attend(Q, KEYS, V, _mask(), layer).out_BTNH

  outs = [run(_layer(range(n)), attend=route) for n in (0, 1, 2, 4)]
  assert run._cache_size() == 1
  assert all((a != b).any() for a, b in zip(outs, outs[1:]))


def test_without_a_plan_nothing_is_routed():
  route = routing.router(attention.reference, WINDOW, SINK)
  np.testing.assert_array_equal(
    route(Q, KEYS, V, _mask()).out_BTNH,
    attention.reference(Q, KEYS, V, _mask()).out_BTNH,
  )


def test_what_a_router_cannot_do_without():
  route = routing.router(attention.reference, WINDOW, SINK)
  with pytest.raises(ValueError, match='needs a control with region_BS'):
    route(Q, KEYS, V, _mask(), _layer([0], region=False))
  with pytest.raises(ValueError, match="'best' is none of"):
    routing.router(attention.reference, WINDOW, SINK, 3, 'best')
