"""Qwen-VL's videos as tokens, positions and patches, against transformers.

transformers' video processors need torchvision: what is asked of the classes
themselves skips without it (helpers/torchvision_ops.py has the command). The
rest holds the code of transformers that runs without.
"""

import dataclasses
import functools
import importlib.util
import json
import types

import numpy as np
from PIL import Image
import pytest
import transformers
from transformers import video_utils
from transformers.models.qwen3_vl import processing_qwen3_vl

from corejax import errors
from corejax.data import example as example_lib
from corejax.models import registry
from corejax.models.qwen_vl import positions
from corejax.models.qwen_vl import video
from helpers import pictures
from helpers import tiny_qwen
from helpers import torch_only

torch = torch_only.torch

KINDS = ('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl')
Clip = example_lib.Clip


@pytest.fixture(scope='module', params=KINDS)
def made(request, tmp_path_factory):
  """(folder, torch model, processor) of each family."""
  folder = tmp_path_factory.mktemp(request.param)
  model = tiny_qwen.folder(folder, request.param)
  family = registry.get(f'{request.param}_flax')
  return folder, model, family.load_processor(folder)


def _is_third(model) -> bool:
  return model.config.model_type == 'qwen3_vl'


def _example(media, clips, **fields) -> example_lib.Example:
  return example_lib.Example(
    id='test/0',
    source='test',
    split='test',
    task='colour',
    media=tuple(media),
    question='What colour is the star?',
    answers=('red',),
    cluster='0',
    clips=tuple(clips),
    kind='video',
    **fields,
  )


def _noise(rng, size, n: int = 1) -> list[bytes]:
  return [pictures.png(pictures.noise(rng, *size)) for _ in range(n)]


def _mixed(rng, fps: float) -> example_lib.Example:
  """Pictures of different shape and videos of some frames, in any order."""
  media, clips = [], []
  for is_video in rng.permutation([True, False, rng.random() < 0.5]):
    size = rng.integers(30, 150, 2)
    n = int(rng.integers(2, 7)) if is_video else 1
    if is_video:
      first = int(rng.integers(0, 40))
      step = int(rng.integers(1, 9))
      clips.append(
        Clip(len(media), tuple((first + step * i) / fps for i in range(n)))
      )
    media += _noise(rng, size, n)
  return _example(media, clips)


@functools.cache
def _hf_third():
  """What of Qwen3VLProcessor writes a video's tokens; the class is not made."""
  of = processing_qwen3_vl.Qwen3VLProcessor
  return types.SimpleNamespace(
    video_processor=types.SimpleNamespace(merge_size=2, temporal_patch_size=2),
    video_token='<|video_pad|>',
    vision_start_token='<|vision_start|>',
    vision_end_token='<|vision_end|>',
    _calculate_timestamps=lambda *args: of._calculate_timestamps(None, *args),
    write=of.replace_video_token,
  )


def _metadata(clip: Clip, fps: float) -> video_utils.VideoMetadata:
  frames = [round(s * fps) for s in clip.seconds]
  return video_utils.VideoMetadata(
    total_num_frames=frames[-1] + 1, fps=fps, frames_indices=frames
  )


def _hf_text(text: str, vision, clips, third: bool, fps: float) -> str:
  """A prompt with its placeholders expanded as transformers' processors do."""
  for grid in vision['image_grid_thw']:
    text = text.replace('<|image_pad|>', '<|p|>' * (grid.prod() // 4), 1)
  for index, clip in enumerate(clips):
    n_tokens = vision['video_grid_thw'][index].prod() // 4
    own = '<|video_pad|>' * n_tokens
    if third:
      hf = _hf_third()
      inputs = {
        'video_grid_thw': vision['video_grid_thw'],
        'video_metadata': {index: _metadata(clip, fps)},
      }
      own = hf.write(hf, inputs, index)
    text = text.replace('<|video_pad|>', own.replace('video_pad', 'v'), 1)
  return text.replace('<|p|>', '<|image_pad|>').replace(
    '<|v|>', '<|video_pad|>'
  )


def test_ids_and_positions_of_mixed_prompts(made):
  folder, model, processor = made
  rng, fps = np.random.default_rng(1), 5.0
  fast = transformers.AutoTokenizer.from_pretrained(folder)
  orders = set()
  for _ in range(12):
    example = _mixed(rng, fps)
    encoded = processor.encode(example)
    vision, clips = encoded.hf_vision(), example.clips
    text = _hf_text(encoded.text, vision, clips, _is_third(model), fps)
    ids = np.array(fast(text + 'red')['input_ids'])
    n = len(encoded.tokens_T)
    np.testing.assert_array_equal(
      np.concatenate([encoded.tokens_T, encoded.answer_A[-1:]]), ids
    )
    types_T = (ids == model.config.image_token_id) + 2 * (
      ids == model.config.video_token_id
    )
    order = types_T[types_T > 0]
    orders.add(tuple(order[np.flatnonzero(np.diff(order, prepend=0))]))
    more = {}
    if model.config.model_type == 'qwen2_5_vl':
      gaps = [c.seconds[1] - c.seconds[0] for c in clips]
      more = dict(second_per_grid_ts=torch.tensor([2 * gap for gap in gaps]))
    theirs, delta = model.model.get_rope_index(
      torch.tensor(ids)[None],
      torch.tensor(types_T)[None],
      image_grid_thw=torch.tensor(vision['image_grid_thw']),
      video_grid_thw=torch.tensor(vision['video_grid_thw']),
      **more,
    )
    np.testing.assert_array_equal(encoded.positions_T, theirs[:, 0, :n].numpy())
    # What is generated goes on behind the largest, as models/generate.py does.
    assert int(delta) + len(ids) == theirs.max() + 1
    question = processor.tokenizer.decode(
      encoded.tokens_T[slice(*encoded.question)]
    )
    assert 'What colour is the star' in question
    assert encoded.shares.features_M.sum() == encoded.feature_T.max() + 1
    assert encoded.n_pictures == sum(vision['video_grid_thw'][:, 0]) + len(
      vision['image_grid_thw']
    )
  assert len(orders) >= 4


def test_the_chat_template_of_the_checkpoints(made):
  folder, model, processor = made
  rng = np.random.default_rng(2)
  clip = Clip(0, (0.0, 0.4, 2.0))
  encoded = processor.encode(_example(_noise(rng, (30, 30), 3), [clip]))
  system = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
  if _is_third(model):
    system = ''
  assert encoded.text == system + (
    '<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>'
    'What colour is the star?<|im_end|>\n<|im_start|>assistant\n'
  )
  prompt = processor.tokenizer.decode(encoded.tokens_T)
  if not _is_third(model):
    assert 'seconds' not in prompt
    return
  own = '<|vision_start|>' + '<|video_pad|>' * 4 + '<|vision_end|>'
  inner = f'<0.2 seconds>{own}<2.0 seconds>{own}'
  assert f'user\n<|vision_start|>{inner}<|vision_end|>What' in prompt
  path = folder / 'corejax.json'
  path.write_text(json.dumps({'templates': 'qwen3_vl-transformers-4.57'}))
  older = registry.get('qwen3_vl_flax').load_processor(folder)
  path.unlink()
  encoded = older.encode(_example(_noise(rng, (30, 30), 3), [clip]))
  prompt = processor.tokenizer.decode(encoded.tokens_T)
  assert f'user\n{inner}What' in prompt


# 5 tokens of text, 8 pairs of frames of 2 x 3 features, 1 of text: the times of
# the pairs, and the position of that text; measured with transformers 4.57.6,
# 5.17.0 and 5.23.0.
@pytest.mark.parametrize(
  'rule, tokens_per_second, seconds, times, behind',
  [
    ('transformers-4.57', 0, 1.0, range(5, 13), 13),
    ('transformers-4.57', 2, 1.0, range(5, 20, 2), 20),
    ('transformers-4.57', 2, 0.5, [5] * 8, 8),
    ('transformers-5.17', 0, 1.0, range(5, 13), 8),
    ('transformers-5.17', 2, 1.0, range(5, 20, 2), 8),
    ('transformers-5.17', 2, 0.5, [5] * 8, 8),
    ('transformers-5.23', 0, 1.0, range(5, 13), 8),
    ('transformers-5.23', 2, 1.0, range(5, 20, 2), 8),
    ('transformers-5.23', 2, 0.5, range(5, 13), 8),
    ('paper', 2, 0.5, range(5, 13), 13),
  ],
)
def test_positions_by_version(rule, tokens_per_second, seconds, times, behind):
  interval = 1.0
  if tokens_per_second:
    interval = positions.interval(tokens_per_second, seconds, rule)
  grid = positions.Grid(2, 3, 8, interval)
  is_visual = np.array([False] * 5 + [True] * 48 + [False])
  found = positions.of_tokens(is_visual, [grid], rule)
  assert found[0, 5:53:6].tolist() == list(times)
  assert found[1, 5:11].tolist() == [5, 5, 5, 6, 6, 6]
  assert found[2, 5:11].tolist() == [5, 6, 7, 5, 6, 7]
  assert found[:, -1].tolist() == [behind] * 3


def test_the_rule_is_named(made):
  folder, model, processor = made
  family = registry.get(f'{model.config.model_type}_flax')
  assert processor.video_positions == family.video_positions[0]
  rng = np.random.default_rng(5)
  example = _example(
    _noise(rng, (30, 30), 8), [Clip(0, tuple(0.75 * i for i in range(8)))]
  )
  found = {
    rule: family.load_processor(folder, video_positions=rule)
    .encode(example)
    .positions_T.tobytes()
    for rule in family.video_positions
  }
  n_rules = {'qwen2_vl': 2, 'qwen2_5_vl': 4, 'qwen3_vl': 1}
  assert len(set(found.values())) == n_rules[model.config.model_type]
  with pytest.raises(errors.UserError, match='--video_positions=mine'):
    family.load_processor(folder, video_positions='mine')


@pytest.mark.parametrize('options', ['tiny', 'capped'])
def test_patches_are_those_of_frames(made, options):
  """Two frames a patch, each as transformers' PIL processor has a picture."""
  folder, _, processor = made
  spec = processor.video_spec
  if options == 'capped':
    spec = dataclasses.replace(spec, cap=9)
    processor = dataclasses.replace(processor, video_spec=spec)
  rng, size = np.random.default_rng(3), (190, 122)
  arrays = [pictures.noise(rng, *size) for _ in range(5)]
  clip = Clip(0, tuple(0.5 * i for i in range(5)))
  encoded = processor.encode(_example(map(pictures.png, arrays), [clip]))
  new_size = video.resized(spec, size, 5)
  assert options == 'tiny' or new_size != video.resized(
    dataclasses.replace(spec, cap=0), size, 5
  )
  hf = tiny_qwen.hf_processor(folder)
  frames = [
    Image.fromarray(array)
    .resize((new_size[0], size[1]), Image.Resampling.BICUBIC)
    .resize(new_size, Image.Resampling.BICUBIC)
    for array in arrays
  ]
  side = spec.frame.patch_size
  made_F = [
    hf([frame], return_tensors='np', do_resize=False)['pixel_values'].reshape(
      -1, 3, 2, side, side
    )
    for frame in frames
  ]
  expected = np.concatenate(
    [
      np.stack([made_F[a][:, :, 0], made_F[b][:, :, 1]], axis=2)
      for a, b in ((0, 1), (2, 3), (4, 4))
    ]
  )
  vision = encoded.hf_vision()
  np.testing.assert_array_equal(
    vision['pixel_values_videos'], expected.reshape(len(expected), -1)
  )
  width, height = new_size
  grid = [3, height // side, width // side]
  assert vision['video_grid_thw'].tolist() == [grid]
  assert not len(vision['pixel_values']) and not len(vision['image_grid_thw'])
  layout = encoded.layout
  n = len(layout) // 3
  assert layout.media_I.tolist() == [0] * n + [2] * n + [4] * n
  assert layout.frames_I.tolist() == [2] * n + [2] * n + [1] * n


def test_tokens_called_evidence_are_those_that_a_white_box_lights(made):
  """A box that is white in some frames; a token's light is its lightest frame.

  Ringing of the bicubic resize is allowed a band around the threshold.
  """
  _, _, processor = made
  spec, rng = processor.video_spec.frame, np.random.default_rng(4)
  band, checked, n_frames = 0.12, 0, set()
  for _ in range(90):
    width, height = (int(x) for x in rng.integers(30, 250, 2))
    n = int(rng.integers(2, 6))
    x0, y0 = rng.integers(0, [width * 6 // 10, height * 6 // 10])
    x1 = rng.integers(x0 + width // 4, width, endpoint=True)
    y1 = rng.integers(y0 + height // 4, height, endpoint=True)
    white = rng.random(n) < 0.4
    white[rng.integers(n)] = True
    media = [
      pictures.png(
        pictures.white_box(width, height, (x0, y0, x1, y1) if lit else (0,) * 4)
      )
      for lit in white
    ]
    boxes = [
      example_lib.Box(
        1 + int(m), x0 / width, y0 / height, x1 / width, y1 / height
      )
      for m in np.flatnonzero(white)
    ]
    # A picture stands in front: media count on.
    before = pictures.png(pictures.white_box(40, 40, (0, 0, 0, 0)))
    encoded = processor.encode(
      _example(
        [before, *media],
        [Clip(1, tuple(0.5 * i for i in range(n)))],
        evidence=tuple(boxes),
      )
    )
    values = encoded.vision['pixel_values'].reshape(
      -1, spec.merge**2, 3, spec.temporal, spec.patch_size, spec.patch_size
    )
    std = np.array(spec.values.std)[:, None, None, None]
    mean = np.array(spec.values.mean)[:, None, None, None]
    light_I = (values * std + mean).mean((1, 2, 4, 5)).max(-1)
    cover_I = np.max([encoded.layout.cover(box) for box in boxes], axis=0)
    assert np.abs(light_I - cover_I).max() < band
    chosen_I = encoded.layout.tokens(boxes)
    if all((encoded.layout.cover(box) >= 0.5).any() for box in boxes):
      assert chosen_I[light_I >= 0.5 + band].all()
      assert not chosen_I[light_I < 0.5 - band].any()
      checked += 1
      n_frames.add((n, int(white.sum())))
    else:  # the best-covered token of each box
      assert 1 <= chosen_I.sum() <= len(boxes)
      assert (light_I[chosen_I] >= light_I.max() - band).all()
  assert 50 <= checked < 90 and len(n_frames) > 5


def test_rejected(made):
  _, model, processor = made
  rng = np.random.default_rng(6)
  pair = Clip(0, (0.0, 1.0))
  ragged = _noise(rng, (60, 60)) + _noise(rng, (60, 62))
  long = Clip(0, tuple(float(i) for i in range(1300)))
  tiny = _noise(rng, (30, 30))
  plain = processor.templates['video']
  for bad, reason in (
    (_example(ragged, [pair]), 'media 1: a frame of 60x62 in a video of 60x60'),
    (_example([tiny[0], b'GIF89a'], [pair]), 'media 1.*neither PNG'),
    (_example(_noise(rng, (1, 300), 2), [pair]), '200 times'),
    (_example(tiny * 1300, [long]), 'video take .* fewer --pages or --frames'),
  ):
    with pytest.raises(errors.Rejected, match=reason):
      processor.encode(bad)
  blind = dataclasses.replace(plain, video='')
  with pytest.raises(errors.Rejected, match='no place for a video'):
    processor.encode(_example(tiny * 2, [pair]), blind)
  alone = _example(tiny, [Clip(0, (1.0,))])
  if _is_third(model):
    with pytest.raises(errors.Rejected, match='takes 2 or more'):
      processor.encode(alone)
  else:
    assert len(processor.encode(alone).layout) == 4


def test_refused_folders(made, tmp_path):
  folder, model, _ = made
  family = registry.get(f'{model.config.model_type}_flax')
  for path in folder.iterdir():
    if path.suffix != '.safetensors':
      (tmp_path / path.name).write_bytes(path.read_bytes())
  other = dict(patch_size=18)
  path = tmp_path / 'video_preprocessor_config.json'
  path.write_text(json.dumps(other))
  with pytest.raises(errors.UserError, match='preprocessor of videos'):
    family.load_processor(tmp_path)
  path.unlink()
  config = json.loads((tmp_path / 'config.json').read_text())
  config['video_token_id'] = config['image_token_id']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match='video_token_id'):
    family.load_processor(tmp_path)


@pytest.mark.skipif(
  importlib.util.find_spec('torchvision') is None,
  reason="transformers' video processors need torchvision; "
  'helpers/torchvision_ops.py has the command',
)
@pytest.mark.filterwarnings('ignore')  # torchvision's and its own
def test_whole_videos_with_torchvision(made):
  """Grids and the order of patches are equal, and pixels but for rounding."""
  folder, _, processor = made
  theirs = transformers.AutoVideoProcessor.from_pretrained(folder)
  spec, rng = processor.video_spec, np.random.default_rng(7)
  ones = np.ones((8, 8, 1), np.uint8)  # squares: a resize of noise is noise
  shapes = ((4, (84, 56)), (5, (96, 64)), (6, (70, 111)), (3, (190, 77)))
  n_same = 0
  for n, (width, height) in shapes:
    arrays = [
      np.kron(pictures.noise(rng, 30, 30), ones)[:height, :width]
      for _ in range(n)
    ]
    clip = Clip(0, tuple(0.5 * i for i in range(n)))
    encoded = processor.encode(_example(map(pictures.png, arrays), [clip]))
    ours = encoded.hf_vision()
    expected = theirs(
      [np.stack(arrays)], do_sample_frames=False, return_tensors='np'
    )
    np.testing.assert_array_equal(
      ours['video_grid_thw'], expected['video_grid_thw']
    )
    off = ours['pixel_values_videos'] - expected['pixel_values_videos']
    std = np.array(spec.frame.values.std)[:, None]
    grey = np.abs(off.reshape(len(off), 3, -1)) * std * 255
    if video.resized(spec, (width, height), n) == (width, height):
      assert grey.max() < 1e-3
      n_same += 1
    assert grey.max() < 2.01 and grey.mean() < 0.01
  assert n_same
