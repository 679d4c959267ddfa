"""Annotation lines that were made to break their reader."""

import json
import os
from typing import Any

import pytest

from corejax import errors
from corejax.data import documents
from corejax.data import example as example_lib
from corejax.data import mmdocir
from corejax.data import mmdocir_records
from helpers import pdfs

Reason = errors.Reason

QUESTION = {
  'Q': 'What is it?',
  'A': '8',
  'type': "['Figure']",
  'page_id': [0],
  'layout_mapping': [
    {'page': 0, 'page_size': [200.0, 300.0], 'bbox': [1, 1, 50, 50]}
  ],
}
LINE = {'doc_name': 'a.pdf', 'page_indices': [0, 0], 'questions': [QUESTION]}


def _line(**changes) -> bytes:
  return json.dumps(LINE | changes).encode()


def _asked(**changes) -> bytes:
  return _line(questions=[QUESTION | changes])


def _boxed(**changes) -> bytes:
  return _asked(layout_mapping=[QUESTION['layout_mapping'][0] | changes])


@pytest.mark.parametrize(
  'content, reason',
  [
    (b'[' * 100_000, Reason.BAD_RECORD),
    (b'{"doc_name": 1' + b'0' * 5000 + b'}', Reason.BAD_RECORD),
    (b'{"doc_name": "\xff"}', Reason.BAD_RECORD),
    (b'null', Reason.BAD_RECORD),
    (_line(doc_name='\ud800.pdf'), Reason.BAD_RECORD),
    (_line(doc_name='a\0.pdf'), Reason.BAD_RECORD),
    (_line(doc_name='x' * 300), Reason.BAD_RECORD),
    (_line(doc_name='..'), Reason.BAD_RECORD),
    (_line(doc_name='/etc/passwd'), Reason.BAD_RECORD),
    (_line(page_indices=[0, float('nan')]), Reason.BAD_RECORD),
    (_line(questions=[None]), Reason.BAD_RECORD),
    (_asked(page_id=['0']), Reason.BAD_RECORD),
    (_asked(page_id=[10**400]), Reason.BAD_RECORD),
    (_asked(page_id=[], layout_mapping=[]), Reason.NO_EVIDENCE),
    (_asked(layout_mapping=[]), Reason.NO_EVIDENCE),
    (_asked(A=[[]]), Reason.BAD_ANSWER),
    (_boxed(bbox=[1, 1, 10**400, 50]), Reason.BAD_BOX),
    (_boxed(bbox=[1, float('nan'), 50, 50]), Reason.BAD_BOX),
    (_boxed(bbox=[1, 1, True, 50]), Reason.BAD_BOX),
    (_boxed(bbox=[50, 1, 1, 50]), Reason.BAD_BOX),
    (_boxed(bbox=[1, 1, 202, 50]), Reason.BAD_BOX),
    (_boxed(page_size=[0, 300]), Reason.BAD_BOX),
  ],
)
def test_a_line_is_rejected_not_fatal(content, reason):
  (record,) = mmdocir_records.parse(content)
  assert record.fault and record.fault.reason is reason
  assert str(record.fault).isprintable()


@pytest.mark.parametrize(
  'text',
  [
    *('[{[]: 1}]', "[-'a']", '[' * 100_000, '[' + '-' * 10_000 + '1]'),
    *("['a'", '[f"{x}"]', "['\0']", '[1' + '0' * 5000 + ']'),
    '[' + '1,' * 100_000 + ']',
  ],
)
def test_what_is_no_list_of_strings_is_text(text):
  (record,) = mmdocir_records.parse(_asked(A=text))
  assert record.answer == text.strip()


@pytest.mark.parametrize('field', ['Q', 'A'])
@pytest.mark.parametrize('text', ['\ud800', "['\\ud800']"])
def test_text_that_cannot_be_encoded(tmp_path, field, text):
  (tmp_path / mmdocir.ANNOTATIONS).write_bytes(_asked(**{field: text}))
  pdfs.write(tmp_path / 'a.pdf', [[]])
  source = mmdocir.MMDocIR(tmp_path)
  if field == 'Q' and text.startswith('['):  # a question is no literal
    assert source[0].question == text
    return
  with pytest.raises(errors.Rejected, match='no Unicode text') as caught:
    source[0]
  assert caught.value.reason is Reason.BAD_RECORD


@pytest.mark.parametrize('field', ['id', 'question', 'cluster', 'answers'])
def test_no_source_can_make_such_an_example(field):
  fields: dict[str, Any] = dict.fromkeys(('id', 'source', 'split', 'task'), 'x')
  fields |= dict(media=(b'',), question='x', answers=('x',), cluster='x')
  example_lib.Example(**fields)
  fields[field] = ('\udfff',) if field == 'answers' else '\udfff'
  with pytest.raises(errors.Rejected, match=r"'\\udfff' is no Unicode text"):
    example_lib.Example(**fields)


@pytest.mark.parametrize(
  'content', [b'<html>\n404\n</html>', b'version https://git-lfs\noid 0\n']
)
def test_a_file_that_is_something_else(tmp_path, content):
  (tmp_path / mmdocir.ANNOTATIONS).write_bytes(content)
  for tasks in (None, ['figure']):
    with pytest.raises(errors.UserError, match='none of . lines .*github.com'):
      mmdocir.MMDocIR(tmp_path, tasks=tasks)


@pytest.mark.parametrize('name', ['~nobody-here/x', 'x' * 300])
def test_names_of_no_folder(name):
  with pytest.raises(errors.UserError, match='no such folder can be'):
    mmdocir.MMDocIR(name)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
  pdf = pdfs.write(tmp_path / 'a.pdf', [[]])
  (tmp_path / mmdocir.ANNOTATIONS).write_bytes(_line())

  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'stat', refuse)
    with pytest.raises(errors.Rejected, match='Permission denied') as caught:
      documents.Documents().count(pdf)
  assert caught.value.reason is Reason.BAD_MEDIA
  monkeypatch.setattr(type(pdf), 'read_bytes', refuse)
  with pytest.raises(errors.UserError, match='Permission denied'):
    mmdocir.MMDocIR(tmp_path)
