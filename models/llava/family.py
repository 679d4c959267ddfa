"""`llava_flax`: LLaVA folders and hub ids -> a loaded model."""

from corejax.models import families
from corejax.models.llava import config
from corejax.models.llava import modeling
from corejax.models.llava import processing
from corejax.models.llava import weights

KEY = 'llava_flax'

FAMILY = families.make(
  KEY,
  read=config.read,
  modeling=modeling,
  processing=processing,
  weights=weights,
  backbones=('llama', 'mistral', 'qwen2', 'qwen3'),
  towers=('clip', 'siglip'),
  box_answers='square',
  trained=('scenes-8x8', 'scenes-4x8'),
)
