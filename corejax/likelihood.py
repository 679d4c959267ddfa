"""The forced answer: would the model have said it, and how likely is it?"""

import dataclasses

import jax
import jax.numpy as jnp

from corejax import describe


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forced:
  """What a model makes of an answer that is forced upon it.

  Attributes:
    correct_B: bool, every token is the likeliest one, so that greedy decoding
      would say the answer too.
    logprob_B: float32, log p(answer | prompt) in nats; 0 without an answer.
  """

  correct_B: jax.Array
  logprob_B: jax.Array

  __repr__ = describe.fields


def forced(logits_BAV: jax.Array, answer_BA: jax.Array) -> Forced:
  """Judges forced answers.

  Args:
    logits_BAV: at the rows that predict the answer's tokens.
    answer_BA: int32, the answer's tokens; -1 unused.
  """
  used_BA = answer_BA >= 0
  target_BA = jnp.maximum(answer_BA, 0)
  logp_BAV = jax.nn.log_softmax(logits_BAV.astype(jnp.float32))
  logp_BA = jnp.take_along_axis(logp_BAV, target_BA[..., None], 2)[..., 0]
  return Forced(
    ((logp_BAV.argmax(-1) == target_BA) | ~used_BA).all(1),
    jnp.where(used_BA, logp_BA, 0.0).sum(1),
  )
