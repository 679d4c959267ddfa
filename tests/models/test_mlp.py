"""A mixture of experts: both ways to compute it are its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax.models import mlp

_X, _D, _F, _K = 5, 6, 7, 2


def _case(seed: int, n_rows: int):
  rng = np.random.default_rng(seed)
  expert_RK = np.argsort(rng.random((n_rows, _X)), 1)[:, :_K]
  if seed == 1:  # an expert that nobody asks, and one that all do
    expert_RK = np.stack([np.full(n_rows, 3), rng.integers(0, 3, n_rows)], 1)
  return (
    rng.standard_normal((n_rows, _D)).astype(np.float32),
    expert_RK.astype(np.int32),
    rng.random((n_rows, _K)).astype(np.float32),
    rng.standard_normal((_X, _D, 2 * _F)).astype(np.float32),
    rng.standard_normal((_X, _F, _D)).astype(np.float32),
  )


def _expected(rows_RD, expert_RK, share_RK, gate_up_XDF, down_XFD):
  out = np.zeros(rows_RD.shape)
  for r, k in np.ndindex(*expert_RK.shape):
    x = expert_RK[r, k]
    gate, up = np.split(rows_RD[r].astype(np.float64) @ gate_up_XDF[x], 2)
    out[r] += share_RK[r, k] * (gate / (1 + np.exp(-gate)) * up) @ down_XFD[x]
  return out


@pytest.mark.parametrize(
  'compute', [mlp.grouped, mlp.in_blocks, mlp.one_by_one]
)
@pytest.mark.parametrize('seed, n_rows', [(0, 11), (1, 9), (2, 1), (1, 150)])
def test_definition(compute, seed, n_rows):
  case = _case(seed, n_rows)
  with jax.default_matmul_precision('highest'):
    ours = compute(jax.nn.silu, *map(jnp.asarray, case))
  np.testing.assert_allclose(ours, _expected(*case), rtol=0, atol=2e-5)


def test_gradients_agree():
  rows_RD, expert_RK, *rest = map(jnp.asarray, _case(0, 11))

  def total(compute):
    def loss(rows_RD, *rest):
      return (compute(jax.nn.silu, rows_RD, expert_RK, *rest) ** 2).sum()

    return jax.grad(loss, argnums=(0, 1, 2, 3))(rows_RD, *rest)

  with jax.default_matmul_precision('highest'):
    expected = total(mlp.one_by_one)
    for compute in (mlp.grouped, mlp.in_blocks):
      for a, b in zip(total(compute), expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_blocks_under_vmap():
  """Examples that ask different experts, so that their loops differ."""
  cases = [_case(seed, 9) for seed in (0, 1)]
  rows_BRD, expert_BRK, share_BRK = map(jnp.stack, zip(*(c[:3] for c in cases)))
  weights = tuple(map(jnp.asarray, cases[0][3:]))
  with jax.default_matmul_precision('highest'):
    ours = jax.vmap(lambda *rows: mlp.in_blocks(jax.nn.silu, *rows, *weights))(
      rows_BRD, expert_BRK, share_BRK
    )
  for got, case in zip(ours, cases):
    expected = _expected(*case[:3], *cases[0][3:])
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
