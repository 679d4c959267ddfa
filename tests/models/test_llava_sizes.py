"""Released sizes by `eval_shape`: parameters are counted, none is made."""

import jax.numpy as jnp
import pytest
import transformers

from corejax.models import weights
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from helpers import torch_only

torch = torch_only.torch

# Parameters of the released checkpoints, and of what of them is run: without
# the tower's last layer (12,596,224) and its final norm (2,048).
_SIZES = {
  '7b': (7_063_427_072, 7_050_828_800, 32, 32),
  '13b': (13_351_494_656, 13_338_896_384, 40, 40),
}


def _config(size: str) -> transformers.LlavaConfig:
  text = dict(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5)
  if size == '13b':
    text |= dict(
      hidden_size=5120,
      intermediate_size=13824,
      num_hidden_layers=40,
      num_attention_heads=40,
      num_key_value_heads=40,
    )
  return transformers.LlavaConfig(text_config=transformers.LlamaConfig(**text))


@pytest.mark.parametrize('size', _SIZES)
def test_parameter_counts(size):
  released, run, n_layers, n_heads = _SIZES[size]
  hf_config = _config(size)
  with torch.device('meta'):
    hf_model = transformers.LlavaForConditionalGeneration(hf_config)
  assert sum(p.numel() for p in hf_model.parameters()) == released

  config = config_lib.LlavaConfig.from_hf(hf_config)
  model = modeling.abstract(config, jnp.dtype('bfloat16'))
  shapes = weights.shapes(model)
  count = 0
  for shape in shapes.values():
    size_ = 1
    for n in shape:
      size_ *= n
    count += size_
  assert count == run
  assert released - run == 12_596_224 + 2_048
  d = config.text.d_model
  assert shapes['language.layers.attn.q.weight'] == (n_layers, n_heads, 128, d)
  assert model.language.embed.weight.dtype == jnp.bfloat16
