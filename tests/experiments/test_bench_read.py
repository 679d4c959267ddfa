"""bench_read: the documents that it makes, a small run, the refusals."""

import json
import pathlib

import pytest

from corejax import errors
from corejax.data import mmdocir
from corejax.experiments import bench_documents
from corejax.experiments import bench_read
from corejax.experiments import cli
from corejax.experiments import config as config_lib
from helpers import pdfs


@pytest.mark.parametrize('pages, shown', [(8, 4), (45, 4), (20, 3)])
def test_every_page_is_shown_once(tmp_path, pages, shown):
  count = bench_documents.write(tmp_path, pages, shown)
  source = mmdocir.MMDocIR(tmp_path, pages=shown, dpi=18)
  assert len(source) == count
  seen = []
  for index in range(count):
    example = source[index]
    document, number = example.cluster, example.meta['pages']
    seen += [(document, page) for page in number]
    assert {box.media for box in example.evidence} <= set(range(shown))
  # The last window of a document may be filled up with pages shown before.
  assert len(set(seen)) == pages if not pages % 20 else len(set(seen)) >= pages


def test_invented_pages_are_written_on(tmp_path):
  bench_documents.write(tmp_path, 2, 2)
  example = mmdocir.MMDocIR(tmp_path, pages=2, dpi=72)[0]
  assert len(set(example.media)) == 2
  assert min(len(page) for page in example.media) > 10_000  # lines of words


def test_real_documents_are_linked(tmp_path):
  real, made = _folder(tmp_path / 'real'), _folder(tmp_path / 'made')
  pdfs.write(real / 'a.pdf', [[]] * 3)
  pdfs.write(real / 'c.pdf', [[]] * 9, size=(400, 500))
  (real / 'b.pdf').write_bytes(b'%PDF-1.4\nno more')  # left out
  assert bench_documents.write(made, 7, 4, str(real)) == 2
  lines = (made / mmdocir.ANNOTATIONS).read_text().splitlines()
  assert [json.loads(line)['doc_name'] for line in lines] == ['a.pdf', 'c.pdf']
  source = mmdocir.MMDocIR(made, pages=4, dpi=18)
  assert [len(source[n].media) for n in range(2)] == [3, 4]
  with pytest.raises(errors.UserError, match='have 12 pages, asked for are 13'):
    bench_documents.write(_folder(tmp_path / 'more'), 13, 4, str(real))
  with pytest.raises(errors.UserError, match='no folder with PDFs'):
    bench_documents.write(made, 13, 4, str(tmp_path / 'nowhere'))


def _folder(path):
  path.mkdir()
  return path


def test_a_run_prints_and_writes(tmp_path, capsys):
  out = tmp_path / 'run'
  argv = ['bench_read', '--total_pages=8', '--rounds=1', '--dpi=36']
  argv += ['--checkpoint=planted', f'--out={out}']
  assert bench_read.cli(argv) == 0
  said = capsys.readouterr().out
  for text in (
    'pages of invented at 36 dpi, 4 an example; 1 rounds',
    '| reading and layout, one thread | ',
    '| device, all read before | ',
    '| both, threads ahead (as rank) | ',
    'the device waited ',
    '(2 examples, 8 pages)',
  ):
    assert text in said
  lines = (out / 'samples.csv').read_text().splitlines()
  assert [line.split(',')[0] for line in lines] == [
    *('what', 'read', 'device', 'rank'),
    *bench_read.STEPS,
  ]
  values = {line.split(',')[0]: float(line.split(',')[2]) for line in lines[1:]}
  # The parts of reading are all of it.
  assert sum(values[step] for step in bench_read.STEPS) == pytest.approx(
    values['read'], abs=1e-5
  )
  assert min(values[step] for step in ('pages', 'pixels')) > 0


def test_what_the_device_waited():
  def result(device, rank):
    seconds = {'read': [9.0], 'device': device, 'rank': rank}
    return bench_read.Result(seconds, {}, 2, 8, pathlib.Path())

  assert result([1.0], [4.0]).waited == 0.75
  assert result([1.0, 9.0, 2.0], [4.0, 4.0, 9.0]).waited == 0.5
  assert result([2.0], [1.9]).waited == 0  # noise


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--total_pages=0'], '--total_pages=0: give 1 or more'),
    (['--rounds=0'], '--rounds=0: give 1 or more'),
    (['--data=vidstg'], '--data=vidstg: not one of mmdocir'),
    (['--data_dir=a', '--pdfs=b'], '--pdfs=b: give one of them'),
    (['--pdfs=/nowhere'], '--pdfs=/nowhere: no folder with PDFs'),
  ],
)
def test_bad_flags_are_refused(flags, said, capsys, tmp_path):
  line = ['bench_read', *flags, f'--out={tmp_path}/run']
  assert bench_read.cli(line) == cli.EX_USER
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1


def test_no_question_that_can_be_measured(capsys, tmp_path):
  """Real answers are words that the embedded models do not know."""
  made = _folder(tmp_path / 'made')
  bench_documents.write(made, 1, 1)
  path = made / mmdocir.ANNOTATIONS
  path.write_text(path.read_text().replace('"red"', '"maroon"'))
  line = ['x', f'--data_dir={made}', f'--out={tmp_path}/run', '--pages=1']
  with pytest.raises(errors.UserError, match='none of 1 .*no answer to force'):
    bench_read.run(config_lib.parse(bench_read.Config, line))
