"""Videos: what passes is shown in its span, and evidence follows it."""

import collections
import dataclasses

import numpy as np
import pytest

from corejax import errors
from corejax.data import delivery
from corejax.data import prepared
from corejax.data import sources
from corejax.data.scenes import scene
from corejax.data.scenes import source
from corejax.data.scenes import video


def _draw(config, n=60):
  return [scene.make(config, 0, 'train', index) for index in range(n)]


def _things(made):
  """glyph -> its marks, frame by frame."""
  found = collections.defaultdict(list)
  for mark in made.marks:
    found[mark.glyph].append(mark)
  return found


@pytest.mark.parametrize('frames', [4, 7, 8, 19])
def test_passing_things_are_shown_within_a_quarter(frames):
  config, counts = video.of(frames), collections.Counter()
  for made in _draw(config, 40):
    things = _things(made)
    assert len(things) == config.passing + config.marks
    passing = {made.marks[i].glyph for i in made.passing}
    assert len(passing) == config.passing
    for glyph, marks in things.items():
      shown = [mark.page for mark in marks]
      assert shown == list(range(shown[0], shown[0] + len(shown)))
      assert len({mark.colour for mark in marks}) == 1
      if glyph not in passing:
        assert shown == list(range(frames))
        continue
      # The time of a frame's middle, in quarters of the whole.
      (part,) = {int((frame + 0.5) / frames * 4) for frame in shown}
      counts[part] += 1
      counts['short'] += len(shown) == 1
  assert set(range(4)) < set(counts)
  assert max(counts[n] for n in range(4)) < 2 * min(counts[n] for n in range(4))
  assert 0 < counts['short'] <= 160


def test_things_step_to_the_side_and_never_meet():
  steps = collections.Counter()
  for made in _draw(video.VideoConfig()):
    for frame in range(8):
      cells = [(m.row, m.column) for m in made.marks if m.page == frame]
      assert len(set(cells)) == len(cells)
      assert cells == sorted(cells)
    for marks in _things(made).values():
      for a, b in zip(marks, marks[1:]):
        steps[abs(a.row - b.row) + abs(a.column - b.column)] += 1
  assert set(steps) == {0, 1}
  assert steps[1] > steps[0] > 0


def test_a_full_grid_can_still_be_drawn():
  config = video.VideoConfig(grid=2, marks=0, passing=4, questions=4)
  for made in _draw(config, 20):
    assert len(_things(made)) == 4
  crowded = video.VideoConfig(grid=2, marks=3, passing=1, questions=1)
  for made in _draw(crowded, 20):
    assert len(_things(made)) == 4


def test_tube_span_and_seconds():
  data = source.Scenes('scenes_video', twins=True)
  lengths = set()
  for index in range(4 * data.per_scene):
    example = data[index]
    (clip,) = example.clips
    assert (example.kind, list(clip.media)) == ('video', list(range(8)))
    assert clip.seconds == tuple(n / 2 for n in range(8))
    if 'twin_of' in example.meta:
      assert example.span is None
      continue
    frames = [box.media for box in example.evidence]
    inside = [
      n
      for n, s in enumerate(clip.seconds)
      if example.span[0] <= s < example.span[1]
    ]
    assert frames == inside
    assert example.span[1] == clip.seconds[frames[-1]] + 0.5
    lengths.add(len(frames))
    if example.task == 'when':
      # Of 4 seconds.
      assert example.answers == (str(int(sum(example.span) / 2) + 1),)
  assert lengths == {1, 2}


def test_the_first_distractors_are_different_things():
  data = source.Scenes('scenes_video')
  for index in range(2 * data.per_scene):
    example = data[index]
    made = scene.make(data.config, data.seed, data.split, example.meta['scene'])
    thing = {(m.page, m.row, m.column): m for m in made.marks}
    marks = [
      thing[b.media, round(b.y0 * 4), round(b.x0 * 4)]
      for b in example.distractors
    ]
    alike = [m.colour == example.meta['target']['colour'] for m in marks]
    for group in (marks[: sum(alike)], marks[sum(alike) :]):
      n_things = len({m.glyph for m in group})
      assert len({m.glyph for m in group[:n_things]}) == n_things


def test_what_is_asked_is_evenly_spread():
  made = _draw(video.VideoConfig(), 400)
  for what, n in (('glyph', 16), ('colour', 8)):
    count = collections.Counter(
      getattr(one.marks[i], what) for one in made for i in one.passing
    )
    mean = 1600 / n
    assert len(count) == n
    assert max(abs(c - mean) for c in count.values()) < 5 * np.sqrt(mean)
  data = source.Scenes('scenes_video', tasks=['when'], scenes=200)
  said = collections.Counter(data[i].answers[0] for i in range(len(data)))
  assert set(said) == set('1234')
  assert max(said.values()) < 1.5 * min(said.values())


# --- as a clip, as pictures


def test_pictures_are_the_same_but_for_the_clip():
  clip = sources.load('scenes_video', video_as='clip', limit=6)
  shown = sources.load('scenes_video', limit=6)
  assert (delivery.of(clip), delivery.of(shown)) == ('clip', 'pictures')
  assert delivery.of(sources.load('scenes_pages', video_as='clip')) == ''
  assert clip.fingerprint != shown.fingerprint
  for index in range(6):
    a, b = clip[index], shown[index]
    assert (a.kind, b.kind, b.clips) == ('video', 'frames', ())
    assert dataclasses.replace(a, clips=(), kind='frames') == b
  pages = sources.load('scenes_pages', video_as='clip')
  assert pages.fingerprint == sources.load('scenes_pages').fingerprint


def test_parts_and_whole_frames_of_either():
  for video_as in ('clip', 'pictures'):
    half = sources.load(
      'scenes_video', split='test:1/2', video_as=video_as, evidence='whole'
    )
    example = half[0]
    assert bool(example.clips) == (video_as == 'clip')
    assert {(b.x0, b.x1) for b in example.evidence} == {(0.0, 1.0)}


def test_a_prepared_example_keeps_its_clips():
  example = source.Scenes('scenes_video')[0]
  two = dataclasses.replace(
    example,
    clips=(
      dataclasses.replace(example.clips[0], seconds=(0.1, 1 / 3)),
      dataclasses.replace(example.clips[0], first=5, seconds=(7.0,)),
    ),
  )
  for one in (example, two, delivery.as_pictures(example)):
    row = prepared.to_row(one)
    assert sum(row['clip_frames']) == len(row['clip_seconds'])
    assert prepared.from_row(row) == one


# --- settings


def test_frames_and_step_are_part_of_the_fingerprint():
  prints = {sources.load('scenes_video', frames=n).fingerprint for n in (8, 9)}
  step = source.Scenes('scenes_video', config=video.VideoConfig(step=1.0))
  assert len(prints | {step.fingerprint}) == 3
  assert len(sources.load('scenes_video', frames=9)[0].media) == 9


@pytest.mark.parametrize(
  'bad, said',
  [
    (dict(frames=3), '--frames=3: scenes_video is drawn with 4 to 256'),
    (dict(frames=257), '--frames=257'),
    (dict(tasks=['page']), "no task 'page'; there are colour, when"),
    (dict(video_as='film'), '--video_as=film: not one of clip, pictures'),
  ],
)
def test_what_is_wrong_is_said_in_one_line(bad, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    sources.load('scenes_video', **bad)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'bad',
  [
    dict(pages=3),
    dict(marks=16),
    dict(marks=10, passing=7),
    dict(passing=3),
    dict(step=0.0),
  ],
)
def test_configs_that_cannot_be_drawn(bad):
  with pytest.raises(errors.UserError, match='scenes: '):
    video.VideoConfig(**bad)
