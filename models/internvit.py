"""InternViT, the tower of InternVL: 300M and 6B (arXiv 2312.14238, 2404.16821).

As transformers' InternVLVisionModel:

    patches -> class token first -> + position table
    x = x + scale1 * o(attend(q(n1(x)), k(n1(x)), v(n1(x))))         no mask
    x = x + scale2 * fc2(act(fc1(n2(x))))

300M has LayerNorms and biased q, k, v; 6B has RMSNorms, no bias on q, k, v, and
an RMSNorm over *all heads together* on q and on k before they are split. The
class token is part of what is read, and dropped by the projector.

`hidden[0]` is the input of layer 0, `hidden[i]` the output of layer i - 1. The
final LayerNorm (`use_mean_pooling` false; no released tower has it) is
applied only to what comes out of the whole tower. The tower holds and runs the
layers that are needed.

Deviation: softmax is float32 whatever the dtype; in transformers it is not.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import attention
from corejax import errors
from corejax import masks
from corejax.models import layers

HANDLED_KEYS = frozenset(
  {
    'attention_bias',
    'hidden_act',
    'hidden_size',
    'image_size',
    'intermediate_size',
    'layer_norm_eps',
    'norm_type',
    'num_attention_heads',
    'num_channels',
    'num_hidden_layers',
    'patch_size',
    'use_absolute_position_embeddings',
    'use_mean_pooling',
    'use_qk_norm',
  }
)
# No effect on hidden states in evaluation: dropout, initial values.
IGNORED_KEYS = frozenset(
  {
    'attention_dropout',
    'drop_path_rate',
    'hidden_dropout_prob',
    'initializer_factor',
    'initializer_range',
    'layer_scale_init_value',
    'projection_dropout',
    'use_mask_token',
  }
)
# Key -> least and most, as vision.RANGES.
RANGES: Mapping[str, tuple[float, float]] = {
  'hidden_size': (1, 1 << 17),
  'intermediate_size': (1, 1 << 20),
  'num_hidden_layers': (1, 4096),
  'num_attention_heads': (1, 4096),
  'image_size': (1, 1 << 14),
  'patch_size': (1, 1 << 14),
  'num_channels': (3, 3),
  'layer_norm_eps': (1e-30, 1.0),
}
_NORMS = ('layer_norm', 'rms_norm')


@dataclasses.dataclass(frozen=True)
class InternVitConfig:
  """Sizes and switches of a tower.

  Attributes:
    d_model: D of the tower.
    d_mlp: F of the tower.
    n_layers: layers of the released tower.
    n_heads: heads of a layer.
    image_size: pixels along each side of a (square) tile.
    patch_size: pixels along each side of a patch.
    n_channels: C.
    eps: of every norm.
    act: activation of the MLP.
    norm: 'layer_norm' or 'rms_norm', of every layer.
    qkv_bias: do q, k and v have biases? (o always has one)
    qk_norm: RMSNorm over all heads of q, and of k.
    position: is there a position table?
    final_norm: LayerNorm after the last layer.
  """

  d_model: int
  d_mlp: int
  n_layers: int
  n_heads: int
  image_size: int
  patch_size: int
  n_channels: int = 3
  eps: float = 1e-6
  act: str = 'gelu'
  norm: str = 'layer_norm'
  qkv_bias: bool = True
  qk_norm: bool = False
  position: bool = True
  final_norm: bool = False

  def __post_init__(self):
    if self.d_model % self.n_heads:
      raise errors.UserError(
        f'vision_config: hidden_size={self.d_model} is not a multiple of '
        f'num_attention_heads={self.n_heads}'
      )
    if self.image_size % self.patch_size:
      raise errors.UserError(
        f'vision_config: image_size={self.image_size} is not a multiple of '
        f'patch_size={self.patch_size}; only whole patches are supported'
      )

  @classmethod
  def from_hf(cls, hf: Any) -> 'InternVitConfig':
    """Reads an InternVLVisionConfig.

    Raises:
      UserError: another tower, or a setting that is not supported.
    """
    if hf.model_type != 'internvl_vision':
      raise errors.UserError(
        f'vision_config: tower {hf.model_type!r} is not supported; supported '
        'is internvl_vision'
      )
    if hf.norm_type not in _NORMS:
      raise errors.UserError(
        f'vision_config: norm_type={hf.norm_type!r} is not supported; '
        f'supported are {", ".join(_NORMS)}'
      )
    return cls(
      d_model=hf.hidden_size,
      d_mlp=hf.intermediate_size,
      n_layers=hf.num_hidden_layers,
      n_heads=hf.num_attention_heads,
      image_size=_side(hf.image_size, 'image_size'),
      patch_size=_side(hf.patch_size, 'patch_size'),
      n_channels=hf.num_channels,
      eps=hf.layer_norm_eps,
      act=layers.check_activation(hf.hidden_act, 'vision_config'),
      norm=hf.norm_type,
      qkv_bias=bool(hf.attention_bias),
      qk_norm=bool(hf.use_qk_norm),
      position=bool(hf.use_absolute_position_embeddings),
      final_norm=not hf.use_mean_pooling,
    )

  @property
  def grid(self) -> int:
    """Patches along each side."""
    return self.image_size // self.patch_size


def _side(size: int | Sequence[int], name: str) -> int:
  sides = {size} if isinstance(size, int) else set(size or ())
  if len(sides) != 1:
    raise errors.UserError(
      f'vision_config: {name}={size} is not square; only squares are supported'
    )
  return sides.pop()


class Attention(nnx.Module):
  """Every token reads every token of its tile."""

  def __init__(self, config: InternVitConfig, stack, dtype):
    d, n = config.d_model, config.n_heads
    opts: Any = dict(stack=stack, dtype=dtype)
    self.q = layers.Linear((n, d // n), (d,), bias=config.qkv_bias, **opts)
    self.k = layers.Linear((n, d // n), (d,), bias=config.qkv_bias, **opts)
    self.v = layers.Linear((n, d // n), (d,), bias=config.qkv_bias, **opts)
    self.o = layers.Linear((d,), (n, d // n), bias=True, **opts)
    self.q_norm = layers.Norm(d, **opts) if config.qk_norm else None
    self.k_norm = layers.Norm(d, **opts) if config.qk_norm else None
    self.eps = config.eps

  def __call__(self, x_MID: jax.Array, attend: attention.Attend) -> jax.Array:
    q_MINH = layers.project(self.q, x_MID, 'MID,NHD->MINH')
    k_MINH = layers.project(self.k, x_MID, 'MID,NHD->MINH')
    v_MINH = layers.project(self.v, x_MID, 'MID,NHD->MINH')
    q_MINH = self._normed(self.q_norm, q_MINH)
    k_MINH = self._normed(self.k_norm, k_MINH)
    mask = masks.AttnMask(causal=False)
    out_MINH = attend(q_MINH, k_MINH, v_MINH, mask).out_BTNH
    return layers.project(self.o, out_MINH, 'MINH,DNH->MID')

  def _normed(self, norm: layers.Norm | None, x_MINH: jax.Array) -> jax.Array:
    """The norm's mean is over all heads at once, not one a head."""
    if norm is None:
      return x_MINH
    flat_MID = x_MINH.reshape(*x_MINH.shape[:2], -1)
    return layers.rms_norm(norm, flat_MID, self.eps).reshape(x_MINH.shape)


class Block(nnx.Module):
  """One layer; with stack=(L,) the parameters of all layers."""

  def __init__(self, config: InternVitConfig, stack, dtype):
    d, f = (config.d_model,), (config.d_mlp,)
    opts: Any = dict(stack=stack, bias=True, dtype=dtype)
    norm: Any = dict(opts, bias=config.norm == 'layer_norm')
    self.norm1 = layers.Norm(config.d_model, **norm)
    self.attn = Attention(config, stack, dtype)
    self.scale1 = nnx.Param(jnp.ones((*stack, config.d_model), dtype))
    self.norm2 = layers.Norm(config.d_model, **norm)
    self.fc1 = layers.Linear(f, d, **opts)
    self.fc2 = layers.Linear(d, f, **opts)
    self.scale2 = nnx.Param(jnp.ones((*stack, config.d_model), dtype))
    self.config = config

  def __call__(self, x_MID: jax.Array, attend: attention.Attend) -> jax.Array:
    with jax.named_scope('attention'):
      out_MID = self.attn(self._normed(self.norm1, x_MID), attend)
      x_MID = x_MID + self.scale1[...] * out_MID
    with jax.named_scope('mlp'):
      normed = self._normed(self.norm2, x_MID)
      hidden_MIF = layers.project(self.fc1, normed, 'MID,FD->MIF')
      hidden_MIF = layers.ACTIVATIONS[self.config.act](hidden_MIF)
      out_MID = layers.project(self.fc2, hidden_MIF, 'MIF,DF->MID')
      return x_MID + self.scale2[...] * out_MID

  def _normed(self, norm: layers.Norm, x_MID: jax.Array) -> jax.Array:
    if self.config.norm == 'rms_norm':
      return layers.rms_norm(norm, x_MID, self.config.eps)
    return layers.layer_norm(norm, x_MID, self.config.eps)


class Tower(nnx.Module):
  """Patch embedding and the layers that are needed.

  Attributes:
    config: InternVitConfig.
    n_run: layers that are run and held, <= config.n_layers.
    patch: weight [D, C, Y, X].
    cls: class token [D].
    position: [I, D], class token first; None without a table.
    layers: a Block whose parameters lead with n_run.
    final: LayerNorm after the last layer; None where it is not applied.
  """

  def __init__(
    self, config: InternVitConfig, n_run: int, final: bool, dtype: jnp.dtype
  ):
    """Args: final: apply the final norm (if the config has one)."""
    d, side = config.d_model, config.patch_size
    self.config = config
    self.n_run = n_run
    self.patch = layers.Linear(
      (d,), (config.n_channels, side, side), bias=True, dtype=dtype
    )
    self.cls = nnx.Param(jnp.zeros(d, dtype))
    shape = (config.grid**2 + 1, d)
    self.position = (
      nnx.Param(jnp.zeros(shape, dtype)) if config.position else None
    )
    self.layers = Block(config, (n_run,), dtype)
    normed = final and config.final_norm
    self.final = layers.Norm(d, bias=True, dtype=dtype) if normed else None


def embed(tower: Tower, pixels_MCYX: jax.Array) -> jax.Array:
  """hidden[0]: [M, I, D], class token first, in the parameters' dtype.

  Raises:
    ValueError: tiles of another size than the tower's.
  """
  config = tower.config
  n_tiles, side = pixels_MCYX.shape[0], config.image_size
  expected = (n_tiles, config.n_channels, side, side)
  if pixels_MCYX.shape != expected:
    raise ValueError(f'{pixels_MCYX.shape=} must be {expected}')
  grid, patch = config.grid, config.patch_size
  with jax.named_scope('patches'):
    cells = pixels_MCYX.astype(tower.patch.weight.dtype).reshape(
      n_tiles, config.n_channels, grid, patch, grid, patch
    )
    x = layers.project(tower.patch, cells, 'MCgYhX,DCYX->MghD')
    x_MID = x.reshape(n_tiles, grid * grid, config.d_model)
    first = jnp.broadcast_to(tower.cls[...], (n_tiles, 1, config.d_model))
    x_MID = jnp.concatenate([first, x_MID], axis=1)
    if tower.position is not None:
      x_MID = x_MID + tower.position[...]
  return x_MID


def run(
  tower: Tower, pixels_MCYX: jax.Array, *, attend: attention.Attend
) -> jax.Array:
  """What the tower hands on.

  Args:
    tower: the parameters.
    pixels_MCYX: normalised pixels, any float dtype, one row a tile.
    attend: the attention; called without control or probe.

  Returns:
    [M, I, D], class token first.
  """
  with jax.named_scope('tower'):
    graph, params = nnx.split(tower.layers)

    def body(x_MID, params):
      return nnx.merge(graph, params)(x_MID, attend), None

    x_MID, _ = jax.lax.scan(body, embed(tower, pixels_MCYX), params)
    if tower.final is not None:
      x_MID = layers.layer_norm(tower.final, x_MID, tower.config.eps)
  return x_MID
