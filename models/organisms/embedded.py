"""The models that come with corejax, by the names that `--checkpoint` takes.

scenes-8x8, ...   trained on the scenes; their folders lie here (of which family
                  each is, the registry says: registry.shipped)
planted           weights set by hand, with known heads; written on first use
"""

import json
import os
import pathlib

from corejax.models.organisms import planted

DEFAULT = 'scenes-8x8'
_HERE = pathlib.Path(__file__).parent


def names() -> tuple[str, ...]:
  """All of them, the default first."""
  trained = {path.parent.name for path in _HERE.glob('*/config.json')}
  return (DEFAULT, *sorted(trained - {DEFAULT}), 'planted')


def folder(name: str) -> pathlib.Path | None:
  """The checkpoint folder of this model; None if there is none of this name.

  'planted' is written once into the user's cache ($XDG_CACHE_HOME/corejax).
  """
  if name not in names():
    return None
  if name != 'planted':
    return _HERE / name
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  made = pathlib.Path(cache) / 'corejax' / f'planted-{planted.VERSION}'
  if not (made / 'config.json').exists():
    planted.write(made, seed=0)
  return made


def describe(made: pathlib.Path) -> str:
  """What the model is, in a line."""
  return json.loads((made / 'corejax.json').read_text())['description']
