"""Processors of LLaVA-NeXT and OneVision: ids and pixels of transformers,
layout, refusals."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.models.llava_next import config as next_config
from corejax.models.llava_next import processing as next_processing
from corejax.models.llava_onevision import config as onevision_config
from corejax.models.llava_onevision import processing as onevision_processing
from helpers import lights
from helpers import pictures
from helpers import tiny_tiled
from helpers import tracers

FAMILIES = {
  'llava_next': (next_config, next_processing),
  'llava_onevision': (onevision_config, onevision_processing),
}
_RNG = np.random.default_rng(0)
_SIZES = ((50, 40), (31, 177), (300, 42), (200, 211), (112, 56), (900, 300))
_PICTURES = tuple(
  pictures.png(pictures.noise(_RNG, width, height)) for width, height in _SIZES
)


def _load(model_type, folder, **kwargs):
  config, processing = FAMILIES[model_type]
  return processing.load(folder, config.read(folder), **kwargs)


@pytest.fixture(scope='module', params=FAMILIES)
def made(request, tmp_path_factory):
  """(model_type, folder, processor)."""
  model_type = request.param
  folder = tiny_tiled.anyres(
    tmp_path_factory.mktemp(model_type), model_type=model_type
  )
  return model_type, folder, _load(model_type, folder)


# --- what transformers makes of the same


@pytest.mark.parametrize(
  'picked, source', [((0,), 'image'), ((3,), 'image'), ((1, 2, 5), 'pages')]
)
def test_ids_and_pixels_of_transformers(made, picked, source):
  model_type, folder, processor = made
  media = tuple(_PICTURES[m] for m in picked)
  question = '  What?\n\n {this} Größe 数 </b>?'
  encoded = processor.encode(
    tracers.example(media, question=question, kind=source)
  )
  shown = [Image.open(io.BytesIO(data)) for data in media]
  several = model_type == 'llava_onevision' and len(shown) > 1
  expected = tiny_tiled.hf_anyres(folder)(
    images=[shown] if several else shown,
    text=encoded.text,
    return_tensors='np',
  )
  ids = expected['input_ids'][0]
  assert encoded.prompt_len == len(ids)
  assert (encoded.tokens_T[: len(ids)] == ids).all()
  # transformers pads each picture's tiles with empty ones.
  plans = [processor.tiler.plan(_SIZES[m], len(media)) for m in picked]
  theirs = np.concatenate(
    [
      tiles[: plan.n_tiles]
      for tiles, plan in zip(expected['pixel_values'], plans, strict=True)
    ]
  )
  pixel_values = encoded.vision['pixel_values']
  assert pixel_values.shape == theirs.shape
  assert (pixel_values == theirs).all()


def test_tiles_and_counts_of_transformers(made):
  """Random sizes, thin strips, and pictures of exactly a pinpoint's size."""
  _, folder, processor = made
  reference = tiny_tiled.hf_anyres(folder)
  rng = np.random.default_rng(1)
  sizes = [tuple(int(x) for x in rng.integers(2, 260, 2)) for _ in range(40)]
  sizes += [(700, 2), (3, 500), (60, 120), (180, 60), (61, 60), (1, 1)]
  # 4 rows, but for rounding 3; 60 tokens, too few to be scaled to 50; 1x4 and
  # not 4x1 tiles.
  sizes += [(245, 49), (66, 120), (240, 60), (60, 240)]
  counts = set()
  for width, height in sizes:
    pixels = pictures.noise(rng, width, height)
    expected = reference(
      images=[Image.fromarray(pixels)], text='<image>', return_tensors='np'
    )
    tiles = processor.tiler.cut(pixels, 1)
    theirs = expected['pixel_values'][0]
    assert tiles.shape == theirs.shape, (width, height)
    assert (tiles == theirs).all(), (width, height)
    plan = processor.tiler.plan((width, height), 1)
    assert plan.n_tiles == len(tiles)
    n_tokens = (expected['input_ids'][0] == processor.image_token_id).sum()
    assert len(plan.feature_F) == n_tokens, (width, height)
    counts.add(int(n_tokens))
  assert len(counts) > 10


# --- which token is this box?


def test_a_white_box_lights_the_tokens_called_evidence(made):
  _, _, processor = made
  seen = tracers.check(
    processor.encode, lights.anyres(processor), sides=(60, 500)
  )
  assert seen.shown > 50
  assert len(seen.layouts) > 4


def test_layout_of_a_wide_picture(made):
  """112x56 in 2x1 tiles of 60: base, rows of details, newlines."""
  model_type, _, processor = made
  encoded = processor.encode(tracers.example((_PICTURES[4],)))
  layout = encoded.layout
  assert layout.base_I.tolist() == [True] * 25 + [False] * 50
  np.testing.assert_allclose(
    layout.cell_IW[0], [0, 0, 11 * 112 / 60, 11 * 56 / 60]
  )
  scale = 112 / 120  # resized to 120x60
  np.testing.assert_allclose(
    layout.cell_IW[25 + 5], [60 * scale, 0, 71 * scale, 11 * scale], rtol=1e-6
  )
  # 5 rows of 10 and a newline behind the base.
  tokens = np.flatnonzero(encoded.tokens_T == processor.image_token_id)
  assert len(tokens) == 25 + 5 * 11
  newlines = sorted(set(tokens) - set(encoded.visual_I))
  assert (np.array(newlines) - tokens[0]).tolist() == [35, 46, 57, 68, 79]
  first = encoded.feature_T.reshape(len(encoded.tokens_T), -1)[:, 0]
  assert (first[newlines] == 25).all()  # the first tile's row after its 25
  assert first[tokens[25]] == 26 and first[tokens[30]] == 52
  assert (encoded.blend_TK is None) == (model_type == 'llava_next')


def test_several_pictures(made):
  model_type, _, processor = made
  encoded = processor.encode(
    tracers.example((_PICTURES[4], _PICTURES[0]), kind='pages')
  )
  layout = encoded.layout
  assert set(layout.media_I) == {0, 1}
  if model_type == 'llava_next':
    assert layout.base_I.any()
    return
  # Squared: 28 of 112 pixels of padding above and below.
  assert len(layout) == 50 and not layout.base_I.any()
  assert len(encoded.vision['pixel_values']) == 2
  unit = 11 * 112 / 60
  np.testing.assert_allclose(layout.cell_IW[0], [0, -28, unit, unit - 28])
  np.testing.assert_allclose(
    layout.cell_IW[25], [0, -5, 11 * 50 / 60, 11 * 50 / 60 - 5]
  )
  tokens = np.flatnonzero(encoded.tokens_T == processor.image_token_id)
  assert len(tokens) == 52


# --- batches


@pytest.mark.parametrize('pad_left', [False, True])
def test_collate(made, pad_left):
  _, _, processor = made
  batch = [
    processor.encode(tracers.example(media, kind='pages'))
    for media in (_PICTURES[:2], _PICTURES[3:4])
  ]
  sizes = [len(e.tokens_T) for e in batch]
  n_tiles = [len(e.vision['pixel_values']) for e in batch]
  inputs = processor.collate(batch, 900, 40, pad_left=pad_left)
  rows = processor.tiler.n_features
  for b, encoded in enumerate(batch):
    start = 900 - sizes[b] if pad_left else 0
    span = slice(start, start + sizes[b])
    before = rows * sum(n_tiles[:b])
    got = np.asarray(inputs.feature_BT[b])
    is_visual = encoded.feature_T >= 0
    expected = np.where(is_visual, encoded.feature_T + before, -1)
    assert (got[span] == expected).all()
    assert (got[: span.start] == -1).all() and (got[span.stop :] == -1).all()
    if encoded.blend_TK is not None:
      assert (np.asarray(inputs.blend_BTK[b, span]) == encoded.blend_TK).all()
  prompt = batch[0].prompt()
  if prompt.blend_TK is not None:
    assert len(prompt.blend_TK) == len(prompt.tokens_T)


# --- refusals


def test_examples_that_are_rejected(made):
  _, _, processor = made
  for example, reason in (
    (tracers.example(_PICTURES[:1], question='a <image>'), 'IMAGE_TOKENS'),
    (tracers.example(_PICTURES[:1], kind='film'), 'BAD_RECORD'),
    (tracers.example((b'no picture',)), 'BAD_MEDIA'),
  ):
    with pytest.raises(errors.Rejected, match='test/x/1') as caught:
      processor.encode(example)
    assert caught.value.reason is errors.Reason[reason]
  short = dataclasses.replace(processor, max_length=30)
  with pytest.raises(errors.Rejected, match='pictures take') as caught:
    short.encode(tracers.example(_PICTURES[3:4]))
  assert caught.value.reason is errors.Reason.TOO_LONG


_PIN, _PRE = 'config.json', 'preprocessor_config.json'


@pytest.mark.parametrize(
  'file, changes, said',
  [
    (_PIN, dict(image_token_index=5), 'says image_token_index=5'),
    (_PIN, dict(image_grid_pinpoints=[[60, 61]]), 'multiples of 60'),
    (_PIN, dict(image_grid_pinpoints=[[60, 60]]), 'are not those of'),
    (_PIN, dict(image_grid_pinpoints=[60]), 'expected pairs'),
    (_PIN, dict(mm_magic=1), 'mm_magic'),
    (_PRE, dict(image_grid_pinpoints=[[60]]), 'expected pairs'),
    (_PRE, dict(image_grid_pinpoints=[[0, 60]]), 'expected pairs'),
    (_PRE, dict(size={'height': 28, 'width': 28}), 'takes 60x60'),
    (_PRE, dict(do_magic=True), 'do_magic'),
    (_PRE, dict(image_processor_type='CLIPImageProcessor'), 'expected one of'),
  ],
)
def test_folders_that_do_not_fit(tmp_path, file, changes, said):
  model_type = list(FAMILIES)[len(said) % 2]  # both, in turn
  folder = tiny_tiled.anyres(tmp_path, model_type=model_type, flat=True)
  tiny_tiled.change(folder / file, **changes)
  with pytest.raises(errors.UserError, match=said) as caught:
    _load(model_type, folder)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'model_type, file, changes, said',
  [
    ('llava_next', _PIN, dict(vision_feature_select_strategy='full'), 'CLIP'),
    (
      'llava_next',
      'processor_config.json',
      dict(num_additional_image_tokens=0),
      'make 24 tokens',
    ),
    ('llava_next', _PIN, dict(model_type='llava'), 'llava_next_flax reads'),
    (
      'llava_onevision',
      _PIN,
      dict(vision_aspect_ratio='pad'),
      'expected anyres_max_N',
    ),
    (
      'llava_onevision',
      _PIN,
      dict(vision_feature_select_strategy='default'),
      'SigLIP',
    ),
    (
      'llava_onevision',
      'processor_config.json',
      dict(num_image_tokens=9),
      'num_image_tokens=9',
    ),
    (
      'llava_onevision',
      'processor_config.json',
      dict(vision_aspect_ratio='anyres_max_3'),
      "has 'anyres_max_2'",
    ),
  ],
)
def test_own_settings_that_do_not_fit(
  tmp_path, model_type, file, changes, said
):
  folder = tiny_tiled.anyres(tmp_path, model_type=model_type)
  tiny_tiled.change(folder / file, **changes)
  with pytest.raises(errors.UserError, match=said):
    _load(model_type, folder)


def test_policies_and_templates(tmp_path):
  folder = tiny_tiled.anyres(tmp_path)
  with pytest.raises(
    errors.UserError, match='expected checkpoint or detail for'
  ):
    _load('llava_next', folder, image_policy='pad')
  for mark, name in next_processing.templates.MARKS:
    text = json.dumps({'chat_template': f'x {mark} y'})
    (folder / 'chat_template.json').write_text(text)
    processor = _load('llava_next', folder)
    assert processor.templates is next_processing.templates.SETS[name]
