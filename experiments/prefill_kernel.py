"""`prefill --kernel_only`: the attention call alone, at the lengths asked for.

    for every geometry, for every length:  expected time over --max_seconds?
        no    all dense and every dense fraction in turns, one executable
        yes   left out, and the expected time is said

One layer, one sequence, random numbers. What is expected follows from the last
length that was timed (at first a short one): dense attention costs the square
of the length.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import pathlib
import re
from typing import TYPE_CHECKING, Any

from corejax import errors
from corejax.experiments import cli as cli_lib

if TYPE_CHECKING:
  from corejax import plan as plan_lib
  from corejax.experiments import bench_processes

COLUMNS = (
  'heads',
  'kv_heads',
  'head_dim',
  'dtype',
  'implementation',
  'length',
  'rho',
  'dense_heads',
  'window',
  'sink',
  'rounds',
  'kernel_ms',
  'kernel_speedup',
  'speedup_ci_low',
  'speedup_ci_high',
  'attended',
  'element_ideal',
  'tile_ideal',
  'of_tile_ideal',
  'first_token_ms',
)
_GEOMETRY = re.compile(r'([1-9]\d{0,3})/([1-9]\d{0,3})', re.ASCII)
_SHORT = 1024  # what the first length is guessed from


@dataclasses.dataclass(frozen=True)
class Row:
  """One plan at one length.

  Attributes:
    geometry: (query heads, kv heads).
    n_dense: dense heads of the layer.
    plan, cost: what sparse heads read.
    seconds: median.
    up: times faster than all dense in the same rounds.
    rounds: timed.
    implementation: the kernel that served.
  """

  geometry: tuple[int, int]
  n_dense: int
  plan: plan_lib.HeadPlan
  cost: plan_lib.Cost
  seconds: float
  up: bench_processes.Ratio
  rounds: int
  implementation: str

  @property
  def of_tile_ideal(self) -> float:
    """Share of the tile ideal that was reached."""
    return self.up.value / self.cost.tile_ideal


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run returns.

  Attributes:
    rows: of kernel.csv.
    skipped: what was left out, with its estimate, in words.
    out: the run folder.
  """

  rows: list[Row]
  skipped: list[str]
  out: pathlib.Path


def parse_geometries(text: str) -> list[tuple[int, int]]:
  """'28/4,32/8' -> query heads and kv heads.

  Raises:
    UserError: one is none.
  """
  found = []
  for part in text.split(','):
    match = _GEOMETRY.fullmatch(part.strip())
    if not match or int(match[1]) % int(match[2]):
      raise errors.UserError(
        f'--geometries={text[:60]}: {part.strip()[:40]!r} is not query heads / '
        'kv heads, the first a multiple of the second, as 28/4'
      )
    pair = int(match[1]), int(match[2])
    if pair not in found:
      found.append(pair)
  return found


def run(config: Any, out: pathlib.Path, stop: cli_lib.Stop) -> Result | None:
  """Times, prints and writes.

  Args:
    config: a prefill.Config.
    out: the run folder.
    stop: what ends it early.

  Raises:
    UserError: something outside is wrong.
  """
  geometries = parse_geometries(config.geometries)
  with stop.at_once():
    import jax

    from corejax.experiments import bench_processes
    from corejax.experiments import compile_cache
    from corejax.experiments import prefill_sets
    from corejax.experiments import resources as resources_lib
    from corejax.experiments import runs

    resources_lib.quiet()
    lengths = prefill_sets.parse_counts(config.lengths, '--lengths')
    device = jax.devices()[0].device_kind
  if config.mesh:
    raise errors.UserError(
      f'--mesh={config.mesh[:40]}: --kernel_only times one device; leave it out'
    )
  where = f'{device}; {bench_processes.machine()}'
  if config.dry_run:
    print(
      f'attention alone on {where}: {config.geometries} heads of '
      f'{config.head_dim}, {config.dtype}, lengths {config.lengths}\nout      '
      f'{out}'
    )
    return None
  record = {
    'experiment': 'prefill --kernel_only',
    'flags': dataclasses.asdict(config),
    'device': where,
  }
  print(
    f'attention alone, {config.dtype}, heads of {config.head_dim}, one layer '
    f'and one sequence, on {where} -> {out}',
    flush=True,
  )
  # Nothing is resumed: times of two sessions do not compare.
  with (
    runs.open_run(out, {'prefill_kernel': 1}, record, False) as folder,
    compile_cache.beside(out),
    stop.at_once(),
  ):
    rows: list[Row] = []
    skipped: list[str] = []
    for geometry in geometries:
      _geometry(config, geometry, lengths, rows, skipped)
    _write(config, folder, rows, skipped, where)
  print(f'files    {out}/report.html, kernel.csv, speed.png, run.json')
  return Result(rows, skipped, out)


def _geometry(config, geometry, lengths, rows, skipped) -> None:
  """All lengths of one geometry, until one is expected to take too long."""
  known = None
  for length in lengths:
    if known is None:
      short = min(_SHORT, length)
      known = short, _time_dense(config, geometry, short)
    calls = (config.repeats + 1) * len(_counts(config, geometry[0]))
    # All sets as if they were dense: it must not be more.
    expected = known[1] * (length / known[0]) ** 2 * calls
    if expected > config.max_seconds:
      line = (
        f'{geometry[0]}/{geometry[1]} heads at {length} tokens: about '
        f'{_duration(expected)} for {calls} calls '
        f'({_duration(expected / calls)} each, all dense), over '
        f'--max_seconds={config.max_seconds:g}'
      )
      skipped.append(line)
      print(f'skipped  {line}', flush=True)
      continue
    here = _length(config, geometry, length)
    rows += here
    known = length, here[-1].seconds
    for row in here:
      print(_line(row), flush=True)


def _duration(seconds: float) -> str:
  """'0.85 s', '85 s', '14 min' or '4.8 h'."""
  if seconds < 120:
    return f'{seconds:.2g} s' if seconds < 10 else f'{seconds:.0f} s'
  if seconds < 7200:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'


def _counts(config, n_heads: int) -> list[int]:
  """Numbers of dense heads, ascending, all of them last."""
  from corejax import plan as plan_lib
  from corejax.experiments import prefill_sets

  shares = prefill_sets.parse_fractions(config.rhos)
  return sorted({n_heads, *(plan_lib.budget(s, 1, n_heads) for s in shares)})


def _shape(config, geometry):
  """The timed.Geometry of one layer."""
  import jax.numpy as jnp

  from corejax.experiments import timed

  n_heads, n_kv_heads = geometry
  dtype = jnp.dtype(config.dtype)
  return timed.Geometry(1, n_heads, n_kv_heads, config.head_dim, dtype)


def _calls(config, geometry, length: int, counts) -> tuple[list[Any], list]:
  """(one call for each number of dense heads, their plans)."""
  from corejax import heads as heads_lib
  from corejax import masks
  from corejax import plan as plan_lib
  from corejax.experiments import prefill_sets
  from corejax.experiments import timed
  from corejax.kernels import dispatch

  n_heads = geometry[0]
  shape = _shape(config, geometry)
  arrays = shape.random(1, length)
  window, sink = prefill_sets.span(config.window, config.sink, length)
  plans = [
    # Spread over the groups, as heads that are found are.
    plan_lib.HeadPlan(
      heads_lib.HeadSet((0, i * n_heads // k) for i in range(k)),
      window,
      sink,
      config.block,
    )
    for k in counts
  ]
  return [
    functools.partial(
      timed.attention,
      *arrays,
      masks.AttnMask(),
      plan.expand(1, n_heads).attend,
      attend=dispatch.attend(),
    )
    for plan in plans
  ], plans


def _precision(config):
  """Float32 means float32, as everywhere."""
  import jax

  full = config.dtype == 'float32'
  return jax.default_matmul_precision('highest' if full else 'default')


def _time_dense(config, geometry, length: int) -> float:
  """Seconds of one dense call; its compilation is not counted."""
  import jax

  from corejax.experiments import timed

  (call,), _ = _calls(config, geometry, length, [geometry[0]])
  with _precision(config):
    jax.block_until_ready(call())
    return min(timed.clock(call)[1] for _ in range(3))


def _length(config, geometry, length: int) -> list[Row]:
  """Every plan at one length, all dense last."""
  import jax
  import numpy as np

  from corejax.experiments import bench_processes
  from corejax.experiments import timed

  counts = _counts(config, geometry[0])
  calls, plans = _calls(config, geometry, length, counts)
  picked = _shape(config, geometry).picked(1, length)
  with _precision(config):
    jax.block_until_ready(calls[-1]())  # compiles for all of them
    _, seconds_XR = timed.take_turns(calls, 0, config.repeats)
  return [
    Row(
      geometry,
      k,
      plan,
      plan.cost(length, 1, geometry[0]),
      float(np.median(seconds_R)),
      bench_processes.ratio(seconds_XR[-1], seconds_R),
      config.repeats,
      picked,
    )
    for k, plan, seconds_R in zip(counts, plans, seconds_XR)
  ]


def _line(row: Row) -> str:
  n_heads, n_kv_heads = row.geometry
  return (
    f'{row.cost.length:>7} tokens  {n_heads}/{n_kv_heads}  {row.n_dense:>3} '
    f'dense ({100 * row.cost.rho:5.1f}%)  window {row.plan.window} sink '
    f'{row.plan.sink}  {1e3 * row.seconds:10.2f} ms  {row.up}x  ideal '
    f'{row.cost.element_ideal:.2f}x, by tiles {row.cost.tile_ideal:.2f}x '
    f'({100 * row.of_tile_ideal:.0f}% of it)  by {row.implementation}'
  )


def _csv(config, rows: list[Row]) -> str:
  from corejax.experiments import timed_table

  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(COLUMNS)
  for row in rows:
    writer.writerow(
      [
        *row.geometry,
        config.head_dim,
        config.dtype,
        row.implementation,
        row.cost.length,
        f'{row.cost.rho:.6g}',
        row.n_dense,
        row.plan.window,
        row.plan.sink,
        row.rounds,
        f'{1e3 * row.seconds:.6g}',
        f'{row.up.value:.6g}',
        timed_table.cell(row.up.low),
        timed_table.cell(row.up.high),
        f'{row.cost.attended:.6g}',
        f'{row.cost.element_ideal:.6g}',
        f'{row.cost.tile_ideal:.6g}',
        f'{row.of_tile_ideal:.6g}',
        '',  # no model, so no first token
      ]
    )
  return buffer.getvalue()


def _write(config, folder, rows, skipped, where: str) -> None:
  from corejax.experiments import prefill_kernel_report
  from corejax.experiments import report

  if not rows:
    raise errors.UserError(
      f'--lengths={config.lengths[:60]}: all left out, see above; give shorter '
      'ones or a larger --max_seconds'
    )
  names = dict.fromkeys(row.implementation for row in rows)
  about = f'{config.dtype}, heads of {config.head_dim}, by {", ".join(names)}'
  picture = prefill_kernel_report.figure(rows, f'attention alone, {about}')
  folder.write('kernel.csv', _csv(config, rows))
  folder.write('speed.png', picture)
  folder.write(
    report.FILE,
    prefill_kernel_report.page(
      rows,
      skipped,
      picture,
      f'{about}; {where}',
    ),
  )
  folder.record['summary'] = [_line(row) for row in rows]
  folder.record['skipped'] = skipped
