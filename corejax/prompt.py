"""Prompt templates: data, one per family and kind of source.

    body    'USER: {media}{question} ASSISTANT:'
    media   '{image}\\n'                 once a picture; {n} counts from 1
    answer  ' {answer}'                 what is teacher-forced after the body

What is put in is never interpreted, so a question may hold braces.
"""

import dataclasses
import hashlib
import json


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A prompt as text.

  Attributes:
    text: the prompt, one placeholder a picture.
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
  """

  name: str
  body: str
  media: str = '{image}\n'
  answer: str = ' {answer}'

  def __post_init__(self):
    for field, mark in (
      ('body', '{media}'),
      ('body', '{question}'),
      ('media', '{image}'),
      ('answer', '{answer}'),
    ):
      if getattr(self, field).count(mark) != 1:
        raise ValueError(
          f'PromptTemplate {self.name}: {field}={getattr(self, field)!r} must '
          f'hold {mark} once'
        )

  @property
  def hash(self) -> str:
    """12 hex digits over all fields."""
    text = json.dumps(dataclasses.asdict(self), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def render(
    self, n_media: int, question: str, image_token: str, answer: str = ''
  ) -> Rendered:
    """The prompt for this question.

    Args:
      n_media: number of pictures.
      question: the question's own text. It is put in last and never
        interpreted, so it may hold braces.
      image_token: the family's placeholder, once a picture.
      answer: to be teacher-forced, '' for none.
    """
    media = ''.join(
      self.media.replace('{n}', str(n + 1)).replace('{image}', image_token)
      for n in range(n_media)
    )
    before, after = (
      part.replace('{media}', media) for part in self.body.split('{question}')
    )
    return Rendered(
      before + question + after,
      (len(before), len(before) + len(question)),
      self.answer.replace('{answer}', answer) if answer else '',
    )
