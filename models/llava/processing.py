"""LLaVA's processor: an example -> tokens, pixels, and where each token looks.

    prompt    USER: <image>\\nWhat is it? ASSISTANT:            one a picture
    tokens    USER : <image> x n \\n What is it ? ASSISTANT :
    features  -  -  0 1 .. n-1   -  -  -   -  -  -         -

n is what the tower hands on a picture: its patches, plus a class token where
it has one, less the first of these with the `default` selection strategy. A
class token that is kept is a feature but no visual token: it lies nowhere.

Token ids are those of HF's LlavaProcessor, pixels those of its PIL image
processors. `image_policy='pad'` pads each picture to a square first, as the
original LLaVA code does; the checkpoints in HF's format crop its middle, and
what lies outside is not seen.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from corejax import errors
from corejax import inputs as inputs_lib
from corejax import layout as layout_lib
from corejax import masks
from corejax import prompt as prompt_lib
from corejax.data import example as example_lib
from corejax.models import checkpoint
from corejax.models import images
from corejax.models import pixels
from corejax.models import tokenize
from corejax.models.llava import config as config_lib
from corejax.models.llava import templates as templates_lib

IMAGE_POLICIES = ('checkpoint', 'pad')
CONTENT_FREE = 'N/A'


@dataclasses.dataclass(frozen=True)
class Grid:
  """What the tower makes of a picture, and what the text model gets of it.

  Attributes:
    image_size: side of the tower's picture, pixels.
    patch_size: side of a patch, pixels; a rest at the right and below is
      dropped (384 = 27 * 14 + 6).
    class_token: does the tower put one before the patches?
    drop_first: `vision_feature_select_strategy` is `default`.
  """

  image_size: int
  patch_size: int
  class_token: bool
  drop_first: bool

  @property
  def side(self) -> int:
    """Patches a row."""
    return self.image_size // self.patch_size

  @property
  def n_features(self) -> int:
    """Image tokens a picture."""
    return self.side**2 + self.class_token - self.drop_first

  def patches(self) -> tuple[np.ndarray, np.ndarray]:
    """(rows among the features, x0 y0 x1 y1 in the tower's picture).

    Returns:
      int [I] and float64 [I, 4], of the features that are patches.
    """
    first = int(self.drop_first and not self.class_token)
    patch_I = np.arange(first, self.side**2)
    corner = np.stack([patch_I % self.side, patch_I // self.side], 1)
    corner = corner.astype(np.float64) * self.patch_size
    feature_I = patch_I + self.class_token - self.drop_first
    return feature_I, np.concatenate([corner, corner + self.patch_size], 1)


@dataclasses.dataclass(frozen=True)
class LlavaProcessor:
  """Implements corejax.models.registry.Processor.

  Attributes:
    tokenizer: a fast tokenizer.
    spec: what is done to pixels.
    grid: image tokens a picture.
    image_token, image_token_id: the placeholder.
    vocab_size: rows of the text model's embedding.
    max_length: context length in tokens.
    templates: by kind of source ('image', 'pages').
    content_free: a question that asks nothing, for calibration.
  """

  tokenizer: Any
  spec: pixels.PixelSpec
  grid: Grid
  image_token: str
  image_token_id: int
  vocab_size: int
  max_length: int
  templates: Mapping[str, prompt_lib.PromptTemplate]
  content_free: str = CONTENT_FREE

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
        added token that the model has no embedding for.
    """
    try:
      return self._encode(example, template, question)
    except errors.Rejected as e:
      raise errors.Rejected(e.reason, f'{example.id}: {e.detail}') from e

  def _encode(self, example, template, question) -> inputs_lib.Encoded:
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
    n_media = len(example.media)
    n_features = self.grid.n_features * n_media
    if n_features > self.max_length:  # before a text of that length is made
      raise errors.Rejected(
        errors.Reason.TOO_LONG,
        f'{n_media} pictures take {n_features} tokens; the model takes '
        f'{self.max_length}: show fewer --pages',
      )
    rendered = template.render(
      n_media, question, self.image_token, answer if answer.strip() else ''
    )
    # Text before pixels: it is the cheaper to be refused for.
    coded = tokenize.encode(
      self.tokenizer,
      tokenize.expand(
        rendered, self.image_token, self.grid.n_features, n_media
      ),
    )
    tokens_T = np.concatenate([coded.prompt_T, coded.answer_A[:-1]])
    self._check_ids(np.concatenate([coded.prompt_T, coded.answer_A]))
    if len(tokens_T) > self.max_length:
      raise errors.Rejected(
        errors.Reason.TOO_LONG,
        f'{len(tokens_T)} tokens, {n_features} of pictures; the model takes '
        f'{self.max_length}',
      )
    feature_T = np.full(len(tokens_T), -1, np.int32)
    image_rows = np.flatnonzero(tokens_T == self.image_token_id)
    in_answer = (coded.answer_A == self.image_token_id).sum()
    if len(image_rows) != n_features or in_answer:
      raise errors.Rejected(
        errors.Reason.IMAGE_TOKENS,
        f'{len(image_rows)} image tokens, expected {n_features} for {n_media} '
        f'pictures, and {in_answer} in the answer',
      )
    feature_T[image_rows] = np.arange(n_features)
    pixel_values, layout = self._media(example.media)
    feature_I, _ = self.grid.patches()
    visual = np.arange(n_media)[:, None] * self.grid.n_features + feature_I
    return inputs_lib.Encoded(
      tokens_T=tokens_T,
      positions_T=np.arange(len(tokens_T), dtype=np.int32),
      vision={'pixel_values': pixel_values},
      feature_T=feature_T,
      visual_I=image_rows[visual.reshape(-1)].astype(np.int32),
      layout=layout,
      question=coded.question,
      prompt_len=len(coded.prompt_T),
      answer_A=coded.answer_A,
      text=rendered.text,
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

  def _media(
    self, media: Sequence[bytes]
  ) -> tuple[np.ndarray, layout_lib.VisualLayout]:
    """pixel_values [M, 3, height, width] and the layout of the patches."""
    values, cells, sizes = [], [], []
    _, patch_IW = self.grid.patches()
    for index, data in enumerate(media):
      try:
        size, value = _pixels(self.spec, data)
        cells.append(pixels.plan(self.spec, size).to_picture(patch_IW))
      except errors.Rejected as e:
        raise errors.Rejected(e.reason, f'media {index}: {e.detail}') from e
      values.append(value)
      sizes.append(size)
    layout = layout_lib.VisualLayout(
      media_I=np.repeat(np.arange(len(media), dtype=np.int32), len(patch_IW)),
      cell_IW=np.concatenate(cells),
      size_M2=np.array(sizes, np.int32),
      base_I=np.zeros(len(media) * len(patch_IW), bool),
    )
    return np.stack(values), layout

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
      n_media: pictures in all; the rest are zeros that no token reads.
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
        f'collate: {max(sizes)} tokens and {sum(counts)} pictures do not fit '
        f'into {length=} and {n_media=}'
      )
    tokens_BT = np.zeros((len(batch), length), np.int32)
    positions_BT = np.zeros((len(batch), length), np.int32)
    feature_BT = np.full((len(batch), length), -1, np.int32)
    side = self.grid.image_size
    pixel_values = np.zeros((n_media, 3, side, side), np.float32)
    used = 0
    for b, (encoded, size) in enumerate(zip(batch, sizes)):
      span = slice(length - size, length) if pad_left else slice(0, size)
      tokens_BT[b, span] = encoded.tokens_T
      positions_BT[b, span] = encoded.positions_T
      feature_BT[b, span] = np.where(
        encoded.feature_T >= 0,
        encoded.feature_T + used * self.grid.n_features,
        -1,
      )
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
    )


# Neighbouring questions show the same pictures; 64 of 336 x 336 are 87 MB.
@functools.lru_cache(maxsize=64)
def _pixels(
  spec: pixels.PixelSpec, data: bytes
) -> tuple[tuple[int, int], np.ndarray]:
  """(width, height) of an encoded picture, and what the tower gets of it."""
  picture = images.decode(data)
  value = pixels.run(spec, picture)
  value.setflags(write=False)
  return (picture.shape[1], picture.shape[0]), value


def load(
  folder: str | pathlib.Path,
  config: config_lib.LlavaConfig,
  *,
  image_policy: str = 'checkpoint',
) -> LlavaProcessor:
  """The processor of a checkpoint folder.

  Args:
    folder: with tokenizer.json, and preprocessor_config.json or
      processor_config.json.
    config: the folder's model config.
    image_policy: 'checkpoint' does to pictures what the folder says, 'pad'
      pads them to a square with the mean colour first.

  Raises:
    UserError: a file is missing or damaged, asks for what is not built, or
      does not fit the model.
  """
  if image_policy not in IMAGE_POLICIES:
    raise errors.UserError(
      f'--image_policy={image_policy}: expected {" or ".join(IMAGE_POLICIES)}'
    )
  folder = pathlib.Path(folder)
  spec = pixels.read(folder, pad=True if image_policy == 'pad' else None)
  grid = Grid(
    image_size=config.vision.image_size,
    patch_size=config.vision.patch_size,
    class_token=config.vision.has_cls,
    drop_first=config.select == 'default',
  )
  _check_size(folder, spec, grid)
  path = folder / 'processor_config.json'
  asked = checkpoint.read_json(path) if path.exists() else {}
  check_tokens(path, asked, grid)
  own_template = templates_lib.own_template(folder)
  tokenizer = tokenize.load(folder)
  # A tokenizer that names its image token has the last word, as in HF.
  image_token = getattr(tokenizer, 'image_token', None) or asked.get(
    'image_token', '<image>'
  )
  if not isinstance(image_token, str) or not image_token:
    raise errors.UserError(
      f'{path}: image_token={image_token!r}; expected the text of a token'
    )
  image_token_id = tokenize.single_id(tokenizer, image_token, str(folder))
  if image_token_id != config.image_token_id:
    raise errors.UserError(
      f'{folder}: {image_token!r} is token {image_token_id}, config.json says '
      f'image_token_index={config.image_token_id}; tokenizer and model belong '
      'to different checkpoints'
    )
  content_free = templates_lib.own_settings(folder).get(
    'content_free', CONTENT_FREE
  )
  if not isinstance(content_free, str) or not content_free.strip():
    raise errors.UserError(
      f'{folder / templates_lib.FILE}: content_free={content_free!r}; expected '
      'a question as text'
    )
  processor = LlavaProcessor(
    tokenizer=tokenizer,
    spec=spec,
    grid=grid,
    image_token=image_token,
    image_token_id=image_token_id,
    vocab_size=config.text.vocab_size,
    max_length=config.text.max_length,
    templates=templates_lib.choose(
      folder,
      own_template or getattr(tokenizer, 'chat_template', None),
      config.text.kind,
    ),
    content_free=content_free,
  )
  tokenize.check_vocabulary(tokenizer, config.text.vocab_size, str(folder))
  _check_prompts(folder, processor)
  return processor


def _check_prompts(folder: pathlib.Path, processor: LlavaProcessor) -> None:
  """Refuses a model for which no prompt can be made: told before a run.

  What is longer than the context for its own reasons is rejected one by one.
  """
  lengths = []
  for template in processor.templates.values():
    rendered = template.render(1, '', processor.image_token)
    try:
      ids = tokenize.ids(processor.tokenizer, rendered.text)['input_ids']
      processor._check_ids(np.array(ids))
    except ValueError as error:
      raise errors.UserError(
        f'{folder}: the prompt {rendered.text!r} cannot be encoded ({error}); '
        'tokenizer and model belong to different checkpoints'
      ) from error
    lengths.append(len(ids) - 1 + processor.grid.n_features)
  if min(lengths) >= processor.max_length:
    raise errors.UserError(
      f'{folder}: a prompt of one picture has {min(lengths)} tokens without '
      f'its question ({processor.grid.n_features} of them its picture), '
      'config.json says '
      f'max_position_embeddings={processor.max_length}: no example fits; '
      'correct config.json'
    )


def _check_size(
  folder: pathlib.Path, spec: pixels.PixelSpec, grid: Grid
) -> None:
  """Refuses a preprocessor whose pictures the tower cannot take."""
  side = pixels.fixed_size(spec)
  if side != (grid.image_size, grid.image_size):
    made = 'pictures of changing size' if side is None else f'{side} pictures'
    raise errors.UserError(
      f'{folder}: the preprocessor makes {made} (width, height), the vision '
      f'tower takes {grid.image_size}x{grid.image_size}; correct size and '
      'crop_size in the preprocessor config'
    )


def check_tokens(
  path: pathlib.Path, asked: Mapping[str, Any], grid: Grid
) -> None:
  """Refuses a processor_config.json whose token count is not the model's."""
  patch, strategy = (
    asked.get(key) for key in ('patch_size', 'vision_feature_select_strategy')
  )
  if patch is None or strategy is None:
    return  # written before transformers 4.46: the model's config decides
  more = asked.get('num_additional_image_tokens', 0)
  for key, value, least in (
    ('patch_size', patch, 1),
    ('num_additional_image_tokens', more, 0),
  ):
    if type(value) is not int or value < least:
      raise errors.UserError(
        f'{path}: {key}={value!r}; expected a whole number from {least}'
      )
  count = (grid.image_size // patch) ** 2 + more - (strategy == 'default')
  if count != grid.n_features:
    raise errors.UserError(
      f'{path}: patch_size={patch}, vision_feature_select_strategy={strategy}, '
      f'num_additional_image_tokens={more} make {count} tokens a picture, the '
      f'model makes {grid.n_features}; correct them to fit config.json'
    )
