import pytest

from corejax import errors
from corejax.data import example as example_lib

Clip = example_lib.Clip


def make(n_media: int, *clips: example_lib.Clip) -> example_lib.Example:
  return example_lib.Example(
    id='a/b/0',
    source='a',
    split='b',
    task='t',
    media=(b'picture',) * n_media,
    question='What?',
    answers=('this',),
    cluster='c',
    clips=clips,
  )


def test_a_clip_names_its_media():
  assert list(Clip(2, (0.5, 1.0, 4.0)).media) == [2, 3, 4]


@pytest.mark.parametrize(
  'seconds', [(), (1.0, 1.0), (2.0, 1.0), (0.0, float('nan')), (float('inf'),)]
)
def test_seconds_ascend(seconds):
  with pytest.raises(errors.Rejected, match='no frame|do not ascend'):
    Clip(0, seconds)


def test_clips_stand_apart_and_in_order():
  first, second = Clip(1, (0.0, 1.0)), Clip(3, (0.0,))
  assert make(4, first, second).clips == (first, second)
  for clips in [
    (second, first),
    (first, Clip(2, (0.0,))),
    (Clip(3, (0.0, 1.0)),),
    (Clip(-1, (0.0,)),),
  ]:
    with pytest.raises(errors.Rejected, match='in no earlier clip'):
      make(4, *clips)


def test_parts_are_pictures_and_clips_in_prompt_order():
  first, second = Clip(1, (0.0, 1.0)), Clip(4, (0.0,))
  assert make(6, first, second).parts == (0, first, 3, second, 5)
  assert make(2).parts == (0, 1)
  make(2).refuse_clips()
  with pytest.raises(errors.Rejected, match='shows a video'):
    make(2, Clip(0, (0.0, 1.0))).refuse_clips()
