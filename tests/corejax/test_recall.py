"""Recall of pages and rectangles, against values worked by hand."""

import pytest

from corejax import recall

L = recall.Layout


@pytest.mark.parametrize(
  'ranked, evidence, expected',
  [
    # Recall at 1, 3, 5.
    ([4, 2, 0, 1, 3], [2], (0, 1, 1)),
    ([4, 2, 0, 1, 3], [4, 3], (1 / 2, 1 / 2, 1)),
    ([4, 2, 0, 1, 3], [9], (0, 0, 0)),
    ([4, 2], [2, 4], (1 / 2, 1, 1)),
    ([4, 2, 0], [2, 2], (0, 1, 1)),  # a page said twice is one
  ],
)
def test_pages(ranked, evidence, expected):
  found = [recall.page_recall(ranked, evidence, k) for k in recall.PAGE_KS]
  assert found == pytest.approx(expected)


@pytest.mark.parametrize(
  'ranked, evidence, expected',
  [
    # 100 of 100; a quarter of it; another page.
    ([L(0, (0, 0, 10, 10))], [L(0, (0, 0, 10, 10))], 1),
    ([L(0, (5, 5, 50, 50))], [L(0, (0, 0, 10, 10))], 1 / 4),
    ([L(1, (0, 0, 10, 10))], [L(0, (0, 0, 10, 10))], 0),
    # 100 + 50 of 100 + 200, from two pages.
    (
      [L(0, (0, 0, 10, 10)), L(1, (0, 0, 5, 10))],
      [L(0, (0, 0, 10, 10)), L(1, (0, 0, 20, 10))],
      150 / 300,
    ),
    # Twice the same: more than it has is all of it.
    ([L(0, (0, 0, 10, 10))] * 2, [L(0, (0, 0, 10, 10))], 1),
    # 50 + 50 of 200, the same half found twice.
    ([L(0, (0, 0, 10, 5))] * 2, [L(0, (0, 0, 10, 20))], 1 / 2),
    ([], [L(0, (0, 0, 10, 10))], 0),
    ([L(0, (10, 0, 20, 10))], [L(0, (0, 0, 10, 10))], 0),  # they touch
  ],
)
def test_layouts(ranked, evidence, expected):
  assert recall.layout_recall(ranked, evidence, 5) == pytest.approx(expected)


def test_the_benchmark_itself_does_not_stop_at_one():
  twice = [L(0, (0, 0, 10, 10))] * 2
  evidence = [L(0, (0, 0, 10, 10))]
  assert recall.layout_share(twice, evidence, 5) == 2
  assert recall.layout_share(twice, evidence, 1) == 1
  with pytest.raises(ValueError, match='no area'):
    recall.layout_share(twice, [], 1)


def test_only_the_first_count():
  ranked = [L(1, (0, 0, 9, 9))] * 5 + [L(0, (0, 0, 10, 10))]
  found = [
    recall.layout_recall(ranked, [L(0, (0, 0, 10, 10))], k)
    for k in recall.LAYOUT_KS
  ]
  assert found == [0, 0, 1]


def test_ranking_by_scores():
  assert recall.first([0.1, 0.7, 0.7, 0.2], 3) == [1, 2, 3]
  assert recall.first([0.1], 5) == [0]
  with pytest.raises(ValueError, match='score 1 is nan'):
    recall.first([0.1, float('nan')], 1)


def test_means():
  values, domains = [1.0, 0.0, 0.5, 0.5], ['a', 'a', 'a', 'b']
  assert recall.means(values, domains) == {'micro': 0.5, 'macro': 0.5}
  values = [1.0, 1.0, 1.0, 0.0]
  assert recall.means(values, domains) == {'micro': 0.75, 'macro': 0.5}


def test_nothing_to_judge():
  with pytest.raises(ValueError, match='no page of evidence'):
    recall.page_recall([1], [], 1)
  with pytest.raises(ValueError, match='ranked twice'):
    recall.page_recall([1, 1], [1], 1)
  with pytest.raises(ValueError, match='no area'):
    recall.layout_recall([], [L(0, (1, 1, 1, 5))], 1)
  with pytest.raises(ValueError, match='1 values of 2 questions'):
    recall.means([1.0], ['a', 'b'])
  with pytest.raises(ValueError, match='0 values'):
    recall.means([], [])
