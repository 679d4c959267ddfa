"""report.html of an ablation: its words and numbers, without a browser."""

import base64
import hashlib
import html
import json
import re

import numpy as np
import pytest

from corejax import ablation
from corejax import effects
from corejax import groups
from corejax import heads as heads_lib
from corejax.experiments import ablate_report
from helpers import ablate_cases as cases
from helpers import report_cases


def data_of(page):
  (block,) = re.findall(
    r'<script type="application/json" id="data">(.*?)</script>', page, re.S
  )
  return json.loads(block)


def lead_of(page):
  (block,) = re.findall(r'<div class="lead">(.*?)</div>', page, re.S)
  return html.unescape(' '.join(re.findall(r'<p>(.*?)</p>', block)))


def table_of(page, name):
  """Cells of the table of this class, as text."""
  (block,) = re.findall(
    rf'<table class="{name}">.*?<tbody>(.*?)</tbody>', page, re.S
  )
  return [
    [
      html.unescape(re.sub('<[^>]*>', '', cell)).strip()
      for cell in re.findall(r'<td>(.*?)</td>', row, re.S)
    ]
    for row in re.findall(r'<tr.*?>(.*?)</tr>', block, re.S)
  ]


@pytest.fixture(scope='module')
def outcomes():
  return cases.make()


@pytest.fixture(scope='module')
def page(outcomes):
  return cases.page_of(outcomes)


def test_lines_and_endpoint_are_those_of_the_curve(outcomes, page):
  data = data_of(page)
  curve = effects.curve(outcomes)
  lines = {part['name']: part['lines'] for part in data['parts']}
  assert set(lines) == set(outcomes.parts())
  seen = 0
  for row in curve:
    groups_ = lines[row.task] if row.k == 0 else [row.group]
    for group in groups_:
      line = lines[row.task][group]
      at = line['k'].index(row.k)
      if row.seed in ('', 'all'):
        for name in ('accuracy', 'delta'):
          e = getattr(row, name)
          np.testing.assert_allclose(
            line[name][at], (e.value, e.low, e.high), rtol=1e-3, atol=1e-9
          )
        assert line['logprob'][at] == pytest.approx(row.logprob_delta, rel=1e-3)
      else:
        drawn = line['draws'][at][int(row.seed)]
        assert drawn == pytest.approx(row.accuracy.value, rel=1e-3)
      seen += 1
  assert seen > 100
  endpoint = effects.endpoint(outcomes, cases.K)
  assert endpoint is not None
  expected = [endpoint.retrieval, endpoint.twin, endpoint.value]
  for (_, found), e in zip(data['endpoint']['rows'], expected, strict=True):
    np.testing.assert_allclose(found, (e.value, e.low, e.high), rtol=1e-3)


def test_sets_are_the_groups(outcomes, page):
  sets = data_of(page)['sets']
  assert len(sets) == len(outcomes.groups) - 1
  for packed, group in zip(sets, outcomes.groups[1:]):
    pairs = [divmod(x, cases.N_HEADS) for x in packed['heads']]
    assert heads_lib.HeadSet(pairs) == group.heads
    assert (packed['group'], packed['k']) == (group.name, group.k)
    assert packed['seed'] == group.seed and packed['note'] == group.note


def test_the_lead_tells_what_fell(outcomes, page):
  lead = lead_of(page)
  x = outcomes.of('top', cases.K)[0]
  right = 100 * outcomes.score_XE[x, ~outcomes.twin_E].mean()
  assert (
    'Cutting the top 3 heads of 32 (9.4%) lowers accuracy on questions that '
    f'need a look-up: from 100.0% to {right:.1f}%, −{100 - right:.1f} points, '
    '95% interval −'
  ) in lead
  assert 'layers cut instead (mean of 3 draws) it changes by −' in lead
  endpoint = effects.endpoint(outcomes, cases.K)
  assert endpoint is not None
  assert f'So: {effects.verdict(endpoint)}.' in lead
  assert 'costs it where something must be looked up' in lead


@pytest.mark.parametrize(
  'options, k, words',
  [
    (
      dict(top_right=(1, 1), control_right=(1, 1)),
      cases.K,
      'is not shown to change',
    ),
    (
      dict(top_right=(1, 1), control_right=(1, 1)),
      cases.K,
      'no effect is shown',
    ),
    (dict(top_right=(1, 1), intact_right=0.5), cases.K, 'raises accuracy'),
    (
      dict(intact_right=0.05),
      cases.K,
      'of the look-ups: there is little that could fall',
    ),
    (
      dict(top_right=(0.97, 1)),
      cases.K,
      'is not shown to change accuracy on qu',
    ),
    (dict(n_scenes=1), cases.K, 'is seen to change'),
    (dict(n_scenes=1), cases.K, 'no interval'),
    (dict(), 2, 'the primary endpoint cannot be said'),
    (dict(), 2, 'Cutting the top head of 32'),
    (
      dict(made=groups.plan(cases.SCORE_LN, (0,), ())),
      cases.K,
      'No head was cut',
    ),
    (
      dict(
        made=groups.plan_given(
          cases.GIVEN, cases.N_LAYERS, cases.N_HEADS, range(2)
        )
      ),
      2,
      'Cutting the 2 given heads of 32 (6.2%) lowers',
    ),
  ],
)
def test_the_lead_tells_what_did_not(options, k, words):
  assert words in lead_of(cases.page_of(cases.make(**options), k))


def test_without_twins_nothing_is_said_of_them():
  outcomes = cases.make(twins=False)
  page = cases.page_of(outcomes)
  assert 'there being no twins' in page
  assert 'twin questions' not in lead_of(page)
  assert len(data_of(page)['endpoint']['rows']) == 1
  assert [len(cells) for cells in table_of(page, 'compact')] == [4] * 6


def test_turned_answers_are_counted_and_shown(outcomes, page):
  x = outcomes.of('top', cases.K)[0]
  controls = outcomes.of('layer_matched', cases.K)
  score_XE = outcomes.score_XE
  lost_E = score_XE[x] < score_XE[0]
  counts = {row[0]: row[1:] for row in table_of(page, 'counts compact')}
  assert set(counts) == set(outcomes.parts())
  for part, used_E in outcomes.parts().items():
    mean = (score_XE[controls][:, used_E] == 0).sum() / len(controls)
    expected = [used_E.sum(), lost_E[used_E].sum(), 0, mean, 0]
    found = [float(cell) for cell in counts[part]]
    assert found == pytest.approx(expected, rel=1e-3)
  shown = table_of(page, 'flips')
  assert len(shown) == ablate_report.MAX_FLIPS < lost_E.sum()
  assert f'50 of the {lost_E.sum()} that turned' in page
  ids = [int(row[-1].split('/')[-1]) for row in shown]
  assert lost_E[ids].all() and len(set(ids)) == 50
  # Look-ups do not crowd out the few twins.
  twins = lost_E & outcomes.twin_E
  assert outcomes.twin_E[ids].sum() >= min(twins.sum(), 10)
  for e, row in zip(ids, shown):
    assert row[0] == f'{report_cases.EVIL} {e}'
    right = score_XE[controls][:, e].mean()
    assert row[1:5] == ['red', '✓', '✗', f'{100 * right:.0f}%']
    assert ('twin' in row[5].split()) == outcomes.twin_E[e]


def test_all_turned_answers_are_shown_where_they_fit():
  outcomes = cases.make(n_scenes=10, intact_right=0.5)
  x = outcomes.of('top', cases.K)[0]
  turned = int((outcomes.score_XE[x] != outcomes.score_XE[0]).sum())
  page = cases.page_of(outcomes)
  shown = table_of(page, 'flips')
  assert 10 < turned == len(shown) < 50
  assert f'>The {turned} that turned' in page
  assert {tuple(row[2:4]) for row in shown} == {('✓', '✗'), ('✗', '✓')}


def test_no_turned_answer_is_said():
  page = cases.page_of(cases.make(top_right=(1, 1)))
  assert 'No answer turned' in page and 'class="flips"' not in page


def test_long_texts_are_shortened_and_partial_scores_told():
  outcomes = cases.make(n_scenes=4)
  x = outcomes.of('top', cases.K)[0]
  outcomes.score_XE[0, 0], outcomes.score_XE[x, 0] = 0.75, 0.25
  page = cases.page_of(outcomes, rows=cases.rows_of(outcomes, 'why ' * 1000))
  assert 'why ' * 80 not in page and 'why…' in page
  row = table_of(page, 'flips')[0]
  assert row[2:4] == ['0.75', '0.25']


def test_notes_and_caveats_are_told():
  # 10 of 32: a median group overlaps no top, but a layer of 8 is too small.
  outcomes = cases.make(
    made=groups.plan(cases.SCORE_LN, (0, 10), range(2)), n_scenes=4
  )
  cut = ablate_report.Cut('mean', 'decode', 'query', 'generated', 'x', 'Beware')
  page = cases.page_of(outcomes, 10, cut=cut)
  (note,) = {g.note for g in outcomes.groups if g.note}
  assert f'layer-matched, 10 heads: {note}.' in page and 'Beware.' in page
  assert 'by class of row' in page and 'decoded greedily' in page


def test_every_way_to_cut_has_words():
  for mode in ablation.MODES:
    for phase in ablation.PHASES:
      for rows in ablation.ROWS:
        cut = ablate_report.Cut(mode, phase, rows, 'forced', 'x')
        assert len(cut.words()) == 4


def test_what_others_wrote_is_text_and_only_our_script_runs(page):
  assert '<script>window' not in page and '<img' not in page
  assert 'stand-in &amp; more' in page and '&lt;model&gt;' in page
  assert not re.findall(r'(?:src|href|action)="(?!data:|#)', page)
  assert ' style="' not in page  # refused by the page's own policy
  (script,) = re.findall(r'<script>(.*?)</script>', page, re.S)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in page


def test_a_thousand_heads_stay_under_300_kb():
  score_LN = np.random.default_rng(0).random((32, 32))
  made = groups.plan(score_LN, (0, 1, 3, 5, 10, 20, 30, 51, 102), range(10))
  outcomes = cases.make(n_scenes=20, made=made, shape=(32, 32))
  page = cases.page_of(outcomes, 51, cases.rows_of(outcomes, 'why ' * 1000))
  assert len(page.encode()) <= 300_000
  assert table_of(page, 'flips')


def test_rows_of_another_run_are_refused(outcomes):
  with pytest.raises(ValueError, match='1 rows, 120 examples'):
    cases.page_of(outcomes, rows=cases.rows_of(outcomes)[:1])
