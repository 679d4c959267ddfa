"""Prompt templates as data: rendering, spans, hashes."""

import dataclasses
import re

import pytest

from corejax import errors
from corejax import prompt

_VICUNA = prompt.PromptTemplate('t', 'USER: {media}{question} ASSISTANT:')


def test_render_without_an_answer():
  got = _VICUNA.render(2, 'Why?', '<image>')
  assert got.text == 'USER: <image>\n<image>\nWhy? ASSISTANT:'
  assert got.text[slice(*got.question)] == 'Why?'
  assert got.answer == ''


def test_render_with_an_answer():
  assert _VICUNA.render(1, 'Why?', '<image>', 'so').answer == ' so'


def test_pages_are_numbered_from_one():
  template = prompt.PromptTemplate(
    't', '{media}Q {question}', media='{n}. {image};'
  )
  assert template.render(3, '?', 'X').text == '1. X;2. X;3. X;Q ?'


def test_pictures_and_videos_are_counted_apart():
  template = prompt.PromptTemplate(
    't', '{media}{question}', media='P{n} {image};', video='V{n} {video};'
  )
  got = template.render(4, '?', 'X', videos=(1, 3), video_token='Y')
  assert got.text == 'P1 X;V1 Y;P2 X;V2 Y;?'
  with pytest.raises(errors.Rejected, match='no place for a video'):
    _VICUNA.render(1, '?', 'X', videos=(0,), video_token='Y')


@pytest.mark.parametrize(
  'question',
  ['{question}', '{media} {image} {n}', '{', '{0}', 'a\n\nb', '%s \\1 $x'],
)
def test_a_question_is_never_interpreted(question):
  got = _VICUNA.render(1, question, '<image>', question)
  assert got.text == f'USER: <image>\n{question} ASSISTANT:'
  assert got.text[slice(*got.question)] == question
  assert got.answer == f' {question}'


def test_the_question_may_go_first():
  template = prompt.PromptTemplate('t', 'Q {question}\n{media}A')
  got = template.render(1, 'Why?', '<image>')
  assert got.text == 'Q Why?\n<image>\nA'
  assert got.question == (2, 6)


def test_marks_in_the_wrong_field_are_only_text():
  template = dataclasses.replace(_VICUNA, media='{image}{question}{media}')
  got = template.render(1, 'Why?', 'X')
  assert got.text == 'USER: X{question}{media}Why? ASSISTANT:'
  assert got.text[slice(*got.question)] == 'Why?'


@pytest.mark.parametrize(
  'fields, missing',
  [
    (dict(body='{question}'), '{media}'),
    (dict(body='{media}'), '{question}'),
    (dict(body='{media}{question}{question}'), '{question}'),
    (dict(media='\n'), '{image}'),
    (dict(media='{image}{image}'), '{image}'),
    (dict(answer='yes'), '{answer}'),
    (dict(video='a film'), '{video}'),
    (dict(video='{video} {video}'), '{video}'),
  ],
)
def test_templates_are_checked_when_made(fields, missing):
  with pytest.raises(ValueError, match=re.escape(missing)):
    dataclasses.replace(_VICUNA, **fields)


def test_the_hash_covers_every_field():
  changes = dict(
    name='u',
    body='{media}{question}',
    media='{image}',
    answer='{answer}',
    video='{video}',
  )
  assert set(changes) == {f.name for f in dataclasses.fields(_VICUNA)}
  hashes = {_VICUNA.hash}
  for field, value in changes.items():
    hashes.add(dataclasses.replace(_VICUNA, **{field: value}).hash)
  assert len(hashes) == 6
  assert all(re.fullmatch('[0-9a-f]{12}', h) for h in hashes)
  # The record of a run must still mean the same template next year.
  assert prompt.PromptTemplate('a', '{media}{question}').hash == 'edfd7d57c4fc'
