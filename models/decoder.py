"""The text decoder that all families share.

Llama (arXiv 2302.13971; Vicuna is the same), Mistral (2310.06825, sliding
window), Qwen2 (2407.10671, biases on q, k, v; windows on the upper layers) and
Qwen3 (2505.09388, norms on q and k), as in transformers' Llama*, Mistral*,
Qwen2* and Qwen3* classes:

    x = x + o(attend(rope(q(n(x))), rope(k(n(x))), v(n(x))))    n: RMSNorm
    x = x + down(silu(gate(n(x))) * up(n(x)))

Layers are stacked on a leading axis L and run by one `lax.scan`: the program
is as large as one layer. What a HeadControl says to a layer and what a cache
holds for it come in as scan inputs; what a Probe measured and the keys and
values of a chunk leave as scan outputs.

Deviations: logits are float32 whatever the parameters' dtype; see rope.py for
dynamic NTK.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import attention
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import errors
from corejax import masks
from corejax import probe as probe_lib
from corejax.models import layers
from corejax.models import mlp
from corejax.models import rope

_COMMON = frozenset(
  {
    'hidden_act',
    'hidden_size',
    'intermediate_size',
    'max_position_embeddings',
    'num_attention_heads',
    'num_hidden_layers',
    'num_key_value_heads',
    'original_max_position_embeddings',
    'rms_norm_eps',
    'rope_parameters',
    'rope_scaling',
    'rope_theta',
    'head_dim',
    'tie_word_embeddings',
    'vocab_size',
  }
)
_WINDOWS = frozenset(
  {
    'layer_types',
    'max_window_layers',
    'sliding_window',
    'use_sliding_window',
  }
)
# text model_type -> config keys that are read here.
HANDLED_KEYS: Mapping[str, frozenset[str]] = {
  'llama': _COMMON | {'attention_bias', 'mlp_bias'},
  'mistral': _COMMON | {'sliding_window'},
  'qwen2': _COMMON | _WINDOWS,
  'qwen3': _COMMON | _WINDOWS | {'attention_bias'},
}
# No effect on a forward pass in evaluation.
IGNORED_KEYS = frozenset(
  {
    'attention_dropout',
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
    'initializer_range',
    'pretraining_tp',
    'use_cache',
  }
)
# Key -> least and most: far beyond any model, so that a damaged number is told
# before anything of its size is made.
RANGES: Mapping[str, tuple[float, float]] = {
  'vocab_size': (1, 1 << 24),
  'hidden_size': (1, 1 << 17),
  'intermediate_size': (1, 1 << 20),
  'num_hidden_layers': (1, 4096),
  'num_attention_heads': (1, 4096),
  'num_key_value_heads': (1, 4096),
  'head_dim': (1, 1 << 16),
  'max_position_embeddings': (1, 1 << 30),
  'original_max_position_embeddings': (1, 1 << 30),
  'sliding_window': (1, 1 << 30),
  'max_window_layers': (0, 4096),
  'rms_norm_eps': (1e-30, 1.0),
  'rope_theta': (1.0, 1e30),
}
# Switches of other backbones, let through where they are off.
NEUTRAL_KEYS: Mapping[str, Any] = {
  'attention_bias': False,
  'mlp_bias': False,
  'partial_rotary_factor': 1.0,
  'use_mrope': False,
  'use_sliding_window': False,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and switches of a decoder.

  Attributes:
    kind: HF model_type.
    vocab_size: V.
    d_model: D.
    d_mlp: F.
    n_layers, n_heads, n_kv_heads, head_dim: L, N, K, H.
    max_length: positions the model was trained for.
    rope: rotary embedding.
    rms_eps: of every RMSNorm.
    act: activation of the gated MLP.
    qkv_bias, o_bias, mlp_bias: which projections have a bias.
    qk_norm: RMSNorm on each query and key head before RoPE.
    tie: the output head is the embedding table.
    windows: per layer, the model's own sliding window (masks.DENSE: none).
    experts: in place of the MLP, a mixture.
  """

  kind: str
  vocab_size: int
  d_model: int
  d_mlp: int
  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  max_length: int
  rope: rope.RopeConfig
  rms_eps: float = 1e-6
  act: str = 'silu'
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  tie: bool = False
  windows: tuple[int, ...] = ()
  experts: mlp.ExpertsConfig | None = None

  def __post_init__(self):
    if self.n_heads % self.n_kv_heads:
      raise errors.UserError(
        f'num_attention_heads={self.n_heads} is not a multiple of '
        f'num_key_value_heads={self.n_kv_heads}'
      )
    if not self.windows:
      windows = (masks.DENSE,) * self.n_layers
      object.__setattr__(self, 'windows', windows)

  @classmethod
  def from_hf(
    cls,
    hf: Any,
    *,
    tie: bool,
    kind: str = '',
    mrope: str = '',
    experts: mlp.ExpertsConfig | None = None,
  ) -> 'DecoderConfig':
    """Reads a text config object of transformers 5.

    Args:
      hf: LlamaConfig, MistralConfig, Qwen2Config or Qwen3Config.
      tie: does the whole model tie its head?
      kind: the backbone that it computes as; '' is hf.model_type.
      mrope: key of rope.MROPE; '' is none.
      experts: in place of the MLP, a mixture.

    Raises:
      UserError: another backbone, or a setting that is not supported.
    """
    kind = kind or hf.model_type
    if kind not in HANDLED_KEYS:
      raise errors.UserError(
        f'text_config: backbone {kind!r} is not supported; supported are '
        f'{", ".join(HANDLED_KEYS)}'
      )
    heads = hf.num_attention_heads
    head_dim = getattr(hf, 'head_dim', None) or hf.hidden_size // heads
    bias = kind in ('llama', 'qwen3') and bool(hf.attention_bias)
    return cls(
      kind=kind,
      vocab_size=hf.vocab_size,
      d_model=hf.hidden_size,
      d_mlp=hf.intermediate_size,
      n_layers=hf.num_hidden_layers,
      n_heads=heads,
      n_kv_heads=hf.num_key_value_heads or heads,
      head_dim=head_dim,
      max_length=hf.max_position_embeddings,
      rope=rope.RopeConfig.from_hf(
        hf.rope_parameters or {}, head_dim, hf.max_position_embeddings, mrope
      ),
      rms_eps=hf.rms_norm_eps,
      act=layers.check_activation(hf.hidden_act, 'text_config'),
      qkv_bias=bias or kind == 'qwen2',
      o_bias=bias,
      mlp_bias=kind == 'llama' and bool(hf.mlp_bias),
      qk_norm=kind == 'qwen3',
      tie=tie,
      windows=_windows(hf),
      experts=experts,
    )


def _windows(hf: Any) -> tuple[int, ...]:
  """Every layer's sliding window, from a text config of transformers."""
  window = getattr(hf, 'sliding_window', None)
  kinds = getattr(hf, 'layer_types', None)
  if kinds is None:
    all_layers = window if hf.model_type == 'mistral' else None
    return (all_layers or masks.DENSE,) * hf.num_hidden_layers
  sizes = {'full_attention': masks.DENSE, 'sliding_attention': window}
  for kind in kinds:
    if sizes.get(kind) is None:
      raise errors.UserError(
        f'text_config: layer type {kind!r} with sliding_window={window} is not '
        f'supported; supported are {", ".join(sizes)} (with a window)'
      )
  if len(kinds) != hf.num_hidden_layers:
    raise errors.UserError(
      f'text_config: {len(kinds)} layer_types for {hf.num_hidden_layers} layers'
    )
  return tuple(sizes[kind] for kind in kinds)


@dataclasses.dataclass(frozen=True)
class LayerOut:
  """What one layer writes.

  Attributes:
    x_BTD: of the whole layer, or of its attention alone.
    measured: probe results; None without a probe.
    kv: (k_BTKH, v_BTKH) of the rows; None without a cache.
  """

  x_BTD: jax.Array
  measured: probe_lib.Measured | None
  kv: tuple[jax.Array, jax.Array] | None


class Attention(nnx.Module):
  """Grouped-query attention around a function that is handed in."""

  def __init__(self, config: DecoderConfig, stack, dtype):
    n, k, h = config.n_heads, config.n_kv_heads, config.head_dim
    d = config.d_model
    opts: Any = dict(stack=stack, dtype=dtype)
    qkv: Any = dict(bias=config.qkv_bias, **opts)
    self.q = layers.Linear((n, h), (d,), **qkv)
    self.k = layers.Linear((k, h), (d,), **qkv)
    self.v = layers.Linear((k, h), (d,), **qkv)
    self.o = layers.Linear((d,), (n, h), bias=config.o_bias, **opts)
    self.q_norm = layers.Norm(h, **opts) if config.qk_norm else None
    self.k_norm = layers.Norm(h, **opts) if config.qk_norm else None
    self.eps = config.rms_eps

  def __call__(
    self,
    x_BTD: jax.Array,
    turn: rope.Turns,
    mask: masks.AttnMask,
    attend: attention.Attend,
    control: control_lib.HeadControl | None,
    probe: probe_lib.Probe | None,
    cache: cache_lib.LayerCache | None,
  ) -> LayerOut:
    with jax.named_scope('qkv'):
      q_BTNH = layers.project(self.q, x_BTD, 'BTD,NHD->BTNH')
      k_BTKH = layers.project(self.k, x_BTD, 'BTD,KHD->BTKH')
      v_BTKH = layers.project(self.v, x_BTD, 'BTD,KHD->BTKH')
      if self.q_norm is not None and self.k_norm is not None:
        q_BTNH = layers.rms_norm(self.q_norm, q_BTNH, self.eps)
        k_BTKH = layers.rms_norm(self.k_norm, k_BTKH, self.eps)
      q_BTNH = rope.rotate(q_BTNH, turn)
      k_BTKH = rope.rotate(k_BTKH, turn)
    k_BSKH, v_BSKH, kv = k_BTKH, v_BTKH, None
    if cache is not None:
      kv = (k_BTKH, v_BTKH)
      with jax.named_scope('cache'):
        k_BSKH, v_BSKH = cache.with_chunk(*kv)
    with jax.named_scope('attend'):
      reading = None if control is None else control.attend
      result = attend(q_BTNH, k_BSKH, v_BSKH, mask, reading, probe)
    with jax.named_scope('o'):
      writing = None if control is None else control.output
      out_BTNH = control_lib.apply_output(result.out_BTNH, writing)
      out_BTD = layers.project(self.o, out_BTNH, 'BTNH,DNH->BTD')
    measured = result.measured
    if measured is not None and probe is not None:
      measured = dataclasses.replace(
        measured,
        written_BQN=probe_lib.written(probe, out_BTNH, self.o.weight[...]),
        class_mean_BCNH=probe_lib.class_means(probe, out_BTNH),
        out_BTNH=out_BTNH if probe.outputs else None,
      )
    return LayerOut(out_BTD, measured, kv)


class Block(nnx.Module):
  """One layer; with stack=(L,) the parameters of all layers."""

  def __init__(self, config: DecoderConfig, stack, dtype):
    norm: Any = dict(stack=stack, dtype=dtype)
    self.input_norm = layers.Norm(config.d_model, **norm)
    self.attn = Attention(config, stack, dtype)
    self.post_norm = layers.Norm(config.d_model, **norm)
    d = config.d_model
    opts: Any = dict(act=config.act, **norm)
    if config.experts is not None:
      self.mlp = mlp.Experts(d, config.experts, **opts)
    else:
      self.mlp = mlp.Mlp(d, config.d_mlp, bias=config.mlp_bias, **opts)
    self.eps = config.rms_eps

  def __call__(
    self, x_BTD, turn, mask, attend, control, probe, cache
  ) -> LayerOut:
    with jax.named_scope('attention'):
      normed = layers.rms_norm(self.input_norm, x_BTD, self.eps)
      out = self.attn(normed, turn, mask, attend, control, probe, cache)
      x_BTD = x_BTD + out.x_BTD
    with jax.named_scope('mlp'):
      normed = layers.rms_norm(self.post_norm, x_BTD, self.eps)
      return dataclasses.replace(out, x_BTD=x_BTD + self.mlp(normed))


class Decoder(nnx.Module):
  """Embedding table, stacked layers, final norm and output head.

  Attributes:
    config: DecoderConfig.
    embed: weight [V, D].
    layers: a Block whose parameters lead with L.
    norm: the final RMSNorm.
    head: weight [V, D]; None where it is the embedding table.
  """

  def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
    table = ((config.vocab_size,), (config.d_model,))
    self.config = config
    self.embed = layers.Linear(*table, dtype=dtype)
    self.layers = Block(config, (config.n_layers,), dtype)
    self.norm = layers.Norm(config.d_model, dtype=dtype)
    self.head = None if config.tie else layers.Linear(*table, dtype=dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderOut:
  """What the layers leave behind.

  Attributes:
    x_BTD: hidden state after the last layer, before the final norm.
    measured: probe results with a leading L; None without a probe.
    cache: with the rows' keys and values; None if none was given.
  """

  x_BTD: jax.Array
  measured: probe_lib.Measured | None = None
  cache: cache_lib.Cache | None = None


def new_cache(decoder: Decoder, batch: int, size: int) -> cache_lib.Cache:
  """An empty cache of `size` slots an example, in the parameters' dtype."""
  config = decoder.config
  return cache_lib.Cache.empty(
    n_layers=config.n_layers,
    batch=batch,
    size=size,
    n_kv_heads=config.n_kv_heads,
    head_dim=config.head_dim,
    dtype=decoder.embed.weight.dtype,
  )


def embed(decoder: Decoder, tokens_BT: jax.Array) -> jax.Array:
  """[B, T, D] embeddings of int32 tokens [B, T]."""
  with jax.named_scope('embed'):
    return decoder.embed.weight[...][tokens_BT]


def run(
  decoder: Decoder,
  x_BTD: jax.Array,
  positions_BT: jax.Array,
  mask: masks.AttnMask,
  *,
  attend: attention.Attend,
  control: control_lib.HeadControl | None = None,
  probe: probe_lib.Probe | None = None,
  cache: cache_lib.Cache | None = None,
  deep_XBTD: jax.Array | None = None,
) -> DecoderOut:
  """All layers.

  Args:
    decoder: the parameters.
    x_BTD: embeddings, in the parameters' dtype.
    positions_BT: int32 RoPE positions; [B, 3, T] with M-RoPE.
    mask: who may read whom.
    attend: the attention, see corejax.attention.
    control: edits of heads, stacked on layers.
    probe: what to measure; the same rows and regions in every layer.
    cache: what was read before these rows, see corejax.cache.
    deep_XBTD: DeepStack (arXiv 2406.04334): [x] is added to layer x's output.

  Returns:
    A DecoderOut.
  """
  config = decoder.config
  batch, length = x_BTD.shape[:2]
  placed, kept = None, None
  if cache is not None:
    placed = cache_lib.chunk(cache, mask, length)
    mask, kept = placed.mask, (cache.k_LBSKH, cache.v_LBSKH)
    x_BTD = jnp.where(placed.lost_BT[..., None], jnp.nan, x_BTD)
  end_B = mask.kv_len_B
  if end_B is None:
    end_B = jnp.full(batch, length, jnp.int32)
  offset_B = 0 if mask.q_offset_B is None else mask.q_offset_B[:, None]
  is_real_BT = jnp.arange(length) + offset_B < end_B[:, None]
  length_B = rope.reached(positions_BT, is_real_BT)
  turn = rope.turns(config.rope, positions_BT, length_B, x_BTD.dtype)
  graph, params = nnx.split(decoder.layers)
  stacked, shared = (None, None) if control is None else control.per_layer()
  window_L = None
  if any(window != masks.DENSE for window in config.windows):
    window_L = jnp.asarray(config.windows, jnp.int32)

  def body(x_BTD, xs):
    params, layer, layer_control, window, kept = xs
    layer_mask = mask
    if window is not None:
      if mask.window is not None:
        window = jnp.minimum(window, mask.window)
      layer_mask = dataclasses.replace(mask, window=window)
    if layer_control is not None:
      layer_control = layer_control.join(shared)
    layer_cache = None
    if placed is not None:
      k_BSKH, v_BSKH = kept
      layer_cache = cache_lib.LayerCache(k_BSKH, v_BSKH, placed.slot_BT)
    out = nnx.merge(graph, params)(
      x_BTD, turn, layer_mask, attend, layer_control, probe, layer_cache
    )
    return layers.add_deep(out.x_BTD, deep_XBTD, layer), (out.measured, out.kv)

  with jax.named_scope('decoder'):
    layer_L = jnp.arange(config.n_layers)
    x_BTD, (measured, kv) = jax.lax.scan(
      body, x_BTD, (params, layer_L, stacked, window_L, kept)
    )
    if placed is not None and kv is not None:
      cache = placed.extended(*kv)
  return DecoderOut(x_BTD, measured, cache)


def logits(
  decoder: Decoder, x_BTD: jax.Array, rows_BP: jax.Array | None = None
) -> jax.Array:
  """Next-token logits.

  Args:
    decoder: the parameters.
    x_BTD: `DecoderOut.x_BTD`.
    rows_BP: int32 rows of T, those below 0 are unused (and hold row 0);
      None is all rows.

  Returns:
    float32 [B, P, V].
  """
  with jax.named_scope('head'):
    if rows_BP is not None:
      rows_BP1 = jnp.maximum(rows_BP, 0)[..., None]
      x_BTD = jnp.take_along_axis(x_BTD, rows_BP1, axis=1)
    x_BPD = layers.rms_norm(decoder.norm, x_BTD, decoder.config.rms_eps)
    table = decoder.embed if decoder.head is None else decoder.head
    return jnp.einsum(
      'BPD,VD->BPV',
      x_BPD,
      table.weight[...],
      preferred_element_type=jnp.float32,
    )
