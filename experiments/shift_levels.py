"""The axes of `shift`, their levels, and the scenes of each level.

    noise        grey levels added to every pixel and channel
    resolution   share of a picture's pixels that are kept along an edge
    size         edge of the glyphs, so of the evidence too, within their cells
    distractors  other marks on the evidence's page (and as many on all others)
    length       pages of a document, frames of a video
    depth        where the evidence's page lies

The first three change pictures alone: the same scenes and questions, one by one
(corejax.data.scenes.shift). The others are scenes drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from corejax import errors

if TYPE_CHECKING:
  from corejax.data import example as example_lib
  from corejax.data.scenes import scene as scene_lib

USUAL, AGAIN = 'usual', 'again'
NOISE, RESOLUTION, SIZE = PICTURES = ('noise', 'resolution', 'size')
DISTRACTORS, LENGTH, DEPTH = 'distractors', 'length', 'depth'
AXES = (*PICTURES, DISTRACTORS, LENGTH, DEPTH)
TITLES: Mapping[str, str] = {
  NOISE: 'standard deviation, share of 255',
  RESOLUTION: 'pixels kept along an edge',
  SIZE: 'edge of a glyph, usual = 1',
  DISTRACTORS: 'other marks on a page',
  LENGTH: 'pages (frames of a video)',
  DEPTH: "evidence's page, 0 first, 1 last",
}
# What each data set has.
_HAS: Mapping[str, Sequence[str]] = {
  'scenes_referring': AXES[:4],
  'scenes_pages': AXES[:5],
  'scenes_haystack': AXES,
  'scenes_video': (*PICTURES, LENGTH),
}
_PAGES = {'scenes_video': 'frames'}  # where pages are set by another flag
_NUMBER = re.compile(r'\d{1,9}(\.\d{1,9})?', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Level:
  """Scenes of one kind.

  Attributes:
    axis: one of AXES; '' for the usual scenes.
    value: on the axis; nan where the axis has no number for it.
    text: the value as it is told.
    pages: of a document, or frames of a video.
    depth: as sources.load takes it.
    marks: on each page; None as usual.
    picture: attributes of scenes' Shift.
    seed: added to that of the data.
  """

  axis: str
  value: float
  text: str
  pages: int
  depth: str = 'any'
  marks: int | None = None
  picture: tuple[tuple[str, float], ...] = ()
  seed: int = 0

  @property
  def name(self) -> str:
    """Of its folder."""
    return f'{self.axis}-{self.text}' if self.axis else self.text

  def alter(self, config: scene_lib.SceneConfig) -> scene_lib.SceneConfig:
    """The scenes' config of this level, from the usual one.

    Raises:
      UserError: such scenes cannot be drawn; names the flag.
    """
    from corejax.data.scenes import shift

    changes: dict[str, Any] = {}
    if self.marks is not None:
      changes['marks'] = self.marks
    try:
      if self.picture:
        changes['shift'] = shift.Shift(**dict(self.picture))
      return dataclasses.replace(config, **changes) if changes else config
    except errors.UserError as e:
      raise errors.UserError(f'--{self.axis}={self.text}: {e}') from e


def source(
  config: Any,
  level: Level,
  split: str,
  limit: int,
  twins: bool = False,
) -> example_lib.Source:
  """The examples of a level.

  Args:
    config: a shift.Config.
    level: of `plan`.
    split: of the data set.
    limit: first records, 0 for all.
    twins: each look-up is followed by its twin.

  Raises:
    UserError: such scenes cannot be drawn.
  """
  from corejax.experiments import resources

  try:
    settings = dataclasses.replace(
      config,
      split=split,
      seed=config.seed + level.seed,
      limit=limit,
      depth=level.depth,
      **{_PAGES.get(config.data, 'pages'): level.pages},
    )
    return resources.load_source(settings, twins, level.alter)
  except errors.UserError as e:
    if level.axis not in (LENGTH, DEPTH):
      raise
    raise errors.UserError(f'--{level.axis}={level.text}: {e}') from e


def plan(config: Any) -> list[Level]:
  """The usual scenes, the same drawn anew, then every level of every axis.

  A level that is the usual one stands for it and is not measured twice.

  Args:
    config: a shift.Config.

  Raises:
    UserError: data that are not drawn, an axis they do not have, levels that
      are no numbers, stand twice or cannot be drawn.
  """
  from corejax.data.scenes import source as scenes

  if config.data not in scenes.CONFIGS:
    raise errors.UserError(
      f'--data={config.data}: only scenes can be drawn otherwise; choose one '
      f'of {", ".join(scenes.CONFIGS)}'
    )
  if any(t.strip().endswith('_twin') for t in config.tasks.split(',')):
    raise errors.UserError(
      f'--tasks={config.tasks}: name look-ups; their twins are asked beside '
      'them unless --notwins is given'
    )
  usual = _usual(config)
  drawn = source(config, usual, config.split, 1)
  made = [usual, dataclasses.replace(usual, text=AGAIN, seed=1)]
  for axis in axes(config):
    base = usual_value(axis, _scenes(drawn).config)
    for value, text in _levels(config, axis, _scenes(drawn).config):
      if value != base:
        made.append(_level(usual, axis, value, text))
  for level in made:
    source(config, level, config.split, 1)  # can it be drawn?
  return made


def _usual(config: Any) -> Level:
  pages = getattr(config, _PAGES.get(config.data, 'pages'))
  return Level('', float('nan'), USUAL, pages)


def axes(config: Any) -> list[str]:
  """The axes that are asked for, in the order of AXES.

  Raises:
    UserError: an unknown one, one that stands twice or that the data lack.
  """
  has = _HAS[config.data]
  asked = [a.strip() for a in config.axes.split(',')] if config.axes else has
  for axis in asked:
    if axis not in has:
      raise errors.UserError(
        f'--axes={config.axes[:80]}: {config.data} has no axis {axis!r}; it '
        f'has {", ".join(has)}'
      )
  if len(set(asked)) < len(asked):
    raise errors.UserError(f'--axes={config.axes[:80]}: name each axis once')
  return [axis for axis in AXES if axis in asked]


def usual_value(axis: str, config: scene_lib.SceneConfig) -> float | None:
  """Where the usual scenes lie on an axis; None for evidence at any depth."""
  return {
    NOISE: 0.0,
    RESOLUTION: 1.0,
    SIZE: 1.0,
    DISTRACTORS: float(config.marks - 1),
    LENGTH: float(config.pages),
    DEPTH: None,
  }[axis]


def _scenes(drawn: Any) -> Any:
  """The Scenes behind parts and first records of them."""
  while hasattr(drawn, 'source'):
    drawn = drawn.source
  return drawn


def scene_config(config: Any) -> scene_lib.SceneConfig:
  """Of the usual scenes."""
  usual = _usual(config)
  return _scenes(source(config, usual, config.split, 1)).config


def _levels(
  config: Any, axis: str, scene: scene_lib.SceneConfig
) -> list[tuple[float, str]]:
  """(value, text) of each, ascending."""
  asked = getattr(config, axis)
  if not asked:
    return [(float(v), f'{v:g}') for v in _DEFAULTS[axis](config.data, scene)]
  found = []
  for text in asked.split(','):
    whole = axis in (DISTRACTORS, LENGTH)
    text = text.strip()
    if not _NUMBER.fullmatch(text) or (whole and '.' in text):
      raise errors.UserError(
        f'--{axis}={asked[:60]}: {text[:40]!r} is no '
        + ('whole number' if whole else 'number')
        + '; separate levels by commas'
      )
    found.append((float(text), f'{float(text):g}'))
  if len({value for value, _ in found}) < len(found):
    raise errors.UserError(f'--{axis}={asked[:60]}: a level stands twice')
  return sorted(found)


def _distractors(data: str, scene: scene_lib.SceneConfig) -> Sequence[int]:
  if data == 'scenes_haystack':
    return 3, 5, 7
  if data == 'scenes_referring':
    return 5, 11, 15
  return range(16 // scene.pages)


_LENGTHS = {
  'scenes_haystack': (2, 8, 12),
  'scenes_pages': (2, 6, 8),
  'scenes_video': (4, 12, 16),
}
# Where the flag is empty; the models that come with corejax stop at 13 pages.
_DEFAULTS: Mapping[str, Callable[[str, Any], Sequence[float]]] = {
  NOISE: lambda data, scene: (0.5, 1, 2),
  RESOLUTION: lambda data, scene: (0.25, 0.125, 0.0625),
  SIZE: lambda data, scene: (0.5, 0.75, 1.25),
  DISTRACTORS: _distractors,
  LENGTH: lambda data, scene: _LENGTHS[data],
  DEPTH: lambda data, scene: (0, 0.5, 1),
}


def _level(usual: Level, axis: str, value: float, text: str) -> Level:
  changes: dict[str, Any] = {
    DISTRACTORS: lambda: {'marks': int(value) + 1},
    LENGTH: lambda: {'pages': int(value)},
    DEPTH: lambda: {'depth': text},
  }.get(axis, lambda: {'picture': ((axis, value),)})()
  return dataclasses.replace(
    usual, axis=axis, value=value, text=text, **changes
  )
