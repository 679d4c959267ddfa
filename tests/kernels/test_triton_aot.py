"""The Triton kernel compiles for GPUs, on a machine that has none.

    python -m pytest -m aot tests/kernels/test_triton_aot.py

prints registers, spilled bytes and shared memory of every size that is shipped.
The second half compiles whole JAX programs for an H100, from the description of
one beside the kernels, and needs the CUDA plugin beside jax-triton:

    pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt jax-triton

(plugin and pjrt in jax's own version; no CUDA library is needed). What is
compiled is never run: values are checked interpreted (test_triton.py).
"""

import functools
import re
import subprocess

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from corejax import attention
from corejax import control as control_lib
from corejax import masks
from corejax.kernels import targets
from corejax.kernels import triton
from corejax.models import decoder
from corejax.models import rope

pytestmark = pytest.mark.aot

# Bytes of shared memory that one program may have.
_SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
_N_HEADS, _N_KV = 28, 4
_TYPES = {'bfloat16': '*bf16', 'float16': '*fp16'}
_KERNEL = 'triton_kernel_call'


def _compile(head_dim, dtype, target, causal=True):
  """(compiled, BlockSizes) of the kernel by Triton alone."""
  import triton as compiler
  from triton.backends import compiler as backends

  from corejax.kernels import triton_kernel

  blocks = triton_kernel.block_sizes(target)
  vectors = _TYPES[dtype]
  types = {
    'q_BTNH': vectors,
    'k_BSKH': vectors,
    'v_BSKH': vectors,
    'work_WX': '*i32',
    'scale_BN': '*fp32',
    'n_rows': 'i32',
    'n_keys': 'i32',
    'out_BTNH': vectors,
    'lse_BNT': '*fp32',
  }
  constants = triton_kernel.constants(
    blocks,
    _N_HEADS,
    _N_KV,
    triton_kernel.HEAD_DIMS[head_dim],
    causal,
  )
  names = triton_kernel.attention.arg_names
  assert names == [*types, *constants]
  source = compiler.compiler.ASTSource(
    triton_kernel.attention,
    types | dict.fromkeys(constants, 'constexpr'),
    {(names.index(name),): value for name, value in constants.items()},
    # As jax-triton does: arrays begin at multiples of 16 bytes.
    {
      (i,): [['tt.divisibility', 16]]
      for i, kind in enumerate(types.values())
      if kind[0] == '*'
    },
  )
  compiled = compiler.compile(
    source,
    target=backends.GPUTarget('cuda', target, 32),
    options={
      'num_warps': blocks.warps,
      'num_stages': blocks.stages,
      'enable_fp_fusion': True,
    },
  )
  return compiled, blocks


def _assemble(compiled, target, folder) -> tuple[int, int]:
  """Registers a thread, and bytes that it spills, by ptxas."""
  from triton.backends.nvidia import compiler as nvidia

  text = compiled.asm['ptx']
  (folder / 'kernel.ptx').write_text(text)
  machine = re.search(r'^\.target (\w+)', text, re.M)
  assert machine
  said = subprocess.run(
    [
      nvidia.get_ptxas(target).path,
      '-v',
      '--regAllocOptLevel=2',  # as Triton does
      f'--gpu-name={machine[1]}',
      folder / 'kernel.ptx',
      '-o',
      folder / 'kernel.cubin',
    ],
    check=True,
    capture_output=True,
    text=True,
  )
  said = said.stdout + said.stderr
  registers = re.search(r'Used (\d+) registers', said)
  spilled = re.findall(r'(\d+) bytes (?:stack frame|spill)', said)
  assert registers and len(spilled) == 3, said
  return int(registers[1]), max(map(int, spilled))


@pytest.fixture
def report(capsys, tmp_path, monkeypatch):
  """(head_dim, dtype, target, ...) -> spilled bytes; compiles and prints."""
  monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path / 'cache'))

  def measure(head_dim, dtype, target, **options):
    compiled, blocks = _compile(head_dim, dtype, target, **options)
    registers, spilled = _assemble(compiled, target, tmp_path)
    shared = compiled.metadata.shared
    with capsys.disabled():
      print(
        f'\nsm{target} head dim {head_dim} {dtype} {options or ""} {blocks}: '
        f'{registers} registers, {spilled} bytes spilled, {shared} bytes shared'
      )
    assert shared <= _SHARED[target]
    return compiled, spilled

  return measure


@pytest.mark.parametrize(
  'options',
  [{}, {'causal': False}],
  ids=['causal', 'vision'],
)
@pytest.mark.parametrize('dtype', _TYPES)
@pytest.mark.parametrize('head_dim', triton.HEAD_DIMS)
def test_nothing_is_spilled_on_hopper(report, head_dim, dtype, options):
  compiled, spilled = report(head_dim, dtype, 90, **options)
  assert spilled == 0
  # Products are the warp groups', tiles are copied while they run.
  assert 'wgmma.mma_async' in compiled.asm['ptx']
  assert 'cp.async.cg' in compiled.asm['ptx']
  # No operand is read back from shared memory into registers.
  assert 'local_load' not in compiled.asm['ttgir']


@pytest.mark.parametrize('target', [80, 86, 89, 100])
@pytest.mark.parametrize('head_dim', triton.HEAD_DIMS)
def test_nothing_is_spilled_on_other_gpus(report, head_dim, target):
  assert report(head_dim, 'bfloat16', target)[1] == 0


@pytest.fixture(scope='module')
def h100():
  """A device to compile for."""
  for package in ('jax_cuda13_plugin', 'jax_triton'):
    pytest.importorskip(
      package, reason='compiling for an H100 needs jax-triton and a CUDA plugin'
    )
  return targets.parse('h100').devices()[0]


def _compiled(device, fun, *args):
  """The program for that device, of shapes in place of arrays."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  return (
    jax.jit(fun, in_shardings=sharding)
    .trace(*args)
    .lower(lowering_platforms=('cuda',))
    .compile()
  )


def _integers(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def _control(*shape):
  return control_lib.AttendControl(
    _integers(*shape),
    _integers(*shape),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )


def _vectors(length, n_heads, head_dim):
  return jax.ShapeDtypeStruct((1, length, n_heads, head_dim), jnp.bfloat16)


_attend = functools.partial(
  triton.head_sparse_attention, return_lse=True, compute_capability=90
)


@pytest.mark.parametrize('length', [1, 1000, 2**17])
@pytest.mark.parametrize('head_dim', triton.HEAD_DIMS)
def test_one_layer(h100, head_dim, length):
  mask = masks.AttnMask(_integers(1), _integers(1), _integers(1))
  kv = _vectors(length, _N_KV, head_dim)
  program = _compiled(
    h100,
    _attend,
    _vectors(length, _N_HEADS, head_dim),
    kv,
    kv,
    mask,
    _control(1, _N_HEADS),
  )
  assert program.as_text().count(f'custom_call_target="{_KERNEL}"') == 1
  # Nothing is copied but the work list.
  assert program.memory_analysis().temp_size_in_bytes < 2**16


@pytest.mark.parametrize('windows', [(), (masks.DENSE, 512)], ids=str)
def test_a_decoder_whose_layers_have_sets_of_their_own(h100, windows):
  """One kernel in the scan's body serves all; forward and gradient."""
  config = decoder.DecoderConfig(
    kind='qwen2',
    vocab_size=64,
    d_model=256,
    d_mlp=256,
    n_layers=2,
    n_heads=14,
    n_kv_heads=2,
    head_dim=64,
    max_length=4096,
    rope=rope.RopeConfig(64, max_length=4096, original_length=4096),
    **({'windows': windows} if windows else {}),
  )
  graph, state = nnx.split(
    nnx.eval_shape(lambda: decoder.Decoder(config, jnp.dtype('bfloat16')))
  )

  def attend(q_BTNH, k_BSKH, v_BSKH, mask, control=None, probe=None):
    assert probe is None
    out_BTNH, _ = _attend(q_BTNH, k_BSKH, v_BSKH, mask, control)
    return attention.AttendOut(out_BTNH)

  def run(state, x_BTD, positions_BT, window_LBN):
    control = control_lib.HeadControl.intact(2, 14)
    control = control_lib.HeadControl(
      control_lib.AttendControl(
        window_LBN, control.attend.sink_BN, control.attend.score_scale_BN
      ),
      control.output,
    )
    return decoder.run(
      nnx.merge(graph, state),
      x_BTD,
      positions_BT,
      masks.AttnMask(),
      attend=attend,
      control=control,
    ).x_BTD

  args = (
    state,
    jax.ShapeDtypeStruct((1, 2048, 256), jnp.bfloat16),
    _integers(1, 2048),
    _integers(2, 1, 14),
  )
  text = _compiled(h100, run, *args).as_text()
  assert text.count(f'custom_call_target="{_KERNEL}"') == 1

  def loss(state, *rest):
    return run(state, *rest).astype(jnp.float32).sum()

  text = _compiled(h100, jax.grad(loss), *args).as_text()
  assert text.count(f'custom_call_target="{_KERNEL}"') == 1
