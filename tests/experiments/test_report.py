"""What report.html holds, without a browser."""

import base64
import hashlib
import io
import json
import re

import numpy as np
from PIL import Image
import pytest

from corejax import layout as layout_lib
from corejax import ranking as ranking_lib
from corejax.data import example as example_lib
from corejax.experiments import report
from corejax.experiments import report_examples
from helpers import fake_scores
from helpers import report_cases


def data_of(page):
  (block,) = re.findall(
    r'<script type="application/json" id="data">(.*?)</script>', page, re.S
  )
  return json.loads(block)


@pytest.fixture(scope='module')
def made():
  return report_cases.scores()


@pytest.fixture(scope='module')
def page(made):
  return report_cases.rank_page(made)


def test_the_numbers_are_the_rankings(made, page):
  data = data_of(page)
  ranking = ranking_lib.rank(made, bootstrap=50, permutations=50)
  for name in ('layer', 'head', 'selected'):
    assert data['heads'][name] == ranking.columns[name].tolist()
  for name in ('ram', 'ci_low', 'null_mean', 'q_value', 'lift'):
    np.testing.assert_allclose(
      data['heads'][name], ranking.columns[name], rtol=1e-3
    )
  assert data['findings'] == ranking.findings.to_dict()
  layer, head = ranking.columns['layer'], ranking.columns['head']
  for q, name in enumerate(('question', 'last', 'answer')):
    # Clusters are of one size here, so that the mean is over examples.
    expected_LN = made.mass_ELNQR[:, :, :, q, 0].mean(0)
    np.testing.assert_allclose(
      data['by_set'][name], expected_LN[layer, head], rtol=1e-3
    )


def test_an_examples_masses_and_attention(made, page):
  data = data_of(page)
  pairs = list(zip(data['heads']['layer'], data['heads']['head']))
  for e, packed in enumerate(data['examples']):
    for slot, x in enumerate(data['shown']):
      mass_QR = made.mass_ELNQR[e][pairs[x]]
      np.testing.assert_allclose(
        np.array(packed['mass'][slot]) / 1e6, mass_QR, atol=1e-6
      )
      attention = unpack(packed, slot, 16)
      profile = np.float64(made.profiles[e][pairs[x]])
      np.testing.assert_allclose(
        attention, profile, rtol=0, atol=packed['tops'][slot] / 250
      )


def unpack(packed, slot, n):
  raw = np.frombuffer(base64.b64decode(packed['profile']), np.uint8)
  part = raw[slot * n : (slot + 1) * n].astype(np.float64)
  return packed['tops'][slot] * (part / 255) ** 2


def test_faint_attention_keeps_digits():
  tops, text = report_examples.quantise(np.array([[1.0, 1e-3], [0.0, 0.0]]))
  raw = np.frombuffer(base64.b64decode(text), np.uint8)
  assert tops == [1.0, 0.0] and raw[2:].tolist() == [0, 0]
  assert (raw[1] / 255) ** 2 == pytest.approx(1e-3, rel=0.07)


def test_cells_survive_packing_even_beyond_the_picture():
  cells = layout_lib.VisualLayout(
    media_I=np.array([0, 1], np.int32),
    cell_IW=np.array([[-300.0, 0, 50, 60], [10, 20, 30, 640]]),
    size_M2=np.array([[100, 200], [60, 300]], np.int32),
    base_I=np.array([True, False]),
  )
  packed = report_examples.layout(cells)
  steps = np.frombuffer(base64.b64decode(packed['cells']), '<u2')
  shares = packed['low'] + packed['span'] * steps.reshape(2, 4) / 65535
  expected = [[-3, 0, 0.5, 0.3], [1 / 6, 1 / 15, 0.5, 32 / 15]]
  np.testing.assert_allclose(shares, expected, atol=1e-4)
  assert base64.b64decode(packed['base']) == b'\1\0'


@pytest.mark.parametrize('limit', [30_000, 8_000])
def test_pictures_are_made_small(limit):
  rng = np.random.default_rng(0)
  made = report_examples.picture(report_cases.picture(rng, 500, 300), limit)
  raw = base64.b64decode(made['src'].split(',')[1])
  assert len(raw) <= limit
  assert (made['width'], made['height']) == (500, 300)
  with Image.open(io.BytesIO(raw)) as image:
    assert image.width / image.height == pytest.approx(5 / 3, rel=0.02)
    assert image.width > 90


def test_a_small_picture_stays_exact_though_jpeg_is_smaller():
  source = report_cases.picture(np.random.default_rng(0), 50, 40)
  made = report_examples.picture(source, 30_000)
  kind, raw = made['src'].split(',')
  assert kind == 'data:image/png;base64'
  with (
    Image.open(io.BytesIO(source)) as before,
    Image.open(io.BytesIO(base64.b64decode(raw))) as after,
  ):
    np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


def test_examples_are_spread_over_tasks_and_data():
  tasks = ['a'] * 90 + ['b'] * 10
  chosen = report_examples.choose(tasks, 6)
  assert chosen == [0, 44, 89, 90, 94, 99]
  assert report_examples.choose(['a', 'b'], 12) == [0, 1]
  assert len(report_examples.choose([str(i) for i in range(40)], 12)) == 12


def test_what_others_wrote_cannot_leave_the_data_block(page):
  assert '<script>window' not in page and '<img' not in page
  assert 'stand-in &amp; more' in page and '&lt;model&gt;' in page
  data = data_of(page)
  assert data['examples'][1]['question'] == f'{report_cases.EVIL} 1'


def test_nothing_comes_from_elsewhere_and_only_our_script_runs(page):
  assert not re.findall(r'(?:src|href|action)="(?!data:|#)', page)
  assert not re.findall(r'@import|url\(|fetch\(|XMLHttpRequest', page)
  addresses = set(re.findall(r'https?://[^\s"\')]+', page))
  assert addresses == {'http://www.w3.org/2000/svg'}
  (script,) = re.findall(r'<script>(.*?)</script>', page, re.S)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in page
  assert "default-src 'none'" in page


def test_the_same_run_gives_the_same_page(made, page):
  assert report_cases.rank_page(made) == page


def test_a_thousand_heads_stay_under_a_megabyte():
  scores = fake_scores.make(
    n_layers=32, n_heads=32, n_clusters=6, per_cluster=3
  )
  ranking = ranking_lib.rank(scores, bootstrap=20, permutations=20)
  rng = np.random.default_rng(0)
  cells = report_cases.grid(4, 24, 300, 400)
  profile = rng.dirichlet(np.ones(len(cells)), (32, 32)).astype(np.float16)
  pages = tuple(report_cases.picture(rng, 300, 400) for _ in range(4))
  browsable = [
    report_examples.Shown(
      example=example_lib.Example(
        id=f'fake/test/{e}',
        source='fake',
        split='test',
        task='colour',
        media=pages,
        question='Which? ' * 40,
        answers=('that',),
        cluster='c',
        evidence=(example_lib.Box(1, 0.1, 0.2, 0.5, 0.4),),
      ),
      layout=cells,
      evidence_I=rng.random(len(cells)) < 0.1,
      mass_LNQR=scores.mass_ELNQR[e],
      count_R=scores.count_ER[e],
      profile_LNI=profile,
      correct=True,
    )
    for e in range(12)
  ]
  page = report.rank_page(
    ranking, scores, browsable, report.About('m', 'fake/test')
  )
  data = data_of(page)
  assert len(page.encode()) <= 1_000_000
  assert len(data['heads']['ram']) == 1024
  # As many as fit: one more of these would not have.
  n_shown = len(data['examples'])
  assert 4 <= n_shown < 12 and len(data['layouts']) == 1
  size = len(json.dumps(data['examples'][0]))
  assert len(page) + size > report.PAGE_BYTES


@pytest.mark.parametrize(
  'options, comparable',
  [
    (dict(), True),
    (dict(norm='excess'), True),
    (dict(norm='lift'), False),
    (dict(contrast=True), False),
  ],
)
def test_the_null_is_drawn_only_where_it_is_of_the_score(options, comparable):
  # Profiles hold what the null needs; the score's own mean must be its like.
  scores = report_cases.scores()
  data = data_of(report_cases.rank_page(scores, 0, **options))
  assert data['null_is_comparable'] is comparable
  bare = np.array(data['heads']['null_mean'])
  drawn_from = np.array(data['heads']['score'])
  idle = slice(len(data['shown']), None)
  near = np.abs(bare[idle] - drawn_from[idle]).max() < 0.05
  assert near or not comparable


def test_without_profiles_pictures_and_masses_are_still_shown():
  scores = report_cases.scores(profiles=False)
  page = report_cases.rank_page(scores, 1)
  (packed,) = data_of(page)['examples']
  assert packed['profile'] is None and packed['mass']
  assert 'kept no profiles' in page and 'No null was tested' in page


@pytest.mark.parametrize('select', ['top1', 'top5%', 'top30'])
def test_heads_to_compare_with_are_neither_best_nor_selected(select):
  scores = fake_scores.make(n_layers=6, n_heads=6, salient=((1, 0), (1, 1)))
  ranking = ranking_lib.rank(scores, bootstrap=0, permutations=0, select=select)
  data = data_of(
    report.rank_page(ranking, scores, [], report.About('m', 'fake/test'))
  )
  visual = ranking.columns['mass_visual']
  rest = [x for x in range(max(8, len(ranking.selected)), 36) if x != 18]
  reader = max(rest, key=lambda x: visual[x])
  assert data['shown'] == [*range(8), *sorted({18, reader})]
  # It takes leaving the others out to find it.
  assert reader != visual.argmax()


def test_a_ranking_read_from_its_table_is_refused(tmp_path, made):
  ranking = ranking_lib.rank(made, bootstrap=0, permutations=0)
  ranking.write_csv(tmp_path / 'heads.csv')
  read = ranking_lib.HeadRanking.read_csv(tmp_path)
  with pytest.raises(ValueError, match='no findings'):
    report.rank_page(read, made, [], report.About('m', 'd'))


def test_inspect_page(made):
  shown = report_cases.shown(made, 0)
  page = report.inspect_page(
    shown, report.About('m', 'fake/test'), '0  sink  <s>'
  )
  assert '0  sink  &lt;s&gt;' in page
  data = data_of(page)
  own = made.mass_ELNQR[0, :, :, 0, 0]
  pairs = list(zip(data['heads']['layer'], data['heads']['head']))
  assert {pairs[0], pairs[1]} == set(report_cases.PLANTED)
  np.testing.assert_allclose(
    data['heads']['ram'], [own[pair] for pair in pairs], rtol=1e-3
  )
  assert data['shown'] == list(range(20))
