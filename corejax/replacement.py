"""What is written in the place of an ablated head: means and donors' outputs.

A head's output is replaced before the output projection, row by row:

    mean       by the mean over a reference set of the rows of the same class
               (visual, question, other text)
    resample   by what the same head wrote on another example, the donor, on
               the row of the same class that is as far from that class's end

    recipient  <s> :  v v v v  q q q q   A :   red
    donor row  <s> :  v v v    q q q     A :   blue         same letters, in
               ^first^ v v v v ^clamped^                    order from the right

Where the recipient has more rows of a class than the donor, the surplus on the
left takes the donor's first row of that class. Rows of the forced answer are
paired from the prompt's end to the right, the surplus takes the donor's last.

No replacement reads a future key. A mean is a constant. A donor's row was
computed from the donor's own tokens up to that row; of the recipient only the
classes and lengths decide which row it is, never a token's content: changing
tokens after row t changes nothing at t. (Lengths do count: in a prompt one
word longer, rows are paired one word further on.)
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from corejax import describe
from corejax import errors
from corejax import regions
from corejax import rows as rows_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replacement:
  """Outputs of all heads, and which of them each row takes.

  Attributes:
    out_LBTNH: [L, 1|B, any number of rows, N, H].
    source_BT: int32 [1|B, T], the row of out_LBTNH for each row of the batch.
  """

  out_LBTNH: jax.Array
  source_BT: jax.Array

  __repr__ = describe.fields


def by_class(mean_LCNH: jax.Array, rows: rows_lib.Rows) -> Replacement:
  """Every row takes its class's mean.

  Args:
    mean_LCNH: of `MeanOutputs.mean`.
    rows: of the batch that is ablated.
  """
  # Padding takes any: nobody reads what it writes.
  source_BT = jnp.maximum(rows.class_BT, 0).astype(jnp.int32)
  return Replacement(jnp.asarray(mean_LCNH)[:, None], source_BT)


def by_donor(
  out_LBTNH: jax.Array,
  donors: rows_lib.Rows,
  recipients: rows_lib.Rows,
  donor_B: Sequence[int],
) -> Replacement:
  """Every row takes what its donor wrote on the aligned row.

  Args:
    out_LBTNH: `Measured.out_BTNH` of the donors' batch.
    donors: rows of that batch, concrete arrays.
    recipients: rows of the batch that is ablated, concrete arrays.
    donor_B: for each recipient, the index of its donor in the donors' batch.

  Raises:
    UserError: a donor without any row of a class that its recipient has.
  """
  source_BT = [
    align(_one(recipients, b), _one(donors, donor))
    for b, donor in enumerate(donor_B)
  ]
  taken_LBTNH = jnp.take(
    out_LBTNH, jnp.asarray(donor_B, jnp.int32), axis=1, mode='clip'
  )
  return Replacement(taken_LBTNH, jnp.asarray(np.stack(source_BT)))


def _one(rows: rows_lib.Rows, index: int) -> tuple[np.ndarray, np.ndarray]:
  return np.asarray(rows.class_BT)[index], np.asarray(rows.decoded_BT)[index]


def align(
  recipient: tuple[np.ndarray, np.ndarray],
  donor: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
  """The donor's row for each row of the recipient, by the rule above.

  Args:
    recipient: (class_T, decoded_T).
    donor: likewise, of any length.

  Returns:
    int32 [T]; 0 for padding.

  Raises:
    UserError: the donor has no row of a class that the recipient has.
  """
  class_T, decoded_T = recipient
  source_T = np.zeros(len(class_T), np.int32)
  for index, name in enumerate(regions.ROW_CLASSES):
    to, there = (
      np.flatnonzero((its_class_T == index) & ~its_decoded_T)
      for its_class_T, its_decoded_T in (recipient, donor)
    )
    if not len(to):
      continue
    if not len(there):
      raise errors.UserError(
        f'resample: the donor has no {name} row and the recipient has '
        f'{len(to)}; choose donors of the same kind of prompt'
      )
    from_right = np.arange(len(to))[::-1]
    source_T[to] = there[np.maximum(len(there) - 1 - from_right, 0)]
  to = np.flatnonzero(decoded_T)
  if len(to):
    # The prompt's last row leads, for a donor whose answer is one token.
    prompt = np.flatnonzero((donor[0] >= 0) & ~donor[1])[-1:]
    there = np.concatenate([prompt, np.flatnonzero(donor[1])])
    source_T[to] = there[np.minimum(1 + np.arange(len(to)), len(there) - 1)]
  return source_T


def cluster_weights(clusters: Sequence[str]) -> np.ndarray:
  """float64 [E], 1 / size of the example's cluster: every cluster counts 1."""
  _, which_E, size_U = np.unique(
    np.asarray(clusters, str), return_inverse=True, return_counts=True
  )
  return 1.0 / size_U[which_E]


@dataclasses.dataclass(frozen=True)
class MeanOutputs:
  """Running mean of every head's output by row class, over a reference set.

      sum_e w_e mean over e's rows of class c  /  sum_e w_e

  over the examples that have such a row. An example counts once however many
  rows it has; with `cluster_weights` a cluster counts once however many
  examples it has, as in RAM.

  Attributes:
    total_LCNH: float64, the weighted sum.
    weight_C: float64, the weights.
  """

  total_LCNH: np.ndarray
  weight_C: np.ndarray

  __repr__ = describe.fields

  @classmethod
  def empty(cls, n_layers: int, n_heads: int, head_dim: int) -> 'MeanOutputs':
    n_classes = len(regions.ROW_CLASSES)
    return cls(
      np.zeros((n_layers, n_classes, n_heads, head_dim)), np.zeros(n_classes)
    )

  def add(
    self,
    class_mean_LBCNH: jax.Array | np.ndarray,
    counts_BC: jax.Array | np.ndarray,
    weight_B: Sequence[float] | np.ndarray | None = None,
  ) -> 'MeanOutputs':
    """With a further batch.

    Args:
      class_mean_LBCNH: `Measured.class_mean_BCNH` of all layers.
      counts_BC: `Rows.counts_BC`; a class without rows adds nothing.
      weight_B: of the examples, 0 for one that only fills the batch; None is 1.

    Raises:
      UserError: a mean that is not finite.
    """
    mean_LBCNH = np.asarray(class_mean_LBCNH, np.float64)
    weight_BC = (np.asarray(counts_BC) > 0).astype(np.float64)
    if weight_B is not None:
      weight_BC = weight_BC * np.asarray(weight_B, np.float64)[:, None]
    used_LBCNH = np.where(weight_BC[:, :, None, None] > 0, mean_LBCNH, 0.0)
    if not np.isfinite(used_LBCNH).all():
      layer, b, _, head, _ = np.argwhere(~np.isfinite(used_LBCNH))[0]
      raise errors.UserError(
        f'mean ablation: what head {layer}-{head} writes is not finite in '
        f'example {b} of the batch; run the reference set in float32'
      )
    total_LCNH = np.einsum('LBCNH,BC->LCNH', used_LBCNH, weight_BC)
    return MeanOutputs(
      self.total_LCNH + total_LCNH, self.weight_C + weight_BC.sum(0)
    )

  def mean(self) -> np.ndarray:
    """float32 [L, C, N, H].

    Raises:
      UserError: no example had a row of some class.
    """
    for name, weight in zip(regions.ROW_CLASSES, self.weight_C):
      if not weight:
        raise errors.UserError(
          f'mean ablation: the reference set has no {name} row; take examples '
          'with pictures and questions'
        )
    mean_LCNH = self.total_LCNH / self.weight_C[:, None, None]
    return mean_LCNH.astype(np.float32)
