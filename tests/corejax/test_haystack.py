"""Haystacks: needles at the depth that was asked for, and nowhere else."""

import collections
import hashlib

import numpy as np
import pytest

from corejax import errors
from corejax.data import sources
from corejax.data.scenes import haystack
from corejax.data.scenes import scene
from corejax.data.scenes import source

CONFIG = haystack.of(12)


def _draw(config, n=60):
  return [scene.make(config, 0, 'train', index) for index in range(n)]


def test_pages_are_full_and_needles_stand_once():
  for made in _draw(CONFIG):
    per_page = collections.Counter(mark.page for mark in made.marks)
    assert per_page == dict.fromkeys(range(12), CONFIG.marks)
    for page in range(12):
      here = [mark for mark in made.marks if mark.page == page]
      assert len({mark.glyph for mark in here}) == CONFIG.marks
      assert len({(m.row, m.column) for m in here}) == CONFIG.marks
    glyphs = [mark.glyph for mark in made.marks]
    assert len(set(made.needles)) == CONFIG.questions
    for needle in made.needles:
      assert glyphs.count(glyphs[needle]) == 1
    # Hay comes again, so that pages can be as many as one likes.
    assert max(collections.Counter(glyphs).values()) > 1


@pytest.mark.parametrize(
  'depth, page', [('0', 0), ('0.5', 6), ('1', 11), ('0.04', 0), ('0.05', 1)]
)
def test_depth_is_the_needles_page(depth, page):
  for made in _draw(haystack.of(12, depth), 10):
    assert {made.marks[needle].page for needle in made.needles} == {page}
  data = sources.load('scenes_haystack', pages=12, depth=depth)
  assert {b.media for i in range(8) for b in data[i].evidence} == {page}


def test_any_depth_is_every_page_alike():
  count = collections.Counter(
    made.marks[needle].page
    for made in _draw(haystack.of(4), 400)
    for needle in made.needles
  )
  assert set(count) == set(range(4))
  assert max(count.values()) < 1.3 * min(count.values())


def test_a_needle_is_told_by_nothing_but_the_question():
  """Glyph, colour and cell of needles are spread as those of hay are."""
  made = _draw(haystack.of(4), 400)
  for what, n in (('glyph', 16), ('colour', 8), ('row', 4)):
    count = collections.Counter(
      getattr(one.marks[needle], what) for one in made for needle in one.needles
    )
    mean = 800 / n
    assert len(count) == n
    assert max(abs(c - mean) for c in count.values()) < 5 * np.sqrt(mean)


def test_twins_ask_for_what_every_page_shows():
  data = sources.load('scenes_haystack', pages=9, twins=True, limit=40)
  for index in range(1, 40, 2):
    twin = data[index]
    assert twin.task == 'colour_twin' and not twin.evidence
    assert twin.meta['twin_of'] == data[index - 1].id
    made = scene.make(haystack.of(9), 0, 'test', twin.meta['scene'])
    assert twin.answers == (made.ground,)


def test_pages_and_depth_are_part_of_the_fingerprint():
  prints = {
    sources.load('scenes_haystack', pages=pages, depth=depth).fingerprint
    for pages in (8, 9)
    for depth in ('any', '0', '0.5')
  }
  assert len(prints) == 6


def test_other_scenes_did_not_change():
  """The settings of haystacks are no part of what other scenes are drawn by."""
  assert repr(scene.SceneConfig()) == (
    'SceneConfig(grid=4, cell=56, pages=1, marks=9, questions=4, noise=0)'
  )
  drawn = ''.join(
    repr(scene.make(source.CONFIGS[name], 0, 'test', index))
    for name in ('scenes_referring', 'scenes_pages')
    for index in range(20)
  )
  assert hashlib.sha256(drawn.encode()).hexdigest()[:12] == 'f13f0b9dd2a3'


@pytest.mark.parametrize(
  'bad, said',
  [
    (dict(pages=1), 'pages=1, expected 2 to 4096'),
    (dict(depth='2'), r'--depth=2: give 0 \(first page\)'),
    (dict(depth='deep'), '--depth=deep'),
    (dict(depth='nan'), '--depth=nan'),
    (dict(tasks=['page']), "no task 'page'"),
  ],
)
def test_what_is_wrong_is_said_in_one_line(bad, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    sources.load('scenes_haystack', **bad)
  assert '\n' not in str(caught.value)


def test_other_data_have_no_depth():
  with pytest.raises(errors.UserError, match='scenes_pages has none'):
    sources.load('scenes_pages', depth='0.5')


@pytest.mark.parametrize(
  'bad', [dict(marks=9), dict(marks=2, questions=3), dict(depth=1.5)]
)
def test_configs_that_cannot_be_drawn(bad):
  with pytest.raises(errors.UserError, match='scenes: '):
    haystack.HaystackConfig(**bad)
