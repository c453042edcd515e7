"""What correlated noise really adds, and the matrices in buffers.

`strategies` plans banded matrices; here are the buffered ones, optimised once
and kept on disk, and the standard deviations that the noise of either must
have. The sensitivity is computed from the very coefficients that the noise is
made with (`strategies.min_separation_sensitivity`), so a matrix that is not
optimal, or a cache file that somebody changed, costs accuracy and not privacy.
"""

import contextlib
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np
import scipy.signal
from absl import logging

from fedjaxrec import jax_privacy_bridge
from fedjaxrec.data import cache, whole_file


def buffered_parameters(
    num_rounds: int, min_separation: int, max_participations: int,
    num_buffers: int = 2, cache_dir: str = '',
) -> tuple[np.ndarray, np.ndarray]:
  """The buffered C of least largest error of the prefix sums.

  Args:
    num_rounds: Rounds of the run.
    min_separation: Rounds from a client's participation to its next, at least.
    max_participations: Of one client in the run.
    num_buffers: Buffers: copies of the model on the server; 2 or 3 do.
    cache_dir: Folder of the cache, as for data sets; empty for the default.

  Returns:
    (decay, scale): float64 [num_buffers]. 4 to 15 s the first time.

  Raises:
    ValueError: For parameters out of range.
  """
  _check_participation(num_rounds, min_separation, max_participations)
  if not 1 <= num_buffers <= 10:
    raise ValueError(
        f'num_buffers={num_buffers} must lie in [1, 10]; 2 or 3 do well, and '
        'many make the optimisation unstable.')
  decay, scale = _cached(
      f'buffered-{num_rounds}-{min_separation}-{max_participations}-'
      f'{num_buffers}', (num_buffers,), cache_dir,
      lambda: jax_privacy_bridge.optimize_buffered(
          num_rounds, min_separation, max_participations, num_buffers))
  return decay, scale


def coefficients_of_buffers(
    decay: np.ndarray, scale: np.ndarray, num_rounds: int
) -> np.ndarray:
  """The first column of a buffered C: float64 [num_rounds].

  Not negative and not increasing where decay is in [0, 1] and the scales are
  not negative and add up to at most 1, as optimised ones do.
  """
  powers = np.asarray(decay) ** np.arange(num_rounds - 1)[:, None]
  return np.append(1.0, powers @ np.asarray(scale))


def inverse_coefficients(
    coefficients: np.ndarray, num_rounds: int
) -> np.ndarray:
  """The first column of C^-1, of the first column of C: [num_rounds]."""
  used = np.asarray(coefficients, np.float64)[:num_rounds]
  one = np.eye(1, num_rounds)[0]
  return scipy.signal.lfilter([1.0], np.trim_zeros(used, 'b'), one)


def round_noise_stddevs(
    coefficients: np.ndarray, num_rounds: int
) -> np.ndarray:
  """The stddev of each round's noise, of z of stddev 1: [num_rounds]."""
  inverse = inverse_coefficients(coefficients, num_rounds)
  return np.sqrt(np.cumsum(inverse**2))


def prefix_sum_noise_stddevs(
    coefficients: np.ndarray, num_rounds: int
) -> np.ndarray:
  """The stddev of the noise of the first t rounds together: [num_rounds]."""
  inverse = inverse_coefficients(coefficients, num_rounds)
  return np.sqrt(np.cumsum(np.cumsum(inverse) ** 2))


def _check_participation(num_rounds, min_separation, max_participations):
  for name, value in (('num_rounds', num_rounds),
                      ('min_separation', min_separation),
                      ('max_participations', max_participations)):
    if value < 1:
      raise ValueError(
          f'{name}={value} must be at least 1: a client that takes part does '
          'so once or more, one round or more apart.')


def _cached(
    name: str, shape: tuple[int, ...], cache_dir: str,
    compute: Callable[[], tuple[np.ndarray, ...]],
) -> tuple[np.ndarray, ...]:
  """Reads arrays of a shape from the cache, or computes and keeps them."""
  path = cache.file_of(cache.cache_folder(cache_dir) / 'strategies', name)
  try:
    return _load(path, shape)
  except OSError:
    pass  # None there, or none to be read; what cannot be written is told.
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    logging.warning(
        'The cache file %s is damaged (%s); the strategy is optimised anew.',
        path, error)
    with contextlib.suppress(OSError):
      cache.set_aside(path)
  arrays = compute()
  try:
    _save(path, arrays)
  except OSError as error:
    logging.warning(
        'The strategy cannot be kept in %s (%s); it will be optimised again '
        'next time. Set $%s.', path.parent, error, cache.ENVIRONMENT_VARIABLE)
  return arrays


def _load(path: pathlib.Path, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
  with np.load(path, allow_pickle=False) as stored:
    arrays = tuple(stored[f'arr_{i}'] for i in range(len(stored.files)))
  for array in arrays:
    if array.shape != shape or array.dtype != np.float64 or not (
        np.isfinite(array).all()):
      raise ValueError(f'it does not hold finite numbers of shape {shape}')
  if not arrays:
    raise ValueError('it is empty')
  return arrays


def _save(path: pathlib.Path, arrays: tuple[np.ndarray, ...]) -> None:
  """Writes whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file.replacing(path) as file:
    np.savez(file, *arrays)
