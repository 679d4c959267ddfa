"""What a comparison compares: runs by name, as rankings and curves."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib

from corejax import compare as compare_lib
from corejax import errors
from corejax import exchange
from corejax import parts as parts_lib
from corejax import ram as ram_lib
from corejax import scores as scores_lib
from corejax import sides as sides_lib
from corejax.experiments import finished

SCORES = 'scores'  # a JSON file, beside the kinds of `finished`
CONTROL = 'layer_matched'
SHOWN = ('top', 'given', CONTROL)  # groups of an ablation, side by side


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One of the things that are compared.

  Attributes:
    label: its name, which no other has.
    path: as given.
    kind: finished.RANK, finished.ABLATE or SCORES.
    about: model and data in words.
    digest: of its content.
    sides: its rankings, named label/query, or label for a file.
    curve: rows of an ablation.
    folder: None for a file.
    scores: of a rank run.
    samples: of a file.
  """

  label: str
  path: str
  kind: str
  about: str
  digest: str
  sides: tuple[sides_lib.Side, ...] = ()
  curve: tuple[finished.CurveRow, ...] = ()
  folder: finished.Folder | None = None
  scores: scores_lib.Scores | None = None
  samples: exchange.SampleScores | None = None

  @property
  def checkpoint(self) -> str:
    """Fingerprint of the model, '' if it is not known."""
    if self.folder is None:
      return ''
    return str(self.folder.identity.get('checkpoint_fingerprint', ''))


@dataclasses.dataclass(frozen=True)
class CurvePoint:
  """A point of an ablation's curve.

  Attributes:
    run: label of the run.
    group, k, fraction, mode, phase, rows, task: as in its curve.csv.
    kind: 'retrieval' or 'twin' where the row stands for all questions of this
      kind, else ''.
    n, accuracy, low, high, delta, delta_low, delta_high: with 95% intervals;
      delta is the change against the intact model.
  """

  run: str
  group: str
  k: int
  fraction: float
  mode: str
  phase: str
  rows: str
  task: str
  kind: str
  n: int
  accuracy: float
  low: float
  high: float
  delta: float
  delta_low: float
  delta_high: float


def load(paths: Sequence[str], query: str, norm: str) -> tuple[Run, ...]:
  """Reads everything that was named.

  Args:
    paths: run folders and JSON files.
    query: a query set, or 'all'.
    norm: what rank runs are ranked by.

  Raises:
    UserError: one cannot be read, stands twice, or has no ranking by these
      rows.
  """
  resolved = [pathlib.Path(path).expanduser().resolve() for path in paths]
  for i, place in enumerate(resolved):
    if place in resolved[:i]:
      raise errors.UserError(f'{paths[i]!r} is given twice; give other runs')
  return tuple(
    _load(path, label, query, norm)
    for path, label in zip(paths, labels(resolved))
  )


def labels(paths: Sequence[pathlib.Path]) -> list[str]:
  """The shortest ends of the paths that tell them apart, without `.json`."""
  bare = [
    path.with_suffix('') if exchange.is_scores(path) else path for path in paths
  ]
  for depth in range(1, 1 + max(len(path.parts) for path in bare)):
    found = ['/'.join(path.parts[-depth:]) for path in bare]
    if len(set(found)) == len(found):
      return [text.strip('/').replace('/', '.') for text in found]
  # A folder and a file of one name.
  return [path.name for path in paths]


def _load(path: str, label: str, query: str, norm: str) -> Run:
  if exchange.is_heads(path):
    raise errors.UserError(
      f'{path!r}: a list of heads is no ranking; give a run folder or a JSON '
      'file of scores'
    )
  if exchange.is_scores(path):
    samples = exchange.read_scores_json(path)
    side = sides_lib.of_samples(label, samples.value_ELN, samples.aligned)
    return Run(
      label=label,
      path=path,
      kind=SCORES,
      about=f'{pathlib.Path(path).name}, {side.n_examples} samples',
      digest=hashlib.sha256(samples.value_ELN.tobytes()).hexdigest()[:12],
      sides=(side,),
      samples=samples,
    )
  folder = finished.open_folder(path)
  identity = folder.identity
  known = Run(
    label=label,
    path=path,
    kind=folder.kind,
    about=f'{identity.get("model", "?")} on {identity.get("data", "?")}/'
    f'{identity.get("split", "?")}',
    digest=folder.digest,
    folder=folder,
  )
  if folder.kind == finished.ABLATE:
    return dataclasses.replace(known, curve=tuple(finished.read_curve(folder)))
  scores = finished.read_scores(folder)
  keys = finished.cluster_keys(scores)
  plain = ram_lib.Options(norm=norm)
  sides = tuple(
    sides_lib.of_scores(f'{label}/{name}', scores, ram.options, keys)
    for name, ram in ram_lib.by_query(scores, plain).items()
    if query in ('all', name)
  )
  if not sides:
    raise errors.UserError(
      f'{path!r}: no example has rows of the query set {query!r}; choose '
      'another --query'
    )
  return dataclasses.replace(known, sides=sides, scores=scores)


def curves(runs: Sequence[Run]) -> list[CurvePoint]:
  """The ablations' curves, a mean over draws where there are several."""
  points = []
  for run in runs:
    rows = finished.main_rows(list(run.curve))
    kinds = {
      row: kind
      for kind, twin in (('retrieval', False), ('twin', True))
      for row in finished.of_kind(rows, twin)
    }
    points += [
      CurvePoint(
        run=run.label,
        group=row.group,
        k=row.k,
        fraction=row.fraction,
        mode=row.mode,
        phase=row.phase,
        rows=row.rows,
        task=row.task,
        kind=kinds.get(row, ''),
        n=row.n,
        accuracy=row.accuracy,
        low=row.ci_low,
        high=row.ci_high,
        delta=row.delta,
        delta_low=row.delta_ci_low,
        delta_high=row.delta_ci_high,
      )
      for row in rows
    ]
  return points


def links(
  runs: Sequence[Run], out: pathlib.Path
) -> dict[str, list[tuple[str, str]]]:
  """label -> (what it is, path) of reports, seen from a folder that holds them.

  Beside a run's own report that is one of an ablation on its data, where `out`
  has it under the run's name (experiments/several.py).
  """
  found = {}
  top = out.resolve()
  for run in runs:
    if run.folder is None:
      continue
    own, other = run.folder.path.resolve(), top / run.label
    pages = [(run.kind, own)]
    if other != own and (other / 'curve.csv').is_file():
      pages.append((finished.ABLATE, other))
    found[run.label] = [
      (kind, (folder / 'report.html').relative_to(top).as_posix())
      for kind, folder in pages
      if folder.is_relative_to(top) and (folder / 'report.html').is_file()
    ]
  return found


def export(
  runs: Sequence[Run],
  comparison: compare_lib.Comparison,
  norm: str,
  folder: pathlib.Path,
) -> None:
  """Writes every ranking as JSON of scores per sample, and its set as YAML.

  The mean over samples weighs examples alike where a ranking weighs clusters
  alike, so another tool may order close heads otherwise.

  Raises:
    UserError: a file cannot be written.
  """
  with parts_lib.changing(folder):
    folder.mkdir(exist_ok=True)
  for run in runs:
    for side in run.sides:
      name = side.name.replace('/', '.')
      if run.scores is not None:
        query = side.name.rpartition('/')[2]
        options = ram_lib.Options(query=query, norm=norm)
        ram = ram_lib.measure(run.scores, options)
        exchange.write_scores_json(folder / f'{name}.json', ram.value_ELN)
      exchange.write_heads_yaml(
        folder / f'{name}.yaml', comparison.selected[side.name]
      )
  for shape, names in comparison.shapes.items():
    place = f'{shape[0]}x{shape[1]}'
    for what, heads in (
      ('shared', comparison.shared(names)),
      ('union', comparison.united(names)),
    ):
      exchange.write_heads_yaml(folder / f'{what}-{place}.yaml', heads)
