"""Evidence tokens of every data set and family, against what its pixels show.

Each reader's fixture is drawn so that what its boxes hold is red; what is red
is made white and all else black, and a token is evidence if at least half of
what the family's own pixels show of it is white. Within BAND of that threshold,
by which a resize rings around edges, either is right.
"""

import dataclasses
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
from helpers import lights
from helpers import pdfs
from helpers import pictures
from helpers import tiny_tiled
from helpers import tiny_tokenizer
from helpers import tracers

_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
_RED = (255, 0, 0)


def _llava(folder):
  return tiny_tokenizer.folder(
    folder, 'bytes', image_size=96, patch_size=8, context=4096
  )


def _anyres(model_type):
  def write(folder):
    return tiny_tiled.anyres(folder, model_type=model_type, context=4096)

  return write


def _internvl(folder):
  return tiny_tiled.internvl(folder, context=4096)


def _qwen(kind):
  def write(folder):
    pytest.importorskip('torch', reason='tiny Qwen folders are made with torch')
    from helpers import tiny_qwen

    return tiny_qwen.processor_folder(folder, kind, context=4096)

  return write


# family -> (writes a folder, brightness of tokens, image policy)
_FAMILIES = {
  'llava': (_llava, lights.llava, 'pad'),
  'llava_next': (_anyres('llava_next'), lights.anyres, 'checkpoint'),
  'llava_onevision': (_anyres('llava_onevision'), lights.anyres, 'checkpoint'),
  'internvl': (_internvl, lights.internvl, 'checkpoint'),
  'qwen2_vl': (_qwen('qwen2_vl'), lights.qwen, 'checkpoint'),
  'qwen2_5_vl': (_qwen('qwen2_5_vl'), lights.qwen, 'checkpoint'),
  'qwen3_vl': (_qwen('qwen3_vl'), lights.qwen, 'checkpoint'),
}


def test_every_family_is_here():
  """But for the mixture of experts, which has the processor of qwen3_vl."""
  here = {f'{name}_flax' for name in _FAMILIES}
  assert set(registry.keys()) - here == {'qwen3_vl_moe_flax'}


@pytest.fixture(scope='module', params=_FAMILIES)
def made(request, tmp_path_factory):
  """(processor, brightness of its tokens)."""
  write, light, policy = _FAMILIES[request.param]
  folder = write(tmp_path_factory.mktemp(request.param) / 'tiny')
  load = registry.get(f'{request.param}_flax').load_processor
  processor = load(folder, image_policy=policy)
  return processor, light(processor)


@pytest.fixture
def processor(made):
  return made[0]


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


def _documents(root, red):
  """Annotations, and a PDF in which rectangles of some pages are red."""
  drawn = [[(pdfs.RED, red[n])] if n in red else [] for n in range(6)]
  (root / 'documents').mkdir(parents=True)
  pdfs.write(root / 'documents/invented.pdf', drawn)
  shutil.copy(_FIXTURES / 'mmdocir' / mmdocir.ANNOTATIONS, root)


_SQUARE, _PAGE = (20, 30, 80, 90), (0, 0, 200, 300)


def _mmdocir(root):
  _documents(root, {1: _SQUARE})
  # And four pages, with evidence on two of them.
  red = {2: (10, 10, 190, 40), 4: (100, 200, 150, 280)}
  _documents(root / 'several', red)
  several = {'pages': 4, 'data_dir': str(root / 'several')}
  return {0: {'pages': 1}, 1: several}


def _mmlongbench(root):
  _documents(root, {1: _SQUARE, 2: _PAGE, 3: _PAGE})
  shutil.copy(_FIXTURES / 'mmlongbench/samples.json', root)
  # Its first question has MMDocIR's box, its third names two whole pages.
  return {0: {'pages': 1}, 2: {'pages': 3, 'seed': 1}}


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


def _tracers(example) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
  """Pictures of the same sizes: what is red white, and all black."""
  white, black = [], []
  for data in example.media:
    pixels = images.decode(data).astype(int)
    red = pixels[..., 0] - pixels[..., 1] > 128
    mask = np.repeat(red[..., None], 3, 2).astype(np.uint8)
    white.append(pictures.png(255 * mask))
    black.append(pictures.png(0 * mask))
  return tuple(white), tuple(black)


def _brightness(processor, light, example) -> np.ndarray:
  """float [I], the share of each token that is red in the example."""
  values = []
  for media in _tracers(example):
    encoded = processor.encode(dataclasses.replace(example, media=media))
    values.append(encoded.vision['pixel_values'].astype(np.float64))
  return light(encoded, values[0] - values[1])


def _wrong(light_I, evidence_I, media_I) -> int:
  """Tokens that are evidence and should not be, or the other way round."""
  wrong = 0
  for media in set(media_I[light_I > 0.05]):
    mine = media_I == media
    most = light_I[mine].max()
    if most < 0.5 + tracers.BAND:
      # Too small for any token, or nearly: the best-covered one stands for it.
      found = light_I[mine & evidence_I]
      wrong += not len(found) or bool(found.min() < most - 2 * tracers.BAND)
      wrong += most < 0.5 - tracers.BAND and len(found) > 1
      continue
    wrong += int((mine & ~evidence_I & (light_I > 0.5 + tracers.BAND)).sum())
    wrong += int((mine & evidence_I & (light_I < 0.5 - tracers.BAND)).sum())
  elsewhere = ~np.isin(media_I, media_I[light_I > 0.05])
  return wrong + int((elsewhere & evidence_I).sum())


@pytest.mark.parametrize('name', _SETS)
def test_evidence_tokens_are_where_the_red_is(name, made, tmp_path):
  processor, light = made
  root = tmp_path / 'root'
  for index, settings in _SETS[name](root).items():
    source = sources.load(name, **{'data_dir': str(root)} | settings)
    example = source[index]
    encoded = processor.encode(example)
    watched = evidence.annotate(example, encoded)
    light_I = _brightness(processor, light, example)
    assert light_I.shape == watched.evidence_I.shape
    assert not _wrong(light_I, watched.evidence_I, encoded.layout.media_I)
    assert (abs(light_I - 0.5) > tracers.BAND).mean() > 0.8
    assert 0 < watched.evidence_I.sum() < len(watched.evidence_I)
    found = watched.region_T[watched.visual_I] == regions.EVIDENCE
    assert (found == watched.evidence_I).all()


@pytest.mark.parametrize('name', _SETS)
def test_every_record_is_encoded_or_rejected(name, processor, tmp_path):
  root = tmp_path / 'root'
  *_, settings = _SETS[name](root).values()
  source = sources.load(name, **{'data_dir': str(root)} | settings)
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
