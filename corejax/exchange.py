"""Rankings and head sets in the files of other tools.

Scores per sample, JSON, as retrieval-head programs write them; every head of
the model, `layer-head` from 0, a list of numbers each:

    {"0-0": [0.0, 0.01], "0-1": [0.2, 0.3], ...}

A head's score is the mean of its samples; null and NaN are no sample. Sets of
heads, YAML, in any of these forms (also under one key `heads`):

    - [14, 22]               - 14-22               14: [22, 3]
    - [13, 16]               - layer: 13           13: 16
                               head: 16
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import json
import math
import os
import re

from etils import epath
import numpy as np

from corejax import errors
from corejax import heads as heads_lib
from corejax import parts as parts_lib
from corejax import selection as selection_lib

_KEY = re.compile(r'(\d{1,6})-(\d{1,6})', re.ASCII)
_INTEGER = re.compile(r'\d{1,6}', re.ASCII)
_MAX_YAML = 1_000_000  # bytes; 1000 heads take 10,000
_MAX_HEADS = 1_000_000  # that a file may claim
_LARGEST = 1e100  # a score beyond it is infinite: a mean of such overflows
_SCORES, _LISTS = ('.json',), ('.yaml', '.yml')
_SCORES_FORM = '{"14-22": [0.5, 0.7], ...} with every head of the model'
_LISTS_FORM = '- [14, 22], - layer: 14 with head: 22, or 14: [22]'


@dataclasses.dataclass(frozen=True, eq=False)
class SampleScores:
  """Scores of every head on every sample.

  Attributes:
    value_ELN: float64, nan where a head has no such sample.
    aligned: has every head as many samples? Then sample e of one head is taken
      for sample e of another.
  """

  value_ELN: np.ndarray
  aligned: bool

  @property
  def score_LN(self) -> np.ndarray:
    """float64 [L, N], mean over a head's samples; nan without any."""
    known_ELN = np.isfinite(self.value_ELN)
    return np.divide(
      np.where(known_ELN, self.value_ELN, 0.0).sum(0),
      known_ELN.sum(0),
      out=np.full(self.value_ELN.shape[1:], np.nan),
      where=known_ELN.any(0),
    )


def is_scores(path: str | os.PathLike) -> bool:
  """Is this file, by its name, one of `read_scores_json`?"""
  return os.fspath(path).lower().endswith(_SCORES)


def is_heads(path: str | os.PathLike) -> bool:
  """Is this file, by its name, one of `read_heads_yaml`?"""
  return os.fspath(path).lower().endswith(_LISTS)


def read_scores_json(path: str | os.PathLike) -> SampleScores:
  """Reads scores per sample.

  Raises:
    UserError: it is not there, not JSON, or not of this form; a head is
      missing.
  """
  name, text = _read(path)

  def refuse(what: str) -> errors.UserError:
    return errors.UserError(f'{name!r}: {what}; expected {_SCORES_FORM}')

  def pairs(items):
    keys = [key for key, _ in items]
    if len(set(keys)) < len(keys):
      twice = next(key for key in keys if keys.count(key) > 1)
      raise refuse(f'{twice[:40]!r} stands twice')
    return dict(items)

  try:
    content = json.loads(text, object_pairs_hook=pairs)
  except errors.UserError:
    raise
  except (ValueError, RecursionError) as e:
    raise refuse(f'not JSON ({e})') from e
  if not isinstance(content, dict) or not content:
    raise refuse('no object of heads')
  samples: dict[tuple[int, int], list[float]] = {}
  for key, values in content.items():
    match = _KEY.fullmatch(key)
    if not match:
      raise refuse(f'{key[:40]!r} is not layer-head')
    pair = int(match[1]), int(match[2])
    if pair in samples:
      raise refuse(f'{pair[0]}-{pair[1]} stands twice')
    if not isinstance(values, list):
      raise refuse(f'{key} holds no list')
    samples[pair] = [_number(value, key, refuse) for value in values]
  n_layers, n_heads = (1 + max(pair[i] for pair in samples) for i in (0, 1))
  if n_layers * n_heads > _MAX_HEADS or len(samples) < n_layers * n_heads:
    missing = next(
      (layer, head)
      for layer in range(n_layers)
      for head in range(n_heads)
      if (layer, head) not in samples
    )
    raise refuse(
      f'no {missing[0]}-{missing[1]}, though there is a layer {n_layers - 1} '
      f'and a head {n_heads - 1} (a list of some heads can be YAML)'
    )
  counts = {len(values) for values in samples.values()}
  if not max(counts):
    raise refuse('no head has a sample')
  value_ELN = np.full((max(counts), n_layers, n_heads), np.nan)
  for (layer, head), values in samples.items():
    value_ELN[: len(values), layer, head] = values
  return SampleScores(value_ELN, len(counts) == 1)


def _number(value, key, refuse) -> float:
  if value is None:
    return math.nan
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise refuse(f'{key} holds {str(value)[:40]!r}, which is no number')
  try:
    value = float(value)
  except OverflowError:
    value = math.inf
  if abs(value) > _LARGEST:
    raise refuse(f'{key} holds an infinite score')
  return value


def write_scores_json(path: str | os.PathLike, value_ELN: np.ndarray) -> None:
  """Writes scores per sample; they are read back exactly.

  Args:
    path: the file.
    value_ELN: float; nan becomes null.

  Raises:
    UserError: it cannot be written.
    ValueError: an infinite score.
  """
  value_ELN = np.asarray(value_ELN, np.float64)
  if np.isinf(value_ELN).any():
    raise ValueError('write_scores_json: an infinite score')
  content = {
    f'{layer}-{head}': [
      None if math.isnan(value) else value
      for value in value_ELN[:, layer, head].tolist()
    ]
    for layer, head in np.ndindex(value_ELN.shape[1:])
  }
  parts_lib.write_atomic(path, json.dumps(content, allow_nan=False).encode())


def read_heads_yaml(path: str | os.PathLike) -> heads_lib.HeadSet:
  """Reads a set of heads.

  Numbers are read as they stand, in decimal: not as YAML's octal (014) or
  base 60 (1:30).

  Raises:
    UserError: it is not there, not YAML, or none of the forms; a head stands
      twice.
  """
  import yaml

  name, text = _read(path)

  def refuse(what: str, node=None) -> errors.UserError:
    place = '' if node is None else f' line {node.start_mark.line + 1}:'
    return errors.UserError(f'{name!r}:{place} {what}; expected {_LISTS_FORM}')

  if len(text) > _MAX_YAML:
    raise refuse(f'more than {_MAX_YAML} characters')
  try:
    node = yaml.compose(text, Loader=yaml.BaseLoader)
  except (yaml.YAMLError, RecursionError) as e:
    raise refuse(f'not YAML ({" ".join(str(e).split())[:200]})') from e
  found: list[tuple[int, int]] = []
  if node is not None:
    entries = _entries(node, refuse)
    if len(entries) == 1 and entries[0][0] == 'heads':
      entries = _entries(entries[0][1], refuse)
    for key, value in entries:
      found += _pairs(key, value, refuse)
  if not found:
    raise refuse('no heads')
  for pair in found:
    if found.count(pair) > 1:
      raise refuse(f'{pair[0]}-{pair[1]} stands twice')
  return heads_lib.HeadSet(found)


def _entries(node, refuse) -> list[tuple[str | None, object]]:
  """(key or None, node) of a list's or a mapping's entries."""
  import yaml

  if isinstance(node, yaml.SequenceNode):
    return [(None, item) for item in node.value]
  if isinstance(node, yaml.MappingNode):
    return [(_scalar(key, refuse), value) for key, value in node.value]
  raise refuse('neither a list nor a mapping', node)


def _pairs(key, node, refuse) -> list[tuple[int, int]]:
  """The heads of one entry: of a layer, or with its layer inside."""
  import yaml

  if key is not None:
    layer = _integer(key, node, refuse)
    inner = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return [
      (layer, _integer(_scalar(item, refuse), item, refuse)) for item in inner
    ]
  if isinstance(node, yaml.ScalarNode):
    match = _KEY.fullmatch(node.value)
    if match:
      return [(int(match[1]), int(match[2]))]
  elif isinstance(node, yaml.SequenceNode):
    if len(node.value) == 2:
      layer, head = (
        _integer(_scalar(item, refuse), item, refuse) for item in node.value
      )
      return [(layer, head)]
  else:
    fields = dict(_entries(node, refuse))
    if set(fields) == {'layer', 'head'} and len(node.value) == 2:
      layer, head = (
        _integer(_scalar(fields[name], refuse), node, refuse)
        for name in ('layer', 'head')
      )
      return [(layer, head)]
  raise refuse('an entry that is no head', node)


def _scalar(node, refuse) -> str:
  import yaml

  if not isinstance(node, yaml.ScalarNode):
    raise refuse('a list or a mapping where a number belongs', node)
  return node.value


def _integer(text, node, refuse) -> int:
  if not _INTEGER.fullmatch(text):
    raise refuse(f'{text[:40]!r} is no number from 0', node)
  return int(text)


def write_heads_yaml(
  path: str | os.PathLike, heads: Iterable[tuple[int, int]]
) -> None:
  """Writes a set of heads as a list of [layer, head].

  Raises:
    UserError: it cannot be written.
  """
  lines = [f'- [{layer}, {head}]\n' for layer, head in heads]
  parts_lib.write_atomic(path, (''.join(lines) or '[]\n').encode())


def select(
  path: str,
  rule: selection_lib.Selection | None,
  n_layers: int,
  n_heads: int,
  model: str = 'the model',
) -> heads_lib.HeadSet:
  """The heads that `@PATH:RULE` names, of a file of `is_scores` or `is_heads`.

  Args:
    path: the file.
    rule: which heads of a ranking; None for a list.
    n_layers, n_heads: of the model.
    model: its name, for messages.

  Raises:
    UserError: unreadable, of a model of another shape, a ranking without a
      rule or a list with one.
  """
  if is_heads(path):
    if rule is not None:
      raise errors.UserError(
        f'{path[:80]!r}: a list of heads without scores, of which {rule} '
        'cannot be taken; leave the selection out'
      )
    heads = read_heads_yaml(path)
    heads.check(n_layers, n_heads, model)
    return heads
  score_LN = read_scores_json(path).score_LN
  if score_LN.shape != (n_layers, n_heads):
    raise errors.UserError(
      f'{path[:80]!r}: a ranking of {score_LN.shape[0]} layers x '
      f'{score_LN.shape[1]} heads; {model} has {n_layers} x {n_heads}: take '
      "one of this model's"
    )
  if rule is None:
    raise errors.UserError(
      f'{path[:80]!r}: a ranking that does not tell which heads; write '
      f'@{path[:80]}:{selection_lib.DEFAULT}'
    )
  return heads_lib.HeadSet.from_mask(rule.mask(score_LN))


def _read(path: str | os.PathLike) -> tuple[str, str]:
  """(name, text) of a file."""
  name = os.fspath(path)
  try:
    return name[:80], epath.Path(name).read_text(encoding='utf-8')
  except UnicodeDecodeError as e:
    raise errors.UserError(f'{name[:80]!r}: not a text file') from e
  except FileNotFoundError as e:
    raise errors.UserError(f'{name[:80]!r}: there is no such file') from e
  except (ImportError, KeyError) as e:  # epath's, of an unknown scheme
    raise errors.UserError(
      f'{name[:80]!r}: this kind of path cannot be read here ({e})'
    ) from e
  except (OSError, ValueError) as e:
    raise errors.UserError(f'{name[:80]!r}: cannot be read ({e})') from e
