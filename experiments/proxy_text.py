"""A judgement of rankings in plain words, and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import math
import pathlib

import numpy as np

from corejax import effects as effects_lib
from corejax import errors
from corejax import judge as judge_lib
from corejax import proxies
from corejax import table as table_lib
from corejax.stats import accuracy
from corejax.stats import bootstrap

AS_DEEP = 0.8  # of what cutting RAM's heads takes: as good as RAM's
NAMES = {
  judge_lib.RAM: 'RAM',
  judge_lib.RANDOM: 'random heads',
  'question_variance': 'variance over questions',
  'content_free': 'difference to a content-free question',
  'spatial_entropy': 'spatial entropy',
  'concentration': 'concentration',
  'consensus': 'agreement with the other heads',
  proxies.BASELINE: 'attention to all visual tokens',
  'written': 'what the head writes',
  'contribution': 'value-weighted contribution',
  'gate_gradient': 'gate gradient',
  'gate_gradient_abs': 'gate gradient, absolute',
}


def _numbers(prefix: str, estimate: accuracy.Estimate | None) -> dict:
  value, low, high = (
    (estimate.value, estimate.low, estimate.high)
    if estimate
    else (math.nan,) * 3
  )
  return {prefix: value, f'{prefix}_low': low, f'{prefix}_high': high}


def _row(judged: judge_lib.Judged) -> dict:
  spearman, overlap = judged.spearman, judged.overlap
  row = {
    'ranking': judged.name,
    'needs': judged.needs,
    'heads': str(judged.heads),
    'k': judged.retrieval.k if judged.retrieval else len(judged.heads),
  }
  for name, agreed in (('spearman', spearman), ('overlap', overlap)):
    row |= {
      name: agreed.value if agreed else math.nan,
      f'{name}_low': agreed.low if agreed else math.nan,
      f'{name}_high': agreed.high if agreed else math.nan,
      f'{name}_q': agreed.q if agreed else math.nan,
    }
  for name, effect in (
    ('retrieval', judged.retrieval),
    ('twin', judged.twin),
    ('control', judged.control),
  ):
    row |= _numbers(name, effect.accuracy if effect else None)
    row |= _numbers(f'{name}_change', effect.delta if effect else None)
  endpoint = judged.endpoint.value if judged.endpoint else None
  return row | _numbers('endpoint', endpoint) | {'share_of_ram': judged.share}


def to_csv(judged: Sequence[judge_lib.Judged]) -> str:
  """proxy.csv, a ranking a row."""
  rows = [_row(each) for each in judged]
  return table_lib.write(
    {name: np.array([row[name] for row in rows]) for name in rows[0]}
  )


def scores_csv(scores: Mapping[str, np.ndarray]) -> str:
  """scores.csv: every ranking of every head, by layer and head."""
  layer, head = np.indices(next(iter(scores.values())).shape).reshape(2, -1)
  values = {name: score_LN.ravel() for name, score_LN in scores.items()}
  return table_lib.write({'layer': layer, 'head': head, **values})


def read_scores(
  path: pathlib.Path, n_layers: int, n_heads: int
) -> dict[str, np.ndarray]:
  """Ranking -> float64 [L, N], as `scores_csv` wrote it.

  Raises:
    UserError: the file is missing, or is not of this model.
  """
  try:
    with open(path, newline='', encoding='utf-8') as f:
      names, *rows = csv.reader(f)
    columns = dict(zip(names, np.array(rows, np.float64).T, strict=True))
    columns.pop('layer')
    columns.pop('head')
    return {
      name: column.reshape(n_layers, n_heads)
      for name, column in columns.items()
    }
  except (OSError, ValueError, KeyError) as e:
    raise errors.UserError(
      f'{path}: not the rankings of this model ({e}); remove its folder and '
      'run the same command again'
    ) from e


def _range(estimate: accuracy.Estimate) -> str:
  return f'{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]'


def _value(value: float) -> str:
  return f'{value:.2f}' if math.isfinite(value) else '-'


def summary(
  judged: Sequence[judge_lib.Judged], outcomes: effects_lib.Outcomes
) -> list[str]:
  """What was found, in lines of plain text.

  Args:
    judged: RAM first.
    outcomes: of all sets of heads.
  """
  ram = judged[0]
  n_clusters = len(set(outcomes.clusters))
  intact = outcomes.score_XE[0, ~outcomes.twin_E]
  lines = [
    f'measured on {len(outcomes.tasks)} examples in {n_clusters} clusters, '
    f'under {len(outcomes.groups)} sets of heads; {len(ram.heads)} heads of '
    f'{outcomes.n_layers * outcomes.n_heads} are cut'
  ]
  if n_clusters < bootstrap.FEW_CLUSTERS:
    lines.append(
      f'intervals: fewer than {bootstrap.FEW_CLUSTERS} clusters; they may '
      'cover less than the 95% aimed at'
    )
  if len(intact):
    lines.append(f'look-ups right with all heads: {intact.mean():.3f}')
  lines.append(
    f'{"ranking":38} {"needs":8} {"Spearman":>8} {"overlap":>7}  '
    f'{"look-ups":>8} {"twins":>6} {"share":>6}  endpoint'
  )
  lines += [_line(each) for each in judged]
  return [*lines, *_told(judged)]


def _line(each: judge_lib.Judged) -> str:
  spearman, overlap = (
    '' if agreed is None else _value(agreed.value)
    for agreed in (each.spearman, each.overlap)
  )
  looked, twins = (
    '' if effect is None else f'{effect.accuracy.value:.3f}'
    for effect in (each.retrieval, each.twin)
  )
  endpoint = each.endpoint and (each.endpoint.value or each.endpoint.retrieval)
  return (
    f'{NAMES[each.name]:38} {each.needs:8} {spearman:>8} {overlap:>7}  '
    f'{looked:>8} {twins:>6} {_value(each.share):>6}  '
    + (_range(endpoint) if endpoint else '')
  ).rstrip()


def as_deep(each: judge_lib.Judged) -> bool:
  """Do its heads cut about as deep as RAM's, and deeper than their control?

  That is a change of AS_DEEP of RAM's or more, and an endpoint below 0.
  """
  value = each.endpoint and (each.endpoint.value or each.endpoint.retrieval)
  return value is not None and each.share >= AS_DEEP and value.high < 0


def _told(judged: Sequence[judge_lib.Judged]) -> list[str]:
  """The judgement in words, whatever it is."""
  ram = judged[0]
  value = ram.endpoint and (ram.endpoint.value or ram.endpoint.retrieval)
  if value is None or not value.high < 0:
    return [
      "so: cutting RAM's own heads is not shown to cost look-ups more than "
      'cutting others of their layers, so there is nothing to hold the others '
      'against'
    ]
  free = [each for each in judged if each.name in proxies.NAMES]
  good = [each for each in free if as_deep(each)]
  lines = []
  if good:
    lines.append(
      f'so: without annotations, {_list(good)} find heads whose loss costs '
      f"{AS_DEEP:.0%} or more of what the loss of RAM's does"
    )
  else:
    best = max(free, key=lambda each: np.nan_to_num(each.share, nan=-1.0))
    lines.append(
      'so: no ranking without annotations finds heads whose loss costs '
      f"{AS_DEEP:.0%} of what the loss of RAM's does; most does "
      f'{NAMES[best.name]}, {_value(best.share)}'
    )
  if any(each.name == proxies.BASELINE for each in good):
    lines.append(
      'but the baseline, attention to all visual tokens, is one of them: on '
      'these data it takes no proxy to find them'
    )
  alike = [
    each
    for each in free
    if each.spearman is not None and each.spearman.beyond_chance
  ]
  lines.append(
    'order all heads like RAM beyond chance: '
    + (', '.join(NAMES[each.name] for each in alike) or 'none of them')
  )
  return lines


def _list(judged: Sequence[judge_lib.Judged]) -> str:
  names = [f'{NAMES[each.name]} ({each.share:.2f})' for each in judged]
  return ', '.join(names[:-1]) + (' and ' if names[:-1] else '') + names[-1]
