"""Tests of fedjaxrec.aggregation.shamir."""

import os
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec.aggregation import shamir

P = shamir.PRIME


def evaluate(coefficients, x):
  """By hand: a polynomial, lowest coefficient first, in Python integers."""
  return sum(c * x**power for power, c in enumerate(coefficients)) % P


def interpolate_at_zero(points, values):
  total = 0
  for i, x in enumerate(points):
    weight = 1
    for j, other in enumerate(points):
      if i != j:
        weight = weight * other * pow(other - x, -1, P) % P
    total += weight * values[i]
  return total % P


def test_a_share_is_the_polynomial_at_its_point():
  # Entropy gives the coefficients 5, 7, ... in order; 3 shares, threshold 3.
  numbers = np.arange(5, 5 + 2 * 2, dtype='<u4')
  shares = shamir.share([b'\x09\0\0\0\x01'], 3, 3, lambda n: numbers.tobytes())
  # 2^32 + 9 = 4 * 2^30 + 9: limbs 9 and 4; the highest power comes first.
  want = [[evaluate([9, 7, 5], x), evaluate([4, 8, 6], x)] for x in (1, 2, 3)]
  assert shares[:, 0].tolist() == want


@given(st.binary(min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 6),
       st.randoms())
def test_any_threshold_of_the_shares_rebuilds(secret, threshold, more, chance):
  shares = shamir.share([secret, secret[::-1]], threshold + more, threshold)
  assert shares.shape == (
      threshold + more, 2, shamir.num_limbs(len(secret)))
  chosen = chance.sample(range(threshold + more), threshold)
  for place, want in enumerate((secret, secret[::-1])):
    got, = shamir.rebuild(
        np.array([chosen]) + 1, shares[None, chosen, place], len(secret))
    assert got == want


def test_rebuilding_agrees_with_interpolation_in_python_integers():
  shares = shamir.share([os.urandom(32)], 20, 13)
  chosen = random.Random(0).sample(range(20), 13)
  got, = shamir.rebuild(
      np.array([chosen]) + 1, shares[None, chosen, 0], 32)
  limbs = [interpolate_at_zero([i + 1 for i in chosen],
                               shares[chosen, 0, limb].tolist())
           for limb in range(9)]
  assert int.from_bytes(got, 'little') == sum(
      limb << 30 * i for i, limb in enumerate(limbs))


def test_one_share_less_is_consistent_with_every_secret():
  """t - 1 shares fit each of two secrets: some polynomial passes both."""
  threshold, known = 4, [1, 2, 3]
  shares = shamir.share([b'\x05'], 5, threshold)
  values = shares[:3, 0, 0].tolist()
  for secret in (0, 5, 123_456):
    # The value at 4 that a secret asks for exists, and rebuilds it.
    points = [*known, 4]
    at_zero = [interpolate_at_zero(points, [*values, v]) for v in (0, 1)]
    slope = (at_zero[1] - at_zero[0]) % P
    fourth = (secret - at_zero[0]) * pow(slope, -1, P) % P
    assert interpolate_at_zero(points, [*values, fourth]) == secret


def test_shares_of_a_fixed_secret_are_uniform():
  """Chi-square over 16 cells of the field; the control shares without noise."""
  def statistic(entropy):
    # Two of three that are needed: independent of each other as well.
    values = np.concatenate([
        shamir.share([b'\x07' * 30], 2 + 1, 3, entropy)[:2].reshape(-1)
        for _ in range(200)]).astype(np.int64)
    counts = np.bincount(values * 16 // (P + 1), minlength=16)
    return ((counts - counts.mean())**2 / counts.mean()).sum()
  generator = np.random.default_rng(0)
  # 15 degrees of freedom: above 50 with probability 1e-5.
  assert statistic(generator.bytes) < 50
  assert statistic(bytes) > 50


def test_a_share_that_was_changed_gives_another_secret_or_none():
  secret = os.urandom(32)
  shares = shamir.share([secret], 5, 3)
  shares[1, 0, 4] ^= 1
  got, = shamir.rebuild(np.array([[1, 2, 3]]), shares[None, :3, 0], 32)
  assert got != secret


def test_entropy_that_hits_the_prime_is_drawn_again():
  answers = iter([b'\xff' * 4, b'\xff' * 4, (3).to_bytes(4, 'little')])
  shares = shamir.share([b'\x01'], 2, 2, lambda n: next(answers))
  assert shares[:, 0, 0].tolist() == [4, 7]


@pytest.mark.parametrize('threshold', [0, 4])
def test_a_threshold_that_no_shares_meet_is_refused(threshold):
  with pytest.raises(ValueError, match=f'threshold={threshold}'):
    shamir.share([b'x'], 3, threshold)
