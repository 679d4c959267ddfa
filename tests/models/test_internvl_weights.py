"""InternVL's files: heads of their own, parts that are not run, strictness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corejax import errors
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import weights
from helpers import hf_tiled
from helpers import torch_only

torch = torch_only.torch

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
