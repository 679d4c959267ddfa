"""The runs of the protocol: one model's, and those over all models.

train -> rank (each data set) -> ablate (main grid: each data set; reduced
grid: scenes_pages) -> proxy (scenes_pages) -> compare (its two rankings)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Any

from corejax import errors

if TYPE_CHECKING:
  from corejax.experiments import ablate
  from corejax.experiments import compare
  from corejax.experiments import proxy
  from corejax.experiments import rank
  from corejax.experiments import train_organism

LLAVA = 'llava'
REFERRING, PAGES = DATA = 'scenes_referring', 'scenes_pages'
RANK_SPLIT, SPLIT = 'validation', 'test'
SELECT, ENDPOINT = 'top5%', '5%'
QUERY = 'last'
# Name -> flags of ablate: the reduced grid.
REDUCED = {
  'mean': {'mode': 'mean'},
  'resample': {'mode': 'resample'},
  'uniform': {'mode': 'uniform'},
  'knockout_evidence': {'mode': 'knockout_evidence'},
  'zero, query rows': {'mode': 'zero', 'rows': 'query'},
}


@dataclasses.dataclass(frozen=True)
class Made:
  """The results of one model.

  Attributes:
    name: of --models, or the checkpoint.
    family: key of the registry without _flax.
    size, seed: of a model that was trained; ('', 0) of another.
    ranked, cut: data set -> ranking, ablation of the main grid.
    reduced: name in REDUCED -> ablation.
    judged: the proxies.
    compared: its two rankings.
    folders: of `ranked` and `cut`, for the comparison over models.
  """

  name: str
  family: str
  size: str
  seed: int
  ranked: Mapping[str, rank.Result]
  cut: Mapping[str, ablate.Result]
  reduced: Mapping[str, ablate.Result]
  judged: proxy.Result
  compared: compare.Result
  folders: Sequence[str]


def parse(name: str) -> tuple[str, str, int]:
  """(family, size, seed) of a name of --models."""
  *family, size, seed = name.split('-')
  return (family[0] if family else LLAVA), size, int(seed)


def make(config: Any, out: pathlib.Path, name: str, trained: bool) -> Made:
  """Makes whatever the folders of this model lack, and reads the rest.

  Args:
    config: a reproduce.Config.
    out: the folder of all runs.
    name: of --models, or a checkpoint.
    trained: is it the former?

  Raises:
    UserError: see the experiments.
  """
  from corejax.experiments import ablate
  from corejax.experiments import compare
  from corejax.experiments import proxy
  from corejax.experiments import rank
  from corejax.models import registry

  size, seed = '', 0
  checkpoint = name
  family = registry.shipped().get(name, LLAVA).removesuffix('_flax')
  if trained:
    family, size, seed = parse(name)
    checkpoint = str(model_folder(config, out, size, seed, family))
  label = pathlib.PurePath(name).name
  common = {
    'model': f'{family}_flax',
    'checkpoint': checkpoint,
    'seed': config.seed,
    'resume': config.resume,
  }

  def folder(kind: str, *parts: str) -> str:
    return str(out / kind / '-'.join((label, *parts)).replace(', ', '-'))

  def said(result, what: str):
    if result is None:
      raise errors.UserError(
        f'{what}: nothing came back; reproduce runs in one process'
      )
    return result

  ranked, cut, reduced = {}, {}, {}
  for data in DATA:
    _say(name, 'rank', data)
    settings = rank.Config(
      **common,
      data=data,
      split=RANK_SPLIT,
      limit=config.rank_limit,
      query=QUERY,
      select=SELECT,
      out=folder('rank', data),
    )
    ranked[data] = said(rank.run(settings), settings.out)

  def ablated(data: str, *parts: str, **flags: Any) -> ablate.Result:
    _say(name, 'ablate', data, *parts)
    settings = ablate.Config(
      **common,
      data=data,
      split=SPLIT,
      rank_split=RANK_SPLIT,
      heads=f'@{ranked[data].out}',
      endpoint=ENDPOINT,
      limit=config.limit,
      draws=config.draws,
      out=folder('ablate', data, *parts),
      **flags,
    )
    return said(ablate.run(settings), settings.out)

  for data in DATA:
    cut[data] = ablated(data, k=config.k)
  for what, flags in REDUCED.items():
    reduced[what] = ablated(PAGES, what, k=ENDPOINT, **flags)
  _say(name, 'proxy', PAGES)
  judged = proxy.Config(
    **common,
    data=PAGES,
    split=SPLIT,
    rank_split=RANK_SPLIT,
    rank_limit=config.rank_limit,
    query=QUERY,
    select=SELECT,
    limit=config.limit,
    draws=config.draws,
    bootstrap=config.bootstrap,
    permutations=config.permutations,
    out=folder('proxy', PAGES),
  )
  _say(name, 'compare')
  compared = compare.Config(
    runs=tuple(str(ranked[data].out) for data in DATA),
    select=SELECT,
    query=QUERY,
    bootstrap=config.bootstrap,
    permutations=config.permutations,
    out=folder('compare'),
  )
  return Made(
    name=name,
    family=family,
    size=size,
    seed=seed,
    ranked=ranked,
    cut=cut,
    reduced=reduced,
    judged=said(proxy.run(judged), judged.out),
    compared=compare.run(compared),
    folders=[
      *(str(result.out) for result in ranked.values()),
      *(str(result.out) for result in cut.values()),
    ],
  )


def compare_all(config: Any, out: pathlib.Path, made: Sequence[Made]) -> None:
  """Sparsity, depth and curves of all models side by side.

  Heads of models that were trained apart have no counterpart in one another, so
  rankings are not compared head by head.
  """
  from corejax.experiments import compare

  _say('all models', 'compare')
  compare.run(
    compare.Config(
      runs=tuple(folder for each in made for folder in each.folders),
      select=SELECT,
      query=QUERY,
      parts=f'{compare.STRUCTURE},{compare.CURVES}',
      bootstrap=config.bootstrap,
      permutations=config.permutations,
      out=str(out / 'compare' / 'all'),
      resume=False,  # cheap, and last time it may have been other models
    )
  )


def model_folder(
  config: Any, out: pathlib.Path, size: str, seed: int, family: str = LLAVA
) -> pathlib.Path:
  """The trained model, made if it is not there.

  Raises:
    UserError: --trained has no finished training of it; see train_organism.
  """
  from corejax.experiments import train_organism

  root = pathlib.Path(config.trained or out / 'train').expanduser()
  settings = train_organism.Config(model=f'{family}_flax', size=size, seed=seed)
  name = train_organism.name(settings)
  folder = root / name
  settings = dataclasses.replace(settings, out=str(folder))
  if _is_done(folder, settings):
    return folder / 'model'
  if config.trained:
    flags = '' if family == LLAVA else f'--model={settings.model} '
    raise errors.UserError(
      f'--trained={config.trained}: {folder} is no finished run of '
      f'train_organism; python -m experiments.train_organism {flags}--size='
      f'{size} --seed={seed} --out={folder} makes it'
    )
  _say(name, 'train')
  train_organism.run(settings)
  return folder / 'model'


def _is_done(folder: pathlib.Path, settings: train_organism.Config) -> bool:
  """Is it a finished training, with the protocol's settings?"""
  from corejax.experiments import train_organism

  try:
    record = json.loads((folder / 'run.json').read_text('utf-8'))
    done, held = record['state'] == 'done', record['identity']
  except FileNotFoundError:
    return False
  except (OSError, ValueError, LookupError, TypeError) as e:
    raise errors.UserError(
      f'{folder}/run.json: unreadable ({e}); remove the folder and train again'
    ) from e
  wanted = train_organism.identity(settings)
  if held != wanted:
    differ = sorted(
      f'{name}={held.get(name)}, not {value}'
      for name, value in wanted.items()
      if held.get(name) != value
    )
    raise errors.UserError(
      f'{folder}: a training with other settings than the protocol says '
      f'({"; ".join(differ) or "it has more of them"}); give another folder'
    )
  return done


def _say(name: str, *what: str) -> None:
  print(f'\n== {name}: {" ".join(what)}', flush=True)
