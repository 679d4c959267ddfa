"""Prompt templates of the LLaVA checkpoints, and which one a folder gets.

The set for a checkpoint is, in this order:

1. what the folder's `corejax.json` names: {"templates": "plain"};
2. what its chat template betrays: the mark of each set is a string that only
   its chat template holds (LLaVA on Llama 3 has a llama text model too);
3. what its text model is usually tuned on: llama -> vicuna, mistral ->
   mistral, qwen2 -> chatml.

The wording is that of HF's LLaVA page: no system text, pictures first. With
several pictures (`pages`, `frames` of a video) each is named, so that a
question can refer to it.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from corejax import errors
from corejax import prompt
from corejax.models import checkpoint

FILE = 'corejax.json'

KINDS = ('image', 'pages', 'frames')


def pair(
  name: str, body: str, answer: str = ' {answer}'
) -> dict[str, prompt.PromptTemplate]:
  return {
    'image': prompt.PromptTemplate(f'{name}/image', body, answer=answer),
    'pages': prompt.PromptTemplate(
      f'{name}/pages', body, media='Page {n}: {image}\n', answer=answer
    ),
    'frames': prompt.PromptTemplate(
      f'{name}/frames', body, media='Frame {n}: {image}\n', answer=answer
    ),
  }


SETS: dict[str, dict[str, prompt.PromptTemplate]] = {
  'vicuna': pair('vicuna', 'USER: {media}{question} ASSISTANT:'),
  'mistral': pair('mistral', '[INST] {media}{question} [/INST]'),
  'chatml': pair(
    'chatml',
    '<|im_start|>user {media}{question}<|im_end|><|im_start|>assistant',
  ),
  'llama3': pair(
    'llama3',
    '<|start_header_id|>user<|end_header_id|>\n\n{media}{question}<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n',
    answer='{answer}',
  ),
  # For small models with a closed word list: the question's last word is the
  # prompt's last token, and the answer's word follows at once.
  'plain': {
    'image': prompt.PromptTemplate(
      'plain/image', '{media}{question}', media='{image} '
    ),
    'pages': prompt.PromptTemplate(
      'plain/pages', '{media}{question}', media='page {n} {image} '
    ),
    # Their word lists have no word for a frame.
    'frames': prompt.PromptTemplate(
      'plain/frames', '{media}{question}', media='page {n} {image} '
    ),
  },
}

MARKS = (
  ('<|im_start|>', 'chatml'),
  ('<|start_header_id|>', 'llama3'),
  ('[INST]', 'mistral'),
  ('ASSISTANT:', 'vicuna'),
)
TEXT_MODELS = {'llama': 'vicuna', 'mistral': 'mistral', 'qwen2': 'chatml'}


def own_settings(folder: str | pathlib.Path) -> dict[str, Any]:
  """What a folder's corejax.json says; {} without one.

  Keys read here: `templates`, `content_free` (a question that asks nothing).
  Others are left to those who wrote them.

  Raises:
    UserError: it is no JSON object.
  """
  path = pathlib.Path(folder) / FILE
  return checkpoint.read_json(path) if path.exists() else {}


def choose(
  folder: str | pathlib.Path,
  chat_template: Any,
  text_model: str,
  sets: Mapping[str, Mapping[str, prompt.PromptTemplate]] = SETS,
  marks: Sequence[tuple[str, str]] = MARKS,
  text_models: Mapping[str, str] = TEXT_MODELS,
) -> Mapping[str, prompt.PromptTemplate]:
  """The templates of a checkpoint, by kind of source.

  Args:
    folder: the checkpoint.
    chat_template: its chat template (Jinja), or several by name of which
      'default' counts; None without one.
    text_model: model_type of its text model.
    sets: the family's templates by name.
    marks: what a chat template holds -> name of its set.
    text_models: without a chat template: text model -> name of its set.

  Raises:
    UserError: corejax.json names no set of ours, nothing tells which, or the
      chat template is no text.
  """
  if isinstance(chat_template, Mapping):
    chat_template = chat_template.get('default')
  if chat_template is not None and not isinstance(chat_template, str):
    raise errors.UserError(
      f'{folder}: the chat template is a {type(chat_template).__name__}, not '
      'text; fetch the tokenizer files again'
    )
  name = own_settings(folder).get('templates')
  if name is not None:
    if not isinstance(name, str) or name not in sets:
      raise errors.UserError(
        f'{pathlib.Path(folder) / FILE}: templates={name!r}; expected one of '
        f'{", ".join(sets)}'
      )
    return sets[name]
  if chat_template is not None:
    for mark, name in marks:
      if mark in chat_template:
        return sets[name]
    said = 'its chat template is none we know'
  else:
    if text_model in text_models:
      return sets[text_models[text_model]]
    said = f'it has no chat template and a text model {text_model!r}'
  raise errors.UserError(
    f'{folder}: which prompt template? {said}; write {{"templates": NAME}} '
    f'into its {FILE}, NAME one of {", ".join(sets)}'
  )
