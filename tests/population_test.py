"""Every client's data and parameters come back as they were handed in."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjaxrec import population
from tests import oracles

COUNTS = [3, 0, 5, 1, 2, 0, 4]
CAPACITY = 5
NUM_ITEMS = 20
POPULATION = oracles.make_population(COUNTS, NUM_ITEMS)

gather = jax.jit(population.gather_clients, static_argnums=(3, 4))


def place(num_devices):
  return population.place_clients(
      POPULATION.offsets, POPULATION.items, POPULATION.labels, num_devices)


@pytest.mark.parametrize('num_devices', [1, 2, 3, 10])
def test_every_client_is_read_back_at_its_home_device(num_devices):
  data = place(num_devices)
  per_device = -(-len(COUNTS) // num_devices)
  for c, count in enumerate(COUNTS):
    home = jax.tree.map(lambda x, d=c % num_devices: jnp.asarray(x[d]), data)
    block = gather(
        home, jnp.array([c // num_devices, per_device]), jnp.array([c, 99]),
        CAPACITY, NUM_ITEMS)
    items, labels = POPULATION.client(c)
    order = np.argsort(items)
    np.testing.assert_array_equal(block.items[0, :count], items[order])
    np.testing.assert_array_equal(block.labels[0, :count], labels[order])
    np.testing.assert_array_equal(block.num_examples, [count, 0])
    np.testing.assert_array_equal(block.client_id, [c, 99])
    # What is not the client's own is filled, and so is a whole padding client.
    np.testing.assert_array_equal(block.items[0, count:], NUM_ITEMS)
    np.testing.assert_array_equal(block.labels[0, count:], 0)
    np.testing.assert_array_equal(block.items[1], NUM_ITEMS)


def test_no_interaction_is_stored_twice():
  data = place(3)
  stored = sum(int(offsets[-1]) for offsets in data.offsets)
  assert stored == sum(COUNTS)
  assert data.offsets.shape == (3, 4) and data.offsets.dtype == np.int32
  assert data.items.dtype == np.int32 and data.labels.dtype == np.float32


def test_a_population_without_interactions_can_be_placed():
  data = population.place_clients(
      np.zeros(4, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 2)
  block = gather(jax.tree.map(lambda x: jnp.asarray(x[0]), data),
                 jnp.array([0, 1]), jnp.array([0, 2]), CAPACITY, NUM_ITEMS)
  np.testing.assert_array_equal(block.num_examples, [0, 0])


def test_a_device_with_too_many_interactions_is_refused():
  # No arrays of that size: the counts alone are enough to refuse.
  offsets = np.array([0, 2**31])
  with pytest.raises(ValueError, match='num_devices=1: .* use more devices'):
    population.place_clients(
        offsets, np.broadcast_to(np.int32(0), 0), np.zeros(0, np.float32), 1)


@hypothesis.given(st.integers(1, 30), st.integers(1, 8))
def test_going_home_and_back_changes_nothing(num_clients, num_devices):
  leaf = np.random.default_rng(0).normal(size=(num_clients, 3))
  home = population.by_home(leaf, num_devices)
  assert home.shape == (num_devices, -(-num_clients // num_devices), 3)
  np.testing.assert_array_equal(
      population.by_client(home, num_clients), leaf)
  for c in range(num_clients):
    np.testing.assert_array_equal(
        home[c % num_devices, c // num_devices], leaf[c])


def test_initial_parameters_do_not_depend_on_the_number_of_devices():
  init = lambda key: {'p': jax.random.normal(key, (2,))}
  key = jax.random.key(3)
  expected = [init(jax.random.fold_in(key, c))['p'] for c in range(7)]
  for num_devices in (1, 3):
    made = population.make_init_personal(init, 7, num_devices)(key)
    np.testing.assert_array_equal(
        population.by_client(np.asarray(made['p']), 7), expected)


def test_a_place_counts_from_the_first_interaction_of_its_client():
  lengths = [2, 0, 3, 1]
  offsets = np.cumsum([0, *lengths])
  want = [place for length in lengths for place in range(length)]
  assert population.places_of(offsets).tolist() == want
  assert not len(population.places_of(np.zeros(3, np.int64)))
