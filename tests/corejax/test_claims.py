"""The protocol's rules at their edges, and what many cases come to."""

import dataclasses
import math
import pathlib
import re

import pytest

from corejax import claims
from corejax.stats import accuracy
from helpers import tree

F, A, U, N = (
  claims.FOR,
  claims.AGAINST,
  claims.UNDECIDED,
  claims.UNTESTABLE,
)


def estimate(low, high):
  return accuracy.Estimate((low + high) / 2, low, high, 100, 50, 1.0)


@pytest.mark.parametrize(
  'low, high, wanted',
  [
    (0.03, 0.14, F),
    (0.03, 0.16, U),
    (0.16, 0.24, U),
    (0.20, 0.40, U),
    (0.26, 0.40, A),
  ],
)
def test_sparse(low, high, wanted):
  assert claims.sparse(estimate(low, high)) == wanted


@pytest.mark.parametrize(
  'low, high, wanted',
  [(0.1, 0.44, F), (0.1, 0.46, U), (0.5, 0.8, U), (0.82, 0.88, A)],
)
def test_wrecked_is_relative_to_the_intact_model(low, high, wanted):
  assert claims.wrecked(estimate(low, high), intact=0.9) == wanted


@pytest.mark.parametrize(
  'value, retrieval, wanted',
  [
    ((-0.9, -0.5), (-0.9, -0.6), F),
    ((-0.9, -0.5), (-0.9, 0.1), U),  # twins alone do it
    ((-0.2, 0.1), (-0.9, -0.6), U),
    ((-0.2, -0.01), (-0.9, -0.6), F),
    ((-0.106, 0.106), (-0.075, 0.075), A),  # not one answer changes
    ((-0.14, -0.01), (-0.14, -0.01), A),  # surely there, and surely small
  ],
)
def test_specific(value, retrieval, wanted):
  assert claims.specific(estimate(*value), estimate(*retrieval)) == wanted


def test_the_reduced_grid_asks_for_the_endpoint_alone():
  assert claims.specific(estimate(-0.9, -0.5)) == F


@pytest.mark.parametrize(
  'low, high, wanted',
  [
    (-0.075, 0.075, F),  # not one answer changes
    (-0.11, 0.01, U),
    (-0.11, -0.04, U),
    (-0.3, -0.06, A),
    (-0.09, -0.06, A),  # surely there, if small
  ],
)
def test_harmless(low, high, wanted):
  assert claims.harmless(estimate(low, high)) == wanted


@pytest.mark.parametrize(
  'verdicts, wanted',
  [
    ([F, F], F),
    ([A, A], F),
    ([U, U], F),
    ([F, U], U),
    ([A, U], U),
    ([F, A], A),
    ([F, N], N),
  ],
)
def test_same(verdicts, wanted):
  assert claims.same(verdicts) == wanted


@dataclasses.dataclass
class Spearman:
  low: float
  q: float
  chance: float = 0.0


def test_shared_and_own():
  assert claims.shared(Spearman(0.2, 0.001)) == F
  assert claims.shared(Spearman(0.2, 0.02)) == U
  assert claims.shared(Spearman(-0.1, 0.001)) == A
  assert (claims.own(True), claims.own(False)) == (F, A)


def test_found():
  deep = estimate(-0.9, -0.5)
  assert claims.found(0.8, deep) == F
  assert claims.found(0.8, estimate(-0.9, 0.1)) == U
  assert claims.found(0.5, deep) == U
  assert claims.found(0.19, deep) == A
  assert claims.found(math.nan, deep) == U
  assert claims.found(0.9, None) == U


def cases(verdicts):
  return [claims.Case('1', 'm', 'd', '', 0.0, 0.0, 0.0, v) for v in verdicts]


@pytest.mark.parametrize(
  'verdicts, wanted',
  [
    ([F] * 6, claims.SUPPORTED),
    ([F] * 5 + [U], claims.SUPPORTED),
    ([F] * 4 + [U] * 2, claims.MIXED),
    ([F] * 5 + [A], claims.MIXED),
    ([F] * 11 + [A], claims.MIXED),
    ([A] * 3 + [F] * 3, claims.CONTRADICTED),
    ([A] * 2 + [F] * 4, claims.MIXED),
    ([A, U], claims.CONTRADICTED),
    ([U] * 6, claims.MIXED),
    ([F] * 5 + [N] * 7, claims.SUPPORTED),
    ([N] * 3, claims.UNTESTED),
    ([], claims.UNTESTED),
  ],
)
def test_verdict(verdicts, wanted):
  assert claims.verdict(cases(verdicts)) == wanted


def test_nothing_is_decided_without_an_interval():
  nothing = accuracy.Estimate(0.5, math.nan, math.nan, 10, 1, 1.0)
  for rule in (claims.sparse, claims.specific, claims.harmless):
    assert rule(nothing) == U
  assert claims.wrecked(nothing, 1.0) == U


def test_the_numbers_are_those_of_the_protocol():
  text = pathlib.Path(tree.ROOT, 'experiments/PROTOCOL.md').read_text()
  parts = dict(
    re.findall(r'^(\d)\. \*\*(.*?)(?=^\d\. \*\*|^Claim 9)', text, re.M | re.S)
  )
  for number, values in {
    '1': (f'{claims.SPARSE:.0%}', f'{claims.SPREAD:.0%}'),
    '2': ('half', f'{claims.KEPT:.2f}'[1:]),
    '3': (f'{claims.NO_EFFECT:.2f}'.replace('0.', '.'),),
    '4': (
      f'above {claims.HARMLESS:.2f}'.replace('0.', '.'),
      f'below {claims.HARM:.2f}'.replace('0.', '.'),
    ),
    '6': (f'q < {claims.Q:.2f}'.replace('0.', '.'),),
    '7': (f'{claims.NO_EFFECT:.2f}'.replace('0.', '.'),),
    '8': (f'{claims.AS_DEEP:g}'[1:], f'{claims.SHALLOW:g}'[1:]),
  }.items():
    for value in values:
      assert value in parts[number], (number, value)
  assert f'below {claims.LEAST_INTACT:.2f}'.replace('0.', '.') in text
