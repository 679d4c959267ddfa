"""Real models compiled for real devices, on a machine that has none.

    pip install --no-deps --target libtpu 'libtpu==0.0.42.*'
    export PYTHONPATH=libtpu
    python -m pytest -m aot tests/experiments/test_ahead_aot.py

and for the H100 what tests/kernels/test_triton_aot.py says. Decoders and towers
are cut to a few layers: a layer more costs memory and no other program.
"""

import importlib.util
import json

import pytest

from corejax.experiments import rank
from helpers import released

pytestmark = pytest.mark.aot

_NAMES = (
  'llava-1.5-7b-hf',
  'Qwen2.5-VL-7B-Instruct',
  'Qwen3-VL-8B-Instruct',
  'InternVL3-8B',
)
_NEEDS = {'v5e:2x2': 'libtpu', 'v6e:2x2': 'libtpu', 'h100': 'jax_cuda13_plugin'}


def _folder(name, path, n_layers):
  key, content, *_ = released.RELEASED[name]
  text = content.get('text_config', content)
  text = {**text, 'num_hidden_layers': n_layers}
  if 'text_config' in content:
    text = {**content, 'text_config': text}
  (path / 'config.json').write_text(json.dumps(text))
  return key


@pytest.mark.parametrize('target', _NEEDS)
@pytest.mark.parametrize('name', _NAMES)
def test_a_forward_with_ram_at_16k_tokens(name, target, tmp_path):
  """The target's own kernel serves the decoder, and a few layers fit."""
  pytest.importorskip(_NEEDS[target], reason=f'{target} needs its compiler')
  if target == 'h100' and importlib.util.find_spec('jax_triton') is None:
    pytest.skip('h100 needs jax-triton')
  key = _folder(name, tmp_path, 4)
  report = rank.compile_only(
    rank.Config(
      model=key,
      checkpoint=str(tmp_path),
      dtype='bfloat16',
      compile_only=True,
      target=target,
      mesh='' if target == 'h100' else 'data:1,model:4',
      batch_size=1,
    )
  )
  kernel = 'triton' if target == 'h100' else 'tpu_pallas'
  assert report.step.served == (kernel,)
  assert report.fits
  # No [T, T] matrix of any head: it would be half a GiB in bfloat16.
  assert report.step.temporaries < 2 * 2**30


def test_what_does_not_fit_is_told(tmp_path):
  """32 examples of 16k tokens on one small chip."""
  pytest.importorskip('libtpu', reason='a TPU target needs libtpu')
  key = _folder('llava-1.5-7b-hf', tmp_path, 32)
  report = rank.compile_only(
    rank.Config(
      model=key,
      checkpoint=str(tmp_path),
      dtype='bfloat16',
      compile_only=True,
      target='v5e:2x2',
      mesh='data:4,model:1',
      batch_size=32,
    )
  )
  assert report.step.beyond is not None and not report.fits
