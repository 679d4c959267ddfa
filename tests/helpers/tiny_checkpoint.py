"""Whole tiny LLaVA folders: tokenizer, processor files, redrawn weights.

36 image tokens a picture (336 pixels, patches of 56), so that a window of four
pages makes a prompt of some 200 tokens.
"""

from collections.abc import Mapping
import json
import pathlib

import numpy as np
import torch
import transformers

from helpers import hf_llava
from helpers import masses as masses_lib
from helpers import tiny_tokenizer


def write(
  folder: pathlib.Path,
  *,
  tower: str = 'clip',
  text: str = 'llama',
  n_kv_heads: int = 4,
  seed: int = 0,
  dtype: torch.dtype = torch.float32,
  max_shard_size: str = '1GB',
) -> pathlib.Path:
  """Writes a folder of 3 layers with 4 heads.

  Args:
    folder: made if absent.
    tower: 'clip' or 'siglip'.
    text: model_type of the text model.
    n_kv_heads: 4, 2 or 1.
    seed: of the weights.
    dtype, max_shard_size: of the files, as hf_llava.save says.

  Returns:
    folder.
  """
  tiny_tokenizer.folder(
    folder,
    'bytes',
    tower=tower,
    image_size=336,
    patch_size=56,
    text=text,
  )
  path = folder / 'config.json'
  config = json.loads(path.read_text())
  config['text_config'] |= {
    'hidden_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': n_kv_heads,
  }
  path.write_text(json.dumps(config))
  model = hf_llava.build(transformers.AutoConfig.from_pretrained(folder), seed)
  hf_llava.save(model, folder, dtype=dtype, max_shard_size=max_shard_size)
  return folder


def load(folder: pathlib.Path) -> transformers.LlavaForConditionalGeneration:
  """What transformers makes of a folder: float32, eager attention."""
  return transformers.LlavaForConditionalGeneration.from_pretrained(
    folder, attn_implementation='eager', dtype=torch.float32
  ).eval()


@torch.no_grad()
def masses(
  model: transformers.LlavaForConditionalGeneration,
  arrays: Mapping[str, np.ndarray],
) -> np.ndarray:
  """Region masses from transformers' attentions, summed in float64.

  Args:
    model: of `load`.
    arrays: what `inspect` writes.

  Returns:
    float64 [L, N, Q, R].
  """
  ids = ('input_ids', 'attention_mask', 'position_ids')
  out = model(
    **{name: torch.tensor(arrays[name], dtype=torch.int64) for name in ids},
    pixel_values=torch.tensor(arrays['pixel_values']),
    output_attentions=True,
  )
  return masses_lib.of(out.attentions, arrays)
