"""Qwen-VL's vision tower: pictures of any shape, two-dimensional RoPE.

Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (2502.13923), Qwen3-VL (2511.21631), as
transformers' Qwen2VisionTransformerPretrainedModel, Qwen2_5_VisionTransformer..
and Qwen3VLVisionModel:

    patches [M, I, C*t*y*x] -> Linear (Qwen3: + learned table, interpolated)
    x = x + o(attend(turn(q), turn(k), v))    of n1(x); (2.5: in windows)
    x = x + mlp(n2(x))                        2.5: gated
    merger: each 2x2 block of patches -> one feature of the text model's width

Patches stand block by block, so that a feature is four patches in a row:

    row 0   0  1 | 4  5            a picture of 4 x 4 patches, blocks of 2 x 2
    row 1   2  3 | 6  7
    row 2   8  9 |12 13
    row 3  10 11 |14 15

A picture is one row of the batch, padded with patches that nobody reads; what
is real follows from its (time, height, width) in patches. Time is 1: of a video
each pair of frames is a row of its own, since attention does not cross frames.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention
from corejax import masks
from corejax.models import layers
from corejax.models import rope


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes and switches of a tower.

  Attributes:
    d_model, d_mlp: D and F of the tower.
    d_out: D of the text model.
    n_layers, n_heads: layers, and heads of a layer.
    patch_size: pixels along each side of a patch.
    temporal: frames a patch holds; a picture is shown so many times.
    merge: patches along each side of a feature's block.
    act: activation of the MLP.
    rms: RMSNorm in place of LayerNorm (2.5).
    gated: gated MLP (2.5).
    patch_bias: the patch embedding has a bias (3).
    theta: base of the RoPE's frequencies.
    window: features along each side of an attention window; 0 is none.
    full_layers: layers whose attention is not windowed.
    table: entries along each side of the position table; 0 is none (3).
    deep_layers: layers whose output is handed on as DeepStack features (3).
    n_channels: C.
    eps: of every norm.
  """

  d_model: int
  d_mlp: int
  d_out: int
  n_layers: int
  n_heads: int
  patch_size: int
  temporal: int = 2
  merge: int = 2
  act: str = 'quick_gelu'
  rms: bool = False
  gated: bool = False
  patch_bias: bool = False
  theta: float = 10000.0
  window: int = 0
  full_layers: tuple[int, ...] = ()
  table: int = 0
  deep_layers: tuple[int, ...] = ()
  n_channels: int = 3
  eps: float = 1e-6

  @property
  def head_dim(self) -> int:
    return self.d_model // self.n_heads

  @property
  def block(self) -> int:
    """Patches a feature."""
    return self.merge**2

  @property
  def patch_values(self) -> int:
    """Values of one patch, as the processor hands it over."""
    return self.n_channels * self.temporal * self.patch_size**2

  @property
  def n_levels(self) -> int:
    """Features a block: the merged one, and the DeepStack ones."""
    return 1 + len(self.deep_layers)


class Attention(nnx.Module):
  """Self-attention with queries, keys and values from one matrix."""

  def __init__(self, config: VisionConfig, stack, dtype):
    d, heads = (config.d_model,), (config.n_heads, config.head_dim)
    opts: Any = dict(stack=stack, bias=True, dtype=dtype)
    self.qkv = layers.Linear((3, *heads), d, **opts)
    self.o = layers.Linear(d, heads, **opts)

  def __call__(
    self,
    x_MID: jax.Array,
    turn: rope.Turns,
    mask: masks.AttnMask,
    attend: attention.Attend,
  ) -> jax.Array:
    qkv = layers.project(self.qkv, x_MID, 'MID,cNHD->MIcNH')
    # In float32, as transformers turns a tower's queries and keys.
    q_MINH, k_MINH = (
      rope.rotate(qkv[:, :, i].astype(jnp.float32), turn).astype(x_MID.dtype)
      for i in (0, 1)
    )
    out_MINH = attend(q_MINH, k_MINH, qkv[:, :, 2], mask).out_BTNH
    return layers.project(self.o, out_MINH, 'MINH,DNH->MID')


class Mlp(nnx.Module):
  """Two layers, or three where it is gated; all biased."""

  def __init__(self, config: VisionConfig, stack, dtype):
    d, f = (config.d_model,), (config.d_mlp,)
    opts: Any = dict(stack=stack, bias=True, dtype=dtype)
    self.gate = layers.Linear(f, d, **opts) if config.gated else None
    self.up = layers.Linear(f, d, **opts)
    self.down = layers.Linear(d, f, **opts)
    self.act = config.act

  def __call__(self, x_MID: jax.Array) -> jax.Array:
    hidden = layers.project(self.up, x_MID, 'MID,FD->MIF')
    if self.gate is None:
      hidden = layers.ACTIVATIONS[self.act](hidden)
    else:
      gate = layers.project(self.gate, x_MID, 'MID,FD->MIF')
      hidden = layers.ACTIVATIONS[self.act](gate) * hidden
    return layers.project(self.down, hidden, 'MIF,DF->MID')


def _norm(config: VisionConfig, norm: layers.Norm, x: jax.Array) -> jax.Array:
  if config.rms:
    return layers.rms_norm(norm, x, config.eps)
  return layers.layer_norm(norm, x, config.eps)


class Block(nnx.Module):
  """One layer; with stack=(L,) the parameters of all layers."""

  def __init__(self, config: VisionConfig, stack, dtype):
    norm: Any = dict(stack=stack, bias=not config.rms, dtype=dtype)
    self.norm1 = layers.Norm(config.d_model, **norm)
    self.attn = Attention(config, stack, dtype)
    self.norm2 = layers.Norm(config.d_model, **norm)
    self.mlp = Mlp(config, stack, dtype)
    self.config = config

  def __call__(self, x_MID, turn, mask, attend) -> jax.Array:
    with jax.named_scope('attention'):
      normed = _norm(self.config, self.norm1, x_MID)
      x_MID = x_MID + self.attn(normed, turn, mask, attend)
    with jax.named_scope('mlp'):
      normed = _norm(self.config, self.norm2, x_MID)
      return x_MID + self.mlp(normed)


class Merger(nnx.Module):
  """A block of patches -> one feature of the text model.

  Attributes:
    late: the norm spans the whole block (DeepStack), not each patch.
  """

  def __init__(self, config: VisionConfig, dtype, *, late: bool = False):
    wide = config.d_model * config.block
    opts: Any = dict(bias=True, dtype=dtype)
    self.norm = layers.Norm(
      wide if late else config.d_model, bias=not config.rms, dtype=dtype
    )
    self.fc1 = layers.Linear((wide,), (wide,), **opts)
    self.fc2 = layers.Linear((config.d_out,), (wide,), **opts)
    self.late = late
    self.config = config

  def __call__(self, x_MID: jax.Array) -> jax.Array:
    shape = (x_MID.shape[0], -1, self.fc1.weight.shape[-1])
    with jax.named_scope('merger'):
      if not self.late:
        x_MID = _norm(self.config, self.norm, x_MID)
      x = x_MID.reshape(shape)
      if self.late:
        x = _norm(self.config, self.norm, x)
      x = layers.project(self.fc1, x, 'MIC,FC->MIF')
      x = layers.ACTIVATIONS['gelu'](x)
      return layers.project(self.fc2, x, 'MIF,DF->MID')


class Tower(nnx.Module):
  """Patch embedding, stacked layers and mergers.

  Attributes:
    config: VisionConfig.
    patch: weight [D, C, frames, Y, X].
    position: [side * side, D]; None without a table.
    layers: a Block whose parameters lead with L.
    merger: of the last layer.
    deep: mergers of the DeepStack layers; an empty list without any.
  """

  def __init__(self, config: VisionConfig, dtype: jnp.dtype):
    d, side = config.d_model, config.patch_size
    self.config = config
    self.patch = layers.Linear(
      (d,),
      (config.n_channels, config.temporal, side, side),
      bias=config.patch_bias,
      dtype=dtype,
    )
    table = jnp.zeros((config.table**2, d), dtype) if config.table else None
    self.position = None if table is None else nnx.Param(table)
    self.layers = Block(config, (config.n_layers,), dtype)
    self.merger = Merger(config, dtype)
    self.deep = nnx.List(
      [Merger(config, dtype, late=True) for _ in config.deep_layers]
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
  """Where every patch stands; what is said of padding means nothing.

  Attributes:
    row_MI, col_MI: int32, of the patch, in patches.
    window_MI: int32 from 1, the attention window it is in; None without.
    count_M: int32, patches that are real.
  """

  row_MI: jax.Array
  col_MI: jax.Array
  window_MI: jax.Array | None
  count_M: jax.Array


def places(config: VisionConfig, grid_M3: jax.Array, n_patches: int) -> Places:
  """From (time, height, width) in patches to every patch's place.

  Args:
    config: of the tower.
    grid_M3: int32; time is 1.
    n_patches: I, of the padded pictures.
  """
  _, height_M, width_M = grid_M3.T
  merge = config.merge
  across_M1 = (width_M // merge)[:, None]  # blocks a row
  block_MI, inner_MI = jnp.divmod(
    jnp.arange(n_patches, dtype=jnp.int32)[None], config.block
  )
  block_row_MI, block_col_MI = jnp.divmod(block_MI, across_M1)
  window_MI = None
  if config.window:
    windows_M1 = -(-across_M1 // config.window)
    window_MI = (block_row_MI // config.window) * windows_M1
    window_MI += block_col_MI // config.window + 1
  return Places(
    block_row_MI * merge + inner_MI // merge,
    block_col_MI * merge + inner_MI % merge,
    window_MI,
    height_M * width_M,
  )


def turns(config: VisionConfig, at: Places) -> rope.Turns:
  """Angles of the patches, float32: [row | column | row | column] of a head."""
  quarter = config.head_dim // 4
  exponent = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
  frequency_F = 1 / np.float32(config.theta) ** exponent
  place_MI2 = jnp.stack([at.row_MI, at.col_MI], -1).astype(jnp.float32)
  angle = place_MI2[..., None] * frequency_F
  angle = angle.reshape(*at.row_MI.shape, 1, -1)
  angle = jnp.concatenate([angle, angle], -1)
  return rope.Turns(jnp.cos(angle), jnp.sin(angle))


def _taps(place_MI, size_M, side: int):
  """Two table entries an axis, and their weights: corners on corners."""
  steps_M1 = jnp.maximum(size_M - 1, 1)[:, None]
  source_MI = place_MI.astype(jnp.float32) * (side - 1) / steps_M1
  low_MI = jnp.floor(source_MI)
  for step in (0, 1):
    index_MI = jnp.clip(low_MI.astype(jnp.int32) + step, 0, side - 1)
    yield index_MI, 1 - jnp.abs(source_MI - low_MI - step)


def embed(
  tower: Tower, patches_MIC: jax.Array, grid_M3: jax.Array, at: Places
) -> jax.Array:
  """[M, I, D], in the parameters' dtype.

  Raises:
    ValueError: patches of another size than the tower's.
  """
  config = tower.config
  if patches_MIC.shape[-1] != config.patch_values:
    raise ValueError(
      f'{patches_MIC.shape=} must end in {config.patch_values} values a patch'
    )
  weight = tower.patch.weight[...]
  with jax.named_scope('patches'):
    x_MID = jnp.einsum(
      'MIC,DC->MID',
      patches_MIC.astype(weight.dtype),
      weight.reshape(config.d_model, -1),
    )
    if tower.patch.bias is not None:
      x_MID = x_MID + tower.patch.bias[...]
    if tower.position is not None:
      table = tower.position[...]
      _, height_M, width_M = grid_M3.T
      placed = jnp.zeros(x_MID.shape, jnp.float32)
      for row_MI, down in _taps(at.row_MI, height_M, config.table):
        for col_MI, right in _taps(at.col_MI, width_M, config.table):
          entry = table[row_MI * config.table + col_MI].astype(jnp.float32)
          placed += entry * (down * right)[..., None]
      x_MID = x_MID + placed.astype(x_MID.dtype)
  return x_MID


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
  """What the layers write.

  Attributes:
    last_MID: the last one.
    deep: per DeepStack layer [M, I, D].
  """

  last_MID: jax.Array
  deep: tuple[jax.Array, ...]


def run(
  tower: Tower,
  patches_MIC: jax.Array,
  grid_M3: jax.Array,
  *,
  attend: attention.Attend,
) -> Hidden:
  """All layers.

  Args:
    tower: the parameters.
    patches_MIC: normalised pixels of each patch (channel, frame, y, x), any
      float dtype; I is a multiple of config.block.
    grid_M3: int32, (1, height, width) of each picture, in patches.
    attend: the attention; called without control or probe.
  """
  config = tower.config
  n_patches = patches_MIC.shape[1]
  with jax.named_scope('tower'):
    at = places(config, grid_M3, n_patches)
    start_MID = embed(tower, patches_MIC, grid_M3, at)
    turn = turns(config, at)
    whole = masks.AttnMask(causal=False, kv_len_B=at.count_M)
    windowed = dataclasses.replace(
      whole, q_segment_BT=at.window_MI, kv_segment_BS=at.window_MI
    )
    graph, params = nnx.split(tower.layers)

    def body(carry, xs):
      x_MID, kept = carry
      params, index, is_full = xs
      layer = nnx.merge(graph, params)
      if config.window:
        # A branch, not a mask of one window: without segments a kernel takes
        # larger tiles.
        x_MID = jax.lax.cond(
          is_full,
          lambda x: layer(x, turn, whole, attend),
          lambda x: layer(x, turn, windowed, attend),
          x_MID,
        )
      else:
        x_MID = layer(x_MID, turn, whole, attend)
      kept = {k: jnp.where(index == k, x_MID, slot) for k, slot in kept.items()}
      return (x_MID, kept), None

    slots = {index: jnp.zeros_like(start_MID) for index in config.deep_layers}
    numbers = np.arange(config.n_layers)
    is_full = np.isin(numbers, config.full_layers)
    (last_MID, kept), _ = jax.lax.scan(
      body, (start_MID, slots), (params, numbers, is_full)
    )
  return Hidden(last_MID, tuple(kept[index] for index in config.deep_layers))


def merge(tower: Tower, hidden: Hidden) -> jax.Array:
  """[M, I / block, levels * D of the text model], the merged feature first."""
  levels = [tower.merger(hidden.last_MID)]
  levels += [m(x_MID) for m, x_MID in zip(tower.deep, hidden.deep, strict=True)]
  return jnp.concatenate(levels, -1)
