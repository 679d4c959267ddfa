"""The examples of a report: small pictures, packed cells and attention.

What JavaScript gets is base64 of little-endian integers: 2 bytes a coordinate,
1 byte an attention value, on a square-root scale so that faint values keep
their digits:  value = top * (byte / 255) ** 2.
"""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from corejax import errors
from corejax import layout as layout_lib
from corejax import regions
from corejax import scores as scores_lib
from corejax.data import example as example_lib
from corejax.experiments import features
from corejax.experiments import measure
from corejax.experiments import resources as resources_lib
from corejax.experiments import step
from corejax.models import images

_SIDES = (768, 640, 512, 448, 384, 320, 256, 192, 128)
_TRIAL_SIDE = 192
_FORMS: dict[str, dict[str, Any]] = {'png': {}, 'jpeg': {'quality': 80}}
_PICTURE_BYTES = 30_000
_EXAMPLE_BYTES = 45_000


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
  """One example to look at.

  Attributes:
    example: pictures, question, answers, boxes.
    layout: where its visual tokens lie.
    evidence_I: bool [I].
    mass_LNQR: float [L, N, Q, R].
    count_R: int [R], tokens in each region.
    profile_LNI: float16 [L, N, I] or None, attention over the visual tokens.
    correct: is the teacher-forced argmax answer right?
  """

  example: example_lib.Example
  layout: layout_lib.VisualLayout
  evidence_I: np.ndarray
  mass_LNQR: np.ndarray
  count_R: np.ndarray
  profile_LNI: np.ndarray | None
  correct: bool


def choose(tasks: Sequence[str], limit: int) -> list[int]:
  """Indices of at most `limit` examples, spread over tasks and the data."""
  by_task: dict[str, list[int]] = {}
  for e, task in enumerate(tasks):
    by_task.setdefault(task, []).append(e)
  share = -(-limit // len(by_task))
  chosen: set[int] = set()
  for mine in by_task.values():
    # A step that no cluster size divides: neighbours share a picture.
    places = np.linspace(0, len(mine) - 1, min(share, len(mine))).round()
    chosen.update(mine[int(place)] for place in places)
  return sorted(sorted(chosen)[:limit])


def browse(
  resources: resources_lib.Resources,
  scores: scores_lib.Scores,
  rows: Sequence[Mapping[str, Any]],
  limit: int = 12,
) -> list[Shown]:
  """Reads some measured examples again, with their pictures.

  Args:
    resources: what they were measured with.
    scores: what was measured.
    rows: of examples.jsonl, in the order of the scores.
    limit: examples at most.
  """
  shown = []
  for e in choose(scores.tasks, limit):
    try:
      prepared = measure.prepare(
        resources.source, resources.loaded.processor, rows[e]['index']
      )
    except errors.Rejected:
      continue  # its file has gone since; the ranking does not need it
    profile = scores.profiles[e] if scores.profiles is not None else None
    shown.append(
      Shown(
        example=prepared.example,
        layout=prepared.encoded.layout,
        evidence_I=prepared.annotated.evidence_I,
        mass_LNQR=scores.mass_ELNQR[e],
        count_R=scores.count_ER[e],
        profile_LNI=profile,
        correct=bool(scores.correct_E[e]),
      )
    )
  return shown


def look(
  resources: resources_lib.Resources,
  prepared: measure.Prepared,
  profile_set: str = 'question',
) -> Shown:
  """Runs the model on one example.

  Args:
    resources: the model.
    prepared: the example.
    profile_set: query set whose attention over the pictures is kept.

  Raises:
    UserError: it is longer than the model's context.
  """
  length, most = len(prepared.encoded.tokens_T), resources.loaded.max_length
  if length > most:
    raise errors.UserError(
      f'{prepared.example.id}: {length} tokens, the model takes {most}; choose '
      'another example or fewer --pages, or see its tokens by --noattention'
    )
  n_data = resources.mesh.shape['data'] if resources.mesh else 1
  started = step.Runner(resources, n_data).start(
    [prepared.encoded],
    [prepared.annotated],
    [features.keys(prepared.encoded)],
    profile_set,
  )
  out = step.fetch(started, 1)
  annotated = prepared.annotated
  return Shown(
    example=prepared.example,
    layout=prepared.encoded.layout,
    evidence_I=annotated.evidence_I,
    mass_LNQR=out['mass'][0],
    count_R=np.bincount(annotated.region_T, minlength=len(regions.REGIONS)),
    profile_LNI=out['profile'][0, :, :, : len(annotated.visual_I)],
    correct=bool(out['correct'][0]),
  )


def picture(data: bytes, limit: int) -> dict[str, Any]:
  """A picture small enough to embed.

  Args:
    data: the encoded picture.
    limit: bytes at most; the smallest size is used whatever it takes.

  Returns:
    src (data URL), and width and height of the original in pixels.
  """
  full = Image.fromarray(images.decode(data))
  width, height = full.size
  full.thumbnail((_SIDES[0], _SIDES[0]), Image.Resampling.LANCZOS)
  trial = {form: _encode(full, _TRIAL_SIDE, form) for form in _FORMS}
  kind = min(trial, key=lambda form: len(trial[form]))
  # Drawn pictures have no JPEG fringes where the exact picture is small too.
  if len(trial['png']) <= limit // 4:
    kind = 'png'
  # Bytes grow a little slower than the area: sides far too large are skipped.
  hopeless = 1.5 * _TRIAL_SIDE * math.sqrt(limit / len(trial[kind]))
  best = trial[kind]
  for side in [s for s in _SIDES if s <= hopeless] or _SIDES[-1:]:
    best = _encode(full, side, kind)
    if len(best) <= limit:
      break
  return {
    'src': f'data:image/{kind};base64,{_base64(best)}',
    'width': width,
    'height': height,
  }


def _encode(full: Image.Image, side: int, form: str) -> bytes:
  small = full.copy()
  small.thumbnail((side, side), Image.Resampling.LANCZOS)
  buffer = io.BytesIO()
  small.save(buffer, form, **_FORMS[form])
  return buffer.getvalue()


def layout(cells: layout_lib.VisualLayout) -> dict[str, Any]:
  """The tokens' cells, each in shares of its own picture, packed."""
  size_I2 = np.asarray(cells.size_M2, np.float64)[cells.media_I]
  share_IW = cells.cell_IW / np.concatenate([size_I2, size_I2], axis=1)
  low = min(0.0, float(share_IW.min(initial=0.0)))
  span = max(1.0, float(share_IW.max(initial=1.0))) - low
  steps_IW = np.round((share_IW - low) / span * 65535).astype('<u2')
  return {
    'media': _base64(np.asarray(cells.media_I, '<u2').tobytes()),
    'cells': _base64(steps_IW.tobytes()),
    'low': low,
    'span': span,
    'base': _bits(cells.base_I) if cells.base_I.any() else None,
    # How many pictures from `media` on a token shows.
    'frames': _bits(cells.frames_I) if cells.frames_I is not None else None,
  }


def quantise(profile_XI: np.ndarray) -> tuple[list[float], str]:
  """(top value of each row, base64 of all rows), as the module's head says."""
  profile_XI = np.nan_to_num(np.asarray(profile_XI, np.float64)).clip(0)
  top_X = profile_XI.max(axis=1, initial=0.0)
  share_XI = profile_XI / np.where(top_X > 0, top_X, 1)[:, None]
  bytes_XI = np.round(255 * np.sqrt(share_XI)).astype(np.uint8)
  return [float(f'{top:.4g}') for top in top_X], _base64(bytes_XI.tobytes())


def example(
  shown: Shown, heads: Sequence[tuple[int, int]], layout_index: int
) -> dict[str, Any]:
  """One example as JavaScript gets it.

  Args:
    shown: the example.
    heads: (layer, head)s whose attention is kept, in the page's order.
    layout_index: its place among the page's layouts.
  """
  source = shown.example
  limit = min(_PICTURE_BYTES, _EXAMPLE_BYTES // len(source.media))
  layer_X, head_X = np.array(heads, int).reshape(-1, 2).T
  mass_XQR = np.asarray(shown.mass_LNQR, np.float64)[layer_X, head_X]
  tops, profile = None, None
  if shown.profile_LNI is not None:
    tops, profile = quantise(shown.profile_LNI[layer_X, head_X])
  return {
    'id': source.id,
    'task': source.task,
    'cluster': source.cluster,
    'question': source.question,
    'answer': source.answers[0] if source.answers else '',
    'correct': shown.correct,
    'media': [picture(data, limit) for data in source.media],
    'layout': layout_index,
    'evidence': [_box(box) for box in source.evidence],
    'distractors': [_box(box) for box in source.distractors],
    'tokens': _bits(shown.evidence_I),
    'count': [int(n) for n in shown.count_R],
    # Parts per million: a mass has no more digits than that.
    'mass': np.round(mass_XQR * 1e6).astype(int).tolist(),
    'tops': tops,
    'profile': profile,
  }


def legend() -> dict[str, Any]:
  """Names of the axes of `mass`, and which regions are visual."""
  return {
    'regions': list(regions.REGIONS),
    'visual': list(regions.VISUAL),
    'sets': list(regions.QUERY_SETS),
  }


def _box(box: example_lib.Box) -> list[float]:
  corners = (box.x0, box.y0, box.x1, box.y1)
  return [box.media, *(round(float(c), 5) for c in corners)]


def _bits(flags_I: np.ndarray) -> str:
  return _base64(np.asarray(flags_I, np.uint8).tobytes())


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode('ascii')
