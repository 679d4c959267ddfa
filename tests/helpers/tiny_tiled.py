"""Tiny checkpoint folders of the families that cut pictures into tiles."""

import json
import pathlib
from typing import Any

import transformers
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2
from transformers.models.internvl import processing_internvl
from transformers.models.llava_next import image_processing_pil_llava_next
from transformers.models.llava_onevision import (
  image_processing_pil_llava_onevision,
)
from transformers.models.llava_onevision import processing_llava_onevision

from helpers import tiny_tokenizer

_INTERNVL_TOKENS = {
  'start_image_token': '<img>',
  'end_image_token': '</img>',
  'video_token': '<video>',
  'context_image_token': '<IMG_CONTEXT>',
}


def change(path: pathlib.Path, **changes: Any) -> None:
  """Sets keys of a JSON file; None removes one."""
  content = {**json.loads(path.read_text()), **changes}
  content = {key: value for key, value in content.items() if value is not None}
  path.write_text(json.dumps(content))


def _tokenizer(folder: pathlib.Path, kind: str, tokens: dict[str, str]) -> int:
  """Writes a tokenizer with these added tokens; their last one's id."""
  tokenizer = tiny_tokenizer.make(kind, None)
  tokenizer.add_special_tokens(
    {'additional_special_tokens': list(tokens.values())}
  )
  tokenizer.save_pretrained(folder)
  change(folder / 'tokenizer_config.json', extra_special_tokens=tokens)
  return len(tokenizer) - 1


def internvl(
  folder: pathlib.Path,
  kind: str = 'bytes',
  *,
  text: str = 'qwen2',
  text_kw: dict | None = None,
  tile: int = 56,
  patch: int = 7,
  most: int = 6,
  context: int = 2048,
  flat: bool = False,
) -> pathlib.Path:
  """Writes config, tokenizer and processor files of a tiny InternVL.

  Args:
    folder: made if absent.
    kind: of the tokenizer.
    text: model_type of the text model; text_kw overrides its settings.
    tile, patch: pixels along a side.
    most: max_patches.
    context: max_position_embeddings.
    flat: write preprocessor_config.json instead of the nested one.
  """
  folder.mkdir(parents=True, exist_ok=True)
  token_id = _tokenizer(folder, kind, _INTERNVL_TOKENS)
  sizes = dict(hidden_size=32, intermediate_size=40)
  per_tile = (tile // patch // 2) ** 2
  config = {
    'model_type': 'internvl',
    'image_token_id': token_id,
    'image_seq_length': per_tile,
    'tie_word_embeddings': False,
    'text_config': {
      'model_type': text,
      'vocab_size': 512,
      'max_position_embeddings': context,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      **sizes,
      **(text_kw or {}),
    },
    'vision_config': {
      'model_type': 'internvl_vision',
      'image_size': [tile, tile],
      'patch_size': [patch, patch],
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      'attention_bias': True,
      **sizes,
    },
  }
  (folder / 'config.json').write_text(json.dumps(config))
  pixels = {
    'image_processor_type': 'GotOcr2ImageProcessorFast',
    'size': {'height': tile, 'width': tile},
    'crop_to_patches': False,
    'min_patches': 1,
    'max_patches': most,
    'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225],
    'do_center_crop': None,
    'crop_size': None,
  }
  _write_processor(
    folder,
    {'processor_class': 'InternVLProcessor', 'image_seq_length': per_tile},
    pixels,
    flat,
  )
  return folder


def anyres(
  folder: pathlib.Path,
  kind: str = 'bytes',
  *,
  model_type: str = 'llava_next',
  text: str = 'qwen2',
  text_kw: dict | None = None,
  tile: int = 60,
  patch: int = 11,
  most: int = 2,
  context: int = 2048,
  flat: bool = False,
) -> pathlib.Path:
  """Writes config, tokenizer and processor files of a tiny NeXT or OneVision.

  Args:
    folder: made if absent.
    kind: of the tokenizer.
    model_type: 'llava_next' (CLIP) or 'llava_onevision' (SigLIP).
    text: model_type of the text model; text_kw overrides its settings.
    tile, patch: pixels along a side.
    most: N of OneVision's anyres_max_N.
    context: max_position_embeddings.
    flat: write preprocessor_config.json instead of the nested one.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tokens = {'image_token': '<image>'}
  if model_type == 'llava_onevision':
    tokens = {'video_token': '<video>', **tokens}
  token_id = _tokenizer(folder, kind, tokens)
  is_next = model_type == 'llava_next'
  strategy = 'default' if is_next else 'full'
  # Up to six tiles; high ones and wide ones are not the same.
  pinpoints = [
    [tile * high, tile * wide]
    for high in range(1, 4)
    for wide in range(1, 5)
    if high * wide <= 6
  ]
  sizes = dict(hidden_size=32, intermediate_size=40)
  config = {
    'model_type': model_type,
    'image_token_index': token_id,
    'image_grid_pinpoints': pinpoints,
    'vision_feature_layer': -2 if is_next else -1,
    'vision_feature_select_strategy': strategy,
    'use_image_newline_parameter': True,
    'text_config': {
      'model_type': text,
      'vocab_size': 512,
      'max_position_embeddings': context,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      **sizes,
      **(text_kw or {}),
    },
    'vision_config': {
      'model_type': 'clip_vision_model' if is_next else 'siglip_vision_model',
      'image_size': tile,
      'patch_size': patch,
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      **sizes,
    },
  }
  pixels = {
    'image_grid_pinpoints': pinpoints,
    'image_mean': [0.48, 0.46, 0.41],
    'image_std': [0.27, 0.26, 0.28],
    'do_pad': True,
  }
  processor = {
    'image_token': '<image>',
    'vision_feature_select_strategy': strategy,
  }
  if is_next:
    pixels |= {
      'image_processor_type': 'LlavaNextImageProcessor',
      'size': {'shortest_edge': tile},
      'crop_size': {'height': tile, 'width': tile},
    }
    processor |= {
      'processor_class': 'LlavaNextProcessor',
      'patch_size': patch,
      'num_additional_image_tokens': 1,
    }
  else:
    config['vision_aspect_ratio'] = f'anyres_max_{most}'
    config['video_token_index'] = token_id - 1
    pixels |= {
      'image_processor_type': 'LlavaOnevisionImageProcessor',
      'size': {'height': tile, 'width': tile},
    }
    processor |= {
      'processor_class': 'LlavaOnevisionProcessor',
      'num_image_tokens': (tile // patch) ** 2,
      'vision_aspect_ratio': f'anyres_max_{most}',
    }
  (folder / 'config.json').write_text(json.dumps(config))
  _write_processor(folder, processor, pixels, flat)
  return folder


def _write_processor(folder, processor: dict, pixels: dict, flat: bool) -> None:
  if flat:
    (folder / 'preprocessor_config.json').write_text(json.dumps(pixels))
  else:
    processor = {**processor, 'image_processor': pixels}
  (folder / 'processor_config.json').write_text(json.dumps(processor))


def pixel_settings(folder: pathlib.Path) -> dict[str, Any]:
  """What a folder says of its image processor."""
  path = folder / 'preprocessor_config.json'
  if path.exists():
    return json.loads(path.read_text())
  path = folder / 'processor_config.json'
  return json.loads(path.read_text())['image_processor']


class Frames:
  """In place of a video processor, which needs torchvision.

  Attributes:
    pixels: [videos, frames, C, Y, X], what it makes of whatever it gets.
  """

  def __init__(self):
    self.pixels: Any = ()

  def __call__(self, videos, **kwargs):
    del kwargs
    assert [len(video) for video in videos] == [len(p) for p in self.pixels]
    return {'pixel_values_videos': self.pixels}


class _InternVLProcessor(processing_internvl.InternVLProcessor):
  """With any video processor."""

  def check_argument_for_proper_class(self, argument_name, argument):
    return None


class _OnevisionProcessor(processing_llava_onevision.LlavaOnevisionProcessor):
  """With any video processor."""

  def check_argument_for_proper_class(self, argument_name, argument):
    return None


def hf_anyres(folder: pathlib.Path):
  """transformers' own processor of a folder, on its PIL image processor."""
  settings = pixel_settings(folder)
  said = json.loads((folder / 'processor_config.json').read_text())
  said.pop('image_processor', None)
  kind = settings.pop('image_processor_type')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  if kind == 'LlavaNextImageProcessor':
    said.pop('processor_class')
    images = image_processing_pil_llava_next.LlavaNextImageProcessorPil(
      **settings
    )
    return transformers.LlavaNextProcessor(images, tokenizer, **said)
  said.pop('processor_class')
  images = image_processing_pil_llava_onevision.LlavaOnevisionImageProcessorPil(
    **settings
  )
  return _OnevisionProcessor(images, tokenizer, Frames(), **said)


def hf_internvl(folder: pathlib.Path) -> processing_internvl.InternVLProcessor:
  """transformers' own processor of a folder, on its PIL image processor."""
  settings = pixel_settings(folder)
  settings.pop('image_processor_type')
  settings.pop('crop_to_patches')  # the processor's default is to cut
  said = json.loads((folder / 'processor_config.json').read_text())
  return _InternVLProcessor(
    image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil(
      **{key: value for key, value in settings.items() if value is not None}
    ),
    transformers.AutoTokenizer.from_pretrained(folder),
    Frames(),
    image_seq_length=said['image_seq_length'],
  )
