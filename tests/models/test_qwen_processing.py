"""Qwen-VL's processor against transformers', bit by bit."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest
import transformers

from corejax import errors
from corejax.data import example as example_lib
from corejax.models import registry
from corejax.models.qwen_vl import pixels
from helpers import tiny_qwen
from helpers import torch_only

torch = torch_only.torch

KINDS = ('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl')


@pytest.fixture(scope='module', params=KINDS)
def made(request, tmp_path_factory):
  """(folder, torch model, processor) of each family."""
  folder = tmp_path_factory.mktemp(request.param)
  model = tiny_qwen.folder(folder, request.param)
  family = registry.get(f'{request.param}_flax')
  return folder, model, family.load_processor(folder)


def picture(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(array).save(file, 'PNG')
  return file.getvalue()


def noise(rng, width: int, height: int) -> bytes:
  return picture(rng.integers(0, 256, (height, width, 3), np.uint8))


def example(media, question='What colour is the star?', evidence=(), kind=None):
  made = example_lib.Example(
    id='test/0',
    source='test',
    split='test',
    task='colour',
    media=tuple(media),
    question=question,
    answers=('red',),
    cluster='0',
    evidence=tuple(evidence),
  )
  return made if kind is None else dataclasses.replace(made, kind=kind)


SIZES = [
  (28, 28),
  (1, 1),
  (5, 900),
  (411, 3),
  (42, 70),  # 1.5 and 2.5 cells: rounding half to even
  (126, 98),
  (640, 480),
  (333, 777),
  (14, 14),
  (200, 199),
]


@pytest.mark.parametrize('options', ['tiny', 'released', 'sized'])
def test_pixels_are_those_of_transformers(options):
  rng = np.random.default_rng(0)
  config = tiny_qwen.pixels()
  if options == 'released':
    config |= dict(min_pixels=3136, max_pixels=12845056)
  elif options == 'sized':  # as transformers 5 writes it, other numbers
    config = {k: v for k, v in config.items() if not k.endswith('_pixels')}
    config |= dict(
      size={'shortest_edge': 65536, 'longest_edge': 100_000},
      patch_size=16,
      image_mean=[0.5, 0.5, 0.5],
      image_std=[0.5, 0.4, 0.3],
      resample=2,
    )
  spec = pixels.parse(config, 'test')
  theirs = transformers.Qwen2VLImageProcessorPil(**config)
  # What it writes itself is read as the same.
  written = json.loads(theirs.to_json_string())
  assert pixels.parse(written, 'test') == spec
  for size in SIZES:
    array = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    if max(size) > 200 * min(size):
      with pytest.raises(ValueError, match='aspect ratio'):
        theirs(Image.fromarray(array), return_tensors='np')
      with pytest.raises(errors.Rejected, match='200 times'):
        pixels.resized(spec, size)
      continue
    expected = theirs(Image.fromarray(array), return_tensors='np')
    width, height = pixels.resized(spec, size)
    ours = pixels.patches(spec, [pixels.run(spec, array, (width, height))])
    np.testing.assert_array_equal(ours, expected['pixel_values'])
    side = spec.patch_size
    assert [1, height // side, width // side] == list(
      expected['image_grid_thw'][0]
    )


def _hf(folder, model, encoded, media):
  """input_ids, pixel_values and positions by transformers' own code."""
  fast = transformers.AutoTokenizer.from_pretrained(folder)
  images = tiny_qwen.hf_processor(folder)(
    [Image.open(io.BytesIO(data)) for data in media], return_tensors='np'
  )
  # As Qwen2VLProcessor.replace_image_token expands the placeholders.
  text = encoded.text
  for grid in images['image_grid_thw']:
    text = text.replace('<|image_pad|>', '<|pad|>' * (grid.prod() // 4), 1)
  text = text.replace('<|pad|>', '<|image_pad|>')
  ids = np.array(fast(text + 'red')['input_ids'])
  token = model.config.image_token_id
  positions, _ = model.model.get_rope_index(
    torch.tensor(ids)[None],
    torch.tensor(ids == token).int()[None],
    image_grid_thw=torch.tensor(images['image_grid_thw']),
  )
  return ids, images, positions[:, 0].numpy()


def test_ids_pixels_and_positions_of_mixed_prompts(made):
  folder, model, processor = made
  rng = np.random.default_rng(1)
  for n_media in (1, 2, 3):
    for _ in range(4):
      media = [noise(rng, *rng.integers(20, 260, 2)) for _ in range(n_media)]
      kind = 'image' if n_media == 1 else 'pages'
      template = processor.templates[kind]
      encoded = processor.encode(example(media), template)
      ids, images, positions = _hf(folder, model, encoded, media)
      n = len(encoded.tokens_T)
      np.testing.assert_array_equal(
        np.concatenate([encoded.tokens_T, encoded.answer_A[-1:]]), ids
      )
      np.testing.assert_array_equal(encoded.positions_T, positions[:, :n])
      for name, value in encoded.vision.items():
        np.testing.assert_array_equal(value, images[name])
      # Features of several pictures count on.
      assert encoded.shares.features_M.sum() == encoded.feature_T.max() + 1
      shown = encoded.shares.features_M
      np.testing.assert_array_equal(
        encoded.layout.media_I, np.repeat(np.arange(n_media), shown)
      )
      question = processor.tokenizer.decode(
        encoded.tokens_T[slice(*encoded.question)]
      )
      assert 'What colour is the star' in question


def test_the_chat_template_of_the_checkpoints(made):
  _, model, processor = made
  rng = np.random.default_rng(2)
  encoded = processor.encode(example([noise(rng, 30, 30)]))
  system = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
  if model.config.model_type == 'qwen3_vl':
    system = ''
  assert encoded.text == system + (
    '<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>'
    'What colour is the star?<|im_end|>\n<|im_start|>assistant\n'
  )


def test_tokens_called_evidence_are_those_that_a_white_box_lights(made):
  """Ringing of the bicubic resize is allowed a band around the threshold."""
  _, _, processor = made
  spec, rng = processor.spec, np.random.default_rng(3)
  band, checked = 0.12, 0
  for _ in range(150):
    width, height = rng.integers(30, 400, 2)
    x0, y0 = rng.integers(0, [width - 4, height - 4])
    x1, y1 = rng.integers([x0 + 3, y0 + 3], [width, height], endpoint=True)
    array = np.zeros((height, width, 3), np.uint8)
    array[y0:y1, x0:x1] = 255
    box = example_lib.Box(0, x0 / width, y0 / height, x1 / width, y1 / height)
    encoded = processor.encode(example([picture(array)], evidence=[box]))
    values = encoded.vision['pixel_values'].reshape(
      -1, spec.merge**2, 3, spec.temporal, spec.patch_size, spec.patch_size
    )
    std = np.array(spec.values.std)[:, None, None, None]
    mean = np.array(spec.values.mean)[:, None, None, None]
    light_I = (values * std + mean).mean((1, 2, 3, 4, 5))
    chosen_I = encoded.layout.tokens([box])
    cover_I = encoded.layout.cover(box)
    assert np.abs(light_I - cover_I).max() < band
    if (cover_I >= 0.5).any():
      assert chosen_I[light_I >= 0.5 + band].all()
      assert not chosen_I[light_I < 0.5 - band].any()
      checked += 1
    else:
      assert chosen_I.sum() == 1
      assert light_I[chosen_I] >= light_I.max() - band
  assert 50 <= checked <= 100


def test_rejected(made):
  _, _, processor = made
  rng = np.random.default_rng(4)
  one = noise(rng, 60, 60)
  for bad, reason in (
    (example([one], 'What is <|image_pad|>?'), 'image tokens'),
    (example([one], 'What is <|video_pad|>?'), '1 times, for 0 videos'),
    (example([b'GIF89a']), 'neither PNG'),
    (example([noise(rng, 1, 300)]), '200 times'),
    (example([noise(rng, 300, 300)] * 22, kind='pages'), 'fewer --pages'),
    (example([one], kind='tables'), 'no prompt template'),
  ):
    with pytest.raises(errors.Rejected, match=reason):
      processor.encode(bad)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(image_processor_type='CLIPImageProcessor'), 'Qwen2VLImageProcessor'),
    (dict(patch_size=18), 'the vision tower'),
    (dict(merge_size=0), 'whole number'),
    (dict(max_pixels=1 << 40), 'whole number'),
    (dict(min_pixels=10**6, max_pixels=10**5), 'bounds of an area'),
    (dict(do_resize=False), 'do_resize'),
    (dict(sharpen=True), 'no such key'),
    (dict(image_mean=[1, 2]), 'three numbers'),
  ],
)
def test_refused_preprocessors(made, tmp_path, change, message):
  folder, _, _ = made
  kind = json.loads((folder / 'config.json').read_text())['model_type']
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  path = tmp_path / 'preprocessor_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(errors.UserError, match=message):
    registry.get(f'{kind}_flax').load_processor(tmp_path)


def test_collate_pads_pictures_to_the_largest(made):
  _, _, processor = made
  rng = np.random.default_rng(5)
  first = processor.encode(
    example([noise(rng, 60, 60), noise(rng, 200, 90)], kind='pages')
  )
  second = processor.encode(example([noise(rng, 100, 100)]))
  length = len(first.tokens_T) + 3
  inputs = processor.collate([first, second], length, 4)
  pixel_values = np.asarray(inputs.vision['pixel_values'])
  slots = max(first.shares.slots_M.max(), second.shares.slots_M.max())
  assert pixel_values.shape[:2] == (4, slots)
  grid_M3 = np.asarray(inputs.vision['image_grid_thw'])
  features, row = slots // 4, 0
  for b, encoded in enumerate((first, second)):
    start, expected = 0, []
    for m, n in enumerate(encoded.shares.rows_M):
      patches = encoded.vision['pixel_values'][start : start + n]
      np.testing.assert_array_equal(pixel_values[row, :n], patches)
      assert not pixel_values[row, n:].any()
      np.testing.assert_array_equal(
        grid_M3[row], encoded.vision['image_grid_thw'][m]
      )
      expected.extend(row * features + np.arange(n // 4))
      start, row = start + n, row + 1
    feature_T = np.asarray(inputs.feature_BT[b])
    visual = feature_T[feature_T >= 0]
    np.testing.assert_array_equal(visual, expected)
  assert inputs.positions_BT.shape == (2, 3, length)
  with pytest.raises(ValueError, match='do not fit'):
    processor.collate([first, second], length, 2)
