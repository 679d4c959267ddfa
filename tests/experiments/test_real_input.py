"""Real input: a Hugging Face folder and annotated PDFs, from end to end.

Everything goes through `rank` and `inspect` as a user's command does. The
folders are tiny and random, the documents invented (tests/fixtures/mmdocir and
`second.pdf` here); the masses are those of transformers.
"""

import csv
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from corejax import errors
from corejax import regions
from corejax.data import mmdocir
from corejax.experiments import cli
from corejax.experiments import inspect as inspect_lib
from corejax.experiments import rank
from corejax.models.organisms import planted
from helpers import pdfs

Reason = errors.Reason

FIXTURE = (
  pathlib.Path(__file__).parents[1] / 'fixtures/mmdocir' / mmdocir.ANNOTATIONS
)
# Records 22 and 23: one rectangle a page, large enough to cover whole tokens.
RECTANGLES = [(15, 60, 140, 175), (60, 120, 190, 240)]
SECOND = {
  'doc_name': 'second.pdf',
  'domain': 'Brochure',
  'page_indices': [31, 32],
  'questions': [
    {
      'Q': f'What is red on page {page + 1}?',
      'A': '8',
      'page_id': [page],
      'type': "['Chart']",
      'layout_mapping': [
        {'page': page, 'page_size': [200.0, 300.0], 'bbox': list(corners)}
      ],
    }
    for page, corners in enumerate(RECTANGLES)
  ],
}
TOTAL = 24
REJECTED = {
  3: Reason.BAD_BOX,
  4: Reason.BAD_BOX,
  5: Reason.BAD_BOX,
  6: Reason.BAD_RECORD,
  7: Reason.EVIDENCE_TOO_LONG,
  8: Reason.BAD_ANSWER,
  9: Reason.NO_EVIDENCE,
  10: Reason.BAD_RECORD,
  11: Reason.BAD_BOX,
  14: Reason.MISSING_MEDIA,
  15: Reason.BAD_MEDIA,
  16: Reason.BAD_RECORD,
  17: Reason.BAD_RECORD,
  18: Reason.MEDIA_TOO_LARGE,
  19: Reason.BAD_RECORD,
  20: Reason.BAD_RECORD,
  21: Reason.BAD_RECORD,
}
# The top of its page, which a square cut from the middle does not hold.
CROPPED = {1: Reason.EVIDENCE_CROPPED}
QUICK = dict(data='mmdocir', bootstrap=100, permutations=100)


@pytest.fixture(scope='module')
def documents(tmp_path_factory):
  """--data_dir: annotations and PDFs that fit them, or do not."""
  path = tmp_path_factory.mktemp('documents')
  text = FIXTURE.read_text().rstrip('\n')
  (path / mmdocir.ANNOTATIONS).write_text(f'{text}\n{json.dumps(SECOND)}\n')
  pdfs.write(path / 'invented.pdf', [[]] * 6)
  pdfs.write(path / 'second.pdf', [[(pdfs.RED, r)] for r in RECTANGLES])
  pdfs.write(path / 'shorter.pdf', [[]] * 3)
  pdfs.write(path / 'wider.pdf', [[]] * 2, size=(250, 300))
  pdfs.write(path / 'huge.pdf', [[]], size=(14400, 14400))
  (path / 'broken.pdf').write_bytes(b'%PDF-1.4\nno more')
  return path


@pytest.fixture(scope='module')
def tiny():
  """helpers.tiny_checkpoint, which writes folders with torch."""
  pytest.importorskip('torch', reason='tiny checkpoints are made with torch')
  from helpers import tiny_checkpoint

  return tiny_checkpoint


@dataclasses.dataclass(frozen=True)
class Case:
  """A ranking of one folder; `shared` are the settings inspect gets too."""

  shared: dict[str, Any]
  result: rank.Result


@pytest.fixture(scope='module')
def folders(tiny, tmp_path_factory):
  """The plainest folder, and one that differs in everything."""
  import torch

  path = tmp_path_factory.mktemp('checkpoints')
  parts = tiny.write(
    path / 'parts',
    tower='siglip',
    text='qwen2',
    n_kv_heads=2,
    seed=1,
    dtype=torch.bfloat16,
    max_shard_size='40KB',
  )
  assert len(list(parts.glob('*.safetensors'))) > 2
  return {'whole': tiny.write(path / 'whole'), 'parts': parts}


@pytest.fixture(
  scope='module',
  params=[('whole', 'checkpoint'), ('whole', 'pad'), ('parts', 'pad')],
  ids='-'.join,
)
def case(request, folders, documents, tmp_path_factory):
  name, policy = request.param
  shared = dict(
    checkpoint=str(folders[name]),
    image_policy=policy,
    data_dir=str(documents),
    max_bad=1.0,
    **{'data': QUICK['data']},
  )
  out = tmp_path_factory.mktemp('rank') / 'run'
  return Case(shared, rank.run(rank.Config(out=str(out), **shared | QUICK)))


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_record_is_measured_or_rejected_for_its_reason(case):
  out = case.result.out
  rejected = read_lines(out / 'rejected.jsonl')
  expected = dict(REJECTED)
  if case.shared['image_policy'] == 'checkpoint':
    expected |= CROPPED
  assert {r['index']: r['reason'] for r in rejected} == expected
  assert all(r['id'] == f'mmdocir/test/{r["index"]}' for r in rejected)
  assert all(r['detail'] for r in rejected)
  examples = read_lines(out / 'examples.jsonl')
  good = sorted(set(range(TOTAL)) - set(expected))
  assert [row['index'] for row in examples] == good
  assert {row['cluster'] for row in examples} == {'invented.pdf', 'second.pdf'}
  record = json.loads((out / 'run.json').read_text())
  assert record['examples'] == len(good)
  assert sum(record['rejected'].values()) == len(expected)


def test_the_files_are_there_and_agree(case):
  out, result = case.result.out, case.result
  for name in ('heatmap.png', 'heads.csv', 'arrays.npz', 'run.json'):
    assert (out / name).stat().st_size
  with np.load(out / 'arrays.npz') as f:
    mass, ids = f['mass'], list(f['example_ids'])
  assert mass.shape == (len(ids), 3, 4, 3, len(regions.REGIONS))
  assert ids == [row['id'] for row in read_lines(out / 'examples.jsonl')]
  # Two clusters: each counts once, however many questions it has.
  evidence = np.float64(mass[:, :, :, 0, regions.EVIDENCE])
  second = np.array(['second.pdf' in name for name in ids])
  ram = (evidence[second].mean(0) + evidence[~second].mean(0)) / 2
  with open(out / 'heads.csv') as f:
    rows = list(csv.DictReader(f))
  assert len(rows) == 12
  for row in rows:
    where = int(row['layer']), int(row['head'])
    assert float(row['ram']) == pytest.approx(ram[where], abs=1e-9)
  assert result.ranking.heads[0] == (
    int(rows[0]['layer']),
    int(rows[0]['head']),
  )


def inspect(case, index, out):
  config = inspect_lib.Config(example=str(index), out=str(out), **case.shared)
  result = inspect_lib.run(config)
  assert result.out == out
  with np.load(out / 'inputs.npz') as f:
    arrays = dict(f)
  pictures = sorted(path.name for path in out.glob('*.png'))
  assert pictures == [
    f'media-{m}.png' for m in range(len(result.example.media))
  ]
  assert len(arrays['pixel_values']) == len(pictures)
  return result, arrays


def test_masses_are_those_of_transformers(case, tiny, tmp_path):
  model = tiny.load(case.shared['checkpoint'])
  ids = list(case.result.scores.ids)
  for index in (2, 22):
    result, arrays = inspect(case, index, tmp_path / str(index))
    ours = case.result.scores.mass_ELNQR[ids.index(result.example.id)]
    theirs = tiny.masses(model, arrays)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    # A check that could not tell the heads apart would prove nothing.
    assert np.ptp(theirs[..., regions.EVIDENCE]) > 0.01


@pytest.mark.parametrize('page', [0, 1])
def test_evidence_tokens_are_those_that_show_the_rectangle(
  case, page, tmp_path
):
  """Read off the pixels that the tower gets, not off any box."""
  result, arrays = inspect(case, 22 + page, tmp_path)
  assert [box.media for box in result.example.evidence] == [page]
  mine = arrays['visual_media'] == page
  green = arrays['pixel_values'][page, 1]
  # White has full green, red has none; what pads a picture is half way.
  red = green < green.min() + 0.25 * np.ptp(green)
  share = red.reshape(6, 56, 6, 56).mean((1, 3)).reshape(-1)
  share = share[len(share) - mine.sum() :]  # SigLIP's first patch is dropped
  clear = abs(share - 0.5) > 0.05
  region = arrays['region'][arrays['visual_index']]
  found = region[mine] == regions.EVIDENCE
  np.testing.assert_array_equal(found[clear], share[clear] > 0.5)
  assert found.sum() >= 4 and (~found & (share > 0)).any()
  assert not (region[~mine] == regions.EVIDENCE).any()


def test_tasks_filter(folders, documents, tmp_path):
  settings = dict(
    checkpoint=str(folders['whole']), data_dir=str(documents), max_bad=1.0
  )
  result = rank.run(
    rank.Config(out=str(tmp_path), tasks='figure, chart', **settings | QUICK)
  )
  rows = read_lines(result.out / 'examples.jsonl')
  assert [row['task'] for row in rows] == ['figure', 'figure', 'chart', 'chart']
  # The lines whose task nobody can tell are told of, not dropped.
  assert [r['reason'] for r in result.rejected] == [Reason.BAD_RECORD] * 3


@pytest.mark.parametrize('module', [rank, inspect_lib])
def test_missing_annotations_are_one_line(module, tmp_path, capsys):
  line = ['x', '--data=mmdocir', f'--data_dir={tmp_path}']
  assert module.cli([*line, f'--out={tmp_path / "out"}']) == cli.EX_USER
  err = capsys.readouterr().err
  assert err.count('\n') == 1
  for words in (f'--data_dir={tmp_path}', mmdocir.ANNOTATIONS, 'github.com'):
    assert words in err
  assert not (tmp_path / 'out').exists()


def test_an_unknown_task_is_one_line(documents, tmp_path, capsys):
  line = ['x', '--data=mmdocir', f'--data_dir={documents}', '--tasks=dance']
  assert rank.cli([*line, f'--out={tmp_path}']) == cli.EX_USER
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and '--tasks=dance' in err and 'figure' in err


def test_a_rejected_example_is_told_by_inspect(documents, tmp_path, capsys):
  line = ['x', '--data=mmdocir', f'--data_dir={documents}', '--example=3']
  assert inspect_lib.cli([*line, f'--out={tmp_path}']) == cli.EX_USER
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'empty or inverted' in err


@pytest.fixture(scope='module')
def planted_folder(tmp_path_factory):
  """An HF folder that needs no torch, with its known heads."""
  folder = tmp_path_factory.mktemp('planted')
  return folder, planted.write(folder, seed=3)


def test_a_given_folder_is_the_one_that_is_ranked(planted_folder, tmp_path):
  folder, known = planted_folder
  assert known.planted != planted.known_heads(0).planted
  result = rank.run(
    rank.Config(
      checkpoint=str(folder),
      out=str(tmp_path),
      limit=24,
      bootstrap=100,
      permutations=100,
    )
  )
  best = result.ranking.heads[: len(known.planted)]
  assert set(best) == set(known.planted)
  record = json.loads((tmp_path / 'run.json').read_text())
  assert record['embedded'] == ''
  assert record['flags']['checkpoint'] == str(folder)


def test_too_many_rejected_end_the_run_and_it_can_go_on(
  planted_folder, documents, tmp_path, capsys
):
  line = [
    'rank',
    f'--checkpoint={planted_folder[0]}',
    f'--data_dir={documents}',
    f'--out={tmp_path}',
    '--pages=2',
    *(f'--{name}={value}' for name, value in QUICK.items()),
  ]
  assert rank.cli(line) == cli.EX_USER
  err = capsys.readouterr().err
  told = re.search(r'(\d+) of (\d+) records rejected', err)
  assert err.count('\n') == 1 and told and '--max_bad' in err
  assert len(read_lines(tmp_path / 'rejected.jsonl')) == int(told[1])
  assert not (tmp_path / 'heads.csv').exists()
  assert rank.cli([*line, '--max_bad=1']) == 0
  reasons = {
    r['index']: r['reason'] for r in read_lines(tmp_path / 'rejected.jsonl')
  }
  # It has few words: of the good records' answers only '8'.
  wordless = dict.fromkeys([1, 2, 12, 13], Reason.BAD_ANSWER)
  assert reasons == REJECTED | wordless
  examples = read_lines(tmp_path / 'examples.jsonl')
  assert [row['index'] for row in examples] == [0, 22, 23]
  assert (tmp_path / 'heads.csv').exists()


def test_real_excerpts(samples, folders, tmp_path):
  """The first documents at hand; see the reader's test for all of them."""
  limit = 8
  result = rank.run(
    rank.Config(
      checkpoint=str(folders['whole']),
      image_policy='pad',
      data_dir=str(samples),
      out=str(tmp_path),
      limit=limit,
      dpi=36,
      max_bad=1.0,
      **QUICK,
    )
  )
  rows = read_lines(tmp_path / 'examples.jsonl')
  rejected = read_lines(tmp_path / 'rejected.jsonl')
  assert len(rows) == len(result.scores) >= limit / 2
  indices = [r['index'] for r in (*rows, *rejected)]
  assert sorted(indices) == list(range(limit))
  assert all(0 < r['evidence_tokens'] <= r['visual_tokens'] for r in rows)
  assert {r['reason'] for r in rejected} <= {
    Reason.MISSING_MEDIA,
    Reason.EVIDENCE_TOO_LONG,
    Reason.TOO_LONG,
  }
