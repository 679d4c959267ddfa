"""Converted copies of families whose parameters are unlike LLaVA's.

DeepStack's mergers, a mixture of experts, and a file that unties its head: the
parameters alone, no forward.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax.experiments import resources
from corejax.models import converted
from corejax.models.internvl import config as internvl_config
from corejax.models.internvl import weights as internvl_weights
from corejax.models.qwen_vl import config as qwen_config
from corejax.models.qwen_vl import weights as qwen_weights
from helpers import hf_qwen
from helpers import hf_tiled
from helpers import torch_only

torch = torch_only.torch


@dataclasses.dataclass(frozen=True)
class Case:
  """A family's checkpoint.

  Attributes:
    write: into this folder.
    load: (folder, mesh) -> model, of a checkpoint or of its copy.
    cut: paths of parameters of which four devices hold a quarter each.
    there: a path that only this one has.
  """

  write: Callable[[pathlib.Path], Any]
  load: Callable[[pathlib.Path, Any], Any]
  cut: tuple[str, ...]
  there: str


def _qwen(kind: str, *cut: str, there: str) -> Case:
  def write(folder):
    hf_qwen.save(hf_qwen.build(hf_qwen.config(kind)), folder)

  def load(folder, mesh):
    config = qwen_config.read(folder, kind)
    return qwen_weights.load(
      folder, config, dtype=jnp.dtype('float32'), mesh=mesh
    )

  return Case(write, load, cut, there)


def _untied(folder: pathlib.Path) -> None:
  head = np.random.default_rng(0).normal(size=(64, 32))
  hf_tiled.save(
    hf_tiled.build(hf_tiled.internvl_config(tie_word_embeddings=True)),
    folder,
    extra={'language_model.lm_head.weight': torch.tensor(head).float()},
  )


def _internvl(folder: pathlib.Path, mesh) -> Any:
  config = internvl_config.read(folder)
  assert config.text.tie
  return internvl_weights.load(
    folder, config, dtype=jnp.dtype('float32'), mesh=mesh
  )


_Q = 'language.layers.attn.q.weight'
CASES = {
  'qwen3_vl': _qwen(
    'qwen3_vl', _Q, 'vision.deep.1.fc1.weight', there='vision.deep.1.fc2.weight'
  ),
  'qwen3_vl_moe': _qwen(
    'qwen3_vl_moe', _Q, there='language.layers.mlp.router.weight'
  ),
  'internvl, untied': Case(
    _untied,
    _internvl,
    (_Q, 'language.head.weight'),
    there='language.head.weight',
  ),
}


def _flat(model: Any) -> dict[str, jax.Array]:
  flat = nnx.to_flat_state(nnx.state(model))
  return {'.'.join(map(str, keys)): param[...] for keys, param in flat}


@pytest.mark.parametrize('name', CASES)
def test_a_copy_on_another_mesh_holds_the_same(name, tmp_path):
  case = CASES[name]
  case.write(tmp_path / 'checkpoint')
  model = case.load(tmp_path / 'checkpoint', None)
  converted.save(tmp_path / 'checkpoint', tmp_path / 'copy', model)
  mesh = resources.make_mesh('data:1,model:4')
  expected, found = _flat(model), _flat(case.load(tmp_path / 'copy', mesh))
  assert expected.keys() == found.keys() and case.there in found
  for path, value in expected.items():
    np.testing.assert_array_equal(found[path], value)
    assert found[path].dtype == value.dtype
    assert len(found[path].sharding.device_set) == 4
  for path in case.cut:
    shard = found[path].addressable_shards[0].data
    assert shard.size == expected[path].size // 4
