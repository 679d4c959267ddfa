"""Ablations through a whole model, without torch: what must hold bit for bit,
sweeps, phases, gradients."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import ablation
from corejax import heads as heads_lib
from corejax import probe as probe_lib
from corejax import regions
from corejax import replacement as replacement_lib
from corejax import rows as rows_lib
from corejax.kernels import dispatch
from corejax.models.llava import modeling
from helpers import tiny_llava

_L, _N, _H = 3, 4, 8
_HEADS = heads_lib.HeadSet.parse('0-1,0-2,1-0,1-3,2-2')
_NONE = heads_lib.HeadSet()
_STATES = [
  (mode, phase, rows)
  for mode in ablation.MODES
  for phase, rows in (('prefill+decode', 'all'), ('prefill+decode', 'query'))
]

# t t v*9 q q q t a a   and   t t t v*9 q q t, then two of padding.
_SIZES = [[2, tiny_llava.IMAGE, 6], [3, tiny_llava.IMAGE, 3]]
_LETTERS = ['ttvvvvvvvvvqqqtaa', 'tttvvvvvvvvvqqt..']
_PROMPT = 15
_REGION = np.array([[6, 6, *[0, 1, 5] * 3, 7, 7, 7, 8, 8, 8]] * 2)
_REGION[1, 2:15] = [6, *[0, 0, 5] * 3, 7, 7, 8]


def _rows() -> rows_lib.Rows:
  class_BT = np.array([['vqta.'.index(c) for c in s] for s in _LETTERS])
  decoded_BT = class_BT == 3
  query_BT = (class_BT == 1) | decoded_BT
  query_BT[:, _PROMPT - 1] = True
  class_BT[decoded_BT] = regions.OTHER_TEXT_ROW
  class_BT[class_BT == 4] = regions.PADDING_ROW
  return rows_lib.Rows(
    jnp.asarray(class_BT, jnp.int8),
    jnp.asarray(query_BT),
    jnp.asarray(decoded_BT),
  )


@dataclasses.dataclass(frozen=True)
class Setup:
  """A model, a batch, and what modes need."""

  model: modeling.Llava
  inputs: object
  rows: rows_lib.Rows
  region_BS: jax.Array
  mean: replacement_lib.Replacement
  donor: replacement_lib.Replacement
  captured: probe_lib.Measured

  def extras(self, mode):
    replacement = {'mean': self.mean, 'resample': self.donor}.get(mode)
    return dict(
      rows=self.rows, region_BS=self.region_BS, replacement=replacement
    )

  def expand(self, mode, phase='prefill+decode', rows='all', heads=_HEADS):
    what = ablation.Ablation(heads, mode, phase, rows)
    return what.expand(_L, _N, **self.extras(mode))

  def empty(self, *kind):
    """No head, in the very program that ablates some."""
    none = ablation.Ablation(_NONE, *kind)
    return ablation.sweep([none], _L, _N, **self.extras(kind[0])).at(0)


_jitted = jax.jit(modeling.forward, static_argnames=('attend',))


def _logits(model, inputs, **kw):
  return np.asarray(_jitted(model, inputs, **kw).logits_BPV)


@pytest.fixture(scope='module')
def setup():
  config = tiny_llava.config()
  model = tiny_llava.build(config, seed=1)
  inputs = tiny_llava.batch(config, _SIZES, seed=2)
  others = tiny_llava.batch(config, _SIZES, seed=3)
  rows = _rows()
  region_BS = jnp.asarray(_REGION, jnp.int8)
  probe = probe_lib.Probe(
    jnp.zeros((2, 1), jnp.int32),
    jnp.ones((1, 3)),
    region_BS,
    class_BT=rows.class_BT,
    outputs=True,
  )
  own = _jitted(model, inputs, probe=probe).measured
  other = _jitted(model, others, probe=probe).measured
  running = replacement_lib.MeanOutputs.empty(_L, _N, _H)
  running = running.add(other.class_mean_BCNH, rows.counts_BC)
  return Setup(
    model,
    inputs,
    rows,
    region_BS,
    replacement_lib.by_class(running.mean(), rows),
    replacement_lib.by_donor(other.out_BTNH, rows, rows, [0, 1]),
    own,
  )


@pytest.fixture(scope='module')
def intact(setup):
  return _logits(setup.model, setup.inputs)


def _real(setup):
  return tiny_llava.real_rows(setup.inputs)


@pytest.mark.parametrize('mode, phase, rows', _STATES)
def test_the_empty_set_is_bit_equal(setup, intact, mode, phase, rows):
  control = setup.expand(mode, phase, rows, _NONE)
  got = _logits(setup.model, setup.inputs, control=control)
  np.testing.assert_array_equal(got, intact)
  control = setup.empty(mode, phase, rows)
  got = _logits(setup.model, setup.inputs, control=control)
  np.testing.assert_allclose(got, intact, atol=1e-5 * intact.std())


@pytest.mark.parametrize('mode, phase, rows', _STATES)
def test_no_mode_reads_a_future_key(setup, intact, mode, phase, rows):
  """Other tokens and another picture from position t on: rows before t, whose
  heads are ablated, keep every bit. The mode's own inputs stay."""
  control = setup.expand(mode, phase, rows)
  before = _logits(setup.model, setup.inputs, control=control)
  changed = np.abs(before - intact).max(-1)
  assert changed[0, _PROMPT - 1] > 1e-2
  rng = np.random.default_rng(0)
  for t in (5, 12, 15):
    tokens_BT = np.array(setup.inputs.tokens_BT)
    text = np.asarray(setup.inputs.feature_BT[:, t:]) < 0
    tokens_BT[:, t:] = np.where(
      text, rng.integers(3, 60, text.shape), tokens_BT[:, t:]
    )
    # Visual tokens after t show other features, those before keep theirs.
    features_ID = jnp.concatenate([_features(setup), _features(setup)[::-1]])
    later = np.asarray(setup.inputs.feature_BT) + len(features_ID) // 2
    feature_BT = np.where(
      (np.arange(tokens_BT.shape[1]) >= t)
      & (np.asarray(setup.inputs.feature_BT) >= 0),
      later,
      setup.inputs.feature_BT,
    )
    inputs = dataclasses.replace(
      setup.inputs,
      tokens_BT=jnp.asarray(tokens_BT),
      features_ID=features_ID,
      feature_BT=jnp.asarray(feature_BT, jnp.int32),
    )
    same = dataclasses.replace(setup.inputs, features_ID=features_ID)
    base = _logits(setup.model, same, control=control)
    after = _logits(setup.model, inputs, control=control)
    np.testing.assert_array_equal(after[:, :t], base[:, :t])
    assert np.abs(after[0, t:] - base[0, t:]).max(-1).min() > 1e-3


@functools.cache
def _see():
  return jax.jit(modeling.see)


def _features(setup):
  features_MID = _see()(setup.model, setup.inputs.vision)
  return features_MID.reshape(-1, features_MID.shape[-1])


def test_heads_on_their_own_output_are_intact(setup, intact):
  """Resampled from the very same example: what is captured is what is written,
  in every layer."""
  every = heads_lib.HeadSet.from_mask(np.ones((_L, _N), bool))
  own = replacement_lib.by_donor(
    setup.captured.out_BTNH, setup.rows, setup.rows, [0, 1]
  )
  control = ablation.Ablation(every, 'resample').expand(_L, _N, replacement=own)
  got = _logits(setup.model, setup.inputs, control=control)
  real = _real(setup)
  np.testing.assert_allclose(got[real], intact[real], atol=2e-5)


@pytest.mark.parametrize('loop', ['vmap', 'map'])
@pytest.mark.parametrize('mode', ['zero', 'mean', 'knockout_visual'])
def test_a_sweep_is_each_ablation_by_itself(setup, mode, loop):
  sets = [_HEADS, _NONE, *(heads_lib.HeadSet([(x % 3, x % 4)]) for x in (1, 6))]
  each = [ablation.Ablation(heads, mode) for heads in sets]
  traces = []

  @jax.jit
  def run(model, inputs, sweep):
    def one(x):
      traces.append(x)
      return modeling.forward(model, inputs, control=sweep.at(x)).logits_BPV

    count = jnp.arange(len(sweep))
    return jax.vmap(one)(count) if loop == 'vmap' else jax.lax.map(one, count)

  swept = np.asarray(
    run(
      setup.model,
      setup.inputs,
      ablation.sweep(each, _L, _N, **setup.extras(mode)),
    )
  )
  alone = [
    _logits(
      setup.model,
      setup.inputs,
      control=what.expand(_L, _N, **setup.extras(mode)),
    )
    for what in each
  ]
  np.testing.assert_allclose(swept, alone, atol=1e-5 * np.std(alone))
  assert np.abs(swept[0] - swept[1]).max() > 0.1
  n_traces = len(traces)
  back = ablation.sweep(each[::-1], _L, _N, **setup.extras(mode))
  again = run(setup.model, setup.inputs, back)
  np.testing.assert_allclose(again, alone[::-1], atol=1e-5 * np.std(alone))
  assert len(traces) == n_traces


def test_one_program_for_any_number_of_sets(setup):
  traces = []

  @jax.jit
  def run(model, inputs, control):
    traces.append(1)
    return modeling.forward(model, inputs, control=control).logits_BPV

  for count in (1, 3, 40):
    rng = np.random.default_rng(count)
    sets = [
      heads_lib.HeadSet.from_mask(rng.random((_L, _N)) < 0.3)
      for _ in range(count)
    ]
    sweep = ablation.sweep(list(map(ablation.Ablation, sets)), _L, _N)
    for x in range(0, count, 7):
      run(setup.model, setup.inputs, sweep.at(x))
  assert len(traces) == 1


def test_a_static_ablation_compiles_once_whatever_the_order(setup):
  traces = []

  @functools.partial(jax.jit, static_argnames='what')
  def run(model, inputs, what):
    traces.append(what)
    control = what.expand(_L, _N)
    return modeling.forward(model, inputs, control=control).logits_BPV

  pairs = list(_HEADS)
  found = [
    np.asarray(
      run(
        setup.model,
        setup.inputs,
        ablation.Ablation(heads_lib.HeadSet(order)),
      )
    )
    for order in (pairs, pairs[::-1], pairs[2:] + pairs[:2])
  ]
  assert len(traces) == 1
  np.testing.assert_array_equal(found[0], found[2])
  control = setup.expand('zero')
  given = _logits(setup.model, setup.inputs, control=control)
  np.testing.assert_allclose(found[0], given, atol=1e-5 * given.std())


@pytest.mark.parametrize('mode', ['zero', 'mean', 'uniform', 'knockout_visual'])
def test_the_decode_phase_of_a_forced_answer_is_decoding(setup, intact, mode):
  """One pass with rows after the prompt ablated = the prompt read intact, then
  its answer token by token under the same control."""
  control = setup.expand(mode, 'decode')
  forced = _logits(setup.model, setup.inputs, control=control)[0]
  empty = setup.empty(mode, 'decode', 'all')
  same = _logits(setup.model, setup.inputs, control=empty)[0]
  np.testing.assert_array_equal(forced[:_PROMPT], same[:_PROMPT])
  assert np.abs(forced[_PROMPT:] - intact[0, _PROMPT:]).max(-1).min() > 1e-2

  one = jax.tree.map(lambda x: x[:1], setup.inputs)
  cache = modeling.new_cache(setup.model, 1, 17)
  chunk = functools.partial(tiny_llava.rows, one)
  prompt = chunk(np.array([0]), np.array([_PROMPT]), _PROMPT)
  out = _jitted(setup.model, prompt, cache=cache)
  np.testing.assert_allclose(out.logits_BPV[0], intact[0, :_PROMPT], atol=2e-5)
  step = rows_lib.Rows.decode_step()
  replacement = None
  if mode == 'mean':
    table_LCNH = setup.mean.out_LBTNH[:, 0]
    replacement = replacement_lib.by_class(table_LCNH, step)
  control = ablation.Ablation(_HEADS, mode, 'decode', 'query').expand(
    _L,
    _N,
    rows=step,
    region_BS=setup.region_BS[:1],
    replacement=replacement,
  )
  for t in (_PROMPT, _PROMPT + 1):
    row = chunk(np.array([t]), np.array([1]), 1)
    out = _jitted(setup.model, row, cache=out.cache, control=control)
    np.testing.assert_allclose(out.logits_BPV[0, 0], forced[t], atol=2e-5)


@pytest.mark.parametrize('mode', ['uniform', 'knockout_evidence'])
def test_kernels_ablate_the_same_rows(setup, mode):
  control = setup.expand(mode, rows='query')
  real = _real(setup)
  got, want = (
    _logits(setup.model, setup.inputs, control=control, **kw)[real]
    for kw in (dict(attend=dispatch.attend()), {})
  )
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_head_that_writes_nan_is_removed(setup):
  """NaN values in the heads 2 and 3 of layer 1, which share their values."""
  poisoned = nnx.clone(setup.model)
  weight = poisoned.language.layers.attn.v.weight
  weight[...] = weight[...].at[1, 1].set(jnp.nan)
  heads = heads_lib.HeadSet.parse('1-2,1-3')
  for mode in ('zero', 'mean', 'resample'):
    control = setup.expand(mode, heads=heads)
    got, want = (
      _logits(model, setup.inputs, control=control)
      for model in (poisoned, setup.model)
    )
    np.testing.assert_array_equal(got, want)
  control = setup.expand('zero', heads=heads_lib.HeadSet.parse('1-2'))
  assert np.isnan(_logits(poisoned, setup.inputs, control=control)).all()


def test_gradients_by_the_gates(setup):
  """Float32 against Richardson's extrapolation of central differences: steps
  of .04 and .08 leave an error of the order of 1e-4, mostly of rounding."""
  control = setup.expand('mean', rows='query')

  @jax.jit
  def value(gate_LN):
    out = modeling.forward(
      setup.model, setup.inputs, control=control.with_gate(gate_LN)
    )
    return jax.nn.log_softmax(out.logits_BPV[0, _PROMPT - 1])[7]

  gradient = jax.jit(jax.grad(value))
  for at in (0.0, 0.6, 1.0):
    gates = jnp.full((_L, _N), at)
    slope = np.asarray(gradient(gates))
    for layer, head in np.ndindex(_L, _N):
      unit = np.zeros((_L, _N), np.float32)
      unit[layer, head] = 1
      fine, coarse = (
        (value(gates + h * unit) - value(gates - h * unit)) / (2 * h)
        for h in (0.04, 0.08)
      )
      numeric = (4 * fine - coarse) / 3
      assert abs(numeric - slope[layer, head]) < 1e-3 * (1 + abs(numeric))
    assert np.abs(slope).min() > 1e-3
