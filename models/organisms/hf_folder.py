"""What every organism's checkpoint folder holds, in Hugging Face's format.

An organism's pictures are 4x4 cells of one scene, one visual token a cell, and
its words are those of the scenes:

    any size -> (BOX) 56x56 -> 16 cells of 14x14 -> tower -> decoder

Here: what all of them share, and what is LLaVA's (a cell is one patch); those
of other families are in internvl.py and qwen3_vl.py. transformers' classes,
tokenizer and processor load the folders too.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from corejax.data.scenes import vocab
from corejax.models import decoder
from corejax.models import pixels
from corejax.models.llava import config as config_lib

GRID = 4
PATCH = 14
SIDE = GRID * PATCH
MAX_LENGTH = 256
SPECIALS = ('<pad>', '<s>', '</s>', '<unk>', '<image>')
TOKENS = (*SPECIALS, *vocab.words())
# Of LLaVA's folders; a word has the same id in those of the other families.
ID: Mapping[str, int] = {token: i for i, token in enumerate(TOKENS)}

_NAMED = {
  'bos_token': '<s>',
  'eos_token': '</s>',
  'pad_token': '<pad>',
  'unk_token': '<unk>',
}
SPECIAL_IDS = {f'{name}_id': ID[token] for name, token in _NAMED.items()}
del SPECIAL_IDS['unk_token_id']
_RESIZE = {
  'do_convert_rgb': True,
  'do_resize': True,
  'size': {'height': SIDE, 'width': SIDE},
  # Pillow's BOX: an average over whole blocks, so nothing leaks from one cell
  # into the next.
  'resample': 4,
}
_VALUES = {
  'do_rescale': True,
  'rescale_factor': 1 / 255,
  'do_normalize': True,
  'image_mean': [0.5, 0.5, 0.5],
  'image_std': [0.5, 0.5, 0.5],
}


def tokens(image: str = '<image>', more: Sequence[str] = ()) -> tuple[str, ...]:
  """All tokens by id, <image> being called `image` and `more` behind all."""
  return (*SPECIALS[:-1], image, *TOKENS[len(SPECIALS) :], *more)


def tokenizer(
  image: str = '<image>', more: Sequence[str] = ()
) -> tokenizers.Tokenizer:
  """Whole words, lower case; <s> in front, nothing behind.

  Args:
    image: what stands for a visual feature.
    more: further special tokens.
  """
  words = {token: i for i, token in enumerate(tokens(image, more))}
  made = tokenizers.Tokenizer(
    tokenizer_models.WordLevel(words, unk_token='<unk>')
  )
  made.normalizer = normalizers.Lowercase()
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(
    [
      tokenizers.AddedToken(t, normalized=False)
      for t in (*SPECIALS[:-1], image, *more)
    ]
  )
  made.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', ID['<s>'])]
  )
  return made


def cell_pixels() -> pixels.PixelSpec:
  """What every folder's processor does to a page's pixels."""
  return pixels.parse(
    # Resizes, and crops nothing.
    {'image_processor_type': 'SiglipImageProcessor', **_RESIZE, **_VALUES},
    'an organism',
  )


def shared_documents(
  processor: str, image_processor: str, own: Mapping[str, object]
) -> dict[str, dict]:
  """The JSON files that every folder has, but for config.json.

  Args:
    processor: HF's class.
    image_processor: HF's class.
    own: what preprocessor_config.json says beside the pixels.
  """
  return {
    'tokenizer_config.json': {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'model_max_length': MAX_LENGTH,
      'clean_up_tokenization_spaces': False,
      'processor_class': processor,
      **_NAMED,
    },
    'special_tokens_map.json': _NAMED,
    'preprocessor_config.json': {
      'image_processor_type': image_processor,
      'processor_class': processor,
      **_RESIZE,
      **own,
      **_VALUES,
    },
    'generation_config.json': {
      '_from_model_config': True,
      'max_new_tokens': 1,  # every answer is one word
      **SPECIAL_IDS,
    },
  }


def text_document(
  text: decoder.DecoderConfig, kind: str, rope: Mapping[str, object]
) -> dict[str, object]:
  """What config.json says of a decoder.

  Args:
    text: the decoder.
    kind: HF's model_type.
    rope: what is said of its rotary embedding.
  """
  return {
    'model_type': kind,
    'vocab_size': text.vocab_size,
    'hidden_size': text.d_model,
    'intermediate_size': text.d_mlp,
    'num_hidden_layers': text.n_layers,
    'num_attention_heads': text.n_heads,
    'num_key_value_heads': text.n_kv_heads,
    'hidden_act': text.act,
    'max_position_embeddings': text.max_length,
    'rms_norm_eps': text.rms_eps,
    **rope,
    'tie_word_embeddings': text.tie,
    **SPECIAL_IDS,
  }


def documents(model_config: config_lib.LlavaConfig) -> dict[str, dict]:
  """A LLaVA folder's JSON files, config.json last."""
  text, tower = model_config.text, model_config.vision
  (layer,) = model_config.feature_layers
  return {
    **shared_documents(
      'LlavaProcessor',
      'CLIPImageProcessor',
      {'do_center_crop': False, 'crop_size': _RESIZE['size']},
    ),
    'processor_config.json': {
      'processor_class': 'LlavaProcessor',
      'image_token': '<image>',
      'num_additional_image_tokens': 1,
      'patch_size': PATCH,
      'vision_feature_select_strategy': 'default',
    },
    'config.json': {
      'architectures': ['LlavaForConditionalGeneration'],
      'model_type': 'llava',
      'image_token_index': model_config.image_token_id,
      'image_seq_length': model_config.n_features,
      'multimodal_projector_bias': model_config.projector_bias,
      'projector_hidden_act': model_config.projector_act,
      # transformers takes 0 for "none given".
      'vision_feature_layer': layer or -tower.n_layers - 1,
      'vision_feature_select_strategy': model_config.select,
      'tie_word_embeddings': text.tie,
      'torch_dtype': 'float32',
      'text_config': text_document(
        text, text.kind, {'rope_theta': text.rope.theta}
      ),
      'vision_config': {
        'model_type': 'clip_vision_model',
        'hidden_size': tower.d_model,
        'intermediate_size': tower.d_mlp,
        'num_hidden_layers': tower.n_layers,
        'num_attention_heads': tower.n_heads,
        'image_size': tower.image_size,
        'patch_size': tower.patch_size,
        'projection_dim': tower.d_model,
        'hidden_act': tower.act,
        'layer_norm_eps': tower.eps,
      },
    },
  }


def write(
  folder: str | os.PathLike,
  files: Mapping[str, Mapping[str, object]],
  tensors: Mapping[str, np.ndarray],
  about: Mapping[str, object],
  words: tokenizers.Tokenizer | None = None,
) -> pathlib.Path:
  """Writes a checkpoint folder.

  Files appear whole and `config.json` last: a folder that has one is complete,
  even where two processes write it at once.

  Args:
    folder: made if need be.
    files: the JSON files, config.json last.
    tensors: under the names of released checkpoints.
    about: what corejax.json says beside the prompt templates.
    words: the tokenizer; None is LLaVA's.

  Returns:
    The folder.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  contents: dict[str, bytes] = {
    'model.safetensors': safetensors.numpy.save(
      dict(tensors), metadata={'format': 'pt'}
    ),
    'tokenizer.json': (words or tokenizer()).to_str(pretty=True).encode(),
  }
  settings = {'templates': 'plain', **about}
  for name, document in {'corejax.json': settings, **files}.items():
    contents[name] = (json.dumps(document, indent=2) + '\n').encode()
  for name, content in contents.items():
    draft = folder / f'.{name}.{os.getpid()}'
    draft.write_bytes(content)
    os.replace(draft, folder / name)
  return folder
