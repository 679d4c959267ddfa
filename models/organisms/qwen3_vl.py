"""Qwen3-VL as an organism: tower of two layers with DeepStack, Qwen3 decoder.

    page -> 56x56 -> 8x8 patches of 7x7, seen as two equal frames -> tower
         -> 2x2 patches merged = one cell -> 16 tokens
    layer 0 of the tower -> merger of its own -> added behind decoder layer 0

    tokens   <|vision_start|> <|image_pad|> x 16 <|vision_end|>

Unlike LLaVA's it has norms on queries and keys, two query heads share their
keys and values, and a picture's tokens share one time and have a row and a
column (interleaved M-RoPE).
"""

import jax
import jax.numpy as jnp
import numpy as np

from corejax.models import qwen_vision
from corejax.models.organisms import hf_folder
from corejax.models.organisms import kind
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import modeling
from corejax.models.qwen_vl import positions
from corejax.models.qwen_vl import weights

_MERGE, _FRAMES = 2, 2
_PATCH = hf_folder.PATCH // _MERGE
_GRID = hf_folder.GRID
_IMAGE, _VIDEO, _START, _END = _TOKENS = (
  '<|image_pad|>',
  '<|video_pad|>',
  '<|vision_start|>',
  '<|vision_end|>',
)


def config(size: kind.Size) -> config_lib.QwenVlConfig:
  """The model's configuration; `documents` says the same to transformers."""
  n_tokens = len(hf_folder.tokens(_IMAGE, _TOKENS[1:]))
  half = size.d_model // size.heads // 2
  return config_lib.QwenVlConfig(
    kind='qwen3_vl',
    text=kind.text(
      size,
      'qwen3',
      vocab_size=n_tokens,
      groups=2,
      mrope='interleaved',
      sections=(half - 2 * (half // 4), half // 4, half // 4),
      qk_norm=True,
    ),
    vision=qwen_vision.VisionConfig(
      d_model=size.d_vision,
      d_mlp=2 * size.d_vision,
      d_out=size.d_model,
      n_layers=2,
      n_heads=size.heads_vision,
      patch_size=_PATCH,
      temporal=_FRAMES,
      merge=_MERGE,
      act='gelu_pytorch_tanh',
      patch_bias=True,
      table=_GRID * _MERGE,
      deep_layers=(0,),
    ),
    image_token_id=hf_folder.ID['<image>'],
    video_token_id=n_tokens - 3,
  )


def documents(model_config: config_lib.QwenVlConfig) -> dict[str, dict]:
  """The folder's JSON files, config.json last."""
  text, tower = model_config.text, model_config.vision
  area = hf_folder.SIDE**2
  patches = {
    # A square of any size becomes one of this.
    'size': {'shortest_edge': area, 'longest_edge': area},
    'patch_size': tower.patch_size,
    'temporal_patch_size': tower.temporal,
    'merge_size': tower.merge,
  }
  files = hf_folder.shared_documents(
    'Qwen3VLProcessor', 'Qwen2VLImageProcessor', patches
  )
  frames = dict(files['preprocessor_config.json'])
  del frames['image_processor_type']
  return {
    **files,
    # No organism was shown a video; this much says how one would be cut.
    'video_preprocessor_config.json': {
      'video_processor_type': 'Qwen3VLVideoProcessor',
      **frames,
      'size': {'shortest_edge': 2 * area, 'longest_edge': 16 * area},
    },
    'config.json': {
      'architectures': ['Qwen3VLForConditionalGeneration'],
      'model_type': model_config.kind,
      'image_token_id': model_config.image_token_id,
      'video_token_id': model_config.video_token_id,
      'vision_start_token_id': model_config.video_token_id + 1,
      'vision_end_token_id': model_config.video_token_id + 2,
      'tie_word_embeddings': text.tie,
      'torch_dtype': 'float32',
      'text_config': {
        **hf_folder.text_document(
          text,
          'qwen3_vl_text',
          {
            'rope_parameters': {
              'rope_type': 'default',
              'rope_theta': text.rope.theta,
              'mrope_section': list(text.rope.sections),
              'mrope_interleaved': True,
            }
          },
        ),
        'head_dim': text.head_dim,
      },
      'vision_config': {
        'depth': tower.n_layers,
        'hidden_size': tower.d_model,
        'intermediate_size': tower.d_mlp,
        'out_hidden_size': tower.d_out,
        'num_heads': tower.n_heads,
        'hidden_act': tower.act,
        'in_channels': tower.n_channels,
        'patch_size': tower.patch_size,
        'temporal_patch_size': tower.temporal,
        'spatial_merge_size': tower.merge,
        'num_position_embeddings': tower.table**2,
        'deepstack_visual_indexes': list(tower.deep_layers),
      },
    },
  }


def _patches(cells_PCYX: np.ndarray) -> np.ndarray:
  """float32 [P, 4, C * frames * y * x]: a cell is one block of patches."""
  n_cells, channels = cells_PCYX.shape[:2]
  shape = (n_cells, channels, _MERGE, _PATCH, _MERGE, _PATCH)
  split = cells_PCYX.reshape(shape).transpose(0, 2, 4, 1, 3, 5)
  frames = np.repeat(split[:, :, :, :, None], _FRAMES, 4)
  return frames.reshape(n_cells, _MERGE**2, -1)


def _show(patches_PIC: jax.Array, cell_MI: jax.Array) -> dict[str, jax.Array]:
  """Blocks stand row by row, so a page is its cells one after the other."""
  n_pages, n_cells = cell_MI.shape
  side = _GRID * _MERGE
  return {
    'pixel_values': patches_PIC[cell_MI].reshape(
      n_pages, n_cells * _MERGE**2, -1
    ),
    'image_grid_thw': jnp.tile(jnp.array([[1, side, side]]), (n_pages, 1)),
  }


def _positions(is_visual_T: np.ndarray) -> np.ndarray:
  n_pages = int(is_visual_T.sum()) // _GRID**2
  return positions.of_tokens(
    is_visual_T, [positions.Grid(_GRID, _GRID)] * n_pages
  )


KIND = kind.Kind(
  key='qwen3_vl_flax',
  title='Qwen3-VL',
  config=config,
  modeling=modeling,
  model=modeling.QwenVl,
  make_map=weights.make_map,
  spelling=(
    ('lm_head.', 'lm_head.'),
    ('model.language_model.', 'model.language_model.'),
    ('model.visual.', 'model.visual.'),
  ),
  documents=documents,
  image=_IMAGE,
  before=(_START,),
  after=(_END,),
  more=_TOKENS[1:],
  table=_patches,
  show=_show,
  positions=_positions,
)
