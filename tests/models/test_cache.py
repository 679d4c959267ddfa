"""A prompt read in chunks gives what one pass gives.

Tolerance, on logits, on every head's attention and on masses: the differences'
root mean square 1e-6 of the spread, the largest 2e-5. (Products of another
shape sum in another order: the largest is some 4e-6 of the logits' spread. Two
splits that run the same program differ by nothing at all.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import inputs as inputs_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from corejax.kernels import dispatch
from corejax.models import rope
from corejax.models.llava import modeling
from helpers import tiny_llava

IMAGE = tiny_llava.IMAGE
_LAYERS, _HEADS = 3, 4
_ROWS = 7  # of a chunk
_SIZE = 31  # slots, more than any prompt here is long
# Three lengths: 25, 21, 12.
_SEQUENCES = [[4, IMAGE, 2, IMAGE, 1], [3, IMAGE, 9], [12]]
_LENGTHS = np.array([25, 21, 12])

_DENSE = masks.DENSE
CASES = {
  'llama': {},
  'mistral': dict(kind='mistral', windows=(6, 6, 6), n_kv_heads=1),
  'qwen2': dict(kind='qwen2', qkv_bias=True, windows=(_DENSE, _DENSE, 5)),
  'qwen3': dict(
    kind='qwen3',
    qk_norm=True,
    rope=rope.RopeConfig(8, kind='linear', factor=2.0),
  ),
}
_QUICK = {'xla_backend_optimization_level': 0}


@functools.cache
def _model(name: str) -> modeling.Llava:
  return tiny_llava.build(tiny_llava.config(**CASES[name]), seed=1)


@functools.cache
def _inputs() -> inputs_lib.Inputs:
  return tiny_llava.batch(tiny_llava.config(), _SEQUENCES)


@functools.cache
def _forward(attend=attention.reference):
  return jax.jit(
    functools.partial(modeling.forward, attend=attend), compiler_options=_QUICK
  )


def _random_control(n_slots: int) -> control_lib.HeadControl:
  """Every limit at once, another one for each layer, head and example."""
  rng = np.random.default_rng(5)
  shape = (_LAYERS, 3, _HEADS)
  region_BS = rng.integers(0, len(regions.REGIONS), (3, _SIZE))[:, :n_slots]
  rows_BT = rng.random((3, _SIZE))[:, :25] < 0.7
  return control_lib.HeadControl(
    control_lib.AttendControl(
      jnp.asarray(rng.integers(1, 30, shape), jnp.int32),
      jnp.asarray(rng.integers(0, 6, shape), jnp.int32),
      jnp.asarray(rng.choice([0.0, 1.0, 1.0, 1.5], shape), jnp.float32),
      jnp.asarray(rng.random((*shape, len(regions.REGIONS))) < 0.2),
      jnp.asarray(region_BS, jnp.int8),
      jnp.asarray(rows_BT),
    ),
    control_lib.OutputControl(
      jnp.asarray(rng.random(shape), jnp.float32),
      rows_BT=jnp.asarray(~rows_BT),
    ),
  )


def _every_row(n_rows: int, n_slots: int) -> probe_lib.Probe:
  """Each row of the chunk is a query set of its own; regions are random."""
  rng = np.random.default_rng(6)
  region_BS = rng.integers(0, len(regions.REGIONS), (3, _SIZE))[:, :n_slots]
  visual_BI = np.array([[4, 7, -1], [11, 3, 5], [0, 2, 10]])
  return probe_lib.Probe(
    jnp.broadcast_to(jnp.arange(n_rows), (3, n_rows)),
    jnp.eye(n_rows),
    jnp.asarray(region_BS, jnp.int8),
    jnp.asarray(visual_BI, jnp.int32),
    profile_set=0,
    weights=True,
  )


def _splits(seed: int):
  """(start_B, count_B) of chunks of at most _ROWS rows, another for each
  example; some are empty."""
  rng = np.random.default_rng(seed)
  start_B = np.zeros(3, int)
  while (start_B < _LENGTHS).any():
    count_B = rng.integers(0, _ROWS + 1, 3)
    count_B = np.minimum(count_B, _LENGTHS - start_B)
    yield start_B, count_B
    start_B = start_B + count_B


def _with_rows(control, start_B):
  """The control of a chunk: of all that it holds rows_BT alone counts rows."""
  row_BT = np.minimum(start_B[:, None] + np.arange(_ROWS), 24)

  def cut(part):
    rows_BT = np.take_along_axis(np.asarray(part.rows_BT), row_BT, 1)
    return dataclasses.replace(part, rows_BT=jnp.asarray(rows_BT))

  return control_lib.HeadControl(cut(control.attend), cut(control.output))


def _in_chunks(model, inputs, forward, seed, controlled):
  """Logits, attention and masses of every row, put together again.

  Returns:
    (logits [B, T, V], weights [L, B, N, T, S], mass [L, B, T, N, R], cache).
  """
  cache = modeling.new_cache(model, 3, _SIZE)
  length = inputs.tokens_BT.shape[1]
  logits = np.zeros((3, length, 64), np.float32)
  weights = np.zeros((_LAYERS, 3, _HEADS, length, _SIZE), np.float32)
  mass = np.zeros((_LAYERS, 3, length, _HEADS, len(regions.REGIONS)))
  for start_B, count_B in _splits(seed):
    control = None
    if controlled:
      control = _with_rows(_random_control(_SIZE), start_B)
    out = forward(
      model,
      tiny_llava.rows(inputs, start_B, count_B, _ROWS),
      control=control,
      probe=_every_row(_ROWS, _SIZE),
      cache=cache,
    )
    cache = out.cache
    for b, (start, count) in enumerate(zip(start_B, count_B)):
      here = slice(start, start + count)
      logits[b, here] = out.logits_BPV[b, :count]
      weights[:, b, :, here] = out.measured.weights_BNTS[:, b, :, :count]
      mass[:, b, here] = out.measured.mass_BQNR[:, b, :count]
  return logits, weights, mass, cache


def _close(ours, theirs):
  off = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
  spread = np.asarray(theirs, np.float64).std()
  assert np.sqrt(np.square(off).mean()) <= 1e-6 * spread
  assert np.abs(off).max() <= 2e-5 * spread


def _check(name, attend, controlled, seed):
  model, inputs = _model(name), _inputs()
  forward, real = _forward(attend), tiny_llava.real_rows(inputs)
  length = real.shape[1]
  whole = forward(
    model,
    inputs,
    control=_random_control(length) if controlled else None,
    probe=_every_row(length, length),
  )
  logits, weights, mass, cache = _in_chunks(
    model, inputs, forward, seed, controlled
  )
  assert 1 < np.std(whole.logits_BPV) < 10
  _close(logits[real], np.asarray(whole.logits_BPV)[real])
  assert not weights[..., length:].any()
  weights, seen = weights[..., :length], np.asarray(whole.measured.weights_BNTS)
  masses = np.asarray(whole.measured.mass_BQNR)
  for b, n_real in enumerate(_LENGTHS):
    _close(weights[:, b, :, :n_real], seen[:, b, :, :n_real])
    _close(mass[:, b, :n_real], masses[:, b, :n_real])
  np.testing.assert_array_equal(cache.length_B, _LENGTHS)


@pytest.mark.parametrize('name', ['mistral', 'qwen2', 'qwen3'])
def test_chunks_are_one_pass(name):
  _check(name, attention.reference, False, 0)


def test_all_splits_are_the_same():
  model, inputs = _model('qwen2'), _inputs()
  one, other = (
    _in_chunks(model, inputs, _forward(), seed, False) for seed in (0, 1)
  )
  for name, a, b in zip(('logits', 'weights', 'mass'), one, other):
    np.testing.assert_array_equal(a, b, err_msg=name)


def test_chunks_are_one_pass_under_controls():
  """Windows, sinks, scales, blocked regions, gates, on some rows only."""
  _check('llama', attention.reference, True, 2)


def test_chunks_are_one_pass_with_the_kernel():
  _check('mistral', dispatch.attend('xla'), True, 3)


def _suffix(start, count, size):
  inputs = _inputs()
  return tiny_llava.rows(inputs, np.array(start), np.array(count), size)


def test_questions_share_a_prefix():
  """Prefixes of two examples are read once, three suffixes go on from them."""
  model, inputs, forward = _model('mistral'), _inputs(), _forward()
  whole = np.asarray(forward(model, inputs).logits_BPV)
  prefix = _suffix([0, 0, 0], [20, 16, 0], 20)
  cache = modeling.new_cache(model, 3, _SIZE)
  cache = forward(model, prefix, cache=cache).cache
  cache = cache.take(jnp.array([1, 0, 1]))
  np.testing.assert_array_equal(cache.length_B, [16, 20, 16])
  suffix = _suffix([20, 16, 16], [5, 5, 5], 5)
  take = jnp.array([1, 0, 1])
  suffix = dataclasses.replace(
    suffix,
    tokens_BT=suffix.tokens_BT[take].at[2, 0].set(33),
    positions_BT=suffix.positions_BT[take],
    feature_BT=suffix.feature_BT[take],
  )
  logits = np.asarray(forward(model, suffix, cache=cache).logits_BPV)
  _close(logits[0], whole[1, 16:21])
  _close(logits[1], whole[0, 20:25])
  assert np.abs(logits[2] - logits[0]).max() > 0.1
  beyond = cache.take(jnp.array([3]))
  assert np.isnan(beyond.k_LBSKH).all() and beyond.length_B[0] == _SIZE


def test_a_full_cache_is_told_by_nan():
  """Padding behind the last slot harms nobody; a real row there is NaN."""
  model, forward = _model('llama'), _forward()
  whole = np.asarray(forward(model, _inputs()).logits_BPV)
  start, count = np.array([0, 0, 0]), np.array([19, 21, 12])
  cache = modeling.new_cache(model, 3, 22)
  cache = forward(model, _suffix(start, count, 22), cache=cache).cache
  chunk = _suffix(count, [6, 0, 0], 6)
  out = forward(model, chunk, cache=cache)
  logits = np.asarray(out.logits_BPV)
  _close(logits[0, :3], whole[0, 19:22])
  assert np.isnan(logits[0, 3:]).all()
  assert np.isfinite(logits[1:]).all()
  for before, after in (
    (cache.k_LBSKH, out.cache.k_LBSKH),
    (cache.v_LBSKH, out.cache.v_LBSKH),
  ):
    np.testing.assert_array_equal(before[:, 1:], after[:, 1:])
    assert np.isfinite(after).all()


def test_masks_with_a_cache():
  """Segments count slots and rows; an offset is the cache's business."""
  model, forward = _model('llama'), _forward()
  segment_BS = jnp.asarray(np.repeat([[0, 1, 2, 3]], 8, 1)[:, :_SIZE])
  segment_BS = jnp.broadcast_to(segment_BS, (3, _SIZE))

  def with_segments(inputs, start, n_slots):
    n_rows = inputs.tokens_BT.shape[1]
    mask = dataclasses.replace(
      inputs.mask,
      q_segment_BT=segment_BS[:, start : start + n_rows],
      kv_segment_BS=segment_BS[:, :n_slots],
    )
    return dataclasses.replace(inputs, mask=mask)

  whole = forward(model, with_segments(_inputs(), 0, 25))
  first = with_segments(_suffix([0] * 3, [13, 13, 12], 13), 0, _SIZE)
  cache = modeling.new_cache(model, 3, _SIZE)
  cache = forward(model, first, cache=cache).cache
  second = with_segments(_suffix([13] * 3, [12, 8, 0], 12), 13, _SIZE)
  logits = forward(model, second, cache=cache).logits_BPV
  _close(logits[0], whole.logits_BPV[0, 13:])
  _close(logits[1, :8], whole.logits_BPV[1, 13:21])
  mask = dataclasses.replace(second.mask, q_offset_B=cache.length_B)
  with pytest.raises(ValueError, match='q_offset_B must be None'):
    forward(model, dataclasses.replace(second, mask=mask), cache=cache)


@functools.cache
def _read_prefix():
  """(model, cache of the first rows, chunk of the others)."""
  model = _model('llama')
  count = np.array([20, 15, 8])
  cache = modeling.new_cache(model, 3, _SIZE)
  out = _forward()(model, _suffix([0] * 3, count, 20), cache=cache)
  return model, out.cache, _suffix(count, _LENGTHS - count, 6)


def _gated(gate_LN):
  return control_lib.HeadControl.intact(_LAYERS, _HEADS).with_gate(gate_LN)


def test_vmap_over_ablations_shares_the_cache():
  model, cache, chunk = _read_prefix()
  gates = np.ones((3, _LAYERS, _HEADS), np.float32)
  gates[1, 2, 1] = gates[2, 0] = 0

  @functools.partial(jax.jit, compiler_options=_QUICK)
  @functools.partial(jax.vmap, in_axes=(None, None, None, 0))
  def sweep(model, chunk, cache, gate):
    out = modeling.forward(model, chunk, control=_gated(gate), cache=cache)
    return out.logits_BPV, out.cache

  logits, caches = sweep(model, chunk, cache, jnp.asarray(gates))
  for index, gate in enumerate(gates):
    one = _forward()(model, chunk, control=_gated(gate), cache=cache)
    _close(logits[index], one.logits_BPV)
    _close(caches.k_LBSKH[index], one.cache.k_LBSKH)
  assert np.abs(logits[0] - logits[2]).max() > 0.1


def test_gradients_pass_through_a_cache():
  """By the gates, over both chunks, against those of one pass."""
  model, inputs = _model('llama'), _inputs()
  target = jnp.array([24, 20, 11])

  def score(logits_BPV):
    return jax.nn.log_softmax(logits_BPV)[:, 0, 7].sum()

  def whole(model, gate):
    out = modeling.forward(
      model, inputs, control=_gated(gate), logit_rows_BP=target[:, None]
    )
    return score(out.logits_BPV)

  count = jnp.array([20, 15, 8])
  first = _suffix([0] * 3, count, 20)
  second = _suffix(count, _LENGTHS - count, 6)

  def chunked(model, gate):
    control = _gated(gate)
    cache = modeling.new_cache(model, 3, _SIZE)
    cache = modeling.forward(model, first, control=control, cache=cache).cache
    out = modeling.forward(
      model,
      second,
      control=control,
      cache=cache,
      logit_rows_BP=(target - count)[:, None],
    )
    return score(out.logits_BPV)

  ones = jnp.ones((_LAYERS, _HEADS))
  expected, found = (
    jax.jit(jax.grad(f, argnums=1), compiler_options=_QUICK)(model, ones)
    for f in (whole, chunked)
  )
  assert np.abs(expected).min() > 1e-4
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_on_a_mesh():
  """Batch over 'data', heads over 'model', the cache cut like both."""
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(2, 2),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  model, cache, chunk = _read_prefix()
  pick = jnp.array([0, 1, 2, 0])
  chunk = jax.tree.map(lambda x: x[pick], dataclasses.replace(chunk, vision={}))
  chunk = dataclasses.replace(chunk, feature_BT=jnp.full((4, 6), -1))
  cache = cache.take(pick)
  expected = _forward()(model, chunk, cache=cache)

  def put(x, *axes):
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

  at_LBSKH = (None, 'data', None, 'model')
  out = _forward(dispatch.sharded(attention.reference, mesh))(
    jax.tree.map(put, model),
    jax.tree.map(lambda x: put(x, 'data'), chunk),
    cache=cache_lib.Cache(
      put(cache.k_LBSKH, *at_LBSKH),
      put(cache.v_LBSKH, *at_LBSKH),
      put(cache.length_B, 'data'),
    ),
  )
  _close(out.logits_BPV, expected.logits_BPV)
  _close(out.cache.k_LBSKH, expected.cache.k_LBSKH)
  assert out.cache.k_LBSKH.sharding.spec[1] == 'data'


def test_a_donated_cache_is_reused():
  model, cache, chunk = _read_prefix()
  step = jax.jit(
    lambda model, chunk, cache: modeling.forward(model, chunk, cache=cache),
    donate_argnames='cache',
    compiler_options=_QUICK,
  )
  compiled = step.lower(model, chunk, cache=cache).compile()
  kept = 2 * cache.k_LBSKH.nbytes
  assert compiled.memory_analysis().alias_size_in_bytes >= kept
