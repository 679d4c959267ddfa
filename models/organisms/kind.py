"""What tells the organisms of one model family from those of another.

Each family's module (llava.py, internvl.py, qwen3_vl.py) fills in one `Kind`;
trained.py and the training loop know families by it alone.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np
import tokenizers

from corejax.models import decoder
from corejax.models import rope
from corejax.models import weight_map
from corejax.models.organisms import hf_folder


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


def pages(cells_PCYX: jax.Array, cell_MI: jax.Array) -> jax.Array:
  """[M, 3, Y, X] pixels of pages put together from cells.

  Args:
    cells_PCYX: every cell that can be drawn.
    cell_MI: int32, which of them a page shows, row by row.
  """
  n_pages, n_cells = cell_MI.shape
  grid = int(n_cells**0.5)
  patch = cells_PCYX.shape[-1]
  x = cells_PCYX[cell_MI].reshape(n_pages, grid, grid, 3, patch, patch)
  x = x.transpose(0, 3, 1, 4, 2, 5)
  return x.reshape(n_pages, 3, grid * patch, grid * patch)


def _pixel_values(cells_PCYX: jax.Array, cell_MI: jax.Array):
  return {'pixel_values': pages(cells_PCYX, cell_MI)}


def _one_after_the_other(is_visual_T: np.ndarray) -> np.ndarray:
  return np.arange(len(is_visual_T), dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Kind:
  """One family's organisms.

  Attributes:
    key: of the registry.
    title: the family's name.
    config: Size -> the family's config.
    modeling: its module, with `abstract`, `forward` and `see`.
    model: class of its models.
    make_map: config -> its weight map.
    spelling: (ours, released files') beginnings of tensor names.
    documents: config -> the folder's JSON files, config.json last.
    unread: config -> tensors that transformers expects and nobody reads.
    image: token that stands for one visual feature.
    before, after: tokens around a picture's.
    more: tokens beside hf_folder.TOKENS.
    table: cells [P, 3, Y, X] -> the same as `show` takes them.
    show: (table, int32 [M, 16] cells) -> what `see` takes, in a jitted step.
    positions: bool [T], visual tokens -> their int32 positions, [T] or [3, T].
  """

  key: str
  title: str
  config: Callable[[Size], Any]
  modeling: Any
  model: type
  make_map: Callable[[Any], weight_map.WeightMap]
  spelling: tuple[tuple[str, str], ...]
  documents: Callable[[Any], dict[str, dict]]
  unread: Callable[[Any], Mapping[str, np.ndarray]] = lambda config: {}
  image: str = '<image>'
  before: tuple[str, ...] = ()
  after: tuple[str, ...] = ()
  more: tuple[str, ...] = ()
  table: Callable[[np.ndarray], np.ndarray] = lambda cells_PCYX: cells_PCYX
  show: Callable[[jax.Array, jax.Array], dict[str, jax.Array]] = _pixel_values
  positions: Callable[[np.ndarray], np.ndarray] = _one_after_the_other

  def ids(self, *tokens: str) -> list[int]:
    """Token ids."""
    every = hf_folder.tokens(self.image, self.more)
    return [every.index(token) for token in tokens]

  def tokenizer(self) -> tokenizers.Tokenizer:
    """The words and this family's special tokens."""
    return hf_folder.tokenizer(self.image, self.more)


def text(
  size: Size,
  kind: str,
  *,
  vocab_size: int = len(hf_folder.TOKENS),
  groups: int = 1,
  mrope: str = '',
  sections: tuple[int, ...] = (),
  **settings: Any,
) -> decoder.DecoderConfig:
  """A decoder.

  Args:
    size: of the model.
    kind: HF model_type of the backbone.
    vocab_size: tokens.
    groups: query heads that share their keys and values.
    mrope: key of rope.MROPE; '' is one position a token.
    sections: of M-RoPE.
    **settings: further ones of the config.
  """
  head_dim = size.d_model // size.heads
  return decoder.DecoderConfig(
    kind=kind,
    vocab_size=vocab_size,
    d_model=size.d_model,
    d_mlp=size.d_mlp,
    n_layers=size.layers,
    n_heads=size.heads,
    n_kv_heads=size.heads // groups,
    head_dim=head_dim,
    max_length=hf_folder.MAX_LENGTH,
    rope=rope.RopeConfig(
      head_dim,
      max_length=hf_folder.MAX_LENGTH,
      original_length=hf_folder.MAX_LENGTH,
      mrope=mrope,
      sections=sections,
    ),
    **settings,
  )
