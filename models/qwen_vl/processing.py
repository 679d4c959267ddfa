"""Qwen-VL's processor: an example -> tokens, patches, and where each looks.

    prompt     <|vision_start|><|image_pad|><|vision_end|>What is it?
    tokens     <|vision_start|> <|image_pad|> x n <|vision_end|> What is it ?
    features          -          0 1 .. n-1            -         -   -  -  -

n is the picture's own: one token for each cell of 28 (Qwen3-VL: 32) pixels of
the resized picture. A video has as many for each pair of frames; the tower
sees a pair as it sees a picture, since its attention does not cross frames.
Token ids and positions are those of HF's processors and get_rope_index, pixels
those of its PIL image processor, of frames too.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from corejax import errors
from corejax import inputs as inputs_lib
from corejax import masks
from corejax import prompt as prompt_lib
from corejax.data import example as example_lib
from corejax.models import tokenize
from corejax.models.llava import templates as shared_templates
from corejax.models.qwen_vl import config as config_lib
from corejax.models.qwen_vl import pixels
from corejax.models.qwen_vl import positions
from corejax.models.qwen_vl import shown as shown_lib
from corejax.models.qwen_vl import templates as templates_lib
from corejax.models.qwen_vl import video

IMAGE_POLICIES = ('checkpoint',)
CONTENT_FREE = 'N/A'
IMAGE_TOKEN = '<|image_pad|>'
VIDEO_TOKEN = '<|video_pad|>'
# Around each pair of frames of Qwen3-VL.
_START, _END = '<|vision_start|>', '<|vision_end|>'


def slots(n_features: int) -> int:
  """Features to which a picture of so many is padded: four sizes an octave."""
  step = max(8, 2 ** (n_features - 1).bit_length() // 8)
  return -(-n_features // step) * step


@dataclasses.dataclass(frozen=True)
class QwenVlProcessor:
  """Implements corejax.models.registry.Processor.

  Attributes:
    tokenizer: a fast tokenizer.
    spec: what is done to pixels.
    video_spec: the same, of videos.
    image_token, image_token_id: the placeholder.
    video_token, video_token_id: that of videos.
    tokens_per_second: see config.QwenVlConfig.
    video_positions: key of positions.RULES.
    vocab_size: rows of the text model's embedding.
    max_length: context length in tokens.
    templates: by kind of source ('image', 'pages', 'frames', 'video').
    content_free: a question that asks nothing, for calibration.
  """

  tokenizer: Any
  spec: pixels.PatchSpec
  video_spec: video.VideoSpec
  image_token: str
  image_token_id: int
  video_token: str
  video_token_id: int
  tokens_per_second: int
  video_positions: str
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
      Rejected: an undecodable or oversized picture, a video whose frames
        differ in size, an answer that cannot be forced, a prompt beyond the
        context, image or video tokens in the question, an added token that
        the model has no embedding for.
    """
    try:
      return self._encode(example, template, question)
    except errors.Rejected as e:
      raise errors.Rejected(e.reason, f'{example.id}: {e.detail}') from e

  def _encode(self, example, template, question) -> inputs_lib.Encoded:
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
    sizes = shown_lib.sizes(example.media)
    parts = [
      shown_lib.plan(self.spec, self.video_spec, part, sizes)
      for part in example.parts
    ]
    n_features = sum(map(len, parts))
    if n_features > self.max_length:  # before a text of that length is made
      raise errors.Rejected(
        errors.Reason.TOO_LONG,
        f'{shown_lib.count(parts)} take {n_features} tokens; the model takes '
        f'{self.max_length}: show fewer --pages or --frames',
      )
    rendered = template.render(
      len(parts),
      question,
      self.image_token,
      answer if answer.strip() else '',
      videos=[p for p, part in enumerate(parts) if part.is_video],
      video_token=self.video_token,
    )
    # Text before pixels: it is the cheaper to be refused for.
    coded = tokenize.encode(self.tokenizer, self._fill(rendered, parts))
    tokens_T = np.concatenate([coded.prompt_T, coded.answer_A[:-1]])
    self._check_ids(np.concatenate([coded.prompt_T, coded.answer_A]))
    if len(tokens_T) > self.max_length:
      raise errors.Rejected(
        errors.Reason.TOO_LONG,
        f'{len(tokens_T)} tokens, {n_features} of {shown_lib.count(parts)}; '
        f'the model takes {self.max_length}',
      )
    visual_ids = (self.image_token_id, self.video_token_id)
    is_visual_T = np.isin(tokens_T, visual_ids)
    expected_I = np.repeat(
      [visual_ids[part.is_video] for part in parts], [len(p) for p in parts]
    )
    in_answer = np.isin(coded.answer_A, visual_ids).sum()
    if tokens_T[is_visual_T].tolist() != expected_I.tolist() or in_answer:
      raise errors.Rejected(
        errors.Reason.IMAGE_TOKENS,
        f'{is_visual_T.sum()} image and video tokens, expected {n_features} '
        f'for {shown_lib.count(parts)}, and {in_answer} in the answer',
      )
    feature_T = np.full(len(tokens_T), -1, np.int32)
    feature_T[is_visual_T] = np.arange(n_features)
    return inputs_lib.Encoded(
      tokens_T=tokens_T,
      positions_T=positions.of_tokens(
        is_visual_T, self._grids(parts), self.video_positions
      ),
      vision={
        'pixel_values': shown_lib.patches(
          self.spec, self.video_spec, parts, example.media
        ),
        'image_grid_thw': shown_lib.grids(self.spec, parts),
      },
      feature_T=feature_T,
      visual_I=np.flatnonzero(is_visual_T).astype(np.int32),
      layout=shown_lib.layout(parts, sizes),
      question=coded.question,
      prompt_len=len(coded.prompt_T),
      answer_A=coded.answer_A,
      text=rendered.text,
      shares=self._shares(parts),
    )

  def _fill(
    self, rendered: prompt_lib.Rendered, parts: Sequence[shown_lib.Part]
  ) -> prompt_lib.Rendered:
    """The prompt with every picture's and video's tokens in its place."""
    images = [self.image_token * len(p) for p in parts if not p.is_video]
    videos = []
    for part in parts:
      if part.is_video and self.video_spec.by_volume:
        own = f'{_START}{self.video_token * part.n_cells}{_END}'
        videos.append(''.join(f'<{t:.1f} seconds>{own}' for t in part.times))
      elif part.is_video:
        videos.append(self.video_token * len(part))
    rendered = tokenize.fill(rendered, self.image_token, images)
    return tokenize.fill(rendered, self.video_token, videos, 'videos')

  def _grids(self, parts: Sequence[shown_lib.Part]) -> list[positions.Grid]:
    """Of every run of visual tokens."""
    grids = []
    for part in parts:
      n_frames, interval = len(part.groups), 1.0
      if self.video_spec.by_volume:  # text stands between them
        one = positions.Grid(part.rows, part.columns)
        grids.extend([one] * n_frames)
        continue
      if self.tokens_per_second:
        interval = positions.interval(
          self.tokens_per_second, part.seconds, self.video_positions
        )
      grids.append(positions.Grid(part.rows, part.columns, n_frames, interval))
    return grids

  def _shares(self, parts: Sequence[shown_lib.Part]) -> inputs_lib.Shares:
    """Of what the tower sees one by one."""
    block = self.spec.merge**2
    features_M = np.array([part.n_cells for part in parts for _ in part.groups])
    video_M = None
    if any(part.is_video for part in parts):
      video_M = np.repeat(
        [p if part.is_video else -1 for p, part in enumerate(parts)],
        [len(part.groups) for part in parts],
      )
    return inputs_lib.Shares(
      rows_M=features_M * block,
      slots_M=np.array([slots(int(n)) for n in features_M]) * block,
      features_M=features_M,
      video_M=video_M,
    )

  def _check_ids(self, ids: np.ndarray) -> None:
    """Refuses ids that the embedding has no row for."""
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
      n_media: pictures in all; the rest are zeros that no token reads. Each is
        padded to the largest.
      pad_left: pads on the left instead, as generation does. Rows, regions
        and visual positions of a probe then shift with the tokens.

    Returns:
      Inputs. Padding tokens have id 0 and position 0.

    Raises:
      ValueError: `length` or `n_media` is too small for the batch.
    """
    sizes = [len(e.tokens_T) for e in batch]
    shown = [(e, m) for e in batch for m in range(e.n_pictures)]
    if max(sizes) > length or len(shown) > n_media:
      raise ValueError(
        f'collate: {max(sizes)} tokens and {len(shown)} pictures do not fit '
        f'into {length=} and {n_media=}'
      )
    block = self.spec.merge**2
    n_slots = max(
      (e.shares.slots_M[m] for e, m in shown if e.shares is not None),
      default=block,
    )
    vision = {}
    if n_media:
      pixel_values = np.zeros((n_media, n_slots, self._values), np.float32)
      # A padding picture has one block.
      grid_M3 = np.array([(1, self.spec.merge, self.spec.merge)] * n_media)
      for row, (encoded, m) in enumerate(shown):
        rows = encoded.picture(m)['pixel_values']
        pixel_values[row, : len(rows)] = rows
        grid_M3[row] = encoded.vision['image_grid_thw'][m]
      vision = {
        'pixel_values': jnp.asarray(pixel_values),
        'image_grid_thw': jnp.asarray(grid_M3, jnp.int32),
      }
    tokens_BT = np.zeros((len(batch), length), np.int32)
    positions_B3T = np.zeros((len(batch), 3, length), np.int32)
    feature_BT = np.full((len(batch), length), -1, np.int32)
    used = 0
    for b, (encoded, size) in enumerate(zip(batch, sizes)):
      span = slice(length - size, length) if pad_left else slice(0, size)
      tokens_BT[b, span] = encoded.tokens_T
      positions_B3T[b, :, span] = encoded.positions_T
      feature_BT[b, span] = _moved(encoded, used, n_slots // block)
      used += encoded.n_pictures
    size_B = jnp.array(sizes, jnp.int32)
    if pad_left:
      mask = masks.AttnMask(kv_start_B=length - size_B)
    else:
      mask = masks.AttnMask(kv_len_B=size_B)
    return inputs_lib.Inputs(
      tokens_BT=jnp.asarray(tokens_BT),
      positions_BT=jnp.asarray(positions_B3T),
      mask=mask,
      vision=vision,
      feature_BT=jnp.asarray(feature_BT),
    )

  @property
  def _values(self) -> int:
    """Values of one patch."""
    return 3 * self.spec.temporal * self.spec.patch_size**2


def _moved(
  encoded: inputs_lib.Encoded, first: int, n_features: int
) -> np.ndarray:
  """feature_T where picture m is row first + m of [pictures, n_features]."""
  if encoded.shares is None:
    return encoded.feature_T
  at_F = np.concatenate(
    [
      (first + m) * n_features + np.arange(count)
      for m, count in enumerate(encoded.shares.features_M)
    ]
  )
  feature_T = at_F[np.maximum(encoded.feature_T, 0)]
  return np.where(encoded.feature_T >= 0, feature_T, -1)


def load(
  folder: pathlib.Path,
  config: config_lib.QwenVlConfig,
  *,
  image_policy: str = 'checkpoint',
  video_positions: str = positions.DEFAULT,
) -> QwenVlProcessor:
  """The processor of a checkpoint folder.

  Args:
    folder: with tokenizer.json, and preprocessor_config.json or
      processor_config.json.
    config: the folder's model config.
    image_policy: 'checkpoint', what the folder says.
    video_positions: key of positions.RULES: transformers' versions differ.

  Raises:
    UserError: a file is missing or damaged, asks for what is not built, or
      does not fit the model.
  """
  if image_policy not in IMAGE_POLICIES:
    raise errors.UserError(
      f'--image_policy={image_policy}: Qwen-VL has only '
      f'{", ".join(IMAGE_POLICIES)} (a picture keeps its shape, nothing is '
      'padded)'
    )
  if video_positions not in positions.RULES:
    raise errors.UserError(
      f'--video_positions={video_positions}: expected one of '
      f'{", ".join(positions.RULES)}'
    )
  spec, tower = pixels.read(folder), config.vision
  video_spec = video.read(folder, config.dates_frames)
  held = (tower.patch_size, tower.merge, tower.temporal)
  for name, one in (
    ('preprocessor', spec),
    ('preprocessor of videos', video_spec.frame),
  ):
    asked = (one.patch_size, one.merge, one.temporal)
    if asked != held:
      raise errors.UserError(
        f'{folder}: the {name} has patch_size, merge_size, '
        f'temporal_patch_size = {asked}, the vision tower {held}; correct the '
        'preprocessor config'
      )
  tokenizer = tokenize.load(folder)
  image_token = getattr(tokenizer, 'image_token', None) or IMAGE_TOKEN
  video_token = getattr(tokenizer, 'video_token', None) or VIDEO_TOKEN
  for kind, token, expected in (
    ('image', image_token, config.image_token_id),
    ('video', video_token, config.video_token_id),
  ):
    token_id = tokenize.single_id(tokenizer, token, str(folder))
    if token_id != expected:
      raise errors.UserError(
        f'{folder}: {token!r} is token {token_id}, config.json says '
        f'{kind}_token_id={expected}; tokenizer and model belong to different '
        'checkpoints'
      )
  content_free = shared_templates.own_settings(folder).get(
    'content_free', CONTENT_FREE
  )
  if not isinstance(content_free, str) or not content_free.strip():
    raise errors.UserError(
      f'{folder / shared_templates.FILE}: content_free={content_free!r}; '
      'expected a question as text'
    )
  tokenize.check_vocabulary(tokenizer, config.text.vocab_size, str(folder))
  processor = QwenVlProcessor(
    tokenizer=tokenizer,
    spec=spec,
    video_spec=video_spec,
    image_token=image_token,
    image_token_id=config.image_token_id,
    video_token=video_token,
    video_token_id=config.video_token_id,
    tokens_per_second=config.tokens_per_second,
    video_positions=video_positions,
    vocab_size=config.text.vocab_size,
    max_length=config.text.max_length,
    templates=templates_lib.choose(folder, config.kind),
    content_free=content_free,
  )
  _check_prompts(folder, processor)
  return processor


def _check_prompts(folder: pathlib.Path, processor: QwenVlProcessor) -> None:
  """Refuses a model for which no prompt can be made: told before a run."""
  for template in processor.templates.values():
    text = template.render(1, '', processor.image_token).text
    try:
      ids = tokenize.ids(processor.tokenizer, text)['input_ids']
      processor._check_ids(np.array(ids))
    except ValueError as error:
      raise errors.UserError(
        f'{folder}: the prompt {text!r} cannot be encoded ({error}); tokenizer '
        'and model belong to different checkpoints'
      ) from error
    if len(ids) >= processor.max_length:
      raise errors.UserError(
        f'{folder}: a prompt without its question has {len(ids)} tokens, '
        f'config.json says max_position_embeddings={processor.max_length}: no '
        'example fits; correct config.json'
      )
