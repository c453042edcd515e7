"""Correlated noise in NumPy: its sensitivity and its error, for planning.

A strategy is a lower triangular Toeplitz matrix C, given by its first column
[n]; the noise that reaches the model is C^-1 z. Per round it is larger than
independent noise, but later rounds take back a part of it, so that the prefix
sums, which the model is, are nearer to the truth.
"""

import math

import numpy as np
import scipy.optimize
import scipy.signal


def square_root_coefficients(n: int, bands: int = 0) -> np.ndarray:
  """The Toeplitz root of the prefix-sum matrix, cut to some bands.

  The coefficients of (1 - x)^(-1/2). The optimised strategies are better by
  some percent, by more for few bands; this one is known at once.

  Args:
    n: Rounds.
    bands: Coefficients that are kept; 0: all of them.

  Returns:
    float64 [n]: positive and falling, zero from `bands` on.

  References:
    Fichtenberger, Henzinger and Upadhyay, 2023; Kalinin and Lampert, 2024,
    Banded square root matrix factorization for differentially private model
    training.
  """
  k = np.arange(1, n)
  coefficients = np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])
  if bands:
    coefficients[bands:] = 0
  return coefficients


def banded_coefficients(n: int, bands: int) -> np.ndarray:
  """Banded Toeplitz coefficients with about the least error for their norm.

  Minimises the norm of the column times `prefix_sum_rmse`, which is the error
  under amplified sampling, starting from the square root.

  Cost: 8 bands and 2,000 rounds take 0.2 s.

  Args:
    n: Rounds.
    bands: Coefficients that are not zero.

  Returns:
    float64 [n], the first one 1.

  References:
    Choquette-Choo et al., 2023, (Amplified) Banded matrix factorization.
  """
  start = square_root_coefficients(n, bands)
  bands = min(bands, n)

  def column(free):
    return np.concatenate([[1.0], free, np.zeros(n - bands)])

  def error(free):
    found = column(free)
    with np.errstate(over='ignore', invalid='ignore'):
      value = np.linalg.norm(found) * prefix_sum_rmse(found)
    return value if np.isfinite(value) else 1e12

  if bands == 1:
    return start
  found = scipy.optimize.minimize(
      lambda free: np.log(error(free)), start[1:bands], method='L-BFGS-B')
  return column(found.x)


def min_separation_sensitivity(
    coefficients: np.ndarray, min_separation: int, max_participations: int
) -> float:
  """L2 sensitivity where a client waits `min_separation` rounds between two.

  For coefficients that are not negative and do not grow, the worst client comes
  as early and as often as it may (Kalinin and Lampert, 2024).

  Args:
    coefficients: [n].
    min_separation: Rounds from one participation to the next, at least 1.
    max_participations: At most.

  Raises:
    ValueError: For coefficients without that property.
  """
  if (coefficients < 0).any() or (np.diff(coefficients) > 0).any():
    raise ValueError(
        'coefficients must not be negative and must not grow; for others the '
        'worst participation is not known in closed form.')
  n = len(coefficients)
  total = np.zeros(n)
  for index in range(max_participations):
    start = index * min_separation
    if start >= n:
      break
    total[start:] += coefficients[:n - start]
  return float(np.linalg.norm(total))


def once_an_epoch_sensitivity(
    coefficients: np.ndarray, rounds_per_epoch: int
) -> float:
  """A bound on the L2 sensitivity where a client comes once in every epoch.

  Anywhere in it, as with an order that is shuffled afresh: two epochs' rounds
  may be neighbours, but the e-th and the e+2nd are an epoch apart. Every pair
  of participations is bounded by itself, by the inner product of their columns
  at the least distance they can have.

  Args:
    coefficients: [n]: not negative, not growing.
    rounds_per_epoch: Rounds in which everybody comes once.
  """
  n = len(coefficients)
  epochs = -(-n // rounds_per_epoch)
  total = epochs * float(coefficients @ coefficients)
  for distance in range(1, epochs):
    lag = (distance - 1) * rounds_per_epoch + 1
    if lag < n:
      total += 2 * (epochs - distance) * float(
          coefficients[:n - lag] @ coefficients[lag:])
  return math.sqrt(total)


def prefix_sum_rmse(coefficients: np.ndarray) -> float:
  """Root mean squared error of the prefix sums, for z of unit variance.

  The mean is over the rounds: sqrt(mean_t sum_i (A C^-1)[t, i]^2), A the matrix
  of prefix sums. Independent noise (C = 1) gives sqrt((n + 1) / 2).

  Args:
    coefficients: [n].
  """
  weights = scipy.signal.lfilter([1.0], _trimmed(coefficients),
                                 np.ones(len(coefficients)))
  return float(np.sqrt(np.cumsum(weights**2).mean()))


def _trimmed(coefficients: np.ndarray) -> np.ndarray:
  return coefficients[:int(np.flatnonzero(coefficients)[-1]) + 1]
