"""Data sets made ready: pictures decoded and cut to windows once, not each run.

`python -m experiments.prepare` writes such a folder, `--data_dir` takes it as
it takes raw files:

    prepared.json      of which data set, with which settings
    index.jsonl        one line a record: task, cluster, why it was rejected
    core_evidence/     the examples, a TensorFlow Datasets folder (array_record;
                       corejax.data.tfds_builder), readable without corejax too

A record keeps its place and its reason, so that a run on the prepared folder
counts the same, finds the same, and has the same fingerprint. Reading needs
`tensorflow_datasets` (extra `data`), but no TensorFlow.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import threading
from typing import Any

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import fields
from corejax.data import files
from corejax.data import recorded

FILE = 'prepared.json'
INDEX = 'index.jsonl'
FORMAT = 2  # 2: clips
_REASONS = {reason.value: reason for reason in errors.Reason}


def is_prepared(data_dir: str | os.PathLike[str]) -> bool:
  """Does this folder hold a data set made ready?"""
  try:
    return (pathlib.Path(data_dir).expanduser() / FILE).is_file()
  except (OSError, RuntimeError, ValueError):
    return False


def config_name(name: str, settings: Mapping[str, Any]) -> str:
  """The data set and its settings as one name: `vidstg-test-frames8-move`.

  Args:
    name: of the data set.
    settings: those that decide what an example is.
  """
  parts = [
    str(value) if isinstance(value, str) else f'{key}{value}'
    for key, value in settings.items()
  ]
  return '-'.join([name, *parts]).replace(':', '_').replace('/', 'of')


def to_row(example: example_lib.Example) -> dict[str, Any]:
  """An example as plain features; exact: `from_row` makes the same again."""
  row: dict[str, Any] = {
    'media': list(example.media),
    'answers': list(example.answers),
    'span': list(example.span) if example.span else [-1.0, -1.0],
    'meta': json.dumps(dict(example.meta)),
  }
  row['clip_first'] = [clip.first for clip in example.clips]
  row['clip_frames'] = [len(clip.seconds) for clip in example.clips]
  row['clip_seconds'] = [s for clip in example.clips for s in clip.seconds]
  # Numbers are stored in float32, and a box of one third is none there.
  exact: dict[str, Any] = {
    'span': example.span,
    'clips': [(clip.first, clip.seconds) for clip in example.clips],
  }
  for name in ('evidence', 'distractors'):
    boxes = getattr(example, name)
    row[f'{name}_media'] = [box.media for box in boxes]
    row[f'{name}_box'] = [[b.x0, b.y0, b.x1, b.y1] for b in boxes]
    exact[name] = [dataclasses.astuple(box) for box in boxes]
  row['exact'] = json.dumps(exact)
  for name in TEXTS:
    row[name] = getattr(example, name)
  return row


TEXTS = (
  *('id', 'source', 'split', 'task', 'question', 'cluster', 'scorer', 'kind'),
)


def from_row(row: Mapping[str, Any]) -> example_lib.Example:
  """What `to_row` took apart; texts may be bytes, as data sources give them.

  Raises:
    Rejected: it is no example.
  """
  try:
    return _made(row)
  except errors.Rejected:
    raise
  except (ValueError, LookupError, TypeError, OverflowError) as e:
    raise fields.bad(
      f'a damaged row ({type(e).__name__}: {" ".join(str(e).split())[:200]}); '
      'make the folder again (python -m experiments.prepare)'
    ) from e


def _made(row: Mapping[str, Any]) -> example_lib.Example:
  def text(value):
    if not isinstance(value, bytes | str):
      raise TypeError(f'{fields.shown(value)} is no text')
    return value.decode() if isinstance(value, bytes) else value

  exact = fields.load_json(text(row['exact']).encode())

  def boxes(name):
    return tuple(
      example_lib.Box(fields.integer(media, 'media'), *corners)
      for media, *corners in exact[name]
    )

  def picture(value):
    # bytes(n) would make n bytes of a number.
    if not isinstance(value, bytes):
      raise TypeError(f'{fields.shown(value)} is no picture')
    return value

  return example_lib.Example(
    **{name: text(row[name]) for name in TEXTS},
    media=tuple(picture(m) for m in row['media']),
    answers=tuple(text(a) for a in row['answers']),
    evidence=boxes('evidence'),
    distractors=boxes('distractors'),
    span=tuple(exact['span']) if exact['span'] else None,
    clips=tuple(
      example_lib.Clip(fields.integer(first, 'first'), tuple(seconds))
      for first, seconds in exact['clips']
    ),
    meta=dict(fields.load_json(text(row['meta']).encode())),
  )


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of the index; a recorded.Record.

  Attributes:
    task, cluster: as of the raw source.
    fault: why the record was rejected.
    row: which example it is, counted without the rejected ones; of these
      nothing is meant.
  """

  task: str | None
  cluster: str
  fault: errors.Rejected | None
  row: int


def index_line(
  task: str | None, cluster: str, fault: errors.Rejected | None = None
) -> str:
  """A record's line of index.jsonl."""
  entry: dict[str, Any] = {'task': task, 'cluster': cluster}
  if fault:
    entry |= {'reason': fault.reason, 'detail': fault.detail}
  return json.dumps(entry)


def _entries(content: bytes) -> list[Entry]:
  entries, row = [], 0
  for _, line in fields.lines(content):
    raw = fields.load_json(line)
    fault = None
    for name, kinds in (('task', str | None), ('cluster', str)):
      if not isinstance(raw[name], kinds):
        raise ValueError(f'{name}={fields.shown(raw[name])}')
    if 'reason' in raw:
      detail = fields.get(raw, 'detail', str)
      fault = errors.Rejected(_REASONS[raw['reason']], detail)
    entries.append(Entry(raw['task'], raw['cluster'], fault, row))
    row += not fault
  return entries


class Prepared(recorded.Recorded[Entry]):
  """An example.Source over a folder made ready.

  Attributes:
    name, split, fingerprint: those of the raw source (the fingerprint changes
      where --tasks leaves some of its tasks out).
  """

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    name: str,
    settings: Mapping[str, Any],
    tasks: Sequence[str] | None = None,
  ):
    """Opens the folder; examples are read when asked for.

    Args:
      data_dir: the folder.
      name: of the data set that is wanted.
      settings: those that it is wanted with.
      tasks: to keep of those that are there, None for all.

    Raises:
      UserError: the folder holds another data set, or one made with other
        settings, or is damaged; tensorflow_datasets is not installed.
    """
    folder = pathlib.Path(data_dir).expanduser()
    mend = 'make it again (python -m experiments.prepare)'
    try:
      head = fields.load_json(files.read(folder / FILE))
      index = files.read(folder / INDEX)
      entries = _entries(index)
      held = dict(head['settings'])
      if head['format'] != FORMAT:
        raise ValueError(f'format {head["format"]}, this is {FORMAT}')
      self.fingerprint, path = str(head['fingerprint']), str(head['path'])
      if not fields.is_relative_path(path):
        raise ValueError(f'path={fields.shown(path)}')
      self.remarks = tuple(map(str, head['remarks']))
      of, _ = str(head['data']), head['tasks']
    except errors.UserError:
      raise
    except (ValueError, LookupError, TypeError, AttributeError) as e:
      raise errors.UserError(
        f'{folder}: a damaged folder of prepared data ({e}); {mend}'
      ) from e
    have = {'data': of, **held}
    wrong = [
      f'{key}={have.get(key)}, wanted is {value}'
      for key, value in {'data': name, **settings}.items()
      if have.get(key) != value
    ]
    if wrong:
      raise errors.UserError(
        f'--data_dir={data_dir} was prepared with other settings: '
        f'{"; ".join(wrong)}; give those, or prepare another folder'
      )
    self.name, self.split = name, str(settings['split'])
    self._records = recorded.chosen(name, entries, tasks)
    if tasks and sorted(tasks) != head['tasks']:
      self.fingerprint = recorded.digest(self.fingerprint, sorted(tasks))
    self._lock = threading.Lock()
    from corejax.data import tfds_builder

    self._rows = tfds_builder.open_rows(folder / path, self.split)
    n_good = sum(not entry.fault for entry in entries)
    if len(self._rows) != n_good:
      raise errors.UserError(
        f'{folder}: {len(self._rows)} examples, the index has {n_good}; {mend}'
      )

  def _example(self, record: Entry) -> example_lib.Example:
    with self._lock:
      row = self._rows[record.row]
    return from_row(row)
