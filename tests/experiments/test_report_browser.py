"""report.html in a headless Chromium, from disk, with the network off."""

import json

import numpy as np
import pytest

from corejax.experiments import inspect as inspect_lib
from corejax.experiments import rank
from corejax.experiments import report
from helpers import browser
from helpers import report_cases

pytestmark = pytest.mark.skipif(
  browser.find() is None, reason='no Chromium is installed'
)


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  with browser.Browser.start(tmp_path_factory.mktemp('chromium')) as started:
    yield started


@pytest.fixture(scope='module')
def made():
  return report_cases.scores()


@pytest.fixture(scope='module')
def file(made, tmp_path_factory):
  path = tmp_path_factory.mktemp('report') / 'report.html'
  path.write_text(report_cases.rank_page(made))
  return path


@pytest.fixture
def page(chromium, file):
  opened = chromium.open(file)
  yield opened
  assert opened.errors == [] and opened.requests == []


def text(page, selector):
  return page.evaluate(
    f'document.querySelector({json.dumps(selector)}).textContent'
  )


def cell(page, layer, head):
  """Selector of a head's cell in the first map."""
  x = page.evaluate(
    "(() => {const d = JSON.parse(document.getElementById('data').textContent);"
    f'return d.heads.layer.findIndex((l, x) => l === {layer} && '
    f'd.heads.head[x] === {head}); }})()'
  )
  return f'#head-map [data-x="{x}"]'


def opacities(page):
  return page.evaluate(
    "[...document.querySelectorAll('.token')].map("
    '(n) => Number(n.style.fillOpacity))'
  )


@pytest.mark.parametrize('width', [1280, 360])
@pytest.mark.parametrize('dark', [False, True])
def test_opens_wide_and_narrow_light_and_dark(chromium, file, width, dark):
  page = chromium.open(file, width, dark=dark)
  assert page.errors == [] and page.requests == []
  assert page.evaluate('document.documentElement.scrollWidth') <= width
  paper = page.evaluate('getComputedStyle(document.body).backgroundColor')
  level = sum(int(v) for v in paper.strip('rgb()').split(','))
  assert (level < 200) is dark
  # Every chart is drawn.
  for part in ('head-map', 'curve-chart', 'row-maps', 'halves', 'sizes'):
    assert page.evaluate(f"document.querySelectorAll('#{part} svg').length")
  assert page.evaluate("document.querySelectorAll('#row-maps svg').length") == 3


def test_a_question_with_markup_is_text(page):
  assert page.evaluate('typeof window.hacked') == 'undefined'
  assert report_cases.EVIL in text(page, '#question')
  assert page.evaluate("document.querySelectorAll('#question *').length") == 0


def test_a_script_that_is_not_ours_does_not_run(chromium, file, tmp_path):
  path = tmp_path / 'evil.html'
  evil = file.read_text().replace(
    '<main>', '<main><script>window.hacked=1</script>'
  )
  path.write_text(evil)
  page = chromium.open(path)
  assert page.evaluate('typeof window.hacked') == 'undefined'
  assert any('Content Security Policy' in error for error in page.errors)


def test_hovering_tells_a_heads_values(page, made):
  assert page.evaluate("document.getElementById('tip').hidden")
  tips = []
  for layer, head in ((2, 1), (0, 4)):
    page.point(cell(page, layer, head))
    assert not page.evaluate("document.getElementById('tip').hidden")
    tips.append(text(page, '#tip'))
    ram = 100 * made.mass_ELNQR[:, layer, head, 0, 0].mean()
    assert f'head {layer}-{head}' in tips[-1]
    assert f'RAM {ram:.3g}%' in tips[-1]
  assert tips[0] != tips[1]


def test_choosing_a_head_changes_card_chip_and_overlay(page, made):
  number = int(text(page, '#question').split()[-1])
  evidence = made.evidence[number].astype(bool)
  for layer, head in report_cases.PLANTED:
    page.point(cell(page, layer, head), click=True)
    assert text(page, '#card h3') == f'Head {layer}-{head}'
    chosen = "document.querySelector('#chips :checked').parentNode.textContent"
    assert page.evaluate(chosen).startswith(f'{layer}-{head} ')
    shade = np.array(opacities(page))
    # The least shade lies on the evidence: the head's light falls there.
    assert evidence[shade.argmin()] and shade.min() < 0.2
    share = 100 * made.mass_ELNQR[number, layer, head, 0, 0]
    assert f'{share:.3g}%' in text(page, '#looks b')
  page.evaluate("document.querySelectorAll('#chips input')[5].click()")
  name = text(page, '#card h3').removeprefix('Head ')
  layer, head = map(int, name.split('-'))
  assert (layer, head) not in report_cases.PLANTED
  share_I = np.float64(made.profiles[number][layer, head])
  share_I /= max(made.profiles[number][pair].max() for pair in held(page))
  expected = 0.8 * (1 - np.sqrt(share_I))
  np.testing.assert_allclose(opacities(page), expected, atol=0.01)


def held(page):
  """(layer, head) of the heads whose attention the page holds."""
  names = page.evaluate(
    "[...document.querySelectorAll('#chips label')].map((n) => n.textContent)"
  )
  return [tuple(map(int, n.split()[0].split('-'))) for n in names]


def test_it_opens_where_the_best_head_finds_most(page, made):
  layer, head = held(page)[0]
  found = made.mass_ELNQR[:3, layer, head, 0, 0]
  assert int(text(page, '#question').split()[-1]) == found.argmax()


def test_a_head_whose_attention_is_not_held_says_so(page):
  x = page.evaluate(
    "(() => {const d = JSON.parse(document.getElementById('data').textContent);"
    'return d.heads.layer.findIndex((_, x) => !d.shown.includes(x)); })()'
  )
  page.point(f'#head-map [data-x="{x}"]', click=True)
  assert 'does not hold' in text(page, '#looks')
  assert set(opacities(page)) == {0}


def test_choosing_an_example_changes_picture_boxes_and_words(page):
  def seen():
    return page.evaluate(
      "[document.getElementById('question').textContent,"
      "document.getElementById('answer').textContent,"
      "document.querySelector('#stage image').getAttribute('href'),"
      "document.querySelector('#stage .boxes').innerHTML,"
      "document.getElementById('masses').textContent]"
    )

  views = [seen()]
  for _ in range(2):
    page.point('#after', click=True)
    views.append(seen())
  for a, b in ((0, 1), (1, 2), (0, 2)):
    assert all(x != y for x, y in zip(views[a], views[b]))
  page.point('#after', click=True)
  assert seen() == views[0]
  page.point('#before', click=True)
  assert seen() == views[2]
  page.evaluate(
    "(() => {const s = document.getElementById('example');"
    "s.value = (Number(s.value) + 1) % 3; s.dispatchEvent(new Event('change'))"
    '})()'
  )
  assert seen() == views[0]


def choose_option(page, name, value):
  page.evaluate(
    f"(() => {{const s = document.getElementById('{name}');"
    f"s.value = '{value}'; s.dispatchEvent(new Event('change')) }})()"
  )


def test_overlay_options(page):
  fills = (
    "new Set([...document.querySelectorAll('.token')].map("
    '(n) => n.style.fill)).size'
  )
  assert page.evaluate(fills) == 1
  choose_option(page, 'shading', 'colour')
  assert page.evaluate(fills) > 3
  choose_option(page, 'shading', 'none')
  assert set(opacities(page)) == {0}
  boxes = "getComputedStyle(document.querySelector('#stage .boxes')).display"
  assert page.evaluate(boxes) != 'none'
  page.point('#boxes', click=True)
  assert page.evaluate(boxes) == 'none'
  choose_option(page, 'shading', 'light')
  page.evaluate("document.querySelectorAll('#chips input')[6].click()")
  before = min(opacities(page))
  page.point('#own-scale', click=True)
  assert min(opacities(page)) == 0 < before


def test_the_map_by_keyboard(page):
  def focused():
    return page.evaluate("document.activeElement.getAttribute('aria-label')")

  for _ in range(60):
    page.press('Tab')
    if (focused() or '').startswith('head '):
      break
  first = focused()
  assert first.startswith('head ') and 'RAM' in first
  ring = "document.querySelector('#head-map .focus-ring')"
  assert page.evaluate(f"{ring}.getAttribute('visibility')") == 'visible'
  before = page.evaluate(f"{ring}.getAttribute('x')")
  page.press('Home')
  page.press('ArrowRight')
  layer = int(focused().split()[1].split('-')[0])
  assert focused().startswith(f'head {layer}-1,')
  page.press('ArrowUp')
  assert focused().startswith(f'head {layer - 1}-1,')
  assert page.evaluate(f"{ring}.getAttribute('y')") != before
  page.press('Enter')
  assert text(page, '#card h3') == f'Head {layer - 1}-1'
  # One tab stop: the next Tab leaves the map, and comes back to this cell.
  stops = 'document.querySelectorAll(\'#head-map [tabindex="0"]\').length'
  assert page.evaluate(stops) == 1
  page.press('Tab')
  assert not (focused() or '').startswith('head ')


def test_curve_and_stage_by_keyboard(page):
  page.evaluate("document.querySelector('#curve-chart svg').focus()")
  page.press('Home')
  best = text(page, '#card h3')
  page.press('ArrowRight')
  value = "document.activeElement.getAttribute('aria-valuenow')"
  assert page.evaluate(value) == '2'
  assert text(page, '#card h3') != best
  page.evaluate("document.getElementById('stage').focus()")
  question = text(page, '#question')
  page.press('ArrowRight')
  assert text(page, '#question') != question
  page.press('ArrowLeft')
  assert text(page, '#question') == question


def test_whatever_takes_focus_shows_it_and_has_a_name(page):
  nameless = page.evaluate(
    "[...document.querySelectorAll('button, select, input, svg[role], "
    "[tabindex=\"0\"]')].filter((n) => !(n.getAttribute('aria-label') || "
    "(n.tagName !== 'SELECT' && n.textContent.trim()) || "
    '[...(n.labels || [])].some((l) => [...l.childNodes].some('
    '(c) => !c.contains(n) && c.textContent.trim())))).length'
  )
  assert nameless == 0
  page.evaluate("document.getElementById('after').focus()")
  page.press('Tab')
  outline = page.evaluate(
    'getComputedStyle(document.activeElement).outlineWidth'
  )
  assert outline == '3px'


def test_colour_by_another_value_and_table(page):
  fill = (
    "document.querySelector('#head-map [data-x=\"7\"]').getAttribute('fill')"
  )
  before = page.evaluate(fill)
  choose_option(page, 'metric', 2)
  assert page.evaluate(fill) != before
  page.point('#all-heads summary', click=True)
  page.settle()
  rows = "document.querySelectorAll('#all-heads tbody tr').length"
  assert page.evaluate(rows) == 20
  page.evaluate("document.querySelectorAll('#all-heads button')[4].click()")
  name = page.evaluate(
    "document.querySelectorAll('#all-heads button')[4].textContent"
  )
  assert text(page, '#card h3') == f'Head {name}'


@pytest.mark.parametrize(
  'options',
  [dict(norm='lift'), dict(norm='excess', contrast=True), dict(bootstrap=0)],
  ids=str,
)
def test_other_scores_draw_too(chromium, made, tmp_path, options):
  path = tmp_path / 'report.html'
  path.write_text(report_cases.rank_page(made, **options))
  page = chromium.open(path)
  assert page.errors == []
  assert 'NaN' not in page.evaluate('document.body.innerHTML')
  assert 'undefined' not in page.evaluate('document.body.innerText')


def test_inspect_page(chromium, made, tmp_path):
  path = tmp_path / 'report.html'
  about = report.About('m', 'fake/test')
  path.write_text(
    report.inspect_page(report_cases.shown(made, 0), about, '0 sink <s>')
  )
  page = chromium.open(path, 360)
  assert page.errors == []
  assert page.evaluate('document.documentElement.scrollWidth') <= 360
  lit = int(np.argmin(opacities(page)))
  assert made.evidence[0][lit]
  page.point('#head-map [data-x="12"]', click=True)
  assert int(np.argmin(opacities(page))) != lit or min(opacities(page)) > 0.2


@pytest.mark.slow
def test_what_the_commands_write(chromium, tmp_path):
  small = dict(limit=8, bootstrap=20, permutations=20, out=str(tmp_path))
  found = rank.run(rank.Config(data='scenes_pages', **small))
  page = chromium.open(tmp_path / report.FILE)
  assert page.errors == []
  layer, head = found.ranking.heads[0]
  assert text(page, '#card h3') == f'Head {layer}-{head}'
  # It opens at an example on which this planted head sees the evidence best.
  e = page.evaluate("Number(document.getElementById('example').value)")
  evidence = found.scores.evidence[e]
  assert evidence[int(np.argmin(opacities(page)))]
  inspected = inspect_lib.run(
    inspect_lib.Config(data='scenes_pages', out=str(tmp_path / 'one'))
  )
  page = chromium.open(inspected.out / report.FILE)
  assert page.errors == []
  assert inspected.example.question in text(page, '#question')


def test_inspect_without_attention_runs_no_model(tmp_path):
  config = inspect_lib.Config(out=str(tmp_path), attention=False)
  assert not (inspect_lib.run(config).out / report.FILE).exists()
