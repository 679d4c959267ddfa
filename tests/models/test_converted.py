"""A converted copy, restored on other meshes (of virtual devices)."""

import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import errors
from corejax.data import sources
from corejax.experiments import cli
from corejax.experiments import convert
from corejax.experiments import resources
from corejax.models import converted
from corejax.models import registry
from corejax.models.organisms import planted

_FAMILY = registry.get('llava_flax')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(checkpoint, copy made on data:1,model:2)."""
  folder = tmp_path_factory.mktemp('converted')
  planted.write(folder / 'planted')
  copy = convert.run(
    convert.Config(
      checkpoint=str(folder / 'planted'),
      mesh='data:1,model:2',
      out=str(folder / 'copy'),
    )
  )
  return folder / 'planted', copy


def _logits(loaded) -> np.ndarray:
  encoded = loaded.processor.encode(sources.load('scenes_referring')[0])
  inputs = loaded.processor.collate([encoded], 64, 1)
  run = jax.jit(functools.partial(loaded.forward))
  rows_BP = jnp.array([[encoded.prompt_len - 1, 3]])
  return np.asarray(run(loaded.model, inputs, logit_rows_BP=rows_BP).logits_BPV)


def test_same_parameters_and_logits_on_other_meshes(made):
  source, copy = made
  saved = _FAMILY.load(source, mesh=resources.make_mesh('data:1,model:2'))
  expected = _logits(saved)
  assert expected.std() > 0.1
  for mesh in (resources.make_mesh('data:1,model:4'), None):
    loaded = _FAMILY.load(copy, mesh=mesh)
    n_devices = 1 if mesh is None else 4
    q = loaded.model.language.layers.attn.q.weight[...]
    assert len(q.sharding.device_set) == n_devices
    assert q.addressable_shards[0].data.shape[1] == q.shape[1] // n_devices
    for one, other in zip(
      jax.tree.leaves(nnx.state(loaded.model)),
      jax.tree.leaves(nnx.state(saved.model)),
      strict=True,
    ):
      np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(_logits(loaded), expected, rtol=0, atol=1e-4)


def test_what_a_copy_is_made_of(made):
  source, copy = made
  meta = json.loads((copy / converted.META).read_text())
  whole = _FAMILY.load(source)
  assert meta['source'] == whole.fingerprint
  assert meta['shapes']['language.layers.attn.q.weight'][0] == whole.n_layers
  assert not list(copy.glob('*.safetensors'))


@pytest.mark.parametrize(
  'change, said',
  [
    (dict(config='0' * 64), 'made of another config.json'),
    (dict(dtype='bfloat16'), 'holds bfloat16; give it as --dtype'),
    (dict(shapes={}), 'not those of config.json'),
  ],
)
def test_what_does_not_fit_is_refused(made, tmp_path, change, said):
  _, copy = made
  for path in copy.iterdir():
    if path.name != converted.META:
      (tmp_path / path.name).symlink_to(path)
  meta = json.loads((copy / converted.META).read_text())
  (tmp_path / converted.META).write_text(json.dumps({**meta, **change}))
  with pytest.raises(errors.UserError, match=said) as caught:
    _FAMILY.load(tmp_path)
  assert '\n' not in str(caught.value)


def test_a_damaged_copy_is_refused(made, tmp_path):
  _, copy = made
  for path in copy.iterdir():
    if path.is_file():
      (tmp_path / path.name).symlink_to(path)
  (tmp_path / converted.ARRAYS).mkdir()
  with pytest.raises(errors.UserError, match='convert the checkpoint again'):
    _FAMILY.load(tmp_path)


def test_bad_flags(made, capsys):
  source, copy = made
  for argv, said in (
    ([f'--out={copy}'], '--checkpoint'),
    ([f'--checkpoint={source}'], '--out'),
    ([f'--checkpoint={source}', f'--out={copy}'], 'not empty'),
    ([f'--checkpoint={copy}', f'--out={copy}2'], 'a converted copy already'),
  ):
    assert convert.cli(['convert', *argv]) == cli.EX_USER
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1
