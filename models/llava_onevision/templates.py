"""Prompt templates of the LLaVA-OneVision checkpoints.

That of their own chat template: no system text, media first. With several
pictures (`pages`) each is named, so that a question can refer to it. `plain` is
that of models.llava.templates.
"""

from corejax import prompt
from corejax.models.llava import templates

SETS: dict[str, dict[str, prompt.PromptTemplate]] = {
  'chatml': prompt.with_videos(
    templates.pair(
      'onevision-chatml',
      '<|im_start|>user {media}{question}<|im_end|><|im_start|>assistant\n',
      answer='{answer}',
    ),
    '{video}\n',
  ),
  'plain': prompt.with_videos(templates.SETS['plain'], '{video} '),
}
MARKS = (('<|im_start|>', 'chatml'),)
TEXT_MODELS = {'qwen2': 'chatml'}
