"""Text -> token ids, with the rows of the question and of the answer.

    prompt + answer   USER: <image><image>..\\nWhat is it? ASSISTANT: red
    ids               0 1 2  3      3      ..   4  5  6 7  8         9
    question                                    [5, 8)
    prompt_len 10 ->  rows 0..9 are the prompt, row 9 predicts answer[0]

Prompt and answer are tokenised as one string: an answer tokenised alone would
get other ids (a leading space, a merge).
"""

import dataclasses
import os
from typing import Any

import numpy as np

from corejax import errors
from corejax import prompt as prompt_lib

# What AutoTokenizer raises at files that are absent, damaged or of an unknown
# class; its Rust half raises a bare Exception only at a file it can parse.
_LOAD_ERRORS = (
  OSError,
  ValueError,
  KeyError,
  TypeError,
  AttributeError,
  ImportError,
)


@dataclasses.dataclass(frozen=True)
class Tokens:
  """One tokenised prompt with its teacher-forced answer.

  Attributes:
    prompt_T: int32 [T], the prompt's ids.
    answer_A: int32 [A], the answer's; empty without one.
    question: [start, stop), the tokens that hold a character of the question;
      such a token may hold one of the template too (some merge '?' and '\\n').
  """

  prompt_T: np.ndarray
  answer_A: np.ndarray
  question: tuple[int, int]


def load(folder: str | os.PathLike) -> Any:
  """The fast tokenizer (transformers.PreTrainedTokenizerFast) of a folder.

  Raises:
    UserError: none there, damaged, or not a fast one (no character offsets).
  """
  import transformers  # slow

  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      os.fspath(folder), local_files_only=True, trust_remote_code=False
    )
  except _LOAD_ERRORS as e:
    reason = ' '.join(str(e).split())[:200]
    raise errors.UserError(
      f'{folder}: no tokenizer could be read ({type(e).__name__}: {reason}); '
      'the folder needs tokenizer.json and tokenizer_config.json'
    ) from e
  if not tokenizer.is_fast:
    raise errors.UserError(
      f'{folder}: {type(tokenizer).__name__} is not a fast tokenizer, and only '
      'those say which characters a token holds; save the fast one there '
      '(tokenizer.json)'
    )
  return tokenizer


def single_id(tokenizer, token: str, where: str) -> int:
  """The id of a token that must be one piece and end its text.

  Args:
    tokenizer: a fast tokenizer.
    token: the image placeholder.
    where: file or folder, for messages.

  Raises:
    UserError: the vocabulary has no such token, or the tokenizer appends
      something (an end-of-sequence token) to every prompt.
  """
  ids = tokenizer(token, add_special_tokens=False)['input_ids']
  if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
    raise errors.UserError(
      f'{where}: the tokenizer has no token {token!r} (it becomes {ids}); add '
      'it as a special token, or name the right one in processor_config.json '
      '(image_token)'
    )
  end = tokenizer(token)['input_ids'][-1]
  if end != ids[0]:
    name = tokenizer.convert_ids_to_tokens(end)
    raise errors.UserError(
      f'{where}: the tokenizer appends {name!r} to every prompt, behind the '
      'answer cue; switch that off (add_eos_token=false in '
      'tokenizer_config.json)'
    )
  return ids[0]


def expand(
  rendered: prompt_lib.Rendered, token: str, count: int, n_media: int
) -> prompt_lib.Rendered:
  """The prompt with each picture's placeholder repeated `count` times.

  Raises:
    Rejected: the text holds another number of placeholders than pictures (a
      question that spells one).
  """
  found = rendered.text.count(token)
  if found != n_media:
    raise errors.Rejected(
      errors.Reason.IMAGE_TOKENS,
      f'the prompt holds {token!r} {found} times, for {n_media} pictures',
    )
  start, stop = rendered.question
  extra = len(token) * (count - 1)
  shift = extra * rendered.text.count(token, 0, start)
  return prompt_lib.Rendered(
    rendered.text.replace(token, token * count),
    (start + shift, stop + shift),
    rendered.answer,
  )


def encode(tokenizer, rendered: prompt_lib.Rendered) -> Tokens:
  """Ids of an expanded prompt and of the answer that follows it.

  Raises:
    Rejected: the answer merges with the end of the prompt or holds an unknown
      word (BAD_ANSWER), or no token holds a character of the question.
  """
  coded = tokenizer(rendered.text, return_offsets_mapping=True, verbose=False)
  prompt = coded['input_ids']
  start, stop = rendered.question
  rows = [
    row
    for row, (begin, end) in enumerate(coded['offset_mapping'])
    if begin < stop and end > start and begin < end
  ]
  if not rows:
    raise errors.Rejected(
      errors.Reason.BAD_RECORD,
      f'no token holds the question {rendered.text[start:stop]!r}',
    )
  answer = []
  if rendered.answer:
    whole = tokenizer(rendered.text + rendered.answer, verbose=False)
    whole = whole['input_ids']
    answer = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt:
      raise errors.Rejected(
        errors.Reason.BAD_ANSWER,
        f'the answer {rendered.answer!r} merges with the end of the prompt '
        f'{rendered.text[-20:]!r}: its first token cannot be told apart',
      )
    if not answer or tokenizer.unk_token_id in answer:
      raise errors.Rejected(
        errors.Reason.BAD_ANSWER,
        f'the vocabulary has no words for the answer {rendered.answer!r}',
      )
  return Tokens(
    np.array(prompt, np.int32),
    np.array(answer, np.int32),
    (rows[0], rows[-1] + 1),
  )
