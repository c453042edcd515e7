"""Any two deltas look alike within e^epsilon, and not by chance."""

import math

import dp_accounting
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.transforms.local_privacy import (
  add_local_gaussian_noise,
  add_local_laplace_noise,
  gaussian_delta,
  gaussian_stddev,
  local_gaussian_stddev,
  local_laplace_scale,
  round_prob_down,
  round_prob_up,
)

NUM_DRAWS = 10**6
CLIP_NORM = 0.7


def apply(transform, tree):
  out, _ = transform.update(tree, transform.init(tree))
  return out


def draw(make, delta, num_draws):
  """The first entry of many reports of one delta of two entries."""
  keys = jax.random.split(jax.random.key(3), num_draws)
  return np.asarray(jax.jit(jax.vmap(
      lambda key: apply(make(key), delta)[0]))(keys))


def excess(reports, others, threshold, epsilon):
  """P(report > t) - e^epsilon P(other > t), and its standard error."""
  p, q = (reports > threshold).mean(), (others > threshold).mean()
  variance = p * (1 - p) / len(reports) + (
      math.exp(2 * epsilon) * q * (1 - q) / len(others))
  return p - math.exp(epsilon) * q, math.sqrt(variance)


@pytest.mark.parametrize(('epsilon', 'delta_dp'), [
  (0.1, 1e-3), (1.0, 1e-5), (4.0, 6.932e-5), (20.0, 1e-6)])
def test_the_gaussian_stddev_is_the_least_that_keeps_the_promise(
    epsilon, delta_dp):
  stddev = gaussian_stddev(2.0, epsilon, delta_dp)
  np.testing.assert_allclose(
      stddev, 2.0 * dp_accounting.get_sigma_gaussian(epsilon, delta_dp),
      rtol=1e-6)
  # The hockey-stick divergence of N(0, 1) shifted by 1 / z, by summing it.
  shift = 2.0 / stddev
  x = np.linspace(-12, 12 + shift, 400_001)
  density = lambda at: np.exp(-(x - at) ** 2 / 2) / np.sqrt(2 * np.pi)
  divergence = np.maximum(
      density(shift) - math.exp(epsilon) * density(0), 0).sum() * (x[1] - x[0])
  # The kink costs the square of a step; the density has 16 digits.
  np.testing.assert_allclose(divergence, delta_dp, rtol=1e-4)
  # Positive control: with half the noise it would be far more.
  assert gaussian_delta(stddev / 4.0, epsilon) > 5 * delta_dp


@hypothesis.given(
    st.floats(0.05, 10), st.lists(st.floats(-9, 9), min_size=9, max_size=9))
def test_laplace_densities_differ_by_e_to_the_epsilon_at_most(epsilon, entries):
  x, other, at = (np.array(entries[i:i + 3]) for i in (0, 3, 6))
  clip = lambda v: v * min(1, CLIP_NORM / max(np.abs(v).sum(), 1e-300))
  scale = local_laplace_scale(CLIP_NORM, epsilon)
  log_density = lambda centre: -np.abs(at - centre).sum() / scale
  ratio = log_density(clip(x)) - log_density(clip(other))
  assert abs(ratio) <= epsilon * (1 + 1e-12)


def test_laplace_meets_its_epsilon_and_half_the_noise_would_pass_it():
  scale, far = local_laplace_scale(CLIP_NORM, 1.5), 2 * CLIP_NORM
  # At one of two opposite deltas: densities 1 and e^-(2 C / b).
  assert far / scale == pytest.approx(1.5)
  assert far / (scale / 2) > 1.5


@pytest.mark.parametrize('made_for', [1.0, 2.0])
def test_laplace_reports_of_opposite_deltas_keep_epsilon_one(made_for):
  """With half the noise, which is that of epsilon 2, they do not."""
  make = lambda key: add_local_laplace_noise(CLIP_NORM, made_for, key)
  reports = draw(make, jnp.array([50.0, 0.0]), NUM_DRAWS // 4)
  others = -reports[::-1]  # The noise is symmetric: reports of the opposite.
  over, error = excess(reports, others, CLIP_NORM, 1.0)
  assert (over <= 6 * error) == (made_for == 1.0)


@pytest.mark.parametrize('factor', [1.0, 2.0])
def test_gaussian_reports_of_opposite_deltas_keep_epsilon_and_delta(factor):
  """With a delta clipped to twice the norm, half the noise, they do not."""
  epsilon, delta_dp = 1.0, 1e-2
  make = lambda key: add_local_gaussian_noise(CLIP_NORM, epsilon, delta_dp, key)
  noise = draw(make, jnp.zeros(2), NUM_DRAWS // 4)
  distance, stddev = factor * CLIP_NORM, local_gaussian_stddev(
      CLIP_NORM, epsilon, delta_dp)
  # Where the likelihood ratio is e^epsilon.
  threshold = epsilon * stddev**2 / (2 * distance)
  over, error = excess(noise + distance, -noise[::-1] - distance, threshold,
                       epsilon)
  assert (over <= delta_dp + 6 * error) == (factor == 1.0)
  if factor == 1.0:  # Exact calibration: the promise is met, not undercut.
    assert over >= delta_dp - 6 * error


def test_the_noise_has_the_stddev_that_was_told():
  delta = (jnp.zeros((NUM_DRAWS // 4, 2)), jnp.zeros(NUM_DRAWS // 2))
  flat = lambda tree: np.concatenate(
      [np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)
  noise = flat(apply(
      add_local_gaussian_noise(CLIP_NORM, 2.0, 1e-5, jax.random.key(0)), delta))
  told = local_gaussian_stddev(CLIP_NORM, 2.0, 1e-5)
  assert told == gaussian_stddev(2 * CLIP_NORM, 2.0, 1e-5)
  assert abs(noise.std() / told - 1) < 6 / np.sqrt(2 * NUM_DRAWS)
  assert abs(noise.mean()) < 6 * told / np.sqrt(NUM_DRAWS)

  noise = flat(apply(
      add_local_laplace_noise(CLIP_NORM, 2.0, jax.random.key(0)), delta))
  told = np.sqrt(2) * 2 * CLIP_NORM / 2.0
  # A Laplace variable's kurtosis is 6: the variance of a squared one is 5.
  assert abs(noise.std() / told - 1) < 6 * np.sqrt(5 / NUM_DRAWS) / 2
  assert abs(noise.mean()) < 6 * told / np.sqrt(NUM_DRAWS)
  # That of the estimated kurtosis, from the moments up to the eighth: 1188 / n.
  kurtosis = np.mean(noise**4) / np.mean(noise**2) ** 2
  assert abs(kurtosis - 6) < 6 * np.sqrt(1188 / NUM_DRAWS)
  assert len(np.unique(noise[:1000])) == 1000  # No two leaves share a draw.


@pytest.mark.parametrize('make', [
  lambda key: add_local_gaussian_noise(CLIP_NORM, 1.0, 1e-5, key),
  lambda key: add_local_laplace_noise(CLIP_NORM, 1.0, key)])
def test_the_delta_is_clipped_before_the_noise(make):
  key = jax.random.key(0)
  noise = apply(make(key), jnp.zeros(3))
  big = apply(make(key), jnp.array([0.0, 90.0, 0.0])) - noise
  np.testing.assert_allclose(big, [0.0, CLIP_NORM, 0.0], atol=1e-5)
  small = apply(make(key), jnp.array([0.1, 0.0, -0.1])) - noise
  np.testing.assert_allclose(small, [0.1, 0.0, -0.1], atol=1e-5)
  bad = apply(make(key), jnp.array([np.nan, 1.0, 1.0])) - noise
  np.testing.assert_array_equal(bad, 0.0)


def test_laplace_noise_bounds_the_sum_of_the_magnitudes():
  make = lambda: add_local_laplace_noise(CLIP_NORM, 1.0, jax.random.key(0))
  noise = apply(make(), jnp.zeros(4))
  clipped = apply(make(), jnp.array([9.0, -9.0, 9.0, 9.0])) - noise
  np.testing.assert_allclose(np.abs(clipped), CLIP_NORM / 4, atol=1e-5)


def test_untouched_rows_are_noised_like_touched_ones():
  table = jnp.zeros((1000, 2)).at[3].set(0.1)
  for make in (lambda k: add_local_gaussian_noise(1.0, 1.0, 1e-5, k),
               lambda k: add_local_laplace_noise(1.0, 1.0, k)):
    assert np.asarray(apply(make(jax.random.key(0)), table)).all()


@hypothesis.given(st.floats(0, 1))
def test_rounded_probabilities_are_drawable_and_on_the_right_side(prob):
  low, high = round_prob_down(prob), round_prob_up(prob)
  assert low <= prob <= high
  assert high - low in (0, 2.0**-23)
  assert np.float32(low) == low and np.float32(high) == high


def test_a_uniform_draw_has_the_granularity_that_is_assumed():
  draws = np.asarray(jax.random.uniform(jax.random.key(0), (10**5,)))
  scaled = draws.astype(np.float64) * 2**23
  np.testing.assert_array_equal(scaled, np.floor(scaled))
  assert (scaled % 2 == 1).any()


@pytest.mark.parametrize(('call', 'message'), [
  (lambda k: add_local_gaussian_noise(0.0, 1.0, 1e-5, k), 'l2_clip_norm=0.0'),
  (lambda k: add_local_gaussian_noise(1.0, 0.0, 1e-5, k), 'epsilon=0.0'),
  (lambda k: add_local_gaussian_noise(1.0, -1.0, 1e-5, k), 'epsilon=-1.0'),
  (lambda k: add_local_gaussian_noise(1.0, 1.0, 0.0, k), 'delta_dp=0.0'),
  (lambda k: add_local_gaussian_noise(1.0, 1.0, 1.0, k), 'delta_dp=1.0'),
  (lambda k: add_local_laplace_noise(1.0, math.inf, k), 'epsilon=inf'),
  (lambda k: add_local_laplace_noise(math.nan, 1.0, k), 'l1_clip_norm=nan'),
])
def test_what_cannot_be_calibrated_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(jax.random.key(0))
