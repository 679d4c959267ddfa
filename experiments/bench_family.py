"""The families that the benchmarks run: a random model's config and pictures.

As bench_model, of which it is the part that differs between families: plain
numbers and numpy only, nothing of ours, so that the layouts of both sides are
told here once, by hand.

    pictures of a prompt   what one of them takes
    llava                  a tile
    llava_next             a base tile and 1x2 detail tiles, a newline a row
    llava_onevision        the same; tokens are sums of four features
    internvl_*             4x3 tiles and a thumbnail, 2x2 patches a token
    qwen*                  2x2 patches a token, M-RoPE positions
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

import numpy as np


class Sizes(Protocol):
  """A bench_model.Spec."""

  @property
  def family(self) -> str: ...
  @property
  def layers(self) -> int: ...
  @property
  def heads(self) -> int: ...
  @property
  def hidden(self) -> int: ...
  @property
  def mlp(self) -> int: ...
  @property
  def vocab(self) -> int: ...
  @property
  def tower_layers(self) -> int: ...
  @property
  def tower_heads(self) -> int: ...
  @property
  def tower_hidden(self) -> int: ...
  @property
  def image_size(self) -> int: ...
  @property
  def patch_size(self) -> int: ...
  @property
  def image_token(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Family:
  """One row of the table.

  Attributes:
    model_type: of transformers.
    package: of ours, under corejax.models.
    text: model_type of the text model.
    group: query heads a key head (fewer heads than that share one).
    tower: model_type of the tower; '' where the family has its own.
  """

  model_type: str
  package: str
  text: str
  group: int = 1
  tower: str = ''


_QWEN = 'qwen_vl'
FAMILIES: Mapping[str, Family] = {
  'llava': Family('llava', 'llava', 'llama', 1, 'clip_vision_model'),
  'llava_next': Family(
    'llava_next', 'llava_next', 'mistral', 4, 'clip_vision_model'
  ),
  'llava_onevision': Family(
    'llava_onevision',
    'llava_onevision',
    'qwen2',
    4,
    'siglip_vision_model',
  ),
  'internvl_qwen2': Family('internvl', 'internvl', 'qwen2', 4),
  'internvl_qwen3': Family('internvl', 'internvl', 'qwen3', 4),
  'qwen2_vl': Family('qwen2_vl', _QWEN, 'qwen2_vl_text', 4),
  'qwen2_5_vl': Family('qwen2_5_vl', _QWEN, 'qwen2_5_vl_text', 4),
  'qwen3_vl': Family('qwen3_vl', _QWEN, 'qwen3_vl_text', 4),
  'qwen3_vl_moe': Family('qwen3_vl_moe', _QWEN, 'qwen3_vl_moe_text', 4),
}
_TILES = (3, 4)  # rows and columns of an InternVL picture
_CORNERS = 4  # features that a token of LLaVA-OneVision is the sum of
_EXPERTS, _ACTIVE = 8, 2  # of the mixture, whose active part is as wide as MLP


def _text(spec: Sizes, family: Family) -> dict[str, Any]:
  text = {
    'model_type': family.text,
    'vocab_size': spec.vocab,
    'hidden_size': spec.hidden,
    'intermediate_size': spec.mlp,
    'num_hidden_layers': spec.layers,
    'num_attention_heads': spec.heads,
    'num_key_value_heads': max(1, spec.heads // family.group),
    'max_position_embeddings': 1 << 20,
    'rms_norm_eps': 1e-5,
  }
  head_dim = spec.hidden // spec.heads
  if family.text == 'mistral':
    text['sliding_window'] = None
  if 'qwen3' in family.text:  # whose heads need not fill the width
    text['head_dim'] = head_dim
  if family.package == _QWEN:
    half = head_dim // 2
    section = half * 3 // 8
    text['rope_parameters'] = {
      'rope_type': 'default',
      'rope_theta': 1e6,
      'mrope_section': [half - 2 * section, section, section],
    }
  if family.text == 'qwen3_vl_moe_text':
    text |= {
      'num_experts': _EXPERTS,
      'num_experts_per_tok': _ACTIVE,
      'moe_intermediate_size': spec.mlp // _ACTIVE,
    }
  return text


def _tower(spec: Sizes, family: Family) -> dict[str, Any]:
  wide = {'intermediate_size': 4 * spec.tower_hidden}
  sizes = {'hidden_size': spec.tower_hidden, 'patch_size': spec.patch_size}
  if family.package == _QWEN:
    own: dict[str, Any] = {**sizes, **wide, 'out_hidden_size': spec.hidden}
    if family.model_type == 'qwen2_vl':
      own = {
        'embed_dim': spec.tower_hidden,
        'hidden_size': spec.hidden,
        'patch_size': spec.patch_size,
      }
    elif family.model_type == 'qwen2_5_vl':
      own['fullatt_block_indexes'] = [spec.tower_layers - 1]
    else:
      own['deepstack_visual_indexes'] = [0]
    return own | {'depth': spec.tower_layers, 'num_heads': spec.tower_heads}
  return {
    **({'model_type': family.tower} if family.tower else {}),
    **sizes,
    **wide,
    'num_hidden_layers': spec.tower_layers,
    'num_attention_heads': spec.tower_heads,
    'image_size': spec.image_size,
  }


def documents(spec: Sizes) -> dict[str, Any]:
  """The model's config.json, for those that read one."""
  family = FAMILIES[spec.family]
  token = 'image_token_index' if family.tower else 'image_token_id'
  whole = {
    'model_type': family.model_type,
    token: spec.image_token,
    'tie_word_embeddings': False,
    'text_config': _text(spec, family),
    'vision_config': _tower(spec, family),
  }
  if family.tower:
    clip = family.tower == 'clip_vision_model'
    whole |= {
      'projector_hidden_act': 'gelu',
      'vision_feature_layer': -1,
      'vision_feature_select_strategy': 'default' if clip else 'full',
    }
  elif family.package == _QWEN:
    whole['video_token_id'] = spec.image_token - 1
  side = spec.image_size
  if family.model_type in ('llava_next', 'llava_onevision'):
    whole['image_grid_pinpoints'] = [[side, 2 * side]]
  return whole


@dataclasses.dataclass(frozen=True)
class Pictures:
  """The pictures of one prompt.

  Attributes:
    feature_FK: int [F, K], per visual token the rows of the flattened features
      whose sum it is; all pictures, in their order.
    vision: what our forward takes as `vision`, without pixels.
    theirs: the same for transformers.
    pixels: shape of `pixel_values`, ours; theirs has all tiles (patches) of all
      pictures on one axis.
    shown: bool [F], tokens that show something (a newline does not).
    grid: (rows, columns) in tokens of each picture, where positions have three
      axes.
  """

  feature_FK: np.ndarray
  vision: Mapping[str, np.ndarray]
  theirs: Mapping[str, np.ndarray]
  pixels: tuple[int, ...]
  shown: np.ndarray
  grid: tuple[int, int] | None = None


def _anyres(spec: Sizes) -> tuple[np.ndarray, np.ndarray]:
  """(features of a picture of 1x2 tiles, which of them are no newline)."""
  side = spec.image_size // spec.patch_size
  each = side**2 + 1  # rows that our port writes a tile, the newline last
  row, column = np.indices((side, 2 * side))
  detail = (1 + column // side) * each + row * side + column % side
  newline = np.full((side, 1), each - 1)
  detail = np.concatenate([detail, newline], 1)
  shown = np.ones(detail.shape, bool)
  shown[:, -1] = False
  base = np.arange(side**2)
  return (
    np.concatenate([base, detail.reshape(-1)]),
    np.concatenate([base >= 0, shown.reshape(-1)]),
  )


def pictures(spec: Sizes, most: int) -> Pictures | None:
  """As many pictures as fit into `most` tokens; None: not even one."""
  family = FAMILIES[spec.family]
  patches = spec.image_size // spec.patch_size
  side, n_blend = spec.image_size, 1
  if family.package == _QWEN:
    one = np.arange((patches // 2) ** 2)
    tiles, each, shown = 1, len(one), one >= 0
  elif family.model_type == 'internvl':
    tiles, each = _TILES[0] * _TILES[1] + 1, (patches // 2) ** 2
    one = np.arange(tiles * each)
    shown = one >= 0
  elif family.model_type == 'llava':
    one = np.arange(patches**2)
    tiles, each, shown = 1, len(one), one >= 0
  else:
    one, shown = _anyres(spec)
    tiles, each = 3, patches**2 + 1
    n_blend = _CORNERS if family.model_type == 'llava_onevision' else 1
  count = most // len(one)
  if family.model_type == 'llava_onevision':
    count = min(count, 1)  # of several, none would be cut
  if not count:
    return None
  start_M1 = np.arange(count)[:, None] * tiles * each
  feature_F1 = (start_M1 + one).reshape(-1, 1)
  shape = (count * tiles, 3, side, side)
  vision, theirs, grid = {}, {}, None
  if family.package == _QWEN:
    values = 3 * 2 * spec.patch_size**2  # a still picture stands twice
    shape = (count, patches**2, values)
    grid_M3 = np.tile(np.array([1, patches, patches], np.int32), (count, 1))
    vision = theirs = {'image_grid_thw': grid_M3}
    grid = (patches // 2, patches // 2)
  elif family.model_type in ('llava_next', 'llava_onevision'):
    theirs = {'image_sizes': np.tile([side, 2 * side], (count, 1))}
    if n_blend > 1:
      theirs['batch_num_images'] = np.array([count])
  return Pictures(
    feature_FK=np.repeat(feature_F1, n_blend, 1).astype(np.int32),
    vision=vision,
    theirs=theirs,
    pixels=shape,
    shown=np.tile(shown, count),
    grid=grid,
  )


def positions(length: int, start: int, shown: Pictures) -> np.ndarray:
  """int32 [T], or [3, T] where a family counts time, rows and columns.

  Args:
    length: T.
    start: tokens before the pictures, which stand side by side.
    shown: the pictures.
  """
  if shown.grid is None:
    return np.arange(length, dtype=np.int32)
  rows, columns = shown.grid
  n_cells = rows * columns
  at_3T = np.zeros((3, length), np.int32)
  at_3T[:, :start] = np.arange(start)
  cell_3I = np.stack(
    [np.zeros(n_cells), *np.divmod(np.arange(n_cells), columns)]
  )
  used, now = start, start
  for _ in range(len(shown.feature_FK) // n_cells):
    at_3T[:, used : used + n_cells] = now + cell_3I
    used, now = used + n_cells, now + max(rows, columns)
  at_3T[:, used:] = now + np.arange(length - used)
  return at_3T
