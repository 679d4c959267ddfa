"""What --list_models and --list_data print."""

from corejax.data import sources
from corejax.models import registry
from corejax.models.organisms import embedded


def models() -> str:
  """The status matrix of the model families, and what is embedded."""
  rows = [
    (
      '--model',
      'backbones; towers, every head tested against transformers',
      'trained weights here',
      'images',
      'video',
    )
  ]
  for key in registry.keys():
    family = registry.get(key)
    rows.append(
      (
        key,
        f'{", ".join(family.backbones)}; {", ".join(family.towers)}',
        ', '.join(embedded.trained(key)) or 'none',
        'yes',
        'yes' if family.video else 'no',
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  ]
  lines.append('\n--checkpoint   embedded models, all llava_flax')
  for name in embedded.names():
    folder = embedded.folder(name)
    if folder is not None:
      lines.append(f'{name:14} {embedded.describe(folder)}')
  return '\n'.join(lines)


def data() -> str:
  """The data sets, one line each."""
  lines = ['--data             what it is']
  for name, text in sources.catalogue().items():
    lines.append(f'{name:18} {text}')
  return '\n'.join(lines)
