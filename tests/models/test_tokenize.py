"""Tokenizers that cannot be used, and texts that they cannot take.

What they make of prompts is tested with the processors
(tests/models/test_llava_processing.py).
"""

import json

import pytest
import tokenizers
from tokenizers import models
import transformers

from corejax import errors
from corejax import prompt
from corejax.models import tokenize
from helpers import tiny_tokenizer


@pytest.fixture
def saved(tmp_path):
  tiny_tokenizer.make('words').save_pretrained(tmp_path)
  return tmp_path


def _spoil(folder, name, *keys, value):
  path = folder / name
  content = json.loads(path.read_text())
  inner = content
  for key in keys[:-1]:
    inner = inner[key]
  inner[keys[-1]] = value
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  'name, keys, value, said',
  [
    # The Rust half of transformers raises a bare Exception at these three.
    ('tokenizer.json', ['model', 'vocab'], 3, 'no tokenizer could be read'),
    ('tokenizer.json', ['model', 'vocab', 'red'], [], 'no tokenizer could'),
    ('tokenizer.json', ['normalizer', 'type'], 'x', 'no tokenizer could'),
    ('tokenizer.json', ['added_tokens'], {'a': 1}, 'no tokenizer could'),
    ('tokenizer_config.json', ['model_max_length'], '', 'expected a number'),
  ],
)
def test_damaged_files(saved, name, keys, value, said):
  _spoil(saved, name, *keys, value=value)
  with pytest.raises(errors.UserError, match=said) as caught:
    tokenize.load(saved)
  assert str(saved) in str(caught.value)


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json'])
@pytest.mark.parametrize(
  'content, said',
  [
    ('version https://git-lfs.github.com/spec/v1\noid', '`git lfs pull`'),
    ('<html>404</html>', 'the download failed'),
    ('[' * 100_000, 'no tokenizer could be read'),
  ],
)
def test_other_files_in_their_place(saved, name, content, said):
  (saved / name).write_text(content)
  with pytest.raises(errors.UserError, match=said):
    tokenize.load(saved)


def test_a_vocabulary_beyond_the_embeddings():
  tokenizer = tiny_tokenizer.make('words')
  words = len(tiny_tokenizer.SPECIALS) + len(set(tiny_tokenizer.WORDS))
  # The added token <image> has the next id: it may lie beyond.
  assert tokenizer.convert_tokens_to_ids('<image>') == words
  tokenize.check_vocabulary(tokenizer, words, 'here')
  with pytest.raises(errors.UserError, match=f'{words - 1} embeddings'):
    tokenize.check_vocabulary(tokenizer, words - 1, 'here')


def test_texts_that_no_piece_stands_for():
  """A word list without an unknown token: refused, not a bare Exception."""
  core = tokenizers.Tokenizer(models.WordLevel({'a': 0}, unk_token='<unk>'))
  fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
  with pytest.raises(ValueError, match='the tokenizer refuses it'):
    tokenize.ids(fast, 'b')
  with pytest.raises(errors.Rejected) as caught:
    tokenize.encode(fast, prompt.Rendered('b', (0, 1), ''))
  assert caught.value.reason is errors.Reason.BAD_RECORD
  with pytest.raises(errors.UserError, match="here: 'b': the tokenizer ref"):
    tokenize.single_id(fast, 'b', 'here')


def test_a_post_processor_of_tokens_that_are_not_there(saved):
  """The Rust half panics over it, which is no Exception in Python."""
  keys = ['post_processor', 'special_tokens']
  _spoil(saved, 'tokenizer.json', *keys, value={})
  with pytest.raises(errors.UserError) as caught:
    tokenize.single_id(tokenize.load(saved), '<image>', 'here')
  assert 'tokenizer' in str(caught.value)
