"""Weight maps: data that says which tensor of a file becomes which parameter.

Names are brought to one spelling first (`renames`), then every `Entry` names a
tensor in that spelling and the parameter it becomes:

    model.language_model.layers.{}.self_attn.q_proj.weight   [N*H, D], L of them
      -> language.layers.attn.q.weight                    [L, N, H, D]   (2, 1)

`{}` runs over the layers, which are stacked on a leading axis. `axes` is the
whole transform: how many of the parameter's axes each axis of the tensor
holds; the bytes are not reordered (but see `Entry.swap` and `Entry.parts`).
"""

from collections.abc import Sequence
import dataclasses
import re

LAYER = '{}'
EXPERT = '{x}'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One kind of tensor.

  Attributes:
    name: in the file, after renaming; `{}` stands for the layer.
    path: of the parameter, joined by dots.
    axes: per axis of the tensor, the number of the parameter's axes that it
      holds; () is one each.
    swap: some files hold the last two axes in the other order, which the shape
      tells (the experts of Qwen3-VL-MoE).
    parts: some files hold, in place of a tensor [X, in, out], one for each of
      the X experts (`{x}` in these names) and each part of `out`, [out, in].
  """

  name: str
  path: str
  axes: tuple[int, ...] = ()
  swap: bool = False
  parts: tuple[str, ...] = ()

  @property
  def stacked(self) -> bool:
    return LAYER in self.name

  def file_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the tensor for a parameter of this shape (without L)."""
    left = list(shape)
    merged = []
    for count in self.axes or (1,) * len(left):
      size = 1
      for _ in range(count):
        size *= left.pop(0)
      merged.append(size)
    return tuple(merged)


@dataclasses.dataclass(frozen=True)
class WeightMap:
  """How one family's files are read.

  Attributes:
    renames: (regex, replacement) on names, the first that matches is applied.
    entries: what becomes what.
    ignored: regexes of renamed names that are known and not needed.
  """

  renames: tuple[tuple[str, str], ...]
  entries: tuple[Entry, ...]
  ignored: tuple[str, ...] = ()

  def rename(self, name: str) -> str:
    """A name of the file in the one spelling."""
    for pattern, replacement in self.renames:
      new, count = re.subn(pattern, replacement, name)
      if count:
        return new
    return name

  def is_ignored(self, name: str) -> bool:
    """Is this (renamed) tensor known and not needed?"""
    return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def both(
  name: str, path: str, weight: tuple[int, ...] = (), bias: tuple[int, ...] = ()
) -> tuple[Entry, Entry]:
  """Weight and bias; which of them exists is the model's business."""
  return (
    Entry(f'{name}.weight', f'{path}.weight', weight),
    Entry(f'{name}.bias', f'{path}.bias', bias),
  )


_HEADS_OUT = dict(weight=(2, 1), bias=(2,))  # [N*H, D], [N*H]
_HEADS_IN = dict(weight=(1, 2))  # [D, N*H]


def decoder(name: str, path: str, head: str) -> tuple[Entry, ...]:
  """Entries of models.decoder.Decoder.

  Args:
    name: prefix in the file, such as 'model.language_model'.
    path: of the Decoder in the model.
    head: name of the output head's weight.
  """
  layer, block = f'{name}.layers.{LAYER}', f'{path}.layers'
  return (
    Entry(f'{name}.embed_tokens.weight', f'{path}.embed.weight'),
    Entry(f'{name}.norm.weight', f'{path}.norm.weight'),
    Entry(head, f'{path}.head.weight'),
    Entry(f'{layer}.input_layernorm.weight', f'{block}.input_norm.weight'),
    Entry(
      f'{layer}.post_attention_layernorm.weight', f'{block}.post_norm.weight'
    ),
    *both(f'{layer}.self_attn.q_proj', f'{block}.attn.q', **_HEADS_OUT),
    *both(f'{layer}.self_attn.k_proj', f'{block}.attn.k', **_HEADS_OUT),
    *both(f'{layer}.self_attn.v_proj', f'{block}.attn.v', **_HEADS_OUT),
    *both(f'{layer}.self_attn.o_proj', f'{block}.attn.o', **_HEADS_IN),
    Entry(f'{layer}.self_attn.q_norm.weight', f'{block}.attn.q_norm.weight'),
    Entry(f'{layer}.self_attn.k_norm.weight', f'{block}.attn.k_norm.weight'),
    *both(f'{layer}.mlp.gate_proj', f'{block}.mlp.gate'),
    *both(f'{layer}.mlp.up_proj', f'{block}.mlp.up'),
    *both(f'{layer}.mlp.down_proj', f'{block}.mlp.down'),
  )


def experts(name: str, path: str) -> tuple[Entry, ...]:
  """Entries of models.mlp.Experts, in any of three layouts.

  The hub's Qwen3-VL-MoE has [X, D, 2 F] and [X, F, D] (which is ours), what
  transformers 5 has in memory is [X, 2 F, D] and [X, D, F], and Qwen3-MoE (in
  InternVL3.5) has three tensors an expert.

  Args:
    name, path: as `decoder`.
  """
  layer, block = f'{name}.layers.{LAYER}.mlp', f'{path}.layers.mlp'
  each = f'{layer}.experts.{EXPERT}'
  return (
    Entry(f'{layer}.gate.weight', f'{block}.router.weight'),
    Entry(
      f'{layer}.experts.gate_up_proj',
      f'{block}.gate_up',
      swap=True,
      parts=(f'{each}.gate_proj.weight', f'{each}.up_proj.weight'),
    ),
    Entry(
      f'{layer}.experts.down_proj',
      f'{block}.down',
      swap=True,
      parts=(f'{each}.down_proj.weight',),
    ),
  )


def tower(name: str, path: str) -> tuple[Entry, ...]:
  """Entries of models.vision.Tower, CLIP and SigLIP alike."""
  layer, block = f'{name}.encoder.layers.{LAYER}', f'{path}.layers'
  embeddings = f'{name}.embeddings'
  return (
    Entry(f'{embeddings}.class_embedding', f'{path}.cls'),
    Entry(f'{embeddings}.position_embedding.weight', f'{path}.position'),
    *both(f'{embeddings}.patch_embedding', f'{path}.patch'),
    *both(f'{name}.pre_layrnorm', f'{path}.pre_norm'),  # spelt so in CLIP
    *both(f'{layer}.layer_norm1', f'{block}.norm1'),
    *both(f'{layer}.layer_norm2', f'{block}.norm2'),
    *both(f'{layer}.self_attn.q_proj', f'{block}.attn.q', **_HEADS_OUT),
    *both(f'{layer}.self_attn.k_proj', f'{block}.attn.k', **_HEADS_OUT),
    *both(f'{layer}.self_attn.v_proj', f'{block}.attn.v', **_HEADS_OUT),
    *both(f'{layer}.self_attn.out_proj', f'{block}.attn.o', **_HEADS_IN),
    *both(f'{layer}.mlp.fc1', f'{block}.fc1'),
    *both(f'{layer}.mlp.fc2', f'{block}.fc2'),
  )
