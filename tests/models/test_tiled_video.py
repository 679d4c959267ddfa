"""Videos of families that show a frame as one tile: ids, pixels, layout.

Frames' pixels are those of the families' PIL image processors, resized across
first; transformers' own video processors do so with torchvision, which rounds
otherwise (test_pixels.py).
"""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import example as example_lib
from corejax.models import registry
from helpers import pictures
from helpers import tiled_cases
from helpers import tiny_tiled
from helpers import tiny_tokenizer
from helpers import torch_only
from helpers import tracers

torch = torch_only.torch

FAMILIES = ('internvl_flax', 'llava_onevision_flax')
_RNG = np.random.default_rng(0)


def _media(*sizes):
  return tuple(pictures.png(pictures.noise(_RNG, *size)) for size in sizes)


_WIDE, _TALL, _ODD = (90, 41), (37, 80), (200, 211)
Clip = example_lib.Clip


def _load(key, folder):
  return registry.get(key).load_processor(folder)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(key, kind of tokenizer) -> (folder, processor)."""
  root = tmp_path_factory.mktemp('tiled_video')
  found = {}
  for key in FAMILIES:
    for kind in ('bytes', 'pieces'):
      folder = tiled_cases.MAKERS[key](root / key / kind, kind)
      found[key, kind] = folder, _load(key, folder)
  return found


def _open(data):
  return Image.open(io.BytesIO(data))


def _theirs(key, reference, image) -> np.ndarray:
  """[3, side, side], a frame by the family's PIL image processor."""
  images = reference.image_processor
  across = (images.size['width'], image.height)
  image = image.resize(across, Image.Resampling.BICUBIC)
  if key == 'internvl_flax':
    made = images(image, return_tensors='np', crop_to_patches=False)
    return made['pixel_values'][0]
  return images(image, return_tensors='np')['pixel_values'][0][0]


# media, clips, and how many of the media are pictures
_PROMPTS = {
  'one': (_media(_WIDE, _WIDE, _WIDE), (Clip(0, (0.0, 0.5, 1.0)),)),
  'a_frame': (_media(_ODD), (Clip(0, (0.0,)),)),
  'mixed': (
    _media(_ODD, _WIDE, _WIDE, _TALL, _TALL),
    (Clip(1, (0.0, 2.0)), Clip(3, (0.0, 1.0))),
  ),
  'last': (
    _media(_WIDE, _TALL, _ODD, _ODD, _ODD),
    (Clip(2, (0.0, 0.1, 9.0)),),
  ),
}


@pytest.mark.parametrize('key', FAMILIES)
@pytest.mark.parametrize(
  'kind, prompt',
  [('bytes', prompt) for prompt in _PROMPTS] + [('pieces', 'mixed')],
)
def test_ids_and_pixels_of_transformers(made, key, kind, prompt):
  folder, processor = made[key, kind]
  media, clips = _PROMPTS[prompt]
  encoded = processor.encode(
    tracers.example(
      media, question='  What?\n {this} Größe', kind='video', clips=clips
    )
  )
  assert encoded.text.count('<video>') == len(clips)
  is_onevision = key == 'llava_onevision_flax'
  reference = (
    tiny_tiled.hf_anyres if is_onevision else tiny_tiled.hf_internvl
  )(folder)
  films = [[_open(media[m]) for m in clip.media] for clip in clips]
  frames = [[_theirs(key, reference, f) for f in film] for film in films]
  reference.video_processor.pixels = torch.tensor(np.array(frames))
  framed = {m for clip in clips for m in clip.media}
  shown = [_open(d) for m, d in enumerate(media) if m not in framed]
  expected = reference(
    images=([shown] if is_onevision else shown) if shown else None,
    videos=[[np.array(f) for f in film] for film in films],
    text=encoded.text,
    return_tensors='pt',
  )
  ids = expected['input_ids'][0].numpy()
  assert encoded.prompt_len == len(ids)
  assert (encoded.tokens_T[: len(ids)] == ids).all()
  ours = encoded.vision['pixel_values']
  if not is_onevision:
    assert encoded.hf_vision() is encoded.vision
    assert (ours == expected['pixel_values'].numpy()).all()
    return
  counts = [1 if m in framed else None for m in range(len(media))]
  for m, data in enumerate(media):
    if counts[m] is None:
      plan = processor.tiler.plan(_open(data).size, len(shown))
      counts[m] = plan.n_tiles
  owner = np.repeat(np.arange(len(media)), counts)
  is_frame = np.isin(owner, sorted(framed))
  assert (ours[is_frame] == np.concatenate(frames)).all()
  theirs = [
    tiles[:n]
    for tiles, n in zip(
      expected.get('pixel_values', ()),
      [n for m, n in enumerate(counts) if m not in framed],
    )
  ]
  assert is_frame.all() == (not theirs)
  apart = encoded.hf_vision()
  assert (apart['pixel_values_videos'] == np.array(frames)).all()
  assert (apart['pixel_values'] == ours[~is_frame]).all()
  if theirs:
    assert (ours[~is_frame] == np.concatenate(theirs)).all()


def test_text_around_frames(made):
  """Of two videos each counts its frames from 1."""
  media, clips = _PROMPTS['mixed']
  example = tracers.example(media, kind='video', clips=clips)
  _, processor = made['internvl_flax', 'bytes']
  encoded = processor.encode(example)
  said = processor.tokenizer.decode(encoded.tokens_T).replace(
    '<IMG_CONTEXT>' * 16, '*'
  )
  first = said[: said.index('Frame1')]
  assert first.startswith('<|im_start|>user\n<img>*') and first.endswith(
    '*</img>\n'
  )
  film = 'Frame1: <img>*</img>\nFrame2: <img>*</img>\n'
  assert said[len(first) :].startswith(film * 2 + 'What colour')


@pytest.mark.parametrize('key', FAMILIES)
def test_layout_follows_the_frames(made, key):
  _, processor = made[key, 'bytes']
  media, clips = _PROMPTS['mixed']
  encoded = processor.encode(tracers.example(media, kind='video', clips=clips))
  layout = encoded.layout
  per_frame = {'internvl_flax': 16, 'llava_onevision_flax': 9}[key]
  for m in range(1, 5):
    mine = layout.shows(m)
    assert mine.sum() == per_frame and not layout.base_I[mine].any()
  # Beside videos a picture is still alone: it is cut.
  assert layout.base_I[layout.shows(0)].any()
  assert (np.diff(layout.media_I) >= 0).all()
  assert (layout.size_M2 == [_ODD, _WIDE, _WIDE, _TALL, _TALL]).all()
  rows = encoded.feature_T.reshape(len(encoded.tokens_T), -1)[:, 0]
  tokens = np.flatnonzero(rows >= 0)
  newlines = sorted(set(tokens) - set(encoded.visual_I))
  if key == 'internvl_flax':
    assert not newlines
    whole = layout.cell_IW[layout.shows(1)]
    np.testing.assert_allclose(whole[0], [0, 0, 90 / 4, 41 / 4])
    np.testing.assert_allclose(whole[-1], [90 * 0.75, 41 * 0.75, 90, 41])
    return
  # 5 x 5 tokens of 11 of the tile's 60 pixels become 3 x 3.
  film = np.flatnonzero(encoded.tokens_T == processor.video.fill_id)
  assert len(film) == 2 * (2 * 9 + 1)
  assert [t for t in newlines if t in film] == [film[18], film[37]]
  assert (rows[[film[18], film[37]]] % 26 == 25).all()
  share_IK = layout.blend.share_IK[layout.shows(1)]
  np.testing.assert_allclose(share_IK.sum(1), 1)
  cover = layout.cover(example_lib.Box(1, 0, 0, 1, 1))
  np.testing.assert_allclose(cover[layout.shows(1)], 1)
  assert not cover[~layout.shows(1)].any()


def test_videos_of_unequal_length_stay_among_the_pictures(made):
  _, processor = made['llava_onevision_flax', 'bytes']
  media, _ = _PROMPTS['one']
  clips = Clip(0, (0.0,)), Clip(1, (0.0, 1.0))
  encoded = processor.encode(tracers.example(media, kind='video', clips=clips))
  assert encoded.video_M.tolist() == [0, 1, 1]
  assert encoded.hf_vision() is encoded.vision


# --- which token is this box?


def _light(processor):
  """Brightness of each token: the mean of its pixels, blended as it is."""
  tiler = processor.tiler
  std = np.array(tiler.pixels.std)[:, None, None]
  side = tiler.tokens
  patch = getattr(tiler, 'patch', tiler.side // side)
  n_rest = tiler.n_features - side**2  # a newline, which nothing shows

  def light(encoded, difference):
    share = (difference * std).mean(1)[:, : side * patch, : side * patch]
    cells = share.reshape(len(share), side, patch, side, patch).mean((2, 4))
    rest = np.full((len(share), n_rest), 100.0)
    features = np.concatenate([cells.reshape(len(share), -1), rest], 1)
    rows = encoded.feature_T[encoded.visual_I]
    found = features.reshape(-1)[rows]
    if encoded.blend_TK is None:
      return found
    return (found * encoded.blend_TK[encoded.visual_I]).sum(1)

  return light


@pytest.mark.parametrize('key', FAMILIES)
def test_a_white_box_lights_the_tokens_called_evidence(made, key):
  """The box in the first of two frames; the second stays black."""
  _, processor = made[key, 'bytes']

  def encode(example):
    black = pictures.png(np.zeros_like(np.array(_open(example.media[0]))))
    return processor.encode(
      dataclasses.replace(
        example,
        media=(example.media[0], black),
        clips=(Clip(0, (0.0, 1.0)),),
        kind='video',
      )
    )

  seen = tracers.check(encode, _light(processor), sides=(40, 300))
  # OneVision does not see the last pixels of a tile.
  assert seen.shown > 50
  assert len(seen.layouts) == 1


# --- refusals


@pytest.mark.parametrize('key', FAMILIES)
def test_examples_that_are_rejected(made, key):
  _, processor = made[key, 'bytes']
  media, clips = _PROMPTS['one']
  good = tracers.example(media, kind='video', clips=clips)
  for example, said in (
    (dataclasses.replace(good, question='a <video>'), '2 times, for 1 videos'),
    (
      dataclasses.replace(good, question='a <video>', clips=(), kind='pages'),
      '1 times, for 0 videos',
    ),
    (dataclasses.replace(good, media=(*media[:2], b'')), 'media 2: '),
  ):
    with pytest.raises(errors.Rejected, match=f'test/x/1.*{said}'):
      processor.encode(example)
  short = dataclasses.replace(processor, max_length=20)
  with pytest.raises(errors.Rejected, match='--frames') as caught:
    short.encode(good)
  assert caught.value.reason is errors.Reason.TOO_LONG


def test_families_of_pictures_refuse_videos(tmp_path):
  media, clips = _PROMPTS['one']
  example = tracers.example(media, kind='video', clips=clips)
  for key, folder in (
    ('llava_next_flax', tiny_tiled.anyres(tmp_path / 'next')),
    ('llava_flax', tiny_tokenizer.folder(tmp_path / 'llava', 'bytes')),
  ):
    assert not registry.get(key).video
    with pytest.raises(errors.Rejected, match='does not read') as caught:
      _load(key, folder).encode(example)
    assert '\n' not in str(caught.value)
  assert all(registry.get(key).video for key in FAMILIES)


# --- a folder's own settings of frames


@pytest.mark.parametrize('key', FAMILIES)
@pytest.mark.parametrize('nested', [True, False])
def test_frames_have_their_own_settings(tmp_path, key, nested):
  folder = tiled_cases.MAKERS[key](tmp_path)
  side = _load(key, folder).tiler.side
  own = {
    'size': {'height': side, 'width': side},
    'image_mean': [0.1, 0.2, 0.3],
    'num_frames': 8,
    'do_sample_frames': True,
    'crop_size': None,
  }
  plain = folder / 'processor_config.json'

  def write(config):
    if nested:
      tiny_tiled.change(plain, video_processor=config)
    else:
      path = folder / 'video_preprocessor_config.json'
      path.write_text(json.dumps(config))

  write(own)
  processor = _load(key, folder)
  assert processor.video.tiler.pixels.mean == (0.1, 0.2, 0.3)
  assert processor.tiler.pixels.mean != (0.1, 0.2, 0.3)
  for bad, said in (
    (dict(size={'height': 9, 'width': 9}), f'takes {side}x{side}'),
    (dict(video_processor_type='Qwen2VLVideoProcessor'), 'expected '),
    (dict(image_std=[0, 0, 0]), 'image_std'),
  ):
    write({**own, **bad})
    with pytest.raises(errors.UserError, match=said) as caught:
      _load(key, folder)
    assert '\n' not in str(caught.value)


def test_a_video_token_of_another_checkpoint(tmp_path):
  folder = tiled_cases.MAKERS['llava_onevision_flax'](tmp_path)
  tiny_tiled.change(folder / 'config.json', video_token_index=5)
  with pytest.raises(errors.UserError, match='video_token_index=5'):
    _load('llava_onevision_flax', folder)
