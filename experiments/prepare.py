"""Make a data set ready: windows, frames and boxes once, for many runs.

    python -m experiments.prepare --data=vidstg --data_dir=VidSTG/ --out=ready/
    python -m experiments.rank --data=vidstg --data_dir=ready/ ...

Writes core_evidence/ (a TensorFlow Datasets folder that needs no TensorFlow),
index.jsonl, prepared.json and run.json into --out, which every experiment then
takes as --data_dir, with the same settings (--split, --pages, --dpi, --frames,
...). A rejected record stays rejected, with its reason. The same command again
continues where it stopped. The drawn scenes need no preparing.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import dataclasses
import json
import logging
import pathlib
import shutil
import sys
from typing import TYPE_CHECKING, Any

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax import parts as parts_lib

setting = config_lib.setting
_PART = 16  # records


def _shared(name: str, default: Any = None) -> Any:
  """A flag of every experiment, under its own help."""
  field = config_lib.Shared.__dataclass_fields__[name]
  return setting(
    field.default if default is None else default,
    field.metadata['help'],
    field.metadata['choices'],
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """What is made ready."""

  data: str = _shared('data', 'mmdocir')
  data_dir: str = _shared('data_dir')
  split: str = _shared('split')
  tasks: str = _shared('tasks')
  pages: int = _shared('pages')
  dpi: int = _shared('dpi')
  frames: int = _shared('frames')
  missed: str = _shared('missed')
  split_by: str = _shared('split_by')
  limit: int = setting(0, 'use the first so many records; 0 is all')
  seed: int = setting(0, 'seed of the pages that stand beside the evidence')
  out: str = setting('', "folder to be; '' is runs/prepare/<data>-<settings>")
  resume: bool = _shared('resume')

  def __post_init__(self):
    # The shared settings' own rules.
    config_lib.Shared(
      **{
        field.name: getattr(self, field.name)
        for field in dataclasses.fields(self)
      }
    )


@dataclasses.dataclass(frozen=True)
class Result:
  """What preparing returns.

  Attributes:
    out: the folder; a --data_dir.
    records: how many there are.
    rejected: how many of them for each reason.
  """

  out: pathlib.Path
  records: int
  rejected: collections.Counter[str]


def _load(config: Config):
  """(source, its settings by name)."""
  from corejax.data import delivery
  from corejax.data import prepared
  from corejax.data import sources

  if config.data_dir and prepared.is_prepared(config.data_dir):
    raise errors.UserError(
      f'--data_dir={config.data_dir}: is prepared already; name the raw files'
    )
  tasks = [t.strip() for t in config.tasks.split(',') if t.strip()]
  options: dict[str, Any] = {
    name: getattr(config, name)
    for name in (
      *('split', 'seed', 'data_dir', 'pages', 'dpi', 'frames', 'missed'),
      'split_by',
    )
  }
  settings = sources.settings(config.data, **options)
  source = sources.load(
    config.data,
    tasks=tasks or None,
    limit=config.limit or None,
    video_as=delivery.CLIP,  # of which a run can make pictures
    **options,
  )
  return source, settings, sorted(tasks) or None


def _part(source, records: range) -> tuple[dict, dict]:
  """(head, arrays) of some records, as PartStore.put takes them."""
  import numpy as np

  from corejax.data import prepared
  from corejax.data import sources

  rows, lines, rejected, media = [], [], [], []
  for index in records:
    try:
      example = source[index]
    except errors.Rejected as e:
      lines.append(prepared.index_line(*sources.told(source, index), e))
      rejected.append({'index': index, 'reason': e.reason})
      continue
    lines.append(prepared.index_line(example.task, example.cluster))
    row = prepared.to_row(example)
    pictures = row.pop('media')
    rows.append({**row, 'sizes': list(map(len, pictures))})
    media += pictures
  packed = np.frombuffer(b''.join(media), np.uint8)
  head = {'rows': rows, 'lines': lines, 'rejected': rejected}
  return head, {'media': packed}


def _rows(store: parts_lib.PartStore) -> Iterator[dict[str, Any]]:
  """Every example of all parts, in order."""
  for number in range(store.n_parts):
    head, arrays = store.open(number)
    packed, at = arrays['media'].tobytes(), 0
    for row in head['rows']:
      media = []
      for size in row.pop('sizes'):
        media.append(packed[at : at + size])
        at += size
      yield {**row, 'media': media}


def run(config: Config) -> Result:
  """Reads every record once and writes the folder.

  Raises:
    UserError: a setting or file is wrong, or no record can be used.
  """
  with cli_lib.Stop() as stop:
    return _run(config, stop)


def _run(config: Config, stop: cli_lib.Stop) -> Result:
  from corejax import parts as parts_lib
  from corejax.data import prepared
  from corejax.data import sources
  from corejax.experiments import runs

  # It warns of every config that is not built in.
  logging.getLogger('absl').setLevel(logging.ERROR)
  source, settings, tasks = _load(config)
  name = prepared.config_name(config.data, settings)
  out = runs.folder_path(config.out or f'runs/prepare/{name}')
  remarks = sources.remarks(source)
  print(f'{name}: {len(source)} records -> {out}', flush=True)
  for line in remarks:
    print(line)
  identity = {
    'data': config.data,
    'settings': settings,
    'tasks': tasks,
    'records': len(source),
    'fingerprint': source.fingerprint,
  }
  n_parts = -(-len(source) // _PART)
  store = parts_lib.PartStore(
    out / 'parts', n_parts, runs.fingerprint(identity)
  )
  record = {'flags': dataclasses.asdict(config)}

  def forget():
    store.clear()
    # It would be taken for what is to be made: nothing in it says from what.
    with parts_lib.changing(out):
      shutil.rmtree(out / 'core_evidence', ignore_errors=True)
    for file in (prepared.FILE, prepared.INDEX):
      with parts_lib.changing(out / file):
        (out / file).unlink(missing_ok=True)

  with runs.open_run(out, identity, record, config.resume, forget) as folder:
    if prepared.is_prepared(out):
      return _result(out)
    store.check()
    missing = store.missing()
    with runs.Progress('parts', n_parts, n_parts - len(missing)) as progress:
      for number in missing:
        stop.check()
        begin = number * _PART
        records = range(begin, min(begin + _PART, len(source)))
        store.put(number, *_part(source, records))
        progress.advance(1)
    heads = [store.open(n, ('head',))[0] for n in range(n_parts)]
    lines = [line for head in heads for line in head['lines']]
    if not any(head['rows'] for head in heads):
      reasons = {r['reason'] for head in heads for r in head['rejected']}
      raise errors.UserError(
        f'--data={config.data}: none of {len(source)} records can be used '
        f'({"; ".join(sorted(reasons))})'
      )
    from corejax.data import tfds_builder

    with stop.at_once(), parts_lib.changing(out):
      path = tfds_builder.write(out, name, config.split, lambda: _rows(store))
    folder.write(prepared.INDEX, '\n'.join(lines) + '\n')
    head = {
      'format': prepared.FORMAT,
      'path': str(path.relative_to(out)),
      'remarks': remarks,
      **identity,
    }
    folder.write(prepared.FILE, json.dumps(head, indent=2) + '\n')
    store.clear()
    return _result(out)


def _result(out: pathlib.Path) -> Result:
  """What the folder holds, said."""
  from corejax.data import prepared

  rows = (out / prepared.INDEX).read_text().splitlines()
  reasons = collections.Counter(
    str(row['reason']) for row in map(json.loads, rows) if 'reason' in row
  )
  told = ', '.join(f'{n} {reason}' for reason, n in reasons.most_common())
  print(
    f'{len(rows) - reasons.total()} examples, {reasons.total()} rejected'
    + (f' ({told})' if told else '')
  )
  print(f'files    {out}/core_evidence, index.jsonl, prepared.json, run.json')
  return Result(out, len(rows), reasons)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
