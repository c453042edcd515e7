"""Epsilon of distributed noise bounds what the noise really gives away."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from fedjaxrec.aggregation import ranges
from fedjaxrec.privacy import accounting, distributed, integer_noise
from fedjaxrec.privacy.integer_noise import DistributedNoise

N = 6040
SAMPLING = dict(sampling_prob=100 / N, rounds=2000, delta=N**-1.1)


def noise(z=1.0, scale=2.0**12, dimension=2**17, survivors=100, **options):
  return DistributedNoise(
      noise_multiplier=z, scale=scale, dimension=dimension,
      min_survivors=survivors, **options)


def divergence(order, p, q):
  """Renyi divergence of two distributions on the integers, by its sum."""
  keep = (p > 1e-250) & (q > 1e-250)
  return scipy.special.logsumexp(
      order * np.log(p[keep]) + (1 - order) * np.log(q[keep])) / (order - 1)


def skellam_pmf(stddev, shift):
  k = np.arange(-int(14 * stddev) - 60, int(14 * stddev) + 61)
  return scipy.stats.skellam.pmf(k - shift, stddev**2 / 2, stddev**2 / 2)


def discrete_gaussian_sum_pmf(sigma, n, shift):
  k = np.arange(-60, 61)
  one = np.exp(-0.5 * (k / sigma) ** 2)
  one /= one.sum()
  total = one
  for _ in range(n - 1):
    total = np.convolve(total, one)
  return np.roll(total, shift)


@pytest.mark.parametrize('stddev', [1.5, 4.0, 20.0])
@pytest.mark.parametrize('shift', [1, 3])
def test_the_skellam_bound_holds_and_is_no_looser_than_it_must_be(
    stddev, shift):
  orders = [2, 4, 8]
  exact = [divergence(a, skellam_pmf(stddev, shift), skellam_pmf(stddev, 0))
           for a in orders]
  bound = integer_noise.skellam_rdp(orders, stddev**2, shift, shift)
  assert (bound >= exact).all()
  if stddev >= 4:
    # For a quarter more noise than there is it would not (positive control).
    more = integer_noise.skellam_rdp(orders, 1.25 * stddev**2, shift, shift)
    assert more[0] < exact[0]


@pytest.mark.parametrize(('sigma', 'n'), [(0.5, 4), (0.8, 10), (2.0, 3)])
@pytest.mark.parametrize('shift', [1, 2])
def test_the_discrete_gaussian_bound_holds(sigma, n, shift):
  orders = [2, 4]
  exact = [divergence(a, discrete_gaussian_sum_pmf(sigma, n, shift),
                      discrete_gaussian_sum_pmf(sigma, n, 0)) for a in orders]
  bound = integer_noise.discrete_gaussian_rdp(orders, sigma, n, 1, shift, shift)
  # The sums above are good to 1e-9.
  assert (bound >= np.array(exact) * (1 - 1e-9)).all()
  # With a share more than there is it would not hold (positive control).
  if sigma == 2.0:
    more = integer_noise.discrete_gaussian_rdp(
        orders, sigma, n + 1, 1, shift, shift)
    assert (more < exact).all()


@pytest.mark.parametrize('q', [0.02, 0.3])
def test_the_bound_of_sampling_holds_for_the_mechanism_itself(q):
  """Neighbours: with the client, a mixture; without, the noise alone."""
  stddev = 3.0
  without = skellam_pmf(stddev, 0)
  mixture = (1 - q) * without + q * skellam_pmf(stddev, 1)
  orders = [2, 3, 6]
  exact = [max(divergence(a, mixture, without), divergence(a, without, mixture))
           for a in orders]
  base = lambda orders: integer_noise.skellam_rdp(orders, stddev**2, 1, 1)
  bound = [distributed.sampled_rdp(a, q, base) for a in orders]
  assert (np.array(bound) >= exact).all()
  assert (np.array(bound) <= base(orders)).all()
  # Half of the sampling is not enough (positive control).
  half = [distributed.sampled_rdp(a, q / 2, base) for a in orders]
  assert half[0] < exact[0]


@pytest.mark.parametrize(('z', 'dimension', 'scale', 'epsilon'), [
  (1.0, 2**17, 2**8, 7.91), (1.0, 2**17, 2**10, 5.21),
  (1.0, 2**17, 2**12, 5.04), (1.0, 2**20, 2**10, 6.43),
  (1.0, 2**20, 2**12, 5.11), (2.5, 2**17, 2**8, 1.84),
  (2.5, 2**17, 2**10, 1.55), (2.5, 2**17, 2**12, 1.53)])
def test_epsilon_is_what_an_independent_computation_found(
    z, dimension, scale, epsilon):
  got = distributed.distributed_epsilon(
      noise(z, float(scale), dimension), **SAMPLING)
  assert abs(got - epsilon) < 0.006


def test_with_a_fine_scale_and_no_sampling_it_is_the_gaussian():
  sampling = dict(sampling_prob=1.0, rounds=10, delta=1e-5)
  gaussian = accounting.rdp.compute_epsilon(
      distributed.ORDERS, [10 * a / 2 / 8.0**2 for a in distributed.ORDERS],
      1e-5)[0]
  for mechanism in integer_noise.MECHANISMS:
    got = distributed.distributed_epsilon(
        noise(8.0, 1e5, 100, mechanism=mechanism), **sampling)
    assert gaussian <= got < 1.001 * gaussian


def test_dropouts_are_paid_for_up_to_the_threshold():
  """66 survivors of 100, each with the share that 66 need."""
  shares = noise(survivors=66)
  target = distributed.distributed_epsilon(shares, **SAMPLING)
  sum_at = lambda n: shares.share_stddev * math.sqrt(n) / shares.scale
  assert sum_at(66) == pytest.approx(1.0)
  assert sum_at(100) > 1.2
  # Shares that count on all hundred leave too little (positive control).
  hopeful = noise(survivors=100)
  left = hopeful.share_stddev * math.sqrt(66) / hopeful.scale
  assert distributed.distributed_epsilon(
      noise(left, survivors=66), **SAMPLING) > 1.3 * target


def test_corrupt_survivors_add_no_noise():
  some = noise(survivors=66, num_corrupt=16)
  assert some.share_stddev == noise(survivors=50).share_stddev
  assert distributed.distributed_epsilon(some, **SAMPLING) == pytest.approx(
      distributed.distributed_epsilon(noise(survivors=50), **SAMPLING))


def test_epsilon_falls_with_noise_scale_and_rounds_left():
  base = distributed.distributed_epsilon(noise(), **SAMPLING)
  worse = [
    distributed.distributed_epsilon(noise(0.9), **SAMPLING),
    distributed.distributed_epsilon(noise(scale=2.0**8), **SAMPLING),
    distributed.distributed_epsilon(noise(), **SAMPLING | {'rounds': 3000}),
    distributed.distributed_epsilon(
        noise(), **SAMPLING | {'sampling_prob': 0.03}),
    distributed.distributed_epsilon(noise(), **SAMPLING | {'delta': 1e-8}),
  ]
  assert min(worse) > base


@pytest.mark.parametrize('mechanism', integer_noise.MECHANISMS)
def test_calibration_meets_its_target_and_wastes_little(mechanism):
  start = noise(mechanism=mechanism)
  found = distributed.calibrate_distributed(start, 4.0, **SAMPLING)
  assert 0.97 * 4 < distributed.distributed_epsilon(found, **SAMPLING) <= 4
  less = dataclasses.replace(
      found, noise_multiplier=found.noise_multiplier / 1.002)
  assert distributed.distributed_epsilon(less, **SAMPLING) > 4
  assert found.scale == start.scale


def test_calibration_to_a_ring_takes_the_scale_that_holds_the_noise():
  found = distributed.calibrate_distributed(
      noise(survivors=66, dimension=4000), 4.0, bits=16, max_cohort=100,
      **SAMPLING)
  assert distributed.distributed_epsilon(found, **SAMPLING) <= 4
  of_all = found.share_stddev * math.sqrt(100)
  assert ranges.required_bits(100, 1.0, found.scale, of_all) == 16
  finer = distributed.calibrate_distributed(
      noise(survivors=66, dimension=4000), 4.0, bits=20, max_cohort=100,
      **SAMPLING)
  assert finer.scale > 10 * found.scale
  assert finer.noise_multiplier < found.noise_multiplier


def test_conditional_rounding_keeps_its_bound_as_often_as_is_said():
  rng = np.random.default_rng(0)
  for dimension, norm in ((50, 3.0), (400, 1.0), (20, 100.0)):
    x = rng.normal(size=dimension)
    x *= norm / np.linalg.norm(x)
    rounded = np.floor(x + rng.random((2000, dimension)))
    passed = (np.linalg.norm(rounded, axis=1) > ranges.rounded_l2_bound(
        norm, dimension)).mean()
    assert passed <= ranges.BETA
    never = ranges.rounded_l2_bound(norm, dimension, 0.0)
    assert np.linalg.norm(rounded, axis=1).max() <= never
    # The norm before rounding is no bound after it (positive control).
    assert (np.linalg.norm(rounded, axis=1) > norm).mean() > 0.3


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: noise(mechanism='gaussian'), 'mechanism='),
  (lambda: noise(0.0), 'noise_multiplier=0'),
  (lambda: noise(scale=math.inf), 'scale=inf'),
  (lambda: noise(dimension=0), 'dimension=0'),
  (lambda: noise(beta=1.0), 'beta=1.0'),
  (lambda: noise(survivors=10, num_corrupt=10), 'num_corrupt=10'),
  (lambda: noise(mechanism='discrete_gaussian', scale=1.0), 'at least 0.5'),
  (lambda: distributed.distributed_epsilon(
      noise(), sampling_prob=0.0, rounds=1, delta=0.1), 'sampling_prob=0'),
  (lambda: distributed.distributed_epsilon(
      noise(), sampling_prob=0.1, rounds=0, delta=0.1), 'rounds=0'),
  (lambda: distributed.distributed_epsilon(
      noise(), sampling_prob=0.1, rounds=1, delta=0.0), 'delta=0.0'),
  (lambda: distributed.calibrate_distributed(
      noise(), 0.0, **SAMPLING), 'target_epsilon=0.0'),
  (lambda: distributed.calibrate_distributed(
      noise(), 1.0, bits=16, **SAMPLING), 'go together'),
  (lambda: distributed.calibrate_distributed(
      noise(), 0.01, bits=8, max_cohort=100, **SAMPLING), 'out of reach'),
])
def test_what_has_no_epsilon_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
