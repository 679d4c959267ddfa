"""One table of settings: a frozen dataclass is the config and the flags.

`Shared` holds what every experiment takes; an experiment subclasses it and
adds its own fields. `define_flags` turns the fields into absl flags on a
FlagValues that belongs to the run alone, so importing an experiment into a
program that has its own --model flag registers nothing.
"""

import dataclasses
from typing import Any

from absl import flags

from corejax import errors


def setting(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
  """A dataclass field that is also a flag."""
  return dataclasses.field(
    default=default, metadata=dict(help=help_text, choices=choices)
  )


def arguments(name: str, help_text: str) -> Any:
  """A tuple of strings that is what stands on the command line without --.

  A config has one such field at most; without one, stray arguments are refused.

  Args:
    name: of one of them, in capitals, for --help.
    help_text: what they are.
  """
  return dataclasses.field(
    default=(), metadata=dict(help=help_text, choices=(), arguments=name)
  )


def flag_fields(config_class: type[Any]) -> list[dataclasses.Field]:
  """The fields that are flags."""
  return [
    field
    for field in dataclasses.fields(config_class)
    if 'arguments' not in field.metadata
  ]


def _arguments_field(config_class: type[Any]) -> dataclasses.Field | None:
  """The field that takes what is no flag."""
  for field in dataclasses.fields(config_class):
    if 'arguments' in field.metadata:
      return field
  return None


@dataclasses.dataclass(frozen=True)
class Shared:
  """Settings that every experiment takes."""

  model: str = setting('llava_flax', 'model family; see --list_models')
  checkpoint: str = setting(
    '',
    'Hugging Face checkpoint: folder, hub id, or an embedded model (see '
    "--list_models); '' is the family's first of these",
  )
  image_policy: str = setting(
    'checkpoint',
    "pictures as the checkpoint's processor says, padded to a square (llava), "
    'as one tile each (internvl), or, where they are cut into tiles, without '
    'the tile that shows the whole once more among the evidence (detail)',
    ('checkpoint', 'pad', 'single', 'detail'),
  )
  video_positions: str = setting(
    '',
    "qwen2_vl, qwen2_5_vl: whose positions a video's tokens get, "
    'transformers-5.23 (or later), -5.17, -4.57, or paper; they differ in the '
    "time of frames and in where the text behind goes on; '' is the first",
  )
  data: str = setting(
    'scenes_referring',
    'data set; see --list_data; rank, ablate and compare take a,b,c',
  )
  data_dir: str = setting(
    '', 'folder of a data set that is not built in; of several, a=DIR,b=DIR'
  )
  split: str = setting('test', 'split of the data set')
  tasks: str = setting('', "tasks to use, comma-separated; '' is all")
  pages: int = setting(4, 'pages of a document shown at once')
  depth: str = setting(
    'any',
    'scenes_haystack: where the page with the evidence lies, 0 (first) to 1 '
    '(last), or any',
  )
  dpi: int = setting(96, 'resolution at which document pages are drawn')
  frames: int = setting(
    8, 'vidstg, scenes_video: frames of a video shown at once'
  )
  video_as: str = setting(
    'auto',
    'videos as clips, as several pictures, or (auto) as clips where the model '
    'family reads them',
    ('auto', 'clip', 'pictures'),
  )
  missed: str = setting(
    'move',
    'vidstg: where no frame shows the evidence, move one there or reject',
    ('move', 'reject'),
  )
  evidence: str = setting(
    'best',
    'what is marked as evidence, its boxes alone, or whole pages and frames',
    ('best', 'boxes', 'whole'),
  )
  split_by: str = setting(
    'umd', 'refcocog: whose division into splits', ('umd', 'google')
  )
  box_answers: str = setting(
    'auto',
    'refcocog: how a box is written, in shares of the picture, of the picture '
    'padded to a square, in thousandths, in pixels, in pixels of the picture '
    "as the model resizes it, or (auto) as the model family's is known to",
    ('auto', 'share', 'square', 'thousand', 'pixel', 'resized'),
  )
  limit: int = setting(400, 'use the first so many records; 0 is all')
  seed: int = setting(0, 'seed of scenes, bootstrap and permutations')
  dtype: str = setting(
    'float32', 'of weights and activations', ('float32', 'bfloat16')
  )
  mesh: str = setting('', "devices, as data:2,model:4; '' is one device")
  out: str = setting('', "run folder; '' is runs/<experiment>/<model>-<data>")
  resume: bool = setting(
    True, 'continue what the run folder holds; --noresume starts it over'
  )
  max_bad: float = setting(
    0.01, 'largest share of rejected records with which a run succeeds'
  )
  dry_run: bool = setting(False, 'say what would be run, write nothing')
  list_models: bool = setting(False, 'print the model families and exit')
  list_data: bool = setting(False, 'print the data sets and exit')
  trace_steps: int = setting(
    0, 'write a profiler trace of so many batches into the run folder'
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, choices = getattr(self, field.name), field.metadata['choices']
      if choices and value not in choices:
        raise errors.UserError(
          f'--{field.name}={value}: not one of {", ".join(choices)}'
        )
    for name in ('limit', 'seed', 'trace_steps'):
      if getattr(self, name) < 0:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: negative; give 0 or more'
        )
    for name in ('pages', 'dpi', 'frames'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'--{name}={getattr(self, name)}: give 1 or more'
        )
    if not 0 <= self.max_bad <= 1:
      raise errors.UserError(
        f'--max_bad={self.max_bad}: a share, so give 0 to 1'
      )


_DEFINE = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}


def define_flags(config_class: type[Any], fv: flags.FlagValues) -> None:
  """Defines one flag per field of the config class on `fv`."""
  for field in flag_fields(config_class):
    text = field.metadata['help']
    if field.metadata['choices']:
      text += f' ({" | ".join(field.metadata["choices"])})'
    _DEFINE[type(field.default)](
      field.name, field.default, text, flag_values=fv
    )


def parse(config_class: type[Any], argv: list[str]) -> Any:
  """argv (program name first) -> config.

  Raises:
    UserError: unknown flag, unreadable value, or a stray argument.
  """
  fv = flags.FlagValues()
  define_flags(config_class, fv)
  try:
    rest = fv(argv)
  except flags.Error as e:
    raise errors.UserError(f'{" ".join(str(e).split())}; see --help') from e
  values: dict[str, Any] = {
    field.name: fv[field.name].value for field in flag_fields(config_class)
  }
  taking = _arguments_field(config_class)
  if taking is not None:
    values[taking.name] = tuple(rest[1:])
  elif len(rest) > 1:
    raise errors.UserError(
      f'{rest[1]!r} is not a flag; write --name=value, see --help'
    )
  return config_class(**values)


def help_text(config_class: type[Any], title: str) -> str:
  """What --help prints."""
  lines = [title, '']
  own = {f.name for f in dataclasses.fields(Shared)}
  fields = flag_fields(config_class)
  if taking := _arguments_field(config_class):
    lines += [
      f'{taking.metadata["arguments"]} ...',
      f'      {taking.metadata["help"]}',
      '',
    ]
  for head, chosen in (
    ('Its own flags', [f for f in fields if f.name not in own]),
    ('Shared flags', [f for f in fields if f.name in own]),
  ):
    lines.append(f'{head}:')
    for field in chosen:
      choices = field.metadata['choices']
      kind = ' | '.join(choices) if choices else type(field.default).__name__
      lines.append(f'  --{field.name}  [{kind}, default {field.default!r}]')
      lines.append(f'      {field.metadata["help"]}')
    lines.append('')
  return '\n'.join(lines)
