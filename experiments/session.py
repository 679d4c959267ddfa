"""What experiments that go through a data set have in common.

    read ahead | compute | one part of the store a batch | count the rejected

Process 0 holds the run folder and writes; the others only compute. Which parts
exist is the state, so the same command again goes on where it stopped.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import pathlib
from typing import Any, TypeVar

import jax
import numpy as np

from corejax import errors
from corejax import parts as parts_lib
from corejax.data import boxes
from corejax.data import delivery
from corejax.data import example as example_lib
from corejax.data import sources
from corejax.experiments import cli as cli_lib
from corejax.experiments import compile_cache
from corejax.experiments import pipeline
from corejax.experiments import pods
from corejax.experiments import runs

_Read = TypeVar('_Read')


def describe(source: example_lib.Source, limit: int) -> str:
  """How many records there are, whether --limit cuts them, and remarks."""
  said = f'{len(source)} records'
  if isinstance(source, sources.First) and len(source) < len(source.source):
    said = (
      f'the first {len(source)} of {len(source.source)} records '
      f'(--limit={limit})'
    )
  remarks = sources.remarks(source)
  if handed := delivery.of(source):
    told = {
      delivery.CLIP: 'videos are shown as clips',
      delivery.PICTURES: 'videos are shown as several pictures',
    }
    remarks = (*remarks, f'{told[handed]} (--video_as={handed})')
  if written := boxes.of(source):
    remarks = (*remarks, f'boxes are written as --box_answers={written}')
  return f'{said} ({"; ".join(remarks)})' if remarks else said


def rejection(
  source: example_lib.Source, index: int, e: errors.Rejected
) -> dict:
  """A row of rejected.jsonl."""
  return {
    'index': index,
    'id': f'{source.name}/{source.split}/{index}',
    'reason': str(e.reason),
    'detail': e.detail,
  }


def trace(out: pathlib.Path, steps: int) -> tuple[pathlib.Path, int] | None:
  """What `fill` takes for --trace_steps."""
  return (out / 'trace', steps) if steps else None


def check_rejected(
  rejected: Sequence[dict],
  measured: int,
  total: int,
  max_bad: float,
  out: pathlib.Path,
) -> None:
  """Fails the run if more than --max_bad of the records were rejected.

  Raises:
    UserError: they were; names the commonest reasons.
  """
  if len(rejected) <= max_bad * total:
    return
  share = len(rejected) / measured
  counts = collections.Counter(r['reason'] for r in rejected).most_common(3)
  reasons = ', '.join(f'{n} {reason}' for reason, n in counts)
  raise errors.UserError(
    f'{len(rejected)} of {measured} records rejected ({reasons}); that is more '
    f'than --max_bad={max_bad:g}: see {out / "rejected.jsonl"}, mend the data, '
    f'or give --max_bad={min(1.0, share + 0.005):.2f}'
  )


def read_parts(
  folder: runs.RunFolder,
  parts: parts_lib.PartStore,
  total: int,
  max_bad: float,
) -> tuple[list[Mapping[str, np.ndarray]], list[dict], list[dict]]:
  """Reads every part back; writes examples.jsonl and rejected.jsonl.

  Args:
    folder: of the run.
    parts: whose heads have 'rows' and 'rejected', each with its 'index'.
    total: records of all parts.
    max_bad: share that may be rejected.

  Returns:
    (arrays of each part, rows of examples.jsonl, rejected records).

  Raises:
    UserError: too many records were rejected, or a part is unreadable.
  """
  missing = set(parts.missing())
  read = [parts.open(i) for i in range(parts.n_parts) if i not in missing]
  rows = [row for head, _ in read for row in head['rows']]
  rejected = [row for head, _ in read for row in head['rejected']]
  folder.write_lines('rejected.jsonl', rejected)
  check_rejected(
    rejected, len(rejected) + len(rows), total, max_bad, folder.path
  )
  seen = sorted(row['index'] for row in [*rows, *rejected])
  if seen != list(range(total)):
    raise AssertionError(f'{folder.path}: records lost or doubled')
  if not rows:
    raise errors.UserError(f'{folder.path}: no example could be used')
  folder.write_lines('examples.jsonl', rows)
  return [arrays for _, arrays in read], rows, rejected


@contextlib.contextmanager
def opened(
  out: pathlib.Path,
  identity: Mapping[str, Any],
  record: Mapping[str, Any],
  resume: bool,
  store: parts_lib.PartStore,
  results: Sequence[str],
) -> Iterator[runs.RunFolder | None]:
  """Holds the run folder, on process 0; all processes must ask together.

  Args:
    out, identity, record, resume: as runs.open_run takes them.
    store: its parts are checked, and cleared where the run starts over.
    results: files of an earlier, smaller or failed run that are removed as
      long as parts are missing.

  Yields:
    The folder; None on all processes but the first.

  Raises:
    UserError: see runs.open_run and PartStore.check.
  """
  with contextlib.ExitStack() as stack:
    if not pods.is_first():
      if not pods.every(True):
        raise errors.UserError('process 0 could not open the run; see its line')
      stack.enter_context(compile_cache.beside(out))
      yield None
      return
    try:
      folder = stack.enter_context(
        runs.open_run(out, identity, record, resume, store.clear)
      )
      store.check()
      if store.missing():
        for name in results:
          with parts_lib.changing(out / name):
            (out / name).unlink(missing_ok=True)
    except errors.UserError:
      pods.every(False)
      raise
    pods.every(True)
    folder.record['compile_cache'] = stack.enter_context(
      compile_cache.beside(out)
    )
    yield folder


def fill(
  store: parts_lib.PartStore,
  batches: Sequence[Sequence[int]],
  most_rejected: float,
  stop: cli_lib.Stop,
  read: Callable[[Sequence[int], Any], _Read],
  n_rejected: Callable[[_Read], int],
  start: Callable[[_Read], Any],
  finish: Callable[[Any], tuple[dict, dict]],
  trace: tuple[pathlib.Path, int] | None = None,
) -> None:
  """Computes the parts that are missing.

  Args:
    store: where they go.
    batches: records of every part.
    most_rejected: more than so many rejected records end the run early.
    stop: asked between batches.
    read: (records, closing) -> a batch on the host; runs in threads, ahead.
    n_rejected: of a batch.
    start: hands it to the device and does not wait.
    finish: waits for what `start` returned -> (head, arrays) of the part.
    trace: (folder, batches) of a profiler trace; None writes none. It starts
      behind the first batch, which compiles.
  """
  total = sum(len(batch) for batch in batches)
  missing = pods.agree(store.missing(), len(batches))
  # Of earlier sessions; as a list of one, since lists can be agreed on.
  so_far = store.n_rejected() if pods.is_first() else 0
  rejected = pods.agree([so_far], total + 1)[0]
  if rejected > most_rejected:
    return  # the run has failed: what is missing need not be measured
  in_flight = []  # at most one (index, batch): what the device computes
  with (
    pods.together(),
    contextlib.ExitStack() as tracing,
    runs.Progress(
      'batches',
      len(batches),
      len(batches) - len(missing),
      quiet=not pods.is_first(),
    ) as progress,
    pipeline.ahead(
      lambda index, closing: read(batches[index], closing), missing
    ) as prepared,
    contextlib.ExitStack() as last,
  ):

    def save():
      while in_flight:
        index, started = in_flight.pop()
        head, arrays = finish(started)
        if pods.is_first():
          store.put(index, head, arrays)
        progress.advance(1)

    last.callback(save)  # however the loop ends
    for step, (index, batch) in enumerate(zip(missing, prepared)):
      if trace and step == min(1, len(missing) - 1):
        folder = trace[0] / str(jax.process_index())
        tracing.enter_context(jax.profiler.trace(str(folder)))
      stop.check(pods.every)
      started = start(batch)
      save()  # the batch before, while the device is busy with this one
      in_flight.append((index, started))
      if trace and step == trace[1]:
        save()
        tracing.close()
      rejected += n_rejected(batch)
      if rejected > most_rejected:
        return
