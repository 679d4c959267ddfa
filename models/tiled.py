"""Processing where a picture becomes several tiles: tokens, pixels, layout.

    picture -> tiles, each a "picture" to the tower      [n, 3, side, side]
            -> tokens, each taking one row of the features  [n * I]

    tokens     <img> c c c c .. c c c c .. </img> What is it ?
    feature_T    -   0 1 2 3 .. I I+1 I+2 ..  -    -   -   - -

A frame of a video is one tile; how many tokens it has, and what text stands
around them, is said in models/videos.py.

A family brings a `Tiler`: from a picture's size alone it says how many tiles
and tokens there will be, which feature each token takes and what part of the
picture it shows; from the picture it cuts the tiles. All shapes that a
compiled program sees are numbers of tiles and of tokens; which feature goes
where is an array.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from corejax import errors
from corejax import inputs as inputs_lib
from corejax import layout as layout_lib
from corejax import masks
from corejax import prompt as prompt_lib
from corejax.data import example as example_lib
from corejax.models import images
from corejax.models import recent
from corejax.models import tokenize
from corejax.models import videos

CONTENT_FREE = 'N/A'
# Neighbouring questions show the same pictures: one of 336 x 336 is 1.4 MB, 13
# tiles of 448 x 448 are 31.
_TILES = recent.Recent(256 << 20)


@dataclasses.dataclass(frozen=True)
class Plan:
  """One picture as tiles and tokens; F of its tokens take a feature.

  Attributes:
    n_tiles: tiles that are cut.
    feature_F: int [F], per token its row among the n_tiles * I features;
      [F, K] where a token is a sum of K rows.
    visual_I: int [I], which of these tokens show a part of the picture (a
      newline shows none).
    cell_IW: float64 [I, 4], x0 y0 x1 y1 in the picture's pixels.
    base_I: bool [I], tokens of a tile that shows the whole picture again.
    blend_FK: float32 [F, K], the rows' weights; None where feature_F is [F].
    blend: of the layout, if cells do not say all.
  """

  n_tiles: int
  feature_F: np.ndarray
  visual_I: np.ndarray
  cell_IW: np.ndarray
  base_I: np.ndarray
  blend_FK: np.ndarray | None = None
  blend: layout_lib.Blend | None = None


class Tiler(Protocol):
  """How a family cuts pictures; hashable."""

  @property
  def side(self) -> int:
    """Pixels along a side of a tile."""
    ...

  @property
  def n_features(self) -> int:
    """I, rows that the family's `see` writes a tile."""
    ...

  @property
  def n_blend(self) -> int:
    """K, rows of which a token is a sum; 1 takes its row as it is."""
    ...

  def plan(self, size: tuple[int, int], n_media: int) -> Plan:
    """Of a picture of (width, height) pixels, one of n_media in its prompt."""
    ...

  def cut(self, image_HWC: np.ndarray, n_media: int) -> np.ndarray:
    """float32 [n_tiles, 3, side, side] from uint8 [height, width, 3]."""
    ...


def cells(
  rows: int, columns: int, box: tuple[float, float, float, float]
) -> np.ndarray:
  """float64 [rows * columns, 4]: a rectangle as a grid of cells, row by row."""
  x0, y0, x1, y1 = box
  y = np.linspace(y0, y1, rows + 1)
  x = np.linspace(x0, x1, columns + 1)
  row, column = (a.reshape(-1) for a in np.indices((rows, columns)))
  return np.stack([x[column], y[row], x[column + 1], y[row + 1]], 1)


@dataclasses.dataclass(frozen=True)
class TiledProcessor:
  """Implements corejax.models.registry.Processor.

  Attributes:
    tokenizer: a fast tokenizer.
    tiler: how pictures become tiles and tokens.
    image_token, image_token_id: stands for a picture in a prompt, and for each
      of its features in what the tokenizer gets.
    before, after: what the tokenizer gets around a picture's tokens.
    vocab_size: rows of the text model's embedding.
    max_length: context length in tokens.
    templates: by kind of source ('image', 'pages').
    content_free: a question that asks nothing, for calibration.
    count_base: may tokens of base and thumbnail tiles be evidence?
    video: how videos are read; None: they are refused.
  """

  tokenizer: Any
  tiler: Tiler
  image_token: str
  image_token_id: int
  before: str
  after: str
  vocab_size: int
  max_length: int
  templates: Mapping[str, prompt_lib.PromptTemplate]
  content_free: str = CONTENT_FREE
  count_base: bool = True
  video: videos.Video | None = None

  def encode(
    self,
    example: example_lib.Example,
    template: prompt_lib.PromptTemplate | None = None,
    question: str | None = None,
  ) -> inputs_lib.Encoded:
    """One example, with its first answer teacher-forced.

    Args:
      example: the example.
      template: None takes the one for example.kind.
      question: replaces the example's (`content_free` for a baseline).

    Raises:
      Rejected: an undecodable or oversized picture, an answer that cannot be
        forced, a prompt beyond the context, image tokens in the question, an
        added token that the model has no embedding for, a kind of source
        (video) that the family does not read.
    """
    try:
      return self._encode(example, template, question)
    except errors.Rejected as e:
      raise errors.Rejected(e.reason, f'{example.id}: {e.detail}') from e

  def _encode(self, example, template, question) -> inputs_lib.Encoded:
    if self.video is None:
      example.refuse_clips()
    if template is None:
      if example.kind not in self.templates:
        raise errors.Rejected(
          errors.Reason.BAD_RECORD,
          f'kind {example.kind!r} has no prompt template; there are '
          f'{", ".join(self.templates)}',
        )
      template = self.templates[example.kind]
    question = example.question if question is None else question
    answer = example.answers[0] if example.answers else ''
    plans, sizes = self._plans(example)
    counts = [len(plan.feature_F) for plan in plans]
    if sum(counts) > self.max_length:  # before a text of that length is made
      least = len(self.tiler.plan((1, 1), len(plans)).feature_F)
      raise errors.Rejected(
        errors.Reason.TOO_LONG,
        f'{len(plans)} pictures take {sum(counts)} tokens; the model takes '
        f'{self.max_length}: show fewer --pages'
        + (' (--frames of a video)' if example.clips else '')
        + (', or at a lower --dpi' if max(counts) > least else ''),
      )
    rendered = self._render(
      example, template, question, answer if answer.strip() else ''
    )
    # Text before pixels: it is the cheaper to be refused for.
    coded = tokenize.encode(
      self.tokenizer, self._filled(rendered, example.parts, counts)
    )
    tokens_T = np.concatenate([coded.prompt_T, coded.answer_A[:-1]])
    self._check_ids(np.concatenate([coded.prompt_T, coded.answer_A]))
    if len(tokens_T) > self.max_length:
      raise errors.Rejected(
        errors.Reason.TOO_LONG,
        f'{len(tokens_T)} tokens, {sum(counts)} of pictures; the model takes '
        f'{self.max_length}',
      )
    rows = np.flatnonzero(self._is_visual(tokens_T))
    in_answer = self._is_visual(coded.answer_A).sum()
    if len(rows) != sum(counts) or in_answer:
      raise errors.Rejected(
        errors.Reason.IMAGE_TOKENS,
        f'{len(rows)} image tokens, expected {sum(counts)} for {len(plans)} '
        f'pictures, and {in_answer} in the answer',
      )
    feature_T, blend_TK, visual_I = self._placed(plans, rows, len(tokens_T))
    return inputs_lib.Encoded(
      tokens_T=tokens_T,
      positions_T=np.arange(len(tokens_T), dtype=np.int32),
      vision={'pixel_values': self._pixels(example)},
      feature_T=feature_T,
      visual_I=visual_I,
      layout=layout_lib.VisualLayout(
        media_I=np.repeat(
          np.arange(len(plans), dtype=np.int32),
          [len(plan.visual_I) for plan in plans],
        ),
        cell_IW=np.concatenate([plan.cell_IW for plan in plans]),
        size_M2=np.array(sizes, np.int32),
        base_I=np.concatenate([plan.base_I for plan in plans]),
        blend=_blend(plans),
        count_base=self.count_base,
      ),
      question=coded.question,
      prompt_len=len(coded.prompt_T),
      answer_A=coded.answer_A,
      text=rendered.text,
      blend_TK=blend_TK,
      video_M=self._video_of(example.clips, plans),
    )

  def _render(self, example, template, question, answer) -> prompt_lib.Rendered:
    """The prompt, one placeholder a picture or video."""
    filmed = [
      number
      for number, part in enumerate(example.parts)
      if isinstance(part, example_lib.Clip)
    ]
    return template.render(
      len(example.parts),
      question,
      self.image_token,
      answer,
      videos=filmed,
      video_token='' if self.video is None else self.video.token,
    )

  def _filled(
    self,
    rendered: prompt_lib.Rendered,
    parts: Sequence[int | example_lib.Clip],
    counts: Sequence[int],
  ) -> prompt_lib.Rendered:
    """The prompt with its features' tokens; counts[m] of picture or frame m."""
    shown, filmed = [], []
    for part in parts:
      if isinstance(part, int):
        tokens = self.image_token * counts[part]
        shown.append(f'{self.before}{tokens}{self.after}')
      elif self.video is not None:
        filmed.append(self.video.text([counts[m] for m in part.media]))
    # Pictures first: a video's tokens may be the same.
    rendered = tokenize.fill(rendered, self.image_token, shown)
    if self.video is None:
      return rendered
    return tokenize.fill(rendered, self.video.token, filmed, 'videos')

  def _video_of(
    self, clips: Sequence[example_lib.Clip], plans: Sequence[Plan]
  ) -> np.ndarray | None:
    """Which video each tile is of, where its tokens are not a picture's."""
    if not clips or self.video is None:
      return None
    if self.video.fill_id == self.image_token_id:
      return None
    owner = {m: v for v, clip in enumerate(clips) for m in clip.media}
    return np.repeat(
      [owner.get(m, -1) for m in range(len(plans))],
      [plan.n_tiles for plan in plans],
    )

  def _is_visual(self, ids: np.ndarray) -> np.ndarray:
    """Which of these are tokens of features."""
    own = [] if self.video is None else [self.video.fill_id]
    return np.isin(ids, [self.image_token_id, *own])

  def _plans(
    self, example: example_lib.Example
  ) -> tuple[list[Plan], list[tuple[int, int]]]:
    """Each picture's and frame's plan and size, from its header alone."""
    plans, sizes = [], []
    last = {m: m == c.media[-1] for c in example.clips for m in c.media}
    n_pictures = len(example.media) - len(last)
    for index, data in enumerate(example.media):
      try:
        size = images.size(data)
        if self.video is not None and index in last:
          plans.append(self.video.tiler.frame(size, last[index]))
        else:
          plans.append(self.tiler.plan(size, n_pictures))
      except errors.Rejected as e:
        raise errors.Rejected(e.reason, f'media {index}: {e.detail}') from e
      sizes.append(size)
    return plans, sizes

  def _placed(
    self, plans: Sequence[Plan], rows: np.ndarray, length: int
  ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(feature_T, blend_TK, visual_I), pictures' tokens standing at `rows`."""
    n_blend = self.tiler.n_blend
    shape = (length,) if n_blend == 1 else (length, n_blend)
    feature_T = np.full(shape, -1, np.int32)
    blend_TK = None if n_blend == 1 else np.zeros(shape, np.float32)
    visual, first_row, first_feature = [], 0, 0
    for plan in plans:
      mine = rows[first_row : first_row + len(plan.feature_F)]
      feature_T[mine] = first_feature + plan.feature_F
      if blend_TK is not None:
        blend_TK[mine] = plan.blend_FK
      visual.append(mine[plan.visual_I])
      first_row += len(mine)
      first_feature += plan.n_tiles * self.tiler.n_features
    return feature_T, blend_TK, np.concatenate(visual).astype(np.int32)

  def _pixels(self, example: example_lib.Example) -> np.ndarray:
    """float32 [tiles of all pictures and frames, 3, side, side]."""
    values = []
    frames = {m for clip in example.clips for m in clip.media}
    n_pictures = len(example.media) - len(frames)
    for index, data in enumerate(example.media):
      try:
        if self.video is not None and index in frames:
          values.append(videos.cut(self.video.tiler, data))
        else:
          values.append(self._tiles(data, n_pictures))
      except errors.Rejected as e:
        raise errors.Rejected(e.reason, f'media {index}: {e.detail}') from e
    return np.concatenate(values)

  def _tiles(self, data: bytes, n_media: int) -> np.ndarray:
    """The tiles of an encoded picture."""
    return _TILES.get(
      (self.tiler, data, n_media),
      lambda: self.tiler.cut(images.decode(data), n_media),
    )

  def _check_ids(self, ids: np.ndarray) -> None:
    """Refuses ids the embedding has no row for (a gather would clamp them)."""
    beyond = ids[ids >= self.vocab_size]
    if len(beyond):
      token = self.tokenizer.convert_ids_to_tokens(int(beyond[0]))
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'{token!r} has id {beyond[0]}, the model has {self.vocab_size} '
        'embeddings',
      )

  def collate(
    self,
    batch: Sequence[inputs_lib.Encoded],
    length: int,
    n_media: int,
    pad_left: bool = False,
  ) -> inputs_lib.Inputs:
    """Pads a few examples into one batch.

    Args:
      batch: encoded examples; where their `vision` is empty (of all), feature_T
        is taken as it is.
      length: T; shorter examples are padded on the right.
      n_media: tiles in all; the rest are zeros that no token reads.
      pad_left: pads on the left instead, as generation does. Rows, regions
        and visual positions of a probe then shift with the tokens.

    Returns:
      Inputs. Padding tokens have id 0 and position 0.

    Raises:
      ValueError: `length` or `n_media` is too small for the batch.
    """
    sizes = [len(e.tokens_T) for e in batch]
    counts = [len(e.vision.get('pixel_values', ())) for e in batch]
    if max(sizes) > length or sum(counts) > n_media:
      raise ValueError(
        f'collate: {max(sizes)} tokens and {sum(counts)} tiles do not fit into '
        f'{length=} and {n_media=}'
      )
    tokens_BT = np.zeros((len(batch), length), np.int32)
    positions_BT = np.zeros((len(batch), length), np.int32)
    n_blend = self.tiler.n_blend
    shape = (len(batch), length, n_blend)[: 2 + (n_blend > 1)]
    feature_BT = np.full(shape, -1, np.int32)
    blend_BTK = np.zeros(shape, np.float32) if n_blend > 1 else None
    side = self.tiler.side
    pixel_values = np.zeros((n_media, 3, side, side), np.float32)
    used = 0
    for b, (encoded, size) in enumerate(zip(batch, sizes)):
      span = slice(length - size, length) if pad_left else slice(0, size)
      tokens_BT[b, span] = encoded.tokens_T
      positions_BT[b, span] = encoded.positions_T
      feature_BT[b, span] = np.where(
        encoded.feature_T >= 0,
        encoded.feature_T + used * self.tiler.n_features,
        -1,
      )
      if blend_BTK is not None:
        blend_BTK[b, span] = encoded.blend_TK
      if counts[b]:
        pixel_values[used : used + counts[b]] = encoded.vision['pixel_values']
        used += counts[b]
    size_B = jnp.array(sizes, jnp.int32)
    if pad_left:
      mask = masks.AttnMask(kv_start_B=length - size_B)
    else:
      mask = masks.AttnMask(kv_len_B=size_B)
    return inputs_lib.Inputs(
      tokens_BT=jnp.asarray(tokens_BT),
      positions_BT=jnp.asarray(positions_BT),
      mask=mask,
      vision={'pixel_values': jnp.asarray(pixel_values)},
      feature_BT=jnp.asarray(feature_BT),
      blend_BTK=None if blend_BTK is None else jnp.asarray(blend_BTK),
    )

  def check(self, folder: pathlib.Path) -> None:
    """Refuses a model for which no prompt can be made: told before a run.

    What is longer than the context for its own reasons is rejected one by one.

    Raises:
      UserError: naming the prompt.
    """
    tokenize.check_vocabulary(self.tokenizer, self.vocab_size, str(folder))
    least = len(self.tiler.plan((1, 1), 1).feature_F)
    lengths = []
    for template in self.templates.values():
      rendered = template.render(1, '', self.image_token)
      text = tokenize.fill(
        rendered,
        self.image_token,
        [self.before + self.image_token + self.after],
      ).text
      try:
        ids = tokenize.ids(self.tokenizer, text)['input_ids']
        self._check_ids(np.array(ids))
      except ValueError as error:
        raise errors.UserError(
          f'{folder}: the prompt {text!r} cannot be encoded ({error}); '
          'tokenizer and model belong to different checkpoints'
        ) from error
      lengths.append(len(ids) - 1 + least)
    if min(lengths) >= self.max_length:
      raise errors.UserError(
        f'{folder}: a prompt of one picture has at least {min(lengths)} tokens '
        f'without its question ({least} of them its picture), config.json says '
        f'max_position_embeddings={self.max_length}: no example fits; correct '
        'config.json'
      )


def _blend(plans: Sequence[Plan]) -> layout_lib.Blend | None:
  blends = [plan.blend for plan in plans if plan.blend is not None]
  if not blends:
    return None
  return layout_lib.Blend(
    np.concatenate([blend.share_IK for blend in blends]),
    np.concatenate([blend.cell_IKW for blend in blends]),
  )
