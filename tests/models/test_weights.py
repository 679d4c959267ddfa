"""Loading: every layout and dtype to the bit, and strict both ways."""

import functools
import json
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from corejax import errors
from corejax.models import tensors
from corejax.models import weights as weights_lib
from corejax.models.llava import config as config_lib
from corejax.models.llava import modeling
from corejax.models.llava import weights
from helpers import hf_llava
from helpers import parity
from helpers import torch_only

torch = torch_only.torch
safetensors_torch = torch_only.safetensors_torch

_F32 = jnp.dtype('float32')


@functools.cache
def _torch_model(tied: bool = False):
  """Qwen2 and SigLIP: biases, grouped heads, a pooling head to be ignored."""
  config = hf_llava.config(
    'qwen2',
    'siglip',
    text_kw=dict(num_key_value_heads=2, tie_word_embeddings=tied),
    tower_kw=dict(num_hidden_layers=4),
    vision_feature_layer=-2,
  )
  return hf_llava.build(config, seed=5)


def _load(folder, dtype=_F32, mesh=None):
  config = config_lib.read(folder)
  return weights.load(folder, config, dtype=dtype, mesh=mesh)


def _arrays(model) -> dict[str, np.ndarray]:
  return {
    '.'.join(keys): np.asarray(param[...])
    for keys, param in nnx.to_flat_state(nnx.state(model))
  }


def _expected(torch_model, path: str) -> np.ndarray:
  """A few parameters by hand, independently of the weight map."""
  state = torch_model.state_dict()
  text = 'model.language_model.layers.'
  tower = 'model.vision_tower.encoder.layers.'

  def stack(prefix, name, n_layers, shape):
    return np.stack(
      [
        state[f'{prefix}{layer}.{name}'].float().numpy().reshape(shape)
        for layer in range(n_layers)
      ]
    )

  return {
    'language.layers.attn.q.weight': lambda: stack(
      text, 'self_attn.q_proj.weight', 3, (4, 8, 32)
    ),
    'language.layers.attn.v.bias': lambda: stack(
      text, 'self_attn.v_proj.bias', 3, (2, 8)
    ),
    'language.layers.attn.o.weight': lambda: stack(
      text, 'self_attn.o_proj.weight', 3, (32, 4, 8)
    ),
    'language.layers.mlp.down.weight': lambda: stack(
      text, 'mlp.down_proj.weight', 3, (32, 40)
    ),
    'vision.layers.attn.o.weight': lambda: stack(
      tower, 'self_attn.out_proj.weight', 3, (20, 5, 4)
    ),
    'vision.layers.norm2.bias': lambda: stack(
      tower, 'layer_norm2.bias', 3, (20,)
    ),
    'vision.patch.weight': lambda: state[
      'model.vision_tower.embeddings.patch_embedding.weight'
    ].numpy(),
    'language.head.weight': lambda: state['lm_head.weight'].numpy(),
  }[path]()


_BY_HAND = (
  'language.layers.attn.q.weight',
  'language.layers.attn.v.bias',
  'language.layers.attn.o.weight',
  'language.layers.mlp.down.weight',
  'vision.layers.attn.o.weight',
  'vision.layers.norm2.bias',
  'vision.patch.weight',
  'language.head.weight',
)


@pytest.mark.parametrize('layout', hf_llava.LAYOUTS)
@pytest.mark.parametrize('shards', ['1GB', '20KB'])
def test_layouts_and_files(tmp_path, layout, shards):
  torch_model = _torch_model()
  hf_llava.save(torch_model, tmp_path, layout=layout, max_shard_size=shards)
  files = sorted(tmp_path.glob('*.safetensors'))
  assert (len(files) > 2) == (shards == '20KB')
  # The layout is one that transformers itself reads.
  again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
  for name, value in torch_model.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name
  ours = _arrays(_load(tmp_path))
  for path in _BY_HAND:
    np.testing.assert_array_equal(ours[path], _expected(torch_model, path))
  assert sum(array.size for array in ours.values()) == sum(
    value.numel()
    for name, value in torch_model.named_parameters()
    if 'vision_tower.head' not in name
    and 'post_layernorm' not in name
    and 'encoder.layers.3' not in name
  )


@pytest.mark.parametrize('saved', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('wanted', ['float32', 'bfloat16', 'float16'])
def test_dtypes_round_as_torch(tmp_path, saved, wanted):
  torch_model = _torch_model()
  hf_llava.save(torch_model, tmp_path, dtype=getattr(torch, saved))
  model = _load(tmp_path, jnp.dtype(wanted))
  for path in ('language.layers.attn.q.weight', 'vision.patch.weight'):
    ours = _arrays(model)[path]
    assert ours.dtype == jnp.dtype(wanted)
    theirs = torch.tensor(_expected(torch_model, path))
    theirs = theirs.to(getattr(torch, saved)).to(getattr(torch, wanted))
    np.testing.assert_array_equal(
      ours.astype(np.float32), theirs.float().numpy()
    )


def test_bfloat16_model_is_as_good_as_torchs(tmp_path):
  torch_model = _torch_model()
  hf_llava.save(torch_model, tmp_path, dtype=torch.bfloat16)
  batch = hf_llava.batch(torch_model.config, [[4, hf_llava.IMAGE, 20]])
  model = _load(tmp_path, jnp.dtype('bfloat16'))
  exact = parity.check_bfloat16(
    modeling.forward, model, type(torch_model), tmp_path, batch, 1.5, 0.2
  )
  # ... and the bfloat16 file itself is read exactly.
  wide = jax.jit(modeling.forward)(_load(tmp_path), batch.inputs)
  ours = np.asarray(wide.logits_BPV)[batch.real_BT]
  assert np.abs(ours - exact).max() < 1e-4 * exact.std()


def test_tied_head(tmp_path):
  torch_model = _torch_model(tied=True)
  hf_llava.save(torch_model, tmp_path / 'tied')
  assert 'language_model.lm_head.weight' not in tensors.open_folder(
    tmp_path / 'tied'
  )
  model = _load(tmp_path / 'tied')
  assert model.language.head is None
  batch = hf_llava.batch(torch_model.config, [[12]])
  hf = hf_llava.reference(torch_model, batch.torch)['logits']
  ours = jax.jit(modeling.forward)(model, batch.inputs).logits_BPV
  assert np.abs(ours - hf).max() < 1e-4 * hf.std()


def test_head_of_its_own_in_a_tied_file_unties(tmp_path):
  """As transformers does; a head equal to the table changes nothing."""
  torch_model = _torch_model(tied=True)
  table = torch_model.state_dict()['lm_head.weight']
  hf_llava.save(
    torch_model,
    tmp_path,
    extra={'language_model.lm_head.weight': -2 * table},
  )
  again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
  model = _load(tmp_path)
  assert model.language.head is not None
  np.testing.assert_array_equal(
    model.language.head.weight[...], again.lm_head.weight.detach().numpy()
  )
  np.testing.assert_array_equal(
    model.language.embed.weight[...] * -2, model.language.head.weight[...]
  )


# -- strictness: a saved folder, edited ---------------------------------------


@pytest.fixture
def edit(tmp_path):
  """edit(fn): applies fn to the dict of torch tensors and loads the folder."""
  hf_llava.save(_torch_model(), tmp_path)
  path = tmp_path / tensors.SINGLE

  def apply(change, dtype=_F32):
    content = dict(safetensors_torch.load_file(path))
    change(content)
    safetensors_torch.save_file(content, path)
    return _load(tmp_path, dtype)

  return apply


_LAYER = 'language_model.model.layers.'


def test_what_is_not_run_may_be_absent(edit):
  def drop(content):
    gone = [
      name
      for name in content
      if 'encoder.layers.3.' in name
      or 'post_layernorm' in name
      or 'vision_tower.head' in name
    ]
    assert len(gone) > 20
    for name in gone:
      del content[name]

  assert edit(drop).vision.layers.fc1.weight.shape[0] == 3


def test_old_buffers_are_ignored(edit):
  def add(content):
    content['vision_tower.embeddings.position_ids'] = torch.arange(9)[None]
    content[f'{_LAYER}0.self_attn.rotary_emb.inv_freq'] = torch.ones(4)

  edit(add)


@pytest.mark.parametrize(
  'change, parts',
  [
    (
      lambda c: c.pop(f'{_LAYER}1.mlp.up_proj.weight'),
      ['1 missing: model.language_model.layers.1.mlp.up_proj.weight'],
    ),
    (
      lambda c: c.pop('vision_tower.encoder.layers.2.mlp.fc1.bias'),
      ['1 missing: model.vision_tower.encoder.layers.2.mlp.fc1.bias'],
    ),
    (
      lambda c: c.update({'vision_tower.extra.weight': torch.ones(2)}),
      ['1 not in the model: model.vision_tower.extra.weight'],
    ),
    (
      lambda c: c.update({f'{_LAYER}3.input_layernorm.weight': torch.ones(32)}),
      ['not in the model: model.language_model.layers.3.input_layernorm'],
    ),
    (
      lambda c: c.update({f'{_LAYER}0.self_attn.o_proj.bias': torch.ones(32)}),
      ['not in the model: model.language_model.layers.0.self_attn.o_proj.bias'],
    ),
    (
      lambda c: c.update(
        {f'{_LAYER}0.self_attn.k_proj.weight': torch.ones(32, 16)}
      ),
      ['misshapen', 'k_proj.weight is (32, 16), not (16, 32)'],
    ),
    (
      lambda c: c.update(
        {f'{_LAYER}0.self_attn.k_proj.bias': torch.ones(16, dtype=torch.int8)}
      ),
      ['not of BF16/F16/F32: ', 'k_proj.bias is I8'],
    ),
    (
      lambda c: (
        c.pop('language_model.model.norm.weight'),
        c.update({'multi_modal_projector.linear_3.bias': torch.ones(3)}),
      ),
      ['1 missing: model.language_model.norm.weight', 'linear_3.bias'],
    ),
    (
      lambda c: c.update(
        {'lm_head.weight': c['language_model.lm_head.weight'].clone()}
      ),
      ['lm_head.weight stands twice'],
    ),
  ],
)
def test_strict_both_ways(edit, change, parts):
  with pytest.raises(errors.UserError) as caught:
    edit(change)
  for part in parts:
    assert part in str(caught.value)
  assert '\n' not in str(caught.value)


def test_only_ten_are_named(edit):
  def drop(content):
    for name in [name for name in content if name.startswith(_LAYER)]:
      del content[name]

  with pytest.raises(errors.UserError) as caught:
    edit(drop)
  assert '36 missing' in str(caught.value)
  assert str(caught.value).count('model.language_model.layers') == 10


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('saved', [torch.float32, torch.bfloat16])
def test_not_finite_is_refused(edit, value, saved):
  def poison(content):
    name = f'{_LAYER}2.mlp.gate_proj.weight'
    content[name] = content[name].to(saved)
    content[name][-1, -1] = value

  with pytest.raises(
    errors.UserError,
    match=r'1 tensors hold NaN or infinity as float32: '
    r'language_model\.model\.layers\.2\.mlp\.gate_proj\.weight \(model\.saf',
  ):
    edit(poison)


def test_overflow_on_the_way_to_float16_is_refused(edit):
  def enlarge(content):
    content['language_model.model.norm.weight'][0] = 1e6

  with pytest.raises(errors.UserError, match='infinity as float16'):
    edit(enlarge, jnp.dtype('float16'))
  edit(lambda content: None)


def test_largest_finite_numbers_pass():
  for name in ('float32', 'float16', 'bfloat16'):
    info = jnp.finfo(jnp.dtype(name))
    values = np.array([info.max, info.min, info.tiny, 0, 1], info.dtype)
    assert weights_lib._is_finite(values)
    infinite = np.append(values, np.inf).astype(info.dtype)
    assert not weights_lib._is_finite(infinite)


def test_each_process_reads_only_its_part(tmp_path, monkeypatch):
  """What is copied out of the file is what the devices hold."""
  hf_llava.save(_torch_model(), tmp_path)
  whole = _arrays(_load(tmp_path))
  read = []
  original = weights_lib._read

  def spy(source, index, dtype):
    values = original(source, index, dtype)
    read.append(values.nbytes)
    return values

  monkeypatch.setattr(weights_lib, '_read', spy)
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(1, 4),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  model = _load(tmp_path, mesh=mesh)
  gate = model.language.layers.mlp.gate.weight[...]
  assert gate.addressable_shards[1].data.shape == (3, 10, 32)
  for path, array in _arrays(model).items():
    np.testing.assert_array_equal(array, whole[path])
  assert max(read) <= max(array.nbytes for array in whole.values())
  assert gate.nbytes not in read


@pytest.mark.parametrize(
  'index',
  [
    (slice(None), slice(None), slice(None), slice(None)),
    (slice(1, 3), slice(2, 4), slice(None), slice(0, 16)),
    (slice(2, 3), slice(None), slice(3, 8), slice(31, 32)),
  ],
)
def test_any_part_of_a_parameter(tmp_path, index):
  """Cut along layers, heads and inputs; no sharding rule cuts the layers."""
  hf_llava.save(_torch_model(), tmp_path, max_shard_size='20KB')
  config = config_lib.read(tmp_path)
  rules = weights.make_map(config)
  shapes = weights_lib.shapes(modeling.abstract(config, _F32))
  sources = weights_lib.match(
    weights_lib.open_renamed(tmp_path, rules), shapes, rules, 'here'
  )
  path = 'language.layers.attn.q.weight'
  part = weights_lib._read(sources[path], index, np.dtype('float32'))
  whole = _expected(_torch_model(), path)
  np.testing.assert_array_equal(part, whole[index])


def test_folder_of_another_model(tmp_path):
  """Weights of one folder under the config of another: told, not loaded."""
  hf_llava.save(_torch_model(), tmp_path / 'a')
  other = hf_llava.build(hf_llava.config('qwen2', 'siglip'))
  hf_llava.save(other, tmp_path / 'b')
  shutil.copy(tmp_path / 'b' / tensors.SINGLE, tmp_path / 'a' / tensors.SINGLE)
  with pytest.raises(errors.UserError, match='do not fit config.json'):
    _load(tmp_path / 'a')


def test_index_must_fit_its_files(tmp_path):
  hf_llava.save(_torch_model(), tmp_path, max_shard_size='20KB')
  path = tmp_path / tensors.INDEX
  index = json.loads(path.read_text())
  names = sorted(index['weight_map'])
  files = sorted(set(index['weight_map'].values()))
  index['weight_map'][names[0]] = next(
    file for file in files if file != index['weight_map'][names[0]]
  )
  path.write_text(json.dumps(index))
  with pytest.raises(errors.UserError, match='does not fit its files'):
    _load(tmp_path)
