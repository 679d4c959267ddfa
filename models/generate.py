"""Greedy decoding with a key/value cache: the same tokens as transformers.

    prefill   all prompts at once, the last real row of each predicts
    decode    one token a step, until every example has ended or max_tokens

The prompts may be padded on either side; each goes on behind its own last row,
with the position that follows its largest one (on all three axes of M-RoPE, as
in Qwen-VL). Nothing is sampled, no penalty is applied.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention
from corejax import control as control_lib
from corejax import describe
from corejax import errors
from corejax import inputs as inputs_lib
from corejax import regions
from corejax.models import registry


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
  """What a model said.

  Attributes:
    tokens_BA: int32 [B, max_tokens], an end token included; -1 unused.
    length_B: int32, tokens in use.
    ended_B: bool, whether the last of them is an end token; else the answer
      was cut off at max_tokens.
    logprob_B: float32, log p of the tokens in use, summed, in nats.
  """

  tokens_BA: jax.Array
  length_B: jax.Array
  ended_B: jax.Array
  logprob_B: jax.Array

  __repr__ = describe.fields

  def texts(self, tokenizer: Any) -> list[str]:
    """The answers as strings, special tokens left out."""
    tokens_BA = np.asarray(self.tokens_BA)
    return [
      tokenizer.decode(tokens_A[tokens_A >= 0], skip_special_tokens=True)
      for tokens_A in tokens_BA
    ]


def generate(
  loaded: registry.Loaded,
  inputs: inputs_lib.Inputs,
  *,
  max_tokens: int,
  attend: attention.Attend = attention.reference,
  eos_ids: tuple[int, ...] | None = None,
  control: control_lib.HeadControl | None = None,
  decode_control: control_lib.HeadControl | None = None,
) -> Generated:
  """The most likely next token, again and again.

  One compilation per shape of the inputs, max_tokens and attend; controls are
  arrays and cost none.

  Args:
    loaded: the model.
    inputs: prompts without an answer (`Encoded.prompt`), padded.
    max_tokens: at most so many tokens are made, 1 or more.
    attend: the attention.
    eos_ids: tokens that end an answer; None takes the checkpoint's.
    control: edits of heads while the prompts are read; region_BS is that of
      the prompts.
    decode_control: edits of heads in every later step; likewise. The phase
      'prefill+decode' is the same control in both places, 'decode' is it in
      the second alone. Tokens made are `other_text` to both. What counts
      rows has one, that of the step.

  Returns:
    A Generated.

  Raises:
    UserError: max_tokens is below 1.
    ValueError: prompts in segments, or a decode_control for several rows.
  """
  if max_tokens < 1:
    raise errors.UserError(f'max_tokens={max_tokens}: expected 1 or more')
  return run(
    loaded.model,
    inputs,
    control,
    decode_control,
    forward=loaded.forward,
    new_cache=loaded.new_cache,
    attend=attend,
    max_tokens=max_tokens,
    eos_ids=loaded.eos_ids if eos_ids is None else tuple(eos_ids),
  )


@functools.partial(
  jax.jit,
  static_argnames=('forward', 'new_cache', 'attend', 'max_tokens', 'eos_ids'),
)
def run(
  model: Any,
  inputs: inputs_lib.Inputs,
  control: control_lib.HeadControl | None,
  decode_control: control_lib.HeadControl | None,
  *,
  forward: registry.Forward,
  new_cache: registry.NewCache,
  attend: attention.Attend,
  max_tokens: int,
  eos_ids: tuple[int, ...],
) -> Generated:
  """`generate`, without a Loaded: a pure function of the arrays."""
  _check(inputs, decode_control)
  batch, length = inputs.tokens_BT.shape
  size = length + max_tokens - 1
  end_B = inputs.mask.kv_len_B
  if end_B is None:
    end_B = jnp.full(batch, length, jnp.int32)
  with jax.named_scope('prefill'):
    out = forward(
      model,
      inputs,
      attend=attend,
      control=_over_slots(control, length, size),
      logit_rows_BP=end_B[:, None] - 1,
      cache=new_cache(model, batch, size),
    )
  decode_control = _over_slots(decode_control, length, size)
  first = Generated(
    tokens_BA=jnp.full((batch, max_tokens), -1, jnp.int32),
    length_B=jnp.zeros(batch, jnp.int32),
    ended_B=jnp.zeros(batch, bool),
    logprob_B=jnp.zeros(batch, jnp.float32),
  )
  first = _add(first, out.logits_BPV[:, 0], 0, eos_ids)

  def goes_on(state):
    step, made, _ = state
    return (step < max_tokens) & ~made.ended_B.all()

  def body(state):
    step, made, cache = state
    row = _next_row(inputs, end_B, made, step)
    out = forward(
      model, row, attend=attend, control=decode_control, cache=cache
    )
    made = _add(made, out.logits_BPV[:, 0], step, eos_ids)
    return step + 1, made, out.cache

  with jax.named_scope('decode'):
    state = (jnp.int32(1), first, out.cache)
    return jax.lax.while_loop(goes_on, body, state)[1]


def _check(inputs, decode_control):
  if inputs.mask.kv_segment_BS is not None:
    raise ValueError('generate: prompts in segments have no next token')
  if decode_control is None:
    return
  attend, output = decode_control.attend, decode_control.output
  per_row = [attend.rows_BT, output.rows_BT, output.source_BT]
  if output.source_BT is None and output.replacement_BTNH is not None:
    per_row.append(output.replacement_BTNH[0, :, :, 0, 0])
  if any(x is not None and x.shape[1] != 1 for x in per_row):
    raise ValueError(
      'generate: decode_control names rows of the prompt, but a later step has '
      'one row, its own; expand the ablation for rows.Rows.decode_step()'
    )


def _over_slots(control, length, size):
  """The control with its region_BS [B, T] drawn out over all S slots."""
  if control is None or control.attend.region_BS is None:
    return control
  region_BS = jnp.pad(
    control.attend.region_BS,
    ((0, 0), (0, size - length)),
    constant_values=regions.OTHER_TEXT,
  )
  attend = dataclasses.replace(control.attend, region_BS=region_BS)
  return dataclasses.replace(control, attend=attend)


def _next_row(inputs, end_B, made, step):
  """The inputs of a step: the newest tokens; anything where an answer ended."""
  batch, length = inputs.tokens_BT.shape
  token_B = jax.lax.dynamic_index_in_dim(
    made.tokens_BA, step - 1, axis=1, keepdims=False
  )
  positions = inputs.positions_BT  # [B, T] or [B, 3, T]
  real_BT = jnp.arange(length) < end_B[:, None]
  if positions.ndim == 3:
    real_BT = real_BT[:, None]
  largest_B = jnp.where(real_BT, positions, -1).reshape(batch, -1).max(-1)
  position_B = largest_B + step
  return inputs_lib.Inputs(
    tokens_BT=jnp.maximum(token_B, 0)[:, None],
    positions_BT=jnp.broadcast_to(
      position_B.reshape(batch, *[1] * (positions.ndim - 1)),
      (*positions.shape[:-1], 1),
    ),
    mask=dataclasses.replace(inputs.mask, kv_len_B=None),
    vision={},
    feature_BT=jnp.full((batch, 1), -1, jnp.int32),
  )


def _add(made, logits_BV, step, eos_ids):
  """The answers so far, with a token more in each that has not ended."""
  token_B = logits_BV.argmax(-1).astype(jnp.int32)
  logp_BV = jax.nn.log_softmax(logits_BV)
  logp_B = jnp.take_along_axis(logp_BV, token_B[:, None], 1)[:, 0]
  going_B = ~made.ended_B
  is_end_B = jnp.isin(token_B, jnp.array(eos_ids, jnp.int32))
  return Generated(
    tokens_BA=made.tokens_BA.at[:, step].set(jnp.where(going_B, token_B, -1)),
    length_B=made.length_B + going_B,
    ended_B=made.ended_B | is_end_B,
    logprob_B=made.logprob_B + jnp.where(going_B, logp_B, 0.0),
  )
