"""The two ways in which outside input can be wrong.

`UserError` ends a run with exit code 2 and one line; `Rejected` takes one
example out of a run, with a reason that is counted. Everything else is a bug
and keeps its traceback.
"""

import enum

_LONGEST = 4000  # characters of a message; a hostile file's names have no end


def one_line(text: str) -> str:
  """The text as one line that does no harm on a terminal.

  Messages quote names and values out of files: line breaks, control
  characters and halves of surrogate pairs become escapes, and the middle of
  what is too long goes (the remedy stands at the end).
  """
  if len(text) > _LONGEST:
    half = _LONGEST // 2
    text = f'{text[:half]} ... {text[-half:]}'
  if text.isprintable():
    return text
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


class UserError(ValueError):
  """What is wrong, where, and how to mend it, in one line."""

  def __init__(self, message: str):
    super().__init__(one_line(message))


class Reason(enum.StrEnum):
  """Why an example is left out; the value is what `rejected.jsonl` says."""

  NO_EVIDENCE = 'no evidence'
  EVIDENCE_CROPPED = 'evidence cropped away'
  EVIDENCE_AFTER_QUERY = 'evidence after the query'
  EVIDENCE_TOO_LONG = 'evidence needs more pages than the window holds'
  EVIDENCE_MISSED = 'no frame shows the evidence'
  BAD_BOX = 'bad box'
  BAD_MEDIA = 'undecodable picture'
  MEDIA_TOO_LARGE = 'picture too large'
  MISSING_MEDIA = 'media file missing'
  BAD_RECORD = 'bad record'
  BAD_ANSWER = 'no answer to force'
  TOO_LONG = 'longer than the context'
  IMAGE_TOKENS = 'wrong number of image tokens'


class Rejected(ValueError):
  """One example that cannot be used.

  Attributes:
    reason: the countable reason.
    detail: value and place, for a human.
  """

  def __init__(self, reason: Reason, detail: str):
    detail = one_line(detail)
    super().__init__(f'{reason}: {detail}')
    self.reason = reason
    self.detail = detail
