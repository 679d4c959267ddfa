"""What sources that read annotation files share: records, faults, tasks."""

from collections.abc import Callable, Sequence
import hashlib
from typing import Any, Generic, Protocol, TypeVar

from corejax import errors
from corejax.data import example as example_lib


class Record(Protocol):
  """What a reader's records have at least.

  Attributes:
    task: None if it cannot be told.
    fault: why the record cannot be used, None if it can.
    cluster: the picture, document or video that records share.
  """

  @property
  def task(self) -> str | None: ...

  @property
  def fault(self) -> errors.Rejected | None: ...

  @property
  def cluster(self) -> str: ...


_R = TypeVar('_R', bound=Record)


def chosen(
  name: str,
  records: Sequence[_R],
  tasks: Sequence[str] | None,
  left_out: Sequence[str] = (),
) -> list[_R]:
  """The records of these tasks, and those whose task cannot be told.

  The latter are kept to be rejected: a line that cannot be read does not go
  without a word.

  Args:
    name: of the data set.
    records: all.
    tasks: to keep, None for all but `left_out`.
    left_out: tasks that are taken only by name.

  Raises:
    UserError: no record has such a task.
  """
  there = sorted({r.task for r in records if r.task})
  for task in tasks or ():
    if task not in there:
      raise errors.UserError(
        f'--tasks={task}: {name} has no such task here; there are '
        f'{", ".join(there) or "none"}'
      )
  kept = set(tasks or there) - (set() if tasks else set(left_out))
  return [r for r in records if r.task is None or r.task in kept]


def digest(*parts: Any) -> str:
  """12 hex digits over some settings and contents."""
  hashed = hashlib.sha256()
  for part in parts:
    if not isinstance(part, bytes):
      part = repr(part).encode('utf-8', 'surrogatepass')
    hashed.update(hashlib.sha256(part).digest())
  return hashed.hexdigest()[:12]


class Recorded(Generic[_R]):
  """An example.Source over a list of records; `_example` is a reader's own.

  Attributes:
    name, split, fingerprint: as example.Source says.
    remarks: lines on what the records have in common that a user should know.
  """

  name: str
  split: str
  fingerprint: str
  remarks: tuple[str, ...] = ()
  _records: list[_R]

  def __len__(self) -> int:
    return len(self._records)

  def cluster(self, index: int) -> str:
    """The cluster of the example at this index; opens no media."""
    return self._records[index].cluster

  def task(self, index: int) -> str | None:
    """The task of the record at this index; None if it cannot be told."""
    return self._records[index].task

  def __getitem__(self, index: int) -> example_lib.Example:
    """The example.

    Raises:
      IndexError: there are fewer records.
      Rejected: the record or its media cannot be used.
    """
    if not 0 <= index < len(self):
      raise IndexError(f'{self.name}: {index} is outside 0..{len(self) - 1}')
    record = self._records[index]
    if record.fault:
      # A new one: raised twice, an exception grows by its own traceback.
      raise errors.Rejected(record.fault.reason, record.fault.detail)
    return self._example(record)

  def _example(self, record: _R) -> example_lib.Example:
    raise NotImplementedError


def check_split(name: str, split: str, there: Sequence[str], why='') -> None:
  """Refuses a split that a data set does not have.

  Raises:
    UserError: it does not.
  """
  if split not in there:
    raise errors.UserError(
      f'--split={split[:60]}: {name} has {", ".join(there)}{why}'
    )


def with_place(read: Callable[..., Any], where: str, *args: Any) -> Any:
  """What `read` returns; a rejection out of it says where.

  Raises:
    Rejected: as `read`.
  """
  try:
    return read(*args)
  except errors.Rejected as e:
    raise errors.Rejected(e.reason, f'{where}: {e.detail}') from e
