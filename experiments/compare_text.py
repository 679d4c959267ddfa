"""A comparison in plain words, and as tables."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from corejax import compare as compare_lib
from corejax import cross as cross_lib
from corejax import describe
from corejax import errors
from corejax import heads as heads_lib
from corejax import structure as structure_lib
from corejax import table as table_lib
from corejax.experiments import compare_runs
from corejax.experiments import finished
from corejax.experiments import transfer as transfer_lib
from corejax.stats import agreement
from corejax.stats import bootstrap

_MOST_PAIRS = 12  # more are in compare.csv
_DEFAULT_FRACTION = 0.05


def to_csv(rows: Sequence) -> str:
  """Rows of one dataclass as a table, a field a column."""
  names = [field.name for field in dataclasses.fields(rows[0])]
  return table_lib.write(
    {name: np.array([getattr(row, name) for row in rows]) for name in names}
  )


def summary(
  runs: Sequence[compare_runs.Run],
  comparison: compare_lib.Comparison | None,
  curves: Sequence[compare_runs.CurvePoint],
  transfers: Sequence[transfer_lib.Effect],
  norm: str,
  cells: Sequence[cross_lib.Cell] = (),
) -> list[str]:
  """What was found, in lines of plain text.

  Args:
    runs: what was compared.
    comparison: of their rankings, if they have any.
    curves: of their ablations.
    transfers: what the heads of one do on the data of another.
    norm: what rank runs were ranked by.
    cells: what heads of each data set do on each.
  """
  lines = [f'{run.label}: {run.kind}, {run.about}' for run in runs]
  if comparison is not None:
    lines += [f'note     {text}' for text in notes(runs, comparison, norm)]
    if comparison.agreements:
      lines += agreement_lines(comparison)
      lines += set_lines(comparison)
    lines += structure_lines(comparison)
  lines += [*curve_lines(curves), *transfer_lines(transfers)]
  lines += cross_lines(cells)
  return [errors.one_line(line) for line in lines]


def notes(
  runs: Sequence[compare_runs.Run],
  comparison: compare_lib.Comparison,
  norm: str,
) -> list[str]:
  """What a reader must know to read the numbers."""
  found = []
  for run in runs:
    if run.kind == finished.RANK and run.folder is not None:
      flags = run.folder.record.get('flags', {})
      own = [
        f'--{name}={flags[name]}'
        for name, plain in (
          ('norm', norm),
          ('calibrate', False),
          ('contrast', False),
          ('filter', False),
        )
        if flags.get(name, plain) != plain
      ]
      if own:
        found.append(
          f'{run.label} was itself ranked with {" ".join(own)}; here it is '
          f'ranked by {norm} over all its examples'
        )
    if run.samples is not None:
      found.append(
        f'{run.label}: '
        + (
          'its samples are taken for independent'
          if run.samples.aligned
          else 'its heads differ in their number of samples: no intervals'
        )
      )
  if len(comparison.shapes) > 1:
    told = '; '.join(
      f'{layers} x {heads}: {_runs_of(names)}'
      for (layers, heads), names in comparison.shapes.items()
    )
    found.append(
      f'models of several shapes ({told}) are not compared head by head'
    )
  for names in comparison.shapes.values():
    labels = {name.partition('/')[0] for name in names}
    models = {
      run.checkpoint for run in runs if run.label in labels and run.checkpoint
    }
    if len(models) > 1:
      found.append(
        f'{_runs_of(names)}: {len(models)} checkpoints; heads of models that '
        'were trained apart have no counterpart in one another'
      )
  few = [
    side.name
    for side in comparison.sides
    if len(side.clusters) < bootstrap.FEW_CLUSTERS
  ]
  if few:
    found.append(
      f'fewer than {bootstrap.FEW_CLUSTERS} clusters stand behind '
      f'{_listed(few)}; intervals may cover less than the 95% aimed at'
    )
  return found


def agreement_lines(comparison: compare_lib.Comparison) -> list[str]:
  """How far which rankings agree, and how many of them beyond chance."""
  pairs = list(dict.fromkeys((r.a, r.b) for r in comparison.agreements))
  # A pair that differs in run and in rows says little.
  near = [pair for pair in pairs if _differs_once(*pair)] or pairs
  lines = ['agreement [95% interval]:']
  for a, b in near[:_MOST_PAIRS]:
    rows = [r for r in comparison.agreements if (r.a, r.b) == (a, b)]
    if all(math.isclose(row.value, 1) for row in rows):
      lines.append(f'  {a} and {b}: the same order')
      continue
    lines.append(f'  {a} and {b}: {"; ".join(map(_measure, rows))}')
    lines.append(f'    {verdict(rows)}')
  hidden = len(pairs) - min(len(near), _MOST_PAIRS)
  if hidden:
    lines.append(f'  {describe.count(hidden, "more pair")} in compare.csv')
  for rows, what in (
    ([r for r in comparison.agreements if _is_order(r)], 'in the whole order'),
    ([r for r in comparison.agreements if _is_set(r)], 'in their first heads'),
  ):
    agreeing = len({(r.a, r.b) for r in rows if r.beyond_chance})
    lines.append(f'beyond chance {what}: {agreeing} of {len(pairs)} pairs')
  return lines


def verdict(rows: Sequence[compare_lib.Agreement]) -> str:
  """Do the two agree beyond chance, in words.

  Args:
    rows: all measures of one pair.
  """
  found = [_where(r) for r in rows if r.beyond_chance and not _is_rbo(r)]
  if not found:
    return (
      'no agreement beyond chance is shown'
      if any(math.isfinite(r.q) for r in rows if _is_order(r))
      else 'chance was not tested'
    )
  against = [_where(r) for r in rows if _is_set(r) and not r.beyond_chance]
  return f'agree beyond chance in {describe.listed(found)}' + (
    f'; not shown for {describe.listed(against)}' if against else ''
  )


def _where(row: compare_lib.Agreement) -> str:
  return 'the whole order' if _is_order(row) else f'the first {row.k}'


def _is_rbo(row: compare_lib.Agreement) -> bool:
  return row.measure == compare_lib.RBO


def _is_order(row: compare_lib.Agreement) -> bool:
  return row.measure == compare_lib.SPEARMAN


def _is_set(row: compare_lib.Agreement) -> bool:
  return row.measure == compare_lib.OVERLAP


def _measure(row: compare_lib.Agreement) -> str:
  text = f'{title(row)} {row.value:.2f} {_range(row.low, row.high)}'
  if _is_order(row):
    if math.isfinite(row.ceiling):
      return f'{text} of at most {row.ceiling:.2f} by noise'
    return text
  return f'{text} (chance {row.chance:.2f})'


def title(row: compare_lib.Agreement) -> str:
  """The measure's name."""
  return {
    compare_lib.SPEARMAN: 'Spearman',
    compare_lib.OVERLAP: f'top-{row.k} overlap',
    compare_lib.RBO: 'RBO',
  }[row.measure]


def _range(low: float, high: float) -> str:
  if not math.isfinite(low):
    return '[no interval]'
  return f'[{low:.2f}, {high:.2f}]'


def _differs_once(a: str, b: str) -> bool:
  """Are they of one run, or by the same rows?"""
  (run_a, _, query_a), (run_b, _, query_b) = a.partition('/'), b.partition('/')
  return run_a == run_b or query_a == query_b


def set_lines(comparison: compare_lib.Comparison) -> list[str]:
  """Which heads are shared, and which are one ranking's own."""
  lines = []
  for (layers, heads), names in comparison.shapes.items():
    if len(names) < 2:
      continue
    lines.append(
      f'selected heads, {layers} x {heads}, {len(names)} rankings of '
      f'{_runs_of(names)}:'
    )
    lines.append(
      f'  by all: {_heads(comparison.shared(names))}; '
      f'{chance_of_sharing(comparison, names)}'
    )
    for name in names:
      own = comparison.own(name, names)
      if len(own):
        lines.append(f'  by {name} alone: {_heads(own)}')
    lines.append(f'  by any: {_heads(comparison.united(names))}')
  return lines


def chance_of_sharing(
  comparison: compare_lib.Comparison, names: Sequence[str]
) -> str:
  """Are heads that all select more than chance, in words."""
  n_layers, n_heads = comparison.selected_shape(names)
  sizes = [len(comparison.selected[name]) for name in names]
  n_common = len(comparison.shared(names))
  total = n_layers * n_heads
  p = agreement.common_p(n_common, sizes, total)
  chance = agreement.common_chance(sizes, total)
  return f'by chance {chance:.2g}, p {p:.2g}' + (
    '' if p < compare_lib.Q else ': not shown to be more than chance'
  )


def cross_lines(cells: Sequence[cross_lib.Cell]) -> list[str]:
  """What cutting the heads of each data set does on each, a cell a line."""
  if not cells:
    return []
  lines = ['heads of each data set cut on each, accuracy on look-ups:']
  for cell in cells:
    control = (
      f', random heads of their layers {cell.control:.3f}; endpoint '
      f'{cell.endpoint:.3f} {_range3(cell.endpoint_low, cell.endpoint_high)}'
      if math.isfinite(cell.control)
      else ''
    )
    lines.append(
      f'  {cell.name} ({cell.k}: {cell.heads}) on {cell.data}: '
      f'{cell.intact:.3f} to {cell.accuracy:.3f} '
      f'{_range3(cell.low, cell.high)}{control}'
    )
  return [*lines, *cross_verdicts(cells)]


def cross_verdicts(cells: Sequence[cross_lib.Cell]) -> list[str]:
  """On which data each set is shown to serve looking up, a set a line."""
  lines = []
  for name in dict.fromkeys(cell.name for cell in cells):
    mine = [cell for cell in cells if cell.name == name]
    if not any(math.isfinite(cell.endpoint_low) for cell in mine):
      lines.append(f'so: {name}: no interval, for lack of draws or clusters')
      continue
    at = [cell.data for cell in mine if cell.shown]
    not_at = [cell.data for cell in mine if not cell.shown]
    if not at:
      lines.append(
        f'so: {name}: cutting is not shown to cost look-ups more than others '
        'of their layers on any of these data'
      )
      continue
    lines.append(
      f'so: {name}: cutting costs look-ups more than others of their layers on '
      + describe.listed(at)
      + (f'; not shown on {describe.listed(not_at)}' if not_at else '')
    )
  return lines


def _range3(low: float, high: float) -> str:
  if not math.isfinite(low):
    return '[no interval]'
  return f'[{low:.3f}, {high:.3f}]'


def _heads(heads: heads_lib.HeadSet) -> str:
  return (
    f'{heads} ({describe.count(len(heads), "head")})'
    if len(heads)
    else ('none')
  )


def structure_lines(comparison: compare_lib.Comparison) -> list[str]:
  """Sparsity and depth, a ranking a line."""
  lines = []
  for side in comparison.sides:
    rows = [r for r in comparison.structures if r.ranking == side.name]
    if not rows:
      continue
    by = {row.measure: row for row in rows}
    gini, half, effective = (
      by[name]
      for name in (
        structure_lib.GINI,
        structure_lib.HALF,
        structure_lib.EFFECTIVE,
      )
    )
    peak = max(
      (r for r in rows if r.measure == structure_lib.DEPTH_MEAN),
      key=lambda r: r.value,
    )
    width = 1 / structure_lib.N_BINS / 2
    lines.append(
      f'  {side.name}: Gini {gini.value:.2f} {_range(gini.low, gini.high)}; '
      f'half of the mass in {half.value:.1%} of the heads; effective number '
      f'{effective.value:.1%}; most a head at depth '
      f'{peak.depth - width:.1f} to {peak.depth + width:.1f}'
    )
  return ['sparsity:', *lines] if lines else []


def curve_lines(curves: Sequence[compare_runs.CurvePoint]) -> list[str]:
  """What cutting about 5% of the heads did, by kind of question."""
  lines = []
  keys = dict.fromkeys((p.run, p.mode, p.phase, p.rows, p.kind) for p in curves)
  for key in keys:
    points = [
      p for p in curves if (p.run, p.mode, p.phase, p.rows, p.kind) == key
    ]
    run, mode, phase, rows, kind = key
    cut = sorted({p.fraction for p in points if p.k})
    if not kind or not cut:
      continue
    at = min(cut, key=lambda f: abs(f - _DEFAULT_FRACTION))
    told = [
      f'{p.group.replace("_", "-")} {p.accuracy:.2f} {_range(p.low, p.high)}'
      for p in points
      if p.fraction == at and p.group in compare_runs.SHOWN
    ]
    intact = [f'intact {p.accuracy:.2f}' for p in points if not p.k]
    lines.append(
      f'  {run}, {kind}, {at:.1%} of the heads cut ({mode}, {phase}, rows: '
      f'{rows}): {", ".join([*intact, *told])}'
    )
  return ['accuracy after cutting heads:', *lines] if lines else []


def transfer_lines(effects: Sequence[transfer_lib.Effect]) -> list[str]:
  """What cutting the heads of one run did on the data of another."""
  lines = []
  for e in effects:
    control = (
      f', random heads of their layers {e.control:.2f}'
      if math.isfinite(e.control)
      else ''
    )
    lines.append(
      f'  heads of {e.heads_from} ({e.k}) on {e.data_of} ({e.split}), '
      f'{e.kind}: {e.intact:.2f} to {e.accuracy:.2f} '
      f'{_range(e.low, e.high)}{control}'
    )
  return ['transfer, accuracy:', *lines] if lines else []


def _runs_of(names: Sequence[str]) -> str:
  return ', '.join(dict.fromkeys(name.partition('/')[0] for name in names))


def _listed(names: Sequence[str]) -> str:
  shown = ', '.join(names[:6])
  return f'{shown} and {len(names) - 6} more' if len(names) > 6 else shown
