"""What the protocol came to: tables, claims.png and report.html."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import math
from typing import Any

from matplotlib import figure as mpl_figure
import numpy as np

from corejax import claims
from corejax import effects
from corejax import table
from corejax.experiments import figures
from corejax.experiments import report
from corejax.experiments import reproduce_cases
from corejax.experiments import reproduce_runs

_VERDICTS = (
  claims.FOR,
  claims.AGAINST,
  claims.UNDECIDED,
  claims.UNTESTABLE,
)
# Okabe and Ito's colours, which the colour-blind tell apart.
_GROUPS = {
  'top': ('top 5%', '#d55e00', 'o'),
  'layer_matched': ('layer-matched', '#0072b2', 's'),
  'random': ('random', '#56b4e9', 'v'),
  'median': ('median', '#009e73', '^'),
  'bottom': ('bottom', '#999999', 'D'),
}


def counts(cases: Sequence[claims.Case]) -> dict[str, Counter]:
  """Claim -> verdict -> cases."""
  found: dict[str, Counter] = {}
  for case in cases:
    found.setdefault(case.claim, Counter())[case.verdict] += 1
  return found


def cases_csv(cases: Sequence[claims.Case]) -> str:
  """cases.csv."""
  names = [field.name for field in dataclasses.fields(claims.Case)]
  return table.write(
    {name: np.array([getattr(case, name) for case in cases]) for name in names}
  )


def _rows(
  parts: Mapping[str, Sequence[claims.Case]],
  verdicts: Mapping[str, Mapping[str, str]],
) -> list[tuple[str, str, list[int], str]]:
  """(family, claim, cases by verdict in the order of _VERDICTS, verdict)."""
  rows = []
  for family, cases in parts.items():
    counted = counts(cases)
    for claim, verdict in verdicts[family].items():
      n = counted.get(claim, Counter())
      rows.append((family, claim, [n[v] for v in _VERDICTS], verdict))
  return rows


def claims_csv(
  parts: Mapping[str, Sequence[claims.Case]],
  verdicts: Mapping[str, Mapping[str, str]],
) -> str:
  """claims.csv: what the counted cases come to, each family apart."""
  rows = _rows(parts, verdicts)
  columns: dict[str, Any] = {
    'family': [family for family, *_ in rows],
    'claim': [claim for _, claim, *_ in rows],
    'says': [reproduce_cases.title(claim) for _, claim, *_ in rows],
    **{
      verdict.replace(' ', '_'): [n[i] for *_, n, _ in rows]
      for i, verdict in enumerate(_VERDICTS)
    },
    'verdict': [verdict for *_, verdict in rows],
  }
  return table.write({name: np.array(c) for name, c in columns.items()})


def grid_csv(made: Sequence[reproduce_runs.Made]) -> str:
  """grid.csv: the rows of every curve.csv, with the model and the data."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(('model', 'data', *effects.COLUMNS))
  for each in made:
    results = [*each.cut.items()]
    results += [(reproduce_runs.PAGES, r) for r in each.reduced.values()]
    for data, result in results:
      text = (result.out / 'curve.csv').read_text('utf-8')
      for row in list(csv.reader(io.StringIO(text)))[1:]:
        writer.writerow((each.name, data, *row))
  return buffer.getvalue()


def summary(
  config: Any,
  parts: Mapping[str, Sequence[claims.Case]],
  verdicts: Mapping[str, Mapping[str, str]],
) -> list[str]:
  """What came out, in lines of plain text.

  Args:
    config: a reproduce.Config.
    parts: family -> the cases that count.
    verdicts: family -> claim -> verdict.
  """
  lines = ['']
  if config.deviations:
    lines.append(
      f'not the protocol: {" ".join(config.deviations)}; nothing below is its '
      'result'
    )
  lines.append(
    f'{len(config.counted)} models counted: {", ".join(config.counted)}'
  )
  told = ''
  for family, claim, n, verdict in _rows(parts, verdicts):
    if family != told:
      if len(parts) > 1:
        lines.append(f'\n{family}')
      lines.append(
        f'{"claim":10} {"for":>4} {"against":>8} {"undecided":>10} '
        f'{"untestable":>11}  verdict'
      )
      told = family
    lines.append(
      f'{claim.split(" ")[0]:10} {n[0]:4} {n[1]:8} {n[2]:10} {n[3]:11}  '
      f'{verdict}: {reproduce_cases.title(claim)}'
    )
  return lines


def figure(made: Sequence[reproduce_runs.Made], beside: Sequence[str]) -> bytes:
  """Accuracy with each group cut and the primary endpoint, as PNG.

  Args:
    made: the models.
    beside: names of those that are counted nowhere.
  """
  rows = [(each, data) for data in reproduce_runs.DATA for each in made]
  picture = mpl_figure.Figure(
    figsize=(12, 1.8 + 0.3 * len(rows)), layout='constrained'
  )
  looked, twins, end = picture.subplots(1, 3, sharey=True)
  names = []
  for y, (each, data) in enumerate(rows):
    result = each.cut[data]
    mark = ' (not counted)' if each.name in beside else ''
    names.append(f'{each.name}{mark}, {data.removeprefix("scenes_")}')
    for i, (group, (_, colour, shape)) in enumerate(_GROUPS.items()):
      for axes, twin in ((looked, False), (twins, True)):
        row = reproduce_cases.cut(result, group, twin)
        if row:
          _point(axes, y + 0.12 * (i - 2), row.accuracy, shape, colour)
    if result.endpoint and result.endpoint.value:
      colour = '#999999' if mark else '#000000'
      _point(end, y, result.endpoint.value, 'o', colour)
  looked.set_yticks(range(len(rows)), names)
  looked.set_ylim(len(rows) - 0.5, -0.5)
  for axes, text in (
    (looked, 'accuracy on look-ups, 5% of the heads cut'),
    (twins, 'accuracy on their twins'),
    (end, 'primary endpoint: (top - layer-matched)\nx (look-ups - twins)'),
  ):
    axes.set_title(text, fontsize=9, loc='left')
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
  for axes in (looked, twins):
    axes.set_xlim(-0.02, 1.02)
  end.axvline(0, color='black', linewidth=0.8)
  end.axvline(claims.NO_EFFECT, color='#999999', linewidth=0.8, linestyle=':')
  for text, colour, shape in _GROUPS.values():
    twins.plot([], [], shape, color=colour, label=text, markersize=4)
  picture.legend(fontsize=7, loc='outside lower right', ncols=len(_GROUPS))
  return figures.png(picture, 130)


def _point(axes, y, estimate, shape, colour) -> None:
  low, value, high = estimate.low, estimate.value, estimate.high
  error = None
  if math.isfinite(low):
    # Rounding may put a bound a hair past its value.
    error = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
  axes.errorbar(
    value, y, xerr=error, fmt=shape, color=colour, markersize=4, capsize=1.5
  )


def page(
  made: Sequence[reproduce_runs.Made],
  cases: Sequence[claims.Case],
  parts: Mapping[str, Sequence[claims.Case]],
  verdicts: Mapping[str, Mapping[str, str]],
  beside: Sequence[str],
  picture: bytes,
  lines: Sequence[str],
) -> str:
  """The report.

  Args:
    made: the models.
    cases: all of them.
    parts: family -> those that count.
    verdicts: family -> claim -> verdict.
    beside: names of the models that are counted nowhere.
    picture: as `figure` drew it.
    lines: as the command prints them.
  """
  encoded = base64.b64encode(picture).decode()
  return report.render(
    'reproduce.html',
    {},
    {
      'figure': f'data:image/png;base64,{encoded}',
      'claims': [
        {
          'family': family if len(parts) > 1 else '',
          'number': claim.split(' ')[0],
          'says': reproduce_cases.title(claim),
          'counts': n,
          'verdict': verdict,
        }
        for family, claim, n, verdict in _rows(parts, verdicts)
      ],
      'models': [_model(each, each.name in beside) for each in made],
      'cases': [
        {
          'claim': case.claim,
          'model': case.model,
          'data': case.data,
          'what': case.what,
          'value': _range(case),
          'verdict': case.verdict,
          'beside': case.model in beside,
        }
        for case in cases
      ],
      'verdict_names': _VERDICTS,
      'lead': [line for line in lines if line.startswith('not the protocol')],
      'summary': lines,
    },
    scripts=(),
  )


def _model(each: reproduce_runs.Made, beside: bool) -> dict[str, Any]:
  """What is said of one model: answers intact, and its best heads."""
  return {
    'name': each.name,
    'beside': beside,
    'rows': [
      {
        'data': data,
        'intact': ', '.join(
          f'{task} {value:.3f}'
          for task, value in reproduce_cases.intact(result).items()
        ),
        'heads': str(each.ranked[data].ranking.selected),
        'top': _estimate(reproduce_cases.cut(result, 'top')),
        'control': _estimate(reproduce_cases.cut(result, 'layer_matched')),
        'random': _estimate(reproduce_cases.cut(result, 'random')),
        'median': _estimate(reproduce_cases.cut(result, 'median')),
        'bottom': _estimate(reproduce_cases.cut(result, 'bottom')),
        'twin': _estimate(reproduce_cases.cut(result, 'top', twin=True)),
      }
      for data, result in each.cut.items()
    ],
  }


def _estimate(effect: effects.Effect | None) -> str:
  return _range(effect.accuracy) if effect else ''


def _range(estimate: Any) -> str:
  if not math.isfinite(estimate.value):
    return ''
  if not math.isfinite(estimate.low):
    return f'{estimate.value:.3f}'
  return f'{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})'
