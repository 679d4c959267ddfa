"""route.png and report.html of `route`; no script."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import figure as mpl_figure

from corejax.experiments import figures
from corejax.experiments import report
from corejax.experiments import route_run
from corejax.experiments import route_table
from corejax.experiments import timed_table

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = {
  route_run.DENSE: '#000000',
  route_run.SPARSE: '#999999',
  route_run.STATIC: '#d55e00',
  route_run.PROBE: '#0072b2',
  route_run.ORACLE: '#009e73',
  route_run.ORACLE_LAYERS: '#cc79a7',
  route_run.RANDOM: '#56b4e9',
}


def figure(table: Sequence[route_table.Row], title: str) -> bytes:
  """Accuracy of every way at every budget, and its time, as PNG."""
  keys = list(dict.fromkeys((row.n_dense, row.method) for row in table))
  picture = mpl_figure.Figure(
    figsize=(10, 1.4 + 0.3 * len(keys)), layout='constrained'
  )
  right, first = picture.subplots(1, 2, sharey=True, width_ratios=(3, 2))
  for y, key in enumerate(keys):
    colour = _COLOURS[key[1]]
    mine = [row for row in table if (row.n_dense, row.method) == key]
    for row in mine:
      retrieval = row.kind == timed_table.RETRIEVAL
      level = row.level
      right.errorbar(
        level.value,
        y if retrieval else y + 0.25,
        xerr=figures.bar(level),
        fmt='o' if retrieval else 'D',
        color=colour,
        markersize=4.5,
        capsize=2,
        markerfacecolor=colour if retrieval else 'white',
      )
    first.barh(y, 1e3 * mine[0].first_s, color=colour, height=0.6)
  right.set_yticks(
    range(len(keys)),
    [f'{n_dense} dense, {route_table.TITLES[m]}' for n_dense, m in keys],
  )
  right.set_ylim(len(keys) - 0.4, -0.6)
  right.set_xlim(-0.02, 1.02)
  right.set_title(
    'accuracy: look-ups (full), twins (open)', fontsize=9, loc='left'
  )
  first.set_title(
    'time to the first token of a batch, ms', fontsize=9, loc='left'
  )
  for axes in (right, first):
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
  picture.suptitle(title, fontsize=9, x=0.01, ha='left')
  return figures.png(picture, 130)


def page(
  table: Sequence[route_table.Row],
  summary: Sequence[str],
  about: report.About,
  picture: bytes,
  probe_rows: int,
) -> str:
  """The report.

  Args:
    table: rows of route.csv.
    summary: as the command prints it.
    about: the run.
    picture: as `figure` drew it.
    probe_rows: last rows that the probe looks from.
  """
  budgets = dict.fromkeys(row.n_dense for row in table)
  lead = [line for n in budgets for line in route_table.verdict(table, n)]
  return report.plain(
    'route.html',
    {
      'about': about,
      'lead': lead,
      'figure': picture,
      'rows': [_row(row) for row in table],
      'summary': summary,
      'probe_rows': probe_rows,
    },
  )


def _row(row: route_table.Row) -> dict[str, str]:
  return {
    'dense': f'{row.n_dense} ({100 * row.rho:.1f}%)',
    'name': route_table.TITLES[row.method],
    'kind': 'look-ups' if row.kind == timed_table.RETRIEVAL else 'twins',
    'level': timed_table.told(row.level),
    'gap': timed_table.signed(row.gap) if row.gap else '',
    'above': timed_table.signed(row.above) if row.above else '',
    'first': f'{1e3 * row.first_s:.1f}',
    'added': str(row.added) if row.added else '',
    'flops': report.percent(row.flops_share) if row.flops_share else '',
  }
