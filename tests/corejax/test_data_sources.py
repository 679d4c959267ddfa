"""`--data=NAME`: every name opens, and what is wrong is said in one line."""

import pytest

from corejax import errors
from corejax.data import sources


@pytest.mark.parametrize('name', ['scenes_referring', 'scenes_pages'])
def test_scenes_open_by_name(name):
  source = sources.load(name, split='train', seed=2, limit=20)
  assert (source.name, source.split, len(source)) == (name, 'train', 20)
  assert source[3].id.startswith(f'{name}/train/00000-')
  with pytest.raises(IndexError):
    source[20]
  whole = sources.load(name, split='train', seed=2)
  assert whole[19] == source[19]
  assert whole.fingerprint != source.fingerprint
  assert len(whole) > 1000
  beyond = sources.load(name, split='train', seed=2, limit=10**6)
  assert len(beyond) == len(whole)


def test_settings_reach_the_scenes():
  source = sources.load('scenes_pages', pages=5, tasks=['page'], twins=True)
  example, twin = source[0], source[1]
  assert len(example.media) == 5
  assert (example.task, twin.task) == ('page', 'page_twin')


@pytest.mark.parametrize(
  ('bad', 'said'),
  [
    (dict(name='coco'), 'no such data set; there are scenes_referring, '),
    (dict(name='scenes_pages', limit=0), '--limit=0'),
    (dict(name='scenes_pages', pages=1), 'pages=1, expected 2 to 8'),
    (dict(name='scenes_pages', split='dev'), '--split=dev'),
    (dict(name='mmdocir'), 'needs --data_dir'),
    (dict(name='mmdocir', data_dir=''), 'needs --data_dir'),
    (dict(name='mmdocir', data_dir='/', twins=True), 'no twins'),
  ],
)
def test_what_is_wrong_is_said_in_one_line(bad, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    sources.load(**bad)
  assert '\n' not in str(caught.value)


def test_the_catalogue_names_what_opens():
  listed = sources.catalogue()
  assert set(listed) == {*sources._OPEN, *sources.scenes.CONFIGS}
  for name, text in listed.items():
    assert '\n' not in text
    if name.startswith('scenes_'):
      source = sources.load(name, twins=True)
      assert all(source[i].task in text for i in range(16))


def test_documents_open_by_name(samples):
  source = sources.load('mmdocir', data_dir=str(samples), limit=2, pages=2)
  assert len(source) == 2
  assert source.name == 'mmdocir'


def test_halves_share_no_cluster_and_make_the_whole():
  whole = sources.load('scenes_referring', seed=3)
  halves = [
    sources.load('scenes_referring', seed=3, split=f'test:{i}/2')
    for i in (1, 2)
  ]
  assert sum(map(len, halves)) == len(whole)
  clusters = [
    {half.source.cluster(i) for i in half._indices} for half in halves
  ]
  assert not clusters[0] & clusters[1]
  assert 0.4 < len(clusters[0]) / sources.scenes.N_SCENES < 0.6
  ids = {half[i].id for half in halves for i in range(0, len(half), 97)}
  assert ids <= {whole[i].id for i in range(len(whole))}
  assert halves[0].split == 'test:1/2'
  assert len({half.fingerprint for half in (*halves, whole)}) == 3
  first = sources.load('scenes_referring', seed=3, split='test:1/2', limit=5)
  assert [first[i].id for i in range(5)] == [halves[0][i].id for i in range(5)]
  assert halves[1].cluster(4) == halves[1][4].cluster
  with pytest.raises(IndexError):
    halves[0][len(halves[0])]


@pytest.mark.parametrize(
  'split', ['test:0/2', 'test:3/2', 'test:1', 'test:a/b', ':', 'test:1/2/3']
)
def test_bad_parts_of_a_split(split):
  with pytest.raises(errors.UserError, match='--split='):
    sources.load('scenes_referring', split=split)


def test_splits_and_twins():
  assert sources.splits('scenes_pages') == ('train', 'validation', 'test')
  assert sources.splits('mmdocir') == ('test',)
  assert sources.has_twins('scenes_pages') and not sources.has_twins('mmdocir')
  with pytest.raises(errors.UserError, match='imagenet'):
    sources.splits('imagenet')
