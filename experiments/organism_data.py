"""Packed training questions: one scene, then many questions that share it.

    tokens    <s> page 1 <i>x16 page 2 <i>x16 | what colour is the star | ..
    segment    0   0   0   0     0   0   0    | 1    1      1  1   1    | 2 ..
    position   0   1   2  3..   19  20  21..  | 37   38     39 40  41   | 37 ..

A question reads the scene and itself, at the positions that it would have
alone, so one question by itself is nothing new to the model. (Where a family
has tokens around a picture, they are there; where it has M-RoPE, a picture
takes as many positions as the larger of its sides, 4, and questions go on from
there on all three axes.) Every batch is a function of (seed, step): nothing has
to be remembered to continue.
"""

import dataclasses
import functools

import jax
import numpy as np

from corejax.data.scenes import picture
from corejax.data.scenes import scene as scene_lib
from corejax.data.scenes import source
from corejax.data.scenes import vocab
from corejax.models import pixels
from corejax.models.organisms import hf_folder
from corejax.models.organisms import kind as kind_lib
from corejax.models.organisms import trained

TASKS = ('colour', 'shape', 'page', 'colour_twin', 'shape_twin', 'page_twin')
N_WORDS = 5  # of the longest question
_ARGUMENT = {
  'colour': vocab.GLYPHS,
  'shape': vocab.COLOURS,
  'page': vocab.GLYPHS,
  'colour_twin': ('',),
  'shape_twin': vocab.GLYPHS,
  'page_twin': vocab.PAGES,
}
# How often a task is asked of a scene of one page, and of one of several.
_MIX = {
  False: {'colour': 5, 'shape': 5, 'colour_twin': 1, 'shape_twin': 1},
  True: {'colour': 5, 'page': 5, 'colour_twin': 1, 'page_twin': 1},
}
N_QUESTIONS = 12


def scenes(pages: int) -> scene_lib.SceneConfig:
  """The scenes with so many pages, as the data sets draw them."""
  if pages == 1:
    return source.CONFIGS['scenes_referring']
  return source.paged(pages)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
  """Scenes with their questions, numpy.

  Attributes:
    cell_MI: int32 [B * pages, 16], rows of `cells()`, pages of a scene
      together.
    tokens_BT: int32 [B, T].
    target_BQ: int32 [B, Q], the token that answers.
    task_BQ: int32 [B, Q], index into TASKS.
  """

  cell_MI: np.ndarray
  tokens_BT: np.ndarray
  target_BQ: np.ndarray
  task_BQ: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
  """What all batches of scenes with as many pages share.

  Attributes:
    prefix_T: int32, tokens of the scene.
    position_T: int32 [T], or [3, T] with M-RoPE.
    segment_T: int32 [T].
    feature_T: int32 [T], visual feature within the scene, -1 for text.
    slots: int32 [Q], the question's first row.
  """

  prefix_T: np.ndarray
  position_T: np.ndarray
  segment_T: np.ndarray
  feature_T: np.ndarray
  slot_Q: np.ndarray


@functools.lru_cache(maxsize=32)
def layout(
  pages: int,
  kind: kind_lib.Kind = trained.LLAVA,
  n_questions: int = N_QUESTIONS,
) -> Layout:
  """The layout of a family's packed sequences with so many pages."""
  n_cells = hf_folder.GRID**2
  prefix = [hf_folder.ID['<s>']]
  for page in range(pages):
    if pages > 1:
      prefix += [hf_folder.ID['page'], hf_folder.ID[vocab.PAGES[page]]]
    prefix += kind.ids(*kind.before)
    prefix += [hf_folder.ID['<image>']] * n_cells
    prefix += kind.ids(*kind.after)
  start = len(prefix)
  slot_Q = start + N_WORDS * np.arange(n_questions)
  feature_T = np.full(start + N_WORDS * n_questions, -1, np.int32)
  rows = np.flatnonzero(np.array(prefix) == hf_folder.ID['<image>'])
  feature_T[rows] = np.arange(len(rows))
  before = kind.positions(feature_T[:start] >= 0)
  own = np.tile(before.max() + 1 + np.arange(N_WORDS), n_questions)
  own = np.broadcast_to(own, (*before.shape[:-1], len(own)))
  return Layout(
    prefix_T=np.array(prefix, np.int32),
    position_T=np.concatenate([before, own], -1).astype(np.int32),
    segment_T=np.concatenate(
      [np.zeros(start), np.repeat(1 + np.arange(n_questions), N_WORDS)]
    ).astype(np.int32),
    feature_T=feature_T,
    slot_Q=slot_Q.astype(np.int32),
  )


@functools.lru_cache(maxsize=256)
def _words(task: str, argument: str) -> tuple[int, ...]:
  text = vocab.QUESTIONS[task].format(argument).lower()
  return tuple(hf_folder.ID[word] for word in text.split())


def n_words(task: str) -> int:
  """Words of a task's questions; the last one's row predicts the answer."""
  return len(_words(task, _ARGUMENT[task][0]))


# Token ids of the glyphs' and of the colours' words; each in one run.
WORDS = tuple(
  tuple(hf_folder.ID[word] for word in words)
  for words in (vocab.GLYPHS, vocab.COLOURS)
)
LAST = np.array([n_words(task) - 1 for task in TASKS], np.int32)


@functools.lru_cache(maxsize=2)
def cells(spec: pixels.PixelSpec) -> np.ndarray:
  """Every cell that can be drawn, as a tower gets its pixels.

  Drawn and processed as whole pages are; the resize averages whole blocks, so
  a cell looks the same wherever it stands.

  Args:
    spec: the checkpoints' pixel processing.

  Returns:
    float32 [8 * (1 + 16 * 8), 3, PATCH, PATCH], row as in `_cell`.
  """
  drawn = []
  size = source.CONFIGS['scenes_referring'].cell
  for ground in vocab.COLOURS:
    marks = [
      picture.Mark(0, 0, 0, glyph, colour)
      for glyph in vocab.GLYPHS
      for colour in vocab.COLOURS
    ]
    side = 12  # 144 cells hold the empty one and the 128 marks
    marks = [
      dataclasses.replace(mark, row=(i + 1) // side, column=(i + 1) % side)
      for i, mark in enumerate(marks)
    ]
    sheet = picture.pixels(marks, ground, side, size)
    blocks = sheet.reshape(side, size, side, size, 3).swapaxes(1, 2)
    blocks = blocks.reshape(-1, size, size, 3)[: 1 + len(marks)]
    # Pages of 4x4 cells, padded with empty ones.
    n_pages = -(-len(blocks) // 16)
    blocks = np.concatenate(
      [blocks, np.repeat(blocks[:1], 16 * n_pages - len(blocks), 0)]
    )
    g, p = hf_folder.GRID, hf_folder.PATCH
    for first in range(0, len(blocks), 16):
      page = blocks[first : first + 16].reshape(g, g, size, size, 3)
      page = page.swapaxes(1, 2).reshape(g * size, g * size, 3)
      small = pixels.run(spec, page).reshape(3, g, p, g, p)
      small = small.transpose(1, 3, 0, 2, 4).reshape(16, 3, p, p)
      drawn.append(small[: 1 + len(marks) - first])
  return np.concatenate(drawn)


_PER_GROUND = 1 + len(vocab.GLYPHS) * len(vocab.COLOURS)


def _cell(ground: int, glyph: int, colour: int) -> int:
  return ground * _PER_GROUND + 1 + glyph * len(vocab.COLOURS) + colour


def _draw_scene(key, config) -> tuple[np.ndarray, scene_lib.Scene]:
  scene = scene_lib.make(config, *key)
  ground = vocab.COLOURS.index(scene.ground)
  cell_MI = np.full((config.pages, config.grid**2), ground * _PER_GROUND)
  for mark in scene.marks:
    cell_MI[mark.page, mark.row * config.grid + mark.column] = _cell(
      ground, vocab.GLYPHS.index(mark.glyph), vocab.COLOURS.index(mark.colour)
    )
  return cell_MI, scene


def _ask(task: str, scene: scene_lib.Scene, pages: int, number: int, rng):
  """(argument, answer) of a question."""
  if task == 'colour_twin':
    return '', scene.ground
  if task == 'shape_twin':
    glyph = vocab.GLYPHS[rng.integers(len(vocab.GLYPHS))]
    return glyph, vocab.next_glyph(glyph)
  if task == 'page_twin':
    before = rng.integers(pages - 1)
    return vocab.PAGES[before], vocab.PAGES[before + 1]
  pool = range(len(scene.marks)) if task != 'shape' else scene.unique_colours()
  mark = scene.marks[pool[number % len(pool)]]
  if task == 'colour':
    return mark.glyph, mark.colour
  if task == 'shape':
    return mark.colour, mark.glyph
  return mark.glyph, vocab.PAGES[mark.page]


def pack(
  pages: int,
  seed: int,
  split: str,
  first: int,
  count: int,
  kind: kind_lib.Kind = trained.LLAVA,
) -> Packed:
  """Scenes `first`, `first + 1`, .. of a split with their questions.

  Args:
    pages: of every scene.
    seed: of the scenes.
    split: of the scenes.
    first: index of the first scene.
    count: B.
    kind: the family that they are for.
  """
  config = scenes(pages)
  plan = layout(pages, kind)
  start = len(plan.prefix_T)
  tokens_BT = np.zeros((count, len(plan.segment_T)), np.int32)
  tokens_BT[:, :start] = plan.prefix_T
  target_BQ = np.zeros((count, N_QUESTIONS), np.int32)
  task_BQ = np.zeros((count, N_QUESTIONS), np.int32)
  drawn = []
  for b in range(count):
    key = (seed, split, first + b)
    cell_MI, scene = _draw_scene(key, config)
    drawn.append(cell_MI)
    rng = scene_lib.generator(config, *key, 'packed')
    slot = 0
    for task, times in _MIX[pages > 1].items():
      offset = int(rng.integers(len(scene.marks)))
      for number in range(times):
        argument, answer = _ask(task, scene, pages, offset + number, rng)
        words = _words(task, argument)
        at = plan.slot_Q[slot]
        tokens_BT[b, at : at + len(words)] = words
        target_BQ[b, slot] = hf_folder.ID[answer]
        task_BQ[b, slot] = TASKS.index(task)
        slot += 1
  return Packed(
    np.concatenate(drawn).astype(np.int32), tokens_BT, target_BQ, task_BQ
  )


def captions(cell_MI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(glyph word, colour word) of every cell, -1 where it is empty."""
  inside = cell_MI % _PER_GROUND - 1
  glyphs, colours = (np.array(words) for words in WORDS)
  n_colours = len(colours)
  empty = inside < 0
  return (
    np.where(empty, -1, glyphs[inside // n_colours]).astype(np.int32),
    np.where(empty, -1, colours[inside % n_colours]).astype(np.int32),
  )
