"""report.html of an ablation: what was cut, what fell, and how sure that is.

    lead, tiles     the primary endpoint in words, whatever it is
    endpoint        top against layer-matched, look-ups against twins
    curves          every task, group, k and draw
    map             which heads each set cut
    flips           examples whose answer the top's cut changed

Framed as the other pages are: see report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from corejax import effects as effects_lib
from corejax.experiments import ablate_words
from corejax.experiments import report
from corejax.experiments import report_examples
from corejax.stats import accuracy

MAX_FLIPS = 50
_TEXT = 300  # characters of a question or an id
_RIGHT = 0.5  # an answer scored so or better counts as right
_SCRIPTS = (
  'base.js',
  'map.js',
  'charts.js',
  'forest.js',
  'curves.js',
  'ablate.js',
)

MODES = {
  'zero': 'A cut head writes 0 before the output projection.',
  'mean': 'A cut head writes its mean over other examples, by class of row: '
  'visual, question, other text.',
  'resample': 'A cut head writes what it wrote on another example, by class '
  'of row: visual, question, other text.',
  'uniform': 'A cut head reads every token it may read with the same weight.',
  'knockout_evidence': 'A cut head may not read the evidence; its attention '
  'is renormalised over the rest.',
  'knockout_visual': 'A cut head may not read any visual token; its attention '
  'is renormalised over the rest.',
}
_PHASES = {
  'prefill+decode': 'It is cut while the prompt is read and while the answer '
  'is written.',
  'decode': 'It is cut in the rows after the prompt alone: the prompt is read '
  'intact.',
}
_ROWS = {
  'all': 'In every row.',
  'query': "Only in the question's own tokens, the last token of the prompt "
  'and the rows that predict the answer, as RAM measures them.',
}
_ANSWERS = {
  'forced': 'An answer is right if every one of its tokens is the likeliest '
  'where the right answer is forced upon the model.',
  'generated': "An answer is decoded greedily and judged by the data's own "
  'rule.',
}


@dataclasses.dataclass(frozen=True)
class Cut:
  """What was done, for the page's words.

  Attributes:
    mode, phase, rows: of corejax.ablation.
    answers: 'forced' or 'generated'.
    ranking: where the groups come from.
    caveat: what a reader must know of it first, or ''.
  """

  mode: str
  phase: str
  rows: str
  answers: str
  ranking: str
  caveat: str = ''

  def words(self) -> list[str]:
    """One sentence each."""
    return [
      MODES[self.mode],
      _PHASES[self.phase],
      _ROWS[self.rows],
      _ANSWERS[self.answers],
    ]


def page(
  outcomes: effects_lib.Outcomes,
  curve: Sequence[effects_lib.Effect],
  endpoint: effects_lib.Endpoint | None,
  summary: Sequence[str],
  about: report.About,
  rows: Sequence[Mapping[str, Any]],
  cut: Cut,
) -> str:
  """The report of an ablation.

  Args:
    outcomes: of the sweep.
    curve: of effects.curve.
    endpoint: the primary one; None where it cannot be said.
    summary: as the command prints it.
    about: the run.
    rows: of examples.jsonl, in the order of the outcomes.
    cut: what was done to the heads.

  Raises:
    ValueError: there is not one row an example.
  """
  if len(rows) != len(outcomes.tasks):
    raise ValueError(f'page: {len(rows)} rows, {len(outcomes.tasks)} examples')
  found = ablate_words.Found(outcomes, curve, endpoint)
  flipped = _flipped(found)
  values = {
    'about': about,
    'cut': cut,
    'n_examples': len(rows),
    'n_clusters': len(set(outcomes.clusters)),
    'n_sets': len(outcomes.groups),
    'lead': ablate_words.lead(found),
    'tiles': ablate_words.tiles(found),
    'summary': summary,
    'k': found.k,
    'these': found.these,
    'top': found.top,
    'kinds': [ablate_words.SHORT[kind] for kind in found.kinds],
    'groups': {name: ablate_words.DEFINITIONS[name] for name in found.groups},
    'titles': effects_lib.TITLES,
    'table': _table(found),
    'notes': _notes(found),
    'counts': _counts(found),
    'n_flipped': len(flipped),
    'flips': _flips(found, flipped, rows),
  }
  return report.render('ablate.html', _data(found, about), values, _SCRIPTS)


def _data(found: ablate_words.Found, about: report.About) -> dict[str, Any]:
  """What the page's scripts read."""
  outcomes = found.outcomes
  layer_X, head_X = np.divmod(
    np.arange(outcomes.n_layers * outcomes.n_heads), outcomes.n_heads
  )
  endpoint = found.endpoint
  return {
    'kind': 'ablate',
    'model': about.model,
    'data': about.data,
    'n_layers': outcomes.n_layers,
    'n_heads': outcomes.n_heads,
    'heads': {'layer': layer_X.tolist(), 'head': head_X.tolist()},
    'groups': [
      {'name': name, 'title': effects_lib.TITLES[name]} for name in found.groups
    ],
    'top': found.top,
    'k': found.k,
    'ks': outcomes.ks,
    'sets': [
      {
        'group': group.name,
        'k': group.k,
        'seed': group.seed,
        'heads': [
          layer * outcomes.n_heads + head for layer, head in group.heads
        ],
        'note': group.note,
      }
      for group in outcomes.groups[1:]
    ],
    'parts': [
      {
        'name': name,
        'n': int(used_E.sum()),
        'pooled': name in (effects_lib.RETRIEVAL, effects_lib.TWIN),
        'twin': bool(outcomes.twin_E[used_E].all()),
        'lines': {group: _line(found, group, name) for group in found.groups},
      }
      for name, used_E in _in_order(outcomes)
    ],
    'endpoint': endpoint
    and {
      'draws': endpoint.n_draws,
      'rows': [
        [name, _ends(estimate)]
        for name, estimate in (
          ('look-ups', endpoint.retrieval),
          ('twins', endpoint.twin),
          ('look-ups minus twins', endpoint.value),
        )
        if estimate is not None
      ],
    },
  }


def _in_order(outcomes: effects_lib.Outcomes) -> list[tuple[str, np.ndarray]]:
  """Parts, the pooled ones first."""
  pooled = effects_lib.RETRIEVAL, effects_lib.TWIN
  return sorted(
    outcomes.parts().items(), key=lambda part: part[0] not in pooled
  )


def _line(found: ablate_words.Found, group: str, part: str) -> dict[str, list]:
  """One line of a panel, from the intact model on."""
  rows = [(k, found.row(group, k, part)) for k in (0, *found.outcomes.ks)]
  rows = [(k, row) for k, row in rows if row is not None]
  draws = [found.draws(group, k, part) if k else [] for k, _ in rows]
  return {
    'k': [k for k, _ in rows],
    'accuracy': [_ends(row.accuracy) for _, row in rows],
    'delta': [_ends(row.delta) for _, row in rows],
    'logprob': _floats([row.logprob_delta for _, row in rows]),
    'draws': [_floats([r.accuracy.value for r in drawn]) for drawn in draws],
    'draws_logprob': [
      _floats([r.logprob_delta for r in drawn]) for drawn in draws
    ],
  }


def _ends(estimate: accuracy.Estimate) -> list[float | None]:
  return _floats([estimate.value, estimate.low, estimate.high])


def _floats(values: Sequence[float]) -> list[float | None]:
  return report.numbers(np.asarray(values, np.float64))


def _table(found: ablate_words.Found) -> list[tuple[str, list[list[str]]]]:
  """(group, for each kind [accuracy, change, interval, log p]) at the k."""
  lines = []
  for group in ('intact', *found.groups):
    k = 0 if group == 'intact' else found.k
    cells = []
    for part in found.kinds.values():
      row = found.row(group, k, part)
      if row is None:
        continue
      right = report.percent(row.accuracy.value)
      if not k:
        cells.append([right, '', '', ''])
        continue
      low, high = row.delta.low, row.delta.high
      cells.append(
        [
          right,
          ablate_words.points(row.delta.value),
          f'{ablate_words.points(low)} to {ablate_words.points(high)}'
          if math.isfinite(low)
          else '',
          ablate_words.signed(row.logprob_delta, 2),
        ]
      )
    if cells:
      lines.append((group, cells))
  return lines


def _notes(found: ablate_words.Found) -> list[str]:
  """What is to be told of the groups at the endpoint's k, each once."""
  return list(
    dict.fromkeys(
      f'{effects_lib.TITLES[group.name]}, {group.k} heads: {group.note}'
      for group in found.outcomes.groups
      if group.k == found.k and group.note
    )
  )


def _right(found: ablate_words.Found, group: str) -> np.ndarray:
  """bool [S, E]: are the answers right with the group's k heads cut?"""
  return found.outcomes.score_XE[found.outcomes.of(group, found.k)] >= _RIGHT


def _flipped(found: ablate_words.Found) -> np.ndarray:
  """Indices of the examples whose answer the top's cut turns."""
  top_SE = _right(found, found.top)
  if not len(top_SE):
    return np.zeros(0, int)
  return np.flatnonzero(top_SE[0] != (found.outcomes.score_XE[0] >= _RIGHT))


def _counts(found: ablate_words.Found) -> list[tuple[str, int, list[str]]]:
  """(part, examples, [went wrong, came right] by top and by control)."""
  before_E = found.outcomes.score_XE[0] >= _RIGHT
  lines = []
  for part, used_E in _in_order(found.outcomes):
    cells = []
    for group in (found.top, effects_lib.CONTROL):
      after_SE = _right(found, group)[:, used_E]
      for turned_SE in (
        before_E[used_E] & ~after_SE,
        ~before_E[used_E] & after_SE,
      ):
        mean = turned_SE.sum(1).mean() if len(turned_SE) else math.nan
        cells.append(f'{mean:.4g}' if len(turned_SE) else '')
    lines.append((part, int(used_E.sum()), cells))
  return lines


def _spread(tasks: Sequence[str]) -> list[int]:
  """At most MAX_FLIPS of them, over tasks and data; all that fit."""
  chosen = set(report_examples.choose(tasks, MAX_FLIPS))
  rest = [i for i in range(len(tasks)) if i not in chosen]
  more = min(MAX_FLIPS - len(chosen), len(rest))
  chosen |= {rest[i * len(rest) // more] for i in range(more)}
  return sorted(chosen)


def _flips(
  found: ablate_words.Found,
  flipped: np.ndarray,
  rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Some of them, spread over the tasks and the data."""
  if not len(flipped):
    return []
  outcomes = found.outcomes
  tasks = [str(outcomes.tasks[e]) for e in flipped.tolist()]
  control_SE = outcomes.score_XE[outcomes.of(effects_lib.CONTROL, found.k)]
  top = outcomes.of(found.top, found.k)[0]
  return [
    {
      'id': _short(rows[e]['id']),
      'task': outcomes.tasks[e],
      'twin': bool(outcomes.twin_E[e]),
      'question': _short(rows[e]['question']),
      'answer': _short(rows[e]['answer']),
      'intact': _mark(float(outcomes.score_XE[0, e])),
      'top': _mark(float(outcomes.score_XE[top, e])),
      'control': report.percent(float(control_SE[:, e].mean()), 0)
      if len(control_SE)
      else '',
      'lost': bool(outcomes.score_XE[0, e] >= _RIGHT),
    }
    for e in (flipped[i] for i in _spread(tasks))
  ]


def _mark(score: float) -> str:
  return {0.0: '✗', 1.0: '✓'}.get(score, f'{score:.2f}')


def _short(text: str) -> str:
  return text if len(text) <= _TEXT else f'{text[: _TEXT - 1]}…'
