"""What every test shares. Environment variables must be set before JAX is."""

import os
import pathlib

import pytest

# Four virtual CPU devices, so that `jax.devices()[:4]` makes a 2x2 mesh; a
# program that names no device runs on the first one as ever.
_DEVICES = '--xla_force_host_platform_device_count=4'
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['HF_HUB_OFFLINE'] = '1'  # a test that needs the network is wrong
os.environ.setdefault('MPLBACKEND', 'agg')
# A CUDA plugin may be there to compile with, on a machine without CUDA.
os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')


# A compiled program holds about ten memory mappings, of which Linux grants a
# process 65530; beyond that the compiler dies of a segmentation fault.
_MOST_MAPPINGS = 30_000


@pytest.fixture(scope='module', autouse=True)
def _drop_programs():
  """Lets go of compiled programs, behind a module, when there are many."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > _MOST_MAPPINGS:
    import jax

    jax.clear_caches()


@pytest.fixture(scope='session')
def samples() -> pathlib.Path:
  """The folder of real annotated excerpts, which are never committed."""
  folder = os.environ.get('COREJAX_SAMPLES')
  if not folder:
    pytest.skip('COREJAX_SAMPLES names no folder of real excerpts')
  path = pathlib.Path(folder)
  if not path.is_dir():
    pytest.fail(f'COREJAX_SAMPLES={folder} is not a folder')
  return path


@pytest.fixture(scope='session')
def checkout() -> pathlib.Path:
  """The root of the checkout that holds these tests."""
  return pathlib.Path(__file__).resolve().parent.parent
