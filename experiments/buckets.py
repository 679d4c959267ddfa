"""The padding policy: every batch is padded to one of a few shapes.

A compiled program serves one shape, so a batch is padded on the right to its
bucket, and a short one to the full batch size with copies of its first
record. A bucket is two numbers; all other sizes follow from them:

    length   8, 16, 24, 32, then four an octave: 40, 48, 56, 64, 80, 96 ..
             too much: fewer than 8 tokens up to 32, less than 25% above
    rows     16, 32, 64, 128 ..: slots for question rows, and as many for
             answer rows; too much: less than 50% of the more numerous
    visual tokens   `length` slots
    pictures        as many as batch * length tokens can show

A batch is a function of its records' indices alone, and so is its bucket.
Where the prompts of a batch begin alike (prefixes.py), the common prefix is
padded as a length, and what follows, with its rows, as rows are.
"""

from collections.abc import Iterable
import dataclasses


def tokens(n: int) -> int:
  """Tokens to which a sequence of n is padded."""
  step = max(8, 2 ** (n - 1).bit_length() // 8)
  return max(1, -(-n // step)) * step


def rows(n: int) -> int:
  """Slots for n query rows of a kind."""
  return max(16, 2 ** (n - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Bucket:
  """The shape of a batch.

  Attributes:
    length: tokens of each example.
    rows: slots for question rows, and for answer rows.
  """

  length: int
  rows: int

  @classmethod
  def of(cls, lengths: Iterable[int], n_rows: Iterable[int]) -> 'Bucket':
    """The smallest bucket that holds a batch.

    Args:
      lengths: tokens of every example.
      n_rows: question rows and answer rows of every example.
    """
    return cls(tokens(max(lengths)), rows(max(n_rows)))
