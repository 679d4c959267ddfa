"""`retrieve` on the planted model: its heads find the page and the cell."""

import csv
import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from corejax import errors
from corejax import recall
from corejax import regions
from corejax.data import example as example_lib
from corejax.data import layout_tables
from corejax.data import layouts as layouts_lib
from corejax.data import mmdocir
from corejax.data import sources
from corejax.experiments import cli
from corejax.experiments import config as config_lib
from corejax.experiments import retrieve
from corejax.experiments import retrieve_run
from corejax.experiments import retrieve_table
from corejax.models import registry
from corejax.models.organisms import planted
from corejax.stats import accuracy
from helpers import mmdocir_tables
from helpers import pdfs

PLANTED = planted.known_heads(0).tasks['page']
# Two scenes, two questions of each task: clusters, so that intervals are.
SMALL = ['--checkpoint=planted', '--tasks=page', '--limit=8', '--draws=3']


def _config(out, *more, heads=str(PLANTED)):
  line = ['retrieve', *SMALL, f'--heads={heads}', f'--out={out}', *more]
  return config_lib.parse(retrieve.Config, line)


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  out = tmp_path_factory.mktemp('retrieve') / 'run'
  return retrieve.run(_config(out, '--layouts'))


def _rows(result, name, what='pages', whole=True):
  return [
    r
    for r in result.rows
    if (r.name, r.what) == (name, what) and r.whole == whole
  ]


def _mean(result, name, what='pages'):
  """Recall at the smallest k, over all draws."""
  return _rows(result, name, what)[0].micro.value


def test_the_planted_heads_find_the_page(ran):
  assert (ran.questions, ran.rejected) == (8, [])
  assert _mean(ran, 'given') == 1
  assert _mean(ran, retrieve_table.ANY_ORDER) == 1 / 8
  for name in ('random', 'layer_matched'):
    assert len(_rows(ran, name, whole=False)) == 3 * 3
    assert _mean(ran, name) < 0.6
  heads = {r.name: r.heads for r in ran.rows}
  assert (heads['given'], heads['all heads'], heads['random']) == (2, 32, 2)


def test_the_planted_heads_find_the_cell(ran):
  """One of 8 x 16: no page's cells are larger, so that size tells nothing."""
  levels = [row.micro for row in _rows(ran, 'given', 'layouts')]
  assert [level.value for level in levels] == [1, 1, 1]
  # Two scenes: an interval, and one that does not collapse at 1.
  assert 0 < levels[0].low < levels[0].high == 1
  for name in ('random', 'layer_matched'):
    assert _mean(ran, name, 'layouts') < 0.3
  expected = [k / 128 for k in recall.LAYOUT_KS]
  found = _rows(ran, retrieve_table.ANY_ORDER, 'layouts')
  assert [row.micro.value for row in found] == pytest.approx(expected)
  assert all(np.isnan(row.micro.low) for row in found)
  assert not _rows(ran, retrieve_table.LARGEST, 'layouts')


def test_what_is_written(ran):
  with open(ran.out / 'retrieval.csv') as f:
    rows = list(csv.DictReader(f))
  # given, all heads, two controls of 3 draws and their means, any order
  assert len(rows) == 2 * 3 * (1 + 1 + 2 * (3 + 1) + 1)
  assert rows[0] | {'low': ''} == {
    'what': 'pages',
    'group': 'given',
    'seed': '',
    'heads': '2',
    'k': '1',
    'micro': '1',
    'low': '',
    'high': '1',
    'macro': '1',
    'beyond_one': '1',
  }
  assert {row['seed'] for row in rows} == {'', '0', '1', '2', 'all'}
  lines = (ran.out / 'questions.jsonl').read_text().splitlines()
  questions = [json.loads(line) for line in lines]
  assert [q['n_pages'] for q in questions] == [8] * 8
  for question in questions:
    first = question['given_heads_first']
    assert first['pages'][0] == question['evidence'][0]
    assert first['layouts'][0] == question['evidence_layouts'][0]
  record = json.loads((ran.out / 'run.json').read_text())
  assert record['state'] == 'done'
  assert record['findings']['layouts given@1'][0] == 1
  assert (ran.out / 'retrieval.png').read_bytes().startswith(b'\x89PNG')
  page = (ran.out / 'report.html').read_text()
  assert 'layer-matched' in page and 'recall of layouts' in page
  assert 'http' not in page.replace('http-equiv', '').replace('w3.org', '')


def test_other_heads_reuse_what_was_measured(ran, tmp_path, capsys):
  out = tmp_path / 'copy'
  shutil.copytree(ran.out, out)
  before = {p: p.stat().st_mtime_ns for p in (out / 'scores').iterdir()}
  bad = planted.known_heads(0).decoys['sink']
  more = ['--layouts', '--layout_score=density']
  again = retrieve.run(_config(out, *more, heads=str(bad)))
  assert {p: p.stat().st_mtime_ns for p in before} == before
  assert _mean(again, 'given') < 1
  said = capsys.readouterr().out
  assert 'page recall of 8 questions in 2 clusters' in said
  assert 'layout recall of 8 questions in 2 clusters at 1, 5, 10, by d' in said
  with pytest.raises(errors.UserError, match='holds another run: .*pages'):
    retrieve.run(_config(out, '--layouts', '--pages=3'))
  with pytest.raises(errors.UserError, match='holds another run: layouts was'):
    retrieve.run(_config(out))


def test_the_last_chunk_may_be_smaller(tmp_path):
  config = _config(tmp_path, '--pages=3', '--limit=2', '--layouts')
  result = retrieve.run(config)
  assert _mean(result, 'given') == _mean(result, 'given', 'layouts') == 1


def test_chunks():
  assert retrieve_run.chunks(8, 3) == [range(3), range(3, 6), range(6, 8)]
  assert retrieve_run.chunks(1, 4) == [range(1)]


def test_pages_are_told_apart_by_region(tmp_path):
  planted.write(tmp_path)
  processor = registry.get('llava_flax').load_processor(tmp_path)
  example = sources.load('scenes_pages', pages=8)[0]
  asked = retrieve_run.ask(processor, example, range(2, 5))
  annotated = asked.annotated
  assert asked.n_pages == 3 and not len(asked.encoded.answer_A)
  at_pages = annotated.region_T[annotated.visual_I]
  assert np.unique(at_pages).tolist() == [0, 1, 2]
  assert len(set(np.bincount(at_pages).tolist())) == 1
  rest = np.delete(annotated.region_T, annotated.visual_I)
  assert not set(rest.tolist()) & set(regions.VISUAL)
  assert asked.tokens_JI.shape == (0, len(asked.encoded.visual_I))
  # The same as when these pages are all there is.
  alone = dataclasses.replace(
    example, media=example.media[2:5], evidence=(), distractors=()
  )
  encoded = processor.encode(alone)
  assert (
    encoded.tokens_T[: encoded.prompt_len] == asked.encoded.tokens_T
  ).all()


def test_layouts_of_other_pages_are_not_asked_about(tmp_path):
  planted.write(tmp_path)
  processor = registry.get('llava_flax').load_processor(tmp_path)
  source = sources.load('scenes_pages', pages=8)
  boxes = layouts_lib.of(source, 0).boxes
  asked = retrieve_run.ask(processor, source[0], range(2, 5), boxes)
  assert asked.layout_J.tolist() == list(range(2 * 16, 5 * 16))
  layout = asked.encoded.layout
  for row, j in enumerate(asked.layout_J):
    moved = dataclasses.replace(boxes[j], media=boxes[j].media - 2)
    assert (asked.tokens_JI[row] == layout.tokens([moved])).all()
  # Cells are tokens here: each is in one layout.
  assert (asked.tokens_JI.sum(0) == 1).all()


def test_a_larger_layout_has_more_mass_and_less_density():
  mass_J, tokens_J = np.array([0.3, 0.4, 0.0]), np.array([1, 4, 0])
  score = retrieve_table.layout_scores
  assert recall.first(score(mass_J, tokens_J, 'mass'), 3) == [1, 0, 2]
  assert recall.first(score(mass_J, tokens_J, 'density'), 3) == [0, 1, 2]
  # Cropped away: last, also behind what is looked at by nobody.
  mass_J, tokens_J = np.zeros(3), np.array([0, 2, 2])
  for name in ('mass', 'density'):
    assert recall.first(score(mass_J, tokens_J, name), 3) == [1, 2, 0]


def test_rows_by_hand():
  """Two documents, three questions; a control drawn twice; found twice."""
  L = recall.Layout
  evidence = [L(0, (0, 0, 10, 10))]
  layouts = [L(0, (0, 0, 10, 10)), L(0, (0, 0, 10, 5)), L(1, (0, 0, 10, 10))]
  question = retrieve_table.Ranked([0], 4, evidence, layouts)
  score_J = np.array([0.5, 0.4, 0.1])
  shares = retrieve_table.layout_shares(question, score_J)
  assert shares == [1, 1.5, 1.5]
  assert retrieve_table.page_shares(question, np.array([1, 2, 0, 0.5])) == [
    *(0, 1, 1),
  ]
  any_order = retrieve_table.any_order([question], 'layouts')
  # 150 of 100 are shared in all: a third of it with one of three.
  assert any_order.share_KE[:, 0] == pytest.approx([0.5, 1.5, 1.5])
  largest = retrieve_table.largest_first([question])
  assert largest.share_KE[:, 0].tolist() == [1, 1.5, 1.5]
  assert retrieve_table.sizes_differ([question])
  clusters, domains = ['a', 'a', 'b'], ['x', 'x', 'y']
  found = retrieve_table.Found('layouts', 'given', None, 2, np.ones((3, 3)))
  drawn = [
    retrieve_table.Found('layouts', name, seed, 2, np.full((3, 3), value))
    for name in ('random', 'layer_matched')
    for seed, value in enumerate((0.0, 1.5))
  ]
  every = dataclasses.replace(found, name='all heads')
  founds = [found, every, *drawn]
  table = retrieve_table.rows(founds, clusters, domains)
  (row,) = [r for r in table if (r.name, r.k, r.seed) == ('random', 1, 'all')]
  assert (row.micro.value, row.macro, row.beyond_one) == (0.5, 0.5, 0.75)
  assert row.micro.low == 0 and row.micro.high == 1  # draws that disagree
  (alone,) = [r for r in table if (r.name, r.k) == ('given', 1)]
  assert alone.micro == accuracy.wilson(np.ones(3), clusters)
  against = retrieve_table.compared(founds, clusters, 'layouts', 1)
  assert {k: v.value for k, v in against.items()} == {
    'random': 0.5,
    'layer_matched': 0.5,
    'all heads': 0,
  }
  lines = retrieve_table.summary(table, founds, clusters, 2, 'mass')
  assert lines[0].startswith('layout recall of 3 questions in 2 clusters')
  assert lines[-1].startswith('so: no difference is shown')


_SIZE = [200.0, 300.0]


@pytest.fixture(scope='module')
def documents(tmp_path_factory):
  """MMDocIR's invented annotations, PDF and layouts, some of them bad."""
  path = tmp_path_factory.mktemp('documents')
  name = mmdocir.ANNOTATIONS
  fixtures = pathlib.Path(__file__).parents[1] / 'fixtures'
  shutil.copy(fixtures / 'mmdocir' / name, path)
  drawn = [[(pdfs.RED, (20, 30, 80, 90))] if n == 1 else [] for n in range(6)]
  pdfs.write(path / 'invented.pdf', drawn)
  rows = [
    (page, corners, _SIZE)
    for page in range(6)
    for corners in ([20, 30, 80, 90], [0, 100, 200, 300], [120, 10, 121, 11])
  ]
  bad = [(9, [1, 1, 2, 2], _SIZE), (0, [5, 5, 1, 1], _SIZE)]
  mmdocir_tables.layouts(
    path / layout_tables.FILE, {'invented.pdf': [*rows, *bad]}
  )
  return path


def test_documents_with_layouts(documents, tmp_path, capsys):
  line = ['--data=mmdocir', f'--data_dir={documents}', '--tasks=figure']
  more = [*line, '--layouts', '--max_bad=1', '--pages=4']
  result = retrieve.run(_config(tmp_path / 'run', *more))
  assert result is not None
  said = capsys.readouterr().out
  lines = (result.out / 'questions.jsonl').read_text().splitlines()
  questions = [json.loads(line) for line in lines]
  assert result.questions + len(result.rejected) == 2 + 3
  assert [q['n_layouts'] for q in questions] == [18] * len(questions)
  assert questions[0]['layouts_left_out'] == {'bad record': 1, 'bad box': 1}
  assert questions[0]['evidence_layouts'] == [[1, *(20, 30, 80, 90)]]
  assert 'left out, of all documents asked about: 1 bad box, 1 bad' in said
  # By size alone: the six large ones first, which no question is about.
  (first, *_) = _rows(result, retrieve_table.LARGEST, 'layouts')
  assert first.micro.value == 0
  with np.load(next((result.out / 'scores').iterdir())) as f:
    mass, tokens = f['layout_mass'], f['layout_tokens']
    assert f['layout_place'].shape == (18 * len(questions), 5)
  assert mass.shape == (18 * len(questions), 4, 8)
  assert tokens.reshape(-1, 3).min(0).tolist()[1] > 1
  assert (tokens.reshape(-1, 3)[:, 2] <= 1).all()
  assert (mass >= 0).all() and mass.max() <= 1


def test_layouts_that_are_not_there(documents, tmp_path, capsys):
  root = tmp_path / 'root'
  shutil.copytree(documents, root)
  line = ['retrieve', *SMALL, f'--heads={PLANTED}', f'--out={tmp_path / "x"}']
  line += ['--data=mmdocir', f'--data_dir={root}', '--layouts', '--tasks=']
  for damage, message in (
    (lambda path: path.write_bytes(b'PAR1'), 'no table of layouts'),
    (lambda path: path.unlink(), 'lacks 1. MMDocIR_layouts.parquet'),
  ):
    damage(root / layout_tables.FILE)
    assert retrieve.cli(line) == cli.EX_USER
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and message in err


def test_questions_without_evidence_are_rejected(tmp_path, monkeypatch):
  load = sources.load

  class Bare:
    def __init__(self, source):
      self._source = source

    def __getattr__(self, name):
      return getattr(self._source, name)

    def __len__(self):
      return len(self._source)

    def __getitem__(self, index) -> example_lib.Example:
      example = self._source[index]
      return dataclasses.replace(example, evidence=())

  monkeypatch.setattr(sources, 'load', lambda *a, **k: Bare(load(*a, **k)))
  with pytest.raises(errors.UserError, match='8 no evidence'):
    retrieve.run(_config(tmp_path))
  with pytest.raises(errors.UserError, match='none of 8 questions'):
    retrieve.run(_config(tmp_path, '--max_bad=1'))


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--heads='], '--heads: which heads'),
    (['--heads=9-9'], '9-9|layer 9'),
    (['--pages=7'], '--pages=7: at most 6'),
    (['--draws=0'], '--draws=0'),
    (['--batch_size=0'], '--batch_size=0'),
    (['--heads=@nowhere'], 'nowhere'),
    (['--layout_score=size'], '--layout_score=size: not one of mass, density'),
    (['--video_as=clip'], '--video_as=clip: frames are ranked'),
  ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, flags, message):
  line = ['retrieve', *SMALL, f'--heads={PLANTED}', f'--out={tmp_path / "x"}']
  assert retrieve.cli([*line, *flags]) == cli.EX_USER
  err = capsys.readouterr().err
  assert err.count('\n') == 1
  assert re.search(message, err)


def test_dry_run_writes_nothing(tmp_path, capsys):
  assert retrieve.run(_config(tmp_path / 'run', '--dry_run')) is None
  assert not (tmp_path / 'run').exists()
  assert '2 heads of 4 x 8 rank the pages of' in capsys.readouterr().out
