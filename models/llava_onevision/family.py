"""`llava_onevision_flax`: LLaVA-OneVision folders and hub ids -> a model.

Parameters and forward are those of LLaVA-NeXT (models/llava_next/modeling.py).
"""

from corejax.models import anyres
from corejax.models import families
from corejax.models.llava_next import modeling
from corejax.models.llava_next import weights
from corejax.models.llava_onevision import config
from corejax.models.llava_onevision import processing

KEY = 'llava_onevision_flax'

FAMILY = families.make(
  KEY,
  read=config.read,
  modeling=modeling,
  processing=processing,
  weights=weights,
  backbones=('qwen2',),
  towers=('siglip',),
  video=True,
  n_blend=lambda config: anyres.blended(config.most),
)
