"""Head sets that do not fit a model, through `ablate`: one line, exit code 2.

The grammar itself is tested in tests/corejax/test_heads.py and test_ranking.py.
"""

import pytest

from corejax import table
from corejax.experiments import ablate
from corejax.experiments import cli
from corejax.models.organisms import planted


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  folder = tmp_path_factory.mktemp('good')
  planted.write(folder)
  return folder


@pytest.mark.parametrize(
  'heads, words',
  [
    ('4-0', ['layer 4 is outside 0..3', 'has 4 layers']),
    ('3-8', ['head 8 of layer 3 is outside 0..7', 'has 8 heads a layer']),
    ('1-1,1-1', ['1-1 stands twice']),
    ('-1-2', ["'-1-2' is not layer-head", 'write heads as']),
    (
      '@{ranking}',
      ['a ranking of 2 layers x 3 heads', 'has 4 x 8', 'rank this'],
    ),
    ('@nowhere', ["'nowhere'", 'rank first']),
  ],
)
def test_heads_of_another_model(good, tmp_path, capsys, heads, words):
  columns = {name: ['0.5'] * 6 for name in table.REQUIRED}
  columns |= {'rank': list('123456'), 'layer': list('000111')}
  columns['head'] = list('012012')
  lines = [columns, *zip(*columns.values())]
  (tmp_path / table.FILE).write_text('\n'.join(map(','.join, lines)))
  given = heads.format(ranking=tmp_path)
  line = ['ablate', f'--heads={given}', f'--checkpoint={good}', '--limit=8']
  assert ablate.cli([*line, f'--out={tmp_path / "out"}']) == cli.EX_USER
  err = capsys.readouterr().err
  assert err.startswith('error: ') and err.count('\n') == 1
  for word in words:
    assert word in err, (word, err)
