"""Every way to choose dense heads, on every batch, timed: what `route` does.

    all_dense, all_sparse   the ends
    static         the best heads of the ranking, the same on every input
    probe          each layer by its own queries and keys (corejax.routing)
    oracle         the best heads by RAM with boxes on this very input
    oracle_layers  the same within the static plan's budget of each layer
    random         drawn for each input within that budget

A budget is a number of dense heads in all, that of the static plan. All but
`probe` are controls, per example, of one and the same executable.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import evidence
from corejax import heads as heads_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from corejax import routing
from corejax.experiments import buckets
from corejax.experiments import prefill_run
from corejax.experiments import resources as resources_lib
from corejax.experiments import sweep
from corejax.experiments import timed
from corejax.stats import reliability

DENSE, SPARSE, STATIC, PROBE = 'all_dense', 'all_sparse', 'static', 'probe'
ORACLE, ORACLE_LAYERS, RANDOM = 'oracle', 'oracle_layers', 'random'
METHODS = (DENSE, SPARSE, STATIC, PROBE, ORACLE, ORACLE_LAYERS, RANDOM)


@dataclasses.dataclass(frozen=True)
class Way:
  """One way to choose.

  Attributes:
    method: one of METHODS.
    asked: the dense fraction.
    plan: heads of the static plan, whose budgets are kept.
    seed: of a random way, else None.
  """

  method: str
  asked: float
  plan: heads_lib.HeadSet
  seed: int | None = None


def ways(
  fractions: Sequence[float],
  plans: Sequence[heads_lib.HeadSet],
  shape: tuple[int, int],
  draws: int,
) -> list[Way]:
  """All ways, all dense first.

  Args:
    fractions: dense fractions asked for.
    plans: the static plan of each.
    shape: (L, N).
    draws: of the random way.
  """
  everything = heads_lib.HeadSet.from_mask(np.ones(shape, bool))
  made = [Way(DENSE, 1.0, everything), Way(SPARSE, 0.0, heads_lib.HeadSet())]
  for fraction, plan in zip(fractions, plans):
    for method in (STATIC, PROBE, ORACLE, ORACLE_LAYERS):
      made.append(Way(method, fraction, plan))
    made += [Way(RANDOM, fraction, plan, seed) for seed in range(draws)]
  return made


def chosen(
  way: Way,
  mass_BLN: np.ndarray,
  indices: Sequence[int],
  shape: tuple[int, int],
) -> np.ndarray:
  """bool [B, L, N], the dense heads of each example.

  Args:
    way: any; of `probe` it is the static plan, whose budgets it keeps.
    mass_BLN: RAM on each input, for the oracles.
    indices: numbers of the examples' records, for the random way.
    shape: (L, N).
  """
  plan_LN = way.plan.mask(*shape)
  batch = len(indices)
  if way.method == ORACLE:
    place_BX = reliability.positions(mass_BLN.reshape(batch, -1))
    return (place_BX < len(way.plan)).reshape(batch, *shape)
  score_BLN = mass_BLN
  if way.method == RANDOM:
    score_BLN = np.stack(
      [np.random.default_rng([way.seed or 0, i]).random(shape) for i in indices]
    )
  elif way.method != ORACLE_LAYERS:
    return np.broadcast_to(plan_LN, (batch, *shape))
  return reliability.positions(score_BLN) < plan_LN.sum(1)[:, None]


@functools.partial(jax.jit, static_argnames=('forward', 'attend', 'mesh'))
def _masses(
  model: Any,
  inputs: Any,
  probe: probe_lib.Probe,
  *,
  forward: Any,
  attend: Any,
  mesh: jax.sharding.Mesh | None,
) -> jax.Array:
  """float32 [B, Q, L, N], mass on the evidence with all heads dense."""
  out = forward(
    model,
    inputs,
    attend=attend,
    probe=probe,
    logit_rows_BP=jnp.zeros((inputs.tokens_BT.shape[0], 1), jnp.int32),
  )
  mass_LBQN = out.measured.mass_BQNR[..., regions.EVIDENCE]
  mass_BQLN = mass_LBQN.transpose(1, 2, 0, 3)
  if mesh is None:
    return mass_BQLN
  return jax.lax.with_sharding_constraint(
    mass_BQLN, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )


class Runner:
  """Times all ways on a batch; two executables a length, and one for RAM."""

  def __init__(
    self,
    resources: resources_lib.Resources,
    scale: prefill_run.Scale,
    made: Sequence[Way],
    batch_size: int,
    repeats: int,
    rows: int,
    score: str,
    query: str,
  ):
    """Computes nothing yet.

    Args:
      resources: the model and where it runs.
      scale: the length, with window and sink.
      made: the ways, all dense first.
      batch_size: examples of a call.
      repeats: timed rounds at least.
      rows, score: of corejax.routing.
      query: query set of the oracles' RAM.
    """
    self._resources, self._scale, self._ways = resources, scale, list(made)
    self._size, self._query = batch_size, regions.QUERY_SETS.index(query)
    n_batches = max(1, -(-len(scale.source) // batch_size))
    self._rounds = -(-repeats // n_batches)
    self._router = routing.router(
      resources.attend, scale.window, scale.sink, rows, score
    )
    self._warm: set[tuple[Any, ...]] = set()

  def start(self, read: prefill_run.Read) -> dict[str, Any]:
    """Runs all ways on a batch and waits for each."""
    n_ways, n = len(self._ways), len(read.batch.examples)
    if not n:
      empty = np.zeros((n_ways, 0), np.float32)
      return dict(score=empty, logprob=empty, first=np.zeros((n_ways, 0)))
    resources = self._resources
    ready = timed.ready(resources, read.batch, self._size)
    with jax.default_matmul_precision(resources.precision):
      mass_BLN = self._ram(read.batch, ready)
      calls = [self._call(way, ready, read, mass_BLN) for way in self._ways]
      if ready.shapes not in self._warm:  # compiles; not timed
        jax.block_until_ready([call() for call in self._firsts(calls)])
        self._warm.add(ready.shapes)
      found, first_XR = timed.take_turns(calls, read.turn, self._rounds)
    found_X2B = np.stack([np.asarray(f)[:, :n] for f in found])
    score_XB = found_X2B[:, 0].copy()
    twin_B = [sweep.is_twin(example) for example in read.batch.examples]
    for x, way in enumerate(self._ways):
      if way.method in (ORACLE, ORACLE_LAYERS):
        score_XB[x, twin_B] = np.nan  # no evidence, so no oracle
    return {'score': score_XB, 'logprob': found_X2B[:, 1], 'first': first_XR}

  def _firsts(self, calls):
    """One call of each executable."""
    methods = [way.method == PROBE for way in self._ways]
    kinds = [methods.index(kind) for kind in set(methods)]
    return [calls[x] for x in kinds]

  def _call(self, way, ready, read, mass_BLN):
    resources, scale = self._resources, self._scale
    shape = resources.loaded.n_layers, resources.loaded.n_heads
    indices = [read.offset + i for i in read.batch.indices]
    indices += indices[:1] * (self._size - len(indices))
    dense_LBN = chosen(way, mass_BLN, indices, shape).swapaxes(0, 1)
    routed = way.method == PROBE
    control = timed.control_of(
      np.where(dense_LBN, masks.DENSE, scale.window),
      np.where(dense_LBN, 0, scale.sink),
      ready.region_BS if routed else None,
    )
    return functools.partial(
      timed.prefill,
      resources.loaded.model,
      ready.inputs,
      control,
      ready.answer_rows_BA,
      ready.answer_BA,
      forward=resources.loaded.forward,
      attend=self._router if routed else resources.attend,
      mesh=resources.mesh,
    )

  def _ram(self, batch: sweep.Batch, ready: timed.Ready) -> np.ndarray:
    """float [B, L, N] of every example, by the boxes; not timed."""
    fill = [0] * (self._size - len(batch.annotated))
    annotated = [*batch.annotated, *(batch.annotated[i] for i in fill)]
    rows = buckets.rows(max(len(r) for a in annotated for r in a.rows.values()))
    probe = evidence.batch_probe(
      annotated, ready.length, (rows, rows, ready.length)
    )
    mesh = self._resources.mesh
    if mesh is not None:
      set_PQ = resources_lib.spread(probe.set_PQ, mesh, None)
      probe = resources_lib.spread(
        dataclasses.replace(probe, set_PQ=None), mesh, 'data'
      )
      probe = dataclasses.replace(probe, set_PQ=set_PQ)
    mass_BQLN = _masses(
      self._resources.loaded.model,
      ready.inputs,
      probe,
      forward=self._resources.loaded.forward,
      attend=self._resources.attend,
      mesh=mesh,
    )
    return np.asarray(mass_BQLN)[:, self._query]
