"""CoRe-guided sparse prefill: which heads stay dense, and what that is worth.

    plan = HeadPlan.top_fraction(ranking.score_LN, 0.05, window=2048, sink=128)

    @functools.partial(jax.jit, static_argnames='plan')
    def prefill(model, inputs, plan):
      return forward(model, inputs, control=plan.expand(n_layers, n_heads))

A dense head reads all keys, every other one a sink and a causal window:

    window=3, sink=2      keys j ->  0 1 2 3 4 5 6 7
                          row 7      s s . . . w w w        c = window + sink
                          row 3      s w w w                min(i + 1, c) keys

A plan is frozen and hashable, the static argument of a jitted call. Where many
plans share one program, expand them outside of it and hand in the arrays.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from corejax import control as control_lib
from corejax import errors
from corejax import heads as heads_lib
from corejax import masks
from corejax import ram as ram_lib
from corejax import selection as selection_lib
from corejax.stats import reliability

WINDOW, SINK, BLOCK = 2048, 128, 128


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a plan costs at one length, beside the same heads all dense.

  Attributes:
    length: N, query rows and keys.
    rho: share of heads that are dense.
    attended: share of the causal (row, key) pairs that are read.
    element_ideal: how many times faster a kernel could be whose time is the
      number of pairs it reads; 1 / attended.
    tile_ideal: the same for one that reads whole block x block tiles.
  """

  length: int
  rho: float
  attended: float
  element_ideal: float
  tile_ideal: float


@dataclasses.dataclass(frozen=True)
class KvBytes:
  """Keys and values of one sequence, in bytes.

  Attributes:
    whole: of all kv heads.
    dropped: of what decode would never read: a kv head all of whose query
      heads are sparse needs its sinks and the last `window` keys alone.
  """

  whole: int
  dropped: int


@dataclasses.dataclass(frozen=True)
class HeadPlan:
  """Dense heads, and the sink and window of all others.

  Attributes:
    heads: the dense heads.
    window: keys up to and including the row's own, at least 1.
    sink: first real keys that every head reads, 0 or more.
    block: edge of a kernel's tile; only costs depend on it.

  Raises:
    UserError: a window, sink or block out of range.
  """

  heads: heads_lib.HeadSet
  window: int = WINDOW
  sink: int = SINK
  block: int = BLOCK

  def __post_init__(self):
    for name, least in (('window', 1), ('sink', 0), ('block', 1)):
      value = getattr(self, name)
      if not least <= value <= masks.DENSE:
        raise errors.UserError(
          f'HeadPlan: {name}={value}; give {least} to {masks.DENSE} keys'
        )

  @classmethod
  def top_k(
    cls,
    score_LN: np.ndarray,
    k: int,
    window: int = WINDOW,
    sink: int = SINK,
    block: int = BLOCK,
    *,
    n_kv_heads: int | None = None,
  ) -> HeadPlan:
    """The k best heads of a ranking dense.

    Args:
      score_LN: float [L, N], as `HeadRanking.score_LN`; a head whose score is
        not finite stays sparse.
      k: number of dense heads, the budget.
      window, sink, block: of the plan.
      n_kv_heads: K; whole key/value groups then, see `snapped`.

    Raises:
      UserError: k out of range, or less than one group.
    """
    score_LN = np.asarray(score_LN, np.float64)
    if not 0 <= k <= score_LN.size:
      raise errors.UserError(
        f'HeadPlan: k={k}; the model has {score_LN.shape[0]} x '
        f'{score_LN.shape[1]} = {score_LN.size} heads, give 0 to '
        f'{score_LN.size}'
      )
    if n_kv_heads is not None:
      heads = snapped(score_LN, k, n_kv_heads)
    elif k == 0:
      heads = heads_lib.HeadSet()
    else:
      rule = selection_lib.Selection('top_k', k)
      heads = heads_lib.HeadSet.from_mask(rule.mask(score_LN))
    return cls(heads, window, sink, block)

  @classmethod
  def top_fraction(
    cls,
    score_LN: np.ndarray,
    fraction: float,
    window: int = WINDOW,
    sink: int = SINK,
    block: int = BLOCK,
    *,
    n_kv_heads: int | None = None,
  ) -> HeadPlan:
    """The best share of all heads dense; see `top_k`.

    Args:
      score_LN: float [L, N].
      fraction: 0 to 1, rounded to the nearest number of heads as `top5%` is,
        but at least one head where it is over 0.
      window, sink, block, n_kv_heads: as of `top_k`.

    Raises:
      UserError: the fraction is no share, or less than one group.
    """
    k = budget(fraction, *np.shape(score_LN))
    return cls.top_k(score_LN, k, window, sink, block, n_kv_heads=n_kv_heads)

  def expand(self, n_layers: int, n_heads: int) -> control_lib.HeadControl:
    """The plan as arrays: windows and sinks int32 [L, 1, N].

    A dense head's window is masks.DENSE and its sink 0, as in the intact
    control, so that a plan of all heads is that control.

    Raises:
      UserError: a head is outside the model.
    """
    dense_LN = self.heads.mask(n_layers, n_heads)
    intact = control_lib.HeadControl.intact(n_layers, n_heads)
    attend = dataclasses.replace(
      intact.attend,
      window_BN=jnp.asarray(
        np.where(dense_LN, masks.DENSE, self.window)[:, None], jnp.int32
      ),
      sink_BN=jnp.asarray(np.where(dense_LN, 0, self.sink)[:, None], jnp.int32),
    )
    return dataclasses.replace(intact, attend=attend)

  def cost(self, length: int, n_layers: int, n_heads: int) -> Cost:
    """What it costs to read a prompt of this length.

    Element ideal, with c = window + sink and N >= c (SCIENCE, "CoRe-guided
    sparse prefill"): 1 / (rho + (1-rho) (cN - c(c-1)/2) / (N(N+1)/2)).

    Args:
      length: N, at least 1.
      n_layers, n_heads: of the model.

    Raises:
      UserError: a head is outside the model, or a length under 1.
    """
    if length < 1:
      raise errors.UserError(f'HeadPlan: length {length}; give 1 or more')
    dense_LN = self.heads.mask(n_layers, n_heads)
    rho = float(dense_LN.mean())
    all_pairs = length * (length + 1) // 2
    reach = min(self.window + self.sink, length)
    pairs = reach * length - reach * (reach - 1) // 2
    all_tiles = tiles(length, length, 0, self.block)
    n_tiles = tiles(length, self.window, self.sink, self.block)
    attended = rho + (1 - rho) * pairs / all_pairs
    return Cost(
      length=length,
      rho=rho,
      attended=attended,
      element_ideal=1 / attended,
      tile_ideal=1 / (rho + (1 - rho) * n_tiles / all_tiles),
    )

  def kv_bytes(
    self,
    length: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    itemsize: int,
  ) -> KvBytes:
    """What decode could drop of the keys and values of one sequence.

    Args:
      length: keys of the sequence.
      n_layers, n_heads, n_kv_heads, head_dim: L, N, K, H of the model.
      itemsize: bytes of a number.

    Raises:
      UserError: a head is outside the model.
    """
    dense_LN = self.heads.mask(n_layers, n_heads)
    needed_LK = dense_LN.reshape(n_layers, n_kv_heads, -1).any(-1)
    one = 2 * head_dim * itemsize
    kept = min(length, self.window + self.sink)
    return KvBytes(
      whole=n_layers * n_kv_heads * length * one,
      dropped=int((~needed_LK).sum()) * (length - kept) * one,
    )

  def report(
    self,
    length: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    itemsize: int,
  ) -> str:
    """One line: what is read, what could be gained; arguments of `kv_bytes`."""
    cost = self.cost(length, n_layers, n_heads)
    kept = self.kv_bytes(
      length, n_layers, n_heads, n_kv_heads, head_dim, itemsize
    )
    return (
      f'{len(self.heads)} of {n_layers * n_heads} heads dense '
      f'({100 * cost.rho:.1f}%), sink {self.sink}, window {self.window}: at '
      f'{length} tokens {100 * cost.attended:.1f}% of the pairs are read; '
      f'ideal {cost.element_ideal:.2f}x by elements, {cost.tile_ideal:.2f}x by '
      f'tiles of {self.block}; decode could drop {kept.dropped / 2**20:.4g} of '
      f'{kept.whole / 2**20:.4g} MiB of keys and values'
    )


def budget(fraction: float, n_layers: int, n_heads: int) -> int:
  """Dense heads of a share, rounded as `HeadPlan.top_fraction` says.

  Raises:
    UserError: it is no share.
  """
  if not 0 <= fraction <= 1:
    raise errors.UserError(
      f'HeadPlan: dense fraction {fraction:g}; give a share from 0 to 1'
    )
  if fraction == 0:
    return 0
  rule = selection_lib.Selection('top_fraction', fraction)
  count = rule.count(n_layers, n_heads)
  assert count is not None, 'only fdr has no count'
  return count


def snapped(score_LN: np.ndarray, k: int, n_kv_heads: int) -> heads_lib.HeadSet:
  """The best whole key/value groups that fit into a budget of k heads.

  A group's score is the highest of its query heads'; equal scores go by
  (layer, group). Groups in which no head has a finite score are not taken.

  Args:
    score_LN: float [L, N].
    k: budget in query heads; k // (N / K) groups fit.
    n_kv_heads: K.

  Raises:
    UserError: N is no multiple of K, or k over 0 is less than one group.
  """
  group_LK = ram_lib.kv_groups(score_LN, n_kv_heads)
  group = np.shape(score_LN)[1] // n_kv_heads
  if 0 < k < group:
    raise errors.UserError(
      f'HeadPlan: k={k} is less than one key/value group of {group} heads; '
      f'give 0, or {group} and more'
    )
  n_usable = int(np.isfinite(group_LK).sum())
  best = reliability.order(group_LK.ravel())[: min(k // group, n_usable)]
  return heads_lib.HeadSet(
    (int(x) // n_kv_heads, int(x) % n_kv_heads * group + g)
    for x in best
    for g in range(group)
  )


def tiles(length: int, window: int, sink: int, block: int) -> int:
  """Tiles of block x block of which a causal head reads at least one pair.

  Args:
    length: query rows and keys.
    window, sink: of the head; a window of `length` is dense.
    block: edge of a tile; the last ones may be cut.
  """
  first_U = np.arange(0, length, block, dtype=np.int64)
  last_U = np.minimum(first_U + block, length) - 1
  n_sink_U = -(-np.minimum(sink, last_U + 1) // block)
  band_U = np.maximum(first_U - window + 1, 0) // block
  n_band_U = last_U // block + 1 - np.maximum(band_U, n_sink_U)
  return int((n_sink_U + np.maximum(n_band_U, 0)).sum())
