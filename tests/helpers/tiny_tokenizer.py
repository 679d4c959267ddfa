"""Tiny fast tokenizers, and checkpoint folders without weights.

Four kinds, for what differs between released tokenizers:

- 'words': a closed word list, lower-cased, split at spaces and punctuation;
- 'bytes': byte-level BPE (GPT-2, Qwen), merges over spaces and line breaks;
- 'pieces': BPE on '\\u2581'-joined pieces with a prefix and a <s> (Llama), as
  LLaVA-1.5 has it;
- 'eos': 'words' that appends </s>, which no processor can use.
"""

import json
import pathlib

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers
import transformers

KINDS = ('words', 'bytes', 'pieces')
SPECIALS = ['<unk>', '<s>', '</s>', '<pad>']
IMAGE = '<image>'
WORDS = (
  'what colour is the star circle background which page has follows shape '
  'red green blue 1 2 3 user assistant : ? . , n / a'
).split()
_CORPUS = [
  'USER: What colour is the star? ASSISTANT: red',
  'Which page has the circle? Page 2: the star is green.\n\n',
  'what shape is red\nANSWER: blue, 1, 2, 3',
] * 4


def make(kind: str, image_token: str | None = IMAGE):
  """A transformers fast tokenizer; `image_token` None leaves it out."""
  if kind in ('words', 'eos'):
    vocab = {word: i for i, word in enumerate(SPECIALS + sorted(set(WORDS)))}
    core = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    end = ' </s>' if kind == 'eos' else ''
    core.post_processor = processors.TemplateProcessing(
      single=f'<s> $A{end}', special_tokens=[('<s>', 1), ('</s>', 2)]
    )
  elif kind == 'bytes':
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
      _CORPUS,
      trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      ),
    )
  elif kind == 'pieces':
    core = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True))
    core.normalizer = normalizers.Sequence(
      [normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')]
    )
    # As with Llama, no learned piece reaches over a space, and none is split
    # off at one afterwards.
    core.pre_tokenizer = pre_tokenizers.Split('\u2581', 'merged_with_next')
    core.train_from_iterator(
      _CORPUS,
      trainers.BpeTrainer(
        vocab_size=90, show_progress=False, special_tokens=SPECIALS
      ),
    )
    core.pre_tokenizer = pre_tokenizers.Sequence([])
    core.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 1)]
    )
  else:
    raise ValueError(kind)
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    unk_token='<unk>',
    bos_token='<s>',
    eos_token='</s>',
    pad_token='<pad>',
  )
  if image_token is not None:
    fast.add_special_tokens({'additional_special_tokens': [image_token]})
  return fast


def folder(
  path: pathlib.Path,
  kind: str,
  *,
  tower: str = 'clip',
  image_size: int = 42,
  patch_size: int = 14,
  select: str = 'default',
  text: str = 'llama',
  vocab_size: int = 512,
  context: int = 512,
  image_token: str | None = IMAGE,
  pixels: dict | None = None,
  flat: bool = False,
) -> pathlib.Path:
  """Writes config, tokenizer and processor files of a tiny LLaVA.

  Args:
    path: a folder to be.
    kind: of the tokenizer.
    tower: 'clip' or 'siglip'.
    image_size, patch_size: of the tower.
    select: vision_feature_select_strategy.
    text: model_type of the text model.
    vocab_size: of the text model.
    context: its max_position_embeddings.
    image_token: None leaves it out of the vocabulary.
    pixels: the preprocessor's settings; None crops to image_size.
    flat: write the older preprocessor_config.json instead of the nested one.
  """
  path.mkdir(parents=True, exist_ok=True)
  tokenizer = make(kind, image_token)
  tokenizer.save_pretrained(path)
  sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2)
  config = {
    'architectures': ['LlavaForConditionalGeneration'],
    'model_type': 'llava',
    'image_token_index': len(tokenizer) - 1,
    'vision_feature_select_strategy': select,
    'vision_feature_layer': -2,
    'text_config': {
      'model_type': text,
      'vocab_size': vocab_size,
      'max_position_embeddings': context,
      'num_attention_heads': 2,
      'num_key_value_heads': 2,
      **sizes,
    },
    'vision_config': {
      'model_type': f'{tower}_vision_model',
      'image_size': image_size,
      'patch_size': patch_size,
      'num_attention_heads': 2,
      **sizes,
    },
  }
  (path / 'config.json').write_text(json.dumps(config))
  if pixels is None:
    pixels = {
      'image_processor_type': 'CLIPImageProcessor',
      'size': {'shortest_edge': image_size},
      'crop_size': {'height': image_size, 'width': image_size},
    }
  processor = {
    'processor_class': 'LlavaProcessor',
    'image_token': IMAGE,
    'patch_size': patch_size,
    'vision_feature_select_strategy': select,
    'num_additional_image_tokens': int(tower == 'clip'),
  }
  if flat:
    (path / 'preprocessor_config.json').write_text(json.dumps(pixels))
  else:
    processor['image_processor'] = pixels
  (path / 'processor_config.json').write_text(json.dumps(processor))
  return path
