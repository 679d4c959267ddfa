"""Greedy decoding without torch: phases, positions, ends, settings.

That the tokens are transformers' is judged in test_generate_parity.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import attention
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import errors
from corejax import inputs as inputs_lib
from corejax import masks
from corejax import regions
from corejax import scoring
from corejax.data import sources
from corejax.kernels import dispatch
from corejax.models import checkpoint
from corejax.models import generate as generate_lib
from corejax.models import registry
from corejax.models.llava import modeling
from helpers import tiny_llava

IMAGE = tiny_llava.IMAGE
_LAYERS, _HEADS, _MAX = 3, 4, 6


@functools.cache
def _model(dtype='float32'):
  return tiny_llava.build(tiny_llava.config(), seed=3, dtype=dtype)


@functools.cache
def _inputs():
  return tiny_llava.batch(
    tiny_llava.config(), [[4, IMAGE, 3, IMAGE, 2], [3, IMAGE, 5]]
  )


def _run(model, inputs, control=None, decode_control=None, **kw):
  static: Any = dict(
    forward=modeling.forward,
    new_cache=modeling.new_cache,
    attend=attention.reference,
    max_tokens=_MAX,
    eos_ids=(),
  )
  return generate_lib.run(
    model, inputs, control, decode_control, **(static | kw)
  )


def _toy(model, inputs, *, cache, logit_rows_BP=None, **kw):
  """Says the position of the row it is asked for, all axes added up."""
  del kw
  jax.debug.callback(model.append, inputs.tokens_BT)
  position = inputs.positions_BT
  if position.ndim == 3:
    position = position.sum(1)
  if logit_rows_BP is not None:
    position = jnp.take_along_axis(position, logit_rows_BP, axis=1)
  n_rows = inputs.mask.kv_len_B
  length_B = cache.length_B + (
    inputs.tokens_BT.shape[1] if n_rows is None else n_rows
  )
  return inputs_lib.Output(
    10.0 * jax.nn.one_hot(position, 64),
    cache=dataclasses.replace(cache, length_B=length_B),
  )


def _toy_cache(model, batch, size):
  del model
  return cache_lib.Cache.empty(
    n_layers=1, batch=batch, size=size, n_kv_heads=1, head_dim=2, dtype='f4'
  )


def _count(positions, mask, eos_ids=(), max_tokens=4):
  """(what the toy says, tokens that went in)."""
  seen = []
  positions = jnp.asarray(positions, jnp.int32)
  batch, length = positions.shape[0], positions.shape[-1]
  inputs = inputs_lib.Inputs(
    jnp.full((batch, length), 9),
    positions,
    mask,
    {},
    jnp.full((batch, length), -1),
  )

  def forward(model, *args, **kw):
    return _toy(seen, *args, **kw)

  made = _run(
    jnp.zeros(()),
    inputs,
    forward=forward,
    new_cache=_toy_cache,
    max_tokens=max_tokens,
    eos_ids=eos_ids,
  )
  jax.effects_barrier()
  return made, seen


def test_positions_go_on():
  """From each example's last real row, whichever side is padded."""
  right = masks.AttnMask(kv_len_B=jnp.array([4, 2]))
  made, _ = _count([[0, 1, 2, 3], [0, 1, 0, 0]], right)
  np.testing.assert_array_equal(made.tokens_BA, [[3, 4, 5, 6], [1, 2, 3, 4]])
  left = masks.AttnMask(kv_start_B=jnp.array([0, 2]))
  made, _ = _count([[0, 1, 2, 3], [0, 0, 0, 1]], left)
  np.testing.assert_array_equal(made.tokens_BA, [[3, 4, 5, 6], [1, 2, 3, 4]])


def test_positions_of_three_axes_go_on_from_the_largest():
  """A picture of 2 x 3 at 1..: time 1, rows 1 2, columns 1 2 3; text at 4."""
  axes = [[0, 1, 1, 4], [0, 1, 2, 4], [0, 1, 3, 4]]
  short = [[0, 1, 0, 0], [0, 2, 0, 0], [0, 3, 0, 0]]
  mask = masks.AttnMask(kv_len_B=jnp.array([4, 2]))
  made, _ = _count([axes, short], mask)
  expected = [[12, 15, 18, 21], [6, 12, 15, 18]]
  np.testing.assert_array_equal(made.tokens_BA, expected)


def test_ends():
  """No step more than needed; what comes after an end is not said."""
  mask = masks.AttnMask(kv_len_B=jnp.array([3, 1]))
  made, seen = _count([[0, 1, 2], [0, 0, 0]], mask, (4, 1, 40), max_tokens=9)
  expected = np.full((2, 9), -1)
  expected[0, :3], expected[1, :2] = [2, 3, 4], [0, 1]
  np.testing.assert_array_equal(made.tokens_BA, expected)
  np.testing.assert_array_equal(made.length_B, [3, 2])
  assert made.ended_B.all()
  assert [tokens.shape for tokens in seen] == [(2, 3), (2, 1), (2, 1)]
  np.testing.assert_array_equal(np.concatenate(seen[1:], 1)[0], [2, 3])
  # One token is 10 above 63 others.
  each = -np.log1p(63 * np.exp(-10.0))
  np.testing.assert_allclose(made.logprob_B, [3 * each, 2 * each], rtol=1e-3)
  made, seen = _count([[0, 1, 2], [0, 0, 0]], mask, (), max_tokens=1)
  np.testing.assert_array_equal(made.tokens_BA, [[2], [0]])
  assert len(seen) == 1 and not made.ended_B.any()


def _ablation(n_keys: int) -> control_lib.HeadControl:
  """A gate at 0, a window, and a region that one head may not read."""
  control = control_lib.HeadControl.intact(_LAYERS, _HEADS)
  blocked = jnp.zeros((_LAYERS, 1, _HEADS, len(regions.REGIONS)), bool)
  region_BS = jnp.full((2, n_keys), regions.OTHER_TEXT, jnp.int8)
  region_BS = region_BS.at[:, 4:20].set(regions.EVIDENCE)
  return control_lib.HeadControl(
    dataclasses.replace(
      control.attend,
      window_BN=control.attend.window_BN.at[1, 0, 2].set(2),
      blocked_BNR=blocked.at[0, 0, :2, regions.EVIDENCE].set(True),
      region_BS=region_BS,
    ),
    dataclasses.replace(
      control.output,
      gate_BN=control.output.gate_BN.at[2, 0, 1].set(0.0).at[1, 0].set(0.5),
    ),
  )


@functools.cache
def _forced():
  """Log p [B, T, V] of prompt and answer in one pass, on chosen rows."""
  return jax.jit(
    lambda model, inputs, control: jax.nn.log_softmax(
      modeling.forward(model, inputs, control=control).logits_BPV
    )
  )


def test_phases():
  """As one pass over prompt and answer in which the control's rows are those
  of the phase; each row then says what comes next."""
  model, inputs = _model(), _inputs()
  ablation = _ablation(inputs.tokens_BT.shape[1])
  # Intact, but of the same structure: one compilation for all phases.
  plain = control_lib.HeadControl.intact(_LAYERS, _HEADS)
  blocked_BNR = jnp.zeros_like(ablation.attend.blocked_BNR)
  intact = control_lib.HeadControl(
    dataclasses.replace(
      plain.attend, blocked_BNR=blocked_BNR, region_BS=ablation.attend.region_BS
    ),
    plain.output,
  )
  said = []
  for prefill in (False, True):
    for decode in (False, True):
      made = _run(
        model,
        inputs,
        ablation if prefill else intact,
        ablation if decode else intact,
      )
      _check_phase(model, inputs, made, prefill, decode)
      said.append(np.asarray(made.logprob_B))
  apart = np.abs(np.subtract.outer(said, said)).diagonal(axis1=1, axis2=3)
  assert apart[~np.eye(4, dtype=bool)].min() > 1e-2


def _check_phase(model, inputs, made, prefill, decode):
  whole, is_prompt_BT = _append(inputs, np.asarray(made.tokens_BA))
  rows_BT = jnp.asarray(np.where(is_prompt_BT, prefill, decode))
  control = _ablation(whole.tokens_BT.shape[1])
  control = control_lib.HeadControl(
    dataclasses.replace(control.attend, rows_BT=rows_BT),
    dataclasses.replace(control.output, rows_BT=rows_BT),
  )
  logp_BTV = np.asarray(_forced()(model, whole, control))
  for b, size in enumerate(np.asarray(inputs.mask.kv_len_B)):
    logp_AV = logp_BTV[b, size - 1 : size - 1 + _MAX]
    np.testing.assert_array_equal(logp_AV.argmax(-1), made.tokens_BA[b])
    assert abs(logp_AV.max(-1).sum() - made.logprob_B[b]) <= 1e-4


def _append(inputs, tokens_BA):
  """The batch with answers behind its prompts, and which rows are prompt."""
  size_B = np.asarray(inputs.mask.kv_len_B)
  batch, length = inputs.tokens_BT.shape
  total = length + tokens_BA.shape[1]
  tokens, positions, feature = (
    np.full((batch, total), fill) for fill in (0, 0, -1)
  )
  for b, size in enumerate(size_B):
    end = size + tokens_BA.shape[1]
    tokens[b, :size] = inputs.tokens_BT[b, :size]
    tokens[b, size:end] = tokens_BA[b]
    positions[b, :end] = np.arange(end)
    feature[b, :size] = inputs.feature_BT[b, :size]
  whole = dataclasses.replace(
    inputs,
    tokens_BT=jnp.asarray(tokens),
    positions_BT=jnp.asarray(positions),
    feature_BT=jnp.asarray(feature),
    mask=masks.AttnMask(kv_len_B=jnp.asarray(size_B + tokens_BA.shape[1])),
  )
  return whole, np.arange(total) < size_B[:, None]


def test_one_compilation_for_all_head_sets():
  traces = []

  def forward(*args, **kw):
    traces.append(1)
    return modeling.forward(*args, **kw)

  said = []
  for layer in range(_LAYERS):
    gate_LN = jnp.ones((_LAYERS, _HEADS)).at[layer].set(0.0)
    control = control_lib.HeadControl.intact(_LAYERS, _HEADS).with_gate(gate_LN)
    made = _run(_model(), _inputs(), control, control, forward=forward)
    said.append(np.asarray(made.logprob_B))
    if layer == 0:
      first = len(traces)
  assert 0 < first == len(traces)
  assert np.abs(said[0] - said[1]).min() > 1e-3


def test_bfloat16():
  made = _run(_model('bfloat16'), _inputs())
  assert made.logprob_B.dtype == jnp.float32
  assert np.isfinite(made.logprob_B).all() and (made.logprob_B < 0).all()
  assert ((made.tokens_BA >= 0) & (made.tokens_BA < 64)).all()


def test_on_a_mesh():
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(2, 2),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  # Text alone: the tower's 5 heads do not divide.
  inputs = tiny_llava.batch(tiny_llava.config(), [[14], [9]])
  alone = _run(_model(), inputs)

  def put(x, *axes):
    spec = jax.sharding.PartitionSpec(*axes)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

  spread = _run(
    jax.tree.map(put, _model()),
    jax.tree.map(lambda x: put(x, 'data'), inputs),
    attend=dispatch.sharded(attention.reference, mesh),
  )
  np.testing.assert_array_equal(spread.tokens_BA, alone.tokens_BA)
  np.testing.assert_allclose(spread.logprob_B, alone.logprob_B, atol=1e-5)


def test_refusals():
  loaded: Any = object()
  with pytest.raises(errors.UserError, match='max_tokens=0: expected 1 or'):
    generate_lib.generate(loaded, _inputs(), max_tokens=0)
  packed = masks.AttnMask(
    q_segment_BT=jnp.zeros((2, 4)), kv_segment_BS=jnp.zeros((2, 4))
  )
  with pytest.raises(ValueError, match='prompts in segments'):
    _run(_model(), dataclasses.replace(_inputs(), mask=packed))
  intact = control_lib.HeadControl.intact(_LAYERS, _HEADS)
  for part, name in (
    ('attend', 'rows_BT'),
    ('output', 'rows_BT'),
    ('output', 'source_BT'),
  ):
    edited = dataclasses.replace(
      getattr(intact, part), **{name: jnp.ones((1, 7), jnp.int32)}
    )
    with pytest.raises(ValueError, match='names rows of the prompt'):
      _run(
        _model(),
        _inputs(),
        None,
        dataclasses.replace(intact, **{part: edited}),
      )
  means = jnp.zeros((_LAYERS, 1, 7, _HEADS, 8))
  output = dataclasses.replace(intact.output, replacement_BTNH=means)
  with pytest.raises(ValueError, match='names rows of the prompt'):
    _run(_model(), _inputs(), None, dataclasses.replace(intact, output=output))


def test_a_trained_model_answers(checkout):
  """Whole way: scenes -> prompts -> tokens -> text -> score."""
  folder = checkout / 'models' / 'organisms' / 'scenes-8x8'
  loaded = registry.get('llava_flax').load(folder)
  assert loaded.eos_ids == (2,)
  source = sources.load('scenes_referring', seed=7, limit=6)
  examples = [source[i] for i in range(len(source))]
  prompts = [loaded.processor.encode(e).prompt() for e in examples]
  assert all(len(p.tokens_T) == p.prompt_len for p in prompts)
  inputs = loaded.processor.collate(prompts, 48, 6)
  made = generate_lib.generate(loaded, inputs, max_tokens=1)
  texts = made.texts(loaded.processor.tokenizer)
  scores = [scoring.score(e, text) for e, text in zip(examples, texts)]
  assert sum(scores) >= 5, texts
  assert scoring.score(examples[0], 'nothing of the sort') == 0


@pytest.mark.parametrize(
  'files, expected',
  [
    ({'generation_config.json': {'eos_token_id': 7}}, (7,)),
    ({'generation_config.json': {'eos_token_id': [9, 5, 9]}}, (5, 9)),
    ({'generation_config.json': {}}, (3,)),
    ({'generation_config.json': {}, 'top': [4]}, (4,)),
    ({}, (3,)),
    ({'text': None}, ()),
  ],
)
def test_end_tokens_of_a_folder(tmp_path, files, expected):
  _write_folder(tmp_path, files)
  assert checkpoint.eos_ids(tmp_path, 64) == expected


def test_bad_end_tokens_of_a_folder(tmp_path):
  _write_folder(tmp_path, {'generation_config.json': {'eos_token_id': 64}})
  with pytest.raises(errors.UserError, match='generation_config.json: eos_tok'):
    checkpoint.eos_ids(tmp_path, 64)
  _write_folder(tmp_path, {'generation_config.json': {'eos_token_id': '</s>'}})
  with pytest.raises(errors.UserError, match="eos_token_id='</s>'"):
    checkpoint.eos_ids(tmp_path, 64)


def _write_folder(folder, files):
  config = {
    'model_type': 'llava',
    'text_config': {
      'model_type': 'llama',
      'eos_token_id': files.get('text', 3),
    },
    'vision_config': {'model_type': 'clip_vision_model'},
  }
  if 'top' in files:
    config['eos_token_id'] = files['top']
  (folder / 'config.json').write_text(json.dumps(config))
  for name, content in files.items():
    if name.endswith('.json'):
      (folder / name).write_text(json.dumps(content))
