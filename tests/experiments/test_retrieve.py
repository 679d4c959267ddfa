"""`retrieve` on the planted model: its known heads find the page."""

import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from corejax import errors
from corejax import regions
from corejax.data import example as example_lib
from corejax.data import sources
from corejax.experiments import cli
from corejax.experiments import config as config_lib
from corejax.experiments import retrieve
from corejax.models import registry
from corejax.models.organisms import planted

PLANTED = planted.known_heads(0).tasks['page']
SMALL = ['--checkpoint=planted', '--limit=8', '--draws=3', '--batch_size=4']


def _config(out, *more, heads=str(PLANTED)):
  line = ['retrieve', *SMALL, f'--heads={heads}', f'--out={out}', *more]
  return config_lib.parse(retrieve.Config, line)


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  return retrieve.run(_config(tmp_path_factory.mktemp('retrieve') / 'run'))


def _mean(result, name, k=1):
  return np.mean([r.recall[k]['micro'] for r in result.rows if r.name == name])


def test_the_planted_heads_find_the_page(ran):
  assert (ran.questions, ran.rejected) == (8, [])
  assert _mean(ran, 'given') == 1
  assert _mean(ran, retrieve.ANY_ORDER) == 1 / 8
  for name in ('random', 'layer_matched'):
    assert len([r for r in ran.rows if r.name == name]) == 3
    assert _mean(ran, name) < 0.6
  assert [r.heads for r in ran.rows[:2]] == [2, 32]


def test_what_is_written(ran):
  with open(ran.out / 'retrieval.csv') as f:
    rows = list(csv.DictReader(f))
  assert len(rows) == 3 * (1 + 1 + 2 * 3 + 1)
  assert rows[0] == {
    'group': 'given',
    'seed': '',
    'heads': '2',
    'k': '1',
    'micro': '1.0',
    'macro': '1.0',
  }
  lines = (ran.out / 'questions.jsonl').read_text().splitlines()
  assert [json.loads(line)['n_pages'] for line in lines] == [8] * 8
  record = json.loads((ran.out / 'run.json').read_text())
  assert record['state'] == 'done' and record['findings']['given'] == 1


def test_other_heads_reuse_what_was_measured(ran, tmp_path, capsys):
  out = tmp_path / 'copy'
  shutil.copytree(ran.out, out)
  before = {p: p.stat().st_mtime_ns for p in (out / 'scores').iterdir()}
  bad = planted.known_heads(0).decoys['sink']
  again = retrieve.run(_config(out, heads=str(bad)))
  assert {p: p.stat().st_mtime_ns for p in before} == before
  assert _mean(again, 'given') < 1
  assert 'page recall of 8 questions' in capsys.readouterr().out
  with pytest.raises(errors.UserError, match='holds another run: .*pages'):
    retrieve.run(_config(out, '--pages=3'))


def test_the_last_chunk_may_be_smaller(tmp_path):
  result = retrieve.run(_config(tmp_path, '--pages=3', '--limit=2'))
  assert _mean(result, 'given') == 1


def test_chunks():
  assert retrieve.chunks(8, 3) == [range(3), range(3, 6), range(6, 8)]
  assert retrieve.chunks(1, 4) == [range(1)]


def test_pages_are_told_apart_by_region(tmp_path):
  planted.write(tmp_path)
  processor = registry.get('llava_flax').load_processor(tmp_path)
  example = sources.load('scenes_pages', pages=8)[0]
  asked = retrieve.ask(processor, example, range(2, 5))
  annotated = asked.annotated
  assert asked.n_pages == 3 and not len(asked.encoded.answer_A)
  at_pages = annotated.region_T[annotated.visual_I]
  assert np.unique(at_pages).tolist() == [0, 1, 2]
  assert len(set(np.bincount(at_pages).tolist())) == 1
  rest = np.delete(annotated.region_T, annotated.visual_I)
  assert not set(rest.tolist()) & set(regions.VISUAL)
  # The same as when these pages are all there is.
  alone = dataclasses.replace(
    example, media=example.media[2:5], evidence=(), distractors=()
  )
  encoded = processor.encode(alone)
  assert (
    encoded.tokens_T[: encoded.prompt_len] == asked.encoded.tokens_T
  ).all()


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
  assert '2 heads of 4 x 8 rank the pages' in capsys.readouterr().out
