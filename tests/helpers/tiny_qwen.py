"""Whole tiny Qwen-VL folders: tokenizer, processor files, redrawn weights.

Features of 28 x 28 pixels (Qwen3-VL: 32), as released; pictures of up to 48.
Videos have, as released, no file of their own but in Qwen3-VL.
"""

from collections.abc import Mapping
import json
import pathlib

import numpy as np
import transformers

from helpers import hf_qwen
from helpers import masses as masses_lib
from helpers import tiny_tokenizer
from helpers import torch_only

torch = torch_only.torch

SPECIALS = (
  '<|im_start|>',
  '<|im_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|vision_pad|>',
  '<|image_pad|>',
  '<|video_pad|>',
)
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


# Features of 28 or 32 pixels; windows of 2 x 2 of them.
_TOWERS = {
  'qwen2_vl': dict(patch_size=14),
  'qwen2_5_vl': dict(patch_size=14, window_size=56),
  'qwen3_vl': dict(patch_size=16, deepstack_visual_indexes=[1]),
}
_TOWERS['qwen3_vl_moe'] = _TOWERS['qwen3_vl']


def tokenizer():
  """Byte-level BPE with Qwen's special tokens, nothing put in front."""
  fast = tiny_tokenizer.make('bytes', None)
  fast.add_special_tokens({'additional_special_tokens': list(SPECIALS)})
  return fast


def pixels(patch_size: int = 14, most: int = 48) -> dict:
  """A preprocessor_config.json as the hub's of 2024; `most` features."""
  area = (2 * patch_size) ** 2
  return {
    'min_pixels': 4 * area,
    'max_pixels': most * area,
    'patch_size': patch_size,
    'temporal_patch_size': 2,
    'merge_size': 2,
    'image_mean': CLIP_MEAN if patch_size == 14 else [0.5] * 3,
    'image_std': CLIP_STD if patch_size == 14 else [0.5] * 3,
    'image_processor_type': 'Qwen2VLImageProcessor',
    'processor_class': 'Qwen2VLProcessor',
  }


def videos(most: int = 48) -> dict:
  """A video_preprocessor_config.json of Qwen3-VL; `most` features."""
  return {
    'size': {'shortest_edge': 4 * 2 * 32**2, 'longest_edge': most * 2 * 32**2},
    'patch_size': 16,
    'temporal_patch_size': 2,
    'merge_size': 2,
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
    'fps': 2,
    'do_sample_frames': True,
    'processor_class': 'Qwen3VLProcessor',
    'video_processor_type': 'Qwen3VLVideoProcessor',
  }


def folder(
  path: pathlib.Path,
  kind: str,
  *,
  text_kw: dict | None = None,
  tower_kw: dict | None = None,
  most: int = 48,
  **kw,
):
  """Writes a folder and returns the torch model in it.

  Args:
    path: made if absent.
    kind: model_type.
    text_kw, tower_kw, **kw: as hf_qwen.config takes them.
    most: features a picture may have.
  """
  config = _config(kind, text_kw, tower_kw, kw)
  model = hf_qwen.build(config)
  hf_qwen.save(model, path)
  _write_processor(path, config, most)
  return model


def processor_folder(
  path: pathlib.Path, kind: str, *, most: int = 48, context: int = 2048
) -> pathlib.Path:
  """The same folder without weights, which a processor does not need."""
  config = _config(kind, dict(max_position_embeddings=context), None, {})
  path.mkdir(parents=True, exist_ok=True)
  config.save_pretrained(path)
  _write_processor(path, config, most)
  return path


def _config(kind: str, text_kw, tower_kw, kw):
  fast = tokenizer()
  config = hf_qwen.config(
    kind,
    text_kw=dict(
      vocab_size=len(fast) + 5,
      **dict(max_position_embeddings=512) | (text_kw or {}),
    ),
    tower_kw={'depth': 2, **_TOWERS[kind], **(tower_kw or {})},
    **kw,
  )
  config.image_token_id = fast.convert_tokens_to_ids('<|image_pad|>')
  config.video_token_id = fast.convert_tokens_to_ids('<|video_pad|>')
  return config


def _write_processor(path: pathlib.Path, config, most: int) -> None:
  tokenizer().save_pretrained(path)
  patch_size = config.vision_config.patch_size
  (path / 'preprocessor_config.json').write_text(
    json.dumps(pixels(patch_size, most))
  )
  if config.model_type.startswith('qwen3'):
    (path / 'video_preprocessor_config.json').write_text(
      json.dumps(videos(most))
    )


def hf_processor(path: pathlib.Path):
  """transformers' image processor (PIL) of a folder."""
  config = json.loads((path / 'preprocessor_config.json').read_text())
  return transformers.Qwen2VLImageProcessorPil(**config)


@torch.no_grad()
def masses(model, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """Region masses from transformers' attentions, summed in float64.

  Args:
    model: of `folder`.
    arrays: what `inspect` writes.

  Returns:
    float64 [L, N, Q, R].
  """
  ids = ('input_ids', 'attention_mask', 'position_ids')
  shown = {
    name: arrays[name]
    for name in (
      *('image_grid_thw', 'pixel_values'),
      *('video_grid_thw', 'pixel_values_videos'),
    )
    if len(arrays.get(name, ()))
  }
  grids = [name for name in shown if name.endswith('thw')]
  out = model(
    **{n: torch.tensor(arrays[n], dtype=torch.int64) for n in (*ids, *grids)},
    **{n: torch.tensor(x) for n, x in shown.items() if n not in grids},
    output_attentions=True,
  )
  return masses_lib.of(out.attentions, arrays)
