"""Prompt templates of the Qwen-VL checkpoints, and which one a folder gets.

The wording is that of their own chat template: a system message for Qwen2-VL
and 2.5, none for Qwen3-VL; pictures and videos first. With several pictures
(`pages`, `frames` of a video) each is named, so that a question can refer to
it. A folder's `corejax.json` may name another set: {"templates": "plain"}.

A video's placeholder is replaced by its tokens. For Qwen3-VL these are, for
each two frames, their time and a picture's pair of marks, s and e:

    s <0.2 seconds> s <|video_pad|> x n e <1.2 seconds> s .. e e

The outer pair is that of the chat template; transformers 4.57 replaced it too,
transformers 5 replaces the placeholder alone. `qwen3_vl-transformers-4.57` is
a set without it.
"""

from collections.abc import Mapping
import pathlib

from corejax import errors
from corejax import prompt
from corejax.models.llava import templates as shared

_PICTURE = '<|vision_start|>{image}<|vision_end|>'
_VIDEO = '<|vision_start|>{video}<|vision_end|>'
_TURNS = (
  '<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n'
)
_SYSTEM = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'


def _of_kinds(
  name: str,
  body: str,
  answer: str,
  picture: str,
  page: str,
  video: str = _VIDEO,
) -> Mapping[str, prompt.PromptTemplate]:
  """By kind of source; any of them may show videos beside its pictures."""
  media = {
    'image': picture,
    'pages': page,
    'frames': page.replace('Page', 'Frame'),
    'video': picture,
  }
  return {
    kind: prompt.PromptTemplate(
      f'{name}/{kind}', body, media=text, answer=answer, video=video
    )
    for kind, text in media.items()
  }


SETS: Mapping[str, Mapping[str, prompt.PromptTemplate]] = {
  'qwen2_vl': _of_kinds(
    'qwen2_vl',
    _SYSTEM + _TURNS,
    '{answer}',
    _PICTURE,
    f'Page {{n}}: {_PICTURE}\n',
  ),
  'qwen3_vl': _of_kinds(
    'qwen3_vl', _TURNS, '{answer}', _PICTURE, f'Page {{n}}: {_PICTURE}\n'
  ),
  'qwen3_vl-transformers-4.57': _of_kinds(
    'qwen3_vl-transformers-4.57',
    _TURNS,
    '{answer}',
    _PICTURE,
    f'Page {{n}}: {_PICTURE}\n',
    '{video}',
  ),
  # For small models with a closed word list.
  'plain': _of_kinds(
    'qwen_plain',
    '{media}{question}',
    ' {answer}',
    f'{_PICTURE} ',
    f'page {{n}} {_PICTURE} ',
    f'{_VIDEO} ',
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
