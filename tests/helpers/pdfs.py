"""Tiny PDFs, written by hand, with filled rectangles at known places."""

from collections.abc import Sequence
import pathlib

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def write(
  path: pathlib.Path,
  pages: Sequence[Sequence[tuple[tuple, tuple]]],
  size: tuple[float, float] = (200, 300),
  rotate: int = 0,
) -> pathlib.Path:
  """Writes a PDF.

  Args:
    path: of the file.
    pages: per page, its rectangles as (colour, (x0, y0, x1, y1)), points from
      the TOP left (a PDF itself counts from the bottom).
    size: of every page, points, before rotation.
    rotate: degrees by which viewers turn the pages.
  """
  width, height = size
  kids = ' '.join(f'{3 + 2 * n} 0 R' for n in range(len(pages)))
  objects = [
    '<< /Type /Catalog /Pages 2 0 R >>',
    f'<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>',
  ]
  for n, rectangles in enumerate(pages):
    drawn = '\n'.join(
      f'{r} {g} {b} rg {x0} {height - y1} {x1 - x0} {y1 - y0} re f'
      for (r, g, b), (x0, y0, x1, y1) in rectangles
    )
    objects.append(
      f'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] '
      f'/Rotate {rotate} /Contents {4 + 2 * n} 0 R /Resources << >> >>'
    )
    objects.append(f'<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream')
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
  path.write_bytes(body.encode('latin-1'))
  return path
