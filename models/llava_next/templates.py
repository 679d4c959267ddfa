"""Prompt templates of the LLaVA-NeXT checkpoints.

The wording is that of HF's LLaVA-NeXT page, each backbone's own. With several
pictures (`pages`) each is named, so that a question can refer to it. `plain` is
that of models.llava.templates.
"""

from corejax import prompt
from corejax.models.llava import templates

_CHAT = (
  'A chat between a curious human and an artificial intelligence assistant. '
  "The assistant gives helpful, detailed, and polite answers to the human's "
  'questions. '
)
_SEES = (
  'You are a helpful language and vision assistant. You are able to understand '
  'the visual content that the user provides, and assist the user with a '
  'variety of tasks using natural language.'
)

SETS: dict[str, dict[str, prompt.PromptTemplate]] = {
  'vicuna': templates.pair(
    'next-vicuna', _CHAT + 'USER: {media}{question} ASSISTANT:'
  ),
  'mistral': templates.pair('next-mistral', '[INST] {media}{question} [/INST]'),
  'chatml': templates.pair(
    'next-chatml',
    '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
    '<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n',
    answer='{answer}',
  ),
  'yi': templates.pair(
    'next-yi',
    '<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n'
    '{media}{question}<|im_end|><|im_start|>assistant\n',
    answer='{answer}',
  ),
  'llama3': templates.pair(
    'next-llama3',
    f'<|start_header_id|>system<|end_header_id|>\n\n{_SEES}<|eot_id|>'
    '<|start_header_id|>user<|end_header_id|>\n\n{media}{question}<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n',
    answer='{answer}',
  ),
  'plain': templates.SETS['plain'],
}
MARKS = (
  ('Answer the questions.', 'yi'),
  ('<|im_start|>', 'chatml'),
  ('<|start_header_id|>', 'llama3'),
  ('[INST]', 'mistral'),
  ('ASSISTANT:', 'vicuna'),
)
TEXT_MODELS = {'llama': 'vicuna', 'mistral': 'mistral', 'qwen2': 'chatml'}
