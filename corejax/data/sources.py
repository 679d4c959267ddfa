"""`--data=NAME` -> a source of examples.

`--split=test:1/2` and `test:2/2` are the two halves of a split: whole clusters
(pictures, documents) in each, for data sets that have one split alone.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import re
from typing import Any

from corejax import errors
from corejax import grounding
from corejax.data import boxes
from corejax.data import delivery
from corejax.data import example as example_lib
from corejax.data import files
from corejax.data import levels
from corejax.data import prepared
from corejax.data import wrapped
from corejax.data.scenes import haystack
from corejax.data.scenes import scene as scene_lib
from corejax.data.scenes import source as scenes
from corejax.data.scenes import video

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
  'scenes_video': (
    'drawn videos of --frames frames (4 or more), in which some things are '
    'shown only for a while; tasks colour, when (and colour_twin, when_twin); '
    'splits train, validation, test; no files needed (--video_as)'
  ),
  'mmdocir': (
    'MMDocIR: questions on PDF documents, boxes of the layouts that answer; '
    '--data_dir holds MMDocIR_annotations.jsonl and the PDFs or '
    'MMDocIR_pages.parquet; split test'
  ),
  'mmlongbench': (
    'MMLongBench-Doc: questions on PDF documents, pages that answer, boxes '
    'where MMDocIR has the question; --data_dir holds samples.json and the '
    'PDFs, best MMDocIR_annotations.jsonl too; split test'
  ),
  'mmlongbench_docqa': (
    'MMLongBench (2025), documentQA: questions on page pictures, pages that '
    'answer; --data_dir holds mmlb_data and mmlb_image; splits K8 to K128'
  ),
  'refcocog': (
    'RefCOCOg: which thing of a photograph is meant, its box; --data_dir holds '
    'refs(umd).p and instances.json, or refcoco.json, and COCO train2014; '
    'splits train, val and, by umd, test (--split_by, --box_answers)'
  ),
  'vidstg': (
    'VidSTG: what does something in a video (task what), and when (when), its '
    'boxes; --data_dir holds test_annotations.json, boxes and videos of VidOR, '
    'or frames; splits train, val, test (--frames, --missed, --video_as)'
  ),
}

# Of those that have more than the split test.
_SPLITS = {
  'refcocog': ('train', 'val', 'test'),
  'vidstg': ('train', 'val', 'test'),
  'mmlongbench_docqa': ('K8', 'K16', 'K32', 'K64', 'K128'),
}


def catalogue() -> Mapping[str, str]:
  """Every name that `load` knows, with one line about it."""
  return dict(_CATALOGUE)


def remarks(source: Any) -> tuple[str, ...]:
  """What a user should know of all of a source's records; mostly nothing."""
  while not hasattr(source, 'remarks') and hasattr(source, 'source'):
    source = source.source
  return getattr(source, 'remarks', ())


@dataclasses.dataclass(frozen=True)
class First(wrapped.Wrapped):
  """The first records of another source; an example.Source itself."""

  limit: int

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
class Fold(wrapped.Wrapped):
  """One of several parts of another source; an example.Source itself.

  A hash of its cluster's name says in which part a record is, so that no
  cluster is in two.

  Attributes:
    part, parts: the part, from 1, and how many there are.
  """

  part: int
  parts: int

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

  def inner_index(self, index: int) -> int:
    return self._indices[index]

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
  if name in scenes.CONFIGS:
    return scene_lib.SPLITS
  return _SPLITS.get(name, ('test',))


def has_twins(name: str) -> bool:
  """Do its questions have twins that need no look-up?

  Raises:
    UserError: there is no such data set.
  """
  _known(name)
  return name in scenes.CONFIGS


def needs_files(name: str) -> bool:
  """Is it read from files, so that it needs a --data_dir?

  Raises:
    UserError: there is no such data set.
  """
  _known(name)
  return name not in scenes.CONFIGS


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
  split_by: str = 'umd',
  box_answers: str = boxes.STORED,
  resized: boxes.Resized | None = None,
  evidence: str = 'best',
  frames: int = 8,
  missed: str = 'move',
  depth: str = haystack.ANY,
  video_as: str = delivery.PICTURES,
  alter: Callable[[scene_lib.SceneConfig], scene_lib.SceneConfig] | None = None,
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
    split_by: refcocog only: whose division into splits, 'umd' or 'google'.
    box_answers: refcocog only: how a box is written (corejax.grounding).
    resized: of box_answers 'resized', see boxes.Written.
    evidence: boxes or whole pages and frames (corejax.data.levels).
    frames: vidstg and scenes_video: frames of a video shown at once.
    missed: vidstg only: 'move' a frame to the evidence where none shows it, or
      'reject' the record.
    depth: scenes_haystack only: where the page with the evidence lies, '0'
      (first) to '1' (last), or 'any'.
    video_as: videos as a 'clip', which not all families read, or as 'pictures'.
    alter: scenes only: another config in place of what these settings make.

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
  if name in scenes.CONFIGS:
    config = scenes.CONFIGS[name]
    if name == 'scenes_pages' and pages is not None:
      config = scenes.paged(pages)
    if name == 'scenes_haystack':
      config = haystack.of(config.pages if pages is None else pages, depth)
    if name == 'scenes_video':
      config = video.of(frames)
    if alter is not None:
      config = alter(config)
    source = scenes.Scenes(
      name, split=split, seed=seed, tasks=tasks, twins=twins, config=config
    )
  else:
    if not data_dir:
      raise errors.UserError(
        f'--data={name}: needs --data_dir, the folder with its files: '
        f'{_CATALOGUE[name]}; {files.ELSEWHERE}'
      )
    if twins:
      raise errors.UserError(f'--data={name}: its questions have no twins')
    if alter is not None:
      raise errors.UserError(
        f'--data={name}: is not drawn, so that it cannot be drawn otherwise; '
        f'choose one of {", ".join(scenes.CONFIGS)}'
      )
    wanted = _Settings(split, seed, tasks, pages, dpi, split_by, frames, missed)
    if prepared.is_prepared(data_dir):
      source = prepared.Prepared(data_dir, name, _deciding(name, wanted), tasks)
    else:
      source = _OPEN[name](data_dir, wanted)
  if box_answers not in grounding.CONVENTIONS:
    raise errors.UserError(
      f'--box_answers={box_answers[:60]}: not one of '
      f'{", ".join(grounding.CONVENTIONS)}'
    )
  if box_answers == 'resized' and resized is None:
    raise errors.UserError(
      '--box_answers=resized: the size follows from a checkpoint; hand over '
      'resized=, which is registry.get(model).resized(folder)'
    )
  if box_answers != boxes.STORED and name in boxes.SOURCES:
    source = boxes.Written(source, box_answers, resized)
  if video_as not in (delivery.CLIP, delivery.PICTURES):
    raise errors.UserError(
      f'--video_as={video_as[:60]}: not one of {delivery.CLIP}, '
      f'{delivery.PICTURES}'
    )
  if video_as == delivery.PICTURES and name in delivery.VIDEOS:
    source = delivery.Pictures(source)
  if evidence not in levels.CHOICES:
    raise errors.UserError(
      f'--evidence={evidence[:60]}: not one of {", ".join(levels.CHOICES)}'
    )
  if evidence != 'best':
    source = levels.Level(source, evidence)
  if part is not None:
    source = Fold(source, *part)
  return source if limit is None else First(source, limit)


@dataclasses.dataclass(frozen=True)
class _Settings:
  """What `load` hands on; its own arguments say what they are."""

  split: str
  seed: int
  tasks: Sequence[str] | None
  pages: int | None
  dpi: int
  split_by: str
  frames: int
  missed: str


# What of it decides an example, beside the files.
_DECIDING: Mapping[str, Sequence[str]] = {
  'mmdocir': ('split', 'pages', 'dpi', 'seed'),
  'mmlongbench': ('split', 'pages', 'dpi', 'seed'),
  'mmlongbench_docqa': ('split', 'pages', 'seed'),
  'refcocog': ('split', 'split_by'),
  'vidstg': ('split', 'frames', 'missed'),
}


def _deciding(name: str, wanted: _Settings) -> dict[str, Any]:
  values = {key: getattr(wanted, key) for key in _DECIDING[name]}
  if values.get('pages', 0) is None:
    values['pages'] = _PAGES
  return values


def settings(name: str, **options: Any) -> dict[str, Any]:
  """Those of `load`'s settings that decide what an example of a set is.

  Args:
    name: key of `catalogue()`.
    **options: of `load`, at least those.

  Raises:
    UserError: there is no such data set, or it is drawn and has no files.
  """
  _known(name)
  if name in scenes.CONFIGS:
    raise errors.UserError(
      f'--data={name}: is drawn, not read from files; it needs no preparing'
    )
  split, part = _parse_split(options['split'])
  if part is not None:
    raise errors.UserError(
      f'--split={options["split"]}: prepare the whole split {split}; runs take '
      'parts of it'
    )
  return {key: options[key] for key in _DECIDING[name]}


def told(source: Any, index: int) -> tuple[str | None, str]:
  """(task, cluster) of a record, of a source of files or its first records."""
  while isinstance(source, First | delivery.Pictures):
    source = source.source
  return source.task(index), source.cluster(index)


# Imported within: each reader may need an extra that others do not.
def _mmdocir(data_dir: str, settings: _Settings) -> example_lib.Source:
  from corejax.data import mmdocir

  return mmdocir.MMDocIR(
    data_dir,
    split=settings.split,
    pages=_PAGES if settings.pages is None else settings.pages,
    dpi=settings.dpi,
    seed=settings.seed,
    tasks=settings.tasks,
  )


def _mmlongbench(data_dir: str, settings: _Settings) -> example_lib.Source:
  from corejax.data import mmlongbench

  return mmlongbench.MMLongBench(
    data_dir,
    split=settings.split,
    pages=_PAGES if settings.pages is None else settings.pages,
    dpi=settings.dpi,
    seed=settings.seed,
    tasks=settings.tasks,
  )


def _docqa(data_dir: str, settings: _Settings) -> example_lib.Source:
  from corejax.data import mmlongbench_docqa

  return mmlongbench_docqa.MMLongBenchDocQA(
    data_dir,
    split=settings.split,
    pages=_PAGES if settings.pages is None else settings.pages,
    seed=settings.seed,
    tasks=settings.tasks,
  )


def _refcocog(data_dir: str, settings: _Settings) -> example_lib.Source:
  from corejax.data import refcocog

  return refcocog.RefCOCOg(
    data_dir,
    split=settings.split,
    split_by=settings.split_by,
    tasks=settings.tasks,
  )


def _vidstg(data_dir: str, settings: _Settings) -> example_lib.Source:
  from corejax.data import vidstg

  return vidstg.VidSTG(
    data_dir,
    split=settings.split,
    frames=settings.frames,
    missed=settings.missed,
    tasks=settings.tasks,
  )


_PAGES = 4  # of a document, shown at once
_OPEN: Mapping[str, Callable[[str, _Settings], example_lib.Source]] = {
  'mmdocir': _mmdocir,
  'mmlongbench': _mmlongbench,
  'mmlongbench_docqa': _docqa,
  'refcocog': _refcocog,
  'vidstg': _vidstg,
}
