"""LLaVA's processor: ids and pixels of transformers, rows, layout, refusals."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image
import pytest
import transformers

from corejax import errors
from corejax import prompt
from corejax.data import example as example_lib
from corejax.models import tokenize
from corejax.models.llava import config as config_lib
from corejax.models.llava import processing
from corejax.models.llava import templates
from helpers import pictures
from helpers import tiny_tokenizer

_QUESTION = 'What colour is the star'
_RNG = np.random.default_rng(0)
_PICTURES = tuple(
  pictures.png(pictures.noise(_RNG, width, height))
  for width, height in ((50, 40), (31, 77), (42, 42))
)


def _example(n_media=1, question=_QUESTION, answer='red', kind='image'):
  return example_lib.Example(
    id='test/x/1',
    source='test',
    split='x',
    task='colour',
    media=_PICTURES[:n_media],
    question=question,
    answers=(answer,) if answer is not None else (),
    cluster='c',
    kind=kind,
  )


def _load(folder, **kwargs):
  return processing.load(folder, config_lib.read(folder), **kwargs)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A checkpoint folder a tokenizer kind."""
  root = tmp_path_factory.mktemp('folders')
  return {
    kind: tiny_tokenizer.folder(root / kind, kind)
    for kind in tiny_tokenizer.KINDS
  }


@pytest.fixture(scope='module')
def processors(folders):
  return {kind: _load(folder) for kind, folder in folders.items()}


# --- what transformers makes of the same


def _same_as_transformers(folder, processor, n_media, question, kind):
  reference = transformers.AutoProcessor.from_pretrained(folder)
  encoded = processor.encode(_example(n_media, question, kind=kind))
  expected = reference(
    images=[Image.open(io.BytesIO(data)) for data in _PICTURES[:n_media]],
    text=encoded.text,
    return_tensors='np',
  )
  ids = expected['input_ids'][0]
  assert encoded.prompt_len == len(ids)
  assert (encoded.tokens_T[: len(ids)] == ids).all()
  pixel_values = encoded.vision['pixel_values']
  assert (pixel_values == expected['pixel_values']).all()
  return encoded


@pytest.mark.parametrize('kind', tiny_tokenizer.KINDS)
@pytest.mark.parametrize('n_media, source', [(1, 'image'), (3, 'pages')])
@pytest.mark.parametrize(
  'question',
  [_QUESTION, '  What?\n\n is  {this} ', 'Größe 数 \U0001f600 </b>?'],
)
def test_ids_and_pixels_of_transformers(
  folders, processors, kind, n_media, source, question
):
  _same_as_transformers(
    folders[kind], processors[kind], n_media, question, source
  )


@pytest.mark.parametrize('select', ['default', 'full'])
@pytest.mark.parametrize('tower', ['clip', 'siglip'])
@pytest.mark.parametrize('flat', [False, True])
def test_image_tokens_of_every_tower(tmp_path, tower, select, flat):
  # 47 pixels hold three patches of 14 and a rest of 5 that no token shows.
  folder = tiny_tokenizer.folder(
    tmp_path,
    'words',
    tower=tower,
    select=select,
    image_size=47,
    flat=flat,
    pixels={
      'image_processor_type': 'SiglipImageProcessor',
      'size': {'height': 47, 'width': 47},
    },
  )
  processor = _load(folder)
  encoded = _same_as_transformers(folder, processor, 2, _QUESTION, 'image')
  per_picture = 9 + (tower == 'clip') - (select == 'default')
  assert (encoded.tokens_T == processor.image_token_id).sum() == 2 * per_picture
  features = encoded.feature_T[encoded.feature_T >= 0]
  assert features.tolist() == list(range(2 * per_picture))
  # The class token is read but lies nowhere; `default` on a tower without one
  # drops the first patch.
  patches = 9 - (tower == 'siglip' and select == 'default')
  class_token = int(tower == 'clip' and select == 'full')
  assert len(encoded.visual_I) == len(encoded.layout) == 2 * patches
  assert encoded.feature_T[encoded.visual_I].tolist() == [
    picture * per_picture + class_token + patch
    for picture in range(2)
    for patch in range(patches)
  ]
  cell = encoded.layout.cell_IW[0]
  first = np.array([14.0, 0, 28, 14] if patches == 8 else [0.0, 0, 14, 14])
  scale = np.array([50 / 47, 40 / 47] * 2)  # the picture is 50x40
  np.testing.assert_allclose(cell, first * scale, rtol=1e-12)


# --- rows of the question and of the answer


@pytest.mark.parametrize('kind', tiny_tokenizer.KINDS)
@pytest.mark.parametrize('n_media, source', [(1, 'image'), (3, 'pages')])
def test_the_question_span_is_the_question(processors, kind, n_media, source):
  processor = processors[kind]
  encoded = processor.encode(_example(n_media, kind=source))
  ids = encoded.tokens_T[slice(*encoded.question)]
  said = processor.tokenizer.decode(ids)
  plain = said.replace('\u2581', ' ').replace('  ', ' ').strip().lower()
  joined = plain.replace(' ', '')
  assert joined == _QUESTION.lower().replace(' ', '')
  around = encoded.tokens_T[[encoded.question[0] - 1, encoded.question[1]]]
  assert not set(processor.tokenizer.convert_ids_to_tokens(around)) & {
    'what',
    'star',
  }


def test_a_token_shared_with_the_template_counts_as_question():
  tokenizer = tiny_tokenizer.make('bytes')
  text = 'is page 2: the star'  # the vocabulary has a token ' 2', and 'page'
  for stop, expected in ((4, ['is', 'Ġpage']), (8, ['is', 'Ġpage', 'Ġ2'])):
    coded = tokenize.encode(tokenizer, prompt.Rendered(text, (0, stop), ''))
    tokens = coded.prompt_T[slice(*coded.question)]
    assert tokenizer.convert_ids_to_tokens(tokens.tolist()) == expected


@pytest.mark.parametrize('kind', tiny_tokenizer.KINDS)
@pytest.mark.parametrize('answer', ['red', 'green 2 blue'])
def test_the_answer_is_tokenised_with_the_prompt(processors, kind, answer):
  processor = processors[kind]
  encoded = processor.encode(_example(2, answer=answer))
  spelled = encoded.text.replace('<image>', '<image>' * 9) + ' ' + answer
  whole = processor.tokenizer(spelled)['input_ids']
  got = [*encoded.tokens_T, encoded.answer_A[-1]]
  assert got == whole
  assert (
    encoded.tokens_T[encoded.prompt_len :].tolist()
    == encoded.answer_A[:-1].tolist()
  )
  assert len(encoded.answer_A) >= len(answer.split())
  assert encoded.positions_T.tolist() == list(range(len(whole) - 1))


@pytest.mark.parametrize('answer', [None, '', '  '])
def test_no_answer_is_none_to_force(processors, answer):
  encoded = processors['words'].encode(_example(answer=answer))
  assert len(encoded.answer_A) == 0
  assert len(encoded.tokens_T) == encoded.prompt_len


def _reason(processor, example, **kwargs):
  with pytest.raises(errors.Rejected, match=example.id) as caught:
    processor.encode(example, **kwargs)
  return caught.value.reason


@pytest.mark.parametrize('answer', ['ar', 'ar is red'])
def test_an_answer_that_merges_with_the_prompt_is_refused(processors, answer):
  glued = prompt.PromptTemplate(
    'glued', '{media}{question} st', '{image}', '{answer}'
  )
  example = _example(answer=answer)
  with pytest.raises(errors.Rejected, match='merges with the end') as caught:
    processors['bytes'].encode(example, glued)
  assert caught.value.reason is errors.Reason.BAD_ANSWER
  spaced = dataclasses.replace(glued, answer=' {answer}')
  assert len(processors['bytes'].encode(example, spaced).answer_A)


def test_an_answer_beyond_the_word_list_is_refused(processors):
  example = _example(answer='mauve')
  assert _reason(processors['words'], example) is errors.Reason.BAD_ANSWER


@pytest.mark.parametrize('kind', ['words', 'bytes'])
def test_plain_ends_with_the_questions_last_word(processors, kind):
  plain = templates.SETS['plain']
  processor = processors[kind]
  for source, n_media in (('image', 1), ('pages', 3)):
    encoded = processor.encode(_example(n_media), plain[source])
    star, red = processor.tokenizer.convert_ids_to_tokens(
      [int(encoded.tokens_T[encoded.prompt_len - 1]), int(encoded.answer_A[0])]
    )
    assert (star.strip('Ġ'), red.strip('Ġ')) == ('star', 'red')
    assert encoded.question[1] == encoded.prompt_len
    assert len(encoded.answer_A) == 1


def test_a_content_free_question(processors):
  processor = processors['words']
  example = _example()
  encoded = processor.encode(example, question=processor.content_free)
  tokens = encoded.tokens_T[slice(*encoded.question)]
  said = processor.tokenizer.convert_ids_to_tokens(tokens)
  assert said == ['n', '/', 'a']
  plain = processor.encode(example)
  assert (encoded.visual_I == plain.visual_I).all()
  assert (encoded.answer_A == plain.answer_A).all()


# --- which token is this box?


@pytest.fixture(scope='module')
def tracers(tmp_path_factory):
  """Processors of 84 pixel pictures, 6x6 tokens, by image policy."""
  folder = tiny_tokenizer.folder(
    tmp_path_factory.mktemp('tracer'), 'words', image_size=84
  )
  return {p: _load(folder, image_policy=p) for p in processing.IMAGE_POLICIES}


def _brightness(processor, width, height, box):
  """Share of white in each token's pixels, from a white box on black."""
  black = pictures.white_box(width, height, (0, 0, 0, 0))
  white = pictures.white_box(width, height, box)
  example = _example()
  values = []
  for pixels in (black, white):
    encoded = processor.encode(
      dataclasses.replace(example, media=(pictures.png(pixels),))
    )
    std = np.array(processor.tiler.pixels.std)[:, None, None]
    values.append(encoded.vision['pixel_values'][0] * std)
  # The difference: padding has the mean colour, which is neither.
  share = (values[1] - values[0]).mean(0)
  return share.reshape(6, 14, 6, 14).mean((1, 3)).reshape(36), encoded


@pytest.mark.parametrize('policy', processing.IMAGE_POLICIES)
def test_a_white_box_lights_the_tokens_called_evidence(tracers, policy):
  rng = np.random.default_rng(7)
  processor, cropped, shown = tracers[policy], 0, 0
  for _ in range(60):
    width, height = (int(x) for x in rng.integers(60, 400, 2))
    x0, x1 = sorted(int(x) for x in rng.choice(width + 1, 2, replace=False))
    y0, y1 = sorted(int(y) for y in rng.choice(height + 1, 2, replace=False))
    light_I, encoded = _brightness(processor, width, height, (x0, y0, x1, y1))
    box = example_lib.Box(0, x0 / width, y0 / height, x1 / width, y1 / height)
    cover_I = encoded.layout.cover(box)
    assert np.abs(light_I - cover_I).max() < 0.12
    if cover_I.max() <= 0:
      cropped += 1
      assert np.abs(light_I).max() < 0.12
      with pytest.raises(errors.Rejected):
        encoded.layout.tokens([box])
      continue
    evidence_I = encoded.layout.tokens([box])
    shown += 1
    if light_I.max() > 0.62:
      assert evidence_I[light_I > 0.62].all()
      assert not evidence_I[light_I < 0.38].any()
    elif light_I.max() < 0.38:
      assert evidence_I.sum() == 1
      assert light_I[evidence_I] > light_I.max() - 0.12
  assert shown > 45
  assert (cropped > 0) == (policy == 'checkpoint')


def test_layout_of_several_pictures(tracers):
  encoded = tracers['pad'].encode(_example(3, kind='pages'))
  layout = encoded.layout
  assert layout.size_M2.tolist() == [[50, 40], [31, 77], [42, 42]]
  assert layout.media_I.tolist() == sum(([m] * 36 for m in range(3)), [])
  assert not layout.base_I.any()
  whole = [
    [layout.cell_IW[m * 36 + 0, :2], layout.cell_IW[m * 36 + 35, 2:]]
    for m in range(3)
  ]
  # Padding on both sides; an odd rest goes to the right and below.
  np.testing.assert_allclose(
    np.array(whole).reshape(3, 4),
    [[0, -5, 50, 45], [-23, 0, 54, 77], [0, 0, 42, 42]],
    atol=1e-9,
  )
  assert (np.diff(encoded.visual_I) >= 1).all()
  assert (encoded.tokens_T[encoded.visual_I] == encoded.tokens_T.max()).all()


# --- batches


def test_collate_pads_on_the_right(processors):
  processor = processors['words']
  batch = [
    processor.encode(_example(2)),
    processor.encode(_example(1, answer='green 2 blue')),
    processor.encode(_example(3, kind='pages')),
  ]
  sizes = [len(e.tokens_T) for e in batch]
  inputs = processor.collate(batch, 64, 8)
  assert inputs.mask.kv_len_B.tolist() == sizes
  assert inputs.mask.kv_start_B is None
  assert inputs.tokens_BT.shape == inputs.feature_BT.shape == (3, 64)
  assert inputs.vision['pixel_values'].shape == (8, 3, 42, 42)
  assert not np.asarray(inputs.vision['pixel_values'][6:]).any()
  flat = np.asarray(inputs.vision['pixel_values'])
  first = 0
  for b, encoded in enumerate(batch):
    row = np.asarray(inputs.feature_BT[b])
    n_media = len(encoded.vision['pixel_values'])
    assert (
      np.asarray(inputs.tokens_BT[b, : sizes[b]]) == encoded.tokens_T
    ).all()
    assert (
      np.asarray(inputs.positions_BT[b, : sizes[b]]) == encoded.positions_T
    ).all()
    assert (row[sizes[b] :] == -1).all()
    assert not np.asarray(inputs.tokens_BT[b, sizes[b] :]).any()
    assert row[row >= 0].tolist() == [9 * first + k for k in range(9 * n_media)]
    assert (
      flat[first : first + n_media] == encoded.vision['pixel_values']
    ).all()
    first += n_media


def test_collate_pads_on_the_left(processors):
  processor = processors['words']
  batch = [processor.encode(_example(n)) for n in (1, 2)]
  right = processor.collate(batch, 40, 3)
  left = processor.collate(batch, 40, 3, pad_left=True)
  assert left.mask.kv_len_B is None
  for b, encoded in enumerate(batch):
    size = len(encoded.tokens_T)
    assert left.mask.kv_start_B[b] == 40 - size
    for name in ('tokens_BT', 'positions_BT', 'feature_BT'):
      shifted = np.roll(np.asarray(getattr(right, name)[b]), 40 - size)
      assert (np.asarray(getattr(left, name)[b]) == shifted).all()


@pytest.mark.parametrize('length, n_media', [(20, 4), (64, 1)])
def test_collate_refuses_what_does_not_fit(processors, length, n_media):
  batch = [processors['words'].encode(_example(2))]
  with pytest.raises(ValueError, match='do not fit'):
    processors['words'].collate(batch, length, n_media)


# --- refusals


def test_image_tokens_in_the_text_are_refused(processors):
  asked = _example(question='what is <image> here')
  answered = _example(answer='<image> red')
  for example in (asked, answered):
    assert _reason(processors['words'], example) is errors.Reason.IMAGE_TOKENS


def test_a_question_of_no_token_is_refused(processors):
  reason = _reason(processors['words'], _example(), question=' ')
  assert reason is errors.Reason.BAD_RECORD


def test_a_prompt_beyond_the_context_is_refused(processors):
  short = dataclasses.replace(processors['words'], max_length=35)
  assert len(short.encode(_example(2)).tokens_T) <= 35
  assert _reason(short, _example(3)) is errors.Reason.TOO_LONG


def test_an_unknown_kind_is_refused(processors):
  example = _example(kind='video')
  assert _reason(processors['words'], example) is errors.Reason.BAD_RECORD


def test_a_bad_picture_is_named(processors):
  good = _example(2)
  example = dataclasses.replace(good, media=(good.media[0], b'no picture'))
  with pytest.raises(errors.Rejected, match='test/x/1: media 1') as caught:
    processors['words'].encode(example)
  assert caught.value.reason is errors.Reason.BAD_MEDIA


def test_ids_beyond_the_vocabulary_are_refused(processors):
  small = dataclasses.replace(processors['words'], vocab_size=20)
  with pytest.raises(errors.Rejected, match='20 embeddings'):
    small.encode(_example())


def _change(folder, name, **changes):
  path = folder / name
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
  'kwargs, changes, said',
  [
    (dict(image_token=None), {}, "no token '<image>'"),
    (dict(kind='eos'), {}, "appends '</s>'"),
    (dict(), {'config.json': dict(image_token_index=5)}, 'image_token_index=5'),
    (
      dict(),
      {'processor_config.json': dict(num_additional_image_tokens=0)},
      'make 8 tokens a picture, the model makes 9',
    ),
    (
      dict(pixels={'size': 42, 'crop_size': 28}),
      {},
      r'\(28, 28\) pictures .* 42x42',
    ),
    (
      dict(pixels={'size': {'shortest_edge': 42}, 'do_center_crop': False}),
      {},
      'changing size',
    ),
    (
      dict(pixels={'size': 42, 'crop_size': 42, 'do_magic': True}),
      {},
      'do_magic',
    ),
    (dict(text='qwen3'), {}, 'corejax.json'),
  ],
)
def test_folders_that_do_not_fit(tmp_path, kwargs, changes, said):
  folder = tiny_tokenizer.folder(tmp_path, **{'kind': 'words', **kwargs})
  for name, change in changes.items():
    _change(folder, name, **change)
  with pytest.raises(errors.UserError, match=said) as caught:
    _load(folder)
  assert '\n' not in str(caught.value)


def test_files_that_are_missing_or_damaged(tmp_path):
  folder = tiny_tokenizer.folder(tmp_path, 'words', flat=True)
  with pytest.raises(errors.UserError, match='image_policy=stretch'):
    _load(folder, image_policy='stretch')
  (folder / 'preprocessor_config.json').write_text('{')
  with pytest.raises(errors.UserError, match='preprocessor_config.json'):
    _load(folder)
  (folder / 'preprocessor_config.json').unlink()
  with pytest.raises(errors.UserError, match='preprocessor_config.json'):
    _load(folder)
  tiny_tokenizer.folder(tmp_path, 'words')
  (folder / 'tokenizer.json').write_text('{')
  with pytest.raises(errors.UserError, match='tokenizer'):
    _load(folder)
  (folder / 'tokenizer.json').unlink()
  with pytest.raises(errors.UserError, match='tokenizer'):
    _load(folder)


def test_no_picture_size_varies_when_padded(tmp_path):
  sizes = {'size': {'shortest_edge': 42}, 'do_center_crop': False}
  folder = tiny_tokenizer.folder(tmp_path, 'words', pixels=sizes)
  encoded = _load(folder, image_policy='pad').encode(_example(3))
  assert encoded.vision['pixel_values'].shape == (3, 3, 42, 42)
