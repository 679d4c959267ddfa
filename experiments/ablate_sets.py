"""Which heads an ablation cuts, and on which examples.

The examples that chose the heads are not those on which they are judged: a
ranking made here is made on another split, or on the other half of the
clusters where a data set has one split alone.
"""

import dataclasses
import json
import pathlib
from typing import Any

from corejax import errors
from corejax import groups as groups_lib
from corejax import heads as heads_lib
from corejax import ranking as ranking_lib
from corejax import selection as selection_lib
from corejax.data import example as example_lib
from corejax.data import sources as sources_lib
from corejax.experiments import config as config_lib
from corejax.experiments import pods
from corejax.experiments import resources as resources_lib


def splits(config: Any) -> tuple[str, str]:
  """(split to rank on, split to ablate on); no picture is in both.

  Raises:
    UserError: they were asked to be the same.
  """
  if config.rank_split:
    if config.rank_split == config.split:
      raise errors.UserError(
        f'--rank_split={config.rank_split} is --split too: heads would be '
        'judged on the examples that chose them; leave it out, or name another'
      )
    return config.rank_split, config.split
  others = [s for s in sources_lib.splits(config.data) if s != config.split]
  for name in ('validation', 'test'):
    if name in others:
      return name, config.split
  return f'{config.split}:1/2', f'{config.split}:2/2'


def rank_config(config: Any, folder: pathlib.Path) -> Any:
  """The rank.Config that ranks the heads of an experiment that cuts them."""
  from corejax.experiments import rank

  shared: dict[str, Any] = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config_lib.Shared)
  }
  tasks = [t.strip() for t in config.tasks.split(',') if t.strip()]
  shared.update(
    split=splits(config)[0],
    tasks=','.join(t for t in tasks if not t.endswith('_twin')),
    limit=config.rank_limit,
    out=str(folder),
    query=config.query,
    trace_steps=0,
    dry_run=False,
  )
  return rank.Config(**shared)


def groups(
  config: Any, resources: resources_lib.Resources, folder: pathlib.Path
) -> tuple[list[groups_lib.Group], str, str]:
  """The sets of heads, the intact model first.

  Args:
    config: an ablate.Config.
    resources: the model.
    folder: of the ranking that is made if none is given.

  Returns:
    (groups; which heads they are of; a caveat or '').

  Raises:
    UserError: heads or a ranking that are not this model's, k too large.
  """
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  chosen = choose(config, resources, folder)
  draws = range(config.draws)
  if chosen.heads is not None:
    made = groups_lib.plan_given(chosen.heads, *shape, draws)
    return made, chosen.told, ''
  assert chosen.ranking is not None, 'one of the two'
  endpoint = groups_lib.resolve([config.endpoint], *shape)
  if config.k:
    ks = groups_lib.resolve(config.k.split(','), *shape)
  else:
    ks, _ = groups_lib.fitting(*shape)
  ks = sorted({0, *ks, *endpoint})
  made = groups_lib.plan(chosen.ranking.score_LN, ks, draws)
  return made, chosen.told, chosen.caveat


@dataclasses.dataclass(frozen=True)
class Chosen:
  """What --heads names.

  Attributes:
    heads: one set of heads, or None.
    ranking: a ranking, or None; one of the two is there.
    told: which it is, in words.
    caveat: what a reader must know of it, or ''.
  """

  heads: heads_lib.HeadSet | None
  ranking: ranking_lib.HeadRanking | None
  told: str
  caveat: str = ''


def choose(
  config: Any, resources: resources_lib.Resources, folder: pathlib.Path
) -> Chosen:
  """Heads or a ranking; made on other examples if none is given.

  Args:
    config: a cutting.Judging with `heads`.
    resources: the model.
    folder: of the ranking that is made if none is given.

  Raises:
    UserError: heads or a ranking that are not this model's.
  """
  from corejax.experiments import rank

  shape = resources.loaded.n_layers, resources.loaded.n_heads
  given = config.heads.strip()
  if given and not _is_ranking(given):
    heads = ranking_lib.parse_heads(given, *shape, model=config.model)
    if not len(heads):
      raise errors.UserError(f'--heads={given[:60]}: no head to cut')
    return Chosen(heads, None, f'given: {heads}')
  if given:
    ranking = ranking_lib.read_for(given[1:], *shape, config.model)
    return Chosen(None, ranking, given[1:], _same_examples(config, given[1:]))
  ranked = rank.run(rank_config(config, folder))
  pods.every(True)  # the others read what process 0 has written
  ranking = (
    ranking_lib.HeadRanking.read_csv(folder)
    if ranked is None
    else ranked.ranking
  )
  told = f'{config.query} rows on {config.data}/{splits(config)[0]}: {folder}'
  return Chosen(None, ranking, told)


def _is_ranking(given: str) -> bool:
  """Is it a whole ranking, as @RUN without a selection behind it?"""
  if not given.startswith('@'):
    return False
  try:
    selection_lib.Selection.parse(given.rpartition(':')[2])
  except errors.UserError:
    return True
  return False


def _same_examples(config: Any, path: str) -> str:
  """A caveat if the ranking was made on the split that is ablated."""
  record = pathlib.Path(path) / 'run.json'
  if not record.is_file():
    return (
      f'{path} does not tell on which examples it was made: if on these, the '
      'heads are judged on the examples that chose them'
    )
  identity = json.loads(record.read_text()).get('identity', {})
  ours = (config.data, config.split, config.seed)
  if tuple(identity.get(n) for n in ('data', 'split', 'seed')) == ours:
    return (
      f'{path} was made on {config.data}/{config.split} too: the heads are '
      'judged on the examples that chose them'
    )
  return ''


def judged(config: Any) -> example_lib.Source:
  """What heads are judged on."""
  return _load(config, splits(config)[1], config.limit)


def sources(config: Any) -> tuple[example_lib.Source, example_lib.Source]:
  """(what is ablated, what means and donors come from)."""
  return judged(config), _load(config, splits(config)[0], config.reference)


def _load(config: Any, split: str, limit: int) -> example_lib.Source:
  named = any(t.strip().endswith('_twin') for t in config.tasks.split(','))
  twins = config.twins and sources_lib.has_twins(config.data) and not named
  return resources_lib.load_source(
    dataclasses.replace(config, split=split, limit=limit), twins
  )
