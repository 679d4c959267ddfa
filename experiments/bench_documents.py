"""PDF documents and questions in MMDocIR's layout, to time how they are read.

Pages are invented (three dozen lines of words, a table's rules, a filled
square), or are those of real PDFs. Every page is evidence of one question, so
that a run over all questions draws every page once:

    question 0   pages 0 1 2 3        --pages pages each, none shared
    question 1   pages 4 5 6 7
"""

from collections.abc import Iterator, Sequence
import json
import pathlib
import random

from corejax import errors
from corejax.data import documents
from corejax.data import mmdocir

_SIZE = (612.0, 792.0)  # US letter, points
_PER_DOCUMENT = 20  # pages
_WORDS = (
  'the of and to in table figure annual total revenue growth market section '
  'policy health shown page results year percent people report data'
).split()


def write(
  folder: pathlib.Path, n_pages: int, shown: int, pdfs: str = ''
) -> int:
  """Writes documents and annotations; returns the number of questions.

  Args:
    folder: is there, and empty.
    n_pages: of all documents that questions are about.
    shown: pages of a question.
    pdfs: folder whose PDFs are taken instead of invented ones; they are linked.

  Raises:
    UserError: no such folder, or its PDFs have too few pages.
  """
  lines, count, left = [], 0, n_pages
  found = _real(folder, pathlib.Path(pdfs)) if pdfs else _invented(folder)
  for name, sizes in found:
    used = min(left, len(sizes))
    questions = [
      _question(range(first, min(first + shown, used)), sizes)
      for first in range(0, used, shown)
    ]
    lines.append(
      json.dumps(
        {
          'doc_name': name,
          'domain': 'Brochure',
          'page_indices': [0, len(sizes) - 1],
          'questions': questions,
        }
      )
    )
    count += len(questions)
    left -= used
    if not left:
      break
  if left:
    raise errors.UserError(
      f'--pdfs={pdfs}: its PDFs have {n_pages - left} pages, asked for are '
      f'{n_pages}; give --total_pages={max(n_pages - left, 1)} or more PDFs'
    )
  (folder / mmdocir.ANNOTATIONS).write_text('\n'.join(lines) + '\n')
  return count


def _question(pages: range, sizes: Sequence[tuple[float, float]]) -> dict:
  # Words that the embedded models know, or their answer could not be forced.
  return {
    'Q': 'What colour is the star?',
    'A': 'red',
    'type': "['Figure']",
    'page_id': list(pages),
    'layout_mapping': [
      {
        'page': page,
        'page_size': list(sizes[page]),
        'bbox': [
          0.25 * sizes[page][0],
          0.25 * sizes[page][1],
          0.75 * sizes[page][0],
          0.6 * sizes[page][1],
        ],
      }
      for page in pages
    ],
  }


def _real(
  folder: pathlib.Path, pdfs: pathlib.Path
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
  """(file name, page sizes) of each PDF; what cannot be opened is left out."""
  paths = sorted(pdfs.glob('*.pdf'))
  if not paths:
    raise errors.UserError(
      f'--pdfs={pdfs}: no folder with PDFs; leave it out to invent them'
    )
  opened = documents.Documents(72)
  for path in paths:
    try:
      n = opened.count(path)
      sizes = [opened.size(path, page) for page in range(n)]
    except errors.Rejected:
      continue
    (folder / path.name).symlink_to(path.resolve())
    yield path.name, sizes


def _invented(
  folder: pathlib.Path,
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
  """As `_real`, without end."""
  number = 0
  while True:
    name = f'invented{number:03d}.pdf'
    (folder / name).write_bytes(_pdf(random.Random(number)))
    yield name, [_SIZE] * _PER_DOCUMENT
    number += 1


def _page(rng: random.Random) -> str:
  """What is drawn on a page, in PDF's operators; it counts from the bottom."""
  drawn = [
    '0.85 0.1 0.1 rg 200 480 60 60 re f',
    *(f'0 0 0 RG 72 {y} m 540 {y} l S' for y in range(560, 680, 20)),
    '0 0 0 rg BT /F1 10 Tf 13 TL 72 460 Td',
  ]
  for _ in range(30):
    line = ' '.join(rng.choice(_WORDS) for _ in range(rng.randrange(8, 14)))
    drawn.append(f'({line}) Tj T*')
  return '\n'.join([*drawn, 'ET'])


def _pdf(rng: random.Random) -> bytes:
  """A document of _PER_DOCUMENT pages."""
  width, height = _SIZE
  first = 4  # behind the catalogue, the list of pages, and the font
  kids = ' '.join(f'{first + 2 * n} 0 R' for n in range(_PER_DOCUMENT))
  objects = [
    '<< /Type /Catalog /Pages 2 0 R >>',
    f'<< /Type /Pages /Kids [{kids}] /Count {_PER_DOCUMENT} >>',
    '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>',
  ]
  for n in range(_PER_DOCUMENT):
    drawn = _page(rng)
    objects += [
      f'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] '
      f'/Contents {first + 2 * n + 1} 0 R '
      '/Resources << /Font << /F1 3 0 R >> >> >>',
      f'<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream',
    ]
  body, offsets = '%PDF-1.4\n', []
  for number, text in enumerate(objects, 1):
    offsets.append(len(body))
    body += f'{number} 0 obj\n{text}\nendobj\n'
  table = ''.join(f'{offset:010d} 00000 n \n' for offset in offsets)
  count = len(objects) + 1
  body += (
    f'xref\n0 {count}\n0000000000 65535 f \n{table}'
    f'trailer\n<< /Size {count} /Root 1 0 R >>\n'
    f'startxref\n{len(body)}\n%%EOF\n'
  )
  return body.encode('latin-1')
