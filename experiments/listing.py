"""What --list_models and --list_data print."""

from corejax.data import sources
from corejax.models import registry


def models() -> str:
  """The status matrix of the model families."""
  lines = ['--model        backbones; towers (parity-tested, every head)']
  for key in registry.keys():
    family = registry.get(key)
    lines.append(
      f'{key:14} {", ".join(family.backbones)}; {", ".join(family.towers)}'
    )
  return '\n'.join(lines)


def data() -> str:
  """The data sets, one line each."""
  lines = ['--data             what it is']
  for name, text in sources.catalogue().items():
    lines.append(f'{name:18} {text}')
  return '\n'.join(lines)
