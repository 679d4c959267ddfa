"""Tiny Qwen-VL models of transformers, with weights worth testing.

As helpers.hf_llava: every parameter is redrawn with a spread at which attention
is peaked, in the text model and in the tower.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import transformers

from corejax import inputs as inputs_lib
from corejax import masks
from corejax.models.qwen_vl import positions
from helpers import torch_only

torch = torch_only.torch
safetensors_torch = torch_only.safetensors_torch

IMAGE_TOKEN, VIDEO_TOKEN = 60, 61
_CLASSES = {
  'qwen2_vl': (
    transformers.Qwen2VLConfig,
    transformers.Qwen2VLForConditionalGeneration,
  ),
  'qwen2_5_vl': (
    transformers.Qwen2_5_VLConfig,
    transformers.Qwen2_5_VLForConditionalGeneration,
  ),
  'qwen3_vl': (
    transformers.Qwen3VLConfig,
    transformers.Qwen3VLForConditionalGeneration,
  ),
  'qwen3_vl_moe': (
    transformers.Qwen3VLMoeConfig,
    transformers.Qwen3VLMoeForConditionalGeneration,
  ),
}
_TOWERS = {
  'qwen2_vl': dict(embed_dim=24, mlp_ratio=2, num_heads=3),
  'qwen2_5_vl': dict(
    hidden_size=24,
    intermediate_size=28,
    num_heads=3,
    window_size=16,  # 2 x 2 features
    fullatt_block_indexes=[1],
  ),
  'qwen3_vl': dict(
    hidden_size=24,
    intermediate_size=28,
    num_heads=3,
    num_position_embeddings=25,
    deepstack_visual_indexes=[0, 2],
  ),
}
_TOWERS['qwen3_vl_moe'] = _TOWERS['qwen3_vl']
_OWN_HEAD = ('qwen3_vl', 'qwen3_vl_moe')


_EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20)


def config(kind: str, *, text_kw: dict | None = None, tower_kw=None, **kw):
  """A config of a few thousand parameters: features of 8 x 8 pixels.

  Args:
    kind: model_type.
    text_kw, tower_kw: override the text model's and the tower's settings.
    **kw: override the top level's.
  """
  heads = (text_kw or {}).get('num_attention_heads', 4)
  head_dim = (text_kw or {}).get('head_dim', 8)
  if kind in _OWN_HEAD:  # a head's size is its own
    text_kw = {'head_dim': head_dim, 'hidden_size': 32, **(text_kw or {})}
  text = {
    'vocab_size': 64,
    'hidden_size': heads * head_dim,
    'intermediate_size': 40,
    'num_hidden_layers': 3,
    'num_attention_heads': heads,
    'num_key_value_heads': 2,
    'max_position_embeddings': 256,
    'rope_parameters': {
      'rope_type': 'default',
      'rope_theta': 100.0,
      'mrope_section': [2, 1, 1],
    },
    **({} if kind in _OWN_HEAD else {'bos_token_id': 1, 'eos_token_id': 2}),
    **(_EXPERTS if kind == 'qwen3_vl_moe' else {}),
    **(text_kw or {}),
  }
  out = 'hidden_size' if kind == 'qwen2_vl' else 'out_hidden_size'
  tower = {
    'depth': 3,
    'patch_size': 4,
    out: text['hidden_size'],
    **_TOWERS[kind],
    **(tower_kw or {}),
  }
  return _CLASSES[kind][0](
    text_config=text,
    vision_config=tower,
    image_token_id=IMAGE_TOKEN,
    video_token_id=VIDEO_TOKEN,
    **kw,
  )


def build(hf_config, seed: int = 0):
  """The torch model, redrawn, in float32 with eager attention."""
  hf_config._attn_implementation = 'eager'
  model = _CLASSES[hf_config.model_type][1](hf_config).eval().float()
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, param in model.named_parameters():
      param.copy_(torch.tensor(_draw(name, tuple(param.shape), rng)))
  model.tie_weights()
  return model


def _draw(name: str, shape: tuple[int, ...], rng) -> np.ndarray:
  normal = rng.standard_normal(shape).astype(np.float32)
  if len(shape) == 1 and name.endswith('weight'):  # norms
    scale = 1.4 if 'q_norm' in name or 'k_norm' in name else 1.0
    return scale * rng.uniform(0.5, 1.6, shape).astype(np.float32)
  if name.endswith('bias'):
    return 0.3 * normal
  if 'pos_embed' in name:
    return 0.7 * normal
  # A unit input gives scores of standard deviation 2, logits of 3.
  gain = 1.0
  if 'experts' in name:  # [experts, out, in]
    return normal / math.sqrt(shape[-1])
  if name.endswith('mlp.gate.weight'):  # a router that is sure
    gain = 3.0
  elif 'q_proj' in name or 'k_proj' in name or 'attn.qkv' in name:
    gain = math.sqrt(2)
  elif 'lm_head' in name or 'embed_tokens' in name:
    gain = 3.0
  return gain * normal / math.sqrt(math.prod(shape[1:]))


# What 5.x writes (and the hub holds), and names as in memory.
LAYOUTS = ('saved', 'memory')


def save(
  model,
  folder: pathlib.Path,
  *,
  layout: str = 'saved',
  dtype=torch.float32,
  extra: dict | None = None,
):
  """Writes a checkpoint folder (no tokenizer).

  Args:
    model: of `build`.
    folder: made if absent.
    layout: one of LAYOUTS.
    dtype: of the file.
    extra: tensors to add, under the layout's names.
  """
  model.save_pretrained(folder)
  (path,) = folder.glob('*.safetensors')
  tensors = safetensors_torch.load_file(path)
  if layout == 'memory':
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
      tensors.pop('lm_head.weight')
  tensors = {k: v.to(dtype).contiguous() for k, v in tensors.items()}
  safetensors_torch.save_file(
    tensors | (extra or {}), path, metadata={'format': 'pt'}
  )


@dataclasses.dataclass(frozen=True)
class Batch:
  """The same batch for both sides.

  Attributes:
    inputs: ours.
    torch: keyword arguments of the torch model.
    real_BT: bool, rows that are not padding.
    grids: (rows, columns) of what the tower sees one by one, in patches:
      pictures, and pairs of frames.
    video_M: bool, which of these are pairs of frames.
  """

  inputs: inputs_lib.Inputs
  torch: dict
  real_BT: np.ndarray
  grids: list[tuple[int, int]]
  video_M: np.ndarray


@dataclasses.dataclass(frozen=True)
class Video:
  """Of so many pairs of frames, rows and columns in features."""

  frames: int
  rows: int
  columns: int
  seconds: float = 1.0  # between pairs


def _spelt(kind: str, sequence) -> list:
  """The parts of a sequence that are runs of tokens."""
  parts = []
  for part in sequence:
    if isinstance(part, Video) and kind in _OWN_HEAD:  # a time before each pair
      one = dataclasses.replace(part, frames=1)
      parts += [2, one] * part.frames + [1]
    else:
      parts.append(part)
  return parts


def _grid(kind: str, part) -> positions.Grid:
  if isinstance(part, tuple):
    return positions.Grid(*part)
  interval = 1.0
  if kind == 'qwen2_5_vl':
    interval = positions.interval(4, part.seconds, positions.DEFAULT)
  return positions.Grid(part.rows, part.columns, part.frames, interval)


def batch(
  hf_config,
  sequences: Sequence[Sequence[int | tuple[int, int] | Video]],
  *,
  side: str = 'right',
  seed: int = 0,
  extra_pictures: int = 1,
) -> Batch:
  """Random tokens and pictures.

  Args:
    hf_config: of the model.
    sequences: each a list of lengths of text runs, (rows, columns) of
      pictures, in features, and videos.
    side: of the padding.
    seed: of tokens and pixels.
    extra_pictures: padding pictures on our side.
  """
  rng = np.random.default_rng(seed)
  tower = hf_config.vision_config
  merge = tower.spatial_merge_size
  n_values = 3 * tower.temporal_patch_size * tower.patch_size**2
  kind = hf_config.model_type
  spelt = [_spelt(kind, sequence) for sequence in sequences]
  every = [
    (_grid(kind, p), isinstance(p, Video))
    for s in spelt
    for p in s
    if not isinstance(p, int)
  ]
  grids = [
    (g.rows * merge, g.columns * merge)
    for g, _ in every
    for _ in range(g.frames)
  ]
  video_M = np.array([v for g, v in every for _ in range(g.frames)], bool)
  n_slots = max((g.rows * g.columns for g, _ in every), default=1) + 2
  rows, features, places, n_media = [], [], [], 0
  for sequence in spelt:
    tokens, feature, shown = [], [], []
    for part in sequence:
      if isinstance(part, int):
        tokens += list(rng.integers(3, IMAGE_TOKEN, part))
        feature += [-1] * part
        continue
      grid = _grid(kind, part)
      shown.append(grid)
      n_cells = grid.rows * grid.columns
      token = VIDEO_TOKEN if isinstance(part, Video) else IMAGE_TOKEN
      tokens += [token] * len(grid)
      for _ in range(grid.frames):
        feature += list(range(n_media * n_slots, n_media * n_slots + n_cells))
        n_media += 1
    rows.append(tokens)
    features.append(feature)
    places.append(positions.of_tokens(np.array(feature) >= 0, shown))
  length = max(map(len, rows))
  shape = (len(rows), length)
  tokens_BT = np.zeros(shape, np.int32)
  feature_BT = np.full(shape, -1, np.int32)
  positions_B3T = np.zeros((len(rows), 3, length), np.int32)
  real_BT = np.zeros(shape, bool)
  for b, (tokens, feature) in enumerate(zip(rows, features)):
    start = length - len(tokens) if side == 'left' else 0
    where = slice(start, start + len(tokens))
    tokens_BT[b, where] = tokens
    feature_BT[b, where] = feature
    positions_B3T[b, :, where] = places[b]
    real_BT[b, where] = True
  start_B = real_BT.argmax(1)
  mask = masks.AttnMask(
    kv_start_B=jnp.asarray(start_B, jnp.int32),
    kv_len_B=jnp.asarray(start_B + real_BT.sum(1), jnp.int32),
  )
  torch_kw = {
    'input_ids': torch.tensor(tokens_BT, dtype=torch.long),
    'attention_mask': torch.tensor(real_BT, dtype=torch.long),
    'mm_token_type_ids': torch.tensor(
      (feature_BT >= 0) * (1 + (tokens_BT == VIDEO_TOKEN)), dtype=torch.int
    ),
  }
  vision = {}
  if n_media:
    total = n_media + extra_pictures
    # Padding is not zeros: whoever reads it will show it.
    pixels = rng.standard_normal(
      (total, n_slots * merge**2, n_values), np.float32
    )
    grid_M3 = np.array(
      [(1, *g) for g in grids] + [(1, merge, merge)] * (extra_pictures)
    )
    vision = {
      'pixel_values': jnp.asarray(pixels),
      'image_grid_thw': jnp.asarray(grid_M3, jnp.int32),
    }
    shown = [pixels[m, : r * c] for m, (r, c) in enumerate(grids)]
    videos = [p for s in sequences for p in s if isinstance(p, Video)]
    if not video_M.all():
      own = [x for x, is_video in zip(shown, video_M) if not is_video]
      torch_kw['pixel_values'] = torch.tensor(np.concatenate(own))
      torch_kw['image_grid_thw'] = torch.tensor(grid_M3[:n_media][~video_M])
    if videos:
      own = [x for x, is_video in zip(shown, video_M) if is_video]
      torch_kw['pixel_values_videos'] = torch.tensor(np.concatenate(own))
      torch_kw['video_grid_thw'] = torch.tensor(
        [(v.frames, v.rows * merge, v.columns * merge) for v in videos]
      )
    if videos and kind == 'qwen2_5_vl':
      torch_kw['second_per_grid_ts'] = torch.tensor([v.seconds for v in videos])
  return Batch(
    inputs_lib.Inputs(
      jnp.asarray(tokens_BT),
      jnp.asarray(positions_B3T),
      mask,
      vision,
      jnp.asarray(feature_BT),
    ),
    torch_kw,
    real_BT,
    grids,
    video_M,
  )


@torch.no_grad()
def reference(model, torch_kw: dict) -> dict:
  """Everything the torch model computes on a batch, float32.

  Returns:
    logits [B, T, V]; attention [L, B, N, T, S]; hidden [L + 1, B, T, D] (the
    inputs of every layer, then what the last one wrote); with pictures tower
    [patches of all, D of the tower], features [all, D] and deep, a list of
    DeepStack's, alike; with videos their video_features and video_deep.
  """
  seen = {}
  hidden = []
  text = model.model.language_model
  # Not transformers' hidden_states, which leave out what DeepStack adds.
  handles = [
    module.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    for module in (*text.layers, text.norm)
  ]
  out = model(**torch_kw, output_attentions=True)
  for handle in handles:
    handle.remove()
  seen['logits'] = out.logits.float().numpy()
  seen['attention'] = torch.stack(out.attentions).float().numpy()
  seen['hidden'] = torch.stack(hidden).float().numpy()
  if 'pixel_values' in torch_kw:
    tower = model.model.visual(
      torch_kw['pixel_values'], torch_kw['image_grid_thw']
    )
    hidden = tower.last_hidden_state
    if model.config.model_type == 'qwen2_5_vl':  # back out of window order
      from transformers import vision_utils  # needs torch

      config = model.config.vision_config
      index, _ = vision_utils.get_vision_window_index(
        torch_kw['image_grid_thw'],
        config.spatial_merge_size,
        config.window_size,
        config.patch_size,
      )
      blocks = hidden.reshape(len(index), -1, hidden.shape[-1])
      hidden = blocks[torch.argsort(index)].reshape(hidden.shape)
    seen['tower'] = hidden.float().numpy()
    seen['features'] = tower.pooler_output.float().numpy()
    deep = getattr(tower, 'deepstack_features', None) or []
    seen['deep'] = [level.float().numpy() for level in deep]
  if 'pixel_values_videos' in torch_kw:
    tower = model.model.visual(
      torch_kw['pixel_values_videos'], torch_kw['video_grid_thw']
    )
    seen['video_features'] = tower.pooler_output.float().numpy()
    deep = getattr(tower, 'deepstack_features', None) or []
    seen['video_deep'] = [level.float().numpy() for level in deep]
  return seen
