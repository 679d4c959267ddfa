"""What the model is shown: which tokens are this box?

    python -m experiments.inspect --example=0
    python -m experiments.inspect --checkpoint=DIR --data=mmdocir \\
        --data_dir=DIR --example=7

Prints the prompt's tokens with their regions and writes, into --out, one PNG
per picture (token grid, evidence tokens, boxes) and inputs.npz: the arrays the
forward takes, under Hugging Face's names, with region, rows, row_set, cover;
and, unless --noattention, report.html: where each head looks.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from typing import TYPE_CHECKING

from corejax import errors
from corejax.experiments import cli as cli_lib
from corejax.experiments import config as config_lib

if TYPE_CHECKING:
  from corejax.data import example as example_lib


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Shared):
  """Settings of an inspection."""

  example: str = config_lib.setting('0', 'id or record number of the example')
  attention: bool = config_lib.setting(
    True, 'run the model, and show in report.html where each head looks'
  )


@dataclasses.dataclass(frozen=True)
class Result:
  """What an inspection returns.

  Attributes:
    example: the example shown.
    out: the folder written.
    arrays: what inputs.npz holds.
    text: the token listing.
  """

  example: example_lib.Example
  out: pathlib.Path
  arrays: dict
  text: str


def find(source, wanted: str) -> int:
  """Record number of an example given by number or id.

  Raises:
    UserError: there is none.
  """
  if re.fullmatch(r'\d{1,9}', wanted, re.ASCII):
    if int(wanted) < len(source):
      return int(wanted)
    raise errors.UserError(
      f'--example={wanted}: {source.name}/{source.split} has records 0 to '
      f'{len(source) - 1} (--limit says how many)'
    )
  for index in range(len(source)):
    try:
      if source[index].id == wanted:
        return index
    except errors.Rejected:
      continue
  raise errors.UserError(
    f'--example={wanted}: no usable example of {source.name}/{source.split} '
    f'has this id; give a record number from 0 to {len(source) - 1}'
  )


def listing(prepared, decode) -> str:
  """The prompt's tokens with their regions, runs of visual tokens folded."""
  from corejax import regions

  encoded, annotated = prepared.encoded, prepared.annotated
  row_sets: dict[int, list[str]] = {}
  for name, rows in annotated.rows.items():
    for row in rows:
      row_sets.setdefault(int(row), []).append(name)
  lines, start = [], 0
  tokens, region = encoded.tokens_T, annotated.region_T
  feature = encoded.feature_T.reshape(len(tokens), -1)[:, 0]
  while start < len(tokens):
    stop = start + 1
    if region[start] in regions.VISUAL:
      while (
        stop < len(tokens)
        and region[stop] == region[start]
        and feature[stop] >= 0
      ):
        stop += 1
    name = regions.REGIONS[region[start]]
    where = f'{start}' if stop == start + 1 else f'{start}-{stop - 1}'
    marks = ' '.join(row_sets.get(start, []))
    token = decode(int(tokens[start]))
    lines.append(f'{where:>11}  {name:14} {token!r:18} {marks}'.rstrip())
    start = stop
  return '\n'.join(lines)


def run(config: Config) -> Result | None:
  """Shows one example as the model gets it.

  Raises:
    UserError: no such example, it is rejected (the reason is said), or the
      folder cannot be written.
  """
  with cli_lib.Stop() as stop, stop.at_once():
    return _run(config)


def _run(config: Config) -> Result | None:
  from corejax.experiments import compile_cache
  from corejax.experiments import measure
  from corejax.experiments import resources as resources_lib
  from corejax.experiments import runs

  source = resources_lib.load_source(config)
  processor = resources_lib.load_processor(config)
  index = find(source, config.example)
  try:
    prepared = measure.prepare(source, processor, index)
  except errors.Rejected as e:
    raise errors.UserError(
      f'--example={config.example}: rejected, {e}; choose another'
    ) from e
  example, annotated = prepared.example, prepared.annotated
  text = listing(prepared, processor.tokenizer.convert_ids_to_tokens)
  boxes = ', '.join(str(b) for b in example.evidence)
  print(f'{example.id}  task {example.task}  cluster {example.cluster}')
  print(f'question  {example.question}')
  print(f'answer    {example.answers[0]}')
  print(
    f'evidence  {boxes}: {int(annotated.evidence_I.sum())} of '
    f'{len(annotated.visual_I)} visual tokens (chance {annotated.chance:.4f})'
  )
  print(text)
  if config.dry_run:
    return None
  out = runs.folder_path(
    config.out or f'runs/inspect/{config.model}-{config.data}/{index}'
  )
  with runs.locked(out), compile_cache.beside(out):
    return _write(config, out, prepared, text)


def _arrays(prepared) -> dict:
  """What inputs.npz holds."""
  import numpy as np

  from corejax import regions

  example, encoded = prepared.example, prepared.encoded
  annotated, layout = prepared.annotated, encoded.layout
  cover_I = np.max([layout.cover(box) for box in example.evidence], axis=0)
  return {
    'input_ids': encoded.tokens_T[None],
    'attention_mask': np.ones_like(encoded.tokens_T)[None],
    'position_ids': np.expand_dims(encoded.positions_T, -2),
    **encoded.hf_vision(),
    'image_sizes': layout.size_M2[:, ::-1],  # height, width
    'region': annotated.region_T,
    'rows': np.concatenate([annotated.rows[n] for n in regions.QUERY_SETS]),
    'row_set': np.concatenate(
      [
        np.full(len(annotated.rows[n]), q, np.int32)
        for q, n in enumerate(regions.QUERY_SETS)
      ]
    ),
    'cover': cover_I.astype(np.float32),
    'visual_index': encoded.visual_I,
    'visual_media': layout.media_I,
    'visual_cell': layout.cell_IW,
    # From visual_media on, so many show in the cell.
    **({} if layout.frames_I is None else {'visual_frames': layout.frames_I}),
    'regions': np.array(regions.REGIONS),
    'query_sets': np.array(regions.QUERY_SETS),
  }


def _write(config: Config, out: pathlib.Path, prepared, text: str) -> Result:
  """Fills the folder."""
  import io

  import numpy as np

  from corejax import parts
  from corejax.experiments import figures
  from corejax.experiments import report
  from corejax.experiments import report_examples
  from corejax.experiments import resources as resources_lib
  from corejax.models import images

  example, arrays = prepared.example, _arrays(prepared)
  for earlier in (report.FILE, *(p.name for p in out.glob('media-*.png'))):
    with parts.changing(out / earlier):
      (out / earlier).unlink(missing_ok=True)
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  parts.write_atomic(out / 'inputs.npz', buffer.getvalue())
  parts.write_atomic(out / 'tokens.txt', (text + '\n').encode())
  for media, encoded_picture in enumerate(example.media):
    parts.write_atomic(
      out / f'media-{media}.png',
      figures.token_map(
        np.asarray(images.decode(encoded_picture)),
        media,
        prepared.encoded.layout,
        prepared.annotated.evidence_I,
        example,
        f'{example.id}, picture {media}: {example.question[:180]}',
      ),
    )
  files = 'inputs.npz, tokens.txt, media-*.png'
  if config.attention:
    resources = resources_lib.load(config)
    page = report.inspect_page(
      report_examples.look(resources, prepared),
      report.About.of(resources),
      text,
    )
    parts.write_atomic(out / report.FILE, page.encode())
    files += f', {report.FILE}'
  print(f'files     {out}/{files}')
  return Result(example, out, arrays, text)


def cli(argv: list[str] | None = None) -> int:
  """Entry point."""
  return cli_lib.main(argv, Config, run, __doc__ or '')


if __name__ == '__main__':
  sys.exit(cli())
