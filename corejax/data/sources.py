"""`--data=NAME` -> a source of examples.

`--split=test:1/2` and `test:2/2` are the two halves of a split: whole clusters
(pictures, documents) in each, for data sets that have one split alone.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import re
from typing import Any

from corejax import errors
from corejax.data import example as example_lib
from corejax.data.scenes import haystack
from corejax.data.scenes import scene as scene_lib
from corejax.data.scenes import source as scenes

# One line each, as --list_data prints them.
_CATALOGUE = {
  'scenes_referring': (
    'drawn pictures of 9 glyphs; tasks colour, shape (and their twins '
    'colour_twin, shape_twin); splits train, validation, test; no files needed'
  ),
  'scenes_pages': (
    'drawn documents of --pages pages (2 to 8); tasks colour, page (and '
    'colour_twin, page_twin); splits train, validation, test; no files needed'
  ),
  'scenes_haystack': (
    'drawn documents of --pages pages (2 or more), evidence at --depth; task '
    'colour (and colour_twin); splits train, validation, test; no files needed'
  ),
  'mmdocir': (
    'MMDocIR: questions on PDF documents, boxes of the layouts that answer; '
    '--data_dir holds MMDocIR_annotations.jsonl and the PDFs; split test'
  ),
}


def catalogue() -> Mapping[str, str]:
  """Every name that `load` knows, with one line about it."""
  return dict(_CATALOGUE)


@dataclasses.dataclass(frozen=True)
class First:
  """The first records of another source; an example.Source itself."""

  source: example_lib.Source
  limit: int

  @property
  def name(self) -> str:
    return self.source.name

  @property
  def split(self) -> str:
    return self.source.split

  @property
  def fingerprint(self) -> str:
    text = f'{self.source.fingerprint} first {len(self)}'
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def __len__(self) -> int:
    return min(self.limit, len(self.source))

  def __getitem__(self, index: int) -> example_lib.Example:
    if not 0 <= index < len(self):
      raise IndexError(f'{self.name}: {index} is outside 0..{len(self) - 1}')
    return self.source[index]


@dataclasses.dataclass(frozen=True)
class Fold:
  """One of several parts of another source; an example.Source itself.

  A hash of its cluster's name says in which part a record is, so that no
  cluster is in two.

  Attributes:
    source: has `cluster(index)` beside what an example.Source has.
    part, parts: the part, from 1, and how many there are.
  """

  source: Any
  part: int
  parts: int

  @property
  def name(self) -> str:
    return self.source.name

  @property
  def split(self) -> str:
    return f'{self.source.split}:{self.part}/{self.parts}'

  @property
  def fingerprint(self) -> str:
    text = f'{self.source.fingerprint} fold {self.part} of {self.parts}'
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @functools.cached_property
  def _indices(self) -> list[int]:
    return [
      i
      for i in range(len(self.source))
      if self._part_of(self.source.cluster(i)) == self.part
    ]

  def _part_of(self, cluster: str) -> int:
    digest = hashlib.sha256(cluster.encode()).digest()
    return 1 + int.from_bytes(digest[:8], 'big') % self.parts

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> example_lib.Example:
    if not 0 <= index < len(self):
      raise IndexError(f'{self.name}: {index} is outside 0..{len(self) - 1}')
    return self.source[self._indices[index]]


_SPLIT = re.compile(r'(.*):([1-9]\d?)/([1-9]\d?)', re.ASCII)


def _parse_split(split: str) -> tuple[str, tuple[int, int] | None]:
  """(name, (part, parts) or None)."""
  if ':' not in split:
    return split, None
  match = _SPLIT.fullmatch(split)
  if not match or int(match[2]) > int(match[3]):
    raise errors.UserError(
      f'--split={split[:60]}: a part of a split is written test:1/2, and the '
      'first number is no larger than the second'
    )
  return match[1], (int(match[2]), int(match[3]))


def splits(name: str) -> tuple[str, ...]:
  """The splits of a data set.

  Raises:
    UserError: there is no such data set.
  """
  _known(name)
  return scene_lib.SPLITS if name in scenes.CONFIGS else ('test',)


def has_twins(name: str) -> bool:
  """Do its questions have twins that need no look-up?

  Raises:
    UserError: there is no such data set.
  """
  _known(name)
  return name in scenes.CONFIGS


def _known(name: str) -> None:
  if name not in _CATALOGUE:
    raise errors.UserError(
      f'--data={name}: no such data set; there are {", ".join(_CATALOGUE)}'
    )


def load(
  name: str,
  *,
  split: str = 'test',
  seed: int = 0,
  tasks: Sequence[str] | None = None,
  twins: bool = False,
  limit: int | None = None,
  data_dir: str | None = None,
  pages: int | None = None,
  dpi: int = 96,
  depth: str = haystack.ANY,
) -> example_lib.Source:
  """Opens a data set.

  Args:
    name: key of `catalogue()`.
    split: split name, or a part of one as 'test:1/2'.
    seed: which scenes are drawn, which pages stand beside the evidence.
    tasks: tasks to keep, None for all that need a look-up.
    twins: scenes only: follow each look-up by its twin without one.
    limit: first records to keep, None for all.
    data_dir: folder of a data set that is not drawn.
    pages: pages of a document shown at once; None is the data set's default.
      scenes_referring has one picture and takes no notice.
    dpi: resolution at which PDF pages are drawn.
    depth: scenes_haystack only: where the page with the evidence lies, '0'
      (first) to '1' (last), or 'any'.

  Raises:
    UserError: unknown name, split or task, or files that are not there.
  """
  _known(name)
  split, part = _parse_split(split)
  if limit is not None and limit < 1:
    raise errors.UserError(f'--limit={limit}: expected 1 or more')
  if depth != haystack.ANY and name != 'scenes_haystack':
    raise errors.UserError(
      f'--depth={depth[:40]}: {name} has none; it is for scenes_haystack'
    )
  source: example_lib.Source
  if name == 'mmdocir':
    source = _mmdocir(data_dir, split, seed, tasks, twins, pages, dpi)
  else:
    config = scenes.CONFIGS[name]
    if name == 'scenes_pages' and pages is not None:
      config = scenes.paged(pages)
    if name == 'scenes_haystack':
      config = haystack.of(config.pages if pages is None else pages, depth)
    source = scenes.Scenes(
      name, split=split, seed=seed, tasks=tasks, twins=twins, config=config
    )
  if part is not None:
    source = Fold(source, *part)
  return source if limit is None else First(source, limit)


def _mmdocir(data_dir, split, seed, tasks, twins, pages, dpi):
  if not data_dir:
    raise errors.UserError(
      '--data=mmdocir: needs --data_dir, the folder with '
      'MMDocIR_annotations.jsonl and the PDFs; --data=scenes_pages needs no '
      'files'
    )
  if twins:
    raise errors.UserError('--data=mmdocir: its questions have no twins')
  # Here, not above: reading PDFs needs an extra that scenes do not.
  from corejax.data import mmdocir

  return mmdocir.MMDocIR(
    data_dir,
    split=split,
    pages=4 if pages is None else pages,
    dpi=dpi,
    seed=seed,
    tasks=tasks,
  )
