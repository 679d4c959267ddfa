"""One example as a model takes it, and a batch of them.

`Encoded` is numpy, unpadded, made by a family's processor; `Inputs` is a
padded batch of jax arrays; `Output` is what a forward returns.
"""

import dataclasses

import jax
import numpy as np

from corejax import cache as cache_lib
from corejax import describe
from corejax import layout as layout_lib
from corejax import masks
from corejax import probe as probe_lib


@dataclasses.dataclass(frozen=True)
class Shares:
  """What each picture has of an example, where pictures differ in size.

  Attributes:
    rows_M: int [M], rows of `pixel_values` (patches, tiles).
    slots_M: int [M], rows to which they are padded for the tower, one of a few
      numbers: each is a program.
    features_M: int [M], visual features; those of the padding come after them.
    video_M: int [M], where pictures are parts of videos that the tower sees one
      by one: which video it is, -1 for a picture; None without videos.
  """

  rows_M: np.ndarray
  slots_M: np.ndarray
  features_M: np.ndarray
  video_M: np.ndarray | None = None

  __repr__ = describe.fields


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One example, tokenised and with its pixels, unpadded.

  Attributes:
    tokens_T: int32 [T], the prompt and the teacher-forced answer but for its
      last token (which no row needs as input).
    positions_T: int32 [T] or [3, T] (M-RoPE).
    vision: arrays under HF's names (`pixel_values`, ...), the leading axis
      counts pictures or patches.
    feature_T: int32 [T], row of the flattened visual features (in the order
      in which the tower and projector write them) that replaces the token's
      embedding; -1 for text. [T, K] where a token is a sum of K rows.
    visual_I: int32 [I], sequence positions of the visual tokens, in the order
      of `layout`. Newline and separator tokens are features but not visual.
    layout: where each visual token lies in its picture.
    question: [start, stop) of the question's own tokens.
    prompt_len: tokens before the answer; row prompt_len - 1 predicts answer[0].
    answer_A: int32 [A], the teacher-forced answer; empty without one.
    text: the prompt as a string, placeholders once a picture.
    shares: None where each picture is one row of every array of `vision` and
      all have the same number of features.
    blend_TK: float32 [T, K], the rows' weights; None where feature_T is [T].
    video_M: int, which video each row of `vision` is a frame of, -1 where it
      shows a picture; None where transformers makes no difference, and where
      `shares` tell.
  """

  tokens_T: np.ndarray
  positions_T: np.ndarray
  vision: dict[str, np.ndarray]
  feature_T: np.ndarray
  visual_I: np.ndarray
  layout: layout_lib.VisualLayout
  question: tuple[int, int]
  prompt_len: int
  answer_A: np.ndarray
  text: str = ''
  shares: Shares | None = None
  blend_TK: np.ndarray | None = None
  video_M: np.ndarray | None = None

  __repr__ = describe.fields

  @property
  def n_pictures(self) -> int:
    """Pictures in `vision`."""
    if self.shares is not None:
      return len(self.shares.rows_M)
    counts = {len(array) for array in self.vision.values()} or {0}
    if len(counts) != 1:
      raise ValueError(f'n_pictures: one row a picture, not {self.vision=}')
    return counts.pop()

  def picture(self, m: int) -> dict[str, np.ndarray]:
    """Picture m as one row of `Inputs.vision`, padded with zeros."""
    picture = {name: array[m] for name, array in self.vision.items()}
    if self.shares is None:
      return picture
    rows_M, slots = self.shares.rows_M, self.shares.slots_M[m]
    start = rows_M[:m].sum()
    rows = self.vision['pixel_values'][start : start + rows_M[m]]
    padded = np.zeros((slots, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return {**picture, 'pixel_values': padded}

  def hf_vision(self) -> dict[str, np.ndarray]:
    """`vision` as transformers takes it: pictures and whole videos apart.

    Frames that are tiles are [videos, frames, C, Y, X]; of videos with unequal
    numbers of frames, which transformers does not take in one prompt, they stay
    among the pictures.
    """
    if self.video_M is not None:
      return self._films_apart(self.video_M)
    if self.shares is None or self.shares.video_M is None:
      return self.vision
    video_M = self.shares.video_M
    grid_M3 = self.vision['image_grid_thw']
    of_video_I = np.repeat(video_M >= 0, self.shares.rows_M)
    videos, first = np.unique(video_M[video_M >= 0], return_index=True)
    video_grid_M3 = grid_M3[video_M >= 0][first]
    video_grid_M3[:, 0] = [(video_M == v).sum() for v in videos]
    return {
      'pixel_values': self.vision['pixel_values'][~of_video_I],
      'image_grid_thw': grid_M3[video_M < 0],
      'pixel_values_videos': self.vision['pixel_values'][of_video_I],
      'video_grid_thw': video_grid_M3,
    }

  def _films_apart(self, video_M: np.ndarray) -> dict[str, np.ndarray]:
    pixels = self.vision['pixel_values']
    films = [pixels[video_M == v] for v in range(video_M.max() + 1)]
    if len({len(film) for film in films}) != 1:
      return self.vision
    return {
      'pixel_values': pixels[video_M < 0],
      'pixel_values_videos': np.stack(films),
    }

  def prompt(self) -> 'Encoded':
    """The same without its answer: what a model is given to go on from."""
    end = self.prompt_len
    return dataclasses.replace(
      self,
      tokens_T=self.tokens_T[:end],
      positions_T=self.positions_T[..., :end],
      feature_T=self.feature_T[:end],
      answer_A=self.answer_A[:0],
      blend_TK=None if self.blend_TK is None else self.blend_TK[:end],
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
  """A padded batch.

  Attributes:
    tokens_BT: int32 [B, T].
    positions_BT: int32 [B, T] or [B, 3, T].
    mask: AttnMask; kv_start/kv_len tell the padding.
    vision: arrays under HF's names, pictures of all examples concatenated in
      batch order (then padding pictures, which nobody reads); where they
      differ in size, each is a row that is padded to the largest.
    feature_BT: int32 [B, T], row of the flattened visual features; -1 text.
      [B, T, K] where a token is a sum of K rows.
    features_ID: [all pictures' features, D], made by the family's `see`; None:
      forward runs the tower over `vision`.
    blend_BTK: float32, the rows' weights; None where feature_BT is [B, T].
  """

  tokens_BT: jax.Array
  positions_BT: jax.Array
  mask: masks.AttnMask
  vision: dict[str, jax.Array]
  feature_BT: jax.Array
  features_ID: jax.Array | None = None
  blend_BTK: jax.Array | None = None

  __repr__ = describe.fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
  """What a forward returns; fields not asked for are None.

  Attributes:
    logits_BPV: float32, at the rows asked for (all rows: P = T).
    measured: probe_lib.Measured with a leading layer axis: mass
      [L, B, Q, N, R], profile [L, B, N, I], weights [L, B, N, T, S].
    cache: the one given, with these rows' keys and values.
  """

  logits_BPV: jax.Array
  measured: probe_lib.Measured | None = None
  cache: cache_lib.Cache | None = None

  __repr__ = describe.fields
