"""What is asked of a scene: look-ups, and for each a twin without look-up.

    task    look-up                  answer  its twin                     answer
    colour  What colour is the star  red     What colour is the background pink
    shape   What shape is red        star    What shape follows the star   heart
    page    Which page has the star  2       Which page follows page 1     2
    when    Which quarter has the    2       Which quarter follows         2
            star                             quarter 1

A look-up needs the evidence cell; its twin has nearly the same words and the
same answers, but needs the whole picture (`background`) or none (`follows`: the
next in the fixed order of vocab.GLYPHS, the next number).
"""

from collections.abc import Mapping
import dataclasses
import functools

import numpy as np

from corejax.data.scenes import scene as scene_lib
from corejax.data.scenes import video
from corejax.data.scenes import vocab


@dataclasses.dataclass(frozen=True)
class Question:
  """A look-up and its twin.

  Attributes:
    task: 'colour', 'shape', 'page' or 'when'.
    target: index of the mark that is the evidence.
    text, answer: the look-up.
    twin_text, twin_answer: the twin.
  """

  task: str
  target: int
  text: str
  answer: str
  twin_text: str
  twin_answer: str


@functools.lru_cache(maxsize=64)
def ask(
  config: scene_lib.SceneConfig, seed: int, split: str, index: int
) -> Mapping[str, tuple[Question, ...]]:
  """All questions about one scene, by task.

  Within a task the targets are a random ordered choice without repetition, so
  the evidence of a scene's questions is exchangeable: what the permutation
  null of a ranking relies on.

  Returns:
    config.questions questions for each of config.tasks.
  """
  scene = scene_lib.make(config, seed, split, index)
  rng = scene_lib.generator(config, seed, split, index, 'questions')
  asked = {}
  for task in config.tasks:
    pool = np.asarray(scene.targets(task))
    targets = rng.permutation(pool)[: config.questions]
    asked[task] = tuple(
      _question(task, scene, int(target), config.pages, rng)
      for target in targets
    )
  return asked


def _question(task, scene, target, n_pages, rng) -> Question:
  mark = scene.marks[target]
  if task == 'colour':
    argument, answer = mark.glyph, mark.colour
    twin_argument, twin_answer = '', scene.ground
  elif task == 'shape':
    argument, answer = mark.colour, mark.glyph
    twin_argument = vocab.GLYPHS[rng.integers(len(vocab.GLYPHS))]
    twin_answer = vocab.next_glyph(twin_argument)
  else:
    place, n_places = mark.page, n_pages
    if task == 'when':
      place, n_places = video.quarter(mark.page, n_pages), video.QUARTERS
    argument, answer = mark.glyph, vocab.PAGES[place]
    before = int(rng.integers(n_places - 1))
    twin_argument, twin_answer = vocab.PAGES[before], vocab.PAGES[before + 1]
  wording = vocab.QUESTIONS | vocab.VIDEO_QUESTIONS
  return Question(
    task,
    target,
    wording[task].format(argument),
    answer,
    wording[task + vocab.TWIN].format(twin_argument),
    twin_answer,
  )
