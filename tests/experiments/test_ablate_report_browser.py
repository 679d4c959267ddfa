"""report.html of an ablation in a headless Chromium, with the network off."""

import json
import re

import numpy as np
import pytest

from corejax import effects
from corejax import groups
from helpers import ablate_cases as cases
from helpers import browser

pytestmark = pytest.mark.skipif(
  browser.find() is None, reason='no Chromium is installed'
)


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  with browser.Browser.start(tmp_path_factory.mktemp('chromium')) as started:
    yield started


@pytest.fixture(scope='module')
def outcomes():
  return cases.make()


@pytest.fixture(scope='module')
def page(outcomes):
  return cases.page_of(outcomes)


@pytest.fixture(scope='module')
def file(page, tmp_path_factory):
  path = tmp_path_factory.mktemp('report') / 'report.html'
  path.write_text(page)
  return path


@pytest.fixture
def opened(chromium, file):
  made = chromium.open(file)
  yield made
  assert made.errors == [] and made.requests == []


def text(opened, selector):
  return opened.evaluate(
    f'document.querySelector({json.dumps(selector)}).textContent'
  )


def count(opened, selector):
  return opened.evaluate(
    f'document.querySelectorAll({json.dumps(selector)}).length'
  )


def choose(opened, name, value):
  opened.evaluate(
    f"(() => {{const s = document.getElementById('{name}');"
    f"s.value = '{value}'; s.dispatchEvent(new Event('change')) }})()"
  )


@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('dark', [False, True])
def test_opens_wide_and_narrow_light_and_dark(chromium, file, width, dark):
  opened = chromium.open(file, width, dark=dark)
  assert opened.errors == [] and opened.requests == []
  assert opened.evaluate('document.documentElement.scrollWidth') <= width
  paper = opened.evaluate('getComputedStyle(document.body).backgroundColor')
  assert (sum(int(v) for v in paper.strip('rgb()').split(',')) < 200) is dark
  assert count(opened, '#forest svg') == 1
  assert count(opened, '#panels .slider') == 6
  assert count(opened, '#panels .slider:first-child polyline') == 6 * 5
  assert count(opened, '#head-map .cell') == cases.N_LAYERS * cases.N_HEADS


@pytest.mark.parametrize(
  'options, k',
  [
    (dict(twins=False, tasks=('colour',)), cases.K),
    (dict(n_scenes=1), cases.K),
    (dict(made=groups.plan(cases.SCORE_LN, (0, cases.K), ())), cases.K),
    (dict(made=groups.plan(cases.SCORE_LN, (0, cases.K), (0,))), cases.K),
    (dict(made=groups.plan(cases.SCORE_LN, (0,), ())), cases.K),
    (
      dict(
        made=groups.plan_given(
          cases.GIVEN, cases.N_LAYERS, cases.N_HEADS, range(2)
        )
      ),
      2,
    ),
    (dict(top_right=(1, 1), control_right=(1, 1)), cases.K),
  ],
  ids=['no twins', '1 cluster', '0 draws', '1 draw', 'uncut', 'given', 'even'],
)
def test_other_runs_draw_too(chromium, tmp_path, options, k):
  path = tmp_path / 'report.html'
  path.write_text(cases.page_of(cases.make(**options), k))
  opened = chromium.open(path)
  for measure in ('accuracy', 'delta', 'logprob'):
    choose(opened, 'measure', measure)
  assert opened.errors == []
  body = "document.querySelector('main').innerHTML"
  assert not {'NaN', 'undefined', 'Infinity', 'null'} & set(
    re.findall(r'\w+', opened.evaluate(body))
  )


def slider(panel):
  return f'#panels .panel:nth-child({panel}) svg'


def test_a_panel_tells_its_values(opened, outcomes):
  assert opened.evaluate("document.getElementById('tip').hidden")
  opened.evaluate(f"document.querySelector('{slider(1)}').focus()")
  opened.press('Home')
  assert text(opened, '#tip').startswith('intact\n100%')
  opened.press('End')
  told = text(opened, '#tip').split('\n')
  assert told[0] == '3 heads cut (9.4%)' and len(told) == 6
  x = outcomes.of('top', cases.K)[0]
  right = 100 * outcomes.score_XE[x, ~outcomes.twin_E].mean()
  assert told[1].startswith(f'top {right:.3g}% (')
  assert told[2].startswith('layer-matched') and told[2].endswith('3 draws')
  value = 'document.activeElement.getAttribute("aria-valuenow")'
  assert opened.evaluate(value) == '3'
  opened.press('ArrowLeft')
  assert opened.evaluate(value) == '1'
  # The line moves in all panels.
  places = opened.evaluate(
    "[...document.querySelectorAll('.pointer')].map("
    "(n) => n.getAttribute('x1'))"
  )
  assert len(places) == 6 and len(set(places)) == 1
  opened.press('Escape')
  assert opened.evaluate("document.getElementById('tip').hidden")


def test_hovering_tells_values(opened):
  told = []
  for panel in (1, 4):
    opened.point(slider(panel))
    assert not opened.evaluate("document.getElementById('tip').hidden")
    told.append(text(opened, '#tip'))
  # The middle of a panel lies nearer to 1 head than to 3.
  assert all(tip.startswith('1 head cut (3.1%)\ntop ') for tip in told)
  assert told[0] != told[1]


def test_the_measure_is_switched(opened, outcomes):
  def seen():
    return opened.evaluate(
      f"[...document.querySelectorAll('{slider(1)} polyline')].map("
      "(n) => n.getAttribute('points'))"
    )

  def told():
    opened.evaluate(f"document.querySelector('{slider(1)}').focus()")
    opened.press('End')
    return text(opened, '#tip').split('\n')[1]

  row = next(
    r
    for r in effects.curve(outcomes)
    if (r.group, r.k, r.task) == ('top', cases.K, 'retrieval')
  )

  def draws_are_about_the_line():
    line, dots = opened.evaluate(
      "[n => n.querySelector('polyline').getAttribute('points'),"
      "n => [...n.querySelectorAll('.draw')].map("
      "(c) => Number(c.getAttribute('cy')))].map((f) => f("
      f"document.querySelector('{slider(1)} [data-group=layer_matched]')))"
    )
    last = float(line.split(',')[-1])
    assert np.mean(dots[-cases.N_DRAWS :]) == pytest.approx(last, abs=0.5)
    assert np.ptp(dots[-cases.N_DRAWS :]) > 0

  views, tips = [seen()], [told()]
  draws_are_about_the_line()
  for measure in ('delta', 'logprob'):
    choose(opened, 'measure', measure)
    views.append(seen())
    tips.append(told())
    draws_are_about_the_line()
  assert len({str(view) for view in views}) == 3
  assert tips[1].startswith(f'top −{abs(100 * row.delta.value):.1f} points (−')
  assert tips[2] == f'top −{abs(row.logprob_delta):.3g} nats'
  # log p has no interval; draws are drawn all the same.
  points = (
    f"[...document.querySelectorAll('{slider(1)} .band')].map("
    "(n) => n.getAttribute('points')).join('')"
  )
  assert opened.evaluate(points) == ''
  assert count(opened, f'{slider(1)} .draw') == 2 * 2 * cases.N_DRAWS
  choose(opened, 'measure', 'accuracy')
  assert seen() == views[0] and opened.evaluate(points) != ''


def test_groups_can_be_hidden(opened):
  assert count(opened, f'{slider(1)} [data-group=median]') == 1
  opened.point('#legend [value=median]', click=True)
  assert count(opened, f'{slider(1)} [data-group=median]') == 0
  assert count(opened, f'{slider(1)} [data-group]') == 4
  opened.evaluate(f"document.querySelector('{slider(1)}').focus()")
  opened.press('End')
  assert 'median' not in text(opened, '#tip')
  opened.point('#legend [value=median]', click=True)
  assert count(opened, f'{slider(1)} [data-group=median]') == 1


def coloured(opened):
  """Heads that the map shows as cut."""
  return set(
    opened.evaluate(
      "[...document.querySelectorAll('#head-map .cell')].filter("
      "(n) => n.getAttribute('fill') !== 'var(--empty)').map("
      '(n) => Number(n.dataset.x))'
    )
  )


def ringed(opened):
  """Heads that have a ring."""
  return set(
    opened.evaluate(
      "(() => {const at = (n) => n.getAttribute('x') + ' ' +"
      "n.getAttribute('y'); const rings = new Set([...document."
      "querySelectorAll('#head-map g[pointer-events] rect')].map(at));"
      "return [...document.querySelectorAll('#head-map .cell')].filter("
      '(n) => rings.has(at(n))).map((n) => Number(n.dataset.x)); })()'
    )
  )


def test_the_map_shows_the_set_that_is_chosen(opened, outcomes):
  def flat(x):
    return {l * cases.N_HEADS + h for l, h in outcomes.groups[x].heads}

  (top,) = outcomes.of('top', cases.K)
  assert coloured(opened) == flat(top)
  assert text(opened, '#set-text') == str(outcomes.groups[top].heads)
  assert opened.evaluate("document.getElementById('draw-label').hidden")
  choose(opened, 'group', 'layer_matched')
  drawn = outcomes.of('layer_matched', cases.K)
  assert coloured(opened) == set.union(*map(flat, drawn))
  assert text(opened, '#set-text') == ''
  for draw, x in enumerate(drawn):
    choose(opened, 'draw', draw)
    assert coloured(opened) == flat(x)
    assert text(opened, '#set-text') == str(outcomes.groups[x].heads)
  assert ringed(opened) == flat(top)  # as ever
  choose(opened, 'count', 1)
  assert coloured(opened) == flat(outcomes.of('layer_matched', 1)[draw])
  assert ringed(opened) == flat(outcomes.of('top', 1)[0])
  choose(opened, 'group', 'bottom')
  assert coloured(opened) == {0}


def test_a_head_tells_where_it_was_cut(opened, outcomes):
  head = next(
    iter(outcomes.groups[outcomes.of('layer_matched', cases.K)[0]].heads)
  )
  opened.point(
    f'#head-map [data-x="{head[0] * cases.N_HEADS + head[1]}"]', click=True
  )
  assert text(opened, '#card h3') == f'Head {head[0]}-{head[1]}'
  cells = opened.evaluate(
    "[...document.querySelectorAll('#card tbody tr:last-child td')].map("
    '(n) => n.textContent)'
  )
  order = ['top', 'layer_matched', 'random', 'median', 'bottom']
  assert cells[0] == str(cases.K)
  for name, cell in zip(order, cells[1:], strict=True):
    sets = [outcomes.groups[x].heads for x in outcomes.of(name, cases.K)]
    n = sum(head in heads for heads in sets)
    assert cell == (f'{n}/{len(sets)}' if len(sets) > 1 else '✓') * bool(n)


def test_turned_answers_can_be_chosen(opened, outcomes):
  def shown():
    return opened.evaluate(
      "[...document.querySelectorAll('.flips tbody tr')].filter("
      '(n) => !n.hidden).map((n) => Number(n.lastChild.textContent.'
      "split('/').at(-1)))"
    )

  everything = shown()
  choose(opened, 'turned', 'twin')
  twins = shown()
  assert 0 < len(twins) < 50 and outcomes.twin_E[twins].all()
  choose(opened, 'turned', 'lookup')
  assert sorted(twins + shown()) == sorted(everything)
  choose(opened, 'turned', 'gained')
  assert shown() == []
  choose(opened, 'turned', '')
  assert shown() == everything
  assert opened.evaluate('typeof window.hacked') == 'undefined'
  assert count(opened, '.flips td:first-child *') == 0


def test_whatever_takes_focus_has_a_name(opened):
  nameless = opened.evaluate(
    "[...document.querySelectorAll('select, input, svg[role], "
    "[tabindex=\"0\"]')].filter((n) => !(n.getAttribute('aria-label') || "
    "n.getAttribute('aria-labelledby') || [...(n.labels || [])].some((l) => "
    '[...l.childNodes].some((c) => !c.contains(n) && c.textContent.trim()))))'
    '.length'
  )
  assert nameless == 0
