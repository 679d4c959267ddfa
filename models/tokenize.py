"""Text -> token ids, with the rows of the question and of the answer.

    prompt + answer   USER: <image><image>..\\nWhat is it? ASSISTANT: red
    ids               0 1 2  3      3      ..   4  5  6 7  8         9
    question                                    [5, 8)
    prompt_len 10 ->  rows 0..9 are the prompt, row 9 predicts answer[0]

Prompt and answer are tokenised as one string: an answer tokenised alone would
get other ids (a leading space, a merge).
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import threading
from typing import Any

import numpy as np

from corejax import errors
from corejax import prompt as prompt_lib
from corejax.models import checkpoint

# A fast tokenizer changes its own settings on the way (padding, truncation),
# and fails if another thread is reading them.
_LOCK = threading.Lock()
# What AutoTokenizer raises at files that are absent, damaged or of an unknown
# class, beside the bare Exception of its Rust half.
_LOAD_ERRORS = (
  OSError,
  ValueError,
  LookupError,
  ArithmeticError,
  TypeError,
  AttributeError,
  ImportError,
  RecursionError,
)
_MOST_IDS = 1 << 24  # far beyond any vocabulary
_FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json')


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


def own_template(folder: pathlib.Path) -> Any:
  """The chat template that has a file of its own, by HF's order of files."""
  raw, wrapped = folder / 'chat_template.jinja', folder / 'chat_template.json'
  if raw.exists():
    try:
      return raw.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise errors.UserError(
        f'{raw}: no chat template can be read ({error}); fetch it again'
      ) from error
  if wrapped.exists():
    return checkpoint.read_json(wrapped).get('chat_template')
  return None


def load(folder: str | os.PathLike) -> Any:
  """The fast tokenizer (transformers.PreTrainedTokenizerFast) of a folder.

  Raises:
    UserError: none there, damaged, or not a fast one (no character offsets).
  """
  import transformers  # slow

  for name in _FILES:
    path = pathlib.Path(folder) / name
    if path.is_file():
      with path.open('rb') as file:
        checkpoint.refuse_stand_in(path, file.read(checkpoint.HEAD))
  own_template(pathlib.Path(folder))  # transformers would not name its file
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      os.fspath(folder), local_files_only=True, trust_remote_code=False
    )
  except BaseException as e:
    if not (isinstance(e, _LOAD_ERRORS) or _is_rust(e)):
      raise
    reason = ' '.join(str(e).split())[:200]
    raise errors.UserError(
      f'{folder}: no tokenizer could be read ({type(e).__name__}: {reason}); '
      'the folder needs a whole tokenizer.json and tokenizer_config.json: '
      'fetch them again'
    ) from e
  if not tokenizer.is_fast:
    raise errors.UserError(
      f'{folder}: {type(tokenizer).__name__} is not a fast tokenizer, and only '
      'those say which characters a token holds; save the fast one there '
      '(tokenizer.json)'
    )
  if not isinstance(tokenizer.model_max_length, int | float):
    raise errors.UserError(
      f'{folder}: tokenizer_config.json: model_max_length='
      f'{tokenizer.model_max_length!r}; expected a number'
    )
  return tokenizer


def _is_rust(error: BaseException) -> bool:
  """Was it raised by the tokenizers library?

  It raises bare Exceptions, and where it panics (on a hostile file alone) what
  is no Exception at all and has told its own trace on stderr.
  """
  return type(error) is Exception or type(error).__name__ == 'PanicException'


def ids(tokenizer, text: str, **options) -> Any:
  """What the tokenizer makes of a text, however long.

  Raises:
    ValueError: it cannot (no piece for a character, and no unknown token).
  """
  try:
    with _LOCK:
      return tokenizer(text, verbose=False, **options)
  except BaseException as e:
    if not _is_rust(e):
      raise
    raise ValueError(f'the tokenizer refuses it: {e}') from e


def check_vocabulary(tokenizer, size: int, where: str) -> None:
  """Refuses a vocabulary that the embeddings do not hold.

  Added tokens may lie beyond it (a padding token that nobody embeds is common);
  a prompt that needs one is refused when it is encoded.

  Args:
    tokenizer: a fast tokenizer.
    size: rows of the embedding.
    where: file or folder, for messages.

  Raises:
    UserError: naming the highest id.
  """
  words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
  added = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
  for ids_of, limit in ((words, size), (added, _MOST_IDS)):
    token = max(ids_of, key=lambda name: ids_of[name], default='')
    if ids_of and ids_of[token] >= limit:
      raise errors.UserError(
        f'{where}: token {token!r} has id {ids_of[token]}, the model has '
        f'{size} embeddings; tokenizer and model belong to different '
        'checkpoints'
      )


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
  try:
    alone = ids(tokenizer, token, add_special_tokens=False)['input_ids']
    whole = ids(tokenizer, token)['input_ids']
  except ValueError as e:
    raise errors.UserError(
      f'{where}: {token!r}: {e}; fetch tokenizer.json again'
    ) from e
  if len(alone) != 1 or tokenizer.convert_ids_to_tokens(alone[0]) != token:
    raise errors.UserError(
      f'{where}: the tokenizer has no token {token!r} (it becomes {alone}); '
      'add it as a special token, or name the right one in '
      'processor_config.json (image_token)'
    )
  if whole[-1] != alone[0]:
    name = tokenizer.convert_ids_to_tokens(whole[-1])
    raise errors.UserError(
      f'{where}: the tokenizer appends {name!r} to every prompt, behind the '
      'answer cue; switch that off (add_eos_token=false in '
      'tokenizer_config.json)'
    )
  return alone[0]


def expand(
  rendered: prompt_lib.Rendered, token: str, count: int, n_media: int
) -> prompt_lib.Rendered:
  """The prompt with each picture's placeholder repeated `count` times.

  Raises:
    Rejected: see `fill`.
  """
  return fill(rendered, token, [token * count] * n_media)


def fill(
  rendered: prompt_lib.Rendered,
  token: str,
  texts: Sequence[str],
  what: str = 'pictures',
) -> prompt_lib.Rendered:
  """The prompt with a text in each placeholder's place, in their order.

  Args:
    rendered: the prompt.
    token: the placeholder.
    texts: one a picture.
    what: the placeholder stands for, in messages.

  Raises:
    Rejected: the text holds another number of placeholders than pictures (a
      question that spells one).
  """
  parts = rendered.text.split(token)
  if len(parts) - 1 != len(texts):
    raise errors.Rejected(
      errors.Reason.IMAGE_TOKENS,
      f'the prompt holds {token!r} {len(parts) - 1} times, for {len(texts)} '
      f'{what}',
    )
  start, stop = rendered.question
  before = rendered.text.count(token, 0, start)
  shift = sum(len(text) - len(token) for text in texts[:before])
  whole = ''.join(
    part for pair in zip(parts, [*texts, ''], strict=True) for part in pair
  )
  return prompt_lib.Rendered(
    whole, (start + shift, stop + shift), rendered.answer
  )


def encode(tokenizer, rendered: prompt_lib.Rendered) -> Tokens:
  """Ids of an expanded prompt and of the answer that follows it.

  Raises:
    Rejected: the answer merges with the end of the prompt or holds an unknown
      word (BAD_ANSWER), no token holds a character of the question, or the
      tokenizer refuses the text.
  """
  try:
    coded = ids(tokenizer, rendered.text, return_offsets_mapping=True)
    whole = coded
    if rendered.answer:
      whole = ids(tokenizer, rendered.text + rendered.answer)
  except ValueError as e:
    raise errors.Rejected(errors.Reason.BAD_RECORD, str(e)) from e
  prompt, whole = coded['input_ids'], whole['input_ids']
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
