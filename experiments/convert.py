"""Keep a checkpoint's parameters as they run: stacked, cast, cut (Orbax).

    python -m experiments.convert --checkpoint=DIR --dtype=bfloat16 --out=COPY
    python -m experiments.rank --checkpoint=COPY --dtype=bfloat16

A copy is loaded like the checkpoint that it was made of, on any --mesh; it must
be asked for in its own --dtype.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

setting = config_lib.setting


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of a conversion."""

  model: str = setting('llava_flax', 'model family; see rank --list_models')
  checkpoint: str = setting('', 'Hugging Face checkpoint: folder, or hub id')
  dtype: str = setting(
    'float32', 'of the copy', ('float32', 'bfloat16', 'float16')
  )
  mesh: str = setting('', "devices, as data:1,model:4; '' is one device")
  out: str = setting('', 'folder of the copy, new or empty')

  def __post_init__(self):
    for name in ('checkpoint', 'out'):
      if not getattr(self, name):
        raise errors.UserError(f'--{name}: name a folder')


def run(config: Config) -> pathlib.Path:
  """Loads the checkpoint and writes its copy.

  Returns:
    The copy's folder.

  Raises:
    UserError: no such checkpoint, or the copy cannot be written.
  """
  import jax.numpy as jnp

  from corejax.experiments import pods
  from corejax.experiments import resources as resources_lib
  from corejax.models import checkpoint as checkpoint_lib
  from corejax.models import converted
  from corejax.models import registry

  resources_lib.quiet()
  pods.initialize()
  source = checkpoint_lib.resolve(config.checkpoint)
  out = pathlib.Path(config.out).expanduser()
  loaded = registry.get(config.model).load(
    source,
    dtype=jnp.dtype(config.dtype),
    mesh=resources_lib.make_mesh(config.mesh),
  )
  converted.save(source, out, loaded.model)
  if pods.is_first():
    print(f'{source} -> {out}, {config.dtype}')
  return out


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
