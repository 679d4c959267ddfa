"""Pictures of a comparison: the matrix, sparsity and depth, the curves."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

from matplotlib import figure as mpl_figure
import numpy as np

from corejax import compare as compare_lib
from corejax import cross as cross_lib
from corejax import structure as structure_lib
from corejax.experiments import compare_runs
from corejax.experiments import figures

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
  '#000000',
)
_MARKS = 'osD^vPX'
_MOST_NUMBERS = 12  # cells a side, above which numbers in them are too small


def _style(index: int) -> dict[str, Any]:
  return dict(
    color=_COLOURS[index % len(_COLOURS)],
    marker=_MARKS[index // len(_COLOURS) % len(_MARKS)],
    markersize=4,
  )


def matrix(comparison: compare_lib.Comparison, select: str) -> bytes:
  """Agreement of every pair, a panel a measure, as PNG.

  Grey: rankings of another shape. A dot: beyond chance.

  Args:
    comparison: with agreements.
    select: the rule that overlap is of, for the title.
  """
  names = [side.name for side in comparison.sides]
  place = {name: i for i, name in enumerate(names)}
  first_k = {}
  for row in comparison.agreements:
    if row.measure == compare_lib.OVERLAP:
      first_k.setdefault((row.a, row.b), row.k)
  side = max(2.4, 0.42 * len(names))
  figure = mpl_figure.Figure(
    figsize=(3 * side + 3.2, side + 1.8), layout='constrained'
  )
  panels = figure.subplots(1, 3, sharey=True)
  for axes, measure, title, least in (
    (panels[0], compare_lib.SPEARMAN, 'Spearman', -1.0),
    (panels[1], compare_lib.OVERLAP, f'overlap of {select}', 0.0),
    (panels[2], compare_lib.RBO, 'rank-biased overlap', 0.0),
  ):
    value_SS = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(value_SS, 1.0)
    axes.set_facecolor('#dddddd')
    rows = [
      row
      for row in comparison.agreements
      if row.measure == measure and row.k in (0, first_k.get((row.a, row.b)))
    ]
    for row in rows:
      i, j = place[row.a], place[row.b]
      value_SS[i, j] = value_SS[j, i] = row.value
    image = axes.imshow(value_SS, cmap='cividis', vmin=least, vmax=1.0)
    for row in rows:
      for i, j in ((place[row.a], place[row.b]), (place[row.b], place[row.a])):
        dark = row.value < (least + 1) / 2
        text = f'{row.value:.2f}' if len(names) <= _MOST_NUMBERS else ''
        axes.text(
          j,
          i,
          text + (' \u2022' if row.beyond_chance and text else ''),
          ha='center',
          va='center',
          fontsize=7,
          color='white' if dark else 'black',
        )
    axes.set_title(title, fontsize=10, loc='left')
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.8)
  return figures.png(figure, 130)


def cross(cells: Sequence[cross_lib.Cell]) -> bytes:
  """What cutting each set of heads costs on each data set, as PNG.

  A dot: shown to cost look-ups in particular. Grey: no control was drawn.
  """
  sets = list(dict.fromkeys(cell.name for cell in cells))
  data = list(dict.fromkeys(cell.data for cell in cells))
  cost_SD = np.full((len(sets), len(data)), np.nan)
  figure = mpl_figure.Figure(
    figsize=(3.4 + 1.3 * len(data), 1.6 + 0.4 * len(sets)),
    layout='constrained',
  )
  axes = figure.subplots()
  axes.set_facecolor('#dddddd')
  for cell in cells:
    cost_SD[sets.index(cell.name), data.index(cell.data)] = cell.cost
  image = axes.imshow(
    cost_SD, cmap='cividis', vmin=-1.0, vmax=0.0, aspect='auto'
  )
  for cell in cells:
    if math.isfinite(cell.cost):
      axes.text(
        data.index(cell.data),
        sets.index(cell.name),
        f'{cell.cost:+.2f}' + (' \u2022' if cell.shown else ''),
        ha='center',
        va='center',
        fontsize=8,
        color='white' if cell.cost < -0.5 else 'black',
      )
  axes.set_xticks(range(len(data)), data, fontsize=7, rotation=20, ha='right')
  axes.set_yticks(
    range(len(sets)),
    [f'{n} ({next(c.k for c in cells if c.name == n)})' for n in sets],
    fontsize=7,
  )
  axes.set_title(
    'accuracy on look-ups: set cut, minus layer-matched cut',
    fontsize=9,
    loc='left',
  )
  figure.colorbar(image, ax=axes, shrink=0.8)
  return figures.png(figure, 130)


def structure(comparison: compare_lib.Comparison) -> bytes:
  """Sparsity of every ranking, and its mass by relative depth, as PNG."""
  rows = comparison.structures
  names = list(dict.fromkeys(row.ranking for row in rows))
  runs = list(dict.fromkeys(name.partition('/')[0] for name in names))
  styles = {name: _style(runs.index(name.partition('/')[0])) for name in names}
  queries = list(dict.fromkeys(name.partition('/')[2] for name in names))
  n_columns = max(3, len(queries))
  figure = mpl_figure.Figure(
    figsize=(3.4 * n_columns, 4.4 + 0.22 * len(names)), layout='constrained'
  )
  grid = figure.add_gridspec(
    2, n_columns, height_ratios=[1 + 0.22 * len(names), 2.6]
  )
  for column, (measure, title) in enumerate(
    (
      (structure_lib.GINI, 'Gini'),
      (structure_lib.HALF, 'share of heads with half of the mass'),
      (structure_lib.EFFECTIVE, 'effective number / heads'),
    )
  ):
    axes = figure.add_subplot(grid[0, column])
    for i, name in enumerate(names):
      (row,) = (r for r in rows if (r.ranking, r.measure) == (name, measure))
      axes.errorbar(
        row.value,
        i,
        xerr=figures.bar(row),
        capsize=2,
        **styles[name],
      )
    axes.set_yticks(
      range(len(names)), names if not column else [''] * len(names)
    )
    axes.tick_params(labelsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_title(title, fontsize=9, loc='left')
    axes.grid(alpha=0.3)
  for column, query in enumerate(queries):
    axes = figure.add_subplot(grid[1, column])
    for name in names:
      if name.partition('/')[2] != query:
        continue
      line = [
        r
        for r in rows
        if (r.ranking, r.measure) == (name, structure_lib.DEPTH_MEAN)
      ]
      depths = [r.depth for r in line]
      axes.plot(depths, [r.value for r in line], label=name, **styles[name])
      axes.fill_between(
        depths,
        [r.low for r in line],
        [r.high for r in line],
        color=styles[name]['color'],
        alpha=0.15,
        linewidth=0,
      )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel('relative depth', fontsize=8)
    axes.set_title(
      f'mass of a head, {query} rows' if query else 'score of a head',
      fontsize=9,
      loc='left',
    )
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, frameon=False)
  return figures.png(figure, 130)


def curves(points: Sequence[compare_runs.CurvePoint]) -> bytes:
  """Accuracy against the share of heads cut, a panel a kind, as PNG.

  Solid: the top heads (or those given), dashed: random heads of the same
  layers. Bands are 95% intervals.
  """
  kinds = [k for k in ('retrieval', 'twin') if any(p.kind == k for p in points)]
  panels_of = kinds or list(dict.fromkeys(p.task for p in points))
  figure = mpl_figure.Figure(
    figsize=(4.2 * len(panels_of), 3.6), layout='constrained'
  )
  panels = figure.subplots(1, len(panels_of), squeeze=False, sharey=True)[0]
  lines = list(dict.fromkeys((p.run, p.mode, p.phase, p.rows) for p in points))
  several = len({key[1:] for key in lines}) > 1
  for axes, part in zip(panels, panels_of):
    inside = [p for p in points if (p.kind if kinds else p.task) == part]
    for i, key in enumerate(lines):
      own = [p for p in inside if (p.run, p.mode, p.phase, p.rows) == key]
      for group in compare_runs.SHOWN:
        line = [p for p in own if p.group == group or not p.k]
        line.sort(key=lambda p: p.fraction)
        if not any(p.k for p in line):
          continue
        name = ', '.join(key if several else key[:1])
        axes.plot(
          [p.fraction for p in line],
          [p.accuracy for p in line],
          '--' if group == compare_runs.CONTROL else '-',
          label=f'{name}: {group.replace("_", "-")}',
          **_style(i),
        )
        axes.fill_between(
          [p.fraction for p in line],
          [p.low for p in line],
          [p.high for p in line],
          color=_style(i)['color'],
          alpha=0.12,
          linewidth=0,
        )
    axes.set_title(part, fontsize=9, loc='left')
    axes.set_xlabel('share of all heads cut', fontsize=8)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
  panels[0].set_ylabel('accuracy', fontsize=8)
  if panels[0].get_legend_handles_labels()[0]:
    figure.legend(
      *panels[0].get_legend_handles_labels(),
      loc='outside lower center',
      ncols=2,
      frameon=False,
      fontsize=7,
    )
  return figures.png(figure, 130)
