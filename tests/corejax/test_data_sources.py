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
  assert set(listed) == {'scenes_referring', 'scenes_pages', 'mmdocir'}
  for name, text in listed.items():
    assert '\n' not in text
    if name.startswith('scenes_'):
      source = sources.load(name, twins=True)
      assert all(source[i].task in text for i in range(16))


def test_documents_open_by_name(samples):
  source = sources.load('mmdocir', data_dir=str(samples), limit=2, pages=2)
  assert len(source) == 2
  assert source.name == 'mmdocir'
