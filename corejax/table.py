"""heads.csv: its columns, its writing and its reading."""

from collections.abc import Mapping
import csv
import html
import io
import os
from typing import Any

from etils import epath
import numpy as np

from corejax import errors

REQUIRED = (
  'rank',
  'layer',
  'head',
  'ram',
  'ci_low',
  'ci_high',
  'inclusion',
  'q_value',
  'share',
  'lift',
  'excess',
  'mass_evidence',
  'mass_distractor',
  'mass_visual',
  'mass_question',
  'mass_text',
  'mass_sink',
  'score',
)
ADDED = (
  'score_ci_low',
  'score_ci_high',
  'score_se',
  'p_value',
  'p_shift',
  'q_shift',
  'null_mean',
  'chance',
  'depth',
  'n',
  'n_clusters',
  'selected',
  'flags',
  'written',
  'contribution',
  'gate_gradient',
  'gate_gradient_abs',
)
COLUMNS = REQUIRED + ADDED
_INTEGERS = ('rank', 'layer', 'head', 'n', 'n_clusters', 'selected')
_TEXTS = ('flags',)
FILE = 'heads.csv'
_MEASURES = (
  'ram',
  'ci_low',
  'ci_high',
  'score',
  'lift',
  'inclusion',
  'q_value',
)


def write(columns: Mapping[str, np.ndarray]) -> str:
  """The table as text; floats are written such that they read back exactly."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(columns)
  for row in zip(*(column.tolist() for column in columns.values())):
    writer.writerow(row)  # the csv module writes repr of a float
  return buffer.getvalue()


def to_html(columns: Mapping[str, np.ndarray], limit: int = 10) -> str:
  """The first rows as an HTML table, for a notebook."""
  shown = [
    name
    for name in ('rank', 'layer', 'head', *_MEASURES, 'selected', 'flags')
    if name in columns
  ]
  lines = ['<table><thead><tr>']
  lines += [f'<th>{html.escape(name)}</th>' for name in shown]
  lines.append('</tr></thead><tbody>')
  n_rows = len(columns['rank'])
  for row in range(min(limit, n_rows)):
    cells = [columns[name][row] for name in shown]
    texts = [
      f'{cell:.4g}' if isinstance(cell, np.floating) else str(cell)
      for cell in cells
    ]
    lines.append(
      '<tr>' + ''.join(f'<td>{html.escape(t)}</td>' for t in texts) + '</tr>'
    )
  lines.append('</tbody></table>')
  if n_rows > limit:
    lines.append(f'<p>{limit} of {n_rows} heads</p>')
  return ''.join(lines)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Columns of a ranking's file, in the order of the ranks.

  Args:
    path: the file, or the run's folder.

  Returns:
    name -> int64, float64 or str [L * N]; every head of an L x N grid once.
    Columns beyond REQUIRED may be missing, unknown ones are str.

  Raises:
    UserError: it is not there, or is not a ranking.
  """
  text, path = _text(path)

  def refuse(what):
    return errors.UserError(
      f'{path!r}: {what}; not a {FILE} of experiments.rank'
    )

  try:
    header, *rows = csv.reader(io.StringIO(text), strict=True)
  except (csv.Error, ValueError) as e:
    raise refuse('empty' if not text.strip() else f'not CSV ({e})') from e
  if missing := [name for name in REQUIRED if name not in header]:
    raise refuse(f'no column {missing[0]!r}')
  if len(set(header)) < len(header):
    raise refuse('a column stands twice')
  columns: dict[str, Any] = {}
  for index, name in enumerate(header):
    try:
      cells = [row[index] for row in rows]
      if name in _INTEGERS:
        columns[name] = np.array([int(c) for c in cells], np.int64)
      elif name in _TEXTS or name not in COLUMNS:
        columns[name] = np.array(cells, str)
      else:
        columns[name] = np.array([float(c) for c in cells], np.float64)
    except (ValueError, OverflowError) as e:
      raise refuse(f'column {name!r} holds a value that is no number') from e
    except IndexError as e:
      raise refuse(f'a row has no {name!r}') from e
  layer, head = columns['layer'], columns['head']
  if not len(layer) or min(layer.min(), head.min()) < 0:
    raise refuse('no heads, or negative ones')
  n_layers, n_heads = int(layer.max()) + 1, int(head.max()) + 1
  n_rows = len(layer)
  if n_rows != n_layers * n_heads or len(set(zip(layer, head))) < n_rows:
    raise refuse(
      f'{n_rows} rows are not each head of {n_layers} x {n_heads} once'
    )
  order = np.argsort(columns['rank'], kind='stable')
  if not np.array_equal(columns['rank'][order], np.arange(1, n_rows + 1)):
    raise refuse(f'ranks are not 1..{n_rows}')
  return {name: c[order] for name, c in columns.items()}


def _text(path: str | os.PathLike) -> tuple[str, str]:
  """(text, path) of a ranking's file."""
  name = os.fspath(path)
  if not name:
    raise errors.UserError('no ranking named; write @RUN_DIR or @heads.csv')
  try:
    file = epath.Path(name)
    if file.is_dir():
      file = file / FILE
    return file.read_text(encoding='utf-8'), os.fspath(file)
  except UnicodeDecodeError as e:
    raise errors.UserError(
      f'{name[:80]!r}: not a text file, so not a {FILE}'
    ) from e
  except FileNotFoundError as e:
    raise errors.UserError(
      f'{name[:80]!r}: there is no {FILE}; rank first, or give its folder or '
      'file'
    ) from e
  except (ImportError, KeyError) as e:  # epath's, of an unknown scheme
    raise errors.UserError(
      f'{name[:80]!r}: this kind of path cannot be read here ({e})'
    ) from e
  except (OSError, ValueError) as e:
    raise errors.UserError(
      f'{name[:80]!r}: cannot be read ({e}); give a run folder or a {FILE}'
    ) from e
