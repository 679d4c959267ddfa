"""What lies where: a function of (config, seed, split, index) alone."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib

import numpy as np

from corejax import errors
from corejax.data.scenes import picture
from corejax.data.scenes import shift as shift_lib
from corejax.data.scenes import vocab

# Every possible scene belongs to one split, whatever the seed: its content's
# hash, modulo the sum of the weights, says to which.
_SPLIT_WEIGHTS = {'train': 8, 'validation': 1, 'test': 1}
SPLITS = tuple(_SPLIT_WEIGHTS)


@dataclasses.dataclass(frozen=True)
class SceneConfig:
  """How scenes look.

  Attributes:
    grid: cells along a page's edge.
    cell: pixels along a cell's edge, at least 14.
    pages: pages of a scene, 1 to 8. One page asks `colour` and `shape`,
      several ask `colour` and `page`.
    marks: marks on each page; all glyphs of a scene are distinct.
    questions: questions a task a scene, each about another mark.
    noise: grey noise of up to this many of 255 levels on every pixel.
    shift: what sets the pictures apart from the usual ones; None is nothing.
      Scenes and questions are drawn from the text of a config, in which it
      does not stand.
  """

  grid: int = 4
  cell: int = 56
  pages: int = 1
  marks: int = 9
  questions: int = 4
  noise: int = 0
  shift: shift_lib.Shift | None = dataclasses.field(default=None, repr=False)

  def __post_init__(self):
    need = self._need
    need(self.cell >= 14, 'cell', 'at least 14 pixels')
    need(2 <= self.grid <= 16, 'grid', '2 to 16')
    need(0 <= self.noise <= 8, 'noise', '0 to 8')
    self._check_counts()

  def _need(self, holds: bool, field: str, expected: str) -> None:
    if not holds:
      raise errors.UserError(
        f'scenes: {field}={getattr(self, field)}, expected {expected}'
      )

  def _check_counts(self) -> None:
    need = self._need
    need(1 <= self.pages <= len(vocab.PAGES), 'pages', '1 to 8')
    most = min(self.grid**2, len(vocab.GLYPHS) // self.pages)
    need(1 <= self.marks <= most, 'marks', f'1 to {most} a page')
    total = self.pages * self.marks
    need(1 <= self.questions <= total, 'questions', f'1 to {total} (marks)')
    if self.pages == 1:
      need(
        1 <= self.questions <= 6 and self.marks >= self.questions + 2,
        'questions',
        '1 to 6 and two fewer than marks (as many colours are unique)',
      )

  @property
  def tasks(self) -> tuple[str, ...]:
    """The tasks that need a look-up."""
    return ('colour', 'shape') if self.pages == 1 else ('colour', 'page')

  @property
  def kind(self) -> str:
    """Of an example, as data.example.Example has it."""
    return 'image' if self.pages == 1 else 'pages'

  @property
  def seconds(self) -> tuple[float, ...] | None:
    """When each picture is shown, if they are a video's frames."""
    return None

  def span(self, marks: Sequence[picture.Mark]) -> tuple[float, float] | None:
    """Seconds [start, end) in which the marks of one thing are shown."""
    del marks
    return None

  def draw(self, rng: np.random.Generator) -> 'Scene':
    """A scene of any split."""
    return _draw(self, rng)


@dataclasses.dataclass(frozen=True)
class Scene:
  """One scene.

  Attributes:
    marks: in reading order, page by page; glyphs are distinct.
    ground: colour word of the ground, the same on all pages.
  """

  marks: tuple[picture.Mark, ...]
  ground: str

  def unique_colours(self) -> tuple[int, ...]:
    """Indices of the marks whose colour no other mark has."""
    colours = [mark.colour for mark in self.marks]
    return tuple(i for i, c in enumerate(colours) if colours.count(c) == 1)

  def targets(self, task: str) -> tuple[int, ...]:
    """Indices of the marks that a question of this task may be about."""
    if task == 'shape':
      return self.unique_colours()
    return tuple(range(len(self.marks)))

  def same(self, target: int) -> tuple[int, ...]:
    """Indices of all marks of a mark's thing; one, but in videos."""
    return (target,)

  def split(self) -> str:
    """The split to which this content belongs."""
    digest = hashlib.sha256(repr(self).encode()).digest()
    place = int.from_bytes(digest[:8], 'big') % sum(_SPLIT_WEIGHTS.values())
    for name, weight in _SPLIT_WEIGHTS.items():
      if place < weight:
        return name
      place -= weight
    raise AssertionError(place)


def generator(
  config: SceneConfig, seed: int, split: str, index: int, purpose: str
) -> np.random.Generator:
  """Random numbers that depend on all of the arguments and on nothing else.

  Raises:
    UserError: no such split, or a negative seed.
  """
  if split not in SPLITS:
    raise errors.UserError(
      f'--split={split}: scenes have the splits {", ".join(SPLITS)}'
    )
  if seed < 0:
    raise errors.UserError(f'--seed={seed}: expected 0 or more')
  key = hashlib.sha256(f'{config}/{split}/{purpose}'.encode()).digest()[:16]
  words = np.frombuffer(key, '<u4').tolist()
  return np.random.Generator(
    np.random.Philox(np.random.SeedSequence([seed, index, *words]))
  )


@functools.lru_cache(maxsize=64)
def make(config: SceneConfig, seed: int, split: str, index: int) -> Scene:
  """The scene at this index.

  Raises:
    UserError: no such split.
  """
  rng = generator(config, seed, split, index, 'scene')
  while True:  # ends: one draw in ten, on average, belongs to the rarest split
    scene = config.draw(rng)
    if scene.split() == split:
      return scene


def _draw(config: SceneConfig, rng: np.random.Generator) -> Scene:
  total = config.pages * config.marks
  places = []
  for page in range(config.pages):
    cells = rng.permutation(config.grid**2)[: config.marks]
    places += [(page, int(cell)) for cell in np.sort(cells)]
  shapes = rng.permutation(len(vocab.GLYPHS))[:total]
  colours = _colours(config, rng)
  ground = vocab.COLOURS[rng.integers(len(vocab.COLOURS))]
  return Scene(
    tuple(
      picture.Mark(
        page,
        cell // config.grid,
        cell % config.grid,
        vocab.GLYPHS[shape],
        vocab.COLOURS[colour],
      )
      for (page, cell), shape, colour in zip(places, shapes, colours)
    ),
    ground,
  )


def _colours(config: SceneConfig, rng: np.random.Generator) -> np.ndarray:
  """Colour of every mark; a one-page scene has unique and shared ones."""
  total = config.pages * config.marks
  if config.pages > 1:
    return rng.integers(len(vocab.COLOURS), size=total)
  hues = rng.permutation(len(vocab.COLOURS))
  n_unique = config.questions
  crowd = total - n_unique
  n_shared = min(crowd // 2, len(hues) - n_unique)
  shared = hues[n_unique : n_unique + n_shared]
  chosen = np.concatenate([hues[:n_unique], np.resize(shared, crowd)])
  return rng.permutation(chosen)


def pictures(
  config: SceneConfig, seed: int, split: str, index: int
) -> tuple[np.ndarray, ...]:
  """The scene's pages, uint8 [H, W, 3] each."""
  scene = make(config, seed, split, index)
  rng = generator(config, seed, split, index, 'noise')
  shift = config.shift or shift_lib.Shift()
  disturbing = generator(config, seed, split, index, 'shift')
  side = config.grid * config.cell
  pages = []
  for page in range(config.pages):
    noise = None
    if config.noise:
      noise = rng.integers(-config.noise, config.noise + 1, (side, side))
    marks = [mark for mark in scene.marks if mark.page == page]
    drawn = picture.pixels(
      marks, scene.ground, config.grid, config.cell, noise, shift.size
    )
    pages.append(shift.disturb(drawn, disturbing))
  return tuple(pages)


@functools.lru_cache(maxsize=64)
def media(
  config: SceneConfig, seed: int, split: str, index: int
) -> tuple[bytes, ...]:
  """The scene's pages as PNG, kept for a while: questions share them."""
  return tuple(
    picture.encode(page) for page in pictures(config, seed, split, index)
  )
