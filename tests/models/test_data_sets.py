"""Evidence tokens of every data set, against the pixels of drawn pictures.

Each reader's fixture is drawn so that what its boxes hold is red; a token is
evidence if at least half of the picture's part that it shows is.
"""

import pathlib
import shutil

import numpy as np
import pytest

from corejax import errors
from corejax import evidence
from corejax import regions
from corejax.data import mmdocir
from corejax.data import sources
from corejax.models import images
from corejax.models import registry
from corejax.models.internvl import templates as internvl
from corejax.models.llava import templates as llava
from corejax.models.llava_next import templates as llava_next
from corejax.models.llava_onevision import templates as llava_onevision
from corejax.models.qwen_vl import templates as qwen_vl
from helpers import pdfs
from helpers import pictures
from helpers import tiny_tokenizer

_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
_RED = (255, 0, 0)
# A cell is counted by whole pixels, which boxes need not keep to.
_BAND = 0.12


@pytest.fixture(scope='module')
def processor(tmp_path_factory):
  folder = tiny_tokenizer.folder(
    tmp_path_factory.mktemp('llava') / 'tiny',
    'bytes',
    image_size=96,
    patch_size=8,
    context=4096,
  )
  load = registry.get('llava_flax').load_processor
  return load(folder, image_policy='pad')


def _refcocog(root):
  shutil.copytree(_FIXTURES / 'refcocog', root)
  red = np.zeros((48, 64, 3), np.uint8)
  red[12:30, 16:40] = _RED
  (root / 'plain.jpg').write_bytes(pictures.png(red))
  return {0: {}, 1: {}}


def _vidstg(root):
  shutil.copytree(_FIXTURES / 'vidstg', root)
  folder = root / 'frames/moving'
  folder.mkdir(parents=True)
  for n in range(40):
    pixels = np.zeros((48, 64, 3), np.uint8)
    # Thing 0, in the frames in which annotation 0 has it move.
    if 10 <= n < 20:
      pixels[8:24, n : n + 16] = _RED
    (folder / f'{n}.png').write_bytes(pictures.png(pixels))
  return {0: {}, 1: {}}


def _documents(root):
  red = {1: (20, 30, 80, 90), 2: (0, 0, 200, 300), 3: (0, 0, 200, 300)}
  drawn = [[(pdfs.RED, red[n])] if n in red else [] for n in range(6)]
  (root / 'documents').mkdir(parents=True)
  pdfs.write(root / 'documents/invented.pdf', drawn)
  shutil.copy(_FIXTURES / 'mmdocir' / mmdocir.ANNOTATIONS, root)


def _mmdocir(root):
  _documents(root)
  return {0: {'pages': 1}}


def _mmlongbench(root):
  _documents(root)
  shutil.copy(_FIXTURES / 'mmlongbench/samples.json', root)
  # Its first question has MMDocIR's box, its third names whole pages.
  return {0: {'pages': 1}, 2: {'pages': 2}}


def _docqa(root):
  shutil.copytree(_FIXTURES / 'mmlongbench_docqa', root)
  (root / 'mmlongdoc').mkdir()
  for n in (0, 2, 3, 4, 7, 9):
    shade = _RED if n == 3 else (0, 0, 0)
    pixels = np.full((40, 30, 3), shade, np.uint8)
    name = f'mmlongdoc/a_page{n}.jpg'
    (root / name).write_bytes(pictures.png(pixels))
  return {0: {'split': 'K8'}}


_SETS = {
  'refcocog': _refcocog,
  'vidstg': _vidstg,
  'mmdocir': _mmdocir,
  'mmlongbench': _mmlongbench,
  'mmlongbench_docqa': _docqa,
}


def _red_share(encoded, shown) -> np.ndarray:
  """float [I]: share of each token's cell that is red."""
  layout, shares = encoded.layout, []
  for media, cell in zip(layout.media_I, layout.cell_IW):
    red = shown[media][..., 0] - shown[media][..., 1] > 128
    x0, y0, x1, y1 = cell
    # The share of every pixel's column and row that lies in the cell.
    columns, rows = (
      np.clip(
        np.minimum(hi, np.arange(n) + 1) - np.maximum(lo, np.arange(n)), 0, None
      )
      for n, lo, hi in ((red.shape[1], x0, x1), (red.shape[0], y0, y1))
    )
    shares.append(rows @ red @ columns / ((x1 - x0) * (y1 - y0)))
  return np.array(shares)


@pytest.mark.parametrize('name', _SETS)
def test_evidence_tokens_are_where_the_red_is(name, processor, tmp_path):
  root = tmp_path / 'root'
  for index, settings in _SETS[name](root).items():
    source = sources.load(name, data_dir=str(root), **settings)
    example = source[index]
    encoded = processor.encode(example)
    watched = evidence.annotate(example, encoded)
    shown = [images.decode(data).astype(int) for data in example.media]
    share = _red_share(encoded, shown)
    sure = abs(share - 0.5) > _BAND
    assert sure.mean() > 0.9
    assert ((share > 0.5) == watched.evidence_I)[sure].all()
    assert 0 < watched.evidence_I.sum() < len(watched.evidence_I)
    found = watched.region_T[watched.visual_I] == regions.EVIDENCE
    assert (found == watched.evidence_I).all()


@pytest.mark.parametrize('name', _SETS)
def test_every_record_is_encoded_or_rejected(name, processor, tmp_path):
  root = tmp_path / 'root'
  *_, settings = _SETS[name](root).values()
  source = sources.load(name, data_dir=str(root), **settings)
  counted = {True: 0, False: 0}
  for index in range(len(source)):
    try:
      example = source[index]
      evidence.annotate(example, processor.encode(example))
      counted[True] += 1
    except errors.Rejected as e:
      assert isinstance(e.reason, errors.Reason)
      counted[False] += 1
  assert sum(counted.values()) == len(source)
  assert counted[True]


@pytest.mark.parametrize(
  'family', [llava, llava_next, llava_onevision, internvl, qwen_vl]
)
def test_every_family_has_words_for_every_kind(family):
  for templates in family.SETS.values():
    assert set(templates) - {'video'} == set(llava.KINDS)
    # All or none: a picture may stand beside a video.
    reads = {bool(template.video) for template in templates.values()}
    assert reads == {'video' in templates}
