"""Tower and projector of the planted model, in closed form.

A patch is a cell of 14x14 pixels. The patch convolution reads, by templates
that are duals of the 16 glyph masks, a one-hot of the glyph from r + g + b
(equal for all inks), and glyph and ground colour from the two directions
across the grey axis. What it finds, f, is laid out as (f, -f, K, -K): its mean
is 0 and its variance is nearly 2 K^2, so the tower's first LayerNorm passes it.
The feature layer is -2 of one block: the block itself is never used, and random
enough that who takes its output gets every answer wrong.

The projector's GELU makes clean steps: gelu(s(v - a)) - gelu(s(v - b)) is 0
for v well below a and s(b - a) for v well above b.
"""

import numpy as np
from PIL import Image

from corejax.data.scenes import glyphs
from corejax.data.scenes import picture
from corejax.data.scenes import vocab
from corejax.models.organisms import hf_folder
from corejax.models.organisms import planted_space as space

SIZE = 48
HEADS = 4
# Scenes are drawn with cells of a multiple of 14 pixels and averaged down.
_DRAWN = 56

_GLYPH = slice(0, 16)
_COLOUR = slice(16, 18)
_TINT = slice(18, 20)
_CENTRE = 20
_N_FOUND = 21
_K = 10.0
_TYPICAL = 3.0  # |f|^2 of a cell with a glyph

# Two directions across the grey axis.
_ACROSS = np.array([[2, -1, -1], [0, 1, -1]]) / np.sqrt([[6], [2]])


def _hues(table: dict[str, tuple[int, int, int]]) -> tuple[np.ndarray, float]:
  """(unit vectors [8, 2] of the colours, their mean distance from grey)."""
  flat = np.array([table[name] for name in vocab.COLOURS]) @ _ACROSS.T
  length = np.linalg.norm(flat, axis=1, keepdims=True)
  return flat / length, float(length.mean())


def _small_masks() -> np.ndarray:
  """float64 [16, PATCH * PATCH]: the masks as the checkpoint's resize sees."""
  rows = []
  for glyph in vocab.GLYPHS:
    drawn = Image.fromarray(glyphs.mask(glyph, _DRAWN), 'F')
    small = drawn.resize(
      (hf_folder.PATCH, hf_folder.PATCH), Image.Resampling.BOX
    )
    rows.append(np.asarray(small, np.float64).reshape(-1))
  return np.stack(rows)


def patch_weights() -> np.ndarray:
  """float64 [_N_FOUND, 3, PATCH, PATCH] on pixel values 0..255."""
  n_pixels = hf_folder.PATCH * hf_folder.PATCH
  basis = np.vstack([_small_masks(), np.ones(n_pixels)])
  dual = np.linalg.pinv(basis)  # [pixels, 17]; dual.T @ basis.T is the identity
  weights = np.zeros((_N_FOUND, 3, n_pixels))
  # r + g + b = GROUND - (GROUND - INK) ink; the constant falls out, since each
  # dual of a mask is orthogonal to the flat picture.
  weights[_GLYPH] = -dual.T[:16, None] / (picture.GROUND - picture.INK)
  # Pixel weights that give 1 on every glyph's ink and 0 on its ground.
  ink = dual @ np.ones(17)
  # 0 on any glyph's ink and 1 in sum over the whole cell.
  ground = dual @ np.eye(17)[16]
  for rows, table, pixels in (
    (_COLOUR, picture.INK_RGB, ink),
    (_TINT, picture.GROUND_RGB, ground),
  ):
    _, length = _hues(table)
    weights[rows] = _ACROSS[:, :, None] * pixels / length
  return weights.reshape(_N_FOUND, 3, hf_folder.PATCH, hf_folder.PATCH)


def tower(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """The CLIP tower's tensors, named from `embeddings.` on.

  Pixel values are p / 127.5 - 1. All templates sum to 0 over pixels and
  channels, so the -1 falls out.
  """
  found = patch_weights() * 127.5
  conv = np.zeros((SIZE, 3, hf_folder.PATCH, hf_folder.PATCH))
  conv[:_N_FOUND] = found
  conv[_N_FOUND : 2 * _N_FOUND] = -found
  position = np.zeros((1 + hf_folder.GRID * hf_folder.GRID, SIZE))
  position[:, 2 * _N_FOUND] = _K
  position[:, 2 * _N_FOUND + 1] = -_K
  for patch in range(hf_folder.GRID * hf_folder.GRID):
    row, column = divmod(patch, hf_folder.GRID)
    if {row, column} <= {1, 2}:
      position[1 + patch, _CENTRE] = 1
      position[1 + patch, _N_FOUND + _CENTRE] = -1
  scale = np.sqrt(2 * (_TYPICAL + _K**2) / SIZE)
  tensors = {
    'embeddings.class_embedding': np.zeros(SIZE),
    'embeddings.patch_embedding.weight': conv,
    'embeddings.position_embedding.weight': position,
    'pre_layrnorm.weight': np.full(SIZE, scale),
    'pre_layrnorm.bias': np.zeros(SIZE),
    'post_layernorm.weight': np.ones(SIZE),
    'post_layernorm.bias': np.zeros(SIZE),
  }
  block = 'encoder.layers.0.'
  for name in ('layer_norm1', 'layer_norm2'):
    tensors[f'{block}{name}.weight'] = np.ones(SIZE)
    tensors[f'{block}{name}.bias'] = np.zeros(SIZE)
  for name in (
    *(f'self_attn.{which}_proj' for which in ('q', 'k', 'v', 'out')),
    'mlp.fc1',
    'mlp.fc2',
  ):
    tensors[f'{block}{name}.weight'] = rng.normal(0, 0.5, (SIZE, SIZE))
    tensors[f'{block}{name}.bias'] = np.zeros(SIZE)
  return tensors


def projector() -> dict[str, np.ndarray]:
  """The projector's tensors: linear_1, GELU, linear_2."""
  first = np.zeros((space.SIZE, SIZE))
  bias = np.zeros(space.SIZE)
  second = np.zeros((space.SIZE, space.SIZE))
  unit = 0

  def step(reads: np.ndarray, low: float, high: float, slope: float, writes):
    """Adds 1 at `writes` where reads . f > high, 0 where < low."""
    nonlocal unit
    for at, sign in ((low, 1), (high, -1)):
      first[unit, :_N_FOUND] = slope * reads
      bias[unit] = -slope * at
      second[writes, unit] = sign / (slope * (high - low))
      unit += 1

  for index in range(space.N_GLYPHS):
    reads = np.eye(_N_FOUND)[index]
    step(reads, 0.35, 0.65, 20, [space.GLYPH[index], space.OBJECT])
  # Neighbouring hues read cos 45 = .71 of one another.
  for table, rows, out in (
    (picture.INK_RGB, _COLOUR, space.COLOUR),
    (picture.GROUND_RGB, _TINT, space.TINT),
  ):
    hues, _ = _hues(table)
    for index in range(space.N_COLOURS):
      reads = np.zeros(_N_FOUND)
      reads[rows] = hues[index]
      step(reads, 0.8, 0.9, 60, [out[index]])
  step(np.eye(_N_FOUND)[_CENTRE], 0.35, 0.65, 20, [space.CENTRE])
  bias_2 = np.zeros(space.SIZE)
  bias_2[space.VISUAL] = 1
  bias_2[space.ONE] = space.ONE_HEIGHT
  return {
    'linear_1.weight': first,
    'linear_1.bias': bias,
    'linear_2.weight': second,
    'linear_2.bias': bias_2,
  }
