"""`internvl_flax`: InternVL folders and hub ids -> a loaded model."""

from corejax.models import families
from corejax.models.internvl import config
from corejax.models.internvl import modeling
from corejax.models.internvl import processing
from corejax.models.internvl import weights

KEY = 'internvl_flax'

FAMILY = families.make(
  KEY,
  read=config.read,
  modeling=modeling,
  processing=processing,
  weights=weights,
  backbones=config.BACKBONES,
  towers=('internvit (300M and 6B kinds)',),
  video=True,
  trained=('scenes-internvl-4x8',),
  box_answers='thousand',
)
