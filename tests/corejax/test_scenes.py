"""Scenes: the same everywhere, evidence exact, answers true to the pixels."""

import collections
import io
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax import prompt
from corejax.data.scenes import glyphs
from corejax.data.scenes import picture
from corejax.data.scenes import questions
from corejax.data.scenes import scene
from corejax.data.scenes import source
from corejax.data.scenes import vocab

NAMES = tuple(source.CONFIGS)


def _pages(example):
  return [
    np.asarray(Image.open(io.BytesIO(data)), np.int64) for data in example.media
  ]


def _read(page, grid=4):
  """(row, column, glyph, colour) of every mark, from the pixels alone."""
  cell = page.shape[0] // grid
  marks = []
  for row in range(grid):
    for column in range(grid):
      y, x = row * cell, column * cell
      pixels = page[y : y + cell, x : x + cell]
      ink = (705 - pixels.sum(-1)) / 395
      if ink.max() < 0.5:
        continue
      off = [np.abs(ink - glyphs.mask(g, cell)).mean() for g in vocab.GLYPHS]
      full = pixels.reshape(-1, 3)[ink.argmax()]
      far = {
        name: np.abs(full - rgb).sum() for name, rgb in picture.INK_RGB.items()
      }
      marks.append(
        (row, column, vocab.GLYPHS[np.argmin(off)], min(far, key=far.get))
      )
  return marks


def _ground(page):
  corner = page[0, 0]
  return min(
    vocab.COLOURS,
    key=lambda name: np.abs(corner - picture.GROUND_RGB[name]).sum(),
  )


def _answer(example):
  """(answers, cells that hold one) by reading question and pixels."""
  pages = _pages(example)
  marks = [
    (m, row, column, glyph, colour)
    for m, page in enumerate(pages)
    for row, column, glyph, colour in _read(page)
  ]
  *_, verb, last = [w for w in example.question.split() if w != 'the']
  kind = example.question.split()[1]
  parts = {'page': len(pages), 'quarter': 4}
  if last == 'background':
    return {_ground(page) for page in pages}, []
  if example.question.split()[2] == 'follows':
    if kind in parts:
      return {str(int(last) + 1)}, []
    return {vocab.GLYPHS[(vocab.GLYPHS.index(last) + 1) % 16]}, []
  found = [mark for mark in marks if last in mark[3:]]
  say = {
    'colour': lambda mark: mark[4],
    'shape': lambda mark: mark[3],
    'page': lambda mark: str(mark[0] + 1),
    'quarter': lambda mark: str(int((mark[0] + 0.5) * 4 / len(pages)) + 1),
  }[kind]
  return {say(mark) for mark in found}, [mark[:3] for mark in found]


@pytest.mark.parametrize('name', NAMES)
def test_answers_and_evidence_are_what_the_pixels_say(name):
  data = source.Scenes(name, twins=True)
  for index in range(3 * data.per_scene):
    example = data[index]
    answers, cells = _answer(example)
    assert answers == set(example.answers), example.id
    boxes = [
      (b.media, round(b.y0 * 4), round(b.x0 * 4)) for b in example.evidence
    ]
    # One cell for a look-up (in a video one a frame), none for twins.
    assert boxes == cells, example.id
    if example.task.endswith('_twin') or not example.clips:
      assert len(cells) == (not example.task.endswith('_twin'))
    else:
      frames = [frame for frame, *_ in cells]
      assert frames == list(range(frames[0], frames[0] + len(frames)))


@pytest.mark.parametrize('name', NAMES)
def test_a_mark_changes_pixels_inside_its_box_and_nowhere_else(name):
  data = source.Scenes(name)
  key = (data.config, data.seed, data.split)
  for index in range(0, 4 * data.per_scene, 3):
    example = data[index]
    box = example.evidence[-1]
    assert len(example.evidence) == 1 or example.clips
    whole = scene.make(*key, example.meta['scene'])
    rest = [
      mark
      for mark in whole.marks
      if mark.page == box.media
      and mark.glyph != example.meta['target']['glyph']
    ]
    without = picture.pixels(rest, whole.ground, 4, 56)
    changed = (_pages(example)[box.media] != without).any(-1)
    edges = np.array([box.y0, box.y1, box.x0, box.x1]) * 224
    y0, y1, x0, x1 = edges.astype(int)
    assert (edges % 56 == 0).all()
    assert (y1 - y0, x1 - x0) == (56, 56)
    inside = np.zeros_like(changed)
    inside[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = True  # strictly inside
    assert changed.sum() > 250
    assert not (changed & ~inside).any()


@pytest.mark.parametrize('name', NAMES)
def test_distractors_are_all_other_marks(name):
  data = source.Scenes(name)
  for index in range(0, 2 * data.per_scene):
    example = data[index]
    target = example.meta['target']
    marks = [
      (m, row, column, colour)
      for m, page in enumerate(_pages(example))
      for row, column, _, colour in _read(page)
    ]
    boxes = [
      (b.media, round(b.y0 * 4), round(b.x0 * 4)) for b in example.distractors
    ]
    assert len(boxes) >= 7
    own = [
      (b.media, round(b.y0 * 4), round(b.x0 * 4)) for b in example.evidence
    ]
    assert own[0] == _place(target)
    others = [mark[:3] for mark in marks if mark[:3] not in own]
    assert sorted(boxes) == sorted(others)
    same = [
      box in [m[:3] for m in marks if m[3] == target['colour']] for box in boxes
    ]
    assert same == sorted(same, reverse=True)  # the target's colour first


def _place(target):
  return target['page'], target['row'], target['column']


def test_referring_scenes_share_colours_and_keep_some_unique():
  config = source.CONFIGS['scenes_referring']
  for index in range(20):
    made = scene.make(config, 0, 'train', index)
    assert len({mark.glyph for mark in made.marks}) == len(made.marks) == 9
    assert len({(m.row, m.column) for m in made.marks}) == 9
    assert len(made.unique_colours()) == 4


_DIGEST = """
import dataclasses
import hashlib
from corejax.data.scenes import source
digest = hashlib.sha256()
for name in source.CONFIGS:
  data = source.Scenes(name, split='validation', seed=3, twins=True)
  digest.update(data.fingerprint.encode())
  for index in (0, 5, 16, 33):
    digest.update(repr(dataclasses.astuple(data[index])).encode())
print(digest.hexdigest())
"""


def test_another_process_draws_the_same(checkout, capsys):
  exec(compile(_DIGEST, 'digest', 'exec'), {})
  here = capsys.readouterr().out
  there = subprocess.run(
    [sys.executable, '-c', _DIGEST],
    cwd=checkout,
    env={'PYTHONHASHSEED': '77', 'PYTHONPATH': str(checkout)},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert here == there
  assert len(here.strip()) == 64


def test_an_example_is_the_same_whatever_was_asked_before():
  data = source.Scenes('scenes_pages', twins=True)
  forward = [data[i] for i in range(40)]
  for cached in (scene.make, scene.media, questions.ask):
    cached.cache_clear()
  backward = [data[i] for i in reversed(range(40))][::-1]
  assert forward == backward


def test_splits_share_no_scene_whatever_the_seed():
  config = scene.SceneConfig(pages=1, marks=3, questions=1, grid=2)
  seen = collections.defaultdict(set)
  for split in scene.SPLITS:
    for seed in range(3):
      for index in range(60):
        made = scene.make(config, seed, split, index)
        assert made.split() == split
        seen[split].add(made)
  assert not seen['train'] & seen['test']
  assert not seen['train'] & seen['validation']
  assert not seen['validation'] & seen['test']
  assert len(seen['test']) > 170  # and other seeds are other scenes


@pytest.mark.parametrize('name', NAMES)
def test_twins_point_at_each_other(name):
  data = source.Scenes(name, twins=True)
  examples = [data[i] for i in range(4 * data.per_scene)]
  by_id = {example.id: example for example in examples}
  assert len(by_id) == len(examples)
  answers = collections.defaultdict(set)
  for example, twin in zip(examples[::2], examples[1::2]):
    assert example.meta['twin'] == twin.id
    assert twin.meta['twin_of'] == example.id
    assert twin.task == example.task + '_twin'
    assert (twin.media, twin.cluster) == (example.media, example.cluster)
    assert twin.evidence == twin.distractors == ()
    lengths = [len(e.question.split()) for e in (example, twin)]
    assert abs(lengths[0] - lengths[1]) <= 1
    assert example.question.split()[:2] == twin.question.split()[:2]
    answers[example.task].update(example.answers + twin.answers)
  vocabularies = {
    'colour': vocab.COLOURS,
    'shape': vocab.GLYPHS,
    'page': vocab.PAGES,
    'when': vocab.PAGES[:4],
  }
  for task, said in answers.items():
    assert said <= set(vocabularies[task])


@pytest.mark.parametrize('name', NAMES)
def test_records_are_whole_scenes_in_order(name):
  data = source.Scenes(name)
  asked = data.config.questions
  whole = {'scenes_haystack': 2}.get(name, 8)
  assert data.per_scene == whole == asked * len(data.config.tasks)
  assert len(data) == whole * source.N_SCENES
  first, last = data[0], data[whole - 1]
  assert first.cluster == last.cluster != data[whole].cluster
  tasks = [data[i].task for i in range(whole)]
  assert tasks == [task for task in data.config.tasks for _ in range(asked)]
  for start in range(0, whole, asked):
    targets = {_place(data[start + i].meta['target']) for i in range(asked)}
    assert len(targets) == asked
  for bad in (-1, len(data)):
    with pytest.raises(IndexError):
      data[bad]


def test_a_task_filter_chooses_and_changes_nothing():
  everything = source.Scenes('scenes_pages', twins=True)
  pages = source.Scenes('scenes_pages', tasks=['page'])
  twins = source.Scenes('scenes_pages', tasks=['page_twin', 'colour'])
  by_id = {everything[i].id: everything[i] for i in range(48)}
  assert [pages[i].task for i in range(6)] == ['page'] * 6
  assert [twins[i].task for i in range(8)] == ['page_twin'] * 4 + ['colour'] * 4
  for data in (pages, twins):
    for index in range(8):
      assert data[index] == by_id[data[index].id]


def test_words_are_the_closed_list():
  words = vocab.words()
  assert len(set(words)) == len(words) == 42
  assert all(word == word.lower() for word in words)
  for name in NAMES:
    data = source.Scenes(name, twins=True)
    template = prompt.PromptTemplate(
      'test', '{media}{question}', media='page {n} {image} '
    )
    for index in range(32):
      example = data[index]
      rendered = template.render(
        len(example.media), example.question, '', example.answers[0]
      )
      said = f'{rendered.text}{rendered.answer}'.lower().split()
      # Pages from 9 up have numbers for which the list has no word.
      beyond = {str(n) for n in range(9, data.config.pages + 1)}
      if example.task.startswith('when'):
        beyond.add('quarter')
      assert set(said) <= set(words) | beyond
      assert len(example.answers[0].split()) == 1


def test_targets_are_uniform_and_exchangeable():
  """Each question number falls on each mark equally often."""
  config = source.CONFIGS['scenes_referring']
  counts = np.zeros((4, 9))
  for index in range(450):
    asked = questions.ask(config, 1, 'train', index)['colour']
    for number, question in enumerate(asked):
      counts[number, question.target] += 1
  chi2 = ((counts - 50) ** 2 / 50).sum(1)
  assert (chi2 < 26.1).all(), counts  # p = .001 at 8 degrees of freedom


def test_inks_and_grounds_lie_on_their_planes():
  for table, total in (
    (picture.INK_RGB, picture.INK),
    (picture.GROUND_RGB, picture.GROUND),
  ):
    assert tuple(table) == vocab.COLOURS
    assert {sum(rgb) for rgb in table.values()} == {total}
    flat = np.array(list(table.values())) - total / 3
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    alike = unit @ unit.T - 2 * np.eye(8)
    assert alike.max() < 0.72  # 45 degrees apart


def test_glyphs_differ_at_14_pixels_and_keep_off_the_edge():
  small = glyphs.all_masks(14)
  assert not small[:, glyphs.border(14)].any()
  for i in range(16):
    for j in range(i):
      assert np.abs(small[i] - small[j]).sum() > 10, (vocab.GLYPHS[i], j)
  assert np.linalg.cond(np.vstack([small.reshape(16, -1), np.ones(196)])) < 60


def test_noise_is_grey_and_mild_and_moves_nothing():
  config = scene.SceneConfig(noise=5)
  (noisy,) = scene.pictures(config, 0, 'test', 0)
  made = scene.make(config, 0, 'test', 0)
  clean = picture.pixels(made.marks, made.ground, 4, 56).astype(int)
  off = noisy - clean
  assert 0 < np.abs(off).max() <= 5
  inner = (clean > 5).all(-1) & (clean < 250).all(-1)
  assert np.ptp(off[inner], axis=-1).max() <= 1  # rounding
  (again,) = scene.pictures(config, 0, 'test', 0)
  assert (noisy == again).all()


@pytest.mark.parametrize('pages', [2, 5, 8])
def test_pages_of_any_number(pages):
  data = source.Scenes('scenes_pages', config=source.paged(pages))
  example = data[4]
  assert len(example.media) == pages
  assert len(example.distractors) == pages * data.config.marks - 1
  assert example.task == 'page'
  assert _answer(example)[0] == set(example.answers)


@pytest.mark.parametrize(
  ('bad', 'said'),
  [
    (dict(pages=9, marks=1), 'pages=9'),
    (dict(cell=13), 'cell=13'),
    (dict(grid=1), 'grid=1'),
    (dict(noise=-1), 'noise=-1'),
    (dict(marks=17), 'marks=17'),
    (dict(pages=8, marks=3), 'marks=3, expected 1 to 2'),
    (dict(questions=8), 'questions=8'),
    (dict(pages=2, marks=1, questions=3), 'questions=3'),
  ],
)
def test_impossible_scenes_are_refused(bad, said):
  with pytest.raises(errors.UserError, match=said):
    scene.SceneConfig(**bad)


@pytest.mark.parametrize(
  ('bad', 'said'),
  [
    (dict(name='scenes_audio'), 'there are scenes_referring, scenes_pages'),
    (dict(split='dev'), '--split=dev: .*train, validation, test'),
    (dict(seed=-1), '--seed=-1'),
    (dict(tasks=['page']), "no task 'page'; there are colour, shape"),
    (dict(tasks=[]), 'at least one'),
    (dict(tasks=['shape', 'shape']), 'once'),
    (dict(tasks=['shape', 'shape_twin'], twins=True), 'asked already'),
  ],
)
def test_unknown_names_are_refused(bad, said):
  with pytest.raises(errors.UserError, match=said):
    source.Scenes(**{'name': 'scenes_referring', **bad})


def test_the_fingerprint_tells_settings_apart():
  base = dict(name='scenes_pages')
  prints = [
    source.Scenes(**{**base, **change}).fingerprint
    for change in (
      {},
      dict(name='scenes_referring'),
      dict(split='train'),
      dict(seed=1),
      dict(tasks=['page']),
      dict(twins=True),
      dict(scenes=7),
      dict(config=scene.SceneConfig(pages=3, marks=3, noise=1)),
    )
  ]
  assert len(set(prints)) == len(prints)
  assert prints[0] == source.Scenes(**base).fingerprint
  assert all(len(bytes.fromhex(p)) == 6 for p in prints)


def test_media_are_small_png_files():
  data = source.Scenes('scenes_referring')
  (media,) = data[0].media
  with Image.open(io.BytesIO(media)) as image:
    assert (image.format, image.mode, image.size) == ('PNG', 'RGB', (224, 224))
  assert len(media) < 20_000
  assert media == data[7].media[0]  # questions of a scene share its picture
