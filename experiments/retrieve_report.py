"""retrieval.png and report.html of `retrieve`; no script."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import figure as mpl_figure

from corejax.experiments import figures
from corejax.experiments import report
from corejax.experiments import retrieve_table
from corejax.experiments import timed_table

# Okabe and Ito's colours, which the colour-blind tell apart.
_STYLES = {
  'given': ('#d55e00', '-', 'o'),
  retrieve_table.ALL: ('#009e73', '-', 's'),
  'layer_matched': ('#0072b2', '-', 'o'),
  'random': ('#56b4e9', '--', 'o'),
  retrieve_table.LARGEST: ('#cc79a7', '-.', 'D'),
  retrieve_table.ANY_ORDER: ('#999999', ':', 'x'),
}


def figure(table: Sequence[retrieve_table.Row], title: str) -> bytes:
  """Recall against k, a panel for pages and one for layouts, as PNG.

  Bars are 95% intervals over clusters; controls are means over their draws.
  """
  shown = [what for what in retrieve_table.KS if retrieve_table.at(table, what)]
  picture = mpl_figure.Figure(
    figsize=(1 + 4.6 * len(shown), 4.4), layout='constrained'
  )
  panels = picture.subplots(1, len(shown), squeeze=False, sharey=True)[0]
  for axes, what in zip(panels, shown):
    groups = retrieve_table.at(table, what)
    for place, (name, rows) in enumerate(groups.items()):
      colour, style, mark = _STYLES[name]
      levels = [row.micro for row in rows]
      # Beside one another: bars on one place hide each other.
      places = [i + 0.07 * (place - len(groups) / 2) for i in range(len(rows))]
      axes.errorbar(
        places,
        [level.value for level in levels],
        yerr=figures.bars(levels),
        color=colour,
        linestyle=style,
        marker=mark,
        markersize=4,
        capsize=2,
        linewidth=1.2,
        label=retrieve_table.NAMES.get(name, name),
      )
    ks = retrieve_table.KS[what]
    axes.set_xticks(range(len(ks)), [f'@{k}' for k in ks])
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.set_title(f'recall of {what}', fontsize=9, loc='left')
  panels[0].set_ylabel('recall, mean over questions')
  handles, labels = panels[-1].get_legend_handles_labels()
  picture.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=3,
    frameon=False,
    fontsize=8,
  )
  picture.suptitle(title, fontsize=9, x=0.01, ha='left')
  return figures.png(picture, 130)


def page(
  table: Sequence[retrieve_table.Row],
  picture: bytes,
  summary: Sequence[str],
  about: report.About,
  pages: int,
) -> str:
  """The report.

  Args:
    table: rows of retrieval.csv.
    picture: as `figure` drew it.
    summary: as the command prints it.
    about: the run.
    pages: of a chunk.
  """
  return report.plain(
    'retrieve.html',
    {
      'about': about,
      'lead': [
        line.removeprefix('so: ') for line in summary if line.startswith('so: ')
      ],
      'figure': picture,
      'tables': [
        (what, ks, _cells(table, what))
        for what, ks in retrieve_table.KS.items()
        if retrieve_table.at(table, what)
      ],
      'summary': summary,
      'pages': pages,
    },
  )


def _cells(
  table: Sequence[retrieve_table.Row], what: str
) -> list[dict[str, object]]:
  return [
    {
      'name': retrieve_table.NAMES.get(name, name),
      'heads': str(rows[0].heads or ''),
      'micro': [timed_table.told(row.micro) for row in rows],
      'macro': [f'{row.macro:.3f}' for row in rows],
    }
    for name, rows in retrieve_table.at(table, what).items()
  ]
