"""What is known of every query row of a batch: what an ablation goes by.

    token      <s> USER : v v v v What ... ? ASSISTANT : red   (padding)
    class       t   t   t v v v v  q    q  q     t     t  t      -1
    query       .   .   . . . . .  x    x  x     .     x  x       .
    decoded     .   .   . . . . .  .    .  .     .     .  x       .

t other text, v visual, q question. The forced answer here is `red` and a token
that the row of `red` predicts.
"""

import dataclasses

import jax
import jax.numpy as jnp

from corejax import describe
from corejax import regions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a padded batch (made by `evidence.batch_rows`).

  Attributes:
    class_BT: int8 [B, T], index into regions.ROW_CLASSES, -1 for padding.
    query_BT: bool [B, T], rows of any query set (question, last, answer).
    decoded_BT: bool [B, T], rows after the prompt: those of a forced answer's
      tokens, which a model that generates would run one by one. The first
      answer token is predicted by the last prompt row, which is not decoded.
  """

  class_BT: jax.Array
  query_BT: jax.Array
  decoded_BT: jax.Array

  __repr__ = describe.fields

  @classmethod
  def decode_step(cls) -> 'Rows':
    """The one row of a step of generation, [1, 1], the same for all examples.

    It is the row that predicts the next answer token, so it is in the query
    set `answer`.
    """
    return cls(
      jnp.full((1, 1), regions.OTHER_TEXT_ROW, jnp.int8),
      jnp.ones((1, 1), bool),
      jnp.ones((1, 1), bool),
    )

  @property
  def counts_BC(self) -> jax.Array:
    """int32 [B, C], rows of each class."""
    classes_C = jnp.arange(len(regions.ROW_CLASSES))
    return (self.class_BT[..., None] == classes_C).sum(1, dtype=jnp.int32)
