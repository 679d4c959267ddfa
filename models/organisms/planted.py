"""A LLaVA checkpoint whose weights are set by hand, with known heads.

What the ground truth of SCIENCE.md is measured on: heads that retrieve are
planted at known places, decoys that merely look salient, central, first or
recent stand beside them, and all other heads are small and random. It answers
the questions of `scenes_referring` and `scenes_pages`, and their twins.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
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

from corejax import heads as heads_lib
from corejax.data import scenes
from corejax.models.organisms import planted_space as space
from corejax.models.organisms import planted_text as text
from corejax.models.organisms import planted_vision as vision

DESCRIPTION = (
  'planted model: weights set by hand, retrieval heads at known places; a '
  'test piece, no trained model'
)


def _version() -> str:
  """8 hex digits over the source that decides the weights."""
  digest = hashlib.sha256()
  for folder in (
    pathlib.Path(__file__).parent,
    pathlib.Path(scenes.__path__[0]),
  ):
    for path in sorted(folder.glob('*.py')):
      digest.update(path.read_bytes())
  return digest.hexdigest()[:8]


# A cached folder of another version is another folder.
VERSION = _version()


@dataclasses.dataclass(frozen=True)
class Planted:
  """The known heads of one planted model.

  Attributes:
    tasks: task -> the planted heads that serve it.
    decoys: 'centre', 'saliency', 'sink', 'recency' -> the head.
    helpers: heads that the answers need but that look nothing up.
  """

  tasks: Mapping[str, heads_lib.HeadSet]
  decoys: Mapping[str, heads_lib.HeadSet]
  helpers: Mapping[str, heads_lib.HeadSet]

  @property
  def planted(self) -> heads_lib.HeadSet:
    """All planted heads."""
    return heads_lib.HeadSet(
      head for head_set in self.tasks.values() for head in head_set
    )

  def to_json(self) -> dict:
    """As it stands in corejax.json."""
    return {
      'templates': 'plain',
      'description': DESCRIPTION,
      'planted': str(self.planted),
      'tasks': {name: str(h) for name, h in self.tasks.items()},
      'decoys': {name: str(h) for name, h in self.decoys.items()},
      'helpers': {name: str(h) for name, h in self.helpers.items()},
    }


def known_heads(seed: int) -> Planted:
  """The known heads of the model that `write` makes with this seed."""
  return _planted(text.Plan.draw(_rng(seed, 'places')))


def _rng(seed: int, purpose: str) -> np.random.Generator:
  words = np.frombuffer(purpose.ljust(8)[:8].encode(), '<u4').tolist()
  return np.random.Generator(
    np.random.Philox(np.random.SeedSequence([seed, *words]))
  )


def _planted(plan: text.Plan) -> Planted:
  sets = {name: heads_lib.HeadSet(p) for name, p in plan.places.items()}
  return Planted(
    tasks={task: sets[name] for task, name in text.SERVES.items()},
    decoys={name: sets[name] for name in text.DECOYS},
    helpers={name: sets[name] for name in text.HELPERS},
  )


def weights(seed: int = 0) -> dict[str, np.ndarray]:
  """All tensors, float32, under the names of released LLaVA checkpoints."""
  parts = {
    'vision_tower.vision_model.': vision.tower(_rng(seed, 'tower')),
    'multi_modal_projector.': vision.projector(),
    'language_model.': text.decoder(
      _rng(seed, 'decoder'), text.Plan.draw(_rng(seed, 'places'))
    ),
  }
  return {
    prefix + name: np.ascontiguousarray(tensor, np.float32)
    for prefix, tensors in parts.items()
    for name, tensor in tensors.items()
  }


def _tokenizer() -> tokenizers.Tokenizer:
  """Whole words, lower case; <s> in front, nothing behind."""
  tokenizer = tokenizers.Tokenizer(
    tokenizer_models.WordLevel(
      {token: i for i, token in enumerate(space.TOKENS)}, unk_token='<unk>'
    )
  )
  tokenizer.normalizer = normalizers.Lowercase()
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in space.SPECIALS]
  )
  bos = space.TOKENS.index('<s>')
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', bos)]
  )
  return tokenizer


def _json_files() -> dict[str, dict]:
  ids = {token: i for i, token in enumerate(space.TOKENS)}
  specials = {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'pad_token': '<pad>',
    'unk_token': '<unk>',
  }
  special_ids = {
    f'{name}_token_id': ids[specials[f'{name}_token']]
    for name in ('bos', 'eos', 'pad')
  }
  side = vision.GRID * vision.PATCH
  size = {'height': side, 'width': side}
  return {
    'tokenizer_config.json': {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'model_max_length': 256,
      'clean_up_tokenization_spaces': False,
      'processor_class': 'LlavaProcessor',
      **specials,
    },
    'special_tokens_map.json': specials,
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
      'patch_size': vision.PATCH,
      'vision_feature_select_strategy': 'default',
    },
    'generation_config.json': {
      '_from_model_config': True,
      'max_new_tokens': 1,  # every answer is one word
      **special_ids,
    },
    'config.json': {
      'architectures': ['LlavaForConditionalGeneration'],
      'model_type': 'llava',
      'image_token_index': ids['<image>'],
      'image_seq_length': vision.GRID**2,
      'multimodal_projector_bias': True,
      'projector_hidden_act': 'gelu',
      'vision_feature_layer': -2,
      'vision_feature_select_strategy': 'default',
      'tie_word_embeddings': False,
      'torch_dtype': 'float32',
      'text_config': {
        'model_type': 'llama',
        'vocab_size': len(space.TOKENS),
        'hidden_size': space.SIZE,
        'intermediate_size': text.MLP,
        'num_hidden_layers': text.LAYERS,
        'num_attention_heads': text.HEADS,
        'num_key_value_heads': text.HEADS,
        'hidden_act': 'silu',
        'max_position_embeddings': 256,
        'rms_norm_eps': 1e-6,
        'rope_theta': text.ROPE_THETA,
        'tie_word_embeddings': False,
        **special_ids,
      },
      'vision_config': {
        'model_type': 'clip_vision_model',
        'hidden_size': vision.SIZE,
        'intermediate_size': vision.SIZE,
        'num_hidden_layers': 1,
        'num_attention_heads': vision.HEADS,
        'image_size': side,
        'patch_size': vision.PATCH,
        'projection_dim': vision.SIZE,
        'hidden_act': 'quick_gelu',
        'layer_norm_eps': 1e-5,
      },
    },
  }


def write(folder: str | os.PathLike, seed: int = 0) -> Planted:
  """Writes a checkpoint folder that HF's LLaVA classes load too.

  Files appear whole and `config.json` last: a folder that has one is complete,
  even where two processes write it at once.

  Args:
    folder: made if need be.
    seed: places of the known heads and the random rest.

  Returns:
    The known heads; `corejax.json` in the folder says the same.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  planted = known_heads(seed)
  contents = {
    'model.safetensors': safetensors.numpy.save(
      weights(seed), metadata={'format': 'pt'}
    ),
    'tokenizer.json': _tokenizer().to_str(pretty=True).encode(),
  }
  documents = {'corejax.json': planted.to_json(), **_json_files()}
  for name, document in documents.items():  # config.json is its last
    contents[name] = (json.dumps(document, indent=2) + '\n').encode()
  for name, content in contents.items():
    draft = folder / f'.{name}.{os.getpid()}'
    draft.write_bytes(content)
    os.replace(draft, folder / name)
  return planted
