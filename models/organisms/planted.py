"""A LLaVA checkpoint whose weights are set by hand, with known heads.

What the ground truth of SCIENCE.md is measured on: heads that retrieve are
planted at known places, decoys that merely look salient, central, first or
recent stand beside them, helpers say what is asked, and all other heads rest or
are small and random. It answers the questions of `scenes_referring` and
`scenes_pages`, and their twins.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from corejax import heads as heads_lib
from corejax.data import scenes
from corejax.models import decoder
from corejax.models import rope
from corejax.models import vision as vision_lib
from corejax.models.llava import config as config_lib
from corejax.models.organisms import hf_folder
from corejax.models.organisms import planted_space as space
from corejax.models.organisms import planted_text as text
from corejax.models.organisms import planted_vision as vision

DESCRIPTION = (
  'planted model: weights set by hand, retrieval heads at known places; a '
  'test piece, no trained model'
)


def _version() -> str:
  """8 hex digits over the source that decides the weights."""
  digest = hashlib.sha256()
  for source in (
    pathlib.Path(__file__).parent,
    pathlib.Path(scenes.__path__[0]),
  ):
    for path in sorted(source.glob('*.py')):
      digest.update(path.read_bytes())
  return digest.hexdigest()[:8]


# A cached folder of another version is another folder.
VERSION = _version()


@dataclasses.dataclass(frozen=True)
class Planted:
  """The known heads of one planted model.

  Attributes:
    tasks: task -> the planted heads that serve it.
    decoys: 'centre', 'saliency', 'sink', 'recency' -> the head.
    helpers: 'page', 'verb', 'noun', 'ground' -> heads that the answers need
      but that look nothing up, each with its double.
    resting: heads that look at nothing but the first token.
  """

  tasks: Mapping[str, heads_lib.HeadSet]
  decoys: Mapping[str, heads_lib.HeadSet]
  helpers: Mapping[str, heads_lib.HeadSet]
  resting: heads_lib.HeadSet

  @property
  def planted(self) -> heads_lib.HeadSet:
    """All planted heads."""
    return heads_lib.HeadSet(
      head for head_set in self.tasks.values() for head in head_set
    )

  def to_json(self) -> dict:
    """What corejax.json says of them."""
    return {
      'description': DESCRIPTION,
      'planted': str(self.planted),
      'tasks': {name: str(h) for name, h in self.tasks.items()},
      'decoys': {name: str(h) for name, h in self.decoys.items()},
      'helpers': {name: str(h) for name, h in self.helpers.items()},
      'resting': str(self.resting),
    }


def known_heads(seed: int) -> Planted:
  """The known heads of the model that `write` makes with this seed."""
  return _planted(text.Plan.draw(_rng(seed, 'places')))


def _rng(seed: int, purpose: str) -> np.random.Generator:
  words = np.frombuffer(purpose.ljust(8)[:8].encode(), '<u4').tolist()
  return np.random.Generator(
    np.random.Philox(np.random.SeedSequence([seed, *words]))
  )


def _planted(plan: text.Plan) -> Planted:
  sets = {name: heads_lib.HeadSet(p) for name, p in plan.places.items()}
  return Planted(
    tasks={task: sets[name] for task, name in text.SERVES.items()},
    decoys={name: sets[name] for name in text.DECOYS},
    helpers={name: sets[name] for name in text.HELPERS},
    resting=sets[text.RESTING],
  )


def weights(seed: int = 0) -> dict[str, np.ndarray]:
  """All tensors, float32, under the names of released LLaVA checkpoints."""
  parts = {
    'vision_tower.vision_model.': vision.tower(_rng(seed, 'tower')),
    'multi_modal_projector.': vision.projector(),
    'language_model.': text.decoder(
      _rng(seed, 'decoder'), text.Plan.draw(_rng(seed, 'places'))
    ),
  }
  return {
    prefix + name: np.ascontiguousarray(tensor, np.float32)
    for prefix, tensors in parts.items()
    for name, tensor in tensors.items()
  }


def config() -> config_lib.LlavaConfig:
  """The model's configuration."""
  return config_lib.LlavaConfig(
    text=decoder.DecoderConfig(
      kind='llama',
      vocab_size=len(hf_folder.TOKENS),
      d_model=space.SIZE,
      d_mlp=text.MLP,
      n_layers=text.LAYERS,
      n_heads=text.HEADS,
      n_kv_heads=text.HEADS,
      head_dim=space.SIZE // text.HEADS,
      max_length=hf_folder.MAX_LENGTH,
      rope=rope.RopeConfig(
        space.SIZE // text.HEADS,
        theta=text.ROPE_THETA,
        max_length=hf_folder.MAX_LENGTH,
        original_length=hf_folder.MAX_LENGTH,
      ),
    ),
    vision=vision_lib.VisionConfig(
      kind='clip',
      d_model=vision.SIZE,
      d_mlp=vision.SIZE,
      n_layers=1,
      n_heads=vision.HEADS,
      image_size=hf_folder.SIDE,
      patch_size=hf_folder.PATCH,
      act='quick_gelu',
      eps=1e-5,
    ),
    image_token_id=hf_folder.ID['<image>'],
    feature_layers=(0,),
  )


def write(path: str | os.PathLike, seed: int = 0) -> Planted:
  """Writes a checkpoint folder that HF's LLaVA classes load too.

  Args:
    path: made if need be.
    seed: places of the known heads and the random rest.

  Returns:
    The known heads; `corejax.json` in the folder says the same.
  """
  planted = known_heads(seed)
  files = hf_folder.documents(config())
  hf_folder.write(path, files, weights(seed), planted.to_json())
  return planted
