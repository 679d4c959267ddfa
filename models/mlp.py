"""What stands behind a decoder's attention: one MLP, or a mixture of experts.

    MLP       down(act(gate(x)) * up(x))
    experts   the same for the top_k of n experts that a token's router names,
              summed with the router's weights, which can be made to sum to 1

(Shazeer, arXiv 2002.05202; Qwen3MoE and Qwen3VLMoeTextSparseMoeBlock of
transformers.) `grouped` and `in_blocks` are two ways to compute it, chosen by
the device. Both have gradients; `lax.ragged_dot` has, in jax 0.10, no vmap over
its rows alone: use `lax.map` around a mixture instead.
"""

import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import errors
from corejax.models import layers

# Of a text config, read by ExpertsConfig.from_hf; the rest is for training.
# `norm_topk_prob` is a backbone's own: not all of them read it.
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
_BLOCK = 64  # rows of one expert that are multiplied at a time


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
  """Sizes of a mixture.

  Attributes:
    n_experts: of each layer.
    top_k: experts a token.
    d_expert: F of each.
    normalise: are a token's weights made to sum to 1?
  """

  n_experts: int
  top_k: int
  d_expert: int
  normalise: bool = True

  @classmethod
  def from_hf(cls, hf: Any, normalise: bool = True) -> 'ExpertsConfig':
    """Reads a text config object of transformers 5.

    Args:
      hf: the config.
      normalise: see the attribute.

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
      normalise=normalise,
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
    rows_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
    with jax.named_scope('router'):
      logits_RX = layers.project(self.router, rows_RD, 'RD,XD->RX')
      share_RX = jax.nn.softmax(logits_RX.astype(jnp.float32), axis=-1)
      share_RK, expert_RK = jax.lax.top_k(share_RX, self.config.top_k)
      if self.config.normalise:
        share_RK = share_RK / share_RK.sum(-1, keepdims=True)
      share_RK = share_RK.astype(x_BTD.dtype)
    act = layers.ACTIVATIONS[self.act]
    with jax.named_scope('experts'):
      out_RD = jax.lax.platform_dependent(
        rows_RD,
        expert_RK,
        share_RK,
        self.gate_up[...],
        self.down[...],
        cpu=functools.partial(in_blocks, act),
        default=functools.partial(grouped, act),
      )
    return out_RD.reshape(x_BTD.shape)


def grouped(act, rows_RD, expert_RK, share_RK, gate_up_XDF, down_XFD):
  """Rows sorted by expert, each multiplied by its own alone.

  For devices on which a ragged product is one: XLA's CPU backend multiplies
  every row by every expert, and keeps a copy of the rows for each.
  """
  n_experts, top_k = gate_up_XDF.shape[0], expert_RK.shape[1]
  order = jnp.argsort(expert_RK.reshape(-1), stable=True)
  row = order // top_k
  size_X = jnp.bincount(expert_RK.reshape(-1), length=n_experts)
  size_X = size_X.astype(jnp.int32)
  both = jax.lax.ragged_dot(rows_RD[row], gate_up_XDF, size_X)
  gate, up = jnp.split(both, 2, axis=-1)
  out = jax.lax.ragged_dot(act(gate) * up, down_XFD, size_X)
  out = out * share_RK.reshape(-1)[order][:, None]
  return jnp.zeros_like(rows_RD).at[row].add(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_blocks(act, rows_RD, expert_RK, share_RK, gate_up_XDF, down_XFD):
  """Rows sorted by expert, a block of one expert's rows at a time.

      sorted   0 0 0 0 0 2 2 2 2 5        experts of the rows, blocks of 4
      blocks   [. . . .]                  what a block writes beyond its expert
                       [. x x x]          (x) the next expert's blocks, which
                         [. . . .]        come later, write over
                                 [. x x x]

  Only experts that somebody asks are visited, so the work is that of the rows
  and of less than a block an expert; how many is known when it runs, for which
  a loop has no gradient: `one_by_one` gives it.
  """
  n_experts, (n_rows, top_k) = gate_up_XDF.shape[0], expert_RK.shape
  n_asked = n_rows * top_k
  block = min(_BLOCK, n_asked)
  order = jnp.argsort(expert_RK.reshape(-1), stable=True)
  size_X = jnp.bincount(expert_RK.reshape(-1), length=n_experts)
  start_X = jnp.cumsum(size_X) - size_X
  # Those that somebody asks first, from below.
  visit_X = jnp.argsort(size_X == 0, stable=True)
  sorted_RD = jnp.pad(rows_RD[order // top_k], ((0, block), (0, 0)))

  def expert(index, out_RD):
    x = visit_X[index]
    gate_up_DF, down_FD = gate_up_XDF[x], down_XFD[x]

    def step(number, out_RD):
      first = start_X[x] + number * block
      mine = jax.lax.dynamic_slice_in_dim(sorted_RD, first, block)
      gate, up = jnp.split(mine @ gate_up_DF, 2, axis=-1)
      new = (act(gate) * up) @ down_FD
      return jax.lax.dynamic_update_slice_in_dim(out_RD, new, first, 0)

    return jax.lax.fori_loop(0, -(-size_X[x] // block), step, out_RD)

  out_RD = jnp.zeros_like(sorted_RD)
  out_RD = jax.lax.fori_loop(0, (size_X > 0).sum(), expert, out_RD)
  back = jnp.argsort(order)  # where each row's own experts' results stand
  out_RKD = out_RD[back].reshape(n_rows, top_k, -1)
  return (out_RKD * share_RK[..., None]).sum(1)


def _forward(act, rows_RD, expert_RK, share_RK, gate_up_XDF, down_XFD):
  given = (rows_RD, expert_RK, share_RK, gate_up_XDF, down_XFD)
  return in_blocks(act, *given), given


def _backward(act, given, out_RD):
  rows_RD, expert_RK, *rest = given

  def compute(rows_RD, *rest):
    return one_by_one(act, rows_RD, expert_RK, *rest)

  grads = jax.vjp(compute, rows_RD, *rest)[1](out_RD)
  return grads[0], None, *grads[1:]


in_blocks.defvjp(_forward, _backward)


def one_by_one(act, rows_RD, expert_RK, share_RK, gate_up_XDF, down_XFD):
  """Every row through every expert, with a share of 0 where it asks not."""
  n_experts = gate_up_XDF.shape[0]
  chosen_RKX = expert_RK[..., None] == jnp.arange(n_experts)
  share_XR = (chosen_RKX * share_RK[..., None]).sum(1).T

  def add(out_RD, expert):
    gate_up_DF, down_FD, share_R = expert
    gate, up = jnp.split(rows_RD @ gate_up_DF, 2, axis=-1)
    return out_RD + ((act(gate) * up) @ down_FD) * share_R[:, None], None

  start_RD = jnp.zeros_like(rows_RD)
  return jax.lax.scan(add, start_RD, (gate_up_XDF, down_XFD, share_XR))[0]
