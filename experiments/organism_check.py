"""How often a trained organism is right, asked as any checkpoint is asked."""

from collections.abc import Callable, Mapping
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention
from corejax.data.scenes import source as scenes
from corejax.experiments import runs
from corejax.models import registry

# data set -> pages; None is the data set's own.
SETS: Mapping[str, int | None] = {
  'scenes_referring': None,
  'scenes_pages 3': 3,
  'scenes_pages 8': 8,
}
_BATCH = 32

Accuracy = dict[str, dict[str, tuple[int, int]]]


@functools.partial(jax.jit, static_argnames='forward')
def _answers(model, inputs, rows_BP, *, forward) -> jax.Array:
  out = forward(
    model, inputs, attend=attention.reference, logit_rows_BP=rows_BP
  )
  return out.logits_BPV[:, 0].argmax(-1)


def _source(name: str, split: str, n: int) -> scenes.Scenes:
  """At least n questions of every task and twin, whole scenes."""
  pages = SETS[name]
  key = name.split()[0]
  config = scenes.CONFIGS[key] if pages is None else scenes.paged(pages)
  return scenes.Scenes(
    key,
    split=split,
    twins=True,
    scenes=-(-n // config.questions),
    config=config,
  )


def accuracy(
  folder: str | os.PathLike,
  split: str,
  n: int,
  check: Callable[[], None] = lambda: None,
  key: str = 'llava_flax',
) -> Accuracy:
  """(right, asked) by data set and task, through the folder as it is.

  Args:
    folder: an HF folder.
    split: of the scenes, seed 0.
    n: least number of questions a task and data set.
    check: called between batches; may raise to end.
    key: the folder's family, of the registry.
  """
  loaded = registry.get(key).load(folder)
  counts: Accuracy = {}
  for name in SETS:
    source = _source(name, split, n)
    counts[name] = {}
    with runs.Progress(f'{name}, questions', len(source)) as progress:
      for start in range(0, len(source), _BATCH):
        check()
        indices = range(start, min(start + _BATCH, len(source)))
        examples = [source[i] for i in indices]
        for task, right in _ask(loaded, examples):
          before = counts[name].get(task, (0, 0))
          counts[name][task] = before[0] + right, before[1] + 1
        progress.advance(len(examples))
  return counts


def _ask(loaded: registry.Loaded, examples) -> list[tuple[str, int]]:
  """(task, 1 if right) of every example; short batches are filled up."""
  encoded = [loaded.processor.encode(example) for example in examples]
  filled = encoded + [encoded[0]] * (_BATCH - len(encoded))
  longest = max(len(e.tokens_T) for e in filled)
  inputs = loaded.processor.collate(
    filled,
    -(-longest // 16) * 16,
    sum(len(e.layout.size_M2) for e in filled),
  )
  rows_BP = jnp.array([[e.prompt_len - 1] for e in filled], jnp.int32)
  said = _answers(loaded.model, inputs, rows_BP, forward=loaded.forward)
  return [
    (example.task, int(answer == e.answer_A[0]))
    for example, e, answer in zip(examples, encoded, np.asarray(said))
  ]


def table(counts: Accuracy) -> str:
  """One line a data set and task."""
  return '\n'.join(
    f'{name:17} {task:12} {right / asked:.4f}  ({right} of {asked})'
    for name, tasks in counts.items()
    for task, (right, asked) in tasks.items()
  )
