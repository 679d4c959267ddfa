"""Keys and values of what a model has read, as a pytree in and a pytree out.

A forward with a cache reads a chunk of its inputs: row t of example b stands
at key slot length_B[b] + t and sees all slots up to its own. Slots are filled
from 0, in each example as far as that one got:

    slots S =           0 1 2 3 4 5 6 7
    length_B[0] = 3     k k k . . . . .
    length_B[1] = 5     k k k k k . . .

    after a chunk of T = 2 with mask.kv_len_B = [1, 2]:
    length_B[0] = 4     k k k n . . . .     its second row is padding
    length_B[1] = 7     k k k k k n n .

What indexes keys (region_BS, kv_segment_BS, visual_BI, kv_start_B) counts
slots, what indexes rows (rows_BP, rows_BT, q_segment_BT) counts the chunk's.
Positions are the caller's: positions_BT holds those of the whole sequence,
nobody adds the offset. So a prompt read in chunks gives what one pass gives,
apart from 'dynamic' RoPE beyond its trained length: there frequencies depend on
the length reached, and keys that are in the cache are not turned again (nor
are they in transformers).

A real row whose slot would lie beyond the cache is given NaN: how full a cache
is, a trace cannot know.
"""

import dataclasses

import jax
import jax.numpy as jnp

from corejax import describe
from corejax import masks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Filled and empty key slots of all layers.

  Donate it to the forward that returns the next one and nothing is copied.

  Attributes:
    k_LBSKH, v_LBSKH: keys (after norms and RoPE) and values; whatever lies in
      empty slots is not read.
    length_B: int32 [B], filled slots.
  """

  k_LBSKH: jax.Array
  v_LBSKH: jax.Array
  length_B: jax.Array

  __repr__ = describe.fields

  @classmethod
  def empty(
    cls,
    *,
    n_layers: int,
    batch: int,
    size: int,
    n_kv_heads: int,
    head_dim: int,
    dtype: jnp.dtype,
  ) -> 'Cache':
    """Room for `size` tokens an example; a family's `new_cache` knows the rest.

    It takes 2 * L * B * S * K * H * itemsize bytes.
    """
    shape = (n_layers, batch, size, n_kv_heads, head_dim)
    return cls(
      jnp.zeros(shape, dtype),
      jnp.zeros(shape, dtype),
      jnp.zeros(batch, jnp.int32),
    )

  @property
  def size(self) -> int:
    """S, slots an example."""
    return self.k_LBSKH.shape[2]

  def take(self, index_B: jax.Array) -> 'Cache':
    """The cache of a batch whose example b goes on from example index_B[b].

    Several questions about one prefix share its prefill that way. An index out
    of range gives NaN.

    Args:
      index_B: int32, any number of examples.
    """
    return Cache(
      jnp.take(self.k_LBSKH, index_B, axis=1, mode='fill'),
      jnp.take(self.v_LBSKH, index_B, axis=1, mode='fill'),
      jnp.take(self.length_B, index_B, mode='fill', fill_value=self.size),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
  """Where the rows of a chunk go; the same in every layer.

  Attributes:
    cache: what was read before.
    mask: of the chunk's rows over all slots.
    slot_BT: int32 [B, T], distinct and ascending; S and more for rows that
      are not kept.
    length_B: int32 [B], filled slots afterwards.
    lost_BT: bool [B, T], real rows for which there is no slot.
  """

  cache: Cache
  mask: masks.AttnMask
  slot_BT: jax.Array
  length_B: jax.Array
  lost_BT: jax.Array

  def extended(self, k_LBTKH: jax.Array, v_LBTKH: jax.Array) -> Cache:
    """The cache with the keys and values that all layers made of the rows."""
    every_layer = jax.vmap(_put, in_axes=(0, 0, None))
    return Cache(
      every_layer(self.cache.k_LBSKH, k_LBTKH, self.slot_BT),
      every_layer(self.cache.v_LBSKH, v_LBTKH, self.slot_BT),
      self.length_B,
    )


def chunk(cache: Cache, mask: masks.AttnMask, n_rows: int) -> Chunk:
  """Places a chunk behind what a cache holds.

  Args:
    cache: what was read before.
    mask: of the chunk: kv_len_B counts its own real rows (None: all).
    n_rows: T.

  Raises:
    ValueError: the mask says itself where the rows stand.
  """
  if mask.q_offset_B is not None:
    raise ValueError(
      'cache: mask.q_offset_B must be None; a cache knows where chunks begin'
    )
  t_T = jnp.arange(n_rows, dtype=jnp.int32)
  real_BT = jnp.ones((cache.length_B.shape[0], n_rows), bool)
  if mask.kv_len_B is not None:
    real_BT = t_T < mask.kv_len_B[:, None]
  slot_BT = cache.length_B[:, None] + t_T
  length_B = cache.length_B + real_BT.sum(1, dtype=jnp.int32)
  return Chunk(
    cache=cache,
    mask=dataclasses.replace(
      mask, q_offset_B=cache.length_B, kv_len_B=length_B
    ),
    slot_BT=jnp.where(real_BT, slot_BT, cache.size + t_T),
    length_B=length_B,
    lost_BT=real_BT & (slot_BT >= cache.size),
  )


@dataclasses.dataclass(frozen=True)
class LayerCache:
  """What one layer of a forward sees of a cache.

  Attributes:
    k_BSKH, v_BSKH: the layer's slots.
    slot_BT: `Chunk.slot_BT`.
  """

  k_BSKH: jax.Array
  v_BSKH: jax.Array
  slot_BT: jax.Array

  def with_chunk(
    self, k_BTKH: jax.Array, v_BTKH: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """(k_BSKH, v_BSKH), the chunk's keys and values filled in."""
    return (
      _put(self.k_BSKH, k_BTKH, self.slot_BT),
      _put(self.v_BSKH, v_BTKH, self.slot_BT),
    )


def _put(kept_BSKH, new_BTKH, slot_BT):
  # A scatter, not a dynamic slice: one that ends in padding would be moved
  # back from the cache's end, over keys that are in use.
  def one(kept_SKH, new_TKH, slot_T):
    return kept_SKH.at[slot_T].set(
      new_TKH, mode='drop', indices_are_sorted=True, unique_indices=True
    )

  return jax.vmap(one)(kept_BSKH, new_BTKH, slot_BT)
