"""Pictures: the layer x head map, and a medium with its tokens and boxes."""

from collections.abc import Sequence
import io
import math
import textwrap
from typing import Any

from matplotlib import figure as mpl_figure
from matplotlib import patches as mpl_patches
import numpy as np

from corejax import drawing
from corejax import effects as effects_lib
from corejax import layout as layout_lib
from corejax.data import example as example_lib

_EVIDENCE, _DISTRACTOR = '#12b886', '#f76707'


def png(figure: mpl_figure.Figure, dpi: int) -> bytes:
  """The figure as a file's content."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi, bbox_inches='tight')
  return buffer.getvalue()


def bars(estimates: Sequence[Any]) -> list[list[float]]:
  """For errorbar, of things with value, low and high.

  Of length 0 where there is no interval, or rounding put a bound a hair past
  its value.
  """
  return [
    [max(length, 0.0) if math.isfinite(length) else 0.0 for length in lengths]
    for lengths in (
      [each.value - each.low for each in estimates],
      [each.high - each.value for each in estimates],
    )
  ]


def bar(estimate: Any) -> list[list[float]] | None:
  """Of one; None, which draws no bar at all, where it has no interval."""
  return bars([estimate]) if math.isfinite(estimate.low) else None


def heatmap(
  score_LN: np.ndarray, selected_LN: np.ndarray, title: str, label: str
) -> bytes:
  """Layer x head map as PNG; selected heads are outlined.

  Args:
    score_LN: float [L, N]; NaN is drawn grey.
    selected_LN: bool [L, N].
    title: above the picture.
    label: of the colour bar.
  """
  figure = mpl_figure.Figure(
    figsize=drawing.map_size(*score_LN.shape), layout='constrained'
  )
  axes = figure.subplots()
  drawing.head_map(axes, score_LN, selected_LN, label)
  axes.set_title(title, fontsize=10, loc='left')
  return png(figure, 150)


# Okabe and Ito's colours, which the colour-blind tell apart.
_GROUPS = {
  'top': ('top', '#d55e00', '-'),
  'given': ('given heads', '#d55e00', '-'),
  'layer_matched': ('layer-matched', '#0072b2', '-'),
  'random': ('random', '#56b4e9', '--'),
  'median': ('median', '#009e73', ':'),
  'bottom': ('bottom', '#999999', '-.'),
}


def curves(
  outcomes: effects_lib.Outcomes,
  rows: Sequence[effects_lib.Effect],
  title: str,
) -> bytes:
  """Accuracy against heads cut, a panel a task, a line a group, as PNG.

  Bands are 95% intervals; random groups are means over their draws.

  Args:
    outcomes: of the sweep.
    rows: of effects.curve.
    title: above the picture.
  """
  tasks = list(outcomes.parts())
  n_columns = min(3, len(tasks))
  n_rows = -(-len(tasks) // n_columns)
  figure = mpl_figure.Figure(
    figsize=(4 * n_columns, 1 + 2.6 * n_rows), layout='constrained'
  )
  panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
  intact = {row.task: row for row in rows if row.k == 0}
  for place, axes in enumerate(panels.ravel()):
    if place >= len(tasks):
      axes.set_visible(False)
      continue
    task = tasks[place]
    for group, (name, colour, style) in _GROUPS.items():
      line = [intact[task]]
      for k in outcomes.ks:
        drawn = len(outcomes.of(group, k)) > 1
        line += [
          row
          for row in rows
          if (row.group, row.k, row.task) == (group, k, task)
          and (row.seed == effects_lib.ALL_DRAWS or not drawn)
        ]
      if len(line) == 1:
        continue
      ks = [row.k for row in line]
      axes.plot(
        ks,
        [row.accuracy.value for row in line],
        style,
        color=colour,
        label=name,
        marker='o',
        markersize=3,
      )
      axes.fill_between(
        ks,
        [row.accuracy.low for row in line],
        [row.accuracy.high for row in line],
        color=colour,
        alpha=0.15,
        linewidth=0,
      )
    axes.set_title(task, fontsize=9)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    if place >= len(tasks) - n_columns:
      axes.set_xlabel('heads cut')
    if place % n_columns == 0:
      axes.set_ylabel('accuracy')
  figure.legend(
    *panels[0, 0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=len(_GROUPS),
    frameon=False,
    fontsize=8,
  )
  figure.suptitle(title, fontsize=10, x=0.01, ha='left')
  return png(figure, 150)


def token_map(
  picture: np.ndarray,
  media: int,
  layout: layout_lib.VisualLayout,
  evidence_I: np.ndarray,
  example: example_lib.Example,
  title: str,
) -> bytes:
  """One medium as stored, its token grid, evidence tokens and boxes, as PNG.

  Args:
    picture: uint8 [height, width, 3].
    media: its index in the example.
    layout: cells of all visual tokens.
    evidence_I: bool [I].
    example: for the boxes.
    title: above the picture.
  """
  height, width = picture.shape[:2]
  side = 7.0
  figure = mpl_figure.Figure(figsize=(side, side * height / width + 0.6))
  axes = figure.subplots()
  axes.imshow(picture, extent=(0, width, height, 0))
  mine = np.flatnonzero(layout.shows(media))
  for token in mine:
    x0, y0, x1, y1 = layout.cell_IW[token]
    axes.add_patch(
      mpl_patches.Rectangle(
        (x0, y0), x1 - x0, y1 - y0, fill=False, color='#888888', lw=0.3
      )
    )
  for token in mine[evidence_I[mine]]:
    x0, y0, x1, y1 = layout.cell_IW[token]
    axes.add_patch(
      mpl_patches.Rectangle(
        (x0, y0),
        x1 - x0,
        y1 - y0,
        color=_EVIDENCE,
        alpha=0.25,
        lw=0,
      )
    )

  def outline(boxes: Sequence[example_lib.Box], colour: str, style: str):
    for box in boxes:
      if box.media == media:
        axes.add_patch(
          mpl_patches.Rectangle(
            (box.x0 * width, box.y0 * height),
            (box.x1 - box.x0) * width,
            (box.y1 - box.y0) * height,
            fill=False,
            color=colour,
            lw=1.8,
            ls=style,
          )
        )

  outline(example.distractors, _DISTRACTOR, '--')
  outline(example.evidence, _EVIDENCE, '-')
  axes.add_patch(
    mpl_patches.Rectangle((0, 0), width, height, fill=False, lw=1.0)
  )
  cells = layout.cell_IW[mine] if len(mine) else np.zeros((1, 4))
  axes.set_xlim(min(0, cells[:, 0].min()), max(width, cells[:, 2].max()))
  axes.set_ylim(max(height, cells[:, 3].max()), min(0, cells[:, 1].min()))
  axes.set_title('\n'.join(textwrap.wrap(title, 100)), fontsize=9, loc='left')
  axes.set_xticks([])
  axes.set_yticks([])
  return png(figure, 130)
