"""Scenes as a random-access source of examples."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
from typing import Any

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import layouts as layouts_lib
from corejax.data.scenes import glyphs
from corejax.data.scenes import haystack
from corejax.data.scenes import picture
from corejax.data.scenes import questions
from corejax.data.scenes import scene as scene_lib
from corejax.data.scenes import video
from corejax.data.scenes import vocab


def paged(pages: int) -> scene_lib.SceneConfig:
  """Scenes of several pages, three marks each (two from 6 pages up).

  Raises:
    UserError: not 2 to 8 pages.
  """
  most = len(vocab.PAGES)
  if not 2 <= pages <= most:
    raise errors.UserError(f'scenes_pages: pages={pages}, expected 2 to {most}')
  return scene_lib.SceneConfig(
    pages=pages, marks=min(3, len(vocab.GLYPHS) // pages)
  )


CONFIGS: dict[str, scene_lib.SceneConfig] = {
  'scenes_referring': scene_lib.SceneConfig(),
  'scenes_pages': paged(3),
  'scenes_haystack': haystack.HaystackConfig(),
  'scenes_video': video.VideoConfig(),
}
N_SCENES = 500


class Scenes:
  """An example.Source; record order is by scene, task, question, twin:

      scene 0  colour 0, [its twin,] colour 1, .., shape 0, [its twin,] ..
      scene 1  ...

  so the first n records are whole scenes but for the last.
  """

  def __init__(
    self,
    name: str,
    *,
    split: str = 'test',
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    twins: bool = False,
    scenes: int = N_SCENES,
    config: scene_lib.SceneConfig | None = None,
  ):
    """Draws nothing yet.

    Args:
      name: key of CONFIGS.
      split: 'train', 'validation' or 'test'; no scene is in two of them.
      seed: another seed is other scenes.
      tasks: which to ask, in this order; None is all that need a look-up. A
        name like 'colour_twin' asks the twins alone.
      twins: follow each look-up by its twin.
      scenes: number of scenes.
      config: replaces CONFIGS[name].

    Raises:
      UserError: no such name, split or task.
    """
    if name not in CONFIGS:
      raise errors.UserError(
        f'--data={name}: no such scenes; there are {", ".join(CONFIGS)}'
      )
    self.name = name
    self.split = split
    self.seed = seed
    self.config = config or CONFIGS[name]
    self.n_scenes = scenes
    scene_lib.generator(self.config, seed, split, 0, 'check')
    known = [
      task + end for end in ('', vocab.TWIN) for task in self.config.tasks
    ]
    self.tasks = tuple(self.config.tasks if tasks is None else tasks)
    for task in self.tasks:
      if task not in known:
        raise errors.UserError(
          f'--tasks: {name} has no task {task!r}; there are {", ".join(known)}'
        )
    if not self.tasks or len(set(self.tasks)) < len(self.tasks):
      raise errors.UserError(
        f'--tasks={",".join(self.tasks)}: name each task once, at least one'
      )
    # (task, number, is it the twin?) of each record of a scene
    self._asked = [
      (task.removesuffix(vocab.TWIN), number, twin)
      for task in self.tasks
      for number in range(self.config.questions)
      for twin in ([True] if _is_twin(task) else [False, True][: 1 + twins])
    ]
    if len(set(self._asked)) < len(self._asked):
      raise errors.UserError(
        f'--tasks={",".join(self.tasks)}: twins are asked already; leave out '
        'the names that end in _twin'
      )

  @property
  def per_scene(self) -> int:
    """Records of one scene."""
    return len(self._asked)

  @property
  def fingerprint(self) -> str:
    """12 hex digits over words, shapes, colours, and all settings."""
    config = dataclasses.asdict(self.config)
    if config['shift'] is None:  # the usual scenes are what they always were
      del config['shift']
    record = [
      config,
      (self.name, self.split, self.seed, self.n_scenes, self._asked),
      (vocab.words(), vocab.QUESTIONS, picture.INK_RGB, picture.GROUND_RGB),
    ]
    if self.config.seconds:
      record.append(vocab.VIDEO_QUESTIONS)
    digest = hashlib.sha256(json.dumps(record).encode())
    digest.update(glyphs.all_masks(self.config.cell).tobytes())
    return digest.hexdigest()[:12]

  def __len__(self) -> int:
    return self.n_scenes * self.per_scene

  def __getitem__(self, index: int) -> example_lib.Example:
    """The example at this index.

    Raises:
      IndexError: outside 0 .. len - 1.
    """
    if not 0 <= index < len(self):
      raise IndexError(f'{self.name}: {index} is outside 0..{len(self) - 1}')
    scene, rest = divmod(index, self.per_scene)
    return self.example(scene, *self._asked[rest])

  def cluster(self, index: int) -> str:
    """The cluster of the example at this index; draws nothing."""
    return self._cluster(index // self.per_scene)

  def _cluster(self, scene: int) -> str:
    return f'{self.name}/{self.split}/{scene:05d}'

  def layouts_identity(self) -> Sequence[object]:
    """What fingerprints cover of the layouts: nothing that a source's lacks."""
    return ['cells']

  def layouts(self, index: int) -> layouts_lib.Layouts:
    """Every cell of every page, with a mark or without, in reading order."""
    del index  # the same for all scenes
    pages, grid = self.config.pages, self.config.grid
    return layouts_lib.Layouts(
      tuple(
        cell_box(page, row, column, grid)
        for page in range(pages)
        for row in range(grid)
        for column in range(grid)
      ),
      {page: (float(grid), float(grid)) for page in range(pages)},
    )

  def example(
    self, scene: int, task: str, number: int, twin: bool = False
  ) -> example_lib.Example:
    """One question by its place.

    Args:
      scene: number of the scene.
      task: 'colour', 'shape', 'page' or 'when'.
      number: question of that task, from 0.
      twin: the twin instead.
    """
    key = (self.config, self.seed, self.split, scene)
    asked = questions.ask(*key)[task][number]
    content = scene_lib.make(*key)
    cluster = self._cluster(scene)
    ids = [f'{cluster}-{t}-{number}' for t in (task, task + vocab.TWIN)]
    target = content.marks[asked.target]
    evidence, distractors, span = (), (), None
    meta: dict[str, Any] = {'scene': scene, 'seed': self.seed}
    seconds = self.config.seconds
    if twin:
      meta['twin_of'] = ids[0]
    else:
      same = content.same(asked.target)
      own = [content.marks[i] for i in same]
      others = [i for i in range(len(content.marks)) if i not in same]
      # Marks of the target's own colour first, the hardest to tell apart; of
      # several of one thing its first before another thing's second.
      others.sort(
        key=lambda i: (
          content.marks[i].colour != target.colour,
          content.same(i).index(i),
        )
      )
      evidence = tuple(self._box(mark) for mark in own)
      span = self.config.span(own)
      distractors = tuple(self._box(content.marks[i]) for i in others)
      meta['twin'] = ids[1]
      meta['target'] = dataclasses.asdict(target)
    return example_lib.Example(
      id=ids[twin],
      source=self.name,
      split=self.split,
      task=task + vocab.TWIN if twin else task,
      media=scene_lib.media(*key),
      question=asked.twin_text if twin else asked.text,
      answers=(asked.twin_answer if twin else asked.answer,),
      cluster=cluster,
      evidence=evidence,
      distractors=distractors,
      span=span,
      clips=(example_lib.Clip(0, seconds),) if seconds else (),
      kind=self.config.kind,
      meta=meta,
    )

  def _box(self, mark: picture.Mark) -> example_lib.Box:
    margin = 0.0
    if self.config.shift is not None:
      margin = max(0.0, (1 - self.config.shift.size) / 2)
    return cell_box(mark.page, mark.row, mark.column, self.config.grid, margin)


def cell_box(
  page: int, row: int, column: int, grid: int, margin: float = 0.0
) -> example_lib.Box:
  """A cell of a page's grid, less a share of its edge on every side."""
  return example_lib.Box(
    page,
    (column + margin) / grid,
    (row + margin) / grid,
    (column + 1 - margin) / grid,
    (row + 1 - margin) / grid,
  )


def _is_twin(task: str) -> bool:
  return task.endswith(vocab.TWIN)
