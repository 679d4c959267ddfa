"""What stands behind a decoder's attention: one MLP, or a mixture of experts.

    MLP       down(act(gate(x)) * up(x))
    experts   the same for the top_k of n experts that a token's router names,
              summed with the router's weights, which are made to sum to 1

(Shazeer, arXiv 2002.05202; Qwen3MoE and Qwen3VLMoeTextSparseMoeBlock of
transformers.) Tokens are sorted by expert, and each expert multiplies its own
alone (`lax.ragged_dot`): no token goes through an expert that it does not ask.
That has gradients but, in jax 0.10, no vmap: `lax.map` over a mixture instead.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import errors
from corejax.models import layers

# Of a text config, read by ExpertsConfig.from_hf; the rest is for training.
KEYS = frozenset(
  {
    'decoder_sparse_step',
    'mlp_only_layers',
    'moe_intermediate_size',
    'num_experts',
    'num_experts_per_tok',
    'num_local_experts',
  }
)
IGNORED_KEYS = frozenset({'output_router_logits', 'router_aux_loss_coef'})
RANGES = {
  'decoder_sparse_step': (1, 4096),
  'moe_intermediate_size': (1, 1 << 20),
  'num_experts': (1, 1 << 14),
  'num_local_experts': (1, 1 << 14),
  'num_experts_per_tok': (1, 1 << 14),
}


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
  """Sizes of a mixture.

  Attributes:
    n_experts: of each layer.
    top_k: experts a token.
    d_expert: F of each.
  """

  n_experts: int
  top_k: int
  d_expert: int

  @classmethod
  def from_hf(cls, hf: Any) -> 'ExpertsConfig':
    """Reads a text config object of transformers 5.

    Raises:
      UserError: a mixture in some of the layers, or with too few experts, or
        one whose matrices cannot be told from their transposes.
    """
    if hf.mlp_only_layers or hf.decoder_sparse_step != 1:
      raise errors.UserError(
        f'text_config: mlp_only_layers={hf.mlp_only_layers}, '
        f'decoder_sparse_step={hf.decoder_sparse_step}; only a mixture in '
        'every layer is supported'
      )
    if hf.num_experts_per_tok > hf.num_experts:
      raise errors.UserError(
        f'text_config: num_experts_per_tok={hf.num_experts_per_tok} of '
        f'num_experts={hf.num_experts}'
      )
    # Files hold either order (see weight_map.Entry.swap).
    if hf.hidden_size in (
      hf.moe_intermediate_size,
      2 * hf.moe_intermediate_size,
    ):
      raise errors.UserError(
        f'text_config: hidden_size={hf.hidden_size} with '
        f'moe_intermediate_size={hf.moe_intermediate_size} is not supported: '
        "an expert's matrix could not be told from its transpose"
      )
    return cls(
      n_experts=hf.num_experts,
      top_k=hf.num_experts_per_tok,
      d_expert=hf.moe_intermediate_size,
    )


class Mlp(nnx.Module):
  """Gated MLP (SwiGLU with silu)."""

  def __init__(
    self,
    d_model: int,
    d_mlp: int,
    *,
    act: str,
    bias: bool,
    stack: tuple[int, ...],
    dtype: jnp.dtype,
  ):
    d, f = (d_model,), (d_mlp,)
    opts: Any = dict(stack=stack, bias=bias, dtype=dtype)
    self.gate = layers.Linear(f, d, **opts)
    self.up = layers.Linear(f, d, **opts)
    self.down = layers.Linear(d, f, **opts)
    self.act = act

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    gate_BTF = layers.project(self.gate, x_BTD, 'BTD,FD->BTF')
    up_BTF = layers.project(self.up, x_BTD, 'BTD,FD->BTF')
    hidden_BTF = layers.ACTIVATIONS[self.act](gate_BTF) * up_BTF
    return layers.project(self.down, hidden_BTF, 'BTF,DF->BTD')


class Experts(nnx.Module):
  """A mixture; no biases.

  Attributes:
    router: weight [X, D], X experts.
    gate_up: [X, D, 2 F], the gate's columns first.
    down: [X, F, D].
  """

  def __init__(
    self,
    d_model: int,
    config: ExpertsConfig,
    *,
    act: str,
    stack: tuple[int, ...],
    dtype: jnp.dtype,
  ):
    n, f = config.n_experts, config.d_expert
    self.router = layers.Linear((n,), (d_model,), stack=stack, dtype=dtype)
    self.gate_up = nnx.Param(jnp.zeros((*stack, n, d_model, 2 * f), dtype))
    self.down = nnx.Param(jnp.zeros((*stack, n, f, d_model), dtype))
    self.act = act
    self.config = config

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    n_experts, top_k = self.config.n_experts, self.config.top_k
    rows_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
    with jax.named_scope('router'):
      logits_RX = layers.project(self.router, rows_RD, 'RD,XD->RX')
      share_RX = jax.nn.softmax(logits_RX.astype(jnp.float32), axis=-1)
      share_RK, expert_RK = jax.lax.top_k(share_RX, top_k)
      share_RK = share_RK / share_RK.sum(-1, keepdims=True)
      share_RK = share_RK.astype(x_BTD.dtype)
      order = jnp.argsort(expert_RK.reshape(-1), stable=True)
      row = order // top_k
      size_X = jnp.bincount(expert_RK.reshape(-1), length=n_experts)
      size_X = size_X.astype(jnp.int32)
    with jax.named_scope('experts'):
      both = jax.lax.ragged_dot(rows_RD[row], self.gate_up[...], size_X)
      gate, up = jnp.split(both, 2, axis=-1)
      hidden = layers.ACTIVATIONS[self.act](gate) * up
      out = jax.lax.ragged_dot(hidden, self.down[...], size_X)
      out = out * share_RK.reshape(-1)[order][:, None]
      return jnp.zeros_like(rows_RD).at[row].add(out).reshape(x_BTD.shape)
