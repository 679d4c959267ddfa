"""Every set of dense heads on every batch, timed: what `prefill` measures.

A part of the store is one batch at one number of pages, all sets in turns:

    score, logprob [X, B]      of the calls that were timed
    first          [X, 1..]    seconds to the first token of the batch
    kernel         [X, 0..]    seconds of the attention alone, --repeats in all
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from corejax import errors
from corejax import heads as heads_lib
from corejax import plan as plan_lib
from corejax.data import example as example_lib
from corejax.experiments import prefill_sets
from corejax.experiments import resources as resources_lib
from corejax.experiments import sweep
from corejax.experiments import timed


@dataclasses.dataclass(frozen=True)
class Scale:
  """One length of the prompt.

  Attributes:
    pages: pages shown at once.
    source: the data at that many pages.
    tokens: of the first example's prompt.
    window, sink: of sparse heads at this length.
    block: edge of a tile, for ideals.
  """

  pages: int
  source: example_lib.Source
  tokens: int
  window: int
  sink: int
  block: int

  def plan(self, heads: heads_lib.HeadSet) -> plan_lib.HeadPlan:
    """The plan of a set of dense heads."""
    return plan_lib.HeadPlan(heads, self.window, self.sink, self.block)

  def cost(
    self, heads: heads_lib.HeadSet, n_layers: int, n_heads: int
  ) -> plan_lib.Cost:
    """What a set of dense heads costs at this length."""
    return self.plan(heads).cost(self.tokens, n_layers, n_heads)


def scale(
  resources: resources_lib.Resources,
  source: example_lib.Source,
  pages: int,
  window: str,
  sink: str,
  block: int,
  flag: str = '--pages',
) -> Scale:
  """Measures the first usable prompt of the data; nothing is computed.

  Args:
    resources: for the processor.
    source: the data at this number of pages.
    pages: how many are shown at once.
    window, sink: as prefill_sets.span takes them.
    block: edge of a tile.
    flag: where `pages` comes from.

  Raises:
    UserError: the prompt does not fit into the model's context, or no record
      can be used.
  """
  rejected = None
  for index in range(min(len(source), 8)):
    try:
      encoded = resources.loaded.processor.encode(source[index])
    except errors.Rejected as e:
      rejected = rejected or e
      continue
    tokens = encoded.prompt_len
    return Scale(
      pages,
      source,
      tokens,
      *prefill_sets.span(window, sink, tokens),
      block,
    )
  if rejected is None:
    raise errors.UserError(f'{source.name}/{source.split}: no records')
  if rejected.reason == errors.Reason.TOO_LONG:
    raise errors.UserError(
      f'{flag}: {pages} pages of {source.name} are beyond the context: '
      + rejected.detail.replace('--pages', flag)
    )
  raise errors.UserError(
    f'{pages} pages of {source.name}: the first records are all rejected '
    f'({rejected}); mend the data'
  )


class Runner:
  """Times all sets on a batch; compiles once a length."""

  def __init__(
    self,
    resources: resources_lib.Resources,
    scales: Sequence[Scale],
    sets: Sequence[prefill_sets.Assigned],
    batch_size: int,
    repeats: int,
  ):
    """Makes the controls of all plans.

    Args:
      resources: the model and where it runs.
      scales: the lengths.
      sets: the sets of dense heads.
      batch_size: examples of a call.
      repeats: timed rounds of every length at least, and exactly so many of
        the attention alone.
    """
    self._resources = resources
    self._size, self._repeats = batch_size, repeats
    self._rounds = [
      -(-repeats // max(1, -(-len(one.source) // batch_size))) for one in scales
    ]
    self._geometry = timed.Geometry.of(resources)
    shape = resources.loaded.n_layers, resources.loaded.n_heads
    self._controls = [
      [one.plan(assigned.heads).expand(*shape) for assigned in sets]
      for one in scales
    ]
    self._random = (0, ())
    self._warm: set[tuple[Any, ...]] = set()

  def start(self, read: Read) -> dict[str, Any]:
    """Runs all sets on a batch and waits for each."""
    scale, turn, batch = read.index, read.turn, read.batch
    n_sets, n = len(self._controls[scale]), len(batch.examples)
    if not n:
      empty = np.zeros((n_sets, 0), np.float32)
      none = np.zeros((n_sets, 0))
      return {
        'scale': np.array(scale),
        'score': empty,
        'logprob': empty,
        'first': none,
        'kernel': none,
      }
    resources = self._resources
    ready = timed.ready(resources, batch, self._size)
    if self._random[0] != ready.length:
      self._random = (
        ready.length,
        self._geometry.random(self._size, ready.length, resources.mesh),
      )
    controls = self._controls[scale]
    whole = [
      functools.partial(
        timed.prefill,
        resources.loaded.model,
        ready.inputs,
        control,
        ready.answer_rows_BA,
        ready.answer_BA,
        forward=resources.loaded.forward,
        attend=resources.attend,
        mesh=resources.mesh,
      )
      for control in controls
    ]
    alone = [
      functools.partial(
        timed.attention,
        *self._random[1],
        ready.inputs.mask,
        control.attend,
        attend=resources.attend,
      )
      for control in controls
    ]
    with jax.default_matmul_precision(resources.precision):
      if ready.shapes not in self._warm:  # compiles; not timed
        jax.block_until_ready((whole[0](), alone[0]()))
        self._warm.add(ready.shapes)
      rounds = self._rounds[scale]
      found, first_XR = timed.take_turns(whole, turn, rounds)
      left = max(0, min(rounds, self._repeats - turn * rounds))
      _, kernel_XR = timed.take_turns(alone, turn, left)
    found_X2B = np.stack([np.asarray(f)[:, :n] for f in found])
    return {
      'scale': np.array(scale),
      'score': found_X2B[:, 0],
      'logprob': found_X2B[:, 1],
      'first': first_XR,
      'kernel': kernel_XR,
    }


@dataclasses.dataclass(frozen=True)
class Read:
  """One batch on the host.

  Attributes:
    index: which length.
    offset: number of that length's first record, all lengths counted through.
    turn: number of the batch at this length.
    scale: the length.
    batch: what was read.
  """

  index: int
  offset: int
  turn: int
  scale: Scale
  batch: sweep.Batch

  def head(self) -> dict[str, Any]:
    """What a part of the store says of its records."""
    rows = rows_of(self.scale, self.batch)
    rejected = [dict(row) for row in self.batch.rejected]
    for row in (*rows, *rejected):
      row['index'] += self.offset
    return {'rows': rows, 'rejected': rejected}


def read(
  resources: resources_lib.Resources,
  scales: Sequence[Scale],
  size: int,
  numbers: Sequence[int],
  closing: Any,
) -> Read:
  """Reads the records of one batch; touches no device.

  Args:
    resources: for the processor.
    scales: the lengths.
    size: examples of a batch.
    numbers: of the records, all lengths counted through.
    closing: once it is set, the records that are left are not read.
  """
  offsets_S = offsets(scales)
  s = bisect.bisect(offsets_S, numbers[0]) - 1
  local = [number - offsets_S[s] for number in numbers]
  batch = sweep.read(resources, scales[s].source, local, closing)
  return Read(s, offsets_S[s], local[0] // size, scales[s], batch)


def offsets(scales: Sequence[Scale]) -> list[int]:
  """Number of the first record of each length, all lengths counted through."""
  sizes = [len(scale.source) for scale in scales]
  return [sum(sizes[:s]) for s in range(len(sizes))]


def rows_of(scale: Scale, batch: sweep.Batch) -> list[dict]:
  """What examples.jsonl says of each: also where the evidence lies.

  `outside`: all of the evidence is beyond the window of the row that answers,
  and beyond the sinks; None where there is no evidence.
  """
  rows = batch.rows()
  for row, encoded, annotated in zip(rows, batch.encoded, batch.annotated):
    evidence_I = encoded.visual_I[annotated.evidence_I]
    last = encoded.prompt_len - 1
    outside = None
    if len(evidence_I):
      outside = bool(
        (last - evidence_I >= scale.window).all()
        and (evidence_I >= scale.sink).all()
      )
    row.update(pages=scale.pages, outside=outside, prompt=encoded.prompt_len)
  return rows
