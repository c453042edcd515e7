"""Local differential privacy: noise that a client adds before it sends.

The server is trusted with nothing, so the unit is one report and the relation
is replacement: any two deltas must be hard to tell apart, and two clipped
deltas are up to twice the clip norm away from each other. A delta must be the
same shape for every client, the whole item table: which rows were sent would
tell what the noise hides. Rounds compose: a client that reports in T rounds
pays for T reports.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.transforms.clip import clip_by_l1, clip_by_l2
from fedjaxrec.transforms.noise import add_gaussian_noise


def add_local_gaussian_noise(
    l2_clip_norm: float, epsilon: float, delta_dp: float, key: jax.Array
) -> optax.GradientTransformation:
  """Clips a client's delta to an L2 norm and adds Gaussian noise to all of it.

  Formal guarantee: (epsilon, delta_dp) local differential privacy of one
  report: for any two deltas x, x' of one shape and any set S of outputs,
  P(out(x) in S) <= e^epsilon P(out(x') in S) + delta_dp. Sensitivity under
  replacement: 2 * l2_clip_norm. Unit of privacy: one report of one client. A
  delta that is not finite is clipped to zeros, and noised like any other.

  Wire cost: the whole table, whatever the client touched. Error: the stddev
  `local_gaussian_stddev(l2_clip_norm, epsilon, delta_dp)` in every entry; no
  bias beyond the clipping's. Time: one normal draw an entry.

  Args:
    l2_clip_norm: A client's bound, above 0.
    epsilon: Of one report, above 0.
    delta_dp: Of one report, in (0, 1).
    key: Typed key. One key is one draw: give every client and round its own.

  Raises:
    ValueError: For parameters out of range.

  References:
    Balle and Wang, 2018, `Improving the Gaussian Mechanism for Differential
    Privacy <https://arxiv.org/abs/1805.06530>`_: the calibration is exact.
  """
  return _on_one_client(
      clip_by_l2(l2_clip_norm),
      add_gaussian_noise(
          local_gaussian_stddev(l2_clip_norm, epsilon, delta_dp), key))


def add_local_laplace_noise(
    l1_clip_norm: float, epsilon: float, key: jax.Array
) -> optax.GradientTransformation:
  """Clips a client's delta to an L1 norm and adds Laplace noise to all of it.

  Formal guarantee: epsilon local differential privacy of one report: the
  densities of the output for any two deltas of one shape differ by a factor of
  at most e^epsilon everywhere. L1 sensitivity under replacement: 2 *
  l1_clip_norm. Unit of privacy: one report of one client. A delta that is not
  finite is clipped to zeros, and noised like any other. The guarantee is that
  of real-valued noise: float32 draws end at 16 scales, and their low bits are
  not uniform (Mironov, 2012).

  Wire cost: the whole table, whatever the client touched. Error: scale b =
  `local_laplace_scale(l1_clip_norm, epsilon)`, stddev sqrt(2) b in every entry;
  no bias beyond the clipping's. Time: one draw an entry.

  Args:
    l1_clip_norm: A client's bound, above 0.
    epsilon: Of one report, above 0.
    key: Typed key. One key is one draw: give every client and round its own.

  Raises:
    ValueError: For parameters out of range.

  References:
    Dwork et al., 2006, Calibrating Noise to Sensitivity in Private Data
    Analysis.
  """
  scale = local_laplace_scale(l1_clip_norm, epsilon)

  def update(updates, state, params=None):
    del params
    return jax.tree.map(
        lambda x, k: x + jnp.asarray(scale, x.dtype)
        * jax.random.laplace(k, x.shape, x.dtype),
        updates, optax.tree.split_key_like(key, updates)), state

  return _on_one_client(
      clip_by_l1(l1_clip_norm),
      optax.GradientTransformation(optax.init_empty_state, update))


def local_gaussian_stddev(
    l2_clip_norm: float, epsilon: float, delta_dp: float
) -> float:
  """The stddev of the noise on every entry, in units of the delta."""
  return gaussian_stddev(
      2 * above_zero('l2_clip_norm', l2_clip_norm), epsilon, delta_dp)


def local_laplace_scale(l1_clip_norm: float, epsilon: float) -> float:
  """The scale of the noise on every entry; its stddev is sqrt(2) times it."""
  return (2 * above_zero('l1_clip_norm', l1_clip_norm)
          / above_zero('epsilon', epsilon))


@functools.lru_cache(maxsize=256)
def gaussian_stddev(
    l2_sensitivity: float, epsilon: float, delta_dp: float
) -> float:
  """The least stddev for which one Gaussian release is (epsilon, delta_dp)-DP.

  Exact to a relative 1e-12, found by bisection; rounded up.

  Args:
    l2_sensitivity: Under the neighbouring relation that is meant.
    epsilon: Above 0.
    delta_dp: In (0, 1).

  Raises:
    ValueError: For parameters out of range.

  References:
    Balle and Wang, 2018, `Improving the Gaussian Mechanism for Differential
    Privacy <https://arxiv.org/abs/1805.06530>`_, theorem 8.
  """
  above_zero('l2_sensitivity', l2_sensitivity)
  above_zero('epsilon', epsilon)
  if not 0 < delta_dp < 1:
    raise ValueError(
        f'delta_dp={delta_dp} must lie strictly between 0 and 1; it is the '
        'chance that the guarantee of epsilon fails. For 0 use Laplace noise.')
  low, high = 0.0, 1.0
  while gaussian_delta(high, epsilon) > delta_dp:
    low, high = high, 2 * high
  while high - low > 1e-12 * high:
    middle = (low + high) / 2
    if gaussian_delta(middle, epsilon) > delta_dp:
      low = middle
    else:
      high = middle
  return high * l2_sensitivity


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
  """The exact delta_dp of one Gaussian release at epsilon.

  Args:
    noise_multiplier: Stddev over L2 sensitivity, above 0.
    epsilon: At least 0.
  """
  half, slope = 0.5 / noise_multiplier, epsilon * noise_multiplier
  upper = _normal_cdf(half - slope)
  lower = _normal_cdf(-half - slope)
  # e^epsilon may overflow where the second term is nothing.
  return upper - (math.exp(epsilon + math.log(lower)) if lower > 0 else 0.0)


def above_zero(name: str, value: float) -> float:
  """Returns a parameter, or refuses it by name if it is not above 0."""
  if not (value > 0 and math.isfinite(value)):
    raise ValueError(
        f'{name}={value} must be a finite number above 0: without it there is '
        'no noise to calibrate.')
  return value


def round_prob_down(prob: float) -> float:
  """The next lower probability that `jax.random.uniform(key) < prob` has.

  float32 draws are multiples of 2^-23, so such an event has one of 2^23
  probabilities. Mechanisms compute with the one that they have.
  """
  return math.floor(prob * 2**23) / 2**23


def round_prob_up(prob: float) -> float:
  """The next higher one; see `round_prob_down`."""
  return math.ceil(prob * 2**23) / 2**23


def _normal_cdf(x):
  return math.erfc(-x / math.sqrt(2)) / 2


def _on_one_client(clip, noise):
  """Clip, then noise; a transform without state, as clients' are."""
  def update(updates, state, params=None):
    del params
    clipped, _ = clip.update(updates, clip.init(updates))
    return noise.update(clipped, noise.init(clipped))[0], state

  return optax.GradientTransformation(optax.init_empty_state, update)
