"""`--compile_only`: a run's programs compiled for devices that are not here.

    config.json -> shapes -> the two programs of a batch, compiled for --target

    tower    one picture (on a mesh, one a row of its data axis) to its features
    step     one batch, features given, to masses and log p (step.py)

They are the functions that `rank` jits, with shapes that it would call them
with: a full batch of --batch_size examples of --length tokens, read whole (a
batch whose prompts begin alike takes less). Nothing is run, so that no weight,
no data and no device is needed, and no time is measured.
"""

from collections.abc import Callable
import dataclasses
import re
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from corejax import errors
from corejax import inputs as inputs_lib
from corejax import masks
from corejax import probe as probe_lib
from corejax import regions
from corejax.experiments import ahead_report as report_lib
from corejax.experiments import buckets
from corejax.experiments import features as features_lib
from corejax.experiments import flops as flops_lib
from corejax.experiments import resources as resources_lib
from corejax.experiments import step as step_lib
from corejax.kernels import dispatch
from corejax.kernels import targets
from corejax.models import registry
from corejax.models import sharding

_ROWS = 32  # slots for a question's rows, and for an answer's
_TOO_LARGE = re.compile(
  r'(?:Used |\()([\d.]+)([KMG])\)? (?:of [\d.]+[KMG] hbm|exceeds available HBM)'
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is asked for.

  Attributes:
    target: the devices.
    mesh: 'data:1,model:16' or '' for one device.
    dtype: of weights and activations.
    batch_size, length: examples of a batch, and tokens of each.
    picture: visual tokens of a picture where pictures keep their own size.
    profile_set: query set whose profiles are kept; None keeps none.
    gradients: differentiate by the gates too.
  """

  target: targets.Target
  mesh: str
  dtype: str
  batch_size: int
  length: int
  picture: int = 1024
  profile_set: str | None = 'question'
  gradients: bool = False


class Place:
  """Puts shapes on the target's devices."""

  def __init__(self, spec: Spec, outline: registry.Outline):
    """Checks that the mesh goes with devices, heads and batch.

    Raises:
      UserError: it does not.
    """
    sizes = resources_lib.parse_mesh(spec.mesh) if spec.mesh else None
    if sizes is not None:  # before a compiler is asked for
      _check_heads(spec, outline, sizes['model'])
      if spec.batch_size % sizes['data']:
        raise errors.UserError(
          f'--batch_size={spec.batch_size}: does not divide over data:'
          f'{sizes["data"]} of --mesh; give a multiple'
        )
    devices = spec.target.devices()
    n_devices = len(devices)
    if spec.target.platform == 'cpu':
      n_devices = 1 if sizes is None else sizes['data'] * sizes['model']
    n_asked = 1 if sizes is None else sizes['data'] * sizes['model']
    if n_asked != n_devices or n_asked > len(devices):
      raise errors.UserError(
        f'--mesh={spec.mesh}: {n_asked} device{"s" * (n_asked > 1)}, and '
        f'--target={spec.target.name} has {len(devices)}; all are used, so '
        f'give data times model of {len(devices)}'
      )
    self.mesh: jax.sharding.Mesh | None = None
    self._alone: Any = None  # where all is, without a mesh
    if sizes is None:
      self._alone = jax.sharding.SingleDeviceSharding(devices[0])
    else:
      self.mesh = jax.sharding.Mesh(
        np.array(devices[:n_asked]).reshape(sizes['data'], sizes['model']),
        sharding.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
      )

  @property
  def n_data(self) -> int:
    return 1 if self.mesh is None else self.mesh.shape['data']

  def array(self, shape, dtype, leading: str | None = 'data') -> Any:
    """What stands for an array in a trace, its first axis over `leading`."""
    where = self._alone
    if self.mesh is not None:
      spec = jax.sharding.PartitionSpec(leading)
      where = jax.sharding.NamedSharding(self.mesh, spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  def parameters(self, model: Any) -> tuple[Any, int]:
    """(the model's shapes by the sharding rules, bytes on each device)."""
    graph, state = nnx.split(model)
    placed, n_bytes = [], 0
    where = None if self.mesh is None else sharding.placer(self.mesh)
    for keys, param in nnx.to_flat_state(state):
      path = '.'.join(map(str, keys))
      at = where(path, param.shape) if where else self._alone
      held = at.shard_shape(param.shape)
      n_bytes += int(np.prod(held)) * param.dtype.itemsize
      shape = jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=at)
      placed.append((keys, param.replace(shape)))
    return nnx.merge(graph, nnx.from_flat_state(placed)), n_bytes


def _check_heads(spec: Spec, outline: registry.Outline, n_model: int) -> None:
  n_heads = outline.config.text.n_heads
  if n_heads % n_model:
    fit = [n for n in range(1, n_heads + 1) if n_heads % n == 0]
    raise errors.UserError(
      f'--mesh={spec.mesh}: {n_heads} heads cannot be split over model:'
      f'{n_model}; give model: one of {", ".join(map(str, fit))}'
    )


def attend(
  target: targets.Target, mesh: Any, served: set[str], tower: bool
) -> Any:
  """What the target's processes would attend with; notes which kernel serves.

  Args:
    target: the devices.
    mesh: over them, or None.
    served: gets the kernels' names while a program is traced.
    tower: attends in the tower (Resources.tower_attend).
  """
  inner = dispatch.attend(target=target)

  def noting(q_BTNH, k_BSKH, v_BSKH, mask, control=None, probe=None):
    served.add(dispatch.picked(q_BTNH, k_BSKH, v_BSKH, mask, control, target))
    return inner(q_BTNH, k_BSKH, v_BSKH, mask, control, probe)

  return (
    noting if mesh is None else dispatch.sharded(noting, mesh, uneven=tower)
  )


def look_arguments(
  place: Place, model: Any, outline: registry.Outline, n_features: int
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
  """What `features.look_at` is called with for one group of pictures."""
  vision = outline.vision(place.n_data, n_features)
  return model, {n: place.array(x.shape, x.dtype) for n, x in vision.items()}


def step_arguments(
  place: Place,
  model: Any,
  outline: registry.Outline,
  bucket: buckets.Bucket,
  batch: int,
  width: int,
  profile_set: str | None,
) -> tuple[Any, inputs_lib.Inputs, probe_lib.Probe, jax.ShapeDtypeStruct]:
  """What `step.step` is called with for a batch that is read whole.

  Args:
    place: the devices.
    model: its shapes, placed.
    outline: of the family.
    bucket: of the batch.
    batch: examples.
    width: of a feature.
    profile_set: as of evidence.batch_probe.
  """
  length, n_rows = bucket.length, 2 * bucket.rows + 1
  more = () if outline.n_blend == 1 else (outline.n_blend,)
  axes = () if outline.n_axes == 1 else (outline.n_axes,)
  dtype = model.language.embed.weight.dtype
  inputs = inputs_lib.Inputs(
    tokens_BT=place.array((batch, length), jnp.int32),
    positions_BT=place.array((batch, *axes, length), jnp.int32),
    mask=masks.AttnMask(kv_len_B=place.array((batch,), jnp.int32)),
    vision={  # of no picture: collate says so in the family's way
      name: place.array(x.shape, x.dtype, None)
      for name, x in outline.vision(0, 1).items()
    },
    feature_BT=place.array((batch, length, *more), jnp.int32),
    features_ID=place.array((batch * length, width), dtype, None),
    blend_BTK=place.array((batch, length, *more), jnp.float32)
    if more
    else None,
  )
  probe = probe_lib.Probe(
    rows_BP=place.array((batch, n_rows), jnp.int32),
    set_PQ=place.array((n_rows, len(regions.QUERY_SETS)), jnp.float32, None),
    region_BS=place.array((batch, length), jnp.int8),
    visual_BI=place.array((batch, length), jnp.int32) if profile_set else None,
    profile_set=regions.QUERY_SETS.index(profile_set) if profile_set else None,
  )
  return model, inputs, probe, place.array((batch, bucket.rows), jnp.int32)


def _compile(
  name: str,
  target: targets.Target,
  trace: Callable[[Any], Any],
  mesh: Any,
) -> report_lib.Program:
  """Traces, counts and compiles a program.

  Args:
    name: of it.
    target: the devices.
    trace: attend -> jax.stages.Traced.
    mesh: over the devices.
  """
  served: set[str] = set()
  started = time.process_time()
  flops = flops_lib.of(trace(flops_lib.counted).jaxpr)
  lowered = trace(attend(target, mesh, served, name == 'tower')).lower(
    lowering_platforms=(target.platform,)
  )
  sizes, beyond = (0, 0, 0, 0), None
  try:
    told = lowered.compile().memory_analysis()
    sizes = (
      told.argument_size_in_bytes,
      told.output_size_in_bytes - told.alias_size_in_bytes,
      told.temp_size_in_bytes,
      told.generated_code_size_in_bytes,
    )
  except jax.errors.JaxRuntimeError as e:
    beyond = _beyond(str(e), target.chip.memory)
    if beyond is None:
      raise
  return report_lib.Program(
    name,
    tuple(sorted(served)),
    *sizes,
    flops=flops,
    seconds=time.process_time() - started,
    beyond=beyond,
  )


def _beyond(message: str, memory: int) -> int | None:
  """Bytes that a refused program would take; None: it failed otherwise.

  Args:
    message: the compiler's.
    memory: of the chip, the least that it can be.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  found = _TOO_LARGE.search(message)
  return int(float(found[1]) * _UNITS[found[2]]) if found else memory


def compile_all(outline: registry.Outline, spec: Spec) -> report_lib.Report:
  """Compiles both programs.

  Args:
    outline: the model.
    spec: for what.

  Raises:
    UserError: the mesh does not go with devices, heads or batch; or the
      target's compiler is missing.
  """
  place = Place(spec, outline)
  mesh, target = place.mesh, spec.target
  model, n_bytes = place.parameters(outline.model)
  bucket = buckets.Bucket(buckets.tokens(spec.length), _ROWS)
  looking = look_arguments(place, model, outline, spec.picture)
  seen = jax.eval_shape(lambda *a: outline.see(*a), *looking)
  stepping = step_arguments(
    place,
    model,
    outline,
    bucket,
    spec.batch_size,
    seen.shape[-1],
    spec.profile_set,
  )
  text = outline.config.text
  gates = (text.n_layers, text.n_heads) if spec.gradients else None
  precision = resources_lib.precision(spec.dtype)
  with jax.default_matmul_precision(precision):
    tower = _compile(
      'tower',
      target,
      lambda attend: features_lib.look_at.trace(
        *looking, see=outline.see, attend=attend, mesh=mesh
      ),
      mesh,
    )
    step = _compile(
      'step',
      target,
      lambda attend: step_lib.step.trace(
        *stepping,
        forward=outline.forward,
        attend=attend,
        mesh=mesh,
        gate_shape=gates,
      ),
      mesh,
    )
  n_values = sum(x.size for x in jax.tree.leaves(outline.model))
  n_devices = 1 if mesh is None else mesh.size
  remarks = []
  if bucket.length > text.max_length:
    remarks.append(
      f'the model takes {text.max_length} tokens: no example is as long as '
      f'{bucket.length}'
    )
  return report_lib.Report(
    title=(
      f'model    {outline.key}: {text.n_layers} layers x {text.n_heads} heads '
      f'({text.n_kv_heads} kv), {n_values:,} parameters, {spec.dtype}',
      f'target   {target.name}: {n_devices} device{"s" * (n_devices > 1)}, '
      f'{report_lib.gib(target.chip.memory)} GiB each, '
      f'{spec.mesh or "no mesh"}; weights {report_lib.gib(n_bytes)} GiB each',
      f'batch    {spec.batch_size} x {bucket.length} tokens, {_ROWS} rows of a '
      f'question and of an answer; {place.n_data} '
      f'picture{"s" * (place.n_data > 1)} of {seen.shape[1]} features at a '
      'time',
    ),
    tower=tower,
    step=step,
    parameters=n_bytes,
    chip=target.chip,
    remarks=tuple(remarks),
  )


def of(config: Any, **options: Any) -> report_lib.Report:
  """Compiles what the settings of an experiment name.

  Args:
    config: config_lib.Shared with a `target`.
    **options: batch_size, length, picture, profile_set, gradients of Spec.

  Raises:
    UserError: no such model or target, or one that does not go with the other.
  """
  target = targets.parse(config.target)
  resources_lib.quiet()
  settings: Any = jax.config  # its contents are not declared
  if target.platform != 'cpu' and not settings.jax_platforms:
    # Else jax would look for the device, which libtpu waits for in vain.
    jax.config.update('jax_platforms', 'cpu')
  folder, _ = resources_lib.checkpoint(config)
  outline = registry.get(config.model).outline(folder, dtype=config.dtype)
  spec = Spec(target, config.mesh, config.dtype, **options)
  return compile_all(outline, spec)
