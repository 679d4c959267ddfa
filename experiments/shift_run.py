"""What is measured at one level of `shift`, each part a run folder of its own.

<level>/rank   masses on the split that ranks     -> the level's own heads
<level>/ram    masses on the split that judges    -> RAM of a set of heads
<level>/cut    answers with sets of heads cut     -> accuracy, endpoint
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from corejax import effects as effects_lib
from corejax import judge as judge_lib
from corejax import scores as scores_lib
from corejax import store as store_lib
from corejax.data import example as example_lib
from corejax.experiments import ablate_sets
from corejax.experiments import cli as cli_lib
from corejax.experiments import cutting
from corejax.experiments import measure
from corejax.experiments import resources as resources_lib
from corejax.experiments import runs
from corejax.experiments import session
from corejax.experiments import shift_levels
from corejax.experiments import step

REFERENCE, OWN = 'reference', 'own'


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """One level.

  Attributes:
    level: which.
    ranked: masses on the split that ranks.
    judged: masses on the split that judges; None of the usual scenes drawn
      anew, which are ranked alone.
    outcomes: of all sets that were cut; None likewise.
    sets: what was cut, REFERENCE and, but for the usual scenes, OWN; None
      likewise.
  """

  level: shift_levels.Level
  ranked: scores_lib.Scores
  judged: scores_lib.Scores | None = None
  outcomes: effects_lib.Outcomes | None = None
  sets: judge_lib.Sets | None = None


def masses(
  config: Any,
  resources: resources_lib.Resources,
  source: example_lib.Source,
  out: pathlib.Path,
  stop: cli_lib.Stop,
) -> scores_lib.Scores:
  """The masses of a source's look-ups; measures the parts that are missing.

  Args:
    config: a shift.Config.
    resources: the model.
    source: without twins.
    out: the run folder.
    stop: asked between batches.

  Raises:
    UserError: too many records were rejected, or the folder holds other ones.
  """
  import corejax

  resources = dataclasses.replace(resources, source=source)
  options = measure.Options(
    batch_size=config.batch_size,
    profile_set=None,
    calibrate=False,
    gradients=False,
    seed=config.seed,
  )
  identity = {
    'corejax': corejax.__version__,
    **{
      name: getattr(config, name)
      for name in 'model dtype image_policy batch_size'.split()
    },
    **resources.identity(),
  }
  batches = list(measure.batches(len(source), config.batch_size))
  store = store_lib.ScoreStore(
    out / 'scores', len(batches), runs.fingerprint(identity)
  )
  record = {'experiment': 'masses', **resources.describe()}
  runner = step.Runner(resources, config.batch_size)
  with session.opened(
    out, identity, record, config.resume, store, ()
  ) as folder:
    assert folder is not None, 'one process'
    session.fill(
      store,
      batches,
      config.max_bad * len(source),
      stop,
      read=lambda indices, closing: measure.prepare_batch(
        resources, indices, options, closing
      ),
      n_rejected=lambda batch: len(batch.rejected),
      start=lambda batch: measure.start_batch(runner, batch, options),
      finish=lambda started: store_lib.pack(
        measure.finish_batch(resources, started, options)
      ),
    )
    session.read_parts(folder, store, len(source), config.max_bad)
    return store.load()[0]


def level(
  config: Any,
  resources: resources_lib.Resources,
  at: shift_levels.Level,
  out: pathlib.Path,
  usual: Measured | None,
  stop: cli_lib.Stop,
) -> Measured:
  """Everything of one level.

  Args:
    config: a shift.Config.
    resources: the model.
    at: the level.
    out: its folder.
    usual: of the usual scenes; None for these themselves.
    stop: asked between batches.

  Raises:
    UserError: see `masses` and cutting.swept.
  """
  from corejax.experiments import shift_table

  rank_split, split = ablate_sets.splits(config)
  ranking = shift_levels.source(config, at, rank_split, config.rank_limit)
  ranked = masses(config, resources, ranking, out / 'rank', stop)
  if at.seed:
    return Measured(at, ranked)
  answered = shift_levels.source(config, at, split, config.limit, config.twins)
  looked = config.limit
  if config.twins:  # every second record
    looked = -(-config.limit // 2)
  judged = masses(
    config,
    resources,
    shift_levels.source(config, at, split, looked),
    out / 'ram',
    stop,
  )
  own_LN = shift_table.side('own', ranked, config.query).score_LN
  scores = {REFERENCE: own_LN}
  if usual is not None:
    scores = {
      REFERENCE: shift_table.side('usual', usual.ranked, config.query).score_LN,
      OWN: own_LN,
    }
  sets = judge_lib.plan(scores, config.select, range(config.draws))
  outcomes, _ = cutting.swept(
    config,
    resources,
    answered,
    shift_levels.source(config, at, rank_split, config.reference),
    sets.groups,
    out / 'cut',
    stop,
  )
  return Measured(at, ranked, judged, outcomes, sets)
