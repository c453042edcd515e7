"""Nothing is lost, only late; and what does not fit is refused."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.transforms.error_feedback import (
    check_error_feedback,
    error_feedback_bytes,
    error_feedback_step,
    with_error_feedback,
)
from fedjaxrec.transforms.quantize import qsgd, sign, ternary
from fedjaxrec.transforms.sparsify import random_k, threshold, top_k

KEY = jax.random.key(8)
ROUNDS = 6
INNER = {
    'top_k': lambda: top_k(0.1),
    'top_k entries': lambda: top_k(0.1, granularity='entries'),
    'random_k': lambda: random_k(0.2, KEY, unbiased=False),
    'threshold': lambda: threshold(1.0),
    'sign': sign,
    'ternary': lambda: ternary(KEY),
    'qsgd': lambda: qsgd(3, KEY),
}


@functools.cache
def compiled(name):
  """Deltas [ROUNDS, ...] -> (what is sent each round, the last memory)."""
  transform = with_error_feedback(INNER[name]())

  def run(deltas):
    def one(state, delta):
      sent, state = transform.update(delta, state)
      return state, sent
    start = transform.init(jax.tree.map(lambda x: x[0], deltas))
    state, sent = jax.lax.scan(one, start, deltas)
    return sent, state.memory
  return jax.jit(run)


@pytest.mark.parametrize('name', INNER)
@hypothesis.given(hnp.arrays(np.float32, (ROUNDS, 5, 2), elements=st.floats(
    -10, 10, width=32)))
@hypothesis.settings(max_examples=20)
def test_what_was_sent_and_what_is_remembered_is_what_came_in(name, deltas):
  sent, memory = compiled(name)({'a': deltas})
  total = np.sum(np.asarray(sent['a'], np.float64), 0) + np.asarray(
      memory['a'], np.float64)
  # Two roundings a round, of numbers that may have grown to 60 entries of 10
  # in norm with an unbiased compressor's scale.
  np.testing.assert_allclose(
      total, np.sum(deltas.astype(np.float64), 0),
      atol=2 * ROUNDS * 600 * 2.0**-24)


def test_without_a_memory_it_would_be_lost():
  """Positive control of the test above."""
  deltas = np.ones((ROUNDS, 5, 2), np.float32)
  transform = top_k(0.1)
  sent = sum(np.asarray(transform.update(
      {'a': d}, transform.init(None))[0]['a']) for d in deltas)
  assert np.abs(sent - deltas.sum(0)).max() == ROUNDS


def test_a_row_that_is_small_is_sent_in_the_end():
  deltas = np.tile(np.array([1.0, 0.3, 0.3], np.float32)[:, None],
                   (ROUNDS, 1, 1))
  sent, _ = compiled('top_k')({'a': deltas})
  # The others grow by 0.3 a round, until one passes 1: of the two that are
  # equal, the first, with 4 * 0.3.
  np.testing.assert_allclose(sent['a'][:, 0, 0], [1, 1, 1, 0, 2, 0])
  np.testing.assert_allclose(
      sent['a'][:, 1, 0], [0, 0, 0, 1.2, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(
      sent['a'][:, 2, 0], [0, 0, 0, 0, 0, 1.8], rtol=1e-6)


def test_the_memory_of_a_contraction_stays_bounded():
  rng = np.random.default_rng(0)
  transform = with_error_feedback(top_k(0.25))
  update = jax.jit(transform.update)
  state = transform.init({'a': jnp.zeros((8, 3))})
  for _ in range(60):
    delta = rng.normal(size=(8, 3)).astype(np.float32)
    delta /= np.linalg.norm(delta)
    _, state = update({'a': delta}, state)
    # d = 2 / 8: 2 G / d.
    assert np.linalg.norm(state.memory['a']) < 2 / 0.25


def test_a_delta_that_is_not_finite_leaves_the_memory_usable():
  transform = with_error_feedback(top_k(0.3))
  _, state = transform.update(
      {'a': jnp.array([3.0, 2.0, 1.0])}, transform.init({'a': jnp.zeros(3)}))
  sent, state = transform.update({'a': jnp.array([np.nan, 0, 0])}, state)
  np.testing.assert_array_equal(sent['a'], [0, 2, 0])
  np.testing.assert_array_equal(state.memory['a'], [0, 0, 1])


def test_a_step_works_on_the_rows_that_it_is_given():
  """The memory of the touched rows of a table, gathered and scattered."""
  table = np.arange(20, dtype=np.float32).reshape(10, 2)
  rows = np.array([7, 1, 4])
  delta = np.full((3, 2), 0.5, np.float32)
  sent, memory = error_feedback_step(
      lambda x: top_k(0.3).update(x, ())[0], delta, table[rows])
  np.testing.assert_array_equal(sent, [[14.5, 15.5], [0, 0], [0, 0]])
  np.testing.assert_array_equal(memory, [[0, 0], [2.5, 3.5], [8.5, 9.5]])


def test_the_mask_reaches_the_compressor():
  transform = with_error_feedback(top_k(0.5))
  x = {'a': jnp.array([4.0, 3.0, 2.0, 1.0, 0, 0, 0, 0])}
  out, _ = transform.update(
      x, transform.init(x), None, mask=np.arange(8) < 4)
  np.testing.assert_array_equal(out['a'], [4, 3, 0, 0, 0, 0, 0, 0])


def test_a_memory_that_does_not_fit_is_refused():
  table = {'item': jax.ShapeDtypeStruct((3706, 32), jnp.float32),
           'bias': jax.ShapeDtypeStruct((3706,), jnp.float32)}
  shared = {'bias': jax.ShapeDtypeStruct((), jnp.float32)}
  size = error_feedback_bytes(6040, table, shared)
  assert size == 6040 * (3706 * 33 + 1) * 4  # 2.75 GiB.
  check_error_feedback(6040, table, shared, 2.76)
  with pytest.raises(ValueError) as error:
    check_error_feedback(6040, table, shared, 2.7)
  for part in ('2.75 GiB', 'compression.error_feedback_limit_gib=2.7',
               'num_clients=6040'):
    assert part in str(error.value)


def test_sizes_beyond_32_bits_are_counted():
  table = {'item': jax.ShapeDtypeStruct((10**7, 128), jnp.float32)}
  assert error_feedback_bytes(10**6, table, {}) == 10**6 * 10**7 * 128 * 4
