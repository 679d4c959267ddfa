"""Annotations and pictures under mutation: `python -m pytest -m fuzz -s`."""

import io
import json
import pathlib
import warnings
import zlib

import numpy as np
from PIL import Image
import pytest

from corejax import errors
from corejax.data import example as example_lib
from corejax.data import mmdocir
from corejax.data import mmdocir_records
from corejax.models import images
from helpers import mutation
from helpers import pdfs

pytestmark = pytest.mark.fuzz

_FIXTURE = (
  pathlib.Path(__file__).parents[1] / 'fixtures/mmdocir' / mmdocir.ANNOTATIONS
)
_REJECTED = (errors.Rejected,)


def _lines():
  """Lines that are JSON; the one that is not would be no seed."""
  lines = []
  for line in _FIXTURE.read_bytes().splitlines():
    try:
      lines.append(json.loads(line))
    except ValueError:
      continue
  return lines


def _one_question(rng, line):
  questions = line.get('questions')
  if not isinstance(questions, list) or not questions:
    return line
  return line | {'questions': [rng.choice(questions)]}


def test_annotations():
  lines = _lines()

  def make(rng):
    line = _one_question(rng, rng.choice(lines))
    if rng.random() < 0.3:
      return mutation.mutate_bytes(rng, json.dumps(line).encode())
    return mutation.dumps(rng, mutation.mutate_json(rng, line))

  def parse(data):
    records = mmdocir_records.parse(data)
    faults = [r.fault for r in records if r.fault]
    for record in records:
      if not record.fault:
        assert example_lib.is_text(record.document)
        assert 0 <= record.pages[0] <= record.pages[-1] < record.n_pages
        assert record.question and record.answer and record.layouts
    return str(faults[0].reason) if faults else f'{min(len(records), 1)} good'

  found = mutation.count_outcomes('annotations', make, parse, 100_000)
  assert found['1 good'] > 1000 and found['bad record'] > 1000


def test_examples_of_documents(tmp_path):
  pdfs.write(tmp_path / 'invented.pdf', [[(pdfs.RED, (9, 9, 60, 60))]] * 6)
  lines = [line for line in _lines() if line['doc_name'] == 'invented.pdf']
  path = tmp_path / mmdocir.ANNOTATIONS

  def make(rng):
    line = _one_question(rng, rng.choice(lines))
    return json.dumps(mutation.mutate_json(rng, line))

  def parse(line):
    path.write_text(line)
    source = mmdocir.MMDocIR(tmp_path, dpi=18)
    for index in range(len(source)):
      assert source[index].evidence

  found = mutation.count_outcomes(
    'documents', make, parse, 20_000, allowed=(errors.UserError, *_REJECTED)
  )
  assert min(found['accepted'], found['bad record'], found['bad box']) > 500


def test_pdfs(tmp_path):
  path = pdfs.write(tmp_path / 'invented.pdf', [[(pdfs.RED, (9, 9, 60, 60))]])
  good = path.read_bytes()
  line = {
    'doc_name': 'invented.pdf',
    'page_indices': [0, 0],
    'questions': [
      {
        'Q': 'What is red?',
        'A': '8',
        'type': "['Figure']",
        'page_id': [0],
        'layout_mapping': [
          {'page': 0, 'page_size': [200.0, 300.0], 'bbox': [9, 9, 60, 60]}
        ],
      }
    ],
  }
  (tmp_path / mmdocir.ANNOTATIONS).write_text(json.dumps(line))
  pieces = [b'/Page', b'<<', b'>>', b'endobj', b'stream', b'0 R', b'trailer']

  def make(rng):
    return mutation.mutate_bytes(rng, good, pieces)

  def parse(data):
    path.write_bytes(data)
    (shown,) = mmdocir.MMDocIR(tmp_path, dpi=18)[0].media
    assert min(images.size(shown)) > 0

  found = mutation.count_outcomes('PDF', make, parse, 10_000, allowed=_REJECTED)
  assert min(found['accepted'], found['undecodable picture']) > 100


def _pictures() -> list[bytes]:
  """Small pictures of every mode and container variant that is read."""
  rng = np.random.default_rng(0)
  base = Image.fromarray(rng.integers(0, 256, (9, 11, 4), np.uint8))
  found = []

  def save(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    found.append(buffer.getvalue())

  for mode in ('1', 'L', 'P', 'LA', 'RGB', 'RGBA'):
    save(base.convert(mode), 'PNG')
  save(base.convert('P'), 'PNG', transparency=bytes(range(40)))
  save(base.convert('RGB'), 'PNG', transparency=(1, 2, 3))
  save(base.convert('L'), 'PNG', transparency=7)
  wide = Image.fromarray(rng.integers(0, 65536, (9, 11)).astype(np.uint16))
  save(wide, 'PNG')
  save(base.convert('RGB'), 'PNG', icc_profile=bytes(300), dpi=(72, 72))
  exif = Image.Exif()
  exif[0x0112] = 6
  for mode in ('L', 'RGB', 'CMYK', 'YCbCr'):
    save(base.convert(mode), 'JPEG', exif=exif)
  save(base.convert('RGB'), 'JPEG', progressive=True, icc_profile=bytes(300))
  return found


_CHUNKS = [
  *(b'IHDR', b'IDAT', b'IEND', b'PLTE', b'tRNS', b'iCCP', b'zTXt', b'iTXt'),
  *(b'acTL', b'fcTL', b'fdAT', b'eXIf', b'gAMA', b'pHYs', b'\xff\xd8'),
  *(b'\xff\xd9', b'\xff\xc2', b'\xff\xda', b'\xff\xe1\0\x08Exif\0\0', b'MPF\0'),
]


def _with_right_sums(data: bytes) -> bytes:
  """A PNG's chunks with their checksums mended, to get behind that check."""
  out, at = bytearray(data[:8]), 8
  while at + 12 <= len(data):
    size = int.from_bytes(data[at : at + 4], 'big')
    body = data[at + 4 : at + 8 + size]
    if len(body) < 4 + size:
      break
    out += data[at : at + 4] + body
    out += (zlib.crc32(body) & 0xFFFFFFFF).to_bytes(4, 'big')
    at += 12 + size
  return bytes(out + data[at:])


def test_pictures():
  seeds = _pictures()
  for seed in seeds:
    assert images.decode(seed).shape == (9, 11, 3)

  def make(rng):
    data = mutation.mutate_bytes(rng, rng.choice(seeds), _CHUNKS)
    if data.startswith(b'\x89PNG') and rng.random() < 0.8:
      data = _with_right_sums(data)
    return data

  def parse(data):
    with warnings.catch_warnings():
      # Pillow grumbles about odd metadata, which nobody here reads.
      warnings.simplefilter('ignore')
      pixels = images.decode(data)
      assert images.size(data) == (pixels.shape[1], pixels.shape[0])
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3

  found = mutation.count_outcomes(
    'pictures', make, parse, 150_000, allowed=_REJECTED
  )
  assert min(found['accepted'], found['undecodable picture']) > 1000
