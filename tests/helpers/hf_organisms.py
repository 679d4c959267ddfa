"""The organisms of InternVL and Qwen3-VL in transformers.

Their processor classes need torchvision, so inputs are put together from the
tokenizer and the image processors (PIL).
"""

import io
import json
import pathlib

import numpy as np
from PIL import Image
import transformers
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2

from corejax import inputs as inputs_lib
from corejax.data import example as example_lib
from helpers import torch_only

torch = torch_only.torch

_CLASSES = {
  'internvl_flax': (
    transformers.InternVLForConditionalGeneration,
    image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil,
  ),
  'qwen3_vl_flax': (
    transformers.Qwen3VLForConditionalGeneration,
    transformers.Qwen2VLImageProcessorPil,
  ),
}


def load(folder: pathlib.Path, key: str):
  """The torch model of a folder; all of its weights have a place."""
  model, report = _CLASSES[key][0].from_pretrained(
    folder,
    attn_implementation='eager',
    dtype=torch.float32,
    output_loading_info=True,
  )
  for what in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
    assert not report[what], report[what]
  return model.eval()


def inputs(
  folder: pathlib.Path,
  key: str,
  example: example_lib.Example,
  encoded: inputs_lib.Encoded,
) -> dict:
  """What the torch model takes: HF's pixels, and tokens that equal ours.

  Args:
    folder: of the model.
    key: its family.
    example: what is shown and asked.
    encoded: the same by our processor; its prompt says a picture once.
  """
  settings = json.loads((folder / 'preprocessor_config.json').read_text())
  pictures = [Image.open(io.BytesIO(media)) for media in example.media]
  seen = dict(_CLASSES[key][1](**settings)(pictures, return_tensors='np'))
  seen.pop('num_patches', None)
  pixels = seen['pixel_values']
  np.testing.assert_array_equal(
    pixels, encoded.vision['pixel_values'].reshape(pixels.shape)
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  image, before, after = {
    'internvl_flax': ('<IMG_CONTEXT>', '<img>', '</img>'),
    'qwen3_vl_flax': ('<|image_pad|>', '', ''),  # said by the prompt
  }[key]
  text = encoded.text.replace(image, before + 16 * image + after)
  tokens = tokenizer(text, return_tensors='np')['input_ids']
  np.testing.assert_array_equal(tokens[0], encoded.tokens_T)
  made = {name: torch.tensor(np.asarray(array)) for name, array in seen.items()}
  made['input_ids'] = torch.tensor(tokens, dtype=torch.long)
  if key == 'qwen3_vl_flax':
    is_visual = made['input_ids'] == tokenizer.convert_tokens_to_ids(image)
    made['mm_token_type_ids'] = is_visual.int()
  return made
