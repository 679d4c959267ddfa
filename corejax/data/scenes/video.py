"""Videos in which some things are shown only for a while.

    frame      1      2      3      4      5      6      7      8
    seconds    0      0.5    1      1.5    2      2.5    3      3.5
    quarter    [     1     ] [     2     ] [     3     ] [     4     ]
    star       x      x      x      x      x      x      x      x    lasting
    heart                    x      x                                passing
    moon                                          x                  passing

Every frame is a page of the same cells; a thing steps from its cell into one
beside it or stays, and no two share one. Asked about are the passing things:
what colour (`colour`), and in which quarter of the video (`when`). Each is
shown within one quarter, in one frame of it or in several that follow each
other; all of its cells are the evidence, and the time from its first frame to
the end of its last is the span.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from corejax import errors
from corejax.data.scenes import picture
from corejax.data.scenes import scene as scene_lib
from corejax.data.scenes import vocab

QUARTERS = 4
_MOST_FRAMES = 256
_STEPS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


def quarter(frame: int, frames: int) -> int:
  """In which quarter of a video a frame's middle lies, from 0."""
  return (2 * frame + 1) * QUARTERS // (2 * frames)


@dataclasses.dataclass(frozen=True)
class VideoConfig(scene_lib.SceneConfig):
  """How videos look; noise, grid and cell as in any scene.

  Attributes:
    pages: frames of a video, 4 to 256.
    marks: lasting things; all glyphs of a video are distinct.
    questions: questions a task a video, at most `passing`.
    passing: things that are shown only for a while.
    step: seconds from one frame to the next, and for which each is shown.
  """

  pages: int = 8
  marks: int = 2
  questions: int = 4
  passing: int = 4
  step: float = 0.5

  def _check_counts(self) -> None:
    need = self._need
    need(
      QUARTERS <= self.pages <= _MOST_FRAMES,
      'pages',
      f'{QUARTERS} to {_MOST_FRAMES} frames',
    )
    most = min(self.grid**2, len(vocab.GLYPHS))
    need(0 <= self.marks < most, 'marks', f'0 to {most - 1}')
    left = most - self.marks
    need(1 <= self.passing <= left, 'passing', f'1 to {left}')
    need(
      1 <= self.questions <= self.passing,
      'questions',
      f'1 to {self.passing} (passing)',
    )
    need(0 < self.step < 1e6, 'step', 'seconds, more than 0')

  @property
  def tasks(self) -> tuple[str, ...]:
    """The tasks that need a look-up."""
    return ('colour', 'when')

  @property
  def kind(self) -> str:
    """Of an example."""
    return 'video'

  @property
  def seconds(self) -> tuple[float, ...]:
    """When each frame is shown."""
    return tuple(self.step * frame for frame in range(self.pages))

  def span(self, marks: Sequence[picture.Mark]) -> tuple[float, float]:
    """Seconds [start, end) in which the marks of one thing are shown."""
    frames = [mark.page for mark in marks]
    return self.step * min(frames), self.step * (max(frames) + 1)

  def draw(self, rng: np.random.Generator) -> Video:
    """A video; the passing things are its first glyphs, in the order drawn."""
    shapes = rng.permutation(len(vocab.GLYPHS))[: self.passing + self.marks]
    colours = rng.integers(len(vocab.COLOURS), size=len(shapes))
    shown = [self._shown(rng) for _ in range(self.passing)]
    shown += [range(self.pages)] * self.marks
    cells = _walk(shown, self.pages, self.grid, rng)
    marks, first = [], {}
    for frame, here in enumerate(cells):
      for cell, thing in sorted((cell, thing) for thing, cell in here.items()):
        first.setdefault(thing, len(marks))
        marks.append(
          picture.Mark(
            frame,
            cell // self.grid,
            cell % self.grid,
            vocab.GLYPHS[shapes[thing]],
            vocab.COLOURS[colours[thing]],
          )
        )
    ground = vocab.COLOURS[rng.integers(len(vocab.COLOURS))]
    passing = tuple(first[thing] for thing in range(self.passing))
    return Video(tuple(marks), ground, passing)

  def _shown(self, rng: np.random.Generator) -> range:
    """Frames that follow each other, within a quarter drawn evenly."""
    part = rng.integers(QUARTERS)
    frames = [f for f in range(self.pages) if quarter(f, self.pages) == part]
    start, last = np.sort(rng.integers(len(frames), size=2))
    return range(frames[start], frames[last] + 1)


def _walk(
  shown: list[range], frames: int, grid: int, rng: np.random.Generator
) -> list[dict[int, int]]:
  """Each frame's things with their cells; no two share one.

  A thing steps to a cell that is free now and in the frame before. Its own is:
  those that go first keep off the cells of those that have yet to go.
  """
  cells: list[dict[int, int]] = []
  for frame in range(frames):
    before = cells[-1] if cells else {}
    things = [t for t, there in enumerate(shown) if frame in there]
    waiting = {t: before[t] for t in things if t in before}
    here: dict[int, int] = {}
    for thing in rng.permutation(list(waiting)).astype(int).tolist():
      row, column = divmod(waiting.pop(thing), grid)
      beside = [
        (row + down) * grid + column + right
        for down, right in _STEPS
        if 0 <= row + down < grid and 0 <= column + right < grid
      ]
      taken = {*here.values(), *waiting.values()}
      here[thing] = int(rng.choice([c for c in beside if c not in taken]))
    for thing in things:
      if thing not in here:
        free = sorted(set(range(grid**2)) - set(here.values()))
        here[thing] = int(rng.choice(free))
    cells.append(here)
  return cells


@dataclasses.dataclass(frozen=True)
class Video(scene_lib.Scene):
  """A video; a thing has a mark in every frame in which it is shown.

  Attributes:
    passing: index of the first mark of each passing thing.
  """

  passing: tuple[int, ...] = ()

  def targets(self, task: str) -> tuple[int, ...]:
    """The marks that a question of this task may be about."""
    del task
    return self.passing

  def same(self, target: int) -> tuple[int, ...]:
    """Indices of all marks of a mark's thing, frame by frame."""
    glyph = self.marks[target].glyph
    return tuple(i for i, m in enumerate(self.marks) if m.glyph == glyph)


def of(frames: int) -> VideoConfig:
  """The videos of so many frames.

  Raises:
    UserError: too few or too many.
  """
  if not QUARTERS <= frames <= _MOST_FRAMES:
    raise errors.UserError(
      f'--frames={frames}: scenes_video is drawn with {QUARTERS} to '
      f'{_MOST_FRAMES}'
    )
  return VideoConfig(pages=frames)
