"""Prompt templates of the Qwen-VL checkpoints, and which one a folder gets.

The wording is that of their own chat template: a system message for Qwen2-VL
and 2.5, none for Qwen3-VL; pictures first. With several pictures (`pages`,
`frames` of a video) each is named, so that a question can refer to it. A
folder's `corejax.json` may name another set: {"templates": "plain"}.
"""

from collections.abc import Mapping
import pathlib

from corejax import errors
from corejax import prompt
from corejax.models.llava import templates as shared

_PICTURE = '<|vision_start|>{image}<|vision_end|>'
_TURNS = (
  '<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n'
)
_SYSTEM = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'


def _pair(name: str, body: str, answer: str, picture: str, page: str):
  return {
    'image': prompt.PromptTemplate(
      f'{name}/image', body, media=picture, answer=answer
    ),
    'pages': prompt.PromptTemplate(
      f'{name}/pages', body, media=page, answer=answer
    ),
    'frames': prompt.PromptTemplate(
      f'{name}/frames',
      body,
      media=page.replace('Page', 'Frame'),
      answer=answer,
    ),
  }


SETS: Mapping[str, Mapping[str, prompt.PromptTemplate]] = {
  'qwen2_vl': _pair(
    'qwen2_vl',
    _SYSTEM + _TURNS,
    '{answer}',
    _PICTURE,
    f'Page {{n}}: {_PICTURE}\n',
  ),
  'qwen3_vl': _pair(
    'qwen3_vl', _TURNS, '{answer}', _PICTURE, f'Page {{n}}: {_PICTURE}\n'
  ),
  # For small models with a closed word list.
  'plain': _pair(
    'qwen_plain',
    '{media}{question}',
    ' {answer}',
    f'{_PICTURE} ',
    f'page {{n}} {_PICTURE} ',
  ),
}
_OF_KIND = {
  'qwen2_vl': 'qwen2_vl',
  'qwen2_5_vl': 'qwen2_vl',
  'qwen3_vl': 'qwen3_vl',
  'qwen3_vl_moe': 'qwen3_vl',
}


def choose(
  folder: pathlib.Path, kind: str
) -> Mapping[str, prompt.PromptTemplate]:
  """The templates of a checkpoint, by kind of source.

  Args:
    folder: the checkpoint.
    kind: model_type of the model.

  Raises:
    UserError: corejax.json names no set of ours.
  """
  name = shared.own_settings(folder).get('templates', _OF_KIND[kind])
  if not isinstance(name, str) or name not in SETS:
    raise errors.UserError(
      f'{folder / shared.FILE}: templates={name!r}; expected one of '
      f'{", ".join(SETS)}'
    )
  return SETS[name]
