"""shift.png and report.html of `shift`; no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io
from typing import Any

from matplotlib import figure as mpl_figure
import numpy as np
from PIL import Image

from corejax.experiments import ablate_report
from corejax.experiments import ablate_sets
from corejax.experiments import figures
from corejax.experiments import report
from corejax.experiments import shift_levels
from corejax.experiments import shift_table

# Okabe and Ito's colours, which the colour-blind tell apart.
_REFERENCE, _OWN, _PLAIN, _GREY = '#d55e00', '#0072b2', '#000000', '#999999'
_CROP = 112  # pixels of an example that are shown
_ANYWHERE = 'any'
_ROWS = (
  'accuracy,\nintact',
  'RAM of a set',
  'agreement with\nthe usual ranking',
  'endpoint:\ncutting a set',
)


def usual_texts(config: Any) -> dict[str, str]:
  """axis -> where the usual scenes lie on it, in words."""
  scene = shift_levels.scene_config(config)
  texts = {}
  for axis in shift_levels.axes(config):
    value = shift_levels.usual_value(axis, scene)
    texts[axis] = _ANYWHERE if value is None else f'{value:g}'
  return texts


def _line(
  table: shift_table.Table, axis: str, usual: Mapping[str, str]
) -> list[tuple[str, shift_table.Point]]:
  """(value as told, point) along an axis, the usual scenes in their place."""
  line = [(p.level.text, p) for p in table.of(axis)]
  line.append((usual[axis], table.usual))
  return sorted(line, key=lambda x: -1.0 if x[0] == _ANYWHERE else float(x[0]))


def figure(
  table: shift_table.Table, usual: Mapping[str, str], title: str
) -> bytes:
  """A column an axis, from top to bottom what the rows say, as PNG.

  Args:
    table: every level.
    usual: as `usual_texts` gives it.
    title: above the picture.
  """
  axes_names = table.axes
  picture = mpl_figure.Figure(
    figsize=(1.6 + 2.1 * max(len(axes_names), 2), 7.6), layout='constrained'
  )
  panels = picture.subplots(
    len(_ROWS), max(len(axes_names), 1), squeeze=False, sharey='row'
  )
  for axis, column in zip(axes_names, panels.T):
    _column(column, table, axis, _line(table, axis, usual))
  for row, text in enumerate(_ROWS):
    panels[row, 0].set_ylabel(text, fontsize=8)
  panels[0, 0].set_ylim(-0.03, 1.03)
  panels[1, 0].set_ylim(bottom=0)
  panels[2, 0].set_ylim(-0.25, 1.06)
  for row in range(len(_ROWS)):
    handles, labels = panels[row, -1].get_legend_handles_labels()
    if handles:
      panels[row, -1].legend(
        handles,
        labels,
        fontsize=6.5,
        frameon=False,
        loc='center left',
        bbox_to_anchor=(1.0, 0.5),
      )
  picture.suptitle(
    f'{title}; shaded: the usual scenes', fontsize=9, x=0.01, ha='left'
  )
  return figures.png(picture, 130)


def _column(
  panels: Sequence[Any],
  table: shift_table.Table,
  axis: str,
  line: Sequence[tuple[str, shift_table.Point]],
) -> None:
  """Draws one axis into the panels of its column."""

  def draw(axes, pick, colour, mark, label):
    found = [(x, pick(p)) for x, (_, p) in enumerate(line)]
    found = [(x, e) for x, e in found if e is not None]
    # Anywhere is no place on the way.
    way = [(x, e) for x, e in found if line[x][0] != _ANYWHERE]
    aside = 0.07 if mark == 'D' else -0.07
    axes.plot(
      [x + aside for x, _ in way],
      [e.value for _, e in way],
      color=colour,
      linewidth=1,
    )
    for x, e in found:
      told = label if x == found[0][0] else None
      _bar(axes, x + aside, e, mark, colour, told)

  right, ram, agreed, cut = panels
  draw(right, lambda p: p.lookups, _REFERENCE, 'o', 'look-ups')
  draw(right, lambda p: p.twins, _OWN, 'D', 'twins')
  draw(ram, lambda p: p.reference_ram, _REFERENCE, 'o', 'reference heads')
  draw(ram, lambda p: p.own_ram, _OWN, 'D', "the level's own heads")
  ram.plot(
    range(len(line)),
    [p.chance for _, p in line],
    ':',
    color=_GREY,
    label='even looking',
  )
  draw(agreed, lambda p: p.overlap, _PLAIN, 'o', 'overlap, first heads')
  draw(agreed, lambda p: p.spearman, _GREY, 'D', 'Spearman, all heads')
  again = table.again_overlap
  for value, colour, style, label in (
    (again.value, _PLAIN, '--', 'usual scenes drawn anew:\noverlap'),
    (table.again_spearman.value, _GREY, '--', 'and Spearman'),
    (again.chance, _PLAIN, ':', 'overlap by chance'),
  ):
    agreed.axhline(
      value, color=colour, linestyle=style, linewidth=0.8, label=label
    )
  for pick, colour, mark, label in (
    (lambda p: p.reference, _REFERENCE, 'o', 'reference heads cut'),
    (lambda p: p.own, _OWN, 'D', "the level's own heads cut"),
  ):
    draw(
      cut,
      lambda p, pick=pick: shift_table.effect(pick(p)),
      colour,
      mark,
      label,
    )
  cut.axhline(0, color=_PLAIN, linewidth=0.7)
  (place,) = [x for x, (_, p) in enumerate(line) if p is table.usual]
  for axes in panels:
    axes.axvspan(place - 0.3, place + 0.3, color='#f0e442', alpha=0.25, lw=0)
    axes.set_xticks(range(len(line)), [text for text, _ in line])
    axes.set_xlim(-0.5, len(line) - 0.5)
    axes.tick_params(labelsize=7, labelbottom=axes is cut)
    axes.grid(alpha=0.3)
  right.set_title(axis, fontsize=9, loc='left')
  cut.set_xlabel(shift_levels.TITLES[axis], fontsize=7)


def _bar(axes, x, e, mark, colour, label) -> None:
  axes.errorbar(
    x,
    e.value,
    yerr=figures.bar(e),
    fmt=mark,
    color=colour,
    markersize=4,
    capsize=2,
    linewidth=1,
    markerfacecolor=colour if mark == 'o' else 'white',
    label=label,
  )


def shown(
  config: Any, levels: Sequence[shift_levels.Level]
) -> list[dict[str, Any]]:
  """What the evidence of a first example looks like at each level.

  Returns:
    'name' of the level and 'picture', a PNG: pixels as they are stored, around
    the evidence.
  """
  split = ablate_sets.splits(config)[1]
  found = []
  for level in levels:
    if level.seed:
      continue
    example = shift_levels.source(config, level, split, 1)[0]
    box = example.evidence[0]
    picture = Image.open(io.BytesIO(example.media[box.media])).convert('RGB')
    width, height = picture.size
    x = _start((box.x0 + box.x1) / 2 * width, width)
    y = _start((box.y0 + box.y1) / 2 * height, height)
    crop = np.asarray(picture)[y : y + _CROP, x : x + _CROP]
    found.append({'name': level.name, 'picture': _png(crop)})
  return found


def _start(centre: float, size: int) -> int:
  return int(min(max(0, round(centre - _CROP / 2)), max(0, size - _CROP)))


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()


def page(
  table: shift_table.Table,
  usual: Mapping[str, str],
  summary: Sequence[str],
  about: report.About,
  picture: bytes,
  examples: Sequence[Mapping[str, Any]],
  mode: str,
) -> str:
  """The report.

  Args:
    table: every level.
    usual: as `usual_texts` gives it.
    summary: as the command prints it.
    about: the run.
    picture: as `figure` drew it.
    examples: as `shown` gives them.
    mode: of the ablation.
  """
  rows = [_row('usual scenes', '', table.usual)]
  for axis in table.axes:
    rows += [_row(axis, point.level.text, point) for point in table.of(axis)]
  return report.plain(
    'shift.html',
    {
      'about': about,
      'lead': [shift_table.verdict(table, axis) for axis in table.axes],
      'heads': str(table.heads),
      'n_heads': len(table.heads),
      'again': {
        'overlap': shift_table.told(table.again_overlap, 2),
        'spearman': shift_table.told(table.again_spearman, 2),
        'chance': f'{table.again_overlap.chance:.2f}',
      },
      'usual': usual,
      'axes': {axis: shift_levels.TITLES[axis] for axis in table.axes},
      'figure': picture,
      'examples': examples,
      'rows': rows,
      'summary': summary,
      'mode': ablate_report.MODES[mode],
    },
  )


def _row(axis: str, text: str, point: shift_table.Point) -> dict[str, str]:
  told = shift_table.told
  return {
    'axis': axis,
    'value': text,
    'lookups': told(point.lookups),
    'twins': told(point.twins),
    'chance': f'{point.chance:.3f}',
    'ram': told(point.reference_ram),
    'own_ram': told(point.own_ram),
    'overlap': told(point.overlap, 2),
    'spearman': told(point.spearman, 2),
    'effect': told(shift_table.effect(point.reference)),
    'own_effect': told(shift_table.effect(point.own)),
    'cut': told(point.reference_cut),
    'control': told(point.control_cut),
    'own_heads': str(point.own_heads),
  }
