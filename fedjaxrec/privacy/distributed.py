"""Epsilon of noise that the clients add in shares, in the integers of the ring.

Composition over the sums, and the search for the noise of a budget; what one
sum costs is in `integer_noise`. Neighbouring populations differ by one client
more or less; the unit of privacy is the client.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.special

from fedjaxrec.aggregation import ranges
from fedjaxrec.privacy import accounting
from fedjaxrec.privacy.accounting import ORDERS
from fedjaxrec.privacy.integer_noise import DistributedNoise, distributed_rdp

_LEAST = 0.01  # Noise multiplier with which a calibration begins.

Rdp = Callable[[np.ndarray], np.ndarray]


def sampled_rdp(order: int, sampling_prob: float, rdp: Rdp) -> float:
  """RDP of any mechanism on a Poisson sample of the clients, at one order.

  Formal guarantee: an upper bound for every mechanism whose RDP at 2..order is
  given; less tight than the one that knows the noise to be Gaussian.

  Args:
    order: Whole, above 1.
    sampling_prob: Chance of a client to be in a round, in (0, 1].
    rdp: Whole orders -> RDP without sampling.

  References:
    Zhu and Wang, 2019, Poisson Subsampled Renyi Differential Privacy, ICML,
    theorem 5.
  """
  q = sampling_prob
  base = rdp(np.arange(2, order + 1))
  if q == 1:
    return float(base[-1])
  l = np.arange(2, order + 1)
  log_terms = (
      scipy.special.gammaln(order + 1) - scipy.special.gammaln(l + 1)
      - scipy.special.gammaln(order - l + 1) + (order - l) * math.log1p(-q)
      + l * math.log(q) + (l - 1) * base)
  log_terms[1:] += math.log(3)
  first = (order - 1) * math.log1p(-q) + math.log(order * q - q + 1)
  amplified = scipy.special.logsumexp([first, *log_terms]) / (order - 1)
  return float(min(amplified, base[-1]))


def distributed_epsilon(
    noise: DistributedNoise, *, sampling_prob: float, rounds: int, delta: float,
    others: Sequence[DistributedNoise] = ()
) -> float:
  """Epsilon of all rounds against a server that sees the noisy sums.

  Formal guarantee: (epsilon, delta)-differential privacy for one client more or
  less, against a server that runs the secure sum honestly and learns nothing
  but the sums, with at most num_corrupt of the survivors on its side. Clients
  are in a round independently with sampling_prob, unknown to the server; where
  the server knows who takes part, sampling_prob is 1. Not hidden: how many took
  part, and which rounds were aborted. The guarantee is that of ideal noise.

  Args:
    noise: The noise of a round.
    sampling_prob: Poisson chance of a client to be in a round, in (0, 1].
    rounds: Sums that are released.
    delta: The delta, in (0, 1).
    others: Noises of further sums that are released once, without sampling.

  Raises:
    ValueError: For values out of range.
  """
  _check(sampling_prob, rounds, delta)
  rdp = rounds * np.array([sampled_rdp(
      order, sampling_prob, lambda orders: distributed_rdp(noise, orders))
      for order in ORDERS])
  for other in others:
    rdp = rdp + distributed_rdp(other, ORDERS)
  return float(accounting.rdp.compute_epsilon(ORDERS, rdp, delta)[0])


def calibrate_distributed(
    noise: DistributedNoise,
    target_epsilon: float,
    *,
    sampling_prob: float,
    rounds: int,
    delta: float,
    bits: int | None = None,
    max_cohort: int | None = None,
    others: Sequence[DistributedNoise] = (),
) -> DistributedNoise:
  """The least noise that keeps epsilon at or below the target, to 0.1 per cent.

  Args:
    noise: All that stays; its noise_multiplier does not matter.
    target_epsilon: The budget.
    sampling_prob: As in `distributed_epsilon`.
    rounds: Sums that are released.
    delta: The delta.
    bits: If given, the scale is not the one of `noise` but the largest with
      which a ring of so many bits holds max_cohort clients and the noise.
    max_cohort: Most clients that are ever summed; goes with bits.
    others: Noises of further sums that the budget pays for, once each.

  Returns:
    `noise` with the noise multiplier, and with bits the scale, that were found.

  Raises:
    ValueError: For values out of range, or a target that no noise reaches.
  """
  _check(sampling_prob, rounds, delta)
  if not 0 < target_epsilon < math.inf:
    raise ValueError(
        f'target_epsilon={target_epsilon} must be a finite number above 0.')
  if (bits is None) != (max_cohort is None):
    raise ValueError(
        f'bits={bits} and max_cohort={max_cohort} go together: the scale is '
        'computed from both, or stays as it is.')

  def with_multiplier(z):
    scale = noise.scale
    if bits is not None and max_cohort is not None:
      # As much noise as the fewest leave, the whole cohort brings more.
      most = z * math.sqrt(max_cohort / noise.honest)
      scale = min(
          ranges.largest_scale(bits, max_cohort, noise.l2_clip_norm, most),
          ranges.largest_conditional_scale(
              noise.l2_clip_norm, noise.dimension))
    return dataclasses.replace(noise, noise_multiplier=z, scale=scale)

  def epsilon(z):
    try:
      return distributed_epsilon(
          with_multiplier(z), sampling_prob=sampling_prob, rounds=rounds,
          delta=delta, others=others)
    except ValueError:
      return math.inf  # Too few integers for the mechanism, or for the ring.

  # Upwards from little noise: so much that a ring cannot hold it is no budget
  # kept either.
  enough = _LEAST
  while epsilon(enough) > target_epsilon:
    enough *= 2
    if enough > 1e6:
      raise ValueError(
          f'target_epsilon={target_epsilon} is out of reach at delta={delta}: '
          'what rounding adds, or the ring, is in the way; use a larger scale '
          '(more secure.bits), fewer rounds or a larger delta.')
  if enough == _LEAST:
    return with_multiplier(enough)
  too_little = enough / 2
  while enough / too_little > 1.001:
    middle = math.sqrt(enough * too_little)
    if epsilon(middle) <= target_epsilon:
      enough = middle
    else:
      too_little = middle
  return with_multiplier(enough)


def _check(sampling_prob, rounds, delta):
  """Refuses what epsilon is not defined for."""
  if not 0 < sampling_prob <= 1:
    raise ValueError(
        f'sampling_prob={sampling_prob} must lie in (0, 1]; it is the chance '
        'of a client to be in a round.')
  if not (type(rounds) is int and rounds >= 1):
    raise ValueError(
        f'rounds={rounds} must be a whole number of at least 1.')
  if not 0 < delta < 1:
    raise ValueError(f'delta={delta} must lie strictly between 0 and 1.')
