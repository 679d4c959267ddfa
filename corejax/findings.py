"""What a ranking found, beyond its table: for the last lines and run.json."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from corejax import competing as competing_lib
from corejax import describe
from corejax import heads as heads_lib
from corejax import nulls
from corejax import ram as ram_lib
from corejax.stats import accuracy
from corejax.stats import bootstrap
from corejax.stats import multiple
from corejax.stats import reliability
from corejax.stats import sparsity as sparsity_lib

Q = 0.01  # SCIENCE: a head is over the null at q < .01
ALL_TASKS = ''  # where answers are not told apart by task
_TOP = 10


@dataclasses.dataclass(frozen=True)
class QuerySet:
  """The same ranking by other rows.

  Attributes:
    best: its best head.
    score, ram: of that head.
    overlap: share of the ranking's top set that is in its top set.
  """

  best: heads_lib.HeadSet
  score: float
  ram: float
  overlap: float


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
  """Attributes:

  options: what is called the score.
  selection: the rule, as written.
  n_asked: heads that the rule asks for; None where the q values decide. Fewer
    are taken where fewer have a finite score.
  n_examples, n_clusters: that took part.
  dropped: reason -> examples that did not.
  chance: cluster-mean |evidence| / |visual tokens|.
  tied: heads left out of the selection though they score like a selected one,
    written as a head set.
  n_resamples: of the bootstrap.
  tests: both nulls.
  sparsity: of the RAM.
  split_half: reliability of the score.
  sample_size: n examples -> overlap of the top set with the full ranking's.
  query_sets: query set -> what ranking by its rows gives.
  competing: name -> agreement with the measured ones of competing.NAMES.
  answers: task (or ALL_TASKS) -> right teacher-forced answers.
  """

  options: ram_lib.Options
  selection: str
  n_asked: int | None
  n_examples: int
  n_clusters: int
  dropped: Mapping[str, int]
  chance: float
  tied: str
  n_resamples: int
  tests: nulls.Tests
  sparsity: sparsity_lib.Sparsity
  split_half: reliability.SplitHalf
  sample_size: Mapping[int, float]
  query_sets: Mapping[str, QuerySet]
  competing: Mapping[str, competing_lib.Agreement]
  answers: Mapping[str, accuracy.Estimate]

  __repr__ = describe.fields

  def to_dict(self) -> dict[str, Any]:
    """JSON-able; nan becomes None. Arrays per head are in heads.csv."""
    return {
      field.name: _plain(getattr(self, field.name))
      for field in dataclasses.fields(self)
    }


def _plain(value):
  if isinstance(value, heads_lib.HeadSet):
    return str(value)
  if dataclasses.is_dataclass(value):
    value = {
      field.name: getattr(value, field.name)
      for field in dataclasses.fields(value)
      if not field.name.endswith('_LN')
    }
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return value


def summary(
  columns: Mapping[str, np.ndarray], findings: Findings | None
) -> list[str]:
  """Plain text, a finding a line.

  Args:
    columns: of the ranking.
    findings: None if only the table is known: its lines alone are given.
  """
  lines = []
  if findings is not None:
    lines += _setting(findings)
    lines.append(_answers(findings))
    lines += _null(columns, findings.tests)
    lines += _structure(findings)
    lines += _query_sets(findings)
    lines += _competing(findings)
  lines += _selected(columns, findings)
  return lines + _top(columns)


def _setting(findings: Findings) -> list[str]:
  options = findings.options
  extras = [
    name
    for name, on in (
      ('calibrated', options.calibrate),
      ('evidence minus distractor per token', options.contrast),
      ('right answers only', options.correct_only),
    )
    if on
  ]
  line = (
    f'measured on {findings.n_examples} examples in {findings.n_clusters} '
    f'clusters; rows: {options.query}; score: '
    + ', '.join([options.norm, *extras])
    + f'; chance {findings.chance:.4f}'
  )
  lines = [line]
  if findings.dropped:
    lines.append(
      'left out: '
      + ', '.join(f'{n} ({why})' for why, n in findings.dropped.items())
    )
  if findings.n_resamples and findings.n_clusters < bootstrap.FEW_CLUSTERS:
    lines.append(
      'intervals: none, there is one cluster'
      if findings.n_clusters == 1
      else f'intervals: fewer than {bootstrap.FEW_CLUSTERS} clusters; those of '
      'very skewed heads may cover less than the 95% aimed at'
    )
  return lines


def _answers(findings: Findings) -> str:
  parts = []
  for task, right in findings.answers.items():
    interval = (
      f'[{right.low:.3f}, {right.high:.3f}]'
      if math.isfinite(right.low)
      else '(no interval, there is one cluster)'
    )
    named = '' if task == ALL_TASKS else f'{task} '
    parts.append(f'{named}{right.value:.3f} {interval} of {right.n}')
  return 'teacher-forced answers right: ' + '; '.join(parts)


def _null(columns, tests: nulls.Tests) -> list[str]:
  total = len(columns['rank'])
  if tests.untested:
    return [f'over the null: not tested, {tests.untested}']
  over = int((columns['q_value'] < Q).sum())
  where = (
    f'{tests.statistic}, against evidence of another question, '
    f'{tests.n_permutations} permutations: {tests.n_media} examples exchanged '
    f'on the same media, {tests.n_layout} on others of the same layout, '
    f'{tests.n_fixed} had no partner'
  )
  lines = []
  if over:
    lines.append(
      f'over the null: {over} of {total} heads at q < {Q:g} ({where})'
    )
  else:
    lines.append(
      f'over the null: none of {total} heads at q < {Q:g} ({where}): no head '
      'is shown to read the evidence rather than what is salient, central or '
      'recent'
    )
    least = multiple.least_discoveries(total, tests.n_permutations, Q)
    if least > 1:
      lines.append(
        f'  with {tests.n_permutations} permutations at least {least} heads '
        'must stand out at once to be seen; more permutations lower that'
      )
  if not tests.untested_shift:
    shifted = int((columns['q_shift'] < Q).sum())
    lines.append(
      f'over shifted evidence: {shifted} of {total} heads at q < {Q:g} '
      f'({tests.n_shift_fixed} examples had no other place)'
    )
  return lines


def _structure(findings: Findings) -> list[str]:
  s, r = findings.sparsity, findings.split_half
  lines = [
    f'sparsity: Gini {s.gini:.3f}; {_heads(s.half)} ({s.half_share:.1%}) '
    f'hold half of the mass; effective number {s.effective:.1f}; '
    f'{s.high_share:.1%} of heads above {sparsity_lib.HIGH:g}'
  ]
  if r.n_splits:
    lines.append(
      f'split halves ({r.n_splits} splits by cluster): Spearman '
      f'{r.spearman:.3f} (full size, Spearman-Brown: {r.spearman_brown:.3f}); '
      f'top-{r.top} overlap {r.overlap:.3f} (chance {r.overlap_chance:.3f}); '
      f'RBO {r.rbo:.3f} (chance {r.rbo_chance:.3f})'
    )
  else:
    lines.append('split halves: not measured, there is one cluster')
  if findings.sample_size:
    lines.append(
      f'top-{r.top} overlap with this ranking at n examples: '
      + ', '.join(f'{n}: {o:.2f}' for n, o in findings.sample_size.items())
    )
  return lines


def _query_sets(findings: Findings) -> list[str]:
  parts = [
    f'{query} {s.best} RAM {s.ram:.4f}, {s.overlap:.2f}'
    for query, s in findings.query_sets.items()
  ]
  return ['rows (best head, overlap of the top set): ' + '; '.join(parts)]


def _competing(findings: Findings) -> list[str]:
  parts = [
    f'{name} {found.spearman:.3f}, {found.overlap:.2f}'
    for name, found in findings.competing.items()
  ]
  if not parts:
    return []
  score = 'RAM' if findings.options.plain else 'the score'
  return [
    f'competing rankings (Spearman with {score}, overlap of the top set): '
    + '; '.join(parts)
  ]


def _selected(columns, findings) -> list[str]:
  chosen = columns.get('selected', np.zeros(len(columns['rank']))) == 1
  heads = [
    f'{layer}-{head}'
    for layer, head in zip(columns['layer'][chosen], columns['head'][chosen])
  ]
  shown = ', '.join(heads[:_TOP]) + (', ...' if len(heads) > _TOP else '')
  rule = f' by {findings.selection}' if findings is not None else ''
  lines = [f'selected{rule}: {_heads(len(heads))}' + (shown and f': {shown}')]
  asked = None if findings is None else findings.n_asked
  if asked is not None and len(heads) < asked:
    lines.append(
      f'selected fewer than the {_heads(asked)} asked for: only a head with a '
      'finite score is taken'
    )
  if findings is not None and findings.tied:
    lines.append(
      f'tie at the cut: {findings.tied} score like a selected head; '
      'lower (layer, head) went first'
    )
  unscored = int((~np.isfinite(columns['score'])).sum())
  if unscored:
    lines.append(f'no finite score: {_heads(unscored)}, ranked last')
  return lines


def _heads(n: int) -> str:
  return f'{n} head' if n == 1 else f'{n} heads'


def _top(columns) -> list[str]:
  named = not np.array_equal(columns['ram'], columns['score'], equal_nan=True)
  lines = [f'top {min(_TOP, len(columns["rank"]))} heads, RAM [95% interval]:']
  for i in range(min(_TOP, len(columns['rank']))):
    get = {name: column[i] for name, column in columns.items()}
    line = (
      f'{get["rank"]:4d}  {get["layer"]}-{get["head"]:<4d} '
      f'{get["ram"]:.4f} [{get["ci_low"]:.4f}, {get["ci_high"]:.4f}]'
    )
    if named and 'score_ci_low' in get:
      line += (
        f'  score {get["score"]:.4g} [{get["score_ci_low"]:.4g}, '
        f'{get["score_ci_high"]:.4g}]'
      )
    line += f'  lift {get["lift"]:.2f}  inclusion {get["inclusion"]:.2f}'
    lines.append(line + f'  q {get["q_value"]:.2g}')
  return lines
