"""From a folder to logits: `registry.get('llava_flax').load`."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import transformers

from corejax import errors
from corejax import evidence
from corejax.data import example as example_lib
from corejax.models import checkpoint
from corejax.models import registry
from helpers import hf_llava
from helpers import tiny_tokenizer
from helpers import torch_only

torch = torch_only.torch


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(folder, torch model): tokenizer, processor and redrawn weights."""
  folder = tmp_path_factory.mktemp('family')
  tiny_tokenizer.folder(folder, 'pieces')
  config = transformers.AutoConfig.from_pretrained(folder)
  torch_model = hf_llava.build(config)
  hf_llava.save(torch_model, folder)
  return folder, torch_model


def _example() -> example_lib.Example:
  rng = np.random.default_rng(0)
  media = []
  for size in ((50, 70), (64, 40)):
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file, 'PNG')
    media.append(file.getvalue())
  return example_lib.Example(
    id='test/0',
    source='test',
    split='test',
    task='colour',
    media=tuple(media),
    question='What colour is the star?',
    answers=('red',),
    cluster='0',
    evidence=(example_lib.Box(1, 0.3, 0.2, 0.6, 0.8),),
  )


def test_example_to_logits_and_masses(made):
  folder, torch_model = made
  loaded = registry.get('llava_flax').load(folder)
  example = _example()
  encoded = loaded.processor.encode(example)
  length = len(encoded.tokens_T) + 3
  inputs = loaded.processor.collate([encoded], length, n_media=3)
  annotated = evidence.annotate(example, encoded)
  probe = evidence.batch_probe([annotated], length, (16, 4, 24), 'question')
  out = jax.jit(loaded.forward)(
    loaded.model, inputs, probe=probe, logit_rows_BP=probe.rows_BP
  )
  hf = hf_llava.reference(
    torch_model,
    {
      'input_ids': torch.tensor(encoded.tokens_T, dtype=torch.long)[None],
      'pixel_values': torch.tensor(encoded.vision['pixel_values']),
    },
  )
  last = encoded.prompt_len - 1
  slot = list(np.asarray(probe.rows_BP[0])).index(last)
  worst = np.abs(out.logits_BPV[0, slot] - hf['logits'][0, last]).max()
  assert worst < 1e-4 * hf['logits'].std()
  # RAM at the last row: attention on the evidence tokens, by hand.
  keys = annotated.visual_I[annotated.evidence_I]
  mass = hf['attention'][:, 0, :, last][..., keys].astype(np.float64).sum(-1)
  ours = np.asarray(out.measured.mass_BQNR)[:, 0, 1, :, 0]
  np.testing.assert_allclose(ours, mass, atol=1e-5)
  assert mass.max() > 0.05
  profile = np.asarray(out.measured.profile_BNI)
  assert profile.shape[-1] == 24 and np.ptp(profile) > 0.01


def test_what_is_told_about_a_model(made):
  folder, _ = made
  loaded = registry.get('llava_flax').load(str(folder), dtype=jnp.bfloat16)
  assert loaded.key == 'llava_flax'
  assert (loaded.n_layers, loaded.n_heads, loaded.n_kv_heads) == (2, 2, 2)
  assert loaded.max_length == 512
  assert loaded.fingerprint == checkpoint.fingerprint(folder)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(loaded.model)}
  assert dtypes == {jnp.dtype('bfloat16')}


def test_image_policy_reaches_the_processor(made):
  folder, _ = made
  family = registry.get('llava_flax')
  wide = _example().media[1]
  example = dataclasses.replace(_example(), media=(wide,), evidence=())
  found = [
    family.load(folder, image_policy=policy).processor.encode(example)
    for policy in ('checkpoint', 'pad')
  ]
  assert found[0].layout.cell_IW.min() >= 0 > found[1].layout.cell_IW.min()
  with pytest.raises(errors.UserError, match='image_policy=stretch'):
    family.load(folder, image_policy='stretch')


def test_refused(made, tmp_path):
  folder, _ = made
  family = registry.get('llava_flax')
  with pytest.raises(errors.UserError, match='--dtype=int8 is not supported'):
    family.load(folder, dtype='int8')
  with pytest.raises(errors.UserError, match='no such folder'):
    family.load(tmp_path / 'nowhere')
  with pytest.raises(errors.UserError, match='config.json: no such file'):
    family.load(tmp_path)


def test_family_row():
  family = registry.get('llava_flax')
  assert family.key == 'llava_flax'
  assert family.backbones == ('llama', 'mistral', 'qwen2', 'qwen3')
  assert family.towers == ('clip', 'siglip')
