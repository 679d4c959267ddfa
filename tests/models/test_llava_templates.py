"""Which prompt template a LLaVA folder gets, and what it says."""

import json

import pytest

from corejax import errors
from corejax.models.llava import config as config_lib
from corejax.models.llava import processing
from corejax.models.llava import templates
from helpers import tiny_tokenizer


def _load(folder):
  return processing.load(folder, config_lib.read(folder))


def _change(folder, name, **changes):
  path = folder / name
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
  'text, name',
  [('llama', 'vicuna'), ('mistral', 'mistral'), ('qwen2', 'chatml')],
)
def test_the_text_model_decides(tmp_path, text, name):
  assert templates.choose(tmp_path, None, text) is templates.SETS[name]


@pytest.mark.parametrize(
  'chat, name',
  [
    ("{{ 'USER: ' }}{{ 'ASSISTANT:' }}", 'vicuna'),
    ("{{ '<|im_start|>' + message['role'] }}", 'chatml'),
    ("{{ '[INST] ' }}", 'mistral'),
    ("{{ '<|start_header_id|>' }}", 'llama3'),
  ],
)
def test_the_chat_template_goes_before_the_text_model(tmp_path, chat, name):
  assert templates.choose(tmp_path, chat, 'llama') is templates.SETS[name]


def test_a_chat_template_from_each_place(tmp_path):
  folder = tiny_tokenizer.folder(tmp_path, 'words', text='llama')
  assert _load(folder).templates is templates.SETS['vicuna']
  _change(folder, 'tokenizer_config.json', chat_template='[INST]')
  assert _load(folder).templates is templates.SETS['mistral']
  wrapped = folder / 'chat_template.json'
  wrapped.write_text(json.dumps({'chat_template': '<|im_start|>'}))
  assert _load(folder).templates is templates.SETS['chatml']
  (folder / 'chat_template.jinja').write_text('<|start_header_id|>')
  assert _load(folder).templates is templates.SETS['llama3']


def test_corejax_json_has_the_last_word(tmp_path):
  folder = tiny_tokenizer.folder(tmp_path, 'words')
  own = folder / templates.FILE
  own.write_text(json.dumps({'templates': 'plain', 'content_free': 'what'}))
  processor = _load(folder)
  assert processor.templates is templates.SETS['plain']
  assert processor.content_free == 'what'
  own.write_text(json.dumps({'templates': 'fancy'}))
  with pytest.raises(errors.UserError, match='fancy.*plain'):
    _load(folder)
  own.write_text('[]')
  with pytest.raises(errors.UserError, match=templates.FILE):
    _load(folder)


def test_every_set_serves_all_kinds():
  for name, pair in templates.SETS.items():
    assert set(pair) == {'image', 'pages', 'frames'}
    hashes = {template.hash for template in pair.values()}
    assert len(hashes) == 3, name
    for template in pair.values():
      rendered = template.render(2, 'Why?', '<image>', 'so')
      assert rendered.text.count('<image>') == 2
      start, stop = rendered.question
      assert rendered.text[start:stop] == 'Why?'
      assert rendered.text.rindex('<image>') < start
      assert rendered.answer.strip() == 'so'


def test_llava_wording():
  image = templates.SETS['vicuna']['image'].render(1, 'Why?', '<image>')
  assert image.text == 'USER: <image>\nWhy? ASSISTANT:'
  pages = templates.SETS['plain']['pages'].render(2, 'which page', '<image>')
  assert pages.text == 'page 1 <image> page 2 <image> which page'
