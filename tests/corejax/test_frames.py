"""Frames out of videos: the very ones, or rejected. Needs PyAV (`video`)."""

import pathlib
import shutil
import sys

import numpy as np
import pytest

from corejax import errors
from corejax.data import frames as frames_lib
from corejax.data import pictures as pictures_lib
from corejax.data import vidstg
from corejax.models import images

pytest.importorskip('av', reason="PyAV is not installed (extra 'video')")

from helpers import videos

Reason = errors.Reason

_FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures/vidstg'


def _shades(count, size=(48, 64)):
  return [np.full((*size, 3), 5 * n + 20, np.uint8) for n in range(count)]


def _shade(data):
  return int(images.decode(data)[20, 20, 0])


@pytest.mark.parametrize(
  'name, codec, gaps',
  [
    ('a.mp4', 'mpeg4', False),
    ('a.mp4', 'mpeg4', True),
    ('a.mkv', 'ffv1', False),
  ],
)
def test_every_frame_is_the_one_of_its_number(tmp_path, name, codec, gaps):
  path = videos.write(tmp_path / name, _shades(40), codec, gaps=gaps)
  found = frames_lib.decode(path, [0, 3, 17, 39])
  assert list(found) == [0, 3, 17, 39]
  for number, data in found.items():
    assert abs(_shade(data) - (5 * number + 20)) <= 2
    assert pictures_lib.header(data).size == (64, 48)


def test_a_video_that_ends_too_soon(tmp_path):
  path = videos.write(tmp_path / 'a.mp4', _shades(10))
  with pytest.raises(errors.Rejected, match='ends with frame 9, frame 10 is'):
    frames_lib.decode(path, [3, 10])


@pytest.mark.parametrize('share', [0.0, 0.05, 0.5, 0.7])
@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv'])
def test_a_video_cut_short(tmp_path, share, name):
  path = videos.write(tmp_path / name, _shades(40))
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(errors.Rejected) as caught:
    frames_lib.decode(path, [39])
  assert caught.value.reason is Reason.BAD_MEDIA


def test_what_is_no_video(tmp_path, monkeypatch):
  path = tmp_path / 'a.mp4'
  with pytest.raises(errors.Rejected) as caught:
    frames_lib.decode(path, [0])
  assert caught.value.reason is Reason.MISSING_MEDIA
  path.write_bytes(b'no video' * 99)
  with pytest.raises(errors.Rejected) as caught:
    frames_lib.decode(path, [0])
  assert caught.value.reason is Reason.BAD_MEDIA
  videos.write(path, _shades(3))
  monkeypatch.setattr(pictures_lib, 'MAX_PIXELS', 64 * 48 - 1)
  with pytest.raises(errors.Rejected, match='a.mp4: 64x48 pixels') as caught:
    frames_lib.decode(path, [0])
  assert caught.value.reason is Reason.MEDIA_TOO_LARGE


def test_decoded_frames_are_kept(tmp_path, monkeypatch):
  path = videos.write(tmp_path / 'a.mp4', _shades(40))
  asked = []
  decode = frames_lib.decode
  monkeypatch.setattr(
    frames_lib,
    'decode',
    lambda path, frames: asked.append(list(frames)) or decode(path, frames),
  )
  monkeypatch.setattr(frames_lib, '_KEPT', 4)
  source = frames_lib.Frames({}, {'a': path})
  first = source.pictures('a', [1, 2, 3], (64, 48))
  assert source.pictures('a', [2, 3], (64, 48)) == first[1:]
  assert source.pictures('a', [3, 4, 5], (640, 480))[0] == first[2]
  assert asked == [[1, 2, 3], [4, 5]]
  source.pictures('a', [1], (64, 48))  # it went for 5
  assert asked[2] == [1]
  with pytest.raises(errors.Rejected, match='frame 1: .* annotated are 48x64'):
    source.pictures('a', [1], (48, 64))


def test_the_reader_on_videos(tmp_path):
  root = tmp_path / 'root'
  shutil.copytree(_FIXTURE, root)
  (root / 'video/0001').mkdir(parents=True)
  for name in ('moving', 'wide'):
    size = (64, 64) if name == 'wide' else (48, 64)
    videos.write(root / f'video/0001/{name}.mp4', _shades(40, size))
  cut = videos.write(root / 'video/0001/cut.mp4', _shades(40))
  cut.write_bytes(cut.read_bytes()[:2000])
  source = vidstg.VidSTG(root)
  example = source[1]
  assert example.meta['media_index'] == [2, 7, 12, 17, 22, 27, 32, 37]
  for number, data in zip(example.meta['media_index'], example.media):
    assert abs(_shade(data) - (5 * number + 20)) <= 2
  by_video = {source.cluster(n): n for n in range(len(source))}
  for name, reason in (
    ('wide', Reason.BAD_RECORD),
    ('cut', Reason.BAD_MEDIA),
    ('unseen', Reason.MISSING_MEDIA),
  ):
    with pytest.raises(errors.Rejected) as caught:
      source[by_video[name]]
    assert caught.value.reason is reason


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
  path = videos.write(tmp_path / 'a.mp4', _shades(3))
  monkeypatch.setitem(sys.modules, 'av', None)
  with pytest.raises(errors.UserError, match=r"pip install 'corejax\[video\]'"):
    frames_lib.Frames({}, {'a': path})
