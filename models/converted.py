"""Converted copies: a checkpoint's parameters as they run, in Orbax's format.

    copy/  converted.json   family, dtype, what it was made of, every shape
           parameters/      Orbax: stacked, cast, cut as the mesh was
           config.json, tokenizer.json, ..   as in the checkpoint

Made by `python -m experiments.convert`; a family's `load` takes such a folder
as it takes the original. Each process reads the slices of its own devices, on
any mesh: Orbax cuts anew.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import pathlib
import shutil
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from corejax import errors
from corejax.models import checkpoint
from corejax.models import orbax_errors
from corejax.models import sharding

META, ARRAYS = 'converted.json', 'parameters'
_COPIED = ('.json', '.jinja', '.model', '.txt')
_AGAIN = 'convert the checkpoint again'


def _hash(folder: pathlib.Path) -> str:
  return hashlib.sha256((folder / 'config.json').read_bytes()).hexdigest()


def _flat(model: Any) -> dict[str, Any]:
  """Parameter path -> nnx.Param."""
  flat = nnx.to_flat_state(nnx.state(model))
  return {'.'.join(map(str, keys)): param for keys, param in flat}


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
  """Under names that are one component of a path."""
  return {path.replace('.', '-'): value for path, value in values.items()}


def lies_in(folder: pathlib.Path) -> bool:
  """Is this folder a converted copy?"""
  return (folder / META).exists()


def save(source: pathlib.Path, target: pathlib.Path, model: Any) -> None:
  """Writes a converted copy; converted.json comes last, so that it is whole.

  On several processes all call it together.

  Args:
    source: the checkpoint that the model was loaded from.
    target: a folder that is absent or empty.
    model: its nnx.Module, on any mesh.

  Raises:
    UserError: the target holds something, or cannot be written.
  """
  import orbax.checkpoint as ocp  # registers flags when it is imported

  if lies_in(source):
    raise errors.UserError(f'{source}: a converted copy already')
  first = jax.process_index() == 0
  if first and target.exists() and any(target.iterdir()):
    raise errors.UserError(f'{target}: not empty; name a new folder')
  params = _flat(model)
  meta = {
    'dtype': jnp.dtype(next(iter(params.values())).dtype).name,
    'config': _hash(source),
    'source': checkpoint.fingerprint(source),
    'shapes': {path: list(param.shape) for path, param in params.items()},
  }
  with orbax_errors.told(
    lambda why: f'{target}: {why}; make room, or name another folder'
  ):
    if first:
      target.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
      # Orbax takes no array without a value (of a tower without layers).
      tree = _named({p: x[...] for p, x in params.items() if x.size})
      checkpointer.save(
        (target / ARRAYS).resolve(), args=ocp.args.StandardSave(tree)
      )
    if first:
      for path in sorted(source.iterdir()):
        index = path.name.endswith('.index.json')
        if path.is_file() and path.suffix in _COPIED and not index:
          shutil.copyfile(path, target / path.name)
      (target / META).write_text(json.dumps(meta, indent=1))


def restore(
  folder: pathlib.Path,
  config: Any,
  abstract: Callable[[Any, jnp.dtype], Any],
  *,
  dtype: jnp.dtype,
  mesh: jax.sharding.Mesh | None,
) -> Any:
  """A model with a copy's parameters.

  Args:
    folder: the copy.
    config: of its config.json, with `text`.
    abstract: the model of a config and a dtype, without arrays.
    dtype: must be that of the copy.
    mesh: need not be the one that it was saved on; None is one device.

  Raises:
    UserError: the copy is damaged, was made of another config.json, or holds
      another dtype.
  """
  import orbax.checkpoint as ocp

  where, meta = folder / META, checkpoint.read_json(folder / META)
  if meta.get('config') != _hash(folder):
    raise errors.UserError(
      f'{where}: made of another config.json than the one beside it; {_AGAIN}'
    )
  if meta.get('dtype') != dtype.name:
    raise errors.UserError(
      f'{where}: the copy holds {meta.get("dtype")}; give it as --dtype, or '
      f'{_AGAIN} with --dtype={dtype.name}'
    )
  shapes = meta.get('shapes')
  if config.text.tie and isinstance(shapes, dict):
    # As families.load_weights: a file's own head unties the two.
    text = dataclasses.replace(
      config.text, tie='language.head.weight' not in shapes
    )
    config = dataclasses.replace(config, text=text)
  model = abstract(config, dtype)
  params = _flat(model)
  expected = {path: list(param.shape) for path, param in params.items()}
  if shapes != expected:
    raise errors.UserError(
      f'{where}: its parameters are not those of config.json here; {_AGAIN}'
    )
  place = sharding.placer(mesh)
  like = {
    path: jax.ShapeDtypeStruct(
      param.shape, dtype, sharding=place(path, param.shape)
    )
    for path, param in params.items()
  }
  empty = {p: jnp.zeros(x.shape, dtype) for p, x in like.items() if not x.size}
  kept = {path: x for path, x in like.items() if x.size}
  with (
    orbax_errors.told(
      lambda why: f'{folder / ARRAYS}: {why}; not a readable copy: {_AGAIN}'
    ),
    ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer,
  ):
    arrays = checkpointer.restore(
      (folder / ARRAYS).resolve(), args=ocp.args.StandardRestore(_named(kept))
    )
  arrays |= _named(
    {p: jax.device_put(x, like[p].sharding) for p, x in empty.items()}
  )
  graph, state = nnx.split(model)
  filled = [
    (keys, param.replace(arrays['-'.join(map(str, keys))]))
    for keys, param in nnx.to_flat_state(state)
  ]
  return nnx.merge(graph, nnx.from_flat_state(filled))
