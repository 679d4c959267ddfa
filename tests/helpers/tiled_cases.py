"""The tile-cutting families' tiny folders, whole, and what each side takes."""

from collections.abc import Mapping
import functools
import pathlib

import numpy as np
import transformers

from helpers import hf_llava
from helpers import hf_tiled
from helpers import masses as masses_lib
from helpers import tiny_tiled
from helpers import torch_only

torch = torch_only.torch

MAKERS = {
  'internvl_flax': tiny_tiled.internvl,
  'llava_next_flax': tiny_tiled.anyres,
  'llava_onevision_flax': functools.partial(
    tiny_tiled.anyres, model_type='llava_onevision'
  ),
}


def write(key: str, folder: pathlib.Path, **options) -> torch.nn.Module:
  """Tokenizer, processor files and redrawn weights of a family.

  Args:
    key: as `--model` spells it.
    folder: made if absent.
    **options: of the family's maker in tiny_tiled.

  Returns:
    The torch model, float32, eager attention.
  """
  MAKERS[key](folder, **options)
  model = hf_tiled.build(transformers.AutoConfig.from_pretrained(folder), 2)
  hf_llava.save(model, folder)
  return model


def sized(model: torch.nn.Module, sizes: torch.Tensor) -> dict:
  """What a model is told of one prompt's pictures, sizes [M, (h, w)]."""
  kind = model.config.model_type
  if kind == 'internvl':
    return {}
  told = {'image_sizes': sizes}
  if kind == 'llava_onevision':
    told['batch_num_images'] = torch.tensor([len(sizes)])
  return told


@torch.no_grad()
def masses(
  model: torch.nn.Module, arrays: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Region masses from transformers' attentions, summed in float64.

  Args:
    model: of `write`.
    arrays: what `inspect` writes; beside a video of OneVision no picture.

  Returns:
    float64 [L, N, Q, R].
  """
  ids = ('input_ids', 'attention_mask', 'position_ids')
  films = arrays.get('pixel_values_videos')
  if films is not None:
    assert not len(arrays['pixel_values'])
    shown = {'pixel_values_videos': torch.tensor(films)}
  else:
    sizes = torch.tensor(np.ascontiguousarray(arrays['image_sizes']))
    shown = sized(model, sizes)
    shown['pixel_values'] = torch.tensor(arrays['pixel_values'])
  out = model(
    **{name: torch.tensor(arrays[name], dtype=torch.int64) for name in ids},
    **shown,
    output_attentions=True,
  )
  return masses_lib.of(out.attentions, arrays)
