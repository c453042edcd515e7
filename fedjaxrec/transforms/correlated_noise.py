"""Noise on the sum that later rounds partly take back: DP-FTRL.

The model after t rounds carries the sum of t noises. Round t adds row t of
C^-1 z, with z independent normal noise and C a lower triangular Toeplitz
matrix; what one round adds the next ones subtract in part, so the sums carry
less noise than independent draws of the same privacy would leave. What is
released is C^-1 (C x + z): private like C x + z, whose sensitivity grows with
the columns of C, by how often and how close together one client takes part.

The matrices come from `fedjaxrec.privacy`, `strategies` for banded ones and
`noise_matrices` for buffered ones, with their sensitivities. The device rounds
them to float32, which changes the sensitivity by a relative 1e-7.
"""

from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjaxrec import jax_privacy_bridge


class CorrelatedNoiseState(NamedTuple):
  """Plain arrays, part of a checkpoint, and as secret as the key.

  Whoever reads the buffers can subtract past noise from what was released.

  Attributes:
    key_data: uint32 [...]: of the next draw; never used twice.
    buffers: float32, leaves [bands - 1 or buffers, ...]: past noise.
  """
  key_data: jax.Array
  buffers: optax.Updates


class Strategy(NamedTuple):
  """A matrix C and what it is good for; made on the host, before a run.

  Attributes:
    coefficients: float [n]: C's first column; () for buffered noise.
    decay: float [buffers]: of buffered noise; () for banded.
    scale: float [buffers]: likewise.
    sensitivity: L2 sensitivity of C under the participations it was made for,
      for deltas of norm 1.
  """
  coefficients: np.ndarray
  decay: np.ndarray
  scale: np.ndarray
  sensitivity: float


def add_correlated_noise(
    noise_multiplier: float | jax.Array, l2_clip_norm: float | jax.Array,
    strategy: Strategy, key: jax.Array
) -> optax.GradientTransformation:
  """Adds C^-1 z, with z of stddev multiplier * clip norm * sensitivity.

  Formal guarantee: that of `add_banded_noise` or `add_buffered_toeplitz_noise`:
  all rounds together are one Gaussian release of `noise_multiplier`, unit the
  client, for the participations that the strategy was made for.

  Args:
    noise_multiplier: What the accountant is told; may be traced.
    l2_clip_norm: A client's bound in every round; may be traced.
    strategy: The matrix.
    key: Typed key of the first draw.
  """
  stddev = noise_multiplier * l2_clip_norm * strategy.sensitivity
  if len(strategy.decay):
    return add_buffered_toeplitz_noise(
        stddev, strategy.decay, strategy.scale, key)
  return add_banded_noise(stddev, strategy.coefficients, key)


def add_banded_noise(
    noise_stddev: float | jax.Array, coefficients: np.ndarray, key: jax.Array
) -> optax.GradientTransformation:
  """Adds C^-1 z for a C with few bands: banded matrix factorisation.

  On the server: first in the chain, on the raw sum, before any scaling.

  Formal guarantee: with clients clipped to L2 norm C_clip, who take part at
  most k times in the run and never within fewer than b rounds, all rounds
  together are one Gaussian release of noise multiplier noise_stddev / (C_clip *
  `strategies.min_separation_sensitivity(coefficients, b, k)`), under adding or
  removing one client, whatever the sampling; nothing is composed over rounds.
  (Of coefficients with zeros up to the number of rounds.)
  Amplification by sampling holds for cyclic Poisson sampling (a client belongs
  to one of `bands` groups, group i is sampled from in the rounds i modulo
  bands) with its own accounting; not for Poisson sampling of the whole
  population in every round. Unit of privacy: the client. Real-valued noise is
  meant, as in `add_gaussian_noise`.

  Error: the noise of round t has the stddev noise_stddev *
  `noise_matrices.round_noise_stddevs(coefficients, num_rounds)[t]`, and the sum
  of the first rounds' that of `prefix_sum_noise_stddevs`. Wire cost: none.
  Memory: bands - 1 copies of the updates. Time: one normal draw and `bands`
  passes: 0.12 s a round at a million entries and 16 bands on two CPU cores.

  Args:
    noise_stddev: Absolute standard deviation of z, not negative; may be traced.
    coefficients: float [bands or more]: of C's first column, the first above 0;
      zeros at the end are no bands.
    key: Typed key of the first draw; each update uses a fresh one.

  Raises:
    ValueError: For a negative stddev, or coefficients that C cannot have.

  References:
    Choquette-Choo et al., 2023, `(Amplified) Banded Matrix Factorization: A
    unified approach to private training <https://arxiv.org/abs/2306.08153>`_.
  """
  _check_stddev(noise_stddev)
  coefficients = np.asarray(coefficients, np.float64)
  if coefficients.ndim != 1 or not coefficients.size or not (
      np.isfinite(coefficients).all() and coefficients[0] > 0):
    raise ValueError(
        f'coefficients={coefficients} must be a vector of finite numbers that '
        'begins with one above 0; see fedjaxrec.privacy.strategies.')
  coefficients = np.trim_zeros(coefficients, 'b')
  return _with_plain_state(jax_privacy_bridge.banded_privatizer(
      coefficients, noise_stddev, key))


def add_buffered_toeplitz_noise(
    noise_stddev: float | jax.Array, decay: np.ndarray, scale: np.ndarray,
    key: jax.Array,
) -> optax.GradientTransformation:
  """Adds C^-1 z for a C of geometric series: buffered linear Toeplitz (BLT).

  C's first column is 1, then sum_i scale_i * decay_i^(t - 1): dense, and kept
  in a few buffers. The production mode of DP-FTRL: it assumes no sampling.

  Formal guarantee: that of `add_banded_noise`, with the coefficients
  `noise_matrices.coefficients_of_buffers(decay, scale, num_rounds)`; never
  amplified. Unit of privacy: the client.

  Error: as for `add_banded_noise`, of those coefficients. Wire cost: none.
  Memory: one copy of the updates a buffer. Time: one normal draw, and two
  passes a buffer: 0.02 s a round at a million entries and 2 buffers on two CPU
  cores.

  Args:
    noise_stddev: Absolute standard deviation of z, not negative; may be traced.
    decay: float [buffers], in [0, 1].
    scale: float [buffers], not negative.
    key: Typed key of the first draw; each update uses a fresh one.

  Raises:
    ValueError: For a negative stddev, or parameters out of range.

  References:
    McMahan, Xu and Zhang, 2024, `A Hassle-free Algorithm for Private Learning
    in Practice: Don't Use Tree Aggregation, Use BLTs
    <https://arxiv.org/abs/2408.08868>`_, algorithm 3.
  """
  _check_stddev(noise_stddev)
  decay, scale = np.asarray(decay, np.float64), np.asarray(scale, np.float64)
  if decay.ndim != 1 or decay.shape != scale.shape or not (
      ((decay >= 0) & (decay <= 1) & (scale >= 0) & np.isfinite(scale)).all()):
    raise ValueError(
        f'decay={decay} in [0, 1] and scale={scale}, not negative, must be '
        'vectors of one length; see fedjaxrec.privacy.noise_matrices.')
  return _with_plain_state(jax_privacy_bridge.buffered_privatizer(
      decay, scale, noise_stddev, key))


def _with_plain_state(privatizer):
  """The library's transform with its key as data."""
  def pack(state):
    key, buffers = state
    return CorrelatedNoiseState(jax.random.key_data(key), buffers)

  def update(updates, state, params=None):
    noisy, state = privatizer.update(
        updates, (jax.random.wrap_key_data(state.key_data), state.buffers),
        params)
    return noisy, pack(state)

  return optax.GradientTransformation(
      lambda params: pack(privatizer.init(params)), update)


def _check_stddev(noise_stddev):
  if isinstance(noise_stddev, (int, float)) and not noise_stddev >= 0:
    raise ValueError(
        f'noise_stddev={noise_stddev} must be a number of at least 0; it is '
        'the standard deviation in the units of the delta.')
