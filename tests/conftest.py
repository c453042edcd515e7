"""Settings that every test shares, made before JAX is imported.

They are environment variables and not calls, so that tests of the host side
never pay for importing JAX, and so that the commands that tests start see them.
"""

import os
import pathlib

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_DEVICES = 4


def _prepare_environment() -> None:
  # Four virtual devices, whatever the machine has; on two cores the workers of
  # pytest-xdist are the parallelism, so an operation gets one thread.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  flags = os.environ.get('XLA_FLAGS', '')
  if '--xla_force_host_platform_device_count' not in flags:
    flags += f' --xla_force_host_platform_device_count={NUM_DEVICES}'
  if 'PYTEST_XDIST_WORKER' in os.environ and 'multi_thread_eigen' not in flags:
    flags += ' --xla_cpu_multi_thread_eigen=false'
  os.environ['XLA_FLAGS'] = flags.strip()
  # [C] against [C, 1] is a wrong result, not a convenience.
  os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
  # What one worker, or an earlier run, has compiled serves the others.
  os.environ.setdefault(
      'JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / 'jax'))
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'


_prepare_environment()
hypothesis.settings.register_profile(
    'fedjaxrec', deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile('fedjaxrec')


@pytest.fixture(scope='session', autouse=True)
def private_cache(tmp_path_factory):
  """Keeps a test that names no cache folder away from the user's own."""
  folder = tmp_path_factory.mktemp('fedjaxrec-cache')
  os.environ['FEDJAXREC_CACHE'] = str(folder)
  return folder


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real data sets, or a skip where it is absent."""
  default = ROOT.parent / 'shared' / 'data'
  folder = pathlib.Path(os.environ.get('FEDJAXREC_SHARED_DATA', default))
  if not folder.is_dir():
    pytest.skip(f'no real data: {folder} is not a folder; set '
                'FEDJAXREC_SHARED_DATA to one that holds them.')
  return folder
