"""InternVL's files: heads of their own, parts that are not run, strictness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import errors
from corejax.models import tensors as tensors_lib
from corejax.models import weights as weights_lib
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import weights
from helpers import hf_tiled
from helpers import torch_only

torch = torch_only.torch
safetensors_torch = torch_only.safetensors_torch

_HEAD = 'language_model.lm_head.weight'


def _load(folder, dtype='float32', mesh=None):
  config = config_lib.read(folder)
  return weights.load(folder, config, dtype=jnp.dtype(dtype), mesh=mesh)


def _save(folder, extra=None, **kw):
  model = hf_tiled.build(hf_tiled.internvl_config(**kw))
  hf_tiled.save(model, folder, extra=extra)
  return model


def test_a_tied_model_has_no_head_of_its_own(tmp_path):
  _save(tmp_path, tie_word_embeddings=True)
  assert _load(tmp_path).language.head is None


def test_a_head_of_its_own_in_a_tied_file_unties(tmp_path):
  """As released: config.json ties by default, the file holds a head."""
  head = torch.tensor(np.random.default_rng(0).normal(size=(64, 32))).float()
  _save(tmp_path, {_HEAD: head}, tie_word_embeddings=True)
  loaded = _load(tmp_path)
  assert config_lib.read(tmp_path).text.tie
  assert (np.asarray(loaded.language.head.weight) == head.numpy()).all()


def test_layers_that_are_not_run_are_neither_needed_nor_loaded(tmp_path):
  _save(
    tmp_path,
    vision_feature_layer=-3,
    tower_kw=dict(use_mean_pooling=False, use_mask_token=True),
  )
  loaded = _load(tmp_path)
  assert loaded.vision.layers.scale1.shape[0] == loaded.vision.n_run == 1
  assert loaded.vision.final is None


def test_strict_both_ways(tmp_path):
  extra = {'vision_tower.encoder.layer.0.attention.r_proj.weight': 0}
  extra = {name: torch.zeros(2, 2) for name in extra}
  _save(tmp_path, extra)
  with pytest.raises(errors.UserError, match='1 not in the model: .*r_proj'):
    _load(tmp_path)
  config = config_lib.read(tmp_path)
  tower = dataclasses.replace(config.vision, qk_norm=True)
  with pytest.raises(errors.UserError, match='6 missing: .*q_norm'):
    weights.load(
      tmp_path,
      dataclasses.replace(config, vision=tower),
      dtype=jnp.dtype('float32'),
    )


def test_bfloat16_rounds_as_torch(tmp_path):
  model = _save(tmp_path)
  loaded = _load(tmp_path, 'bfloat16')
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype('bfloat16')}
  theirs = model.model.vision_tower.embeddings.cls_token.detach()
  expected = theirs.bfloat16().float().numpy().reshape(-1)
  assert (np.asarray(loaded.vision.cls, np.float32) == expected).all()


_EXPERT = 'language_model.model.layers.1.mlp.experts.4.up_proj.weight'


def test_experts_are_read_one_by_one_or_together(tmp_path):
  """As released, a tensor an expert; as in memory, one of all; over a mesh."""
  folder = tmp_path / 'each'
  model = _save(folder, text='qwen3_moe')
  assert _EXPERT in tensors_lib.open_folder(folder)
  each = _load(folder)
  mixture = each.language.layers.mlp
  state = model.state_dict()
  name = 'model.language_model.layers.1.mlp.experts'
  theirs = state[f'{name}.gate_up_proj'].numpy().swapaxes(1, 2)
  np.testing.assert_array_equal(mixture.gate_up[1], theirs)
  theirs = state[f'{name}.down_proj'].numpy().swapaxes(1, 2)
  np.testing.assert_array_equal(mixture.down[1], theirs)
  model.config.save_pretrained(tmp_path / 'all')
  state = {k: v.contiguous() for k, v in state.items()}
  safetensors_torch.save_file(state, tmp_path / 'all/model.safetensors')
  mesh = jax.make_mesh(
    (1, 2),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:2],
  )
  for other in (_load(tmp_path / 'all'), _load(folder, mesh=mesh)):
    for a, b in zip(*map(jax.tree.leaves, (each, other)), strict=True):
      np.testing.assert_array_equal(a, b)


def test_experts_are_strict_both_ways(tmp_path):
  _save(tmp_path, text='qwen3_moe')
  path = tmp_path / 'model.safetensors'
  whole = safetensors_torch.load_file(path)
  part = whole[_EXPERT]
  for change, said in (
    ({_EXPERT: None}, '1 missing: .*layers.1.mlp.experts.4.up_proj'),
    (
      {_EXPERT.replace('.4.', '.6.'): part.clone()},
      '1 not in the model: .*experts.6',
    ),
    ({_EXPERT: part.T.contiguous()}, r'experts.4.up_proj.weight is \(32, 20\)'),
    ({_EXPERT: part * torch.nan}, f'1 tensors hold NaN .*{_EXPERT}'),
  ):
    tensors = {k: v for k, v in {**whole, **change}.items() if v is not None}
    safetensors_torch.save_file(tensors, path)
    with pytest.raises(errors.UserError, match=said):
      _load(tmp_path)


def test_any_part_of_the_experts_can_be_asked_for(tmp_path):
  rng = np.random.default_rng(0)
  gate_XFD, up_XFD = rng.standard_normal((2, 3, 4, 5), np.float32)
  names = [f'{x}.{part}' for x in range(3) for part in ('gate', 'up')]
  parts = np.stack([gate_XFD, up_XFD], 1).reshape(6, 4, 5)
  path = tmp_path / 'model.safetensors'
  safetensors_torch.save_file(
    {name: torch.tensor(part) for name, part in zip(names, parts)}, path
  )
  found = tensors_lib.open_folder(tmp_path)
  source = weights_lib.Source(
    tuple(found[name] for name in names), False, (3, 5, 8), n_parts=2
  )
  whole = np.concatenate([gate_XFD, up_XFD], 1).swapaxes(1, 2)
  for index in (
    (slice(None), slice(None), slice(None)),
    (slice(1, 3), slice(2, 5), slice(3, 6)),
    (slice(0, 1), slice(0, 2), slice(4, 8)),
  ):
    values = np.full(whole[index].shape, np.nan, np.float32)
    for _, wanted, to in source.pieces(index, values):
      to[...] = wanted
    np.testing.assert_array_equal(values, whole[index])
