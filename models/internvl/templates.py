"""Prompt templates of the InternVL checkpoints.

That of their own chat template: no system text, a picture on a line of its own
before the question. With several pictures (`pages`) each is named, so that a
question can refer to it; of a video the frames are named. `plain` is that of
models.llava.templates.
"""

from corejax import prompt
from corejax.models.llava import templates

SETS: dict[str, dict[str, prompt.PromptTemplate]] = {
  'internvl': prompt.with_videos(
    templates.pair(
      'internvl',
      '<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n',
      answer='{answer}',
    ),
    '{video}\n',
  ),
  'plain': prompt.with_videos(templates.SETS['plain'], '{video} '),
}
MARKS = (('<|im_start|>', 'internvl'),)
TEXT_MODELS = {kind: 'internvl' for kind in ('llama', 'qwen2', 'qwen3')}
