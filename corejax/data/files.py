"""Looking for the files of a data set, and one message for all that lack.

wanted = files.Wanted('mmdocir', data_dir)
annotations = wanted.file('annotations', places, where_to_get_them)
folder = wanted.folder('PDFs', places, names, where_to_get_them)
wanted.check()      # one UserError that lists each thing that is not there
"""

from collections.abc import Iterable, Sequence
import os
import pathlib

from corejax import errors
from corejax.data.scenes import source as scenes

# The end of what is said where files lack.
ELSEWHERE = f'the drawn ones ({", ".join(scenes.CONFIGS)}) need no files at all'
_LISTED = 10  # names of a message


def listed(names: Sequence[str], limit: int = _LISTED) -> str:
  """The first names of many, and how many more there are."""
  text = ', '.join(names[:limit])
  more = len(names) - limit
  return f'{text} and {more} more' if more > 0 else text


def read(path: pathlib.Path) -> bytes:
  """A file's content.

  Raises:
    UserError: it may not be read.
  """
  try:
    return path.read_bytes()
  except OSError as e:
    raise errors.UserError(
      f'{path}: cannot be read ({e.strerror}); let it be read'
    ) from e


def names_in(folder: pathlib.Path) -> frozenset[str]:
  """Names of what lies in a folder; none if there is no such folder.

  Raises:
    UserError: it may not be read.
  """
  try:
    return frozenset(os.listdir(folder))
  except (FileNotFoundError, NotADirectoryError):
    return frozenset()
  except OSError as e:
    raise errors.UserError(
      f'{folder}: cannot be read ({e.strerror}); let it be read'
    ) from e


class Wanted:
  """What a data set needs of a folder; collects what is not there.

  Attributes:
    root: the folder.
  """

  def __init__(self, data: str, data_dir: str | os.PathLike[str]):
    """Names the folder.

    Args:
      data: as --data spells it.
      data_dir: as --data_dir spells it.

    Raises:
      UserError: no folder can have this name, or there is none.
    """
    self._data = data
    self._missing: list[str] = []
    try:
      self.root = pathlib.Path(data_dir).expanduser()
      there = self.root.is_dir()
    except (OSError, RuntimeError, ValueError) as e:
      raise errors.UserError(
        f'--data_dir={data_dir}: no such folder can be ({e}); name the one '
        f'that holds the files of {data}'
      ) from e
    if not there:
      raise errors.UserError(
        f'--data_dir={data_dir}: no such folder; name the one that holds the '
        f'files of {data}; {ELSEWHERE}'
      )

  def at(self, *parts: str) -> list[pathlib.Path]:
    """Places below the folder; '' is the folder itself."""
    return [self.root / part for part in parts]

  def missing(self, what: str, looked: Iterable[object], get: str) -> None:
    """Notes a thing that is not there.

    Args:
      what: the thing.
      looked: places where it was looked for.
      get: where it is to be had.
    """
    places = ', '.join(dict.fromkeys(map(str, looked)))
    self._missing.append(f'{what} (looked for {places}; {get})')

  def file(
    self, places: Sequence[pathlib.Path], get: str, what: str = ''
  ) -> pathlib.Path | None:
    """The first of several places that is a file; noted if none is.

    Args:
      places: in the order of preference.
      get: where the file is to be had.
      what: the file's name, for the message; None takes the first place's.
    """
    for place in places:
      if place.is_file():
        return place
    self.missing(what or places[0].name, places, get)
    return None

  def check(self) -> None:
    """Refuses what lacks.

    Raises:
      UserError: something was noted as missing; the message lists each thing.
    """
    if self._missing:
      things = '; '.join(
        f'{number}. {thing}' for number, thing in enumerate(self._missing, 1)
      )
      raise errors.UserError(
        f'--data_dir={self.root}: --data={self._data} lacks {things}; '
        f'{ELSEWHERE}'
      )


def holding(
  names: Iterable[str], folders: Sequence[pathlib.Path]
) -> dict[str, pathlib.Path]:
  """Where each name lies, the first folder first; those nowhere are left out.

  Each folder is listed once: one call, where a test of every name would be
  as many calls to what may be a network's file system.
  """
  found: dict[str, pathlib.Path] = {}
  left = list(dict.fromkeys(names))
  for folder in dict.fromkeys(folders):
    if not left:
      break
    there = names_in(folder)
    found |= {name: folder / name for name in left if name in there}
    left = [name for name in left if name not in found]
  return found
