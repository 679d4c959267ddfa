"""InternVL's processor: ids and pixels of transformers, layout, refusals."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import example as example_lib
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import processing
from corejax.models.internvl import templates
from helpers import lights
from helpers import pictures
from helpers import tiny_tiled
from helpers import tiny_tokenizer
from helpers import tracers

_RNG = np.random.default_rng(0)
_SIZES = ((50, 40), (31, 177), (300, 42), (57, 57), (112, 56), (900, 300))
_PICTURES = tuple(
  pictures.png(pictures.noise(_RNG, width, height)) for width, height in _SIZES
)


def _load(folder, **kwargs):
  return processing.load(folder, config_lib.read(folder), **kwargs)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """kind of tokenizer -> (folder, processor)."""
  root = tmp_path_factory.mktemp('internvl')
  folders = {k: tiny_tiled.internvl(root / k, k) for k in ('bytes', 'pieces')}
  return {kind: (folder, _load(folder)) for kind, folder in folders.items()}


# --- what transformers makes of the same


@pytest.mark.parametrize('kind', ['bytes', 'pieces'])
@pytest.mark.parametrize(
  'picked, source', [((0,), 'image'), ((3, 1, 2, 4, 5), 'pages')]
)
@pytest.mark.parametrize(
  'question', ['What colour is it?', '  What?\n\n {this} Größe 数 </b>?']
)
def test_ids_and_pixels_of_transformers(made, kind, picked, source, question):
  folder, processor = made[kind]
  media = tuple(_PICTURES[m] for m in picked)
  encoded = processor.encode(
    tracers.example(media, question=question, kind=source)
  )
  expected = tiny_tiled.hf_internvl(folder)(
    images=[Image.open(io.BytesIO(data)) for data in media],
    text=encoded.text,
    return_tensors='np',
  )
  ids = expected['input_ids'][0]
  assert encoded.prompt_len == len(ids)
  assert (encoded.tokens_T[: len(ids)] == ids).all()
  pixel_values = encoded.vision['pixel_values']
  assert pixel_values.shape == expected['pixel_values'].shape
  assert (pixel_values == expected['pixel_values']).all()
  said = encoded.tokens_T[slice(*encoded.question)]
  plain = processor.tokenizer.decode(said).replace('\u2581', '')
  assert plain.replace(' ', '').startswith('What')


@pytest.mark.parametrize('least, most', [(1, 6), (2, 12), (5, 7), (1, 1)])
def test_tiles_of_transformers(tmp_path, least, most):
  """Random sizes, and those where two grids tie."""
  folder = tiny_tiled.internvl(tmp_path, tile=14, flat=True, most=most)
  tiny_tiled.change(folder / 'preprocessor_config.json', min_patches=least)
  tiler = _load(folder).tiler
  reference = tiny_tiled.hf_internvl(folder).image_processor
  rng = np.random.default_rng(most)
  sizes = [tuple(int(x) for x in rng.integers(1, 90, 2)) for _ in range(40)]
  sizes += [(n * 7, n * 7 * 2) for n in range(1, 9)] + [(20, 20), (28, 28)]
  counts = set()
  for width, height in sizes:
    pixels = pictures.noise(rng, width, height)
    expected = reference(
      Image.fromarray(pixels), return_tensors='np', crop_to_patches=True
    )['pixel_values']
    tiles = tiler.cut(pixels, 1)
    assert tiles.shape == expected.shape, (width, height)
    assert (tiles == expected).all(), (width, height)
    plan = tiler.plan((width, height), 1)
    assert plan.n_tiles == len(tiles)
    assert len(plan.feature_F) == len(tiles) * tiler.n_features
    counts.add(len(tiles))
  assert (len(counts) > 2) == (most > 2)


# --- which token is this box?


def test_a_white_box_lights_the_tokens_called_evidence(made):
  _, processor = made['bytes']
  seen = tracers.check(
    processor.encode, lights.internvl(processor), sides=(60, 500)
  )
  assert seen.shown > 55 and not seen.cropped
  assert len(seen.layouts) > 3


def test_the_thumbnail_is_last_and_is_base(made):
  _, processor = made['bytes']
  encoded = processor.encode(
    tracers.example((_PICTURES[5], _PICTURES[4]), kind='pages')
  )
  layout = encoded.layout
  # 900x300 is three tiles and a thumbnail, 112x56 two and one.
  assert layout.media_I.tolist() == [0] * 64 + [1] * 48
  base = np.flatnonzero(layout.base_I)
  assert base.tolist() == [*range(48, 64), *range(96, 112)]
  np.testing.assert_allclose(layout.cell_IW[0], [0, 0, 75, 75])
  np.testing.assert_allclose(layout.cell_IW[16], [300, 0, 375, 75])
  np.testing.assert_allclose(layout.cell_IW[48], [0, 0, 225, 75])
  detail = _load(made['bytes'][0], image_policy='detail')
  whole = example_lib.Box(0, 0, 0, 1, 1)
  for shown, counted in ((processor, 64), (detail, 48)):
    encoded = shown.encode(tracers.example(_PICTURES[5:]))
    assert encoded.layout.tokens([whole]).sum() == counted
  single = _load(made['bytes'][0], image_policy='single')
  for one in (
    processor.encode(tracers.example((_PICTURES[0],))),
    single.encode(tracers.example((_PICTURES[5],))),
  ):
    assert len(one.layout) == 16 and not one.layout.base_I.any()


# --- batches


@pytest.mark.parametrize('pad_left', [False, True])
def test_collate(made, pad_left):
  _, processor = made['bytes']
  batch = [
    processor.encode(tracers.example(media, kind='pages'))
    for media in (_PICTURES[:2], _PICTURES[3:4], _PICTURES[2:5])
  ]
  sizes = [len(e.tokens_T) for e in batch]
  n_tiles = [len(e.vision['pixel_values']) for e in batch]
  inputs = processor.collate(batch, 512, 40, pad_left=pad_left)
  flat = np.asarray(inputs.vision['pixel_values'])
  assert flat.shape == (40, 3, 56, 56) and not flat[sum(n_tiles) :].any()
  first = 0
  for b, encoded in enumerate(batch):
    start = 512 - sizes[b] if pad_left else 0
    span = slice(start, start + sizes[b])
    assert (np.asarray(inputs.tokens_BT[b, span]) == encoded.tokens_T).all()
    row = np.asarray(inputs.feature_BT[b])
    assert row[row >= 0].tolist() == list(
      range(16 * first, 16 * (first + n_tiles[b]))
    )
    assert (row[: span.start] == -1).all() and (row[span.stop :] == -1).all()
    first += n_tiles[b]
  with pytest.raises(ValueError, match='tiles do not fit'):
    processor.collate(batch, 512, 3)


# --- refusals


def _reason(processor, example):
  with pytest.raises(errors.Rejected, match=example.id) as caught:
    processor.encode(example)
  return caught.value.reason


def test_examples_that_are_rejected(made):
  _, processor = made['bytes']
  one = _PICTURES[:1]
  for example, reason in (
    (tracers.example(one, question='a <IMG_CONTEXT>'), 'IMAGE_TOKENS'),
    (tracers.example(one, answer='<IMG_CONTEXT> red'), 'IMAGE_TOKENS'),
    (tracers.example(one, kind='film'), 'BAD_RECORD'),
    (tracers.example((b'no picture',)), 'BAD_MEDIA'),
    (tracers.example((_PICTURES[0][:90],)), 'BAD_MEDIA'),
  ):
    assert _reason(processor, example) is errors.Reason[reason]
  for length in (60, 90):  # less than its 64 tokens, less than the prompt
    short = dataclasses.replace(processor, max_length=length)
    example = tracers.example(_PICTURES[5:])
    assert _reason(short, example) is errors.Reason.TOO_LONG


@pytest.mark.parametrize(
  'file, changes, said',
  [
    (
      'config.json',
      dict(image_token_id=5),
      'is token 323, .* says image_token_id=5',
    ),
    ('config.json', dict(image_seq_length=17), 'makes 16 features a tile'),
    ('processor_config.json', dict(image_seq_length=9), 'makes 16 features'),
    ('preprocessor_config.json', dict(max_patches=0), 'max_patches=0'),
    ('preprocessor_config.json', dict(min_patches=True), 'min_patches=True'),
    ('preprocessor_config.json', dict(do_magic=True), 'do_magic'),
    (
      'preprocessor_config.json',
      dict(size={'height': 28, 'width': 28}),
      'takes 56x56',
    ),
    (
      'preprocessor_config.json',
      dict(image_processor_type='CLIPImageProcessor'),
      'expected one of GotOcr2ImageProcessor',
    ),
  ],
)
def test_folders_that_do_not_fit(tmp_path, file, changes, said):
  folder = tiny_tiled.internvl(tmp_path, flat=True)
  tiny_tiled.change(folder / file, **changes)
  with pytest.raises(errors.UserError, match=said) as caught:
    _load(folder)
  assert '\n' not in str(caught.value)


def test_policy_and_context_and_templates(tmp_path):
  folder = tiny_tiled.internvl(tmp_path)
  with pytest.raises(errors.UserError, match='checkpoint or single or detail'):
    _load(folder, image_policy='pad')
  (folder / 'corejax.json').write_text(json.dumps({'templates': 'plain'}))
  plain = _load(folder)
  assert plain.templates is templates.SETS['plain']
  (folder / 'corejax.json').write_text(json.dumps({'templates': 'vicuna'}))
  with pytest.raises(errors.UserError, match='internvl, plain'):
    _load(folder)
  (folder / 'corejax.json').write_text(json.dumps({'content_free': ''}))
  with pytest.raises(errors.UserError, match='content_free'):
    _load(folder)
  (folder / 'corejax.json').unlink()
  text = json.loads((folder / 'config.json').read_text())['text_config']
  tiny_tiled.change(
    folder / 'config.json', text_config={**text, 'max_position_embeddings': 20}
  )
  with pytest.raises(errors.UserError, match='no example fits'):
    _load(folder)


def test_a_token_that_is_missing(tmp_path):
  folder = tiny_tiled.internvl(tmp_path)
  tiny_tokenizer.make('bytes', None).save_pretrained(folder)
  with pytest.raises(errors.UserError, match="no token '<IMG_CONTEXT>'"):
    _load(folder)
