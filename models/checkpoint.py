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
_WHOLE = 1 << 26  # weight files up to this many bytes are hashed in full
_SAMPLES, _SAMPLE = 256, 1 << 16


def resolve(name: str | pathlib.Path) -> pathlib.Path:
  """The local folder of a checkpoint.

  Args:
    name: a folder, or the id of a repository on the Hugging Face hub, of which
      weights (safetensors), configs and tokenizer are then fetched.

  Raises:
    UserError: neither; or the hub cannot be reached and holds no copy here.
  """
  folder = pathlib.Path(name).expanduser()
  if folder.is_dir():
    return folder
  if folder.exists():
    raise errors.UserError(
      f'--checkpoint={name} is a file; name the folder that holds config.json'
    )
  if not _HUB_ID.fullmatch(str(name)):
    raise errors.UserError(
      f'--checkpoint={name}: there is no such folder (and it is not a hub id '
      'such as llava-hf/llava-1.5-7b-hf)'
    )
  import huggingface_hub  # slow, and needed for hub ids alone

  try:
    local = huggingface_hub.snapshot_download(
      str(name), allow_patterns=list(_HUB_FILES)
    )
  except (OSError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
      f'--checkpoint={name}: there is no such folder, and the hub gave no '
      f'copy ({type(error).__name__}: {reason}); download it where a network '
      'exists and pass the folder'
    ) from error
  return pathlib.Path(local)


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
  if path.stat().st_size > _MAX_JSON:
    raise errors.UserError(f'{path}: {path.stat().st_size} bytes is no config')
  try:
    value = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f'{path}: not JSON ({error}); fetch the file again'
    ) from error
  if not isinstance(value, dict):
    raise errors.UserError(
      f'{path}: holds a {type(value).__name__}, not a JSON object'
    )
  return value


def read_config(folder: pathlib.Path) -> tuple[dict[str, Any], Any]:
  """config.json as it stands, and as transformers normalises it.

  Raises:
    UserError: absent, malformed, or a model_type transformers does not know.
  """
  import huggingface_hub.errors  # slow imports, here for a quick --help
  import transformers

  path = folder / 'config.json'
  raw = read_json(path)
  try:
    hf = transformers.AutoConfig.from_pretrained(
      folder, trust_remote_code=False, local_files_only=True
    )
  except (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    huggingface_hub.errors.StrictDataclassError,
  ) as error:
    reason = ' '.join(str(error).split())[:300]
    raise errors.UserError(
      f'{path}: transformers refuses it ({type(error).__name__}: {reason})'
    ) from error
  return raw, hf


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
