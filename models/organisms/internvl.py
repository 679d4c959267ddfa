"""InternVL as an organism: InternViT of one layer, Qwen2 decoder.

    page -> one tile of 56x56 -> 8x8 patches of 7x7 -> InternViT
         -> 2x2 patches side by side = one cell -> LayerNorm, MLP -> 16 tokens

    tokens   <img> <IMG_CONTEXT> x 16 </img>

Unlike LLaVA's it has biases on queries, keys and values, and two query heads
share their keys and values.
"""

from corejax.models import internvit
from corejax.models.internvl import config as config_lib
from corejax.models.internvl import modeling
from corejax.models.internvl import weights
from corejax.models.organisms import hf_folder
from corejax.models.organisms import kind

_IMAGE, _START, _END, _VIDEO = _TOKENS = (
  '<IMG_CONTEXT>',
  '<img>',
  '</img>',
  '<video>',
)


def config(size: kind.Size) -> config_lib.InternVLConfig:
  """The model's configuration; `documents` says the same to transformers."""
  return config_lib.InternVLConfig(
    text=kind.text(
      size,
      'qwen2',
      vocab_size=len(hf_folder.tokens(_IMAGE, _TOKENS[1:])),
      groups=2,
      qkv_bias=True,
    ),
    vision=internvit.InternVitConfig(
      d_model=size.d_vision,
      d_mlp=2 * size.d_vision,
      n_layers=1,
      n_heads=size.heads_vision,
      image_size=hf_folder.SIDE,
      patch_size=hf_folder.PATCH // 2,
    ),
    image_token_id=hf_folder.ID['<image>'],
    n_run=1,
  )


def documents(model_config: config_lib.InternVLConfig) -> dict[str, dict]:
  """The folder's JSON files, config.json last."""
  text, tower = model_config.text, model_config.vision
  files = hf_folder.shared_documents(
    'InternVLProcessor',
    'GotOcr2ImageProcessor',
    {
      # A page is a square and so one tile, whatever its size.
      'crop_to_patches': True,
      'min_patches': 1,
      'max_patches': 1,
    },
  )
  files['tokenizer_config.json']['extra_special_tokens'] = {
    'context_image_token': _IMAGE,
    'start_image_token': _START,
    'end_image_token': _END,
    'video_token': _VIDEO,
  }
  return {
    **files,
    'processor_config.json': {
      'processor_class': 'InternVLProcessor',
      'image_seq_length': model_config.n_features,
    },
    'config.json': {
      'architectures': ['InternVLForConditionalGeneration'],
      'model_type': 'internvl',
      'downsample_ratio': 1 / model_config.shrink,
      'image_token_id': model_config.image_token_id,
      'image_seq_length': model_config.n_features,
      'projector_hidden_act': model_config.projector_act,
      'vision_feature_layer': -1,
      'vision_feature_select_strategy': 'default',
      'tie_word_embeddings': text.tie,
      'torch_dtype': 'float32',
      'text_config': hf_folder.text_document(
        text, text.kind, {'rope_theta': text.rope.theta}
      ),
      'vision_config': {
        'model_type': 'internvl_vision',
        'hidden_size': tower.d_model,
        'intermediate_size': tower.d_mlp,
        'num_hidden_layers': tower.n_layers,
        'num_attention_heads': tower.n_heads,
        'attention_bias': tower.qkv_bias,
        'use_qk_norm': tower.qk_norm,
        'image_size': [tower.image_size] * 2,
        'patch_size': [tower.patch_size] * 2,
        'hidden_act': tower.act,
        'norm_type': tower.norm,
        'layer_norm_eps': tower.eps,
        'use_absolute_position_embeddings': tower.position,
        'use_mean_pooling': not tower.final_norm,
      },
    },
  }


KIND = kind.Kind(
  key='internvl_flax',
  title='InternVL',
  config=config,
  modeling=modeling,
  model=modeling.InternVL,
  make_map=weights.make_map,
  spelling=(
    ('lm_head.', 'language_model.lm_head.'),
    ('model.language_model.', 'language_model.model.'),
    ('model.vision_tower.', 'vision_tower.'),
    ('model.multi_modal_projector.', 'multi_modal_projector.'),
  ),
  documents=documents,
  image=_IMAGE,
  before=(_START,),
  after=(_END,),
  more=_TOKENS[1:],
)
