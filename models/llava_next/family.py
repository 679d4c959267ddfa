"""`llava_next_flax`: LLaVA-NeXT folders and hub ids -> a loaded model."""

from corejax.models import families
from corejax.models.llava_next import config
from corejax.models.llava_next import modeling
from corejax.models.llava_next import processing
from corejax.models.llava_next import weights

KEY = 'llava_next_flax'

FAMILY = families.make(
  KEY,
  read=config.read,
  modeling=modeling,
  processing=processing,
  weights=weights,
  backbones=('llama', 'mistral', 'qwen2'),
  towers=('clip', 'siglip'),
)
