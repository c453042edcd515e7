"""What one run has compiled, the next runs of the same process load."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

_FOLDER = 'jax_compilation_cache_dir'
# Programs that compile faster than this many seconds are not worth a file.
_MIN_COMPILE_S = 0.1


@contextlib.contextmanager
def share_compiled() -> Iterator[None]:
  """Keeps compiled programs in a folder of its own, which goes away at the end.

  Runs that differ in their seed alone are one program. A folder that the user
  chose (`JAX_COMPILATION_CACHE_DIR`) is used as it is, and kept. The folder is
  never that of another machine, whose processor may know other instructions.
  """
  if getattr(jax.config, _FOLDER) is not None:
    yield
    return
  with tempfile.TemporaryDirectory(
      prefix='fedjaxrec-compiled-', ignore_cleanup_errors=True) as folder:
    wanted = {_FOLDER: folder,
              'jax_persistent_cache_min_compile_time_secs': _MIN_COMPILE_S}
    before = {name: getattr(jax.config, name) for name in wanted}
    # JAX decides once, at the first program, whether there is a cache.
    compilation_cache.reset_cache()
    for name, value in wanted.items():
      jax.config.update(name, value)
    try:
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
