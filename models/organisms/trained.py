"""A small LLaVA to be trained from scratch on the scenes, and its HF folder.

A picture of 4x4 cells becomes 16 visual tokens, one a cell:

    224x224 or so -> (BOX) 56x56 -> 16 patches of 14x14 -> CLIP tower, 1 layer
    -> GELU projector -> Llama decoder

The words are those of the scenes; prompts are the `plain` templates, in which a
page's number is said in words before its picture (HF's LLaVA has no page
embedding).
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from corejax.data.scenes import vocab
from corejax.models import decoder
from corejax.models import rope
from corejax.models import vision
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights

GRID = 4
PATCH = 14
SIDE = GRID * PATCH
SPECIALS = ('<pad>', '<s>', '</s>', '<unk>', '<image>')
TOKENS = (*SPECIALS, *vocab.words())
ID: Mapping[str, int] = {token: i for i, token in enumerate(TOKENS)}
MAX_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class Size:
  """Sizes that differ between trained models.

  Attributes:
    layers, heads, d_model, d_mlp: of the decoder.
    d_vision, heads_vision: of the tower; its MLP is twice as wide.
  """

  layers: int
  heads: int
  d_model: int
  d_mlp: int
  d_vision: int = 64
  heads_vision: int = 4


SIZES = {
  'tiny': Size(layers=2, heads=2, d_model=32, d_mlp=48, d_vision=16),
  'small': Size(layers=4, heads=8, d_model=128, d_mlp=256),
  'base': Size(layers=8, heads=8, d_model=128, d_mlp=256),
}


def config(size: Size) -> config_lib.LlavaConfig:
  """The model's configuration; `documents` says the same to transformers."""
  head_dim = size.d_model // size.heads
  return config_lib.LlavaConfig(
    text=decoder.DecoderConfig(
      kind='llama',
      vocab_size=len(TOKENS),
      d_model=size.d_model,
      d_mlp=size.d_mlp,
      n_layers=size.layers,
      n_heads=size.heads,
      n_kv_heads=size.heads,
      head_dim=head_dim,
      max_length=MAX_LENGTH,
      rope=rope.RopeConfig(
        head_dim, max_length=MAX_LENGTH, original_length=MAX_LENGTH
      ),
    ),
    vision=vision.VisionConfig(
      kind='clip',
      d_model=size.d_vision,
      d_mlp=2 * size.d_vision,
      n_layers=1,
      n_heads=size.heads_vision,
      image_size=SIDE,
      patch_size=PATCH,
    ),
    image_token_id=ID['<image>'],
    feature_layers=(1,),
  )


def _scale(path: str, shape: tuple[int, ...], n_layers: int) -> float:
  """Standard deviation of a weight's first values."""
  if path == 'language.embed.weight':
    return 1.0
  if path.endswith('cls') or path.endswith('position'):
    return 0.2
  inputs = math.prod(shape[1:])
  if '.layers.' in path:
    inputs = math.prod(shape[2:])
    if path.endswith('attn.o.weight'):
      inputs = math.prod(shape[-2:])
    elif path.endswith(('attn.q.weight', 'attn.k.weight', 'attn.v.weight')):
      inputs = shape[-1]
  scale = 1 / math.sqrt(inputs)
  # So that the sum of all branches is as large as one embedding.
  if path.endswith(('attn.o.weight', 'mlp.down.weight', 'fc2.weight')):
    scale /= math.sqrt(2 * n_layers)
  return scale


def new(size: Size, seed: int) -> modeling.Llava:
  """A model with random weights, float32.

  Args:
    size: of the model.
    seed: other weights.
  """
  model = modeling.abstract(config(size), jnp.dtype('float32'))
  graph, state = nnx.split(model)
  key = jax.random.key(seed)
  filled = []
  for number, (keys, param) in enumerate(nnx.to_flat_state(state)):
    path = '.'.join(map(str, keys))
    if path.endswith('bias'):
      value = jnp.zeros(param.shape)
    elif 'norm' in path:
      value = jnp.ones(param.shape)
    else:
      n_layers = size.layers if path.startswith('language') else 1
      normal = jax.random.normal(jax.random.fold_in(key, number), param.shape)
      value = _scale(path, param.shape, n_layers) * normal
    filled.append((keys, param.replace(value)))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def _on_disk(name: str) -> str:
  """A name of the weight map in the spelling of released checkpoints."""
  for ours, theirs in (
    ('lm_head.', 'language_model.lm_head.'),
    ('model.language_model.', 'language_model.model.'),
    ('model.vision_tower.', 'vision_tower.vision_model.'),
    ('model.multi_modal_projector.', 'multi_modal_projector.'),
  ):
    if name.startswith(ours):
      return theirs + name[len(ours) :]
  raise ValueError(f'{name} belongs to no part of a LLaVA')


def tensors(model: modeling.Llava) -> dict[str, np.ndarray]:
  """All tensors, float32, under the names of released LLaVA checkpoints."""
  entries = {e.path: e for e in weights.make_map(model.config).entries}
  found = {}
  for keys, param in nnx.to_flat_state(nnx.state(model)):
    entry = entries['.'.join(map(str, keys))]
    value = np.asarray(param[...], np.float32)
    layers = value if entry.stacked else value[None]
    for layer, part in enumerate(layers):
      name = _on_disk(entry.name.replace('{}', str(layer)))
      found[name] = np.ascontiguousarray(
        part.reshape(entry.file_shape(part.shape))
      )
  # transformers expects the tower's last norm, which a LLaVA never reads.
  d_vision = model.config.vision.d_model
  for name, value in (('weight', np.ones), ('bias', np.zeros)):
    found[f'vision_tower.vision_model.post_layernorm.{name}'] = value(
      d_vision, np.float32
    )
  return found


def tokenizer() -> tokenizers.Tokenizer:
  """Whole words, lower case; <s> in front, nothing behind."""
  made = tokenizers.Tokenizer(
    tokenizer_models.WordLevel(dict(ID), unk_token='<unk>')
  )
  made.normalizer = normalizers.Lowercase()
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in SPECIALS]
  )
  made.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', ID['<s>'])]
  )
  return made


_NAMED = {
  'bos_token': '<s>',
  'eos_token': '</s>',
  'pad_token': '<pad>',
  'unk_token': '<unk>',
}


def _processor_documents() -> dict[str, dict]:
  size = {'height': SIDE, 'width': SIDE}
  return {
    'tokenizer_config.json': {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'model_max_length': MAX_LENGTH,
      'clean_up_tokenization_spaces': False,
      'processor_class': 'LlavaProcessor',
      **_NAMED,
    },
    'special_tokens_map.json': _NAMED,
    'preprocessor_config.json': {
      'image_processor_type': 'CLIPImageProcessor',
      'processor_class': 'LlavaProcessor',
      'do_convert_rgb': True,
      'do_resize': True,
      'size': size,
      # Pillow's BOX: an average over whole blocks, so nothing leaks from one
      # cell into the next.
      'resample': 4,
      'do_center_crop': False,
      'crop_size': size,
      'do_rescale': True,
      'rescale_factor': 1 / 255,
      'do_normalize': True,
      'image_mean': [0.5, 0.5, 0.5],
      'image_std': [0.5, 0.5, 0.5],
    },
    'processor_config.json': {
      'processor_class': 'LlavaProcessor',
      'image_token': '<image>',
      'num_additional_image_tokens': 1,
      'patch_size': PATCH,
      'vision_feature_select_strategy': 'default',
    },
  }


def documents(
  model_config: config_lib.LlavaConfig, description: str
) -> dict[str, dict]:
  """The folder's JSON files, config.json last.

  Args:
    model_config: of the model.
    description: a line for corejax.json.
  """
  text, tower = model_config.text, model_config.vision
  special_ids = {
    f'{name}_token_id': ID[_NAMED[f'{name}_token']]
    for name in ('bos', 'eos', 'pad')
  }
  return {
    'corejax.json': {'templates': 'plain', 'description': description},
    **_processor_documents(),
    'generation_config.json': {
      '_from_model_config': True,
      'max_new_tokens': 1,  # every answer is one word
      **special_ids,
    },
    'config.json': {
      'architectures': ['LlavaForConditionalGeneration'],
      'model_type': 'llava',
      'image_token_index': model_config.image_token_id,
      'image_seq_length': model_config.n_features,
      'multimodal_projector_bias': model_config.projector_bias,
      'projector_hidden_act': model_config.projector_act,
      'vision_feature_layer': model_config.feature_layers[0],
      'vision_feature_select_strategy': model_config.select,
      'tie_word_embeddings': text.tie,
      'torch_dtype': 'float32',
      'text_config': {
        'model_type': text.kind,
        'vocab_size': text.vocab_size,
        'hidden_size': text.d_model,
        'intermediate_size': text.d_mlp,
        'num_hidden_layers': text.n_layers,
        'num_attention_heads': text.n_heads,
        'num_key_value_heads': text.n_kv_heads,
        'hidden_act': text.act,
        'max_position_embeddings': text.max_length,
        'rms_norm_eps': text.rms_eps,
        'rope_theta': text.rope.theta,
        'tie_word_embeddings': text.tie,
        **special_ids,
      },
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
  folder: str | os.PathLike, model: modeling.Llava, description: str
) -> pathlib.Path:
  """Writes a checkpoint folder that HF's LLaVA classes load too.

  Files appear whole and `config.json` last: a folder that has one is complete.

  Args:
    folder: made if need be.
    model: the weights.
    description: a line for corejax.json.

  Returns:
    The folder.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  contents: dict[str, bytes] = {
    'model.safetensors': safetensors.numpy.save(
      tensors(model), metadata={'format': 'pt'}
    ),
    'tokenizer.json': tokenizer().to_str(pretty=True).encode(),
  }
  made: dict[str, Any] = documents(model.config, description)
  for name, document in made.items():
    contents[name] = (json.dumps(document, indent=2) + '\n').encode()
  for name, content in contents.items():
    draft = folder / f'.{name}.{os.getpid()}'
    draft.write_bytes(content)
    os.replace(draft, folder / name)
  return folder
