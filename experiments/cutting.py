"""Every example under every set of heads: what ablate and proxy share.

settings -> store, identity     what is cut, and what the outcomes depend on
fill                            measures the parts that are missing
load                            parts -> outcomes, rows, rejected records
swept                           all of it, for some sets, in a run folder
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from corejax import errors
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax import effects as effects_lib
  from corejax import groups as groups_lib
  from corejax import parts as parts_lib
  from corejax.data import example as example_lib
  from corejax.experiments import cli as cli_lib
  from corejax.experiments import resources as resources_lib
  from corejax.experiments import runs as runs_lib
  from corejax.experiments import sweep as sweep_lib

setting = config_lib.setting

MODES = (
  'zero',
  'mean',
  'resample',
  'uniform',
  'knockout_evidence',
  'knockout_visual',
)


@dataclasses.dataclass(frozen=True)
class Judging(config_lib.Shared):
  """Settings of an experiment that judges heads on other examples."""

  query: str = setting(
    'last',
    'rows by which heads are ranked, where they are',
    ('question', 'last', 'answer'),
  )
  rank_split: str = setting(
    '',
    "split to rank on, and to take means and donors from; '' is another one "
    'than --split, or the half of it that is not judged on',
  )
  rank_limit: int = setting(400, 'records to rank on; 0 is all')
  draws: int = setting(10, 'draws of each random group')
  twins: bool = setting(
    True, 'ask the twin of each question too, if it has one'
  )
  limit: int = setting(800, 'use the first so many records; 0 is all')
  batch_size: int = setting(32, 'examples per forward')

  def __post_init__(self):
    super().__post_init__()
    if self.batch_size < 1:
      raise errors.UserError(f'--batch_size={self.batch_size}: give 1 or more')
    for name in ('draws', 'rank_limit'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; give 0 or more'
        )


@dataclasses.dataclass(frozen=True)
class Settings(Judging):
  """Settings of an experiment that cuts heads."""

  mode: str = setting('zero', 'what a cut head writes or reads', MODES)
  phase: str = setting(
    'prefill+decode',
    'when it is cut: decode spares the prompt',
    ('prefill+decode', 'decode'),
  )
  rows: str = setting(
    'all',
    'query rows in which it is cut: query is what RAM measures',
    ('all', 'query'),
  )
  answers: str = setting(
    'forced',
    'an answer is right if every token of it is the likeliest (forced), or by '
    "the data's own rule on what is decoded greedily (generated)",
    ('forced', 'generated'),
  )
  max_tokens: int = setting(32, 'of a generated answer')
  reference: int = setting(64, 'examples that means and donors are taken from')

  def __post_init__(self):
    super().__post_init__()
    for name in ('max_tokens', 'reference'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    if self.mode == 'resample' and self.answers == 'generated':
      raise errors.UserError(
        '--mode=resample --answers=generated: a donor has no rows for words '
        'that are being generated; use --answers=forced'
      )


def start(
  settings: Settings, stop: cli_lib.Stop
) -> tuple[resources_lib.Resources, example_lib.Source]:
  """(the model with the data that are answered, data for means and donors).

  Raises:
    UserError: something outside is wrong, or there are no records.
  """
  with stop.at_once():
    from corejax.experiments import ablate_sets
    from corejax.experiments import pods
    from corejax.experiments import resources as resources_lib

    pods.initialize()
  source, reference = ablate_sets.sources(settings)
  with stop.at_once(pods.is_alone()):
    resources = resources_lib.load(settings, source)
  resources.check_batch(settings.batch_size)
  if not len(source):
    raise errors.UserError(
      f'--data={settings.data} --split={source.split}: no records'
    )
  return resources, reference


def identity(
  settings: Settings, resources: resources_lib.Resources
) -> dict[str, Any]:
  """What the outcomes depend on, but for the sets of heads."""
  import corejax
  from corejax.experiments import ablate_sets

  names = (
    'model data split tasks pages dpi limit seed dtype image_policy mode phase '
    'rows answers max_tokens reference batch_size twins'
  )
  return {
    'corejax': corejax.__version__,
    **{name: getattr(settings, name) for name in names.split()},
    'rank_split': ablate_sets.splits(settings)[0],
    **resources.identity(),
  }


def options(settings: Settings) -> sweep_lib.Options:
  """What is done to the heads, as a sweep takes it."""
  from corejax.experiments import sweep

  return sweep.Options(
    mode=settings.mode,
    phase=settings.phase,
    rows=settings.rows,
    answers=settings.answers,
    max_tokens=settings.max_tokens,
    batch_size=settings.batch_size,
  )


def store(
  settings: Settings,
  source: example_lib.Source,
  out: pathlib.Path,
  run_identity: dict[str, Any],
) -> parts_lib.PartStore:
  """Where the outcomes of each batch go."""
  from corejax import parts
  from corejax.experiments import runs

  n_parts = -(-len(source) // settings.batch_size)
  return parts.PartStore(
    out / 'scores', n_parts, runs.fingerprint(run_identity)
  )


def fill(
  settings: Settings,
  resources: resources_lib.Resources,
  reference: example_lib.Source,
  groups: Sequence[groups_lib.Group],
  parts: parts_lib.PartStore,
  out: pathlib.Path,
  stop: cli_lib.Stop,
) -> None:
  """Measures the parts that are missing.

  Args:
    settings: of the ablation.
    resources: the model, and the data that are answered.
    reference: data that means and donors are taken from.
    groups: the sets of heads, the first one empty.
    parts: where the outcomes go.
    out: the run folder.
    stop: asked between batches.

  Raises:
    UserError: an ablation that does nothing to these answers.
  """
  from corejax.experiments import measure
  from corejax.experiments import session
  from corejax.experiments import sweep

  source = resources.source
  runner = sweep.Runner(
    resources, groups, options(settings), reference, settings.reference
  )
  session.fill(
    parts,
    list(measure.batches(len(source), settings.batch_size)),
    settings.max_bad * len(source),
    stop,
    read=lambda indices, closing: sweep.read(
      resources, source, indices, closing
    ),
    n_rejected=lambda batch: len(batch.rejected),
    start=lambda batch: (batch, runner.start(batch)),
    finish=lambda started: (
      {'rows': started[0].rows(), 'rejected': started[0].rejected},
      started[1](),
    ),
    trace=session.trace(out, settings.trace_steps),
  )


def load(
  settings: Settings,
  folder: runs_lib.RunFolder,
  parts: parts_lib.PartStore,
  resources: resources_lib.Resources,
  groups: Sequence[groups_lib.Group],
) -> tuple[effects_lib.Outcomes, list[dict], list[dict]]:
  """(outcomes, rows of examples.jsonl, rejected records), and writes both.

  Raises:
    UserError: too many records were rejected, or a part is unreadable.
  """
  import numpy as np

  from corejax import effects
  from corejax.experiments import session

  read, rows, rejected = session.read_parts(
    folder, parts, len(resources.source), settings.max_bad
  )
  outcomes = effects.Outcomes(
    groups=groups,
    score_XE=np.concatenate([arrays['score'] for arrays in read], 1),
    logprob_XE=np.concatenate([arrays['logprob'] for arrays in read], 1),
    tasks=[row['task'] for row in rows],
    clusters=[row['cluster'] for row in rows],
    twin_E=np.array([row['twin'] for row in rows], bool),
    n_layers=resources.loaded.n_layers,
    n_heads=resources.loaded.n_heads,
  )
  return outcomes, rows, rejected


def swept(
  settings: Settings,
  resources: resources_lib.Resources,
  source: example_lib.Source,
  reference: example_lib.Source,
  groups: Sequence[groups_lib.Group],
  out: pathlib.Path,
  stop: cli_lib.Stop,
) -> tuple[effects_lib.Outcomes, list[dict]]:
  """(outcomes, rows of examples.jsonl) of some sets; measures what lacks.

  In one process.

  Args:
    settings: of the ablation.
    resources: the model.
    source: what is answered.
    reference: data that means and donors are taken from.
    groups: the sets of heads, the first one empty.
    out: a run folder of their own.
    stop: asked between batches.

  Raises:
    UserError: see `fill` and `load`; the folder holds another run.
  """
  from corejax.experiments import session

  resources = dataclasses.replace(resources, source=source)
  run_identity = {
    **identity(settings, resources),
    'sets': [f'{g.name} {g.k} {g.seed}: {g.heads}' for g in groups],
  }
  parts = store(settings, source, out, run_identity)
  record = {'experiment': 'cut', **resources.describe()}
  with session.opened(
    out, run_identity, record, settings.resume, parts, ()
  ) as folder:
    assert folder is not None, 'one process'
    fill(settings, resources, reference, groups, parts, out, stop)
    outcomes, rows, _ = load(settings, folder, parts, resources, groups)
    return outcomes, rows


def write_outcomes(
  folder: runs_lib.RunFolder,
  outcomes: effects_lib.Outcomes,
  rows: Sequence[dict],
) -> None:
  """outcomes.npz: score and logprob [sets, examples], and whose they are."""
  import io

  import numpy as np

  buffer = io.BytesIO()
  np.savez(
    buffer,
    score=outcomes.score_XE,
    logprob=outcomes.logprob_XE,
    example_ids=np.array([row['id'] for row in rows]),
    sets=np.array([str(g.heads) for g in outcomes.groups]),
  )
  folder.write('outcomes.npz', buffer.getvalue())
