"""Noise of integers that the clients add in shares, and what it hides.

The Renyi differential privacy of the Skellam mechanism and of the distributed
discrete Gaussian on one secure sum, with the sensitivity that conditional
rounding keeps. Clients that drop out take their share of the noise with them,
so all is counted at the smallest number of survivors at which a round is not
aborted. Plain formulas; `accounting` composes them.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from fedjaxrec.aggregation import ranges

MECHANISMS = ('skellam', 'discrete_gaussian')


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
