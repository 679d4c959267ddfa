"""report.html of a comparison: figures and tables, without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math

from corejax import compare as compare_lib
from corejax import cross as cross_lib
from corejax import structure as structure_lib
from corejax.experiments import compare_runs
from corejax.experiments import compare_text
from corejax.experiments import report
from corejax.experiments import transfer as transfer_lib

_MOST_ROWS = 300  # of a table; the CSV files hold all


def page(
  runs: Sequence[compare_runs.Run],
  comparison: compare_lib.Comparison | None,
  curves: Sequence[compare_runs.CurvePoint],
  transfers: Sequence[transfer_lib.Effect],
  figures: Mapping[str, bytes],
  summary: Sequence[str],
  cells: Sequence[cross_lib.Cell] = (),
  links: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> str:
  """The report.

  Args:
    runs: what was compared.
    comparison: of their rankings, if they have any.
    curves: of their ablations.
    transfers: what the heads of one do on the data of another.
    figures: name -> PNG.
    summary: as the command prints it.
    cells: what heads of each data set do on each.
    links: label -> (what it is, path) of reports, seen from this one.
  """
  agreements = comparison.agreements if comparison is not None else ()
  structures = comparison.structures if comparison is not None else ()
  return report.plain(
    'compare.html',
    {
      'runs': runs,
      'links': {run.label: (links or {}).get(run.label, ()) for run in runs},
      'lead': [*_lead(comparison, curves), *_cross_lead(cells)],
      'cells': [_cell(cell) for cell in cells],
      'figures': figures,
      'agreements': [_agreement(row) for row in agreements[:_MOST_ROWS]],
      'sets': compare_text.set_lines(comparison) if comparison else [],
      'structures': [
        _structure(row) for row in structures if math.isnan(row.depth)
      ][:_MOST_ROWS],
      'curves': curves[:_MOST_ROWS],
      'transfers': compare_text.transfer_lines(transfers),
      'summary': summary,
      'has': {
        'agreements': bool(agreements),
        'structures': bool(structures),
        'curves': bool(curves),
      },
    },
  )


def _lead(comparison, curves) -> list[str]:
  """The findings in a few sentences."""
  lines = []
  if comparison is not None and comparison.agreements:
    pairs = {(r.a, r.b) for r in comparison.agreements}
    for measure, what in (
      (compare_lib.SPEARMAN, 'order all heads'),
      (compare_lib.OVERLAP, 'choose their first heads'),
    ):
      agreeing = {
        (r.a, r.b)
        for r in comparison.agreements
        if r.measure == measure and r.beyond_chance
      }
      lines.append(
        f'{len(agreeing)} of {len(pairs)} pairs of rankings {what} more alike '
        'than chance would.'
      )
    for (layers, heads), names in comparison.shapes.items():
      if len(names) > 1:
        shared = comparison.shared(names)
        lines.append(
          f'All {len(names)} rankings of {layers} x {heads} heads select '
          + (f'{shared}' if len(shared) else 'no head in common')
          + f' ({compare_text.chance_of_sharing(comparison, names)}).'
        )
  elif comparison is not None:
    lines.append('The rankings are compared by sparsity and relative depth.')
  if curves:
    lines.append(
      'Curves show what cutting heads did: the top of each ranking against '
      'random heads of the same layers.'
    )
  return lines


def _cross_lead(cells: Sequence[cross_lib.Cell]) -> list[str]:
  return [
    f'{line.removeprefix("so: ")}.'
    for line in compare_text.cross_verdicts(cells)
  ]


def _cell(cell: cross_lib.Cell) -> dict[str, str]:
  return {
    'name': cell.name,
    'heads': cell.heads,
    'data': cell.data,
    'intact': _digits(cell.intact),
    'accuracy': f'{_digits(cell.accuracy)} ({_interval(cell.low, cell.high)})',
    'control': _digits(cell.control),
    'twin': _digits(cell.twin),
    'cost': f'{_digits(cell.cost)} ({_interval(cell.cost_low, cell.cost_high)})'
    if math.isfinite(cell.cost_low)
    else _digits(cell.cost),
    'endpoint': f'{_digits(cell.endpoint)} '
    f'({_interval(cell.endpoint_low, cell.endpoint_high)})'
    if math.isfinite(cell.endpoint_low)
    else _digits(cell.endpoint),
    'shown': 'yes' if cell.shown else 'not shown',
  }


def _agreement(row: compare_lib.Agreement) -> dict[str, str]:
  return {
    'pair': f'{row.a} and {row.b}',
    'measure': compare_text.title(row),
    'value': _digits(row.value),
    'interval': _interval(row.low, row.high),
    'chance': _digits(row.chance),
    'ceiling': _digits(row.ceiling),
    'q': f'{row.q:.2g}' if math.isfinite(row.q) else '',
    'found': 'yes' if row.beyond_chance else 'not shown',
  }


def _structure(row: structure_lib.Structure) -> dict[str, str]:
  return {
    'ranking': row.ranking,
    'shape': f'{row.n_layers} x {row.n_heads}',
    'measure': row.measure.replace('_', ' '),
    'value': _digits(row.value),
    'interval': _interval(row.low, row.high),
  }


def _digits(value: float) -> str:
  return f'{value:.3f}' if math.isfinite(value) else ''


def _interval(low: float, high: float) -> str:
  return f'{low:.3f} to {high:.3f}' if math.isfinite(low) else ''
