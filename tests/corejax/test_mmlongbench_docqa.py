"""The documentQA reader of MMLongBench (2025), on invented records."""

import pathlib
import shutil

import numpy as np
import pytest

from corejax import errors
from corejax import scoring
from corejax.data import mmlongbench_docqa
from corejax.data import mmlongbench_records
from corejax.data import sources
from helpers import pictures

Reason = errors.Reason

_FIXTURE = pathlib.Path(__file__).parents[1] / 'fixtures/mmlongbench_docqa'

# What each record but the unanswerable one is rejected for; None is a good one.
_EXPECTED = [
  None,
  None,
  None,
  (Reason.NO_EVIDENCE, r'line 5: ans_page_list=\[5\], of which \[5\] is on no'),
  None,
  (Reason.BAD_RECORD, "'b.jpg' does not tell its page"),
  (Reason.BAD_RECORD, r"'\.\./a_page0.jpg' is no relative path"),
  (Reason.BAD_RECORD, 'page_list is empty'),
  (Reason.EVIDENCE_TOO_LONG, 'on 5 pages, the window has 4'),
  (Reason.BAD_ANSWER, "answer=''"),
  (Reason.BAD_RECORD, "answer_format='Bool'"),
  (Reason.BAD_RECORD, 'ans_page_list is no list'),
  (Reason.MISSING_MEDIA, 'gone_page0.jpg'),
  (Reason.BAD_MEDIA, 'a JPEG that ends before its size'),
  (Reason.MEDIA_TOO_LARGE, '20000x10000'),
  (Reason.BAD_RECORD, 'mmlongdoc line 17: no JSON'),
  None,
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('mmlb')
  shutil.copytree(_FIXTURE, root / 'mmlb_data/documentQA')
  for part in ('mmlongdoc', 'slidevqa/deck'):
    (root / 'mmlb_image' / part).mkdir(parents=True)
  page = pictures.jpeg(np.zeros((40, 30, 3), np.uint8))
  names = [f'mmlongdoc/a_page{n}.jpg' for n in (0, 2, 3, 4, 7, 9)]
  names += ['mmlongdoc/b_page3.jpg']
  names += [f'slidevqa/deck/s-{n}-1024.jpg' for n in (1, 2, 3)]
  for name in names:
    (root / 'mmlb_image' / name).write_bytes(page)
  broken = root / 'mmlb_image/mmlongdoc'
  (broken / 'cut_page0.jpg').write_bytes(page[:90])
  (broken / 'vast_page0.png').write_bytes(pictures.png_head(20_000, 10_000))
  return root


@pytest.fixture(scope='module')
def source(folder):
  return mmlongbench_docqa.MMLongBenchDocQA(folder)


@pytest.mark.parametrize('index', range(len(_EXPECTED)))
def test_each_defect_is_rejected_for_its_reason(source, index):
  if _EXPECTED[index] is None:
    assert source[index].source == 'mmlongbench_docqa'
    return
  reason, detail = _EXPECTED[index]
  with pytest.raises(errors.Rejected, match=detail) as caught:
    source[index]
  assert caught.value.reason is reason


def test_counts_add_up(folder, source):
  lines = sum(
    len(path.read_bytes().splitlines()) for path in _FIXTURE.iterdir()
  )
  assert len(source) == len(_EXPECTED) == lines - 1  # one is unanswerable
  (silent,) = (
    r
    for r in mmlongbench_docqa.MMLongBenchDocQA(
      folder, tasks=['unanswerable']
    )._records
    if not r.fault
  )
  assert silent.question == 'What of the moon?'


def test_pages_are_told_by_the_names_of_pictures(source):
  example = source[1]
  assert example.task == 'mmlongdoc' and example.cluster == 'a'
  assert example.answers == ('red, 4',)
  shown = [name.split('/')[-1] for name in example.meta['pages']]
  assert len(shown) == 4 and shown == sorted(shown)
  named = {shown[box.media] for box in example.evidence}
  assert named == {'a_page2.jpg', 'a_page7.jpg'}
  others = {shown[box.media] for box in example.distractors}
  assert not others & named
  assert scoring.score(example, '4, red') == pytest.approx((1 + 2 / 3) / 2)
  # Another document's page of the same number is none.
  (box,) = source[4].evidence
  assert source[4].meta['pages'][box.media] == 'mmlongdoc/a_page3.jpg'
  slide = source[16]
  (box,) = slide.evidence
  assert slide.meta['pages'][box.media] == 'slidevqa/deck/s-2-1024.jpg'


@pytest.mark.parametrize(
  ('path', 'page'),
  [
    ('mmlongdoc/a_page7.jpg', ('a', 7)),
    ('a_page7_page0.png', ('a_page7', 0)),
    ('x/deck-12-1024.jpg', ('deck', 11)),
  ],
)
def test_page_of(path, page):
  assert mmlongbench_records.page_of(path) == page
  for bad in ('a.jpg', 'a-0-1024.jpg', 'a_page.jpg', 'a_page٣.jpg'):
    with pytest.raises(errors.Rejected):
      mmlongbench_records.page_of(bad)


def test_settings(folder, tmp_path):
  def load(**settings):
    return mmlongbench_docqa.MMLongBenchDocQA(folder, **settings)

  prints = {load(**s).fingerprint for s in ({}, {'pages': 2}, {'seed': 1})}
  assert len(prints) == 3
  for settings, message in (
    ({'split': 'test'}, '--split=test: .* K8, K16, K32, K64, K128'),
    ({'pages': 0}, '--pages=0'),
    ({'split': 'K16'}, 'lacks 1. any of longdocurl_K16.jsonl.*2. the pictures'),
    ({'tasks': ['longdocurl']}, 'there are mmlongdoc, slidevqa, unanswerable'),
  ):
    with pytest.raises(errors.UserError, match=message):
      load(**settings)
  shutil.copytree(_FIXTURE, tmp_path / 'documentQA')
  with pytest.raises(errors.UserError, match='pictures, as mmlongdoc/a_page0'):
    mmlongbench_docqa.MMLongBenchDocQA(tmp_path)
  opened = sources.load(
    'mmlongbench_docqa', data_dir=str(folder), split='K8', limit=1
  )
  assert opened[0].answers == ('18',)
  assert 'K128' in sources.splits('mmlongbench_docqa')
