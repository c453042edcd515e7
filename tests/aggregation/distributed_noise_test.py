"""The noise has the distribution that is accounted for, alone and summed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from fedjaxrec.aggregation import distributed_noise as noise
from fedjaxrec.aggregation.ring import make_ring


def discrete_gaussian(k, sigma):
  """The definition, normalised over far more than is looked at."""
  wide = np.arange(-int(40 * sigma) - 100, int(40 * sigma) + 101)
  return np.exp(-0.5 * (k / sigma) ** 2) / np.exp(
      -0.5 * (wide / sigma) ** 2).sum()


def draws(draw, count, seed=0):
  return np.asarray(jax.jit(lambda k: draw(k, (count,)))(
      jax.random.key(seed)), np.int64)


def chi_square(sample, pmf, zero):
  """Standard deviations that the counts are off; bins of at least 20."""
  expected = pmf * sample.size
  bins = np.flatnonzero(expected >= 20)
  counts = np.bincount(
      np.clip(sample + zero, 0, pmf.size - 1), minlength=pmf.size)
  inside = ((counts[bins] - expected[bins]) ** 2 / expected[bins]).sum()
  tail = sample.size - expected[bins].sum()
  outside = sample.size - counts[bins].sum()
  # The tail is a bin of its own where it is large enough to be one.
  inside += (outside - tail) ** 2 / tail if tail >= 20 else 0
  freedom = bins.size - (tail < 20)
  return (inside - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize('stddev', [0.3, 1.0, 30.0, 1000.0])
def test_the_formulas_are_those_of_the_distributions(stddev):
  pmf = noise.skellam_pmf(stddev)
  width = pmf.size // 2
  k = np.arange(-width, width + 1)
  mean = stddev**2 / 2
  np.testing.assert_allclose(
      pmf, scipy.stats.skellam.pmf(k, mean, mean), atol=1e-13)
  pmf = noise.discrete_gaussian_pmf(stddev)
  np.testing.assert_allclose(pmf, discrete_gaussian(k, stddev), atol=1e-13)
  variance = (pmf * k**2).sum()
  assert (abs(variance / stddev**2 - 1) < 1e-6) == (stddev >= 1)


@pytest.mark.parametrize('make', [noise.skellam_pmf,
                                  noise.discrete_gaussian_pmf])
@pytest.mark.parametrize('stddev', [0.3, 7.0, 302.0])
def test_a_table_draws_its_distribution_to_2_to_the_minus_32(make, stddev):
  pmf = make(stddev)
  keep, other = noise.alias_table(pmf)
  share = keep.astype(np.float64) / 2**32
  got = share.copy()
  np.add.at(got, other, 1 - share)
  got /= keep.size
  want = np.pad(pmf, (0, keep.size - pmf.size))
  assert np.abs(got - want).sum() / 2 < 2.0**-32
  k = np.arange(want.size) - pmf.size // 2
  assert abs((got * k**2).sum() / (pmf * k[:pmf.size]**2).sum() - 1) < 1e-8


@pytest.mark.parametrize(('kind', 'stddev'), [
  ('skellam', 1.3), ('skellam', 40.0), ('discrete_gaussian', 1.3),
  ('discrete_gaussian', 40.0)])
def test_draws_follow_their_distribution(kind, stddev):
  make = getattr(noise, f'make_{kind}')
  pmf = getattr(noise, f'{kind}_pmf')(stddev)
  sample = draws(make(stddev), 200_000)
  assert abs(chi_square(sample, pmf, pmf.size // 2)) < 6
  # Three per cent less noise is seen (positive control).
  short = draws(make(0.97 * stddev), 200_000)
  assert chi_square(short, pmf, pmf.size // 2) > 6


@pytest.mark.parametrize('stddev', [1000.0, 4472.0, 40_000.0])
def test_the_variance_is_right_where_jax_poisson_is_wrong(stddev):
  """Means of 5e5, 1e7 and 8e8 for each of Skellam's two Poisson draws."""
  count = 200_000
  sample = draws(noise.make_skellam(stddev), count)
  # The variance of n draws has the relative standard error sqrt(2 / n).
  error = 6 * math.sqrt(2 / count)
  assert abs(sample.var() / stddev**2 - 1) < error
  assert abs(sample.mean() / stddev) < 6 / math.sqrt(count)
  # The largest are where they belong: no int32 wrapped around.
  assert 4 < np.abs(sample).max() / stddev < 6.5


@pytest.mark.parametrize('mean', [5e5, 1e6])
def test_jax_poisson_is_short_of_variance_at_large_means(mean):
  """The defect that the tables are there for: gone, this test may go."""
  count = 200_000
  sample = np.asarray(jax.jit(
      lambda k: jax.random.poisson(k, mean, (count,)))(
          jax.random.key(0)), np.float64)
  assert abs(sample.var() / mean - 1) > 6 * math.sqrt(2 / count)


def test_a_sum_of_skellam_shares_is_one_draw_of_the_sum():
  n, share, count = 20, 2.5, 20_000
  pmf = noise.skellam_pmf(share * math.sqrt(n))
  zero = pmf.size // 2
  # Exactly: the n-fold convolution of the shares is the sum's distribution.
  size = 4096
  one = noise.skellam_pmf(share)
  k = np.arange(one.size) - one.size // 2
  wave = np.fft.rfft(np.bincount(k % size, one, size))
  folded = np.fft.irfft(wave**n, size)
  np.testing.assert_allclose(
      folded[np.arange(-zero, zero + 1) % size], pmf, atol=1e-13)
  # By drawing: n clients' shares, and one draw for all.
  shares = draws(noise.make_skellam(share), n * count).reshape(n, count).sum(0)
  at_once = draws(noise.make_skellam(share, n), count, seed=1)
  assert abs(chi_square(shares, pmf, zero)) < 6
  assert abs(chi_square(at_once, pmf, zero)) < 6
  # A share short is seen (positive control).
  few = draws(noise.make_skellam(share), (n // 2) * count).reshape(
      -1, count).sum(0)
  assert chi_square(few, pmf, zero) > 6


def test_a_sum_of_discrete_gaussian_shares_is_one_draw_of_their_sum():
  n, share, count = 10, 0.6, 20_000
  pmf = noise.discrete_gaussian_pmf(share, n)
  shares = draws(
      noise.make_discrete_gaussian(share), n * count).reshape(n, count).sum(0)
  at_once = draws(noise.make_discrete_gaussian(share, n), count, seed=1)
  assert abs(chi_square(shares, pmf, pmf.size // 2)) < 6
  assert abs(chi_square(at_once, pmf, pmf.size // 2)) < 6
  slow = noise.discrete_gaussian_pmf(share)
  folded = slow
  for _ in range(n - 1):
    folded = np.convolve(folded, slow)
  middle = folded.size // 2
  width = pmf.size // 2
  np.testing.assert_allclose(
      pmf, folded[middle - width:middle + width + 1], atol=1e-13)


def test_skellam_at_16_bits_costs_no_more_error_than_the_gaussian():
  """100 clients encode, add their shares, are summed modulo 2^16, decoded."""
  n, dimension, clip, multiplier = 100, 20_000, 0.5, 1.0
  ring = make_ring(16, clip, n, noise_multiplier=multiplier)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(n, dimension)).astype(np.float32)
  x *= clip / np.linalg.norm(x, axis=1, keepdims=True)
  stddev = multiplier * clip * ring.scale / math.sqrt(n)

  def upload(delta, key):
    encode_key, noise_key = jax.random.split(key)
    values = ring.encode(delta, encode_key).values
    return noise.add_skellam(values, noise_key, stddev, bits=16)

  keys = jax.random.split(jax.random.key(0), n)
  values = jax.jit(jax.vmap(upload))(jnp.asarray(x), keys)
  assert int(values.max()) < 2**16
  decode = jax.jit(ring.decode)
  error = np.asarray(decode(values.sum(0, dtype=jnp.uint32))) - x.sum(0)
  target = multiplier * clip  # The Gaussian mechanism's, on the sum.
  assert abs(error.std() / target - 1) < 0.02
  assert abs(error.mean() / target) < 6 / math.sqrt(dimension)
  # Ten of the hundred shares missing are seen (positive control).
  gone = np.asarray(decode(values[10:].sum(0, dtype=jnp.uint32)))
  assert abs((gone - x[10:].sum(0)).std() / target - 1) > 0.02


def test_every_leaf_client_and_round_has_its_own_noise():
  tree = {'a': jnp.zeros(4000, jnp.uint32), 'b': jnp.zeros(4000, jnp.uint32)}
  add = jax.jit(lambda k: noise.add_discrete_gaussian(tree, k, 50.0))
  first, second = add(jax.random.key(0)), add(jax.random.key(1))
  sample = np.array([first['a'], first['b'], second['a'], second['b']]).astype(
      np.int32)
  off = np.abs(np.corrcoef(sample)) - np.eye(4)
  assert off.max() < 6 / math.sqrt(4000)
  np.testing.assert_array_equal(add(jax.random.key(0))['a'], first['a'])


def test_noise_wraps_with_the_ring():
  top = jnp.full(1000, 2**10 - 1, jnp.uint32)
  out = np.asarray(noise.add_skellam(top, jax.random.key(0), 3.0, bits=10))
  assert out.max() < 2**10
  assert (out < 100).any() and (out > 1000).any()


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: noise.make_skellam(0.0), 'noise_stddev=0.0'),
  (lambda: noise.make_skellam(math.nan), 'noise_stddev=nan'),
  (lambda: noise.make_skellam(2e5), 'at most 120000'),
  (lambda: noise.make_discrete_gaussian(1000.0, 1000), 'at most 15000'),
  (lambda: noise.make_skellam(1.0, 0), 'num_shares=0'),
  (lambda: jax.jit(noise.make_skellam)(1.0), 'before tracing'),
  (lambda: noise.add_skellam(jnp.zeros(3), jax.random.key(0), 1.0), 'dtype='),
])
def test_noise_that_cannot_be_drawn_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
