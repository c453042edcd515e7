"""The noise is C^-1 z: by an oracle, round by round, and as it adds up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.privacy import noise_matrices
from fedjaxrec.transforms.correlated_noise import (
  CorrelatedNoiseState,
  add_banded_noise,
  add_buffered_toeplitz_noise,
)

NUM_DRAWS, NUM_ROUNDS, STDDEV = 10**6, 5, 0.3
BANDED = np.array([0.8, 0.5, 0.2])
DECAY, SCALE = np.array([0.95, 0.5]), np.array([0.3, 0.2])


def make(name, key, stddev=STDDEV):
  if name == 'banded':
    return add_banded_noise(stddev, BANDED, key)
  return add_buffered_toeplitz_noise(stddev, DECAY, SCALE, key)


def coefficients(name, num_rounds):
  if name == 'banded':
    return np.pad(BANDED, (0, num_rounds))[:num_rounds]
  return noise_matrices.coefficients_of_buffers(DECAY, SCALE, num_rounds)


def dense(column):
  n = len(column)
  return np.array([[column[i - j] if i >= j else 0.0 for j in range(n)]
                   for i in range(n)])


def release(transform, updates, num_rounds):
  """What is released in each round: leaves [num_rounds, ...]."""
  def body(state, _):
    noisy, state = transform.update(updates, state)
    return state, noisy

  return jax.jit(lambda state: jax.lax.scan(body, state, None, num_rounds))(
      transform.init(updates))


@pytest.mark.parametrize('name', ['banded', 'buffered'])
def test_the_noise_is_the_inverse_of_the_matrix_times_independent_noise(name):
  num_rounds = 60
  updates = {'a': jnp.zeros((3, 4)), 'b': jnp.zeros(2)}
  key = jax.random.key(5)
  _, released = release(make(name, key), updates, num_rounds)
  # With one band C is the identity: the same key gives the same z.
  _, independent = release(
      add_banded_noise(STDDEV, np.ones(1), key), updates, num_rounds)
  inverse = np.linalg.inv(dense(coefficients(name, num_rounds)))
  for got, z in zip(jax.tree.leaves(released), jax.tree.leaves(independent)):
    z = np.asarray(z, np.float64).reshape(num_rounds, -1)
    wanted = inverse @ z
    # Each round adds a few float32 roundings of numbers below 6 times the
    # noise, and C^-1 hands them on by at most its absolute row sum.
    tolerance = 8 * 2.0**-24 * 6 * STDDEV * np.abs(inverse).sum(1).max() ** 2
    np.testing.assert_allclose(
        np.reshape(got, (num_rounds, -1)), wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize('name', ['banded', 'buffered'])
def test_rounds_and_their_sums_have_the_covariance_that_was_told(name):
  updates = {'a': jnp.full((NUM_DRAWS // 4, 2), 1.0),
             'b': jnp.full(NUM_DRAWS // 2, 1.0)}
  _, released = release(make(name, jax.random.key(1)), updates, NUM_ROUNDS)
  noise = np.concatenate(
      [np.reshape(x, (NUM_ROUNDS, -1)) for x in jax.tree.leaves(released)],
      1).astype(np.float64) - 1.0
  column = coefficients(name, NUM_ROUNDS)

  told = STDDEV * noise_matrices.round_noise_stddevs(column, NUM_ROUNDS)
  within = 6 / np.sqrt(2 * NUM_DRAWS)  # 0.4 %
  np.testing.assert_allclose(noise.std(1), told, rtol=within)
  told = STDDEV * noise_matrices.prefix_sum_noise_stddevs(column, NUM_ROUNDS)
  sums = np.cumsum(noise, axis=0)
  np.testing.assert_allclose(sums.std(1), told, rtol=within)

  error = np.tri(NUM_ROUNDS) @ np.linalg.inv(dense(column)) * STDDEV
  wanted = error @ error.T
  spread = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2)
                   / NUM_DRAWS)
  assert (np.abs(np.cov(sums) - wanted) < 6 * spread).all()
  # Positive control: independent rounds would not have it.
  walk = np.minimum.outer(*[np.arange(1, NUM_ROUNDS + 1)] * 2) * STDDEV**2
  assert (np.abs(np.cov(sums) - walk) > 6 * spread).any()

  # Undone, it is z: normal, of the stddev, nothing shared between rounds.
  z = dense(column) @ noise
  assert abs(z.std() / STDDEV - 1) < 6 / np.sqrt(2 * z.size)
  off = np.corrcoef(z) - np.eye(NUM_ROUNDS)
  assert np.abs(off).max() < 6 / np.sqrt(NUM_DRAWS)


@pytest.mark.parametrize('name', ['banded', 'buffered'])
def test_state_is_plain_arrays_that_a_run_can_resume_from(name):
  updates = ({'a': jnp.zeros((2, 3))}, {})
  transform = make(name, jax.random.key(0))
  _, whole = release(transform, updates, 6)
  state, _ = release(transform, updates, 4)
  stored = jax.tree.map(np.asarray, state)
  assert isinstance(stored, CorrelatedNoiseState)
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(stored))
  assert {x.dtype for x in jax.tree.leaves(stored.buffers)} == {
      np.dtype('float32')}
  state = jax.tree.map(jnp.asarray, stored)
  for r in (4, 5):
    noisy, state = jax.jit(transform.update)(updates, state)
    np.testing.assert_array_equal(noisy[0]['a'], whole[0]['a'][r])


def test_memory_is_a_copy_of_the_updates_for_each_band_but_one():
  updates = jnp.zeros(7)
  padded = np.pad(BANDED, (0, 90))  # As strategies give them.
  state = add_banded_noise(1.0, padded, jax.random.key(0)).init(updates)
  assert state.buffers.shape == (len(BANDED) - 1, 7)
  state = make('buffered', jax.random.key(0)).init(updates)
  assert state.buffers.shape == (len(DECAY), 7)


def test_no_noise_leaves_the_sum_as_it_is_and_the_stddev_may_be_traced():
  updates = jnp.arange(5.0)

  @jax.jit
  def first(stddev):
    transform = make('banded', jax.random.key(0), stddev)
    return transform.update(updates, transform.init(updates))[0]

  np.testing.assert_array_equal(first(0.0), updates)
  np.testing.assert_allclose(
      first(2.0) - updates, 2 * (first(1.0) - updates), rtol=1e-5)


@pytest.mark.parametrize(('call', 'message'), [
  (lambda k: add_banded_noise(-1.0, BANDED, k), 'noise_stddev=-1.0'),
  (lambda k: add_banded_noise(np.nan, BANDED, k), 'noise_stddev=nan'),
  (lambda k: add_banded_noise(1.0, np.array([]), k), 'coefficients='),
  (lambda k: add_banded_noise(1.0, np.array([0.0, 1.0]), k), 'coefficients='),
  (lambda k: add_banded_noise(1.0, np.array([1.0, np.inf]), k), 'coefficient'),
  (lambda k: add_buffered_toeplitz_noise(-1.0, DECAY, SCALE, k), 'stddev=-1'),
  (lambda k: add_buffered_toeplitz_noise(1.0, DECAY, SCALE[:1], k), 'decay='),
  (lambda k: add_buffered_toeplitz_noise(1.0, 1.1 + DECAY, SCALE, k), 'decay='),
  (lambda k: add_buffered_toeplitz_noise(1.0, DECAY, -SCALE, k), 'scale='),
])
def test_what_is_no_matrix_or_no_noise_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(jax.random.key(0))
