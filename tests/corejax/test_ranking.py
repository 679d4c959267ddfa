"""HeadRanking: columns, selections, files, what it says, and the grammar."""

import csv
import dataclasses
import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from corejax import errors
from corejax import heads as heads_lib
from corejax import ram
from corejax import ranking
from corejax import regions
from corejax import table
from corejax.stats import accuracy
from helpers import fake_scores

ISSUE_COLUMNS = (
  'rank,layer,head,ram,ci_low,ci_high,inclusion,q_value,share,lift,excess,'
  'mass_evidence,mass_distractor,mass_visual,mass_question,mass_text,mass_sink,'
  'score'
)
PLANTED, SALIENT = (1, 2), (2, 0)


@pytest.fixture(scope='module')
def scores():
  return fake_scores.make(
    n_clusters=20, planted=[PLANTED], salient=[SALIENT], baseline=True
  )


@pytest.fixture(scope='module')
def ranked(scores):
  return ranking.rank(scores, bootstrap=400, permutations=2000)


@pytest.fixture(scope='module')
def run_dir(ranked, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run:1')  # a colon in the path
  ranked.write_csv(folder / 'heads.csv')
  return folder


def quick(scores, **options):
  return ranking.rank(scores, **{'bootstrap': 0, 'permutations': 0, **options})


def test_columns_of_the_file(ranked, run_dir):
  with open(run_dir / 'heads.csv') as f:
    rows = list(csv.reader(f))
  assert ','.join(rows[0][:18]) == ISSUE_COLUMNS
  assert tuple(rows[0]) == table.COLUMNS
  assert len(rows) == 1 + 12
  assert [row[0] for row in rows[1:]] == [str(i) for i in range(1, 13)]


def test_round_trip_is_exact(ranked, run_dir):
  for path in (run_dir, run_dir / 'heads.csv'):
    again = ranking.HeadRanking.read_csv(path)
    for name in table.COLUMNS:
      np.testing.assert_array_equal(again.columns[name], ranked.columns[name])
      assert again.columns[name].dtype.kind == ranked.columns[name].dtype.kind
    assert again.to_csv() == ranked.to_csv()
    assert again.selected == ranked.selected


def test_table_is_the_masses(scores, ranked):
  mass = scores.mass_ELNQR[:, :, :, 0].astype(np.float64)
  grid = ranked.grid
  for name, which in (
    ('ram', [0]),
    ('mass_evidence', [0]),
    ('mass_distractor', [1]),
    ('mass_visual', [0, 1, 2, 3, 4, 5]),
    ('mass_sink', [regions.SINK]),
    ('mass_question', [regions.QUESTION]),
    ('mass_text', [regions.OTHER_TEXT]),
  ):
    expected = mass[..., which].sum(-1).mean(0)  # clusters of equal size
    np.testing.assert_allclose(grid(name), expected, rtol=1e-9)
  measured = ram.measure(scores)
  for name in ('share', 'lift', 'excess'):
    np.testing.assert_allclose(grid(name), measured.by_norm[name], rtol=1e-12)
  np.testing.assert_allclose(ranked.columns['chance'], 1 / fake_scores.N_TOKENS)


def test_best_first(ranked):
  assert ranked.heads[0] == PLANTED
  assert (np.diff(ranked.columns['score']) <= 0).all()
  assert sorted(ranked.heads) == [(l, n) for l in range(3) for n in range(4)]
  np.testing.assert_array_equal(ranked.columns['score'], ranked.columns['ram'])
  assert (ranked.columns['ci_low'] < ranked.columns['ram']).all()
  assert (ranked.columns['ram'] < ranked.columns['ci_high']).all()


def test_the_null_flags_the_planted_head_only(ranked):
  q = ranked.grid('q_value')
  assert q[PLANTED] < 0.01
  assert (np.delete(q.ravel(), 4 * PLANTED[0] + PLANTED[1]) > 0.05).all()
  # Other places are no match for salience: that is why they come second.
  assert ranked.grid('q_shift')[SALIENT] < 0.01
  assert ranked.grid('ram')[SALIENT] > 0.05


def test_interval_of_the_score_beside_that_of_the_mass(scores, ranked):
  lift = ranking.rank(scores, norm='lift', bootstrap=400, permutations=0)
  for name in ('ram', 'ci_low', 'ci_high'):
    np.testing.assert_allclose(lift.grid(name), ranked.grid(name), rtol=1e-12)
  assert (lift.grid('score_ci_low') < lift.grid('score')).all()
  assert (lift.grid('score_ci_high') > lift.grid('score')).all()
  np.testing.assert_array_equal(lift.grid('score'), lift.grid('lift'))


def test_inclusion(ranked, scores):
  inclusion = ranked.grid('inclusion')
  assert inclusion[PLANTED] == 1
  assert inclusion.sum() == pytest.approx(len(ranked.selected))
  layers = ranking.rank(
    scores, bootstrap=200, permutations=0, select='per_layer2'
  )
  np.testing.assert_allclose(layers.grid('inclusion').sum(1), 2)


def test_same_seed_same_numbers(scores, ranked):
  again = ranking.rank(scores, bootstrap=400, permutations=2000)
  assert again.to_csv() == ranked.to_csv()
  other = ranking.rank(scores, bootstrap=400, permutations=2000, seed=1)
  assert other.to_csv() != ranked.to_csv()


@pytest.mark.parametrize(
  'rule, count',
  [
    ('top5%', 1),
    ('top30%', 4),
    ('top7', 7),
    ('per_layer2', 6),
    ('top100%', 12),
  ],
)
def test_selections(scores, rule, count):
  found = quick(scores, select=rule)
  assert len(found.selected) == count == len(found.select(rule))
  assert PLANTED in found.selected
  if rule == 'per_layer2':
    assert [layer for layer, _ in found.selected] == [0, 0, 1, 1, 2, 2]
  else:
    assert set(found.selected) == set(found.heads[:count])


def test_bottom_and_fdr(ranked, scores):
  assert set(ranked.select('bottom3')) == set(ranked.heads[-3:])
  assert set(ranked.select('bottom25%')) == set(ranked.heads[-3:])
  assert set(ranked.select('fdr0.01')) == {PLANTED}
  by_q = ranking.rank(scores, bootstrap=50, permutations=2000, select='fdr0.01')
  assert set(by_q.selected) == {PLANTED}
  assert by_q.grid('inclusion')[PLANTED] == 1


def test_fewer_than_asked_for_is_said(scores, tmp_path):
  mass = scores.mass_ELNQR.copy()
  mass[:, 1:, :, :, regions.OTHER_TEXT] += mass[:, 1:, :, :, :6].sum(-1)
  mass[:, 1:, :, :, :6] = 0
  blind = dataclasses.replace(scores, mass_ELNQR=mass, profiles=None)
  found = ranking.rank(blind, norm='share', select='top6', bootstrap=20)
  assert {layer for layer, _ in found.selected} == {0}
  assert len(found.selected) == found.columns['selected'].sum() == 4
  assert any(
    line.startswith('selected fewer than the 6 heads asked for')
    for line in found.summary()
  )
  assert found.findings.to_dict()['n_asked'] == 6
  found.write_csv(tmp_path / 'heads.csv')
  for text in ('top6', 'bottom6'):
    heads = ranking.parse_heads(f'@{tmp_path}:{text}', 3, 4)
    assert {layer for layer, _ in heads} == {0} and len(heads) == 4
  mass[:, 0, :, :, regions.OTHER_TEXT] += mass[:, 0, :, :, :6].sum(-1)
  mass[:, 0, :, :, :6] = 0
  found = ranking.rank(blind, norm='share', bootstrap=20)
  assert not found.selected
  json.dumps(found.findings.to_dict(), allow_nan=False)
  assert 'selected by top5%: 0 heads' in found.summary()


def test_ties_go_by_layer_and_head_and_are_reported(scores):
  mass = scores.mass_ELNQR.copy()
  mass[:, 0, 1] = mass[:, 2, 2] = mass[:, 1, 0]
  tied = dataclasses.replace(scores, mass_ELNQR=mass, profiles=None)
  order = quick(tied).heads
  at = order.index((0, 1))
  assert order[at : at + 3] == [(0, 1), (1, 0), (2, 2)]
  found = quick(tied, select=f'top{at + 1}')
  assert found.findings.tied == '1-0,2-2'
  assert found.grid('flags')[1, 0] == ranking.TIE
  assert any(line.startswith('tie at the cut') for line in found.summary())
  clear = quick(tied, select=f'top{at + 3}')
  assert clear.findings.tied == '' and not clear.grid('flags')[1, 0]


def test_scores_that_are_not_finite_rank_last_and_are_flagged(scores):
  mass = scores.mass_ELNQR.copy()
  mass[:, 0, 0, :, regions.OTHER_TEXT] += mass[:, 0, 0, :, :6].sum(-1)
  mass[:, 0, 0, :, :6] = 0
  blind = dataclasses.replace(scores, mass_ELNQR=mass, profiles=None)
  found = ranking.rank(blind, norm='share', bootstrap=50)
  assert found.heads[-1] == (0, 0)
  assert found.columns['flags'].tolist() == [''] * 11 + [ranking.NONFINITE]
  assert np.isnan(found.columns['score_ci_low'][-1])
  assert found.columns['ci_low'][-1] == found.columns['ci_high'][-1] == 0
  assert 'no finite score: 1 head, ranked last' in found.summary()


def test_summary_says_what_was_found(ranked):
  text = '\n'.join(ranked.summary())
  for part in (
    'over the null: 1 of 12 heads at q < 0.01',
    'sparsity: Gini 0.',
    '1 head (8.3%) hold half of the mass',
    'split halves (100 splits by cluster): Spearman',
    'selected by top5%: 1 head: 1-2',
    'fewer than 50 clusters',
    'question 1-2 RAM 0.6',
    'top 10 heads',
  ):
    assert part in text, part
  assert ranked.summary()[-10].split()[:2] == ['1', '1-2']
  json.dumps(ranked.findings.to_dict(), allow_nan=False)


def test_summary_says_who_was_left_out(scores):
  found = quick(scores, correct_only=True)
  wrong = int((~scores.correct_E).sum())
  assert f'left out: {wrong} (answered wrong)' in found.summary()


def test_summary_of_the_answers(scores):
  found = quick(scores, correct_only=True)
  right = accuracy.wilson(scores.correct_E, scores.clusters)
  assert right.deff >= 1
  assert (
    f'teacher-forced answers right: {right.value:.3f} [{right.low:.3f}, '
    f'{right.high:.3f}] of 80' in found.summary()
  )


@pytest.mark.parametrize('n_tasks', [6, 7])
def test_answers_by_task(scores, n_tasks):
  tasks = [f't{e % n_tasks}' for e in range(len(scores))]
  found = quick(dataclasses.replace(scores, tasks=tasks))
  (line,) = [t for t in found.summary() if t.startswith('teacher-forced')]
  answers = found.findings.to_dict()['answers']
  if n_tasks == 7:
    assert set(answers) == {''} and answers['']['n'] == 80
    assert 't0' not in line
    return
  assert sorted(answers) == sorted(set(tasks))
  right = accuracy.wilson(scores.correct_E[1::6], scores.clusters[1::6])
  assert (
    f'; t1 {right.value:.3f} [{right.low:.3f}, {right.high:.3f}] of 14;' in line
  )


def test_summary_is_honest_when_nothing_was_found():
  found = quick(fake_scores.make(n_clusters=4), permutations=1000)
  text = '\n'.join(found.summary())
  assert 'over the null: none of 12 heads' in text
  assert 'no head is shown to read the evidence' in text
  assert 'at least 2 heads must stand out at once' in text


def test_summary_of_a_file(run_dir):
  lines = ranking.HeadRanking.read_csv(run_dir).summary()
  assert lines[0] == 'selected: 1 head: 1-2' and len(lines) == 12


def test_one_cluster():
  found = ranking.rank(
    fake_scores.make(n_clusters=1, planted=[PLANTED]),
    bootstrap=50,
    permutations=200,
  )
  assert np.isnan(found.columns['ci_low']).all()
  assert found.findings.split_half.n_splits == 0
  assert 'intervals: none, there is one cluster' in found.summary()
  assert any(
    '(no interval, there is one cluster) of 4' in t for t in found.summary()
  )
  json.dumps(found.findings.to_dict(), allow_nan=False)


def test_kv_scores(ranked):
  np.testing.assert_array_equal(
    ranked.kv_scores(2), ranked.score_LN.reshape(3, 2, 2).max(-1)
  )


@pytest.mark.parametrize('name', ['bootstrap', 'permutations', 'seed'])
def test_negative_numbers(scores, name):
  with pytest.raises(errors.UserError, match=f'{name} -1 is negative'):
    ranking.rank(scores, **{name: -1})


# The grammar.


def test_parse_heads(ranked, run_dir):
  parse = ranking.parse_heads
  assert parse('2-0,1-2', 3, 4) == heads_lib.HeadSet([(1, 2), (2, 0)])
  assert not parse('', 3, 4)
  for path in (run_dir, run_dir / 'heads.csv'):
    assert parse(f'@{path}', 3, 4) == ranked.selected
    assert set(parse(f'@{path}:top3', 3, 4)) == set(ranked.heads[:3])
    assert set(parse(f' @{path}:bottom50% ', 3, 4)) == set(ranked.heads[6:])
    assert set(parse(f'@{path}:fdr0.01', 3, 4)) == {PLANTED}


@pytest.mark.parametrize(
  'text, message',
  [
    ('3-0', 'layer 3 is outside 0..2'),
    ('1-4', 'head 4 of layer 1 is outside 0..3'),
    ('1-2,1-2', 'stands twice'),
    ('top5%', 'is not layer-head'),
    ('@', 'no ranking named'),
    ('@:top3', 'no ranking named'),
    ('@nowhere', 'there is no heads.csv'),
    ('@nowhere:top3', 'there is no heads.csv'),
    ('@no\nwhere', 'there is no heads.csv'),
    ('@nowhere:topp', "there is no 'nowhere:topp'"),
    ('@{run}:topp', "selection 'topp' is none of"),
    ('@{run}:', "selection '' is none of"),
    ('@{run}:top13', 'there are 12 heads'),
    ('@x://y/z:top3', 'kind of path cannot be read'),
    ('@\0', 'cannot be read|there is no'),
    ('@' + 'x' * 5000, 'cannot be read'),
  ],
)
def test_parse_heads_refuses(run_dir, text, message):
  with pytest.raises(errors.UserError, match=message) as info:
    ranking.parse_heads(text.format(run=run_dir), 3, 4)
  assert '\n' not in str(info.value)


def test_a_ranking_of_another_model(run_dir):
  with pytest.raises(
    errors.UserError, match='3 layers x 4 heads; tiny has 4 x 3'
  ):
    ranking.parse_heads(f'@{run_dir}:top3', 4, 3, 'tiny')


def edit(rows, column, row, value):
  rows[row][rows[0].index(column)] = value


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda t: t.clear(), 'empty'),
    (lambda t: t.__delitem__(slice(1, None)), 'no heads'),
    (lambda t: t.__delitem__(3), '11 rows are not each head of 3 x 4 once'),
    (lambda t: t.append(t[1]), '13 rows are not each head'),
    (lambda t: edit(t, 'layer', 1, '0'), 'are not each head|ranks'),
    (lambda t: edit(t, 'layer', 1, '-1'), 'negative'),
    (lambda t: edit(t, 'head', 1, '999999999'), 'are not each head'),
    (lambda t: edit(t, 'head', 1, '9' * 30), "'head' holds a value"),
    (lambda t: edit(t, 'head', 1, '9' * 5000), "'head' holds a value"),
    (lambda t: edit(t, 'ram', 2, 'much'), "'ram' holds a value"),
    (lambda t: edit(t, 'rank', 2, '1'), 'ranks are not 1..12'),
    (lambda t: t[4].__delitem__(slice(5, None)), 'a row has no'),
    (lambda t: edit(t, 'q_value', 0, 'q'), "no column 'q_value'"),
    (lambda t: t[0].__setitem__(-1, 'rank'), 'a column stands twice'),
  ],
)
def test_files_that_are_no_ranking(run_dir, tmp_path, change, message):
  with open(run_dir / 'heads.csv') as f:
    rows = list(csv.reader(f))
  change(rows)
  path = tmp_path / 'heads.csv'
  with open(path, 'w', newline='') as f:
    csv.writer(f).writerows(rows)
  with pytest.raises(errors.UserError, match=message) as info:
    ranking.parse_heads(f'@{tmp_path}', 3, 4)
  assert str(path) in str(info.value)


def test_files_that_are_no_text(tmp_path):
  path = tmp_path / 'heads.csv'
  for data in (b'\xff\xfe\x00PNG', b'rank,"layer\x00', b'a,b\n"open'):
    path.write_bytes(data)
    with pytest.raises(errors.UserError):
      ranking.parse_heads(f'@{path}', 3, 4)


def test_a_table_of_the_required_columns_will_do(run_dir, tmp_path):
  with open(run_dir / 'heads.csv') as f:
    rows = [row[:18] for row in csv.reader(f)]
  path = tmp_path / 'other.csv'
  with open(path, 'w', newline='') as f:
    csv.writer(f).writerows(rows)
  assert len(ranking.parse_heads(f'@{path}:top3', 3, 4)) == 3
  with pytest.raises(errors.UserError, match="no column 'selected'"):
    ranking.parse_heads(f'@{path}', 3, 4)
  assert len(ranking.HeadRanking.read_csv(path).summary()) == 12


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.data())
def test_parse_heads_fuzz(run_dir, data):
  """Any text gives heads of the model or one line for the user."""
  piece = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
      ['@', ':', '%', ',', '-', 'top', 'bottom', 'fdr', '0', '5', '13', '0.01']
      + [str(run_dir), 'heads.csv', '/', '..', '://', '1-2', '\0', '~']
    ),
  )
  text = ''.join(data.draw(st.lists(piece, max_size=6)))
  hypothesis.assume('gs://' not in text and 's3://' not in text)
  try:
    found = ranking.parse_heads(text, 3, 4)
  except errors.UserError as e:
    assert '\n' not in str(e)
  else:
    assert all(0 <= l < 3 and 0 <= n < 4 for l, n in found)
