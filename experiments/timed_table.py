"""Several ways to run the same prompts: accuracy, its change, and speed."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from corejax import describe
from corejax import effects as effects_lib
from corejax.experiments import bench_processes
from corejax.stats import accuracy

RETRIEVAL, TWIN = effects_lib.RETRIEVAL, effects_lib.TWIN


@dataclasses.dataclass(frozen=True, eq=False)
class Timed:
  """Answers and times of X ways on E examples in R timed rounds.

  Attributes:
    score_XE: 1 where the forced answer is the likeliest, else 0; nan where a
      way has no answer of its own.
    first_XR: seconds to the first token of a whole batch.
    kernel_XR: seconds of the attention of all layers alone; nan if not timed.
    clusters: E labels.
    tasks: E names.
    twin_E: bool, is the example one without a look-up?
    batch_size: examples of a timed call.
  """

  score_XE: np.ndarray
  first_XR: np.ndarray
  kernel_XR: np.ndarray
  clusters: Sequence[str]
  tasks: Sequence[str]
  twin_E: np.ndarray
  batch_size: int

  __repr__ = describe.fields

  def kinds(self) -> dict[str, np.ndarray]:
    """'retrieval' and 'twin' -> bool [E], as far as they are asked."""
    pairs = ((RETRIEVAL, ~self.twin_E), (TWIN, self.twin_E))
    return {name: used_E for name, used_E in pairs if used_E.any()}

  def level(self, which: Sequence[int], used_E: np.ndarray):
    """Accuracy of a way, or the mean over draws of one: Wilson's interval."""
    score_SE = self.score_XE[list(which)][:, used_E]
    clusters = np.asarray(self.clusters)[used_E]
    found = accuracy.wilson(score_SE.mean(0), clusters)
    if len(which) > 1:
      found = accuracy.over_draws(found, score_SE.mean(1))
    return _within(found, 0.0)

  def change(
    self, which: Sequence[int], others: Sequence[int], used_E: np.ndarray
  ) -> accuracy.Estimate:
    """Accuracy of `which` minus that of `others`, paired by example.

    Args:
      which, others: draws of one way each; as many, or one of either. What
        is held against itself differs by nothing, without doubt.
      used_E: bool [E].
    """
    clusters = np.asarray(self.clusters)[used_E]
    a_SE = self.score_XE[list(which)][:, used_E]
    b_SE = self.score_XE[list(others)][:, used_E]
    found = accuracy.difference(a_SE.mean(0), b_SE.mean(0), clusters)
    spread_S = a_SE.mean(1) - b_SE.mean(1)  # one side or both were drawn
    if len(spread_S) > 1:
      found = accuracy.over_draws(found, spread_S)
    if list(which) == list(others):
      return dataclasses.replace(found, low=0.0, high=0.0)
    return _within(found, -1.0)

  def seconds(self, which: Sequence[int], kernel: bool = False) -> float:
    """Median over rounds and draws."""
    table_XR = self.kernel_XR if kernel else self.first_XR
    return float(np.median(table_XR[list(which)]))

  def speedup(
    self, base: int, which: Sequence[int], kernel: bool = False
  ) -> bench_processes.Ratio:
    """How many times faster than way `base`, paired by round.

    Draws of a round count once, by their median.
    """
    table_XR = self.kernel_XR if kernel else self.first_XR
    if not np.isfinite(table_XR).all():
      return bench_processes.Ratio(math.nan, math.nan, math.nan)
    theirs_R = np.median(table_XR[list(which)], 0)
    return bench_processes.ratio(table_XR[base].tolist(), theirs_R.tolist())


def rounds(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Seconds [X, R] of all parts; one round of nan where none was timed."""
  seconds_XR = np.concatenate(parts, 1)
  if seconds_XR.shape[1]:
    return seconds_XR
  return np.full((len(seconds_XR), 1), np.nan)


def _within(estimate: accuracy.Estimate, least: float) -> accuracy.Estimate:
  return dataclasses.replace(
    estimate,
    low=float(np.clip(estimate.low, least, 1.0)),
    high=float(np.clip(estimate.high, least, 1.0)),
  )


def milliseconds(seconds: float) -> str:
  """'81.2', or that there is nothing."""
  return f'{1e3 * seconds:.1f}' if math.isfinite(seconds) else 'not timed'


def cell(number: float) -> str:
  """A number in a CSV file: empty where there is none."""
  return f'{number:.6g}' if math.isfinite(number) else ''


def told(estimate: accuracy.Estimate | bench_processes.Ratio) -> str:
  """'0.812 [0.774, 0.846]'."""
  if not math.isfinite(estimate.value):
    return 'not timed'
  if not math.isfinite(estimate.low):
    return f'{estimate.value:.3f}'
  return f'{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]'


def signed(estimate: accuracy.Estimate) -> str:
  """'+0.812 [+0.774, +0.846]'."""
  value, low, high = estimate.value, estimate.low, estimate.high
  if not math.isfinite(low):
    return f'{value:+.3f}'
  return f'{value:+.3f} [{low:+.3f}, {high:+.3f}]'
