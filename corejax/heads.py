"""Sets of heads and the one grammar in which they are written.

    14-22,13-16                    layer 14 head 22, layer 13 head 16
    @RUN_DIR_or_CSV                the ranking's own selection
    @runs/rank/x:top5%             first 5% of the ranking
    @runs/rank/x/heads.csv:top30   first 30;  :bottom5%  :bottom30
    @runs/rank/x:per_layer2        best two of every layer
    @runs/rank/x:fdr0.01           q_value < 0.01
    @scores.json:top5%             scores per sample of another tool
    @heads.yaml                    a list of heads

What follows `@` is read by `corejax.ranking.parse_heads`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import re

import numpy as np

from corejax import errors

_HEAD = re.compile(r'(\d{1,6})-(\d{1,6})', re.ASCII)


@dataclasses.dataclass(frozen=True)
class HeadSet:
  """A frozen, hashable set of (layer, head), both from 0.

  Iterates in ascending (layer, head) order.
  """

  heads: frozenset[tuple[int, int]] = frozenset()

  def __init__(self, heads: Iterable[tuple[int, int]] = ()):
    pairs = frozenset((int(layer), int(head)) for layer, head in heads)
    for layer, head in pairs:
      if layer < 0 or head < 0:
        raise errors.UserError(
          f'HeadSet: {layer}-{head} is negative; layers and heads count from 0'
        )
    object.__setattr__(self, 'heads', pairs)

  @classmethod
  def parse(cls, text: str) -> HeadSet:
    """Reads `14-22,13-16`; the empty string is the empty set.

    For the `@...` form see `corejax.ranking.parse_heads`.

    Raises:
      UserError: with the part that is not `layer-head`, or stands twice.
    """
    pairs: list[tuple[int, int]] = []
    for part in text.split(',') if text.strip() else []:
      match = _HEAD.fullmatch(part.strip())
      if not match:
        raise errors.UserError(
          f'HeadSet: {part.strip()[:40]!r} is not layer-head; write heads as '
          '14-22,13-16 or @RUN_DIR:top5%'
        )
      pair = int(match[1]), int(match[2])
      if pair in pairs:
        raise errors.UserError(
          f'HeadSet: {pair[0]}-{pair[1]} stands twice; name each head once'
        )
      pairs.append(pair)
    return cls(pairs)

  @classmethod
  def from_mask(cls, mask_LN: np.ndarray) -> HeadSet:
    """The heads at which the bool [L, N] array is True."""
    return cls((int(l), int(n)) for l, n in np.argwhere(np.asarray(mask_LN)))

  def check(
    self, n_layers: int, n_heads: int, model: str = 'the model'
  ) -> None:
    """Refuses heads the model does not have.

    JAX drops an out-of-range index silently and wraps -1.

    Raises:
      UserError: naming the first head out of range and the range.
    """
    for layer, head in self:
      if layer >= n_layers:
        raise errors.UserError(
          f'HeadSet: layer {layer} is outside 0..{n_layers - 1} ({model} has '
          f'{n_layers} layers)'
        )
      if head >= n_heads:
        raise errors.UserError(
          f'HeadSet: head {head} of layer {layer} is outside 0..{n_heads - 1} '
          f'({model} has {n_heads} heads a layer)'
        )

  def mask(self, n_layers: int, n_heads: int) -> np.ndarray:
    """bool [L, N], True at the heads of the set.

    Raises:
      UserError: a head is outside the model.
    """
    self.check(n_layers, n_heads)
    mask_LN = np.zeros((n_layers, n_heads), bool)
    for layer, head in self:
      mask_LN[layer, head] = True
    return mask_LN

  def __iter__(self) -> Iterator[tuple[int, int]]:
    return iter(sorted(self.heads))

  def __len__(self) -> int:
    return len(self.heads)

  def __contains__(self, pair) -> bool:
    return pair in self.heads

  def __or__(self, other: HeadSet) -> HeadSet:
    return HeadSet(self.heads | other.heads)

  def __and__(self, other: HeadSet) -> HeadSet:
    return HeadSet(self.heads & other.heads)

  def __sub__(self, other: HeadSet) -> HeadSet:
    return HeadSet(self.heads - other.heads)

  def __str__(self) -> str:
    return ','.join(f'{layer}-{head}' for layer, head in self)

  def __repr__(self) -> str:
    return f'HeadSet({str(self)!r})'
