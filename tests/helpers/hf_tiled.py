"""Tiny models of the families that cut pictures into tiles, on both sides.

As helpers.hf_llava: every parameter is redrawn, so that attention is peaked and
logits are spread. Batches are made with the family's own plan of a picture, and
transformers refuses a batch whose image tokens are not as many as its features.
"""

from collections.abc import Sequence
import dataclasses

import jax.numpy as jnp
import numpy as np
import transformers

from corejax import inputs as inputs_lib
from corejax import masks
from corejax.models import tiled
from helpers import hf_llava
from helpers import torch_only

torch = torch_only.torch

IMAGE_TOKEN = hf_llava.IMAGE_TOKEN
VIDEO_TOKEN = 2  # OneVision's; texts have none below 3
# (height, width) of one to nine tiles of 13.
PINPOINTS = [
  [13, 26],
  [26, 13],
  [26, 26],
  [39, 13],
  [13, 39],
  [39, 39],
]
_CLASSES = {
  'internvl': transformers.InternVLForConditionalGeneration,
  'llava_next': transformers.LlavaNextForConditionalGeneration,
  'llava_onevision': transformers.LlavaOnevisionForConditionalGeneration,
}


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video of so many frames of (width, height)."""

  frames: int
  size: tuple[int, int]


_KEPT = ('position_embedding', 'cls_token', 'image_newline')


def internvl_config(
  text: str = 'qwen2',
  *,
  text_kw: dict | None = None,
  tower_kw: dict | None = None,
  **kw,
) -> transformers.InternVLConfig:
  """An InternVLConfig of a few thousand parameters; 4 tokens a tile of 16.

  Args:
    text: backbone.
    text_kw, tower_kw: override the backbone's and the tower's settings.
    **kw: override the top level's.
  """
  tower = transformers.InternVLVisionConfig(
    **{
      'hidden_size': 20,
      'intermediate_size': 28,
      'num_hidden_layers': 3,
      'num_attention_heads': 5,
      'image_size': [16, 16],
      'patch_size': [4, 4],
      'attention_bias': True,
      **(tower_kw or {}),
    }
  )
  return transformers.InternVLConfig(
    text_config=hf_llava.text_config(text, text_kw),
    vision_config=tower,
    **{
      'image_token_id': IMAGE_TOKEN,
      'image_seq_length': 4,
      'tie_word_embeddings': False,
      **kw,
    },
  )


def anyres_config(
  model_type: str = 'llava_next',
  text: str = 'llama',
  tower: str = 'clip',
  *,
  text_kw: dict | None = None,
  tower_kw: dict | None = None,
  **kw,
):
  """A LlavaNextConfig or LlavaOnevisionConfig; 9 tokens a tile of 13.

  Args:
    model_type: 'llava_next' or 'llava_onevision'.
    text, tower: kinds, as hf_llava.config.
    text_kw, tower_kw: override their settings.
    **kw: override the top level's.
  """
  kinds = {
    'llava_next': transformers.LlavaNextConfig,
    'llava_onevision': transformers.LlavaOnevisionConfig,
  }
  made = kinds[model_type](
    text_config=hf_llava.text_config(text, text_kw),
    vision_config=hf_llava.tower_config(tower, tower_kw),
    **{
      'image_token_index': IMAGE_TOKEN,
      **(
        {'video_token_index': VIDEO_TOKEN}
        if model_type == 'llava_onevision'
        else {}
      ),
      'image_grid_pinpoints': PINPOINTS,
      'vision_feature_layer': -2 if tower == 'clip' else -1,
      'vision_feature_select_strategy': (
        'default' if tower == 'clip' else 'full'
      ),
      **kw,
    },
  )
  return made


def build(hf_config, seed: int = 0) -> torch.nn.Module:
  """The torch model, redrawn, in float32 with eager attention."""
  hf_config._attn_implementation = 'eager'
  model = _CLASSES[hf_config.model_type](hf_config).eval().float()
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, param in model.named_parameters():
      shape = tuple(param.shape)
      if any(word in name for word in _KEPT):
        value = 0.7 * rng.standard_normal(shape).astype(np.float32)
      else:
        value = hf_llava.draw(name, shape, rng)
      param.copy_(torch.tensor(value))
  model.tie_weights()
  return model


save = hf_llava.save


def _rows(part, tiler, n_media) -> tuple[np.ndarray, np.ndarray, int]:
  """(feature [F, K], weights [F, K], tiles) of a picture or a video."""
  if isinstance(part, Clip):
    plans = [
      tiler.frame(part.size, n == part.frames - 1) for n in range(part.frames)
    ]
  else:
    plans = [tiler.plan(part, n_media)]
  features, blends, n_tiles = [], [], 0
  for plan in plans:
    feature = plan.feature_F.reshape(len(plan.feature_F), -1)
    features.append(n_tiles * tiler.n_features + feature)
    weights = plan.blend_FK
    if weights is None:
      weights = np.ones(feature.shape, np.float32)
    blends.append(weights)
    n_tiles += plan.n_tiles
  return np.concatenate(features), np.concatenate(blends), n_tiles


def batch(
  hf_config,
  tiler: tiled.Tiler,
  sequences: Sequence[Sequence[int | tuple[int, int] | Clip]],
  *,
  side: str = 'right',
  seed: int = 0,
) -> hf_llava.Batch:
  """Random tokens and tiles.

  Args:
    hf_config: of the model.
    tiler: the family's, for the model's sizes.
    sequences: each a list of lengths of text runs, of (width, height)s and of
      Clips, which have equally many frames all.
    side: of the padding.
    seed: of tokens and pixels.
  """
  rng = np.random.default_rng(seed)
  rows, features, blends, n_tiles, sizes, counts = [], [], [], 0, [], []
  video_M, n_frames = [], 0  # of every tile: is it a frame?
  k = tiler.n_blend
  video_token = IMAGE_TOKEN
  if hf_config.model_type == 'llava_onevision':
    video_token = VIDEO_TOKEN
  for sequence in sequences:
    pictures = [part for part in sequence if isinstance(part, tuple)]
    counts += [len(pictures)] if pictures else []
    tokens = []
    feature, blend = [np.zeros((0, k), int)], [np.zeros((0, k), np.float32)]
    for part in sequence:
      if isinstance(part, int):
        tokens += list(rng.integers(3, IMAGE_TOKEN, part))
        feature.append(np.full((part, k), -1))
        blend.append(np.zeros((part, k), np.float32))
      else:
        own, weights, more = _rows(part, tiler, len(pictures))
        filmed = isinstance(part, Clip)
        tokens += [video_token if filmed else IMAGE_TOKEN] * len(own)
        feature.append(n_tiles * tiler.n_features + own)
        blend.append(weights)
        n_tiles += more
        video_M += [filmed] * more
        if isinstance(part, Clip):
          n_frames = part.frames
        else:
          sizes.append(part)
    rows.append(tokens)
    features.append(np.concatenate(feature))
    blends.append(np.concatenate(blend))
  length = max(map(len, rows))
  shape = (len(rows), length)
  tokens_BT = np.zeros(shape, np.int32)
  feature_BTK = np.full((*shape, k), -1, np.int32)
  blend_BTK = np.zeros((*shape, k), np.float32)
  real_BT = np.zeros(shape, bool)
  for b, tokens in enumerate(rows):
    start = length - len(tokens) if side == 'left' else 0
    where = slice(start, start + len(tokens))
    tokens_BT[b, where] = tokens
    feature_BTK[b, where] = features[b]
    blend_BTK[b, where] = blends[b]
    real_BT[b, where] = True
  start_B = real_BT.argmax(1)
  mask = masks.AttnMask(
    kv_start_B=jnp.asarray(start_B, jnp.int32),
    kv_len_B=jnp.asarray(start_B + real_BT.sum(1), jnp.int32),
  )
  vision, torch_kw = {}, {}
  if n_tiles:
    pixels = rng.standard_normal(
      (n_tiles, 3, tiler.side, tiler.side), np.float32
    )
    vision = {'pixel_values': jnp.asarray(pixels)}
    torch_kw = {'pixel_values': torch.tensor(pixels)}
    if video_token != IMAGE_TOKEN and any(video_M):
      is_frame_M = np.array(video_M)
      films = pixels[is_frame_M].reshape(-1, n_frames, *pixels.shape[1:])
      torch_kw = {'pixel_values_videos': torch.tensor(films)}
      if not is_frame_M.all():
        torch_kw['pixel_values'] = torch.tensor(pixels[~is_frame_M])
    if sizes and hf_config.model_type != 'internvl':
      heights = [(height, width) for width, height in sizes]
      torch_kw['image_sizes'] = torch.tensor(heights)
    if sizes and hf_config.model_type == 'llava_onevision':
      torch_kw['batch_num_images'] = torch.tensor(counts)
  torch_kw |= {
    'input_ids': torch.tensor(tokens_BT, dtype=torch.long),
    'attention_mask': torch.tensor(real_BT, dtype=torch.long),
  }
  # As transformers counts them: padding on the left is not skipped.
  positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
  return hf_llava.Batch(
    inputs_lib.Inputs(
      jnp.asarray(tokens_BT),
      jnp.asarray(positions_BT),
      mask,
      vision,
      jnp.asarray(feature_BTK if k > 1 else feature_BTK[..., 0]),
      blend_BTK=jnp.asarray(blend_BTK) if k > 1 else None,
    ),
    torch_kw,
    real_BT,
  )


@torch.no_grad()
def reference(model: torch.nn.Module, torch_kw: dict) -> dict[str, np.ndarray]:
  """Everything the torch model computes on a batch, float32.

  Returns:
    logits [B, T, V]; attention [L, B, N, T, S]; hidden [L + 1, B, T, D] (the
    inputs of every layer, then what the last one wrote); with pictures handed
    [M, I, D of the tower] (what the tower hands on, class token first; of the
    first of several feature layers),
    projected [M, I, D], without newlines.
  """
  seen: dict[str, np.ndarray] = {}
  caught = {}

  def catch(name, what):
    return lambda module, args, *out: caught.update({name: what(args, *out)})

  inner = model.model
  handles = [
    inner.language_model.norm.register_forward_pre_hook(
      catch('last', lambda args: args[0])
    ),
    inner.multi_modal_projector.register_forward_hook(
      catch('projected', lambda args, out: out)
    ),
  ]
  out = model(**torch_kw, output_attentions=True, output_hidden_states=True)
  for handle in handles:
    handle.remove()
  seen['logits'] = out.logits.float().numpy()
  seen['attention'] = torch.stack(out.attentions).float().numpy()
  hidden = torch.stack((*out.hidden_states[:-1], caught['last']))
  seen['hidden'] = hidden.float().numpy()
  if 'projected' in caught and 'pixel_values_videos' not in torch_kw:
    seen['projected'] = caught['projected'].float().numpy()
    tower = inner.vision_tower(
      torch_kw['pixel_values'], output_hidden_states=True
    )
    layer = model.config.vision_feature_layer
    first = layer if isinstance(layer, int) else layer[0]
    handed = tower.hidden_states[first]
    if model.config.model_type == 'internvl' and layer == -1:
      handed = tower.last_hidden_state
    seen['handed'] = handed.float().numpy()
  return seen
