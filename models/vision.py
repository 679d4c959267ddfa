"""Vision towers: CLIP (arXiv 2103.00020) and SigLIP (2303.15343) ViTs.

As transformers' CLIPVisionModel and SiglipVisionModel:

    patches -> (CLIP: class token first) + position table -> (CLIP: LayerNorm)
    x = x + o(attend(q(n1(x)), k(n1(x)), v(n1(x))))        no mask, all biased
    x = x + fc2(act(fc1(n2(x))))

`hidden[0]` is the input of layer 0, `hidden[i]` the output of layer i - 1; the
final norm (`post_layernorm`) and SigLIP's pooling head are never read by a
LLaVA and are not part of the tower, nor are layers above the highest one
whose output is used.
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

# vision model_type -> (short name, has a class token)
KINDS: Mapping[str, tuple[str, bool]] = {
  'clip_vision_model': ('clip', True),
  'siglip_vision_model': ('siglip', False),
}
HANDLED_KEYS = frozenset(
  {
    'hidden_act',
    'hidden_size',
    'image_size',
    'intermediate_size',
    'layer_norm_eps',
    'num_attention_heads',
    'num_channels',
    'num_hidden_layers',
    'patch_size',
  }
)
# No effect on hidden states in evaluation.
IGNORED_KEYS = frozenset(
  {
    'attention_dropout',
    'initializer_factor',
    'initializer_range',
    'projection_dim',
    'vision_use_head',
    'vocab_size',
  }
)
# Key -> least and most, as decoder.RANGES; pictures have three channels.
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


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes of a tower.

  Attributes:
    kind: 'clip' or 'siglip'.
    d_model: D of the tower.
    d_mlp: F of the tower.
    n_layers: layers of the released tower.
    n_heads: heads of a layer.
    image_size: pixels along each side of a (square) picture.
    patch_size: pixels along each side of a patch.
    n_channels: C.
    eps: of every LayerNorm.
    act: activation of the MLP.
    has_cls: a class token precedes the patches.
  """

  kind: str
  d_model: int
  d_mlp: int
  n_layers: int
  n_heads: int
  image_size: int
  patch_size: int
  n_channels: int = 3
  eps: float = 1e-5
  act: str = 'quick_gelu'
  has_cls: bool = True

  @classmethod
  def from_hf(cls, hf: Any) -> 'VisionConfig':
    """Reads a vision config object of transformers 5.

    Raises:
      UserError: another tower, or a setting that is not supported.
    """
    if hf.model_type not in KINDS:
      raise errors.UserError(
        f'vision_config: tower {hf.model_type!r} is not supported; supported '
        f'are {", ".join(KINDS)}'
      )
    kind, has_cls = KINDS[hf.model_type]
    if hf.hidden_size % hf.num_attention_heads:
      raise errors.UserError(
        f'vision_config: hidden_size={hf.hidden_size} is not a multiple of '
        f'num_attention_heads={hf.num_attention_heads}'
      )
    if getattr(hf, 'tie_last_hidden_states', None):
      raise errors.UserError(
        'vision_config: tie_last_hidden_states=True is not supported'
      )
    image_size = _side(hf.image_size, 'image_size')
    patch_size = _side(hf.patch_size, 'patch_size')
    if not 0 < patch_size <= image_size:
      raise errors.UserError(
        f'vision_config: patch_size={patch_size} with image_size={image_size}'
      )
    return cls(
      kind=kind,
      d_model=hf.hidden_size,
      d_mlp=hf.intermediate_size,
      n_layers=hf.num_hidden_layers,
      n_heads=hf.num_attention_heads,
      image_size=image_size,
      patch_size=patch_size,
      n_channels=hf.num_channels,
      eps=hf.layer_norm_eps,
      act=layers.check_activation(hf.hidden_act, 'vision_config'),
      has_cls=has_cls,
    )

  @property
  def grid(self) -> int:
    """Patches along each side; a rest of the pixels is not seen."""
    return self.image_size // self.patch_size

  @property
  def n_tokens(self) -> int:
    """Tokens of one picture, class token included."""
    return self.grid**2 + self.has_cls


def _side(size: int | Sequence[int], name: str) -> int:
  sides = {size} if isinstance(size, int) else set(size or ())
  if len(sides) != 1:
    raise errors.UserError(
      f'vision_config: {name}={size} is not square; only squares are supported'
    )
  return sides.pop()


class Attention(nnx.Module):
  """Every token reads every token of its picture."""

  def __init__(self, config: VisionConfig, stack, dtype):
    d, n = config.d_model, config.n_heads
    opts: Any = dict(stack=stack, bias=True, dtype=dtype)
    self.q = layers.Linear((n, d // n), (d,), **opts)
    self.k = layers.Linear((n, d // n), (d,), **opts)
    self.v = layers.Linear((n, d // n), (d,), **opts)
    self.o = layers.Linear((d,), (n, d // n), **opts)

  def __call__(self, x_MID: jax.Array, attend: attention.Attend) -> jax.Array:
    q_MINH = layers.project(self.q, x_MID, 'MID,NHD->MINH')
    k_MINH = layers.project(self.k, x_MID, 'MID,NHD->MINH')
    v_MINH = layers.project(self.v, x_MID, 'MID,NHD->MINH')
    mask = masks.AttnMask(causal=False)
    out_MINH = attend(q_MINH, k_MINH, v_MINH, mask).out_BTNH
    return layers.project(self.o, out_MINH, 'MINH,DNH->MID')


class Block(nnx.Module):
  """One layer; with stack=(L,) the parameters of all layers."""

  def __init__(self, config: VisionConfig, stack, dtype):
    d, f = (config.d_model,), (config.d_mlp,)
    opts: Any = dict(stack=stack, bias=True, dtype=dtype)
    self.norm1 = layers.Norm(config.d_model, **opts)
    self.attn = Attention(config, stack, dtype)
    self.norm2 = layers.Norm(config.d_model, **opts)
    self.fc1 = layers.Linear(f, d, **opts)
    self.fc2 = layers.Linear(d, f, **opts)
    self.config = config

  def __call__(self, x_MID: jax.Array, attend: attention.Attend) -> jax.Array:
    eps = self.config.eps
    with jax.named_scope('attention'):
      normed = layers.layer_norm(self.norm1, x_MID, eps)
      x_MID = x_MID + self.attn(normed, attend)
    with jax.named_scope('mlp'):
      normed = layers.layer_norm(self.norm2, x_MID, eps)
      hidden_MIF = layers.project(self.fc1, normed, 'MID,FD->MIF')
      hidden_MIF = layers.ACTIVATIONS[self.config.act](hidden_MIF)
      return x_MID + layers.project(self.fc2, hidden_MIF, 'MIF,DF->MID')


class Tower(nnx.Module):
  """Patch embedding and the layers that are needed.

  Attributes:
    config: VisionConfig.
    n_run: layers that are run and held, <= config.n_layers.
    patch: weight [D, C, Y, X], CLIP without bias.
    cls: class token [D]; None without one.
    position: [I, D], class token first.
    pre_norm: LayerNorm before the layers; None in SigLIP.
    layers: a Block whose parameters lead with n_run.
  """

  def __init__(self, config: VisionConfig, n_run: int, dtype: jnp.dtype):
    d, side, clip = config.d_model, config.patch_size, config.kind == 'clip'
    self.config = config
    self.n_run = n_run
    self.patch = layers.Linear(
      (d,), (config.n_channels, side, side), bias=not clip, dtype=dtype
    )
    self.cls = nnx.Param(jnp.zeros(d, dtype)) if config.has_cls else None
    self.position = nnx.Param(jnp.zeros((config.n_tokens, d), dtype))
    self.pre_norm = layers.Norm(d, bias=True, dtype=dtype) if clip else None
    self.layers = Block(config, (n_run,), dtype)


def embed(tower: Tower, pixels_MCYX: jax.Array) -> jax.Array:
  """hidden[0]: [M, I, D], in the parameters' dtype.

  Raises:
    ValueError: pictures of another size than the tower's.
  """
  config = tower.config
  n_pictures = pixels_MCYX.shape[0]
  side = config.image_size
  expected = (n_pictures, config.n_channels, side, side)
  if pixels_MCYX.shape != expected:
    raise ValueError(f'{pixels_MCYX.shape=} must be {expected}')
  grid, patch = config.grid, config.patch_size
  with jax.named_scope('patches'):
    seen = pixels_MCYX[:, :, : grid * patch, : grid * patch]
    cells = seen.astype(tower.patch.weight.dtype).reshape(
      n_pictures, config.n_channels, grid, patch, grid, patch
    )
    x = layers.project(tower.patch, cells, 'MCgYhX,DCYX->MghD')
    x_MID = x.reshape(n_pictures, grid * grid, config.d_model)
    if tower.cls is not None:
      first = jnp.broadcast_to(tower.cls[...], (n_pictures, 1, config.d_model))
      x_MID = jnp.concatenate([first, x_MID], axis=1)
    x_MID = x_MID + tower.position[...]
    if tower.pre_norm is not None:
      x_MID = layers.layer_norm(tower.pre_norm, x_MID, config.eps)
  return x_MID


def run(
  tower: Tower,
  pixels_MCYX: jax.Array,
  wanted: Sequence[int],
  *,
  attend: attention.Attend,
) -> tuple[jax.Array, ...]:
  """Hidden states of the pictures.

  Args:
    tower: the parameters.
    pixels_MCYX: normalised pixels, any float dtype.
    wanted: static indices into `hidden`, 0..n_run.
    attend: the attention; called without control or probe.

  Returns:
    Per wanted index [M, I, D], class token (if any) first.

  Raises:
    ValueError: an index beyond the layers that are held.
  """
  if not all(0 <= index <= tower.n_run for index in wanted):
    raise ValueError(f'{wanted=} must lie in 0..{tower.n_run}')
  with jax.named_scope('tower'):
    start_MID = embed(tower, pixels_MCYX)
    graph, params = nnx.split(tower.layers)
    # One slot a wanted inner layer: stacking all of them would cost
    # n_run * M * I * D values, slicing the parameters a copy of the tower.
    inner = sorted({index for index in wanted if 0 < index < tower.n_run})

    def body(carry, xs):
      x_MID, kept = carry
      params, index = xs
      x_MID = nnx.merge(graph, params)(x_MID, attend)
      kept = {k: jnp.where(index == k, x_MID, slot) for k, slot in kept.items()}
      return (x_MID, kept), None

    slots = {index: jnp.zeros_like(start_MID) for index in inner}
    numbers = jnp.arange(1, tower.n_run + 1)
    (end_MID, kept), _ = jax.lax.scan(
      body, (start_MID, slots), (params, numbers)
    )
  kept = {0: start_MID, **kept, tower.n_run: end_MID}
  return tuple(kept[index] for index in wanted)
