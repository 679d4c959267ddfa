"""From settings to the things a run works on: devices, model, data."""

from collections.abc import Callable
import dataclasses
import logging
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corejax import attention
from corejax import errors
from corejax.data import boxes
from corejax.data import delivery
from corejax.data import example as example_lib
from corejax.data import sources
from corejax.experiments import config as config_lib
from corejax.kernels import dispatch
from corejax.models import checkpoint as checkpoint_lib
from corejax.models import registry
from corejax.models.organisms import embedded as embedded_lib

_AXES: tuple[str, ...] = ('data', 'model')
_MESH_PART = re.compile(r'(data|model):([1-9]\d{0,4})', re.ASCII)


def quiet() -> None:
  """Drops lines about accelerators and a torch that nobody misses."""
  logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')


def parse_mesh(text: str) -> dict[str, int]:
  """`data:2,model:4` -> {'data': 2, 'model': 4}; an axis left out is 1.

  Raises:
    UserError: the text is no mesh.
  """
  sizes = dict.fromkeys(_AXES, 1)
  seen = set()
  for part in text.split(','):
    match = _MESH_PART.fullmatch(part.strip())
    if not match or match[1] in seen:
      raise errors.UserError(
        f'--mesh={text[:60]}: {part.strip()[:40]!r} is not axis:size; write '
        'each of data and model at most once, as data:2,model:4'
      )
    seen.add(match[1])
    sizes[match[1]] = int(match[2])
  return sizes


def make_mesh(text: str) -> jax.sharding.Mesh | None:
  """The mesh that `--mesh` asks for; None without one.

  Raises:
    UserError: no mesh, or another number of devices than there are.
  """
  if not text:
    if jax.process_count() > 1:
      raise errors.UserError(
        f'--mesh: {jax.process_count()} processes need one, as '
        f'data:{len(jax.devices())}'
      )
    return None
  sizes = parse_mesh(text)
  shape = tuple(sizes[axis] for axis in _AXES)
  devices = jax.devices()
  if int(np.prod(shape)) > len(devices):
    raise errors.UserError(
      f'--mesh={text}: needs {np.prod(shape)} devices, there are '
      f'{len(devices)} ({devices[0].platform})'
    )
  if jax.process_count() > 1 and int(np.prod(shape)) < len(devices):
    raise errors.UserError(
      f'--mesh={text}: several processes must use all {len(devices)} devices'
    )
  return jax.make_mesh(
    shape,
    _AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=devices[: int(np.prod(shape))],
  )


def spread(tree: Any, mesh: jax.sharding.Mesh, leading: str | None) -> Any:
  """Puts every array on the mesh, its first axis over the axis `leading`.

  Every process holds the whole arrays and hands over the rows it owns, by the
  sharding's own index map.
  """
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(leading)
  )

  def put(array):
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(put, tree)


@dataclasses.dataclass(frozen=True)
class Resources:
  """What a run works on.

  Attributes:
    loaded: the model, with its processor.
    source: the data.
    attend: the attention to hand to the model.
    tower_attend: to its tower, whose heads the mesh need not divide.
    mesh: None on one device.
    precision: of matrix products; float32 means float32, while jax's default
      is bfloat16 passes on a TPU and TF32 on a GPU.
    embedded: a line on the model if it comes with corejax, or ''.
    video_positions: the setting; '' is the family's own.
  """

  loaded: registry.Loaded
  source: example_lib.Source
  attend: attention.Attend
  tower_attend: attention.Attend
  mesh: jax.sharding.Mesh | None
  precision: str
  embedded: str
  video_positions: str = ''

  def describe(self) -> dict:
    """What run.json says of them."""
    device = jax.devices()[0]
    return {
      'model': self.loaded.key,
      'embedded': self.embedded,
      'layers': self.loaded.n_layers,
      'heads': self.loaded.n_heads,
      'kv_heads': self.loaded.n_kv_heads,
      'device': f'{len(jax.devices())} x {device.device_kind}',
      'mesh': dict(self.mesh.shape) if self.mesh else None,
      'video_as': delivery.of(self.source) or None,
      'box_answers': boxes.of(self.source) or None,
    }

  def check_batch(self, size: int) -> None:
    """Refuses a batch size that does not divide over the mesh.

    Raises:
      UserError: it does not.
    """
    n_data = self.mesh.shape['data'] if self.mesh else 1
    if size % n_data:
      raise errors.UserError(
        f'--batch_size={size}: does not divide over data:{n_data} of --mesh; '
        'give a multiple'
      )

  def identity(self) -> dict:
    """Fingerprints of whatever decides a result."""
    templates = self.loaded.processor.templates
    named = {}
    if self.video_positions:
      named['video_positions'] = self.video_positions
    return {
      'checkpoint_fingerprint': self.loaded.fingerprint,
      'data_fingerprint': self.source.fingerprint,
      'templates': {kind: t.hash for kind, t in sorted(templates.items())},
      **named,
    }


def precision(dtype: str) -> str:
  """Of matrix products; see Resources."""
  return 'highest' if dtype == 'float32' else 'default'


def load_source(
  config: config_lib.Shared,
  twins: bool = False,
  alter: Callable[[Any], Any] | None = None,
) -> example_lib.Source:
  """The data that the settings name.

  Args:
    config: the settings.
    twins: with twins, if there are any.
    alter: of drawn scenes, as sources.load takes it.
  """
  tasks = [t.strip() for t in config.tasks.split(',') if t.strip()]
  return sources.load(
    config.data,
    split=config.split,
    seed=config.seed,
    tasks=tasks or None,
    twins=twins,
    limit=config.limit or None,
    data_dir=config.data_dir,
    pages=config.pages,
    dpi=config.dpi,
    split_by=config.split_by,
    **_box_answers(config),
    evidence=config.evidence,
    frames=config.frames,
    missed=config.missed,
    depth=config.depth,
    video_as=video_as(config),
    alter=alter,
  )


def video_as(config: config_lib.Shared) -> str:
  """'clip' or 'pictures': how videos are handed over to the model.

  Raises:
    UserError: clips, of a family that reads none.
  """
  reads = registry.get(config.model).video
  if config.video_as == delivery.CLIP and not reads:
    raise errors.UserError(
      f'--video_as=clip: --model={config.model} reads no videos; give '
      '--video_as=pictures, or a family of --list_models that does'
    )
  if config.video_as == 'auto':
    return delivery.CLIP if reads else delivery.PICTURES
  return config.video_as


def _box_answers(config: config_lib.Shared) -> dict[str, Any]:
  """How boxes are written, and at which size: of sources.load.

  Raises:
    UserError: in pixels of the resized picture, of a family that resizes none.
  """
  if config.data not in boxes.SOURCES:
    return {}
  family = registry.get(config.model)
  asked = config.box_answers
  if asked == boxes.AUTO:
    asked = family.box_answers
  if asked != 'resized':
    return {'box_answers': asked}
  if family.resized is None:
    raise errors.UserError(
      f'--box_answers=resized: pictures do not keep their shape in '
      f'--model={config.model}; give another, or auto'
    )
  resized = family.resized(checkpoint(config)[0])
  return {'box_answers': asked, 'resized': resized}


def checkpoint(config: config_lib.Shared) -> tuple[str | pathlib.Path, str]:
  """What --checkpoint names, and a line on it if it comes with corejax.

  A folder wins over an embedded model of the same name, and both over a hub id.

  Raises:
    UserError: none is named, and none of the family comes with corejax.
  """
  name = config.checkpoint or next(iter(registry.get(config.model).trained), '')
  if not name:
    raise errors.UserError(
      f'--model={config.model}: no weights of this family come with corejax; '
      'name a folder or a hub id by --checkpoint'
    )
  if not config.checkpoint or checkpoint_lib.local(name) is None:
    folder = embedded_lib.folder(name)
    if folder is not None:
      return folder, embedded_lib.describe(folder)
  return name, ''


def load_processor(config: config_lib.Shared) -> registry.Processor:
  """The processor alone: what a model is shown, without its weights.

  Raises:
    UserError: see `load`.
  """
  quiet()
  family = registry.get(config.model)
  return family.load_processor(
    checkpoint(config)[0],
    image_policy=config.image_policy,
    **_video_positions(config, family),
  )


def _video_positions(
  config: config_lib.Shared, family: registry.Family
) -> dict[str, str]:
  """The keyword, where the settings say something that the family knows."""
  if not config.video_positions:
    return {}
  if config.video_positions not in family.video_positions:
    known = ', '.join(family.video_positions) or 'none: leave the flag out'
    raise errors.UserError(
      f'--video_positions={config.video_positions}: {config.model} knows '
      f'{known}'
    )
  return {'video_positions': config.video_positions}


def load(
  config: config_lib.Shared, source: example_lib.Source | None = None
) -> Resources:
  """Everything that the settings name.

  Args:
    config: the settings.
    source: replaces the data that they name.

  Raises:
    UserError: something named is not there or not usable.
  """
  quiet()
  family = registry.get(config.model)
  mesh = make_mesh(config.mesh)
  if source is None:
    source = load_source(config)
  folder, embedded = checkpoint(config)
  loaded = family.load(
    folder,
    dtype=jnp.dtype(config.dtype),
    mesh=mesh,
    image_policy=config.image_policy,
    **_video_positions(config, family),
  )
  attend = tower_attend = dispatch.attend()
  if mesh is not None:
    tower_attend = dispatch.sharded(attend, mesh, uneven=True)
    attend = dispatch.sharded(attend, mesh)
  return Resources(
    loaded=loaded,
    source=source,
    attend=attend,
    tower_attend=tower_attend,
    mesh=mesh,
    precision=precision(config.dtype),
    video_positions=config.video_positions,
    embedded=embedded,
  )
