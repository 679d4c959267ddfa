"""What `prefill` found, in plain words, whether there is a benefit or none."""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np

from corejax import describe
from corejax import plan as plan_lib
from corejax.experiments import ablate_sets
from corejax.experiments import bench_processes
from corejax.experiments import prefill_run
from corejax.experiments import prefill_sets
from corejax.experiments import prefill_table
from corejax.experiments import timed
from corejax.experiments import timed_table

TITLES = {
  prefill_sets.DENSE: 'all dense',
  prefill_sets.SPARSE: 'all sparse',
  prefill_sets.TOP: 'top RAM',
  prefill_sets.KV_TOP: 'top RAM, whole kv groups',
  prefill_sets.GIVEN: 'given heads',
  'layer_matched': 'layer-matched',
  'random': 'random',
  'bottom': 'bottom',
}
KINDS = {timed_table.RETRIEVAL: 'look-ups', timed_table.TWIN: 'twins'}


def plan(config, resources, scales, out) -> str:
  """What --dry_run prints."""
  loaded = resources.loaded
  source = scales[0].source
  heads = (
    config.heads or f'ranked on {config.data}/{ablate_sets.splits(config)[0]}'
  )
  return '\n'.join(
    [
      f'model    {loaded.key}: {loaded.n_layers} layers x {loaded.n_heads} '
      f'heads, {config.dtype}, {loaded.fingerprint}',
      f'data     {config.data}/{source.split}: {len(source)} records a length',
      f'lengths  {_lengths(scales)}',
      f'heads    {heads}',
      f'dense    {config.rhos}',
      f'out      {out}',
    ]
  )


def _lengths(scales: Sequence[prefill_run.Scale]) -> str:
  return ', '.join(
    f'{s.tokens} tokens ({s.pages} pages, window {s.window}, sink {s.sink})'
    for s in scales
  )


def head(config, resources, scales, sets, left_out, told, out) -> str:
  """What is printed before anything is measured."""
  loaded, longest = resources.loaded, scales[-1]
  geometry = timed.Geometry.of(resources)
  source = scales[0].source
  lines = [
    f'{config.model}: {loaded.n_layers} layers x {loaded.n_heads} heads'
    + (f' ({resources.embedded})' if resources.embedded else ''),
    f'{config.data}/{source.split}: {len(source)} records at '
    f'{_lengths(scales)}, under {len(sets)} sets of dense heads -> {out}',
    f'ranking  {told}',
    f'kernel   {geometry.picked(config.batch_size, longest.tokens)}',
  ]
  lines += [
    f'plan     {kv_line(longest.plan(each.heads), longest.tokens, geometry)}'
    for each in sets
    if each.name in (prefill_sets.TOP, prefill_sets.GIVEN)
  ]
  return '\n'.join([*lines, *(f'left out {line}' for line in left_out)])


def placed(
  scale: prefill_run.Scale, examples: Sequence[dict], longest: int
) -> str:
  """How far the evidence lies from where a sparse head can read."""
  flags = [
    row['outside']
    for row in examples
    if row['pages'] == scale.pages and row['outside'] is not None
  ]
  reach = scale.window + scale.sink
  held = 8 * reach <= scale.tokens
  share = f'{100 * np.mean(flags):.1f}%' if flags else 'of none'
  line = (
    f'{scale.tokens} tokens ({scale.pages} pages; longest {longest}): window '
    f'{scale.window} + sink {scale.sink} = {reach}, '
    f'{"at most" if held else "MORE than"} 1/8 of the prompt; evidence lies '
    f'outside of both for {share} of {len(flags)} look-ups'
  )
  if flags and np.mean(flags) < 0.9:
    line += ': LESS than the 90% that make this a test of retrieval'
  return line


def not_timed(scale: prefill_run.Scale) -> str:
  """Why a length has no time of the attention alone."""
  return (
    f'note     {scale.tokens} tokens ({scale.pages} pages): the attention '
    'alone was not timed, since all records of the batches that it is timed at '
    'were rejected; a larger --repeats has it timed at more of them'
  )


def summary(
  table: Sequence[prefill_table.Row],
  scales: Sequence[prefill_run.Scale],
  compared: Sequence[prefill_table.Compared],
) -> list[str]:
  """The longest length in full, the others in a line a budget.

  Args:
    table: all rows.
    scales: the lengths, the longest last.
    compared: of all lengths.
  """
  scale = scales[-1]
  retrieval = prefill_table.at(table, scale, timed_table.RETRIEVAL)
  twins = prefill_table.at(table, scale, timed_table.TWIN)
  kind = 'look-ups right' if retrieval else 'twins right'
  lines = [_dense(table, each) for each in scales]
  both = retrieval and twins
  lines += [
    f'at {scale.tokens} tokens: dense heads, {kind}, '
    + ('twins, ' if both else '')
    + 'attention alone, first token (times faster than all dense; ideal by '
    'elements, by tiles)'
    + ('' if both else f'; {"no twins" if retrieval else "no look-ups"} asked')
  ]
  for key, row in (retrieval or twins).items():
    alone = timed_table.milliseconds(row.kernel_s)
    if math.isfinite(row.kernel_s):
      alone += f' ms {row.kernel_up.value:.2f}x'
    lines.append(
      f'  {key[0]:>4} {TITLES[row.name]:<13} {timed_table.told(row.level)}  '
      + (f'{twins[key].level.value:.3f}  ' if both else '')
      + f'{alone}  {1e3 * row.first_s:.1f} ms {row.first_up.value:.2f}x  '
      f'({row.cost.element_ideal:.2f}x, {row.cost.tile_ideal:.2f}x)'
    )
  for each in compared:
    words = verdict(each)
    lines += words if each.row.scale is scale else words[:1]
  return lines


def _dense(table: Sequence[prefill_table.Row], scale: prefill_run.Scale) -> str:
  """What the model answers at a length with all heads dense."""
  parts = [
    f'{KINDS[kind]} {timed_table.told(row.level)}'
    for kind in KINDS
    for row in prefill_table.at(table, scale, kind).values()
    if row.name == prefill_sets.DENSE
  ]
  return f'{scale.tokens} tokens, all heads dense: {", ".join(parts)}'


def verdict(each: prefill_table.Compared) -> list[str]:
  """In plain words, with intervals, whatever it is."""
  row = each.row
  head = (
    f'{row.scale.tokens} tokens, {describe.count(row.n_dense, "head")} dense '
    f'({100 * row.cost.rho:.1f}%), {TITLES[row.name]}: '
  )
  kept = row.change.value >= 0 or row.change.high >= 0
  lines = [
    head + f'look-ups {timed_table.told(row.level)}, '
    f'{timed_table.signed(row.change)} against all dense: '
    + (
      'no loss is shown'
      if kept
      else 'dense attention of these heads alone does not keep the accuracy'
    )
  ]
  parts = [
    f'{TITLES[name]} {timed_table.signed(estimate)}'
    for name, estimate in each.controls.items()
  ]
  if each.rest is not None:
    parts.insert(0, f'all sparse {timed_table.signed(each.rest)}')
  if parts:
    fair = each.controls.get('layer_matched')
    if fair is None:
      so = ''
    elif fair.low > 0:
      so = '; so these heads matter more than others of their layers'
    elif fair.high < 0:
      so = '; so OTHERS of their layers matter more than these'
    else:
      so = '; they are not shown to matter more than others of their layers'
    lines.append(f'{head}above {", ".join(parts)}{so}')
  lines.append(head + _speed(each))
  return lines


def _speed(each: prefill_table.Compared) -> str:
  up = each.row.first_up
  if not math.isfinite(up.low):
    return (
      f'first token {up.value:.2f}x as fast as all dense, without an '
      'interval (fewer than 6 timed rounds)'
    )
  if up.low > 1:
    verdict = 'faster'
  elif up.high < 1:
    verdict = 'SLOWER'
  else:
    verdict = 'no faster, as far as these rounds tell'
  return (
    f'first token {timed_table.told(up)}x as fast as all dense: {verdict} '
    f'(attention alone {_times(each.row.kernel_up)}; its tiles '
    f'allow {each.row.cost.tile_ideal:.2f}x)'
  )


def _times(ratio: bench_processes.Ratio) -> str:
  told = timed_table.told(ratio)
  return f'{told}x' if math.isfinite(ratio.value) else told


def kv_line(
  plan: plan_lib.HeadPlan, length: int, geometry: timed.Geometry
) -> str:
  """A plan's report at a length."""
  return plan.report(
    length,
    geometry.n_layers,
    geometry.n_heads,
    geometry.n_kv_heads,
    geometry.head_dim,
    np.dtype(geometry.dtype).itemsize,
  )
