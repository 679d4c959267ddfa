"""Shifted scenes: the usual ones, but for what the shift says."""

import dataclasses
import hashlib
import io

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import sources
from corejax.data.scenes import glyphs
from corejax.data.scenes import shift
from corejax.data.scenes import source

NAMES = tuple(source.CONFIGS)


def _load(name, **settings):
  def alter(config):
    return dataclasses.replace(config, shift=shift.Shift(**settings))

  return sources.load(name, twins=True, limit=8, alter=alter)


def _pages(example):
  return np.stack(
    [np.asarray(Image.open(io.BytesIO(data)), int) for data in example.media]
  )


# Of pictures, questions and boxes as they were before there was any shift.
KNOWN = {
  'scenes_referring': '56de3a3c964b',
  'scenes_pages': 'cad519b21ba5',
  'scenes_haystack': 'aed01b16a06a',
}


def _digest(data):
  digest = hashlib.sha256(data.fingerprint.encode())
  for example in (data[i] for i in range(len(data))):
    digest.update(_pages(example).astype(np.uint8).tobytes())
    told = (example.question, example.answers, example.evidence)
    digest.update(repr((example.id, told, example.distractors)).encode())
  return digest.hexdigest()[:12]


@pytest.mark.parametrize('name', KNOWN)
def test_without_a_shift_scenes_are_what_they_were(name):
  assert _digest(sources.load(name, twins=True, limit=8)) == KNOWN[name]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
  'settings',
  [{}, dict(noise=0.2), dict(resolution=0.125), dict(size=0.5)],
)
def test_a_shift_changes_pictures_and_nothing_that_is_asked(name, settings):
  usual = sources.load(name, twins=True, limit=8)
  data = _load(name, **settings)
  assert data.fingerprint != usual.fingerprint
  for index in range(8):
    a, b = usual[index], data[index]
    changed = {
      field.name
      for field in dataclasses.fields(a)
      if getattr(a, field.name) != getattr(b, field.name)
    }
    if not settings:
      assert not changed  # to the byte of the PNG
      continue
    assert 'media' in changed
    assert changed <= {'media', 'evidence', 'distractors'}
    if 'size' not in settings:
      assert changed == {'media'}


def test_noise_has_its_strength_and_its_pattern():
  usual = _pages(sources.load('scenes_pages')[0])
  weak, strong = (
    _pages(_load('scenes_pages', noise=noise)[0]) - usual
    for noise in (0.02, 0.04)
  )
  inside = (usual > 60) & (usual < 195)  # nothing is cut off there
  assert inside.sum() > 3000
  assert weak[inside].std() == pytest.approx(0.02 * 255, rel=0.05)
  assert abs(weak[inside].mean()) < 0.3
  assert np.abs(strong - 2 * weak)[inside].max() <= 1.5  # of rounding
  # Pages, pixels and channels each have their own.
  for axis in range(4):
    rolled = np.roll(weak, 1, axis)
    assert abs(np.corrcoef(weak.ravel(), rolled.ravel())[0, 1]) < 0.05


def test_resolution_leaves_so_many_levels_of_detail():
  usual = _pages(sources.load('scenes_pages')[0])
  coarse = _pages(_load('scenes_pages', resolution=1 / 56)[0])
  assert coarse.shape == usual.shape
  # 4 x 4 pixels are left: in the middle of each cell, its mean colour.
  means = usual.reshape(-1, 4, 56, 4, 56, 3).mean((2, 4))
  middles = coarse[:, 28::56, 28::56]
  assert np.abs(middles - means).max() < 12
  fine = _pages(_load('scenes_pages', resolution=0.5)[0])
  assert np.abs(fine - usual).mean() < np.abs(coarse - usual).mean() / 4


@pytest.mark.parametrize('size', [0.25, 0.5, 1.25])
def test_a_glyph_fills_its_box_and_keeps_within(size):
  name = 'scenes_pages'
  data, usual = _load(name, size=size), sources.load(name, twins=True)
  for index in (0, 2, 4):
    example, before = data[index], usual[index]
    (box,), (cell,) = example.evidence, before.evidence
    edges = np.array([box.y0, box.y1, box.x0, box.x1]) * 224
    shrunk = min(size, 1)
    assert edges[1] - edges[0] == pytest.approx(56 * shrunk)
    assert edges[0] + edges[1] == pytest.approx(224 * (cell.y0 + cell.y1))
    page = _pages(example)[box.media]
    inked = (page != page[0, 0]).any(-1)
    y0, y1, x0, x1 = np.rint(edges).astype(int)
    inside = np.zeros_like(inked)
    for each in (*example.evidence, *example.distractors):
      if each.media == box.media:
        at = np.array([each.y0, each.y1, each.x0, each.x1]) * 224
        a, b, c, d = np.rint(at).astype(int)
        inside[a:b, c:d] = True
    assert not (inked & ~inside).any()
    spans = inked[y0:y1, x0:x1]
    assert spans.any(0).sum() > 0.5 * 56 * size


def test_glyphs_of_the_usual_size_are_the_usual_ones():
  for name in ('star', 'ring'):
    np.testing.assert_array_equal(
      glyphs.mask(name, 56), glyphs.mask(name, 56, 1.0)
    )
    small, usual = glyphs.mask(name, 56, 0.5), glyphs.mask(name, 56)
    assert small.sum() == pytest.approx(usual.sum() / 4, rel=0.02)


@pytest.mark.parametrize(
  'bad, said',
  [
    (dict(noise=-0.1), 'noise=-0.1, expected 0 to 4'),
    (dict(noise=float('nan')), 'noise=nan'),
    (dict(resolution=0), 'resolution=0, expected more than 0'),
    (dict(resolution=1.5), 'resolution=1.5'),
    (dict(size=1.3), 'size=1.3, expected 0.1 to 1.25'),
    (dict(size=0), 'size=0'),
  ],
)
def test_what_cannot_be_drawn(bad, said):
  with pytest.raises(errors.UserError, match=said):
    shift.Shift(**bad)


def test_data_that_are_read_cannot_be_altered(tmp_path):
  with pytest.raises(errors.UserError, match='refcocog: is not drawn'):
    sources.load('refcocog', data_dir=str(tmp_path), alter=lambda c: c)
