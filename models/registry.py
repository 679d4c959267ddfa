"""The model families: `--model=KEY` -> a loaded model behind one interface."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
from typing import Any, Protocol

import jax

from corejax import attention
from corejax import cache as cache_lib
from corejax import control as control_lib
from corejax import errors
from corejax import inputs as inputs_lib
from corejax import probe as probe_lib
from corejax import prompt as prompt_lib
from corejax.data import example as example_lib

# What the parity tests of every family allow in float32: how far the attention
# of any head may be from transformers', in any weight.
PARITY = 2e-5

# key -> module with `FAMILY: Family`, or with that of another name behind ':'
_MODULES = {
  'llava_flax': 'corejax.models.llava.family',
  'llava_next_flax': 'corejax.models.llava_next.family',
  'llava_onevision_flax': 'corejax.models.llava_onevision.family',
  'internvl_flax': 'corejax.models.internvl.family',
  'qwen2_vl_flax': 'corejax.models.qwen_vl.family:QWEN2_VL',
  'qwen2_5_vl_flax': 'corejax.models.qwen_vl.family:QWEN2_5_VL',
  'qwen3_vl_flax': 'corejax.models.qwen_vl.family:QWEN3_VL',
  'qwen3_vl_moe_flax': 'corejax.models.qwen_vl.family:QWEN3_VL_MOE',
}


class Processor(Protocol):
  """Text and pictures -> tokens and pixels, without torch."""

  # Properties, so that a frozen dataclass with these fields serves.

  @property
  def templates(self) -> Mapping[str, prompt_lib.PromptTemplate]:
    """By kind of source ('image', 'pages', 'frames', 'video')."""
    ...

  @property
  def image_token(self) -> str:
    """The placeholder that stands for a picture in a prompt."""
    ...

  @property
  def content_free(self) -> str:
    """A question that asks nothing, for calibration."""
    ...

  @property
  def tokenizer(self) -> Any:
    """A fast tokenizer of transformers."""
    ...

  def encode(
    self,
    example: example_lib.Example,
    template: prompt_lib.PromptTemplate | None = None,
    question: str | None = None,
  ) -> inputs_lib.Encoded:
    """One example, with its first answer teacher-forced.

    Args:
      example: the example.
      template: None takes the one for example.kind.
      question: replaces the example's (content-free baseline).

    Raises:
      Rejected: an undecodable or oversized picture.
    """
    ...

  def collate(
    self,
    batch: Sequence[inputs_lib.Encoded],
    length: int,
    n_media: int,
  ) -> inputs_lib.Inputs:
    """Right-pads to `length` tokens and `n_media` pictures in all."""
    ...


class Forward(Protocol):
  """`forward(model, inputs, *, attend, control, probe, logit_rows_BP, cache)`.

  With a cache the inputs are a chunk that follows what it holds (see
  corejax.cache); a chunk without pictures has an empty `vision`.
  """

  def __call__(
    self,
    model: Any,
    inputs: inputs_lib.Inputs,
    *,
    attend: attention.Attend = attention.reference,
    control: control_lib.HeadControl | None = None,
    probe: probe_lib.Probe | None = None,
    logit_rows_BP: jax.Array | None = None,
    cache: cache_lib.Cache | None = None,
  ) -> inputs_lib.Output: ...


class See(Protocol):
  """`see(model, vision, *, attend)`: the tower and projector alone.

  Returns [M, I, D], I features a picture (those of padding last); flattened to
  [M * I, D] they are what `inputs.features_ID` takes. Pure, as forward is.
  """

  def __call__(
    self,
    model: Any,
    vision: Mapping[str, jax.Array],
    *,
    attend: attention.Attend = attention.reference,
  ) -> jax.Array: ...


class NewCache(Protocol):
  """`new_cache(model, batch, size)`: an empty cache for the family's forward.

  Size is in tokens an example. Pure, as forward is.
  """

  def __call__(self, model: Any, batch: int, size: int) -> cache_lib.Cache: ...


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model ready to run.

  Attributes:
    key: registry key.
    model: the nnx.Module (a pytree of parameters).
    forward: the family's pure forward; jit it with the model as an argument.
    see: the part of forward that looks at pictures.
    new_cache: makes the cache that forward fills.
    processor: text and pixels.
    config: the family's frozen config.
    n_layers, n_heads, n_kv_heads: of the text decoder.
    max_length: context length in tokens.
    fingerprint: 12 hex digits over the checkpoint's config and weight files.
    eos_ids: tokens that end an answer, as the checkpoint says; may be none.
  """

  key: str
  model: Any
  forward: Forward
  see: See
  new_cache: NewCache
  processor: Processor
  config: Any
  n_layers: int
  n_heads: int
  n_kv_heads: int
  max_length: int
  fingerprint: str
  eos_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Outline:
  """A model's shapes: no weight, no tokenizer, no memory.

  Attributes:
    key: registry key.
    model: the nnx.Module, a ShapeDtypeStruct in place of every array.
    forward, see: as of Loaded.
    config: the family's frozen config, with `text` and `vision`.
    vision: (pictures, features of each) -> what `see` takes of them, shapes;
      the second counts only where pictures keep their own size. Of no picture:
      what a processor's collate makes.
    n_axes: of a token's position; 3 with M-RoPE.
    n_blend: features of which a visual token is a sum.
  """

  key: str
  model: Any
  forward: Forward
  see: See
  config: Any
  vision: Callable[[int, int], dict[str, jax.ShapeDtypeStruct]]
  n_axes: int = 1
  n_blend: int = 1


@dataclasses.dataclass(frozen=True)
class Family:
  """One row of the status matrix and the function that loads it.

  Attributes:
    key: as `--model` spells it.
    backbones: text backbones with parity tests.
    towers: vision towers with parity tests.
    load: (folder, *, dtype, mesh, image_policy) -> Loaded.
    load_processor: (folder, *, image_policy) -> Processor, without weights.
    outline: (folder, *, dtype) -> Outline, of its config.json alone.
    trained: trained weights that come with corejax, by name; the first is
      what is run where no checkpoint is named.
    video: are videos read?
    video_positions: where the positions of videos differ between versions of
      transformers: what `load` takes as this keyword, the default first.
    box_answers: how it was trained to write a box, of grounding.CONVENTIONS.
    resized: folder -> (a picture's (width, height) -> those at which the tower
      sees it); None where pictures do not keep their shape.
  """

  key: str
  backbones: tuple[str, ...]
  towers: tuple[str, ...]
  load: Any
  load_processor: Any
  outline: Any
  trained: tuple[str, ...] = ()
  video: bool = False
  video_positions: tuple[str, ...] = ()
  box_answers: str = 'share'
  resized: Callable[[Any], Callable[..., tuple[int, int]]] | None = None


def keys() -> tuple[str, ...]:
  """All registry keys."""
  return tuple(_MODULES)


def shipped() -> dict[str, str]:
  """Trained weights that come with corejax: name -> key of their family."""
  return {name: key for key in keys() for name in get(key).trained}


def get(key: str) -> Family:
  """The family of this key.

  Raises:
    UserError: there is none; the message lists those that there are.
  """
  if key not in _MODULES:
    raise errors.UserError(
      f'--model={key}: no such model; there are {", ".join(_MODULES)}'
    )
  module, _, name = _MODULES[key].partition(':')
  return getattr(importlib.import_module(module), name or 'FAMILY')
