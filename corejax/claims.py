"""The protocol's rules: estimates -> for, against or undecided.

    case = wrecked(...)           one model on one data set
    verdict([case, ...])          supported, contradicted, mixed or not tested

The rules are those of experiments/PROTOCOL.md, which was fixed before its
models were trained; a test compares the numbers. Where a rule for and one
against both apply, against stands.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

FOR, AGAINST, UNDECIDED = 'for', 'against', 'undecided'
UNTESTABLE = 'not testable'
SUPPORTED, CONTRADICTED, MIXED = 'supported', 'contradicted', 'mixed'
UNTESTED = 'not tested'

LEAST_INTACT = 0.90  # accuracy on every task of the data set
SPARSE, SPREAD = 0.15, 0.25  # share of the heads that hold half of the mass
WRECKED, KEPT = 0.5, 0.9  # of the intact accuracy
NO_EFFECT = -0.15  # of the primary endpoint
HARMLESS, HARM = -0.10, -0.05  # change of the accuracy
AS_DEEP, SHALLOW = 0.8, 0.2  # of what cutting RAM's heads takes
Q = 0.01
SUPPORTING = 5 / 6  # share of the cases


@dataclasses.dataclass(frozen=True)
class Case:
  """One claim on one model and data set.

  Attributes:
    claim: its number in the protocol, with a letter where it has parts.
    model, data: what it was tested on; data may be several, or ''.
    what: the part of the claim where there are many, as a mode or a proxy.
    value, low, high: what the rule looks at; nan where there is none.
    verdict: FOR, AGAINST, UNDECIDED or UNTESTABLE.
  """

  claim: str
  model: str
  data: str
  what: str
  value: float
  low: float
  high: float
  verdict: str

  def untestable(self) -> Case:
    """The same where the model does not answer well enough."""
    return dataclasses.replace(self, verdict=UNTESTABLE)


def _decide(good: bool, bad: bool) -> str:
  return AGAINST if bad else FOR if good else UNDECIDED


def sparse(estimate: Any) -> str:
  """Claim 1, of the share of the heads that hold half of the RAM."""
  return _decide(estimate.high < SPARSE, estimate.low > SPREAD)


def wrecked(estimate: Any, intact: float) -> str:
  """Claim 2, of the accuracy on look-ups with the top heads cut."""
  return _decide(estimate.high < WRECKED * intact, estimate.low > KEPT * intact)


def specific(value: Any, retrieval: Any | None = None) -> str:
  """Claims 3 and 7, of the primary endpoint.

  Args:
    value: of the endpoint.
    retrieval: its part on look-ups; None leaves that out.
  """
  good = value.high < 0 and (retrieval is None or retrieval.high < 0)
  return _decide(good, value.low > NO_EFFECT)


def harmless(change: Any) -> str:
  """Claim 4, of the change of the accuracy with low-ranked heads cut."""
  return _decide(change.low > HARMLESS, change.high < HARM)


def same(verdicts: Sequence[str]) -> str:
  """Claims 5 and 10, of the verdicts on two scales or in two families."""
  if UNTESTABLE in verdicts:
    return UNTESTABLE
  return _decide(len(set(verdicts)) == 1, set(verdicts) == {FOR, AGAINST})


def shared(spearman: Any) -> str:
  """Claim 6, of the rank agreement between two data sets."""
  good = spearman.q < Q and spearman.low > spearman.chance
  return _decide(good, spearman.low <= 0)


def own(differ: bool) -> str:
  """Claim 6, do the two sets of heads differ?"""
  return _decide(differ, not differ)


def found(share: float, endpoint: Any | None) -> str:
  """Claim 8, of a ranking's heads.

  Args:
    share: of what cutting RAM's heads takes; nan where that is nothing.
    endpoint: with these heads as the top.
  """
  if math.isnan(share) or endpoint is None:
    return UNDECIDED
  return _decide(share >= AS_DEEP and endpoint.high < 0, share < SHALLOW)


def verdict(cases: Sequence[Case]) -> str:
  """What all cases of a claim come to."""
  tested = [c.verdict for c in cases if c.verdict != UNTESTABLE]
  if not tested:
    return UNTESTED
  n_for, n_against = tested.count(FOR), tested.count(AGAINST)
  if not n_against and n_for >= SUPPORTING * len(tested) - 1e-9:
    return SUPPORTED
  if 2 * n_against >= len(tested):
    return CONTRADICTED
  return MIXED
