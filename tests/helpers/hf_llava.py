"""Tiny LLaVA folders in Hugging Face's format, with weights worth testing.

transformers' own tiny initialisation hides bugs (unit norms, zero tables and
biases, near-uniform attention); here every parameter is redrawn with a spread
at which attention is peaked and logits have a standard deviation of a few.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import transformers

from corejax import inputs as inputs_lib
from corejax import masks
from helpers import torch_only

torch = torch_only.torch
safetensors_torch = torch_only.safetensors_torch

IMAGE_TOKEN = 60
_TEXT = {
  'llama': transformers.LlamaConfig,
  'mistral': transformers.MistralConfig,
  'qwen2': transformers.Qwen2Config,
  'qwen3': transformers.Qwen3Config,
  'qwen3_moe': transformers.Qwen3MoeConfig,
}
_EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20)

_TOWER = {
  'clip': transformers.CLIPVisionConfig,
  'siglip': transformers.SiglipVisionConfig,
}


def config(
  text: str = 'llama',
  tower: str = 'clip',
  *,
  text_kw: dict | None = None,
  tower_kw: dict | None = None,
  **kw,
) -> transformers.LlavaConfig:
  """A LlavaConfig of a few thousand parameters.

  Args:
    text: backbone.
    tower: tower.
    text_kw, tower_kw: override the backbone's and the tower's settings.
    **kw: override the top level's.
  """
  return transformers.LlavaConfig(
    text_config=text_config(text, text_kw),
    vision_config=tower_config(tower, tower_kw),
    **{'image_token_index': IMAGE_TOKEN, **kw},
  )


def text_config(text: str, overrides: dict | None = None):
  """A backbone's config: 3 layers, 4 heads, head size 8, width 32."""
  return _TEXT[text](
    **{
      'vocab_size': 64,
      'hidden_size': 32,
      'intermediate_size': 40,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 4,
      'max_position_embeddings': 128,
      'rms_norm_eps': 1e-5,
      'head_dim': 8,
      **({'sliding_window': None} if text == 'mistral' else {}),
      **(_EXPERTS if text == 'qwen3_moe' else {}),
      **(overrides or {}),
    }
  )


def tower_config(tower: str, overrides: dict | None = None):
  """A tower's config: 3 layers, 5 heads, 3x3 patches and a rest of a pixel."""
  return _TOWER[tower](
    **{
      'hidden_size': 20,
      'intermediate_size': 28,
      'num_hidden_layers': 3,
      'num_attention_heads': 5,
      'image_size': 13,
      'patch_size': 4,
      **(overrides or {}),
    }
  )


def build(
  hf_config: transformers.LlavaConfig, seed: int = 0
) -> transformers.LlavaForConditionalGeneration:
  """The torch model, redrawn, in float32 with eager attention."""
  hf_config._attn_implementation = 'eager'
  model = transformers.LlavaForConditionalGeneration(hf_config).eval().float()
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, param in model.named_parameters():
      param.copy_(torch.tensor(draw(name, tuple(param.shape), rng)))
  model.tie_weights()
  return model


def draw(name: str, shape: tuple[int, ...], rng) -> np.ndarray:
  """A parameter worth testing, by its name."""
  normal = rng.standard_normal(shape).astype(np.float32)
  if 'norm' in name and name.endswith('weight'):
    return rng.uniform(0.5, 1.6, shape).astype(np.float32)
  if name.endswith('bias'):
    return 0.3 * normal
  if len(shape) == 1 or 'position_embedding' in name:
    return 0.7 * normal
  # A unit input gives scores of standard deviation 2, logits of 3.
  gain = 1.0
  if 'experts' in name:  # [experts, out, in]
    return normal / math.sqrt(shape[-1])
  if name.endswith('mlp.gate.weight'):  # a router that is sure
    gain = 3.0
  elif 'q_proj' in name or 'k_proj' in name:
    gain = math.sqrt(2)
  elif 'lm_head' in name or 'embed_tokens' in name:
    gain = 3.0
  return gain * normal / math.sqrt(math.prod(shape[1:]))


# Key layouts: what 5.x writes, what the hub holds, and names as in memory.
LAYOUTS = ('saved', 'hub', 'memory')


def save(
  model: transformers.LlavaForConditionalGeneration,
  folder: pathlib.Path,
  *,
  layout: str = 'saved',
  dtype: torch.dtype = torch.float32,
  max_shard_size: str = '1GB',
  extra: dict[str, torch.Tensor] | None = None,
):
  """Writes a checkpoint folder (no tokenizer).

  Args:
    model: of `build`.
    folder: made if absent.
    layout: one of LAYOUTS.
    dtype: of the files.
    max_shard_size: as in save_pretrained; several files below the total.
    extra: tensors to add, under the layout's names.
  """
  model.save_pretrained(folder, max_shard_size=max_shard_size)
  for path in sorted(folder.glob('*.safetensors')):
    tensors = {
      _respell(name, layout): tensor.to(dtype)
      for name, tensor in safetensors_torch.load_file(path).items()
    }
    tensors |= extra or {}
    extra = None
    safetensors_torch.save_file(tensors, path, metadata={'format': 'pt'})
  index = folder / 'model.safetensors.index.json'
  if index.exists():
    content = json.loads(index.read_text())
    content['weight_map'] = {
      _respell(name, layout): file
      for name, file in content['weight_map'].items()
    }
    index.write_text(json.dumps(content))


def _respell(name: str, layout: str) -> str:
  if layout == 'saved':
    return name
  if layout == 'hub':
    return name.replace('vision_tower.', 'vision_tower.vision_model.')
  name = name.replace('language_model.lm_head', 'lm_head')
  if name.startswith('lm_head'):
    return name
  return 'model.' + name.replace('language_model.model.', 'language_model.')


@dataclasses.dataclass(frozen=True)
class Batch:
  """The same batch for both sides.

  Attributes:
    inputs: ours.
    torch: keyword arguments of the torch model.
    real_BT: bool, rows that are not padding.
  """

  inputs: inputs_lib.Inputs
  torch: dict[str, torch.Tensor]
  real_BT: np.ndarray


IMAGE = 'image'


def batch(
  hf_config: transformers.LlavaConfig,
  sequences: Sequence[Sequence[int | str]],
  *,
  side: str = 'right',
  seed: int = 0,
) -> Batch:
  """Random tokens and pictures.

  Args:
    hf_config: of the model.
    sequences: each a list of lengths of text runs and IMAGE.
    side: of the padding.
    seed: of tokens and pixels.
  """
  rng = np.random.default_rng(seed)
  tower = hf_config.vision_config
  n_features = (tower.image_size // tower.patch_size) ** 2
  n_features += tower.model_type == 'clip_vision_model'
  n_features -= hf_config.vision_feature_select_strategy == 'default'
  rows, features, n_media = [], [], 0
  for sequence in sequences:
    tokens, feature = [], []
    for part in sequence:
      if part == IMAGE:
        tokens += [hf_config.image_token_id] * n_features
        feature += list(range(n_media * n_features, (n_media + 1) * n_features))
        n_media += 1
      else:
        tokens += list(rng.integers(3, IMAGE_TOKEN, part))
        feature += [-1] * part
    rows.append(tokens)
    features.append(feature)
  length = max(map(len, rows))
  shape = (len(rows), length)
  tokens_BT = np.zeros(shape, np.int32)
  feature_BT = np.full(shape, -1, np.int32)
  real_BT = np.zeros(shape, bool)
  for b, (tokens, feature) in enumerate(zip(rows, features)):
    start = length - len(tokens) if side == 'left' else 0
    where = slice(start, start + len(tokens))
    tokens_BT[b, where] = tokens
    feature_BT[b, where] = feature
    real_BT[b, where] = True
  side_px = tower.image_size
  pixels = rng.standard_normal((n_media, 3, side_px, side_px), np.float32)
  start_B = real_BT.argmax(1)
  mask = masks.AttnMask(
    kv_start_B=jnp.asarray(start_B, jnp.int32),
    kv_len_B=jnp.asarray(start_B + real_BT.sum(1), jnp.int32),
  )
  vision, torch_kw = {}, {}
  if n_media:
    vision = {'pixel_values': jnp.asarray(pixels)}
    torch_kw = {'pixel_values': torch.tensor(pixels)}
  torch_kw |= {
    'input_ids': torch.tensor(tokens_BT, dtype=torch.long),
    'attention_mask': torch.tensor(real_BT, dtype=torch.long),
  }
  # As transformers counts them: padding on the left is not skipped.
  positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
  return Batch(
    inputs_lib.Inputs(
      jnp.asarray(tokens_BT),
      jnp.asarray(positions_BT),
      mask,
      vision,
      jnp.asarray(feature_BT),
    ),
    torch_kw,
    real_BT,
  )


@torch.no_grad()
def reference(
  model: transformers.LlavaForConditionalGeneration, torch_kw: dict
) -> dict[str, np.ndarray]:
  """Everything the torch model computes on a batch, float32.

  Returns:
    logits [B, T, V]; attention [L, B, N, T, S]; hidden [L + 1, B, T, D] (the
    inputs of every layer, then what the last one wrote); normed [B, T, D]
    (that after the final norm); with pictures tower [n + 1, M, I, D] and
    features [M * I, D].
  """
  seen: dict[str, np.ndarray] = {}
  last = []
  handle = model.model.language_model.norm.register_forward_pre_hook(
    lambda module, args: last.append(args[0])
  )
  out = model(**torch_kw, output_attentions=True, output_hidden_states=True)
  handle.remove()
  seen['logits'] = out.logits.float().numpy()
  seen['attention'] = torch.stack(out.attentions).float().numpy()
  hidden = torch.stack((*out.hidden_states[:-1], last[0]))
  seen['hidden'] = hidden.float().numpy()
  seen['normed'] = out.hidden_states[-1].float().numpy()
  if 'pixel_values' in torch_kw:
    pixels = torch_kw['pixel_values']
    tower = model.model.vision_tower(pixels, output_hidden_states=True)
    seen['tower'] = torch.stack(tower.hidden_states).float().numpy()
    features = model.model.get_image_features(pixels).pooler_output
    seen['features'] = torch.cat(tuple(features)).float().numpy()
  return seen
