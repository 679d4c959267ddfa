"""What --list_models and --list_data print."""

from corejax.data import sources
from corejax.models import registry
from corejax.models.organisms import embedded


def models() -> str:
  """The status matrix of the model families, and what is embedded."""
  lines = [
    "--model               text backbones; towers; parity (every head's "
    "attention against transformers', float32); trained weights; media"
  ]
  for key in registry.keys():
    family = registry.get(key)
    trained = ', '.join(family.trained) or 'none'
    video = 'yes' if family.video else 'no'
    lines.append(
      f'{key:21} {", ".join(family.backbones)}; {", ".join(family.towers)}; '
      f'parity {registry.PARITY:.0e}; trained: {trained}; '
      f'image yes, video {video}'
    )
  lines.append('\n--checkpoint          embedded models, with their --model')
  shipped = registry.shipped()
  for name in embedded.names():
    folder = embedded.folder(name)
    if folder is not None:
      key = shipped.get(name, registry.keys()[0])
      lines.append(f'{name:21} {key}: {embedded.describe(folder)}')
  return '\n'.join(lines)


def data() -> str:
  """The data sets, one line each."""
  lines = ['--data             what it is']
  for name, text in sources.catalogue().items():
    lines.append(f'{name:18} {text}')
  return '\n'.join(lines)
