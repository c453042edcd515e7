"""The direction is private by exactly epsilon, and right on average."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.transforms.priv_unit import (
  parameters_of_threshold,
  priv_unit,
  priv_unit_parameters,
)

CLIP_NORM = 0.5
NUM_REPORTS = 100_000
# With a cap drawn from the whole sphere, and with one that is drawn near.
CASES = [(1.0, 5), (8.0, 40)]


def oracle_of(epsilon, num_entries, threshold):
  """(p, c, m) by sums over the cosine, as the mechanism is defined.

  The first entry of a uniform point of the sphere has a density proportional to
  (1 - t^2)^((d - 3) / 2); with t = cos(a) it is sin(a)^(d - 2).
  """
  def integrate(low, high, power, num=200_001):
    angle = np.linspace(low, high, num)
    values = np.cos(angle) ** power * np.sin(angle) ** (num_entries - 2)
    step = (high - low) / (num - 1)
    return step * (values.sum() - (values[0] + values[-1]) / 2)

  border = math.acos(threshold)
  whole = integrate(0, np.pi, 0)
  mass = integrate(0, border, 0) / whole
  odds = math.exp(epsilon) * mass / (1 - mass)
  cap_prob = odds / (1 + odds)
  mean = (cap_prob * integrate(0, border, 1) / (mass * whole)
          + (1 - cap_prob) * integrate(border, np.pi, 1) / (
              (1 - mass) * whole))
  return cap_prob, mass, mean


def oracle_distribution(parameters, num_entries, cosine):
  """P(<v, u> <= cosine) of a report, by sums over the angle."""
  angle = np.linspace(0, np.pi, 200_001)
  above = np.cumsum(np.sin(angle) ** (num_entries - 2))
  below = 1 - np.interp(np.arccos(cosine), angle, above / above[-1])
  p, threshold, mass, _ = parameters
  return np.where(
      cosine < threshold, (1 - p) * below / (1 - mass),
      1 - p + p * (below - (1 - mass)) / mass)


@functools.cache
def many_reports(epsilon):
  """Compiles once for each tree of deltas."""
  def one(delta, key):
    transform = priv_unit(CLIP_NORM, epsilon, key)
    return transform.update(delta, transform.init(delta))[0]

  return jax.jit(jax.vmap(one, (None, 0)))


def reports_of(delta, epsilon, seed=0):
  keys = jax.random.split(jax.random.key(seed), NUM_REPORTS)
  leaves = jax.tree.leaves(many_reports(epsilon)(delta, keys))
  return np.concatenate(
      [np.asarray(x, np.float64).reshape(NUM_REPORTS, -1) for x in leaves], 1)


@pytest.mark.parametrize(('epsilon', 'num_entries'), [
  *CASES, (1.0, 40), (8.0, 5), (0.1, 4), (4.0, 4), (4.0, 400), (12.0, 30)])
def test_the_parameters_are_those_of_the_definition(epsilon, num_entries):
  parameters = priv_unit_parameters(epsilon, num_entries)
  cap_prob, mass, mean = oracle_of(epsilon, num_entries, parameters.threshold)
  # Sums on 200,001 points with a smooth integrand; p is rounded to 2^-23.
  np.testing.assert_allclose(parameters.cap_mass, mass, rtol=1e-6)
  np.testing.assert_allclose(parameters.cap_prob, cap_prob, atol=2.0**-22)
  np.testing.assert_allclose(parameters.mean_cosine, mean, rtol=1e-5)


@pytest.mark.parametrize('epsilon', [0.1, 1.0, 4.0, 8.0, 16.0])
@pytest.mark.parametrize('num_entries', [4, 7, 40, 118_592, 10**6])
def test_the_densities_of_any_two_inputs_differ_by_e_to_the_epsilon(
    epsilon, num_entries):
  p, _, c, mean = priv_unit_parameters(epsilon, num_entries)
  ratio = math.log(p / c) - math.log((1 - p) / (1 - c))
  assert epsilon - 2.0**-22 / (p * (1 - p)) <= ratio <= epsilon * (1 + 1e-12)
  assert 0 < mean < 1
  # Positive control: the parameters of half the privacy would pass it.
  p, _, c, _ = priv_unit_parameters(2 * epsilon, num_entries)
  assert math.log(p / c) - math.log((1 - p) / (1 - c)) > epsilon


def test_the_constant_is_that_of_the_paper():
  """m = (1 - g^2)^a / (2^(d-2) (d-1)) (p / (B - B_t) - (1 - p) / B_t)."""
  scipy_special = pytest.importorskip('scipy.special')
  for epsilon, d in CASES:
    p, gamma, _, mean = priv_unit_parameters(epsilon, d)
    a, tau = (d - 1) / 2, (1 + gamma) / 2
    whole = scipy_special.beta(a, a)
    below = whole * scipy_special.betainc(a, a, tau)
    np.testing.assert_allclose(
        mean, (1 - gamma**2)**a / (2.0**(d - 2) * (d - 1)) * (
            p / (whole - below) - (1 - p) / below), rtol=1e-9)


def test_no_other_threshold_has_less_error():
  for epsilon, num_entries in CASES:
    best = priv_unit_parameters(epsilon, num_entries)
    for factor in (0.5, 0.8, 1.1, 1.2, 1.5):
      if best.threshold * factor < 1:
        other = parameters_of_threshold(
            epsilon, num_entries, best.threshold * factor)
        assert other.mean_cosine < best.mean_cosine


@pytest.mark.parametrize(('epsilon', 'num_entries'), CASES)
def test_reports_have_the_cosines_of_the_oracle(epsilon, num_entries):
  parameters = priv_unit_parameters(epsilon, num_entries)
  delta = jnp.zeros(num_entries).at[1].set(9.0)
  reports = reports_of(delta, epsilon)
  length = CLIP_NORM / parameters.mean_cosine
  # Every report is of one length: a sum of d float32 squares.
  np.testing.assert_allclose(
      np.linalg.norm(reports, axis=1), length, rtol=(num_entries + 20) * 2e-7)
  cosine = reports[:, 1] / length
  # Kolmogorov: P(sqrt(n) D > x) = 2 e^(-2 x^2), 1e-7 at 2.9.
  cosine.sort()
  wanted = oracle_distribution(parameters, num_entries, cosine)
  difference = np.abs(wanted - np.arange(NUM_REPORTS) / NUM_REPORTS).max()
  assert difference < 2.9 / math.sqrt(NUM_REPORTS) + 1e-5
  share = (cosine >= parameters.threshold - 1e-6).mean()
  p = parameters.cap_prob
  assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / NUM_REPORTS) + 1e-5


@pytest.mark.parametrize('claimed', [1.0, 0.5])
def test_reports_of_opposite_deltas_keep_epsilon_one(claimed):
  """And not a half, for which twice the noise would be needed."""
  parameters = priv_unit_parameters(1.0, 5)
  length = CLIP_NORM / parameters.mean_cosine
  axis = jnp.zeros(5).at[0].set(1.0)
  p, q = (
      (reports_of(delta, 1.0, seed=seed)[:, 0] / length
       >= parameters.threshold).mean()
      for seed, delta in enumerate((axis, -axis)))
  over = p - math.exp(claimed) * q
  error = math.sqrt(
      (p * (1 - p) + math.exp(2 * claimed) * q * (1 - q)) / NUM_REPORTS)
  assert (over <= 6 * error) == (claimed == 1.0)


@pytest.mark.parametrize('norm', [0.0, 0.2, 0.5, 3.0])
def test_the_mean_of_reports_is_the_clipped_delta(norm):
  direction = np.array([1.0, -2.0, 0.0, 2.0, 0.0]) / 3
  delta = ({'a': jnp.float32(norm * direction[:4].reshape(2, 2))},
           jnp.float32(norm * direction[4:]))
  reports = reports_of(delta, 4.0)
  error = reports.mean(0) - min(norm, CLIP_NORM) * direction
  # An entry's stddev is at most the report's length.
  length = CLIP_NORM / priv_unit_parameters(4.0, 5).mean_cosine
  assert np.abs(error).max() < 6 * length / math.sqrt(NUM_REPORTS)
  spread = np.square(reports - reports.mean(0)).sum(1).mean()
  np.testing.assert_allclose(
      spread, length**2 - min(norm, CLIP_NORM)**2,
      rtol=12 * length / math.sqrt(NUM_REPORTS))


def test_zeros_and_what_is_not_finite_look_like_any_other_report():
  length = CLIP_NORM / priv_unit_parameters(4.0, 5).mean_cosine
  for bad in (0.0, np.nan):
    reports = reports_of(
        ({'a': jnp.full((2, 2), bad)}, jnp.zeros(1, jnp.float32)), 4.0)
    np.testing.assert_allclose(
        np.linalg.norm(reports, axis=1), length, rtol=1e-5)


def test_what_is_orthogonal_to_the_delta_is_uniform():
  reports = reports_of(jnp.zeros(5).at[2].set(1.0), 1.0)
  rest = np.delete(reports, 2, axis=1)
  rest /= np.linalg.norm(rest, axis=1, keepdims=True)
  # Uniform on the sphere of 4 dimensions: mean 0, covariance I / 4; an entry
  # has the variance 1/4, and E x^4 = 3 / 24 bounds a product of two.
  assert np.abs(rest.mean(0)).max() < 6 / math.sqrt(4 * NUM_REPORTS)
  covariance = rest.T @ rest / NUM_REPORTS
  assert np.abs(covariance - np.eye(4) / 4).max() < 6 * math.sqrt(
      3 / 24 / NUM_REPORTS)


@pytest.mark.parametrize(('call', 'message'), [
  (lambda key: priv_unit(0.0, 1.0, key), 'l2_clip_norm=0.0'),
  (lambda key: priv_unit(1.0, 0.0, key), 'epsilon=0.0'),
  (lambda key: priv_unit(1.0, math.inf, key), 'epsilon=inf'),
  (lambda key: priv_unit(1.0, 1.0, key).update(jnp.ones(1), None),
   'num_entries=1'),
])
def test_what_has_no_parameters_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(jax.random.key(0))
