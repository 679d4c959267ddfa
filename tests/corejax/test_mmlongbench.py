"""MMLongBench-Doc's reader on invented records and, where they are, real."""

import collections
import pathlib
import shutil

import pytest

from corejax import errors
from corejax import scoring
from corejax.data import levels
from corejax.data import mmdocir
from corejax.data import mmlongbench
from corejax.data import sources
from helpers import pdfs

Reason = errors.Reason

_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'

# What each record but the unanswerable one is rejected for; None is a good one.
_EXPECTED = [
  None,
  None,
  None,
  None,
  (Reason.BAD_RECORD, r'/5: evidence page 0: pages count from 1'),
  (Reason.BAD_RECORD, r'/6: evidence page 7 is outside 1\.\.6'),
  (Reason.NO_EVIDENCE, '/7: evidence_pages is empty'),
  (Reason.BAD_RECORD, '/8: evidence_pages is no list'),
  (Reason.BAD_RECORD, '/9: evidence_pages=1.5 is not an integer'),
  (Reason.EVIDENCE_TOO_LONG, '/10: on 5 pages, the window has 4'),
  (Reason.BAD_ANSWER, "/11: answer=' '"),
  (Reason.BAD_RECORD, '/12: question is empty'),
  (Reason.BAD_RECORD, "/13: answer_format='Bool' is not one of Int, Float"),
  (Reason.BAD_RECORD, "/14: no field 'evidence_sources'"),
  (Reason.BAD_RECORD, "/15: no field 'evidence_pages'"),
  (Reason.MISSING_MEDIA, 'gone.pdf'),
  (Reason.BAD_MEDIA, 'broken.pdf'),
  (Reason.MEDIA_TOO_LARGE, 'huge.pdf/0: huge.pdf: page 0 at 96 dpi'),
  (Reason.BAD_RECORD, 'record 19/0: doc_id=.* is not a bare file name'),
  (Reason.BAD_RECORD, "record 20/0: no field 'doc_id'"),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('mmlongbench')
  shutil.copy(_FIXTURES / 'mmlongbench/samples.json', path)
  shutil.copy(_FIXTURES / 'mmdocir' / mmdocir.ANNOTATIONS, path)
  (path / 'documents').mkdir()
  pdfs.write(path / 'documents/invented.pdf', [[]] * 6)
  pdfs.write(path / 'documents/huge.pdf', [[]], size=(14400, 14400))
  (path / 'documents/broken.pdf').write_bytes(b'%PDF-1.4\nno more')
  return path


@pytest.fixture(scope='module')
def source(folder):
  return mmlongbench.MMLongBench(folder)


def _outcome(source, index):
  try:
    return source[index]
  except errors.Rejected as e:
    return e


@pytest.mark.parametrize('index', range(len(_EXPECTED)))
def test_each_defect_is_rejected_for_its_reason(source, index):
  if _EXPECTED[index] is None:
    assert source[index].source == 'mmlongbench'
    return
  reason, detail = _EXPECTED[index]
  with pytest.raises(errors.Rejected, match=detail) as caught:
    source[index]
  assert caught.value.reason is reason


def test_counts_add_up(folder, source):
  left_out = mmlongbench.MMLongBench(folder, tasks=['unanswerable'])
  # Those whose task nobody can tell are in both: a doc_id that is none, a
  # record that is none, and the one without sources.
  assert len(source) == len(_EXPECTED)
  assert len(left_out) == 1 + 3
  assert len(source) + 1 == 21
  assert source.remarks == (
    '2 of 20 questions have boxes, of MMDocIR; of the others whole pages are '
    'the evidence',
  )


def test_a_shared_question_has_the_boxes_and_pages_of_the_other_set(source):
  example = source[0]
  assert example.question == 'What stands in  the Square?'
  assert example.meta['labelled_pages'] == [4]
  assert example.meta['evidence_pages'] == [1]
  assert example.meta['evidence_level'] == 'region'
  (box,) = example.evidence
  assert (box.x0, box.y0, box.x1, box.y1) == (0.1, 0.1, 0.4, 0.3)
  assert example.meta['pages'][box.media] == 1
  assert example.distractors
  assert all((b.x1, b.y1) != (1, 1) for b in example.distractors[:1])


def test_elsewhere_whole_pages_are_the_evidence(source):
  example = source[2]
  assert example.meta['evidence_level'] == 'page'
  assert example.meta['evidence_pages'] == [2, 3]
  assert example.answers == ('wheel, axle',)
  assert example.task == 'table+text'
  shown = example.meta['pages']
  assert {shown[b.media] for b in example.evidence} == {2, 3}
  assert all((b.x0, b.y0, b.x1, b.y1) == (0, 0, 1, 1) for b in example.evidence)
  others = {shown[b.media] for b in example.distractors}
  assert others and not others & {2, 3}
  assert scoring.score(example, 'Answer: axle and wheel') == 4 / 5
  assert scoring.score(source[3], 'about 0.125') == 1


def test_questions_without_an_answer_look_nothing_up(folder):
  example = mmlongbench.MMLongBench(folder, tasks=['unanswerable'])[0]
  assert example.task == 'unanswerable' and not example.evidence
  assert example.meta['evidence_level'] == 'none'
  assert len(example.media) == 4
  assert scoring.score(example, 'Not answerable.') == 1


def test_without_the_other_set_all_is_pages(folder, tmp_path, source):
  shutil.copytree(folder, tmp_path / 'copy')
  (tmp_path / 'copy' / mmdocir.ANNOTATIONS).unlink()
  alone = mmlongbench.MMLongBench(tmp_path / 'copy')
  assert alone[0].meta['evidence_pages'] == [4]
  assert alone[0].meta['evidence_level'] == 'page'
  assert alone.fingerprint != source.fingerprint
  assert alone.remarks[0].startswith('0 of 20')


def test_levels(folder):
  def load(evidence):
    return sources.load(
      'mmlongbench', data_dir=str(folder), evidence=evidence, limit=3
    )

  best, boxes, whole = map(load, levels.CHOICES)
  assert best[0] == boxes[0] and best[2].evidence == whole[2].evidence
  with pytest.raises(errors.Rejected, match='pages are named, no box'):
    boxes[2]
  (box,) = whole[0].evidence
  assert (box.x0, box.y0, box.x1, box.y1) == (0, 0, 1, 1)
  assert box.media == best[0].evidence[0].media
  assert box.media not in {b.media for b in whole[0].distractors}
  assert len({s.fingerprint for s in (best, boxes, whole)}) == 3
  for source in (best, boxes, whole):
    assert sources.remarks(source)[0].startswith('2 of 20 questions have boxes')
  with pytest.raises(errors.UserError, match='--evidence=most'):
    load('most')


def test_settings(folder, source):
  prints = {
    mmlongbench.MMLongBench(folder, **setting).fingerprint
    for setting in ({}, {'pages': 3}, {'dpi': 72}, {'seed': 1})
  }
  assert len(prints) == 4 and source.fingerprint in prints
  for setting, message in (
    ({'split': 'dev'}, '--split=dev: mmlongbench has test'),
    ({'pages': 0}, '--pages=0'),
    ({'tasks': ['colour']}, '--tasks=colour: .* figure'),
  ):
    with pytest.raises(errors.UserError, match=message):
      mmlongbench.MMLongBench(folder, **setting)


def test_missing_files_are_listed_in_one_message(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    mmlongbench.MMLongBench(tmp_path)
  for part in ('1. samples.json', '2. the PDFs', 'github.com/mayubo2333'):
    assert part in str(caught.value)
  shutil.copy(_FIXTURES / 'mmlongbench/samples.json', tmp_path)
  with pytest.raises(errors.UserError, match='lacks 1. all 4 PDFs, invented'):
    mmlongbench.MMLongBench(tmp_path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'no JSON'),
    (b'[' * 100_000, 'no JSON: nested too deeply'),
    (b'{}', 'no list of questions'),
    (b'[]', 'none of 0 records'),
    (b'[1, 2]', 'none of 2 records is a question'),
  ],
)
def test_a_file_that_is_something_else(tmp_path, content, message):
  (tmp_path / 'samples.json').write_bytes(content)
  with pytest.raises(errors.UserError, match=message):
    mmlongbench.MMLongBench(tmp_path)


def test_real_excerpts(samples):
  """100 questions on eleven documents, ten of which are there."""
  source = mmlongbench.MMLongBench(samples, dpi=36)
  outcomes = [_outcome(source, n) for n in range(len(source))]
  reasons = collections.Counter(
    o.reason if isinstance(o, errors.Rejected) else o.meta['evidence_level']
    for o in outcomes
  )
  assert reasons == {
    'region': 64,
    'page': 3,
    Reason.EVIDENCE_TOO_LONG: 5,
    Reason.MISSING_MEDIA: 4,
    Reason.NO_EVIDENCE: 2,
    Reason.BAD_RECORD: 1,
  }
  silent = mmlongbench.MMLongBench(samples, dpi=36, tasks=['unanswerable'])
  assert len(source) + len(silent) == 100
  agree = sum(
    o.meta['evidence_pages'] == o.meta['labelled_pages']
    for o in outcomes
    if not isinstance(o, errors.Rejected)
  )
  assert agree >= 55  # as they should, but for the noise that is known
