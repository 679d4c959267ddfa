"""What `retrieve` measures: each page's and each layout's mass of every head.

    document   p0 p1 p2 | p3 p4        chunks of --pages pages, each a prompt of
    prompt     p0 p1 p2 question       its own; nothing is generated

A page's mass is that of its visual tokens, a layout's that of the tokens which
its box is by the rule that evidence goes by (layout.VisualLayout.tokens). Both
are kept for every head, so that other sets of heads rank without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from corejax import errors
from corejax import evidence
from corejax import inputs as inputs_lib
from corejax import regions
from corejax.data import example as example_lib
from corejax.data import layouts as layouts_lib
from corejax.experiments import features
from corejax.experiments import resources as resources_lib
from corejax.experiments import session
from corejax.experiments import step
from corejax.models import registry

MOST_PAGES = 6  # regions that tell a chunk's pages apart


def chunks(n_pages: int, size: int) -> list[range]:
  """Pages that are shown together."""
  return [
    range(first, min(first + size, n_pages))
    for first in range(0, n_pages, size)
  ]


@dataclasses.dataclass(frozen=True)
class Asked:
  """One chunk, as the model takes it.

  Attributes:
    encoded, annotated: the prompt; a page is a region.
    n_pages: that it shows.
    layout_J: int, which of the document's layouts lie on these pages.
    tokens_JI: bool, visual tokens of each; none where the family crops it away.
  """

  encoded: inputs_lib.Encoded
  annotated: evidence.Annotated
  n_pages: int
  layout_J: np.ndarray
  tokens_JI: np.ndarray


def ask(
  processor: registry.Processor,
  example: example_lib.Example,
  pages: range,
  boxes: Sequence[example_lib.Box] = (),
) -> Asked:
  """The question about some pages of its document.

  Args:
    processor: of the model.
    example: shows the whole document.
    pages: at most MOST_PAGES of them.
    boxes: the document's layouts.

  Raises:
    Rejected: it shows a video, or see Processor.encode.
  """
  if example.clips:
    raise errors.Rejected(
      errors.Reason.BAD_RECORD,
      f'{example.id}: it shows a video; pages are ranked, pictures each',
    )
  encoded = processor.encode(
    dataclasses.replace(
      example,
      media=tuple(example.media[page] for page in pages),
      answers=(),
      evidence=(),
      distractors=(),
    )
  )
  none_I = np.zeros(len(encoded.visual_I), bool)
  region_T = regions.partition(
    len(encoded.tokens_T), encoded.visual_I, none_I, [], encoded.question
  )
  # A page a region: the visual ones are the first of all.
  region_T[encoded.visual_I] = encoded.layout.media_I
  here = [j for j, box in enumerate(boxes) if box.media in pages]
  tokens_JI = np.zeros((len(here), len(none_I)), bool)
  for row, j in enumerate(here):
    box = dataclasses.replace(boxes[j], media=boxes[j].media - pages.start)
    try:
      tokens_JI[row] = encoded.layout.tokens([box])
    except errors.Rejected:
      continue  # cropped away: nobody can look at it, so that it comes last
  return Asked(
    encoded,
    evidence.Annotated(
      evidence_I=none_I,
      distractors_XI=np.zeros((0, len(none_I)), bool),
      region_T=region_T,
      rows=evidence.query_rows(encoded),
      visual_I=encoded.visual_I,
    ),
    len(pages),
    np.array(here, np.int64),
    tokens_JI,
  )


@dataclasses.dataclass(frozen=True)
class _Question:
  """A question whose chunks are asked; `layouts` is None without --layouts."""

  row: dict
  asked: list[Asked]
  layouts: layouts_lib.Layouts | None


def _question(
  resources: resources_lib.Resources, index: int, pages: int, layouts: bool
) -> _Question:
  """Reads and encodes one record.

  Raises:
    Rejected: it cannot be asked.
  """
  example = resources.source[index]
  if not example.evidence:
    raise errors.Rejected(errors.Reason.NO_EVIDENCE, example.id)
  found = layouts_lib.of(resources.source, index) if layouts else None
  row = {
    'index': index,
    'id': example.id,
    'cluster': example.cluster,
    'domain': str(example.meta.get('domain', '')),
    'question': example.question,
    'n_pages': len(example.media),
    'evidence': sorted({box.media for box in example.evidence}),
  }
  if found is not None:
    row |= {
      'n_layouts': len(found.boxes),
      'layouts_left_out': dict(found.left_out),
      # page and corners in points
      'evidence_layouts': [
        [each.page, *each.corners] for each in found.placed(example.evidence)
      ],
    }
  boxes = () if found is None else found.boxes
  return _Question(
    row,
    [
      ask(resources.loaded.processor, example, part, boxes)
      for part in chunks(len(example.media), pages)
    ],
    found,
  )


def part(
  resources: resources_lib.Resources,
  runner: step.Runner,
  records: Sequence[int],
  *,
  pages: int,
  query: str,
  layouts: bool,
) -> tuple[dict, dict[str, np.ndarray]]:
  """(head, arrays) of some questions, as PartStore.put takes them.

  Args:
    resources: the source shows documents whole.
    runner: of the model.
    records: of the source.
    pages: shown together.
    query: query set whose rows count.
    layouts: measure layouts too.

  Returns:
    'mass' float32 [pages, L, N]; with layouts also 'layout_mass' float16
    [layouts, L, N], 'layout_tokens' int32 [layouts] and 'layout_place' float64
    [layouts, 5] (page, corners in points); the questions one after another.
  """
  questions, rejected = [], []
  for index in records:
    try:
      questions.append(_question(resources, index, pages, layouts))
    except errors.Rejected as e:
      rejected.append(session.rejection(resources.source, index, e))
  asked = [chunk for each in questions for chunk in each.asked]
  measured = _measure(runner, asked, query, layouts)
  shape = resources.loaded.n_layers, resources.loaded.n_heads
  mass_PLN = [np.zeros((0, *shape), np.float32)]
  found: dict[str, list[np.ndarray]] = {
    'layout_mass': [np.zeros((0, *shape), np.float16)],
    'layout_tokens': [np.zeros(0, np.int32)],
    'layout_place': [np.zeros((0, 5))],
  }
  for each in questions:
    mine = [next(measured) for _ in each.asked]
    mass_PLN += [pages_PLN for pages_PLN, _ in mine]
    if each.layouts is None:
      continue
    n = len(each.layouts.boxes)
    mass_JLN = np.zeros((n, *shape), np.float16)
    count_J = np.zeros(n, np.int32)
    for chunk, (_, layouts_JLN) in zip(each.asked, mine):
      mass_JLN[chunk.layout_J] = layouts_JLN
      count_J[chunk.layout_J] = chunk.tokens_JI.sum(1)
    placed = each.layouts.placed(each.layouts.boxes)
    found['layout_mass'].append(mass_JLN)
    found['layout_tokens'].append(count_J)
    found['layout_place'].append(
      np.array([[p.page, *p.corners] for p in placed], float).reshape(-1, 5)
    )
  arrays = {'mass': np.concatenate(mass_PLN)}
  if layouts:
    arrays |= {name: np.concatenate(parts) for name, parts in found.items()}
  return {
    'rows': [each.row for each in questions],
    'rejected': rejected,
  }, arrays


def _measure(runner, asked, query, layouts):
  """(pages [P, L, N], layouts [J, L, N] or None) of each chunk, in order."""
  row = regions.QUERY_SETS.index(query)
  size = runner.batch_size
  for start in range(0, len(asked), size):
    batch = asked[start : start + size]
    out = runner.start(
      [each.encoded for each in batch],
      [each.annotated for each in batch],
      [features.keys(each.encoded) for each in batch],
      query if layouts else None,
    )
    seen = step.fetch(out, len(batch))
    for b, each in enumerate(batch):
      pages_PLN = seen['mass'][b, :, :, row, : each.n_pages]
      layouts_JLN = None
      if layouts:
        profile_LNI = seen['profile'][b, :, :, : each.tokens_JI.shape[1]]
        layouts_JLN = np.einsum(
          'LNI,JI->JLN',
          profile_LNI.astype(np.float32),
          each.tokens_JI.astype(np.float32),
        )
      yield pages_PLN.transpose(2, 0, 1), layouts_JLN
