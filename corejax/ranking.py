"""Heads in the order of their score, with everything that heads.csv says.

    ranking = rank(scores, norm='mass', select='top5%')
    ranking.write_csv('runs/rank/x/heads.csv')
    ranking.selected                          HeadSet
    parse_heads('@runs/rank/x:top30', 32, 32) HeadSet

`ram` and its interval `ci_low`, `ci_high` are always of the mass; `score` with
`score_ci_low`, `score_ci_high` is what the heads are ranked by (the same for
the plain mass). `inclusion` is the share of bootstrap resamples in which the
head is in the selected set (where q values select: among as many best heads).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from etils import epath
import numpy as np

from corejax import competing
from corejax import describe
from corejax import errors
from corejax import exchange
from corejax import findings as findings_lib
from corejax import heads as heads_lib
from corejax import nulls
from corejax import parts
from corejax import ram as ram_lib
from corejax import regions
from corejax import scores as scores_lib
from corejax import selection as selection_lib
from corejax import table as table_lib
from corejax.stats import accuracy
from corejax.stats import bootstrap as bootstrap_lib
from corejax.stats import reliability
from corejax.stats import sparsity

NONFINITE = 'nonfinite_score'
CONSTANT = 'no_spread'
TIE = 'tie_at_cut'
_MOST_TASKS = 6  # accuracies of more are too many to read


@dataclasses.dataclass(frozen=True, eq=False)
class HeadRanking:
  """A ranking of all heads of a model.

  Attributes:
    n_layers, n_heads: L and N.
    columns: the columns of heads.csv in order, each [L * N] from the best head
      to the last: int64, float64 (nan: not measured) or str.
    findings: what is known beyond the table; None if read from a file.
  """

  n_layers: int
  n_heads: int
  columns: Mapping[str, np.ndarray]
  findings: findings_lib.Findings | None = None

  def __len__(self) -> int:
    return self.n_layers * self.n_heads

  @property
  def heads(self) -> list[tuple[int, int]]:
    """(layer, head) from the best to the last."""
    return list(
      zip(self.columns['layer'].tolist(), self.columns['head'].tolist())
    )

  def __repr__(self) -> str:
    best = ', '.join(f'{layer}-{head}' for layer, head in self.heads[:5])
    return (
      f'HeadRanking({describe.count(self.n_layers, "layer")} x '
      f'{describe.count(self.n_heads, "head")}; best first: {best}'
      f'{", ..." if len(self) > 5 else ""}; RAM '
      f'{self.columns["ram"][0]:.4f} to {self.columns["ram"][-1]:.4f})'
    )

  def _repr_html_(self) -> str:
    """The first heads as a table, which is what a notebook shows."""
    return table_lib.to_html(self.columns)

  @property
  def selected(self) -> heads_lib.HeadSet:
    """The ranking's own selection.

    Raises:
      UserError: it was read from a file that does not tell.
    """
    if 'selected' not in self.columns:
      raise errors.UserError(
        "this ranking's file has no column 'selected'; say which heads, as in "
        '@RUN_DIR:top5%'
      )
    return heads_lib.HeadSet.from_mask(self.grid('selected') == 1)

  def grid(self, name: str) -> np.ndarray:
    """One column as [L, N]."""
    column = self.columns[name]
    grid_LN = np.empty((self.n_layers, self.n_heads), column.dtype)
    grid_LN[self.columns['layer'], self.columns['head']] = column
    return grid_LN

  def select(self, rule: selection_lib.Selection | str) -> heads_lib.HeadSet:
    """Heads by another rule.

    Raises:
      UserError: see selection.Selection.
    """
    if isinstance(rule, str):
      rule = selection_lib.Selection.parse(rule)
    # By place, not by score: a file's order is what it says it is.
    place_LN = np.where(
      np.isfinite(self.score_LN), -self.grid('rank').astype(np.float64), np.nan
    )
    return heads_lib.HeadSet.from_mask(
      rule.mask(place_LN, self.grid('q_value'))
    )

  def kv_scores(self, n_kv_heads: int) -> np.ndarray:
    """float64 [L, K], score of each key/value group of a GQA model."""
    return ram_lib.kv_groups(self.score_LN, n_kv_heads)

  @property
  def score_LN(self) -> np.ndarray:
    """float64 [L, N], what the heads are ranked by."""
    return self.grid('score')

  @property
  def ram_LN(self) -> np.ndarray:
    """float64 [L, N], cluster-mean mass on the evidence."""
    return self.grid('ram')

  def table(self) -> dict[str, np.ndarray]:
    """The columns by name, best head first: `pandas.DataFrame(r.table())`."""
    return {name: column.copy() for name, column in self.columns.items()}

  def plot(self, ax: Any = None) -> Any:
    """Draws the layer x head map of the score, the selection outlined.

    Args:
      ax: matplotlib axes; None makes a figure of its own.

    Returns:
      The axes.
    """
    from corejax import drawing  # matplotlib takes half a second to import

    if ax is None:
      ax = drawing.own_axes(self.n_layers, self.n_heads)
    chosen_LN = np.zeros((self.n_layers, self.n_heads), bool)
    if 'selected' in self.columns:
      chosen_LN = self.grid('selected') == 1
    norm = None if self.findings is None else self.findings.options.norm
    label = 'RAM' if norm == 'mass' else f'RAM, {norm}' if norm else 'score'
    drawing.head_map(ax, self.score_LN, chosen_LN, label)
    return ax

  def summary(self) -> list[str]:
    """What was found, in lines of plain text."""
    return findings_lib.summary(self.columns, self.findings)

  def to_csv(self) -> str:
    """The table; floats are written such that they are read back exactly."""
    return table_lib.write(self.columns)

  def write_csv(self, path: str | os.PathLike) -> None:
    """Writes heads.csv, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    parts.write_atomic(path, self.to_csv().encode())

  @classmethod
  def read_csv(cls, path: str | os.PathLike) -> HeadRanking:
    """Reads a heads.csv.

    Args:
      path: the file, or the run's folder.

    Raises:
      UserError: it is not there, or is not a ranking.
    """
    columns = table_lib.read(path)
    n_layers, n_heads = (
      int(columns[name].max()) + 1 for name in ('layer', 'head')
    )
    return cls(n_layers, n_heads, columns)


def rank(
  scores: scores_lib.Scores,
  *,
  query: str = 'question',
  norm: str = 'mass',
  calibrate: bool = False,
  contrast: bool = False,
  correct_only: bool = False,
  bootstrap: int = 2000,
  permutations: int = 5000,
  select: selection_lib.Selection | str = selection_lib.DEFAULT,
  seed: int = 0,
) -> HeadRanking:
  """Ranks the heads of a model.

  Args:
    scores: of one pass over the data.
    query, norm, calibrate, contrast, correct_only: see ram.Options.
    bootstrap: resamples; 0 leaves intervals and inclusion nan.
    permutations: of each null; 0 leaves p and q nan. So does calibrate, and
      profiles that are missing or of another query set.
    select: which heads are taken.
    seed: same seed, same numbers.

  Raises:
    UserError: see ram.measure and selection.Selection; select by q values
      where there are none.
  """
  for name, value in (
    ('bootstrap', bootstrap),
    ('permutations', permutations),
    ('seed', seed),
  ):
    if value < 0:
      raise errors.UserError(f'{name} {value} is negative; give 0 or more')
  if isinstance(select, str):
    select = selection_lib.Selection.parse(select)
  shape = scores.n_layers, scores.n_heads
  select.count(*shape)  # refuses too large a number before any work
  options = ram_lib.Options(query, norm, calibrate, contrast, correct_only)
  _refuse(select, nulls.unavailable(scores, options, permutations))
  ram = ram_lib.measure(scores, options)
  tests = nulls.test(scores, ram, permutations, seed)
  _refuse(select, tests.untested)
  selected_LN = select.mask(ram.score_LN, tests.q_LN)
  by_cluster = ram.score.group(ram.cluster_E)
  intervals = _intervals(ram, by_cluster, bootstrap, seed)
  stable = _stable_rule(select, int(selected_LN.sum()))
  top = max(1, int(stable.mask(ram.score_LN).sum()))
  tie_LN = _tie(ram.score_LN, selected_LN, select)
  others = competing.measure(scores, ram)

  region = ram.region_LNR
  visual_LN = region[..., list(regions.VISUAL)].sum(-1)
  layer_LN, head_LN = np.indices(shape)
  score_ci, ram_ci = intervals['score'], intervals['ram']
  constant_LN = (score_ci['low'] == score_ci['high']).reshape(shape)
  flags_LN = np.full(shape, '', object)
  for flag, where_LN in (
    (NONFINITE, ~np.isfinite(ram.score_LN)),
    (CONSTANT, constant_LN),
    (TIE, tie_LN),
  ):
    for place in zip(*np.nonzero(where_LN)):
      flags_LN[place] = f'{flags_LN[place]};{flag}'.strip(';')
  table = dict(
    layer=layer_LN,
    head=head_LN,
    ram=ram.ram_LN,
    ci_low=ram_ci['low'],
    ci_high=ram_ci['high'],
    inclusion=_inclusion(by_cluster, stable, shape, bootstrap, seed),
    q_value=tests.q_LN,
    share=ram.by_norm['share'],
    lift=ram.by_norm['lift'],
    excess=ram.by_norm['excess'],
    mass_evidence=region[..., regions.EVIDENCE],
    mass_distractor=region[..., regions.DISTRACTORS[0]],
    mass_visual=visual_LN,
    mass_question=region[..., regions.QUESTION],
    mass_text=region[..., regions.OTHER_TEXT],
    mass_sink=region[..., regions.SINK],
    score=ram.score_LN,
    score_ci_low=score_ci['low'],
    score_ci_high=score_ci['high'],
    score_se=score_ci['se'],
    p_value=tests.p_LN,
    p_shift=tests.p_shift_LN,
    q_shift=tests.q_shift_LN,
    null_mean=tests.expected_LN,
    chance=np.full(shape, ram.chance),
    depth=sparsity.relative_depth(shape[0])[layer_LN],
    n=np.full(shape, len(ram.used_E)),
    n_clusters=np.full(shape, len(ram.cluster_names)),
    selected=selected_LN.astype(np.int64),
    flags=flags_LN.astype(str),
    **others,
  )
  order_X = reliability.order(ram.score_LN.ravel())
  columns = {'rank': np.arange(1, len(order_X) + 1)}
  for name in table_lib.COLUMNS[1:]:
    columns[name] = np.reshape(table[name], -1)[order_X]
  tied = heads_lib.HeadSet.from_mask(tie_LN)
  return HeadRanking(
    *shape,
    columns,
    findings_lib.Findings(
      options=ram.options,
      selection=str(select),
      n_asked=select.count(*shape),
      n_examples=len(ram.used_E),
      n_clusters=len(ram.cluster_names),
      dropped=ram.dropped,
      chance=ram.chance,
      tied=str(tied),
      n_resamples=bootstrap,
      tests=tests,
      sparsity=sparsity.measure(ram.ram_LN),
      split_half=reliability.split_half(by_cluster, top, seed),
      sample_size=reliability.sample_size(ram.score, ram.cluster_E, top, seed),
      query_sets=_query_sets(scores, ram, stable),
      competing=competing.compare(others, ram.score_LN, stable),
      answers=_answers(scores),
    ),
  )


def _refuse(select: selection_lib.Selection, untested: str) -> None:
  if select.kind == 'fdr' and untested:
    raise errors.UserError(
      f'selection {select}: there are no q values: {untested}, or select by '
      f'{selection_lib.DEFAULT}'
    )


def _answers(scores: scores_lib.Scores) -> dict[str, accuracy.Estimate]:
  """Right answers of all measured examples, also those that are not ranked by;
  by task, or under ALL_TASKS where they are one or too many."""
  correct_E = np.asarray(scores.correct_E, bool)
  clusters_E = np.asarray(scores.clusters, str)
  tasks_E = np.asarray(scores.tasks, str)
  tasks = np.unique(tasks_E)
  if not 1 < len(tasks) <= _MOST_TASKS:
    return {findings_lib.ALL_TASKS: accuracy.wilson(correct_E, clusters_E)}
  return {
    str(task): accuracy.wilson(
      correct_E[tasks_E == task], clusters_E[tasks_E == task]
    )
    for task in tasks
  }


def _query_sets(scores, ram, rule) -> dict[str, findings_lib.QuerySet]:
  """Every query set that has rows, beside the ranking's own."""
  own_LN = rule.mask(ram.score_LN)
  result = {}
  for query, other in ram_lib.by_query(scores, ram.options).items():
    other_LN = rule.mask(other.score_LN)
    best = int(reliability.order(other.score_LN.ravel())[0])
    result[query] = findings_lib.QuerySet(
      best=heads_lib.HeadSet([divmod(best, scores.n_heads)]),
      score=float(other.score_LN.flat[best]),
      ram=float(other.ram_LN.flat[best]),
      overlap=competing.overlap(own_LN, other_LN),
    )
  return result


def _intervals(ram, by_cluster, n_resamples, seed) -> dict[str, dict]:
  """Arrays low, high, se [X] of score and ram; nan without resamples."""
  if not n_resamples:
    nan_X = np.full(ram.score_LN.size, np.nan)
    none = dict(low=nan_X, high=nan_X, se=nan_X)
    return dict(score=none, ram=none)
  weights_ZU = bootstrap_lib.resample(len(ram.cluster_names), n_resamples, seed)
  result = {'score': vars(bootstrap_lib.studentised(by_cluster, weights_ZU))}
  result['ram'] = result['score']
  if not ram.options.plain:
    mass = ram.mass.group(ram.cluster_E)
    result['ram'] = vars(bootstrap_lib.studentised(mass, weights_ZU))
  return result


def _inclusion(by_cluster, rule, shape, n_resamples, seed) -> np.ndarray:
  """[L, N], share of resamples in which the rule takes the head."""
  if not n_resamples:
    return np.full(shape, np.nan)
  weights_ZU = bootstrap_lib.resample(by_cluster.shape[0], n_resamples, seed)
  count_LN = np.zeros(shape)
  for at in range(0, n_resamples, 250):
    score_ZX = by_cluster.value(weights_ZU[at : at + 250])
    count_LN += rule.mask(score_ZX.reshape(-1, *shape)).sum(0)
  return count_LN / n_resamples


def _stable_rule(
  select: selection_lib.Selection, n_selected: int
) -> selection_lib.Selection:
  """The rule as it is applied to resamples and halves, without q values."""
  if select.kind != 'fdr':
    return select
  if n_selected:
    return selection_lib.Selection('top_k', n_selected)
  return selection_lib.Selection.parse(selection_lib.DEFAULT)


def _tie(score_LN, selected_LN, select) -> np.ndarray:
  """bool [L, N]: heads left out though their score equals a selected one's."""
  tie_LN = np.zeros(score_LN.shape, bool)
  if select.kind == 'fdr':
    return tie_LN
  parts = [slice(None)]
  if select.kind == 'per_layer':
    parts = [slice(l, l + 1) for l in range(len(score_LN))]
  for part in parts:
    inside = score_LN[part][selected_LN[part]]
    tie_LN[part] = np.isin(score_LN[part], inside) & ~selected_LN[part]
  return tie_LN


def parse_heads(
  text: str, n_layers: int, n_heads: int, model: str = 'the model'
) -> heads_lib.HeadSet:
  """Reads a set of heads, of a ranking too (grammar: see corejax.heads).

  `@PATH[:SELECTION]` is split at the last colon, if what follows it is a
  selection; so a path may hold colons. PATH is a heads.csv, a run's folder, or
  a file of another tool (`corejax.exchange`). Without a selection the ranking's
  own is taken.

  Args:
    text: what the user wrote.
    n_layers, n_heads: of the model.
    model: its name, for messages.

  Raises:
    UserError: unreadable text or file, heads that the model does not have, a
      ranking of a model of another shape.
  """
  text = text.strip()
  if not text.startswith('@'):
    heads = heads_lib.HeadSet.parse(text)
    heads.check(n_layers, n_heads, model)
    return heads
  path, rule = text[1:], None
  before, colon, after = path.rpartition(':')
  if colon:
    try:
      path, rule = before, selection_lib.Selection.parse(after)
    except errors.UserError as e:
      path = text[1:]
      if not _exists(path):
        if _exists(before):
          raise
        raise errors.UserError(
          f'{text[:80]!r}: there is no {path[:80]!r}, and {e}'
        ) from e
  if exchange.is_scores(path) or exchange.is_heads(path):
    return exchange.select(path, rule, n_layers, n_heads, model)
  ranking = read_for(path, n_layers, n_heads, model)
  return ranking.selected if rule is None else ranking.select(rule)


def read_for(
  path: str, n_layers: int, n_heads: int, model: str = 'the model'
) -> HeadRanking:
  """The ranking in this file or run's folder, of a model of this shape.

  Raises:
    UserError: it is not there, is no ranking, or one of another shape.
  """
  ranking = HeadRanking.read_csv(path)
  if (ranking.n_layers, ranking.n_heads) != (n_layers, n_heads):
    raise errors.UserError(
      f'{path[:80]!r}: a ranking of {ranking.n_layers} layers x '
      f'{ranking.n_heads} heads; {model} has {n_layers} x {n_heads}: rank '
      'this model first'
    )
  return ranking


def _exists(path: str) -> bool:
  try:
    return bool(path) and epath.Path(path).exists()
  except (OSError, ValueError, ImportError, KeyError):
    return False  # what is wrong with it is said when it is read
