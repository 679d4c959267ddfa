"""A checkpoint folder: where it is, its config.json, its fingerprint.

Only data is read: no pickle, no code out of the folder.
"""

from collections.abc import Collection, Mapping
import hashlib
import json
import pathlib
import re
import types
from typing import Any

from corejax import errors

# Written by transformers for any model, without effect on a forward pass in
# evaluation: bookkeeping, and the generation settings of files before 2023.
IGNORED_KEYS = frozenset(
  {
    '_attn_implementation_autoset',
    '_name_or_path',
    'add_cross_attention',
    'architectures',
    'bad_words_ids',
    'begin_suppress_tokens',
    'chunk_size_feed_forward',
    'cross_attention_hidden_size',
    'decoder_start_token_id',
    'diversity_penalty',
    'do_sample',
    'dropout',
    'dtype',
    'early_stopping',
    'encoder_no_repeat_ngram_size',
    'exponential_decay_length_penalty',
    'finetuning_task',
    'forced_bos_token_id',
    'forced_eos_token_id',
    'id2label',
    'is_decoder',
    'is_encoder_decoder',
    'label2id',
    'length_penalty',
    'max_length',
    'min_length',
    'model_type',
    'no_repeat_ngram_size',
    'num_beam_groups',
    'num_beams',
    'num_labels',
    'num_return_sequences',
    'output_attentions',
    'output_hidden_states',
    'output_scores',
    'prefix',
    'problem_type',
    'remove_invalid_values',
    'repetition_penalty',
    'return_dict',
    'return_dict_in_generate',
    'sep_token_id',
    'suppress_tokens',
    'task_specific_params',
    'temperature',
    'tf_legacy_loss',
    'tie_encoder_decoder',
    'tokenizer_class',
    'top_k',
    'top_p',
    'torch_dtype',
    'torchscript',
    'transformers_version',
    'typical_p',
    'unk_token_id',
    'use_bfloat16',
  }
)
_HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*', re.ASCII)
_HUB_FILES = ('*.safetensors', '*.json', '*.model', '*.txt', '*.jinja')
_MAX_JSON = 1 << 26
HEAD = 64  # bytes of a file by which a stand-in is known
_WHOLE = 1 << 26  # weight files up to this many bytes are hashed in full
_SAMPLES, _SAMPLE = 256, 1 << 16


def local(name: str | pathlib.Path) -> pathlib.Path | None:
  """The folder of this name, None if there is none.

  Raises:
    UserError: a file has the name, or nothing can have it.
  """
  try:
    folder = pathlib.Path(name).expanduser()
    is_folder, exists = folder.is_dir(), folder.exists()
  except (OSError, RuntimeError) as error:  # too long a name, no such user
    raise errors.UserError(
      f'--checkpoint={name}: no such folder can be ({error}); name the folder '
      'that holds config.json'
    ) from error
  if exists and not is_folder:
    raise errors.UserError(
      f'--checkpoint={name} is a file; name the folder that holds config.json'
    )
  return folder if is_folder else None


def resolve(name: str | pathlib.Path) -> pathlib.Path:
  """The local folder of a checkpoint.

  Args:
    name: a folder, or the id of a repository on the Hugging Face hub, of which
      weights (safetensors), configs and tokenizer are then fetched.

  Raises:
    UserError: neither; or the hub cannot be reached and holds no copy here.
  """
  folder = local(name)
  if folder is not None:
    return folder
  if not _HUB_ID.fullmatch(str(name)):
    raise errors.UserError(
      f'--checkpoint={name}: there is no such folder (and it is not a hub id '
      'such as llava-hf/llava-1.5-7b-hf)'
    )
  import huggingface_hub  # slow, and needed for hub ids alone

  try:
    fetched = huggingface_hub.snapshot_download(
      str(name), allow_patterns=list(_HUB_FILES)
    )
  except (OSError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
      f'--checkpoint={name}: there is no such folder, and the hub gave no '
      f'copy ({type(error).__name__}: {reason}); download it where a network '
      'exists and pass the folder'
    ) from error
  return pathlib.Path(fetched)


def refuse_stand_in(path: pathlib.Path, head: bytes):
  """Names what lies in a downloaded file's place more often than not.

  Args:
    path: of the file, for the message.
    head: its first HEAD bytes.

  Raises:
    UserError: a Git LFS pointer, or a web page.
  """
  if head.startswith(b'version https://git-lfs'):
    raise errors.UserError(
      f'{path}: a Git LFS pointer, not the file itself; run `git lfs pull`'
    )
  if head.lstrip()[:1] == b'<':
    raise errors.UserError(
      f'{path}: an HTML or XML page, not the file itself; the download failed, '
      'fetch it again'
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object from a file.

  Raises:
    UserError: absent, too large, not JSON, or not an object.
  """
  if not path.is_file():
    raise errors.UserError(
      f'{path}: no such file; give a folder in Hugging Face format, with '
      'config.json, tokenizer and safetensors'
    )
  try:
    size = path.stat().st_size
    content = path.read_bytes() if size <= _MAX_JSON else b''
  except OSError as error:
    raise errors.UserError(
      f'{path}: cannot be read ({error.strerror}); let it be read'
    ) from error
  if size > _MAX_JSON:
    raise errors.UserError(
      f'{path}: {size} bytes is too large for a config; fetch the file again'
    )
  refuse_stand_in(path, content[:HEAD])
  try:
    value = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f'{path}: not JSON ({error}); fetch the file again'
    ) from error
  if not isinstance(value, dict):
    raise errors.UserError(
      f'{path}: holds a {type(value).__name__}, not a JSON object; fetch the '
      'file again'
    )
  return value


def normalised(folder: pathlib.Path) -> Any:
  """config.json as transformers reads it.

  Its numbers should be checked first: transformers believes them.

  Raises:
    UserError: malformed, or a model_type transformers does not know.
  """
  import huggingface_hub.errors  # slow imports, here for a quick --help
  import transformers

  try:
    return transformers.AutoConfig.from_pretrained(
      folder, trust_remote_code=False, local_files_only=True
    )
  except (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    huggingface_hub.errors.StrictDataclassError,
  ) as error:
    reason = ' '.join(str(error).split())[:300]
    raise errors.UserError(
      f'transformers refuses it ({type(error).__name__}: {reason}); fetch the '
      'file again, or correct it'
    ) from error


def eos_ids(folder: pathlib.Path, vocab_size: int) -> tuple[int, ...]:
  """Tokens that end an answer, as transformers finds them.

  The first that names any: generation_config.json, config.json, its
  text_config (whose class has a default in some families).

  Args:
    folder: the checkpoint.
    vocab_size: of the text model.

  Returns:
    Ascending; empty where nobody names one: then no answer ends by itself.

  Raises:
    UserError: a file is malformed, or an id is outside the vocabulary.
  """
  key = 'eos_token_id'
  said = None
  path = folder / 'generation_config.json'
  if path.exists():
    said = read_json(path).get(key)
  if said is None:
    path = folder / 'config.json'
    hf = normalised(folder)
    text = getattr(hf.get_text_config(), key, None)
    said = getattr(hf, key, None)
    said = text if said is None else said
  check_ranges({key: said}, {key: (0, vocab_size - 1)}, f'{path}: ')
  if said is None:
    return ()
  return tuple(sorted(set(said if isinstance(said, list) else [said])))


def check_ranges(
  raw: Mapping[str, Any],
  ranges: Mapping[str, tuple[float, float]],
  where: str,
):
  """Refuses numbers that no model has: a damaged or a hostile file's.

  Null and absent values are let through; a list must hold such numbers.

  Args:
    raw: a config as it stands in the file.
    ranges: key -> least and most; integers take integers alone.
    where: prefix of the keys in the message.

  Raises:
    UserError: naming the first.
  """
  for key, (least, most) in ranges.items():
    value = raw.get(key)
    kinds = (int,) if isinstance(least, int) else (int, float)
    for number in value if isinstance(value, list) else [value]:
      if number is None:
        continue
      if type(number) not in kinds or not least <= number <= most:
        raise errors.UserError(
          f'{where}{key}={value!r}; expected '
          f'{"whole numbers" if kinds == (int,) else "numbers"} from {least:g} '
          f'to {most:g}; fetch the file again, or correct it'
        )


def check_keys(
  raw: Mapping[str, Any],
  handled: Collection[str],
  ignored: Collection[str],
  where: str,
  neutral: Mapping[str, Any] = types.MappingProxyType({}),
):
  """Refuses keys that nobody reads: they may change what the model computes.

  Null and empty values are let through.

  Args:
    raw: a config as it stands in the file.
    handled: keys that are read.
    ignored: keys without effect, beside IGNORED_KEYS.
    where: prefix of the keys in the message.
    neutral: keys that no code here reads, with the value that means so.

  Raises:
    UserError: naming the keys.
  """
  unknown = [
    f'{where}{key}={json.dumps(value)[:40]}'
    for key, value in raw.items()
    if key not in handled
    and key not in ignored
    and key not in IGNORED_KEYS
    and value not in (None, {}, [])
    and (key not in neutral or value != neutral[key])
  ]
  if unknown:
    raise errors.UserError(
      f'not known here: {", ".join(unknown[:10])}; a port that ignores a '
      'setting may compute something else, so it is refused'
    )


def fingerprint(folder: pathlib.Path) -> str:
  """12 hex digits over configs, tokenizer and weights.

  The same for a copy elsewhere. Weight files beyond 64 MiB count with their
  size, header and 256 evenly spread blocks of 64 KiB: a retrained or
  re-rounded checkpoint differs, an edit of a few single weights may not.
  """
  digest = hashlib.sha256()
  for path in sorted(folder.iterdir()):
    if path.suffix not in ('.json', '.safetensors', '.model', '.jinja'):
      continue
    if not path.is_file():
      continue
    size = path.stat().st_size
    digest.update(f'{path.name}\0{size}\0'.encode())
    with path.open('rb') as file:
      if size <= _WHOLE:
        digest.update(file.read())
        continue
      for block in range(_SAMPLES):
        file.seek(block * (size - _SAMPLE) // (_SAMPLES - 1))
        digest.update(file.read(_SAMPLE))
  return digest.hexdigest()[:12]
