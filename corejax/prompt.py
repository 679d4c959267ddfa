"""Prompt templates: data, one per family and kind of source.

    body    'USER: {media}{question} ASSISTANT:'
    media   '{image}\\n'                 once a picture; {n} counts from 1
    video   '{video}\\n'                 once a video, likewise
    answer  ' {answer}'                 what is teacher-forced after the body

What is put in is never interpreted, so a question may hold braces.
"""

from collections.abc import Collection, Mapping
import dataclasses
import hashlib
import json

from corejax import errors


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A prompt as text.

  Attributes:
    text: the prompt, one placeholder a picture or video.
    question: [start, stop) of the question's own characters.
    answer: the text teacher-forced after it ('' without an answer).
  """

  text: str
  question: tuple[int, int]
  answer: str


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
  """Where media and question stand, recorded by hash in run.json.

  Attributes:
    name: for the record.
    body: holds {media} and {question} once each.
    media: what stands for one picture; holds {image} once, {n} at will.
    answer: holds {answer} once.
    video: what stands for one video; holds {video} once, {n} at will. ''
      where videos are not read.
  """

  name: str
  body: str
  media: str = '{image}\n'
  answer: str = ' {answer}'
  video: str = ''

  def __post_init__(self):
    for field, mark in (
      ('body', '{media}'),
      ('body', '{question}'),
      ('media', '{image}'),
      ('answer', '{answer}'),
      *((('video', '{video}'),) if self.video else ()),
    ):
      if getattr(self, field).count(mark) != 1:
        raise ValueError(
          f'PromptTemplate {self.name}: {field}={getattr(self, field)!r} must '
          f'hold {mark} once'
        )

  @property
  def hash(self) -> str:
    """12 hex digits over all fields."""
    fields = dataclasses.asdict(self)
    if not self.video:  # of records that are older than videos
      del fields['video']
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def render(
    self,
    n_media: int,
    question: str,
    image_token: str,
    answer: str = '',
    *,
    videos: Collection[int] = (),
    video_token: str = '',
  ) -> Rendered:
    """The prompt for this question.

    Args:
      n_media: number of pictures and videos (Example.parts).
      question: the question's own text. It is put in last and never
        interpreted, so it may hold braces.
      image_token: the family's placeholder, once a picture.
      answer: to be teacher-forced, '' for none.
      videos: which of the n_media are videos; {n} counts pictures and videos
        each for themselves.
      video_token: the placeholder, once a video.

    Raises:
      Rejected: there are videos, and this template has no place for any.
    """
    if videos and not self.video:
      raise errors.Rejected(
        errors.Reason.BAD_RECORD,
        f'the prompt template {self.name} has no place for a video',
      )
    parts, n_videos = [], 0
    for index in range(n_media):
      if index in videos:
        n_videos += 1
        part = self.video.replace('{n}', str(n_videos))
        parts.append(part.replace('{video}', video_token))
      else:
        part = self.media.replace('{n}', str(index + 1 - n_videos))
        parts.append(part.replace('{image}', image_token))
    media = ''.join(parts)
    before, after = (
      part.replace('{media}', media) for part in self.body.split('{question}')
    )
    return Rendered(
      before + question + after,
      (len(before), len(before) + len(question)),
      self.answer.replace('{answer}', answer) if answer else '',
    )


def with_videos(
  templates: Mapping[str, PromptTemplate], video: str
) -> dict[str, PromptTemplate]:
  """A family's templates with a place for videos, and a kind of their own.

  Args:
    templates: by kind of source; 'video' is worded as 'image' is.
    video: what stands for one video, as PromptTemplate.video.
  """
  name = templates['image'].name.removesuffix('image') + 'video'
  alone = dataclasses.replace(templates['image'], name=name)
  return {
    kind: dataclasses.replace(template, video=video)
    for kind, template in {**templates, 'video': alone}.items()
  }
