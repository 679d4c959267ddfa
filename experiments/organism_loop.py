"""The training loop: stages in turn, checkpoints, and where to go on.

A checkpoint holds all that a step changes and the two numbers from which the
schedule follows (step, moved); data are a function of the step. So a run that
was killed continues to the same weights bit for bit.
"""

from collections.abc import Callable
import csv
import dataclasses
import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import organism_data as data
from corejax.experiments import organism_schedule as schedule
from corejax.experiments import organism_training as training
from corejax.experiments import runs
from corejax.models import orbax_errors
from corejax.models import pixels
from corejax.models.organisms import trained

SPLIT = 'train'
_ALIGN_PAGES = 64  # a step of stage `align`
HISTORY = 'history.csv'
CHECKPOINTS = 'checkpoints'


@dataclasses.dataclass(frozen=True)
class Job:
  """What is trained how.

  Attributes:
    model: where it starts, of a family of trained.KINDS.
    spec: the pixel processing of its checkpoint.
    plan: lengths of the stages.
    rates: learning rates.
    scenes: pictures and documents each in a step.
    seed: of the scenes.
    save_every: steps between two checkpoints.
  """

  model: Any
  spec: pixels.PixelSpec
  plan: schedule.Plan
  rates: training.Rates
  scenes: int
  seed: int
  save_every: int


@dataclasses.dataclass
class _Place:
  """How far a run has come."""

  state: training.State
  step: int = 0
  moved: int = -1


class Saved:
  """The checkpoints of a run, the last two.

  All arrays are written as one transaction: on a full disk one thing fails,
  once. Orbax's default, a write for every array, closes its event loop at the
  first that fails, and each that is still under way then prints a traceback
  of the closed loop. Hence also no files beside the arrays (of shardings and
  of array metadata), which nothing here reads.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    # Here, not above: orbax registers flags when it is imported.
    import orbax.checkpoint as ocp

    self._ocp = ocp
    arrays = ocp.type_handlers.ArrayHandler(
      enable_write_sharding_file=False, array_metadata_store=None
    )
    # Without a limit of the bytes under way, which PyTreeCheckpointHandler
    # alone would set: with one there is no transaction.
    tree = ocp.BasePyTreeCheckpointHandler(
      type_handler_registry=ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays)
      )
    )
    self._manager = ocp.CheckpointManager(
      folder.resolve(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
      ),
      item_handlers=ocp.PyTreeCheckpointHandler(handler_impl=tree),
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def write(self, place: _Place) -> None:
    """Saves, whole or not at all; a step that is there stays as it is.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    if place.step in self._manager.all_steps():
      return
    tree = _tree(place)
    with orbax_errors.told(
      lambda why: (
        f'{self._folder}: step {place.step} cannot be saved ({why}); earlier '
        'checkpoints are kept: make room and run the same command again'
      )
    ):
      self._manager.save(place.step, args=self._ocp.args.PyTreeSave(tree))

  def restore(self, place: _Place) -> None:
    """Puts the last checkpoint, if there is any, into `place`.

    Raises:
      UserError: it cannot be read; the message says to remove it.
    """
    step = self._manager.latest_step()
    if step is None:
      return
    like = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, _tree(place))
    with orbax_errors.told(
      lambda why: (
        f'{self._folder / str(step)}: not a readable checkpoint ({why}); '
        'remove this folder and run the same command again'
      )
    ):
      placed = self._ocp.checkpoint_utils.construct_restore_args(like)
      tree = self._manager.restore(
        step, args=self._ocp.args.PyTreeRestore(like, restore_args=placed)
      )
    leaves, shape = jax.tree.flatten(place.state)
    place.state = jax.tree.unflatten(
      shape, [jnp.asarray(tree['state'][str(i)]) for i in range(len(leaves))]
    )
    place.step, place.moved = (int(tree[name]) for name in ('step', 'moved'))


def _tree(place: _Place) -> dict[str, Any]:
  """As it is saved: leaves by number, since optax's own classes may change."""
  return {
    'state': {str(i): x for i, x in enumerate(jax.tree.leaves(place.state))},
    'step': jnp.asarray(place.step, jnp.int32),
    'moved': jnp.asarray(place.moved, jnp.int32),
  }


class _History:
  """One line every `check` steps: loss and running accuracies."""

  def __init__(self, folder: runs.RunFolder, step: int):
    self._folder = folder
    self._rows = []
    path = folder.path / HISTORY
    if step and path.exists():
      with path.open(newline='') as file:
        kept = [row for row in csv.DictReader(file) if int(row['step']) <= step]
      self._rows = kept

  def add(self, place: _Place, stage: str, loss: jax.Array) -> None:
    skill = dict(zip(data.TASKS, np.asarray(place.state.skill_A).tolist()))
    self._rows.append(
      {'step': place.step, 'stage': stage, 'loss': f'{float(loss):.5f}'}
      | {task: f'{share:.4f}' for task, share in skill.items()}
    )

  def write(self) -> None:
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, ['step', 'stage', 'loss', *data.TASKS])
    writer.writeheader()
    writer.writerows(self._rows)
    self._folder.write(HISTORY, text.getvalue())


def _one_step(job: Job, table: jax.Array, place: _Place) -> jax.Array:
  """Makes the step `place.step`; returns the loss."""
  step, rate = place.step, job.plan.rate(place.step, place.moved)
  if job.plan.stage(step, place.moved) == 'align':
    packed = data.pack(1, job.seed, SPLIT, step * _ALIGN_PAGES, _ALIGN_PAGES)
    glyph_MI, colour_MI = data.captions(packed.cell_MI)
    place.state, loss = training.align_step(
      place.state,
      job.model,
      table,
      packed.cell_MI,
      glyph_MI,
      colour_MI,
      np.float32(rate),
      rates=job.rates,
    )
    return loss
  kind = trained.kind_of(job.model)
  batches = [
    (
      data.pack(pages, job.seed, SPLIT, step * job.scenes, job.scenes, kind),
      data.layout(pages, kind),
    )
    for pages in (1, job.plan.pages(step, place.moved))
  ]
  place.state, loss = training.answer_step(
    place.state, job.model, table, batches, np.float32(rate), rates=job.rates
  )
  return loss


def _give_up(job: Job, place: _Place) -> errors.UserError:
  skill = zip(data.TASKS, np.asarray(place.state.skill_A).tolist())
  told = ', '.join(f'{task} {share:.2f}' for task, share in skill)
  return errors.UserError(
    f'after {place.step} steps not every task is answered ({told}; '
    f'{job.plan.skill} is needed): give more --few_steps, another --seed or '
    'a larger --size'
  )


def train(
  job: Job, folder: runs.RunFolder, check: Callable[[], None]
) -> tuple[Any, int]:
  """Trains to the end, from wherever the folder's checkpoints are.

  Args:
    job: what is trained.
    folder: the run.
    check: called between steps; a Preempted that it raises ends the run with
      its state saved.

  Returns:
    (the trained model, steps made).

  Raises:
    UserError: stage `few` ended without every task being answered.
  """
  kind = trained.kind_of(job.model)
  table = jnp.asarray(kind.table(data.cells(job.spec)))
  place = _Place(training.start(job.model, job.rates))
  with Saved(folder.path / CHECKPOINTS) as saved:
    saved.restore(place)
    history = _History(folder, place.step)
    try:
      _stages(job, table, place, saved, history, check)
    except (cli_lib.Preempted, errors.UserError):
      history.write()
      saved.write(place)
      raise
    history.write()
    saved.write(place)
  return training.model_of(job.model, place.state.params), place.step


def _stages(job, table, place, saved, history, check) -> None:
  plan = job.plan
  while (stage := plan.stage(place.step, place.moved)) != 'done':
    first, total = {
      'align': (0, plan.align_steps),
      'few': (plan.align_steps, plan.few_steps),
      'many': (place.moved, plan.many_steps),
    }[stage]
    with runs.Progress(stage, total, place.step - first) as progress:
      while plan.stage(place.step, place.moved) == stage:
        check()
        if stage == 'few' and place.step - first >= total:
          raise _give_up(job, place)
        loss = _one_step(job, table, place)
        place.step += 1
        progress.advance(1)
        if place.step % plan.check == 0:
          history.add(place, stage, loss)
        if stage == 'few' and plan.moves(
          place.step, np.asarray(place.state.skill_A)
        ):
          place.moved = place.step
        if place.step % job.save_every == 0:
          # In this order: lines beyond the checkpoint are dropped on resuming,
          # lines that are missing could not be made again.
          history.write()
          saved.write(place)
