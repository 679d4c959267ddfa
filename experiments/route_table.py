"""route.csv, the cost of the probe, and what it says in words."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import io
import math
from typing import Any

from flax import nnx
import numpy as np

from corejax import plan as plan_lib
from corejax.experiments import bench_processes
from corejax.experiments import prefill_run
from corejax.experiments import route_run
from corejax.experiments import timed
from corejax.experiments import timed_table
from corejax.stats import accuracy

COLUMNS = (
  'length',
  'pages',
  'rho',
  'dense_heads',
  'method',
  'seed',
  'window',
  'sink',
  'kind',
  'n',
  'accuracy',
  'ci_low',
  'ci_high',
  'gap_to_oracle',
  'gap_ci_low',
  'gap_ci_high',
  'above_static',
  'above_static_ci_low',
  'above_static_ci_high',
  'batch',
  'first_token_ms',
  'added_ms',
  'added_share',
  'probe_flops_share',
)
TITLES = {
  route_run.DENSE: 'all dense',
  route_run.SPARSE: 'all sparse',
  route_run.STATIC: 'static top',
  route_run.PROBE: 'probe',
  route_run.ORACLE: 'oracle',
  route_run.ORACLE_LAYERS: 'oracle, layer budgets',
  route_run.RANDOM: 'random',
}
ALL_DRAWS = 'all'


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of route.csv.

  Attributes:
    method, seed: which way; seed 'all' is the mean over draws.
    n_dense, rho: budget.
    kind: 'retrieval' or 'twin'.
    level: accuracy.
    gap: the oracle's accuracy minus this; None where there is no oracle.
    above: this minus the static plan's accuracy; None for the ends.
    first_s: median seconds to the first token.
    static_s: the static plan's; nan for the ends.
    added: time to the first token over the static plan's in the same rounds;
      None for the ends.
    flops_share: of the probe, of the whole prefill of the decoder; else 0.
  """

  method: str
  seed: str
  n_dense: int
  rho: float
  kind: str
  level: accuracy.Estimate
  gap: accuracy.Estimate | None
  above: accuracy.Estimate | None
  first_s: float
  static_s: float
  added: bench_processes.Ratio | None
  flops_share: float


def rows(
  ways: Sequence[route_run.Way],
  found: timed_table.Timed,
  n_heads_in_all: int,
  flops_share: dict[int, float],
) -> list[Row]:
  """All rows, draws together.

  Args:
    ways: all dense first.
    found: what they came to, in their order.
    n_heads_in_all: L * N.
    flops_share: dense heads -> share of the probe.
  """
  groups: dict[tuple, list[int]] = {}
  for x, way in enumerate(ways):
    groups.setdefault((len(way.plan), way.method), []).append(x)
  # Random heads are drawn anew for every example, so that the examples' own
  # scatter holds that of the draws: their mean is one way like any other.
  found = dataclasses.replace(
    found,
    score_XE=np.stack([found.score_XE[w].mean(0) for w in groups.values()]),
    first_XR=np.stack(
      [np.median(found.first_XR[w], 0) for w in groups.values()]
    ),
    kernel_XR=np.full((len(groups), 1), np.nan),
  )
  place = {key: [x] for x, key in enumerate(groups)}
  made = []
  for (n_dense, method), which in place.items():
    static = place.get((n_dense, route_run.STATIC))
    oracle = place.get((n_dense, route_run.ORACLE))
    for kind, used_E in found.kinds().items():
      if np.isnan(found.score_XE[which][:, used_E]).any():
        continue  # an oracle on twins
      twin = kind == timed_table.TWIN
      made.append(
        Row(
          method,
          ALL_DRAWS if method == route_run.RANDOM else '',
          n_dense,
          n_dense / n_heads_in_all,
          kind,
          found.level(which, used_E),
          None if twin or not oracle else found.change(oracle, which, used_E),
          found.change(which, static, used_E) if static else None,
          found.seconds(which),
          found.seconds(static) if static else math.nan,
          bench_processes.ratio(
            found.first_XR[which[0]], found.first_XR[static[0]]
          )
          if static
          else None,
          flops_share[n_dense] if method == route_run.PROBE else 0.0,
        )
      )
  return made


def probe_flops_share(
  model: Any,
  geometry: timed.Geometry,
  cost: plan_lib.Cost,
  probe_rows: int,
) -> float:
  """FLOPs of the probe, as a share of the decoder's prefill under a plan.

  Counted: two a parameter of the layers and token, four a head dimension and
  (row, key) pair that is read; of the probe two a head dimension, row and key.

  Args:
    model: its parameters; those of the decoder's layers lead with L.
    geometry: of its attention.
    cost: of the plan at this length.
    probe_rows: P.
  """
  n = cost.length
  weights = sum(
    int(np.prod(param.shape))
    for path, param in nnx.to_flat_state(nnx.state(model))
    if 'layers' in path
    and not {'vision', 'visual', 'tower'} & set(map(str, path))
    and param.shape[:1] == (geometry.n_layers,)
  )
  per_pair = geometry.n_layers * geometry.n_heads * geometry.head_dim
  attention = 4 * per_pair * cost.attended * n * (n + 1) / 2
  probe = 2 * per_pair * min(probe_rows, n) * n
  return probe / (2 * weights * n + attention + probe)


def to_csv(
  table: Sequence[Row], scale: prefill_run.Scale, batch_size: int
) -> str:
  """route.csv; times are milliseconds of a call with `batch` prompts."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(COLUMNS)

  def ends(estimate):
    if estimate is None:
      return ['', '', '']
    numbers = estimate.value, estimate.low, estimate.high
    return [timed_table.cell(x) for x in numbers]

  for row in table:
    writer.writerow(
      [
        scale.tokens,
        scale.pages,
        f'{row.rho:.6g}',
        row.n_dense,
        row.method,
        row.seed,
        scale.window,
        scale.sink,
        row.kind,
        row.level.n,
        *ends(row.level),
        *ends(row.gap),
        *ends(row.above),
        batch_size,
        f'{1e3 * row.first_s:.6g}',
        ''
        if row.added is None
        else f'{1e3 * (row.first_s - row.static_s):.6g}',
        '' if row.added is None else f'{row.added.value - 1:.6g}',
        f'{row.flops_share:.6g}',
      ]
    )
  return buffer.getvalue()


def summary(table: Sequence[Row]) -> list[str]:
  """Every row, then what the probe is worth at each budget."""
  lines = ['dense heads, way, look-ups or twins right, first token']
  for row in table:
    kind = 'look-ups' if row.kind == timed_table.RETRIEVAL else 'twins'
    line = (
      f'  {row.n_dense:>4} {TITLES[row.method]:<21} {kind:<8} '
      f'{timed_table.told(row.level)}  {1e3 * row.first_s:.1f} ms'
    )
    if row.gap is not None and row.method != route_run.ORACLE:
      line += f'  oracle minus this {timed_table.signed(row.gap)}'
    lines.append(line)
  for n_dense in dict.fromkeys(row.n_dense for row in table):
    lines += verdict(table, n_dense)
  return lines


def verdict(table: Sequence[Row], n_dense: int) -> list[str]:
  """The probe at one budget in plain words, whatever it is."""
  mine = {
    row.method: row
    for row in table
    if row.n_dense == n_dense and row.kind == timed_table.RETRIEVAL
  }
  probe = mine.get(route_run.PROBE)
  if probe is None or probe.above is None or probe.gap is None:
    return []
  if probe.above.low > 0:
    so = 'better than the static plan'
  elif probe.above.high < 0:
    so = 'WORSE than the static plan'
  else:
    so = 'neither better nor worse than the static plan, as far as is shown'
  if probe.gap.low > 0:
    left = 'the oracle is better'
  elif probe.gap.high < 0:
    left = 'the oracle is worse'
  else:
    left = 'no gap to the oracle is shown'
  head = f'{n_dense} dense heads ({100 * probe.rho:.1f}%): '
  added = probe.added
  assert added is not None, 'a probe has a static plan'
  return [
    f'{head}the probe answers {timed_table.told(probe.level)}, '
    f'{timed_table.signed(probe.above)} against the static plan: {so}; oracle '
    f'minus probe {timed_table.signed(probe.gap)}: {left}',
    f'{head}the probe takes {100 * probe.flops_share:.1f}% of the FLOPs; time '
    f'to the first token {1e3 * probe.first_s:.1f} ms against '
    f'{1e3 * probe.static_s:.1f} ms, {added}x',
  ]
