"""speed.png, accuracy.png and report.html of `prefill`; no script."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import figure as mpl_figure

from corejax.experiments import figures
from corejax.experiments import prefill_run
from corejax.experiments import prefill_sets
from corejax.experiments import prefill_table
from corejax.experiments import prefill_words
from corejax.experiments import report
from corejax.experiments import timed_table

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = {
  prefill_sets.TOP: ('#d55e00', '-', 'o'),
  prefill_sets.GIVEN: ('#d55e00', '-', 'o'),
  prefill_sets.KV_TOP: ('#cc79a7', '-', 's'),
  'layer_matched': ('#0072b2', '-', 'o'),
  'random': ('#56b4e9', '--', 'o'),
  'bottom': ('#999999', '-.', 'o'),
}
_SPEED = (
  '#999999',
  '#d55e00',
  '#0072b2',
  '#009e73',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
)


def speed(
  table: Sequence[prefill_table.Row],
  scales: Sequence[prefill_run.Scale],
  title: str,
) -> bytes:
  """Times faster than all dense, against length, as PNG.

  Left the attention alone, right to the first token; a line for each number of
  dense heads, those of the top if it was asked for. Thin lines are the ideals:
  dotted by elements, dashed by tiles.
  """
  kind = _kind(table)
  names = [row.name for row in table]
  shown = next((name for name in _COLOURS if name in names), None)
  picture = mpl_figure.Figure(figsize=(10, 4.2), layout='constrained')
  panels = picture.subplots(1, 2, sharey=True)
  lines = {}
  for row in table:
    if row.whole and row.kind == kind and row.name in (shown, 'all_sparse'):
      lines.setdefault(row.n_dense, []).append(row)
  for place, (n_dense, line) in enumerate(sorted(lines.items())):
    colour = _SPEED[place % len(_SPEED)]
    line = sorted(line, key=lambda row: row.scale.tokens)
    tokens = [row.scale.tokens for row in line]
    label = f'{n_dense} dense ({100 * line[0].cost.rho:.0f}%)'
    for axes, ups in (
      (panels[0], [row.kernel_up for row in line]),
      (panels[1], [row.first_up for row in line]),
    ):
      axes.errorbar(
        tokens,
        [up.value for up in ups],
        yerr=figures.bars(ups),
        fmt='o-',
        capsize=2,
        color=colour,
        label=label,
      )
    for name, style in (('element_ideal', ':'), ('tile_ideal', '--')):
      ideal = [getattr(row.cost, name) for row in line]
      panels[0].plot(tokens, ideal, style, color=colour, linewidth=0.9)
  panels[0].set_title(
    'attention alone; dotted: ideal by elements, dashed: by tiles',
    fontsize=9,
    loc='left',
  )
  panels[1].set_title('to the first token', fontsize=9, loc='left')
  for axes in panels:
    axes.axhline(1, color='black', linewidth=0.8)
    axes.set_xlabel('tokens of the prompt')
    axes.set_xscale('log', base=2)
    axes.set_xticks([s.tokens for s in scales], [str(s.tokens) for s in scales])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
  panels[0].set_ylabel('times faster than all dense')
  if lines:
    panels[1].legend(fontsize=7)
  picture.suptitle(title, fontsize=9, x=0.01, ha='left')
  return figures.png(picture, 130)


def accuracy(
  table: Sequence[prefill_table.Row],
  scales: Sequence[prefill_run.Scale],
  title: str,
) -> bytes:
  """Accuracy against the dense fraction, look-ups and twins apart, as PNG."""
  kinds = list(dict.fromkeys(row.kind for row in table))
  picture = mpl_figure.Figure(
    figsize=(4.6 * len(kinds) + 0.6, 0.9 + 2.6 * len(scales)),
    layout='constrained',
  )
  panels = picture.subplots(
    len(scales), len(kinds), squeeze=False, sharey=True, sharex=True
  )
  for line, scale in zip(panels, scales):
    for axes, kind in zip(line, kinds):
      _curves(axes, prefill_table.at(table, scale, kind))
      what = 'look-ups' if kind == timed_table.RETRIEVAL else 'twins'
      axes.set_title(f'{what}, {scale.tokens} tokens', fontsize=9, loc='left')
      axes.set_ylim(-0.03, 1.03)
      axes.grid(alpha=0.3)
    line[0].set_ylabel('accuracy')
  for axes in panels[-1]:
    axes.set_xlabel('share of heads that stay dense')
  picture.legend(
    *panels[0, 0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=3,
    frameon=False,
    fontsize=8,
  )
  picture.suptitle(title, fontsize=9, x=0.01, ha='left')
  return figures.png(picture, 130)


def _curves(axes, rows) -> None:
  """One panel; all sparse and all dense are where every line ends."""
  ends = [r for r in rows.values() if r.n_dense == 0 or r.cost.rho == 1]
  for name, (colour, style, mark) in _COLOURS.items():
    line = [row for row in rows.values() if row.name == name]
    if not line:
      continue
    line = sorted([*line, *ends], key=lambda row: row.cost.rho)
    levels = [row.level for row in line]
    rhos = [row.cost.rho for row in line]
    axes.plot(
      rhos,
      [level.value for level in levels],
      style,
      color=colour,
      marker=mark,
      markersize=3,
      label=prefill_words.TITLES[name],
    )
    axes.fill_between(
      rhos,
      [level.low for level in levels],
      [level.high for level in levels],
      color=colour,
      alpha=0.13,
      linewidth=0,
    )


def _kind(table: Sequence[prefill_table.Row]) -> str:
  """The kind of row that is shown where kinds do not differ."""
  return next(iter(dict.fromkeys(row.kind for row in table)))


def page(
  table: Sequence[prefill_table.Row],
  scales: Sequence[prefill_run.Scale],
  compared: Sequence[prefill_table.Compared],
  summary: Sequence[str],
  about: report.About,
  pictures: tuple[bytes, bytes],
  batch_size: int,
) -> str:
  """The report.

  Args:
    table: rows of prefill.csv.
    scales: the lengths, the longest last.
    compared: the best heads against all else.
    summary: as the command prints it.
    about: the run.
    pictures: as `speed` and `accuracy` drew them.
    batch_size: prompts of a timed call.
  """
  longest = [each for each in compared if each.row.scale is scales[-1]]
  shown = longest[len(longest) // 2 :][:1]
  return report.plain(
    'prefill.html',
    {
      'about': about,
      'lead': [
        words for each in shown for words in prefill_words.verdict(each)
      ],
      'speed': pictures[0],
      'accuracy': pictures[1],
      'tables': [(scale, _table(table, scale)) for scale in scales],
      'summary': summary,
      'batch_size': batch_size,
    },
  )


def _table(table, scale) -> list[dict[str, str]]:
  """Rows over all draws; look-ups and twins side by side."""
  kinds = {
    kind: prefill_table.at(table, scale, kind)
    for kind in (timed_table.RETRIEVAL, timed_table.TWIN)
  }
  keys = dict.fromkeys(key for rows in kinds.values() for key in rows)
  lines = []
  for key in keys:
    cells = {
      kind: timed_table.told(rows[key].level) if key in rows else ''
      for kind, rows in kinds.items()
    }
    row = next(rows[key] for rows in kinds.values() if key in rows)
    lines.append(
      {
        'name': prefill_words.TITLES[row.name],
        'dense': f'{row.n_dense} ({100 * row.cost.rho:.1f}%)',
        **cells,
        'kernel': timed_table.milliseconds(row.kernel_s),
        'kernel_up': timed_table.told(row.kernel_up),
        'first': timed_table.milliseconds(row.first_s),
        'first_up': timed_table.told(row.first_up),
        'attended': report.percent(row.cost.attended),
        'element': f'{row.cost.element_ideal:.2f}',
        'tile': f'{row.cost.tile_ideal:.2f}',
      }
    )
  return lines
