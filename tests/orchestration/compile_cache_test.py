"""Programs are shared within `share_compiled`, and nothing of it stays."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from fedjaxrec.orchestration import compile_cache
from fedjaxrec.orchestration.compile_cache import share_compiled

HIT = '/jax/compilation_cache/cache_hits'
NAMES = ('jax_compilation_cache_dir',
         'jax_persistent_cache_min_compile_time_secs')


def settings():
  return {name: getattr(jax.config, name) for name in NAMES}


@pytest.fixture
def hits():
  """The events of programs that were loaded, as they come."""
  found = []

  def listen(name, **_):
    if name == HIT:
      found.append(name)

  jax.monitoring.register_event_listener(listen)
  yield found
  jax.monitoring.unregister_event_listener(listen)


@pytest.fixture
def without(monkeypatch):
  """As where the user has no cache; the tests' own comes back."""
  monkeypatch.setattr(compile_cache, '_MIN_COMPILE_S', 0.0)
  before = settings()
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def compile_one():
  """A new function each time, so that JAX's own memory does not know it."""
  return jax.jit(lambda x: jnp.sin(x) + 11)(jnp.float32(1))


def test_the_second_run_loads_what_the_first_compiled(without, hits):
  before = settings()
  compile_one()
  compile_one()
  assert not hits  # The control: nothing is shared outside.
  with share_compiled():
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    first = compile_one()
    assert not hits and list(folder.iterdir())
    assert compile_one() == first
    assert hits
  assert settings() == before
  assert not folder.exists()
  hits.clear()
  compile_one()
  assert not hits


def test_it_goes_away_after_a_failure(without):
  before = settings()
  with pytest.raises(KeyboardInterrupt), share_compiled():
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert folder.exists()
    raise KeyboardInterrupt
  assert settings() == before
  assert not folder.exists()


def test_a_folder_of_the_users_own_is_used_and_kept(without, tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  before = settings()
  with share_compiled():
    assert settings() == before
  assert tmp_path.exists()
