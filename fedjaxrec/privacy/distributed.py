"""Epsilon of noise that the clients add in shares, in the integers of the ring.

Renyi differential privacy of the Skellam mechanism and of the distributed
discrete Gaussian, with the sensitivity that conditional rounding keeps,
amplified by Poisson sampling and composed over the rounds. Neighbouring
populations differ by one client more or less; the unit of privacy is the
client. Clients that drop out take their share of the noise with them, so all is
counted at the smallest number of survivors at which a round is not aborted.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.special

from fedjaxrec.aggregation import ranges
from fedjaxrec.privacy import accounting

MECHANISMS = ('skellam', 'discrete_gaussian')
# Whole orders only: the bounds are for those.
ORDERS = (*range(2, 129), 192, 256)
_LEAST = 0.01  # Noise multiplier with which a calibration begins.

Rdp = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedNoise:
  """The noise of one secure sum, and what it hides.

  Attributes:
    mechanism: 'skellam' or 'discrete_gaussian'.
    noise_multiplier: Standard deviation of the noise in the sum of the fewest
      honest survivors, over l2_clip_norm.
    l2_clip_norm: Bound of one client's delta before it is rounded.
    scale: Integers a unit (`Ring.scale`).
    dimension: Most non-zero entries of one client's delta, as the ring's
      conditional rounding was told. Noise is added to every entry of the sum.
    min_survivors: Clients below which a round is aborted and nothing released.
    num_corrupt: Among them, clients whose noise must not be counted, because
      they may tell it to the server.
    beta: The ring's chance of rounding again.
  """
  mechanism: str = 'skellam'
  noise_multiplier: float
  l2_clip_norm: float = 1.0
  scale: float
  dimension: int
  min_survivors: int
  num_corrupt: int = 0
  beta: float = ranges.BETA

  def __post_init__(self):
    if self.mechanism not in MECHANISMS:
      raise ValueError(
          f'mechanism={self.mechanism!r} is not known; choose one of '
          f'{", ".join(MECHANISMS)}.')
    for name in ('noise_multiplier', 'l2_clip_norm', 'scale', 'dimension'):
      value = getattr(self, name)
      if not 0 < value < math.inf:
        raise ValueError(f'{name}={value} must be a finite number above 0.')
    if not 0 <= self.num_corrupt < self.min_survivors:
      raise ValueError(
          f'num_corrupt={self.num_corrupt} of min_survivors='
          f'{self.min_survivors}: at least one survivor must be honest, or '
          'there is no noise; raise the survivor threshold.')
    ranges.rounded_l2_bound(1.0, 1, self.beta)  # Refuses a beta that is none.
    if self.mechanism == 'discrete_gaussian' and self.share_stddev < 0.5:
      raise ValueError(
          f'noise_multiplier={self.noise_multiplier} gives a client a discrete '
          f'Gaussian of {self.share_stddev:.3g} integers, and its bound needs '
          'at least 0.5; use a larger scale (more secure.bits), or '
          "mechanism='skellam'.")

  @property
  def honest(self) -> int:
    """Survivors whose noise counts."""
    return self.min_survivors - self.num_corrupt

  @property
  def share_stddev(self) -> float:
    """Standard deviation of each client's share, in integers."""
    return (self.noise_multiplier * self.l2_clip_norm * self.scale
            / math.sqrt(self.honest))

  @property
  def l2_sensitivity(self) -> float:
    """L2 norm that a client's integers never pass."""
    return ranges.rounded_l2_bound(
        self.l2_clip_norm * self.scale, self.dimension, self.beta)

  @property
  def l1_sensitivity(self) -> float:
    """L1 norm that they never pass: integers are at most their squares."""
    return self.l2_sensitivity * min(
        math.sqrt(self.dimension), self.l2_sensitivity)


def skellam_rdp(
    orders: Sequence[int] | np.ndarray, variance: float, l1: float, l2: float
) -> np.ndarray:
  """RDP of integers plus Skellam noise.

  Args:
    orders: Whole orders above 1.
    variance: Of the noise in the sum.
    l1: L1 sensitivity.
    l2: L2 sensitivity.

  References:
    Agarwal, Kairouz and Liu, 2021, `The Skellam Mechanism for Differentially
    Private Federated Learning <https://arxiv.org/abs/2110.04995>`_, theorem
    3.5.
  """
  order = np.asarray(orders, np.float64)
  return order * l2**2 / (2 * variance) + np.minimum(
      ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2),
      3 * l1 / (2 * variance))


def discrete_gaussian_rdp(
    orders: Sequence[int] | np.ndarray, share_stddev: float,
    num_shares: int, dimension: int, l1: float, l2: float,
) -> np.ndarray:
  """RDP of integers plus a sum of discrete Gaussian shares.

  Args:
    orders: Orders above 1.
    share_stddev: The parameter of one share, at least 1/2.
    num_shares: Shares in the sum.
    dimension: Entries in which neighbours may differ.
    l1: L1 sensitivity.
    l2: L2 sensitivity.

  References:
    Kairouz, Liu and Steinke, 2021, `The Distributed Discrete Gaussian Mechanism
    <https://arxiv.org/abs/2102.06387>`_, proposition 14.
  """
  order = np.asarray(orders, np.float64)
  k = np.arange(1, num_shares)
  # How far a sum of shares is from one discrete Gaussian.
  tau = 10 * np.exp(
      -2 * (math.pi * share_stddev) ** 2 * k / (k + 1)).sum()
  stddev = share_stddev * math.sqrt(num_shares)
  l1, l2 = l1 / stddev, l2 / stddev
  return np.minimum(
      order / 2 * l2**2 + tau * dimension,
      order / 2 * min(l2**2 + 2 * l1 * tau + tau**2 * dimension,
                      (l2 + tau * math.sqrt(dimension)) ** 2))


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


def distributed_rdp(
    noise: DistributedNoise, orders: Sequence[int] | np.ndarray
) -> np.ndarray:
  """RDP of one secure sum at the survivor threshold, without sampling."""
  l1, l2 = noise.l1_sensitivity, noise.l2_sensitivity
  if noise.mechanism == 'skellam':
    return skellam_rdp(
        orders, noise.honest * noise.share_stddev**2, l1, l2)
  return discrete_gaussian_rdp(
      orders, noise.share_stddev, noise.honest, noise.dimension, l1, l2)


def distributed_epsilon(
    noise: DistributedNoise, *, sampling_prob: float, rounds: int, delta: float
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

  Raises:
    ValueError: For values out of range.
  """
  _check(sampling_prob, rounds, delta)
  rdp = [rounds * sampled_rdp(
      order, sampling_prob, lambda orders: distributed_rdp(noise, orders))
      for order in ORDERS]
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
          delta=delta)
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
