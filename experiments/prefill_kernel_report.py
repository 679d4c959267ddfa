"""speed.png and report.html of `prefill --kernel_only`; no script."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import figure as mpl_figure

from corejax.experiments import figures
from corejax.experiments import prefill_kernel
from corejax.experiments import report

_COLOURS = (
  '#d55e00',
  '#0072b2',
  '#009e73',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
  '#999999',
)


def figure(rows: Sequence[prefill_kernel.Row], title: str) -> bytes:
  """Times faster than all dense, a panel a geometry, as PNG.

  A line for each number of dense heads; dotted is its ideal by elements, dashed
  that by tiles.
  """
  geometries = list(dict.fromkeys(row.geometry for row in rows))
  picture = mpl_figure.Figure(
    figsize=(0.8 + 4.8 * len(geometries), 4.2), layout='constrained'
  )
  panels = picture.subplots(1, len(geometries), squeeze=False, sharey=True)[0]
  for axes, geometry in zip(panels, geometries):
    mine = [row for row in rows if row.geometry == geometry]
    counts = sorted({row.n_dense for row in mine} - {geometry[0]})
    for place, n_dense in enumerate(counts):
      line = [row for row in mine if row.n_dense == n_dense]
      colour = _COLOURS[place % len(_COLOURS)]
      lengths = [row.cost.length for row in line]
      axes.plot(
        lengths,
        [row.up.value for row in line],
        'o-',
        color=colour,
        label=f'{n_dense} of {geometry[0]} dense',
      )
      for name, style in (('element_ideal', ':'), ('tile_ideal', '--')):
        ideal = [getattr(row.cost, name) for row in line]
        # The mark shows an ideal at one length alone too.
        axes.plot(
          lengths, ideal, style, marker='_', color=colour, linewidth=0.9
        )
    axes.axhline(1, color='black', linewidth=0.8)
    axes.set_xscale('log', base=2)
    plans = {row.cost.length: row.plan for row in mine}
    # The window may grow with the length, and what is saved shrinks with it.
    axes.set_xticks(
      list(plans), [f'{n}\n{p.window} + {p.sink}' for n, p in plans.items()]
    )
    axes.minorticks_off()
    axes.set_xlabel('tokens, and window + sink of sparse heads')
    axes.set_title(
      f'{geometry[0]} query heads, {geometry[1]} kv heads',
      fontsize=9,
      loc='left',
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
  panels[0].set_ylabel('times faster than all dense')
  picture.suptitle(
    f'{title}; dotted: ideal by elements, dashed: by tiles',
    fontsize=9,
    x=0.01,
    ha='left',
  )
  return figures.png(picture, 130)


def page(
  rows: Sequence[prefill_kernel.Row],
  skipped: Sequence[str],
  picture: bytes,
  about: str,
) -> str:
  """The report.

  Args:
    rows: of kernel.csv.
    skipped: what was left out, in words.
    picture: as `figure` drew it.
    about: dtype, head dimension and machine.
  """
  return report.plain(
    'prefill_kernel.html',
    {
      'about': about,
      'figure': picture,
      'skipped': skipped,
      'rows': [
        {
          'geometry': f'{row.geometry[0]}/{row.geometry[1]}',
          'length': row.cost.length,
          'dense': f'{row.n_dense} ({100 * row.cost.rho:.1f}%)',
          'span': f'{row.plan.window} + {row.plan.sink}',
          'ms': f'{1e3 * row.seconds:.2f}',
          'up': str(row.up),
          'attended': report.percent(row.cost.attended),
          'element': f'{row.cost.element_ideal:.2f}',
          'tile': f'{row.cost.tile_ideal:.2f}',
          'share': report.percent(row.of_tile_ideal, 0),
        }
        for row in rows
      ],
    },
  )
