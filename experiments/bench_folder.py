"""The sides of `bench_load`, and the checkpoint that they read.

python -m corejax.experiments.bench_folder FOLDER load|memmap
"""

import json
import pathlib
import sys
from typing import Any

from corejax.experiments import bench_family
from corejax.experiments import bench_model
from corejax.experiments import bench_processes


def spec(gib: float) -> bench_model.Spec:
  """A model of about so many GiB in bfloat16, 8 layers wide enough."""
  # 8 layers of 4 + 3 * 2.75 matrices [hidden, hidden]; both tables of words.
  vocab, values = 4096, gib * 2**29
  per_square = 8 * (4 + 3 * 2.75)
  hidden = (vocab**2 + per_square * values) ** 0.5 - vocab
  # Multiples that four devices divide evenly.
  hidden = max(256, round(hidden / per_square / 256) * 256)
  return bench_model.Spec(
    heads=hidden // 64,
    hidden=hidden,
    mlp=hidden * 11 // 4,
    vocab=vocab,
  )


def _config(folder: pathlib.Path) -> Any:
  from corejax.models.llava import config as config_lib

  return config_lib.read(folder)


def write(folder: pathlib.Path, gib: float, shards: int) -> int:
  """Writes the checkpoint; returns the bytes of its tensors.

  Raises:
    OSError: it cannot be written.
  """
  import jax.numpy as jnp
  import numpy as np
  import safetensors.numpy

  from corejax.models import tensors as tensors_lib
  from corejax.models import weight_map
  from corejax.models import weights as weights_lib
  from corejax.models.llava import modeling
  from corejax.models.llava import weights

  sizes = spec(gib)
  documents = json.dumps(bench_family.documents(sizes))
  (folder / 'config.json').write_text(documents)
  config = _config(folder)
  shapes = weights_lib.shapes(modeling.abstract(config, jnp.dtype('bfloat16')))
  wanted: dict[str, tuple[int, ...]] = {}
  for entry in weights.make_map(config).entries:
    shape = shapes.get(entry.path)
    if shape is None:
      continue
    single = shape[1:] if entry.stacked else shape
    for layer in range(shape[0] if entry.stacked else 1):
      name = entry.name.replace(weight_map.LAYER, str(layer))
      wanted[name] = entry.file_shape(single)
  names = sorted(wanted)
  # Loading does not look at the values; drawing so many would take minutes.
  rng = np.random.default_rng(0)
  noise = rng.standard_normal(1 << 16, np.float32).astype(jnp.bfloat16)
  total, where = 0, {}
  for index in range(shards):
    file = f'model-{index + 1:05}-of-{shards:05}.safetensors'
    part = {
      name: np.resize(noise, wanted[name]) for name in names[index::shards]
    }
    total += sum(array.nbytes for array in part.values())
    safetensors.numpy.save_file(part, folder / file, {'format': 'pt'})
    where |= dict.fromkeys(part, file)
  index = {'metadata': {'total_size': total}, 'weight_map': where}
  (folder / tensors_lib.INDEX).write_text(json.dumps(index))
  return total


def load(folder: pathlib.Path):
  """() -> bytes of the arrays on all devices, once they are there."""
  import jax
  import jax.numpy as jnp

  from corejax.models.llava import weights

  config = _config(folder)
  mesh = jax.make_mesh(
    (1, len(jax.devices())),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  jax.block_until_ready(jax.device_put(0, jax.devices()[0]))

  def work():
    model = weights.load(folder, config, dtype=jnp.dtype('bfloat16'), mesh=mesh)
    arrays = jax.block_until_ready(jax.tree.leaves(model))
    return sum(
      part.data.nbytes for array in arrays for part in array.addressable_shards
    )

  return work


def memmap(folder: pathlib.Path):
  """() -> bytes read."""
  import numpy as np

  def work():
    arrays = [
      np.array(np.memmap(path, np.uint8, 'r'))
      for path in sorted(folder.glob('*.safetensors'))
    ]
    return sum(array.nbytes for array in arrays)

  return work


def _warm(n_bytes: int) -> None:
  """Touches so much memory and frees it.

  A virtual machine returns free memory to its host within seconds, and the
  next touch then costs ten times the copy: of no interest here, and unequal,
  as the sides take different times to start.
  """
  import numpy as np

  np.ones(n_bytes, np.uint8)


def main(argv: list[str]) -> None:
  folder, side = pathlib.Path(argv[1]), argv[2]
  sizes = (path.stat().st_size for path in folder.glob('*.safetensors'))
  n_bytes = 2 * sum(sizes)

  def prepare():
    work = {'load': load, 'memmap': memmap}[side](folder)
    _warm(n_bytes)
    return work, {}

  bench_processes.serve(prepare)


if __name__ == '__main__':
  main(sys.argv)
