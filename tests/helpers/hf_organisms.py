"""The organisms in transformers.

The processor classes of InternVL and Qwen3-VL need torchvision, so their inputs
are put together from the tokenizer and the image processors (PIL).
"""

import functools
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

_MODELS = {
  'llava_flax': transformers.LlavaForConditionalGeneration,
  'internvl_flax': transformers.InternVLForConditionalGeneration,
  'qwen3_vl_flax': transformers.Qwen3VLForConditionalGeneration,
}
_PIXELS = {
  'internvl_flax': image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil,
  'qwen3_vl_flax': transformers.Qwen2VLImageProcessorPil,
}


def load(folder: pathlib.Path, key: str):
  """The torch model of a folder; all of its weights have a place."""
  model, report = _MODELS[key].from_pretrained(
    folder,
    attn_implementation='eager',
    dtype=torch.float32,
    output_loading_info=True,
  )
  for what in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
    assert not report[what], report[what]
  return model.eval()


@functools.lru_cache
def _tokenizer(folder: pathlib.Path):
  return transformers.AutoTokenizer.from_pretrained(folder)


@functools.lru_cache
def _processor(folder: pathlib.Path):
  return transformers.AutoProcessor.from_pretrained(folder)


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
  pictures = [Image.open(io.BytesIO(media)) for media in example.media]
  if key == 'llava_flax':
    return _processor(folder)(
      text=encoded.text, images=pictures, return_tensors='pt'
    )
  settings = json.loads((folder / 'preprocessor_config.json').read_text())
  seen = dict(_PIXELS[key](**settings)(pictures, return_tensors='np'))
  seen.pop('num_patches', None)
  pixels = seen['pixel_values']
  np.testing.assert_array_equal(
    pixels, encoded.vision['pixel_values'].reshape(pixels.shape)
  )
  tokenizer = _tokenizer(folder)
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
