"""Bad and odd pictures and documents, in every reader that reads them.

RefCOCOg's own test has them among its records; here are the frames of VidSTG,
the page table of MMDocIR, documentQA's page pictures, and PDFs. A picture that
a reader lets through decodes to RGB of the stored size, whatever it was.
"""

import json
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import mmdocir
from corejax.data import mmlongbench_docqa
from corejax.data import vidstg
from corejax.models import images
from helpers import mmdocir_tables
from helpers import pdfs
from helpers import pictures

Reason = errors.Reason
_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'

# What a reader says of each, None if it hands it on, and whether it decodes.
_KINDS = {
  'plain': (None, True),
  'deep': (None, True),  # 16 bits a channel
  'cmyk': (None, True),
  'exif': (None, True),  # asks to be turned; annotated as it is stored
  'cut': (None, False),  # behind its size: whoever decodes it rejects it
  'stump': (Reason.BAD_MEDIA, False),
  'vast': (Reason.MEDIA_TOO_LARGE, False),  # 200 megapixels
  'other': (Reason.BAD_MEDIA, False),  # neither PNG nor JPEG
}


def _picture(kind: str, size: tuple[int, int]) -> bytes:
  """A picture of (width, height)."""
  width, height = size
  noise = pictures.noise(np.random.default_rng(0), width, height)
  plain = pictures.jpeg(noise)
  if kind == 'deep':
    deep = np.linspace(0, 65535, width * height).astype(np.uint16)
    return pictures.png(Image.fromarray(deep.reshape(height, width)))
  return {
    'plain': plain,
    'cmyk': pictures.jpeg(Image.fromarray(noise).convert('CMYK')),
    'exif': pictures.turned(noise),
    'cut': plain[: len(plain) * 2 // 3],
    'stump': plain[:60],
    'vast': pictures.png_head(20_000, 10_000),
    'other': b'GIF89a' + bytes(30),
  }[kind]


def _vidstg(root, kind):
  """Frame 12, in which the evidence is."""
  shutil.copytree(_FIXTURES / 'vidstg', root)
  folder = root / 'frames/moving'
  folder.mkdir(parents=True)
  for number in range(40):
    data = _picture(kind if number == 12 else 'plain', (64, 48))
    end = 'png' if data.startswith(b'\x89') else 'jpg'
    (folder / f'{number}.{end}').write_bytes(data)
  return vidstg.VidSTG(root), 1, (64, 48)


def _page_table(root, kind):
  """Page 1, on which the evidence is."""
  root.mkdir()
  shutil.copy(_FIXTURES / 'mmdocir' / mmdocir.ANNOTATIONS, root)
  pages = [('invented', _picture('plain', (200, 300))) for _ in range(6)]
  pages[1] = 'invented', _picture(kind, (200, 300))
  mmdocir_tables.pages(root / mmdocir.TABLE, pages)
  return mmdocir.MMDocIR(root, pages=1), 0, (200, 300)


def _docqa(root, kind):
  """Page 3, on which the answer is."""
  shutil.copytree(_FIXTURES / 'mmlongbench_docqa', root)
  (root / 'mmlongdoc').mkdir()
  for number in (0, 2, 3, 4, 7, 9):
    data = _picture(kind if number == 3 else 'plain', (30, 40))
    (root / f'mmlongdoc/a_page{number}.jpg').write_bytes(data)
  return mmlongbench_docqa.MMLongBenchDocQA(root), 0, (30, 40)


@pytest.mark.parametrize('kind', _KINDS)
@pytest.mark.parametrize('reader', [_vidstg, _page_table, _docqa])
def test_odd_pictures(reader, kind, tmp_path):
  source, index, size = reader(tmp_path / 'root', kind)
  reason, decodes = _KINDS[kind]
  if reason is not None:
    with pytest.raises(errors.Rejected) as caught:
      source[index]
    assert caught.value.reason is reason
    return
  example = source[index]
  media = example.media[example.evidence[0].media]
  assert media == _picture(kind, size)
  if decodes:
    pixels = images.decode(media)
    assert pixels.shape == (size[1], size[0], 3) and pixels.dtype == np.uint8
    assert pixels.std() > 10
    return
  with pytest.raises(errors.Rejected) as caught:
    images.decode(media)
  assert caught.value.reason is Reason.BAD_MEDIA


@pytest.mark.parametrize('reader', [_vidstg, _page_table])
def test_annotated_as_turned(reader, tmp_path, monkeypatch):
  """Stored 64x48, to be shown and annotated as 48x64: boxes lie elsewhere."""
  real = _picture
  monkeypatch.setitem(
    globals(),
    '_picture',
    lambda kind, size: real(kind, size[::-1] if kind == 'exif' else size),
  )
  source, index, _ = reader(tmp_path / 'root', 'exif')
  with pytest.raises(errors.Rejected, match='its EXIF turns it') as caught:
    source[index]
  assert caught.value.reason is Reason.BAD_RECORD


# VidOR's boxes of thing 0 in frame 12, which is shown.
_BOXES = [
  ({'xmin': 12, 'ymin': 8, 'xmax': 65, 'ymax': 24}, None),  # cut off at 64
  ({'xmin': 12, 'ymin': 8, 'xmax': 90, 'ymax': 24}, 'reaches 26 pixels beyond'),
  ({'xmin': -9, 'ymin': 8, 'xmax': 20, 'ymax': 24}, 'reaches 9 pixels beyond'),
  ({'xmin': 12, 'ymin': 8, 'xmax': 12, 'ymax': 24}, 'is empty or inverted'),
  ({'xmin': 28, 'ymin': 8, 'xmax': 12, 'ymax': 24}, 'is empty or inverted'),
  (
    {'xmin': float('nan'), 'ymin': 8, 'xmax': 28, 'ymax': 24},
    'is not four finite numbers',
  ),
  ({'xmin': 12, 'ymin': 8, 'xmax': 28}, 'is not four finite numbers'),
]


@pytest.mark.parametrize('corners, message', _BOXES)
def test_boxes_of_a_video(corners, message, tmp_path):
  source, index, _ = _vidstg(tmp_path / 'root', 'plain')
  path = tmp_path / 'root/annotation/validation/0001/moving.json'
  tracks = json.loads(path.read_text())
  for thing in tracks['trajectories'][12]:
    if thing['tid'] == 0:
      thing['bbox'] = corners
  path.write_text(json.dumps(tracks))
  source = vidstg.VidSTG(tmp_path / 'root')
  if message is None:
    assert source[index].evidence[0].x1 == 1
    return
  with pytest.raises(errors.Rejected, match=message) as caught:
    source[index]
  assert caught.value.reason is Reason.BAD_BOX


@pytest.mark.parametrize('share', [0.0, 0.02, 0.3, 0.6, 0.95])
def test_a_pdf_cut_short(share, tmp_path):
  """pdfium mends what it can: then pages lack, and it is another edition."""
  shutil.copy(_FIXTURES / 'mmdocir' / mmdocir.ANNOTATIONS, tmp_path)
  path = pdfs.write(tmp_path / 'invented.pdf', [[]] * 6)
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  source = mmdocir.MMDocIR(tmp_path, dpi=18)
  try:
    example = source[1]
  except errors.Rejected as e:
    assert e.reason in (Reason.BAD_MEDIA, Reason.BAD_RECORD)
    return
  # All six pages were behind the cut's front: mended whole.
  assert share > 0.9 and len(example.media) == 4
