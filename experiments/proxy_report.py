"""proxy.png and report.html of a judgement of rankings; no script."""

from __future__ import annotations

from collections.abc import Sequence
import math

from matplotlib import figure as mpl_figure

from corejax import compare as compare_lib
from corejax import judge as judge_lib
from corejax.experiments import figures
from corejax.experiments import proxy_text
from corejax.experiments import report
from corejax.stats import accuracy

# Okabe and Ito's colours, which the colour-blind tell apart, by what a ranking
# has to be told.
_COLOURS = {
  judge_lib.BOXES: '#0072b2',
  judge_lib.NOTHING: '#d55e00',
  judge_lib.ANSWERS: '#009e73',
}


def figure(judged: Sequence[judge_lib.Judged], title: str) -> bytes:
  """Rank agreement with RAM, and what cutting each one's heads does, as PNG."""
  picture = mpl_figure.Figure(
    figsize=(11, 1.6 + 0.34 * len(judged)), layout='constrained'
  )
  agreed, looked, endpoint = picture.subplots(
    1, 3, sharey=True, width_ratios=(1, 1, 1)
  )
  for y, each in enumerate(judged):
    colour = (
      '#666666' if each.name == judge_lib.RANDOM else _COLOURS[each.needs]
    )
    if each.spearman is not None:
      _point(agreed, y, each.spearman, 'o', colour)
    if each.control is not None:
      _point(looked, y + 0.18, each.control.accuracy, 'o', '#bbbbbb')
    for effect, mark in ((each.retrieval, 'o'), (each.twin, 'D')):
      if effect is not None:
        _point(looked, y, effect.accuracy, mark, colour, mark == 'o')
    value = each.endpoint and (each.endpoint.value or each.endpoint.retrieval)
    if value:
      _point(endpoint, y, value, 'o', colour)
  agreed.set_yticks(
    range(len(judged)), [proxy_text.NAMES[each.name] for each in judged]
  )
  agreed.set_ylim(len(judged) - 0.5, -0.5)
  agreed.set_xlim(-1.05, 1.05)
  looked.set_xlim(-0.02, 1.02)
  agreed.set_title('Spearman with RAM', fontsize=9, loc='left')
  looked.set_title(
    'accuracy, heads cut: look-ups (full), twins (open),\nlook-ups with '
    'layer-matched heads cut (grey)',
    fontsize=9,
    loc='left',
  )
  endpoint.set_title(
    'primary endpoint with these heads as the top', fontsize=9, loc='left'
  )
  for axes in (agreed, endpoint):
    axes.axvline(0, color='black', linewidth=0.8)
  for axes in (agreed, looked, endpoint):
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
  for needs, colour in _COLOURS.items():
    endpoint.plot([], [], 'o', color=colour, label=f'needs {needs}')
  picture.legend(fontsize=7, loc='outside lower right', ncols=len(_COLOURS))
  picture.suptitle(title, fontsize=10, x=0.01, ha='left')
  return figures.png(picture, 130)


def _point(axes, y, estimate, mark, colour, filled=True) -> None:
  if not math.isfinite(estimate.value):
    return
  axes.errorbar(
    estimate.value,
    y,
    xerr=figures.bar(estimate),
    fmt=mark,
    color=colour,
    markersize=4.5,
    capsize=2,
    markerfacecolor=colour if filled else 'white',
  )


def page(
  judged: Sequence[judge_lib.Judged],
  picture: bytes,
  summary: Sequence[str],
  about: report.About,
) -> str:
  """The report.

  Args:
    judged: RAM first, random heads last.
    picture: as `figure` drew it.
    summary: as the command prints it.
    about: the run.
  """
  return report.plain(
    'proxy.html',
    {
      'about': about,
      'rows': [_row(each) for each in judged],
      'figure': picture,
      'lead': [
        line.removeprefix('so: ')
        for line in summary
        if line.startswith(('so: ', 'but ', 'order '))
      ],
      'summary': summary,
      'n_cut': len(judged[0].heads),
    },
  )


def _row(each: judge_lib.Judged) -> dict[str, str]:
  def accuracies(effect):
    return _range(effect.accuracy) if effect else ''

  value = each.endpoint and (each.endpoint.value or each.endpoint.retrieval)
  return {
    'name': proxy_text.NAMES[each.name],
    'needs': each.needs,
    'heads': str(each.heads) or 'drawn',
    'spearman': _range(each.spearman) if each.spearman else '',
    'overlap': _range(each.overlap) if each.overlap else '',
    'retrieval': accuracies(each.retrieval),
    'control': accuracies(each.control),
    'twin': accuracies(each.twin),
    'endpoint': _range(value) if value else '',
    'share': f'{each.share:.2f}' if math.isfinite(each.share) else '',
  }


def _range(estimate: accuracy.Estimate | compare_lib.Agreement) -> str:
  if not math.isfinite(estimate.low):
    return f'{estimate.value:.3f}'
  return f'{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})'
