"""The rows of prefill.csv, and the best heads held against all others."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import io

from corejax import plan as plan_lib
from corejax.experiments import bench_processes
from corejax.experiments import prefill_run
from corejax.experiments import prefill_sets
from corejax.experiments import timed_table
from corejax.stats import accuracy

COLUMNS = (
  'length',
  'pages',
  'rho',
  'assignment',
  'seed',
  'dense_heads',
  'window',
  'sink',
  'kind',
  'n',
  'accuracy',
  'ci_low',
  'ci_high',
  'change',
  'change_ci_low',
  'change_ci_high',
  'batch',
  'kernel_ms',
  'first_token_ms',
  'kernel_speedup',
  'kernel_speedup_ci_low',
  'kernel_speedup_ci_high',
  'first_token_speedup',
  'first_token_speedup_ci_low',
  'first_token_speedup_ci_high',
  'attended',
  'element_ideal',
  'tile_ideal',
  'heads',
)
_CONTROLS = ('layer_matched', 'random', 'bottom')
ALL_DRAWS = 'all'


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of prefill.csv.

  Attributes:
    scale: which length.
    name, seed: which heads; seed 'all' is the mean over draws, '' no draw.
    kind: 'retrieval' or 'twin'.
    level, change: accuracy, and what it is above that with all heads dense.
    kernel_s, first_s: medians, seconds a batch.
    kernel_up, first_up: times faster than all dense in the same rounds.
    cost: of the plan at this length.
    heads: in the head grammar, '' for the mean over draws.
    n_dense: dense heads.
  """

  scale: prefill_run.Scale
  name: str
  seed: str
  kind: str
  level: accuracy.Estimate
  change: accuracy.Estimate
  kernel_s: float
  first_s: float
  kernel_up: bench_processes.Ratio
  first_up: bench_processes.Ratio
  cost: plan_lib.Cost
  heads: str
  n_dense: int

  @property
  def whole(self) -> bool:
    """Is it no single draw of several?"""
    return self.seed in ('', ALL_DRAWS)


def rows(
  scale: prefill_run.Scale,
  sets: Sequence[prefill_sets.Assigned],
  found: timed_table.Timed,
  shape: tuple[int, int],
) -> list[Row]:
  """All rows of one length; draws one by one and together.

  Args:
    scale: the length.
    sets: the first is all dense.
    found: what they came to, in their order.
    shape: (L, N).
  """
  ways: dict[tuple, list[int]] = {}
  for x, each in enumerate(sets):
    ways.setdefault((len(each.heads), each.name), []).append(x)
  made = []
  for which in ways.values():
    several = [[x] for x in which] + ([which] if len(which) > 1 else [])
    for part in several:
      first = sets[part[0]]
      seed = '' if first.seed is None else str(first.seed)
      for kind, used_E in found.kinds().items():
        made.append(
          Row(
            scale,
            first.name,
            ALL_DRAWS if len(part) > 1 else seed,
            kind,
            found.level(part, used_E),
            found.change(part, [0], used_E),
            found.seconds(part, kernel=True),
            found.seconds(part),
            found.speedup(0, part, kernel=True),
            found.speedup(0, part),
            scale.cost(first.heads, *shape),
            '' if len(part) > 1 else str(first.heads),
            len(first.heads),
          )
        )
  return made


def to_csv(table: Sequence[Row], batch_size: int) -> str:
  """prefill.csv; times are milliseconds of a call with `batch` prompts.

  What there is none of, as an interval over fewer than 6 rounds, is empty.
  """
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(COLUMNS)
  for row in table:
    writer.writerow(
      [
        row.scale.tokens,
        row.scale.pages,
        f'{row.cost.rho:.6g}',
        row.name,
        row.seed,
        row.n_dense,
        row.scale.window,
        row.scale.sink,
        row.kind,
        row.level.n,
        *(
          timed_table.cell(x)
          for e in (row.level, row.change)
          for x in (e.value, e.low, e.high)
        ),
        batch_size,
        timed_table.cell(1e3 * row.kernel_s),
        f'{1e3 * row.first_s:.6g}',
        *(
          timed_table.cell(x)
          for up in (row.kernel_up, row.first_up)
          for x in (up.value, up.low, up.high)
        ),
        f'{row.cost.attended:.6g}',
        f'{row.cost.element_ideal:.6g}',
        f'{row.cost.tile_ideal:.6g}',
        row.heads,
      ]
    )
  return buffer.getvalue()


def at(
  table: Sequence[Row], scale: prefill_run.Scale, kind: str
) -> dict[tuple[int, str], Row]:
  """(dense heads, assignment) -> row over all draws, of one length and kind."""
  return {
    (row.n_dense, row.name): row
    for row in table
    if row.scale is scale and row.kind == kind and row.whole
  }


@dataclasses.dataclass(frozen=True)
class Compared:
  """The best heads of one length and budget, held against all else.

  Attributes:
    row: of the best heads, on look-ups.
    twin: the same on twins, or None.
    controls: assignment -> accuracy of the best minus its.
    rest: the best minus all sparse, or None.
  """

  row: Row
  twin: Row | None
  controls: dict[str, accuracy.Estimate]
  rest: accuracy.Estimate | None


def compare(
  scale: prefill_run.Scale,
  sets: Sequence[prefill_sets.Assigned],
  found: timed_table.Timed,
  table: Sequence[Row],
) -> list[Compared]:
  """The best heads of every budget at one length; none without look-ups."""
  used_E = found.kinds().get(timed_table.RETRIEVAL)
  if used_E is None:
    return []
  made = []
  retrieval = at(table, scale, timed_table.RETRIEVAL)
  twins = at(table, scale, timed_table.TWIN)

  def which(n_dense, name):
    return [
      x
      for x, each in enumerate(sets)
      if (len(each.heads), each.name) == (n_dense, name)
    ]

  sparse = which(0, prefill_sets.SPARSE)
  for (n_dense, name), row in retrieval.items():
    if name not in (prefill_sets.TOP, prefill_sets.GIVEN):
      continue
    best = which(n_dense, name)
    others = {each: which(n_dense, each) for each in _CONTROLS}
    made.append(
      Compared(
        row,
        twins.get((n_dense, name)),
        {
          each: found.change(best, them, used_E)
          for each, them in others.items()
          if them
        },
        found.change(best, sparse, used_E) if sparse else None,
      )
    )
  return made
