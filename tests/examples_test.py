"""What a client trains on: a fair shuffle, and negatives that leak nothing."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from fedjaxrec.examples import draw_examples, nth_absent, permute
from fedjaxrec.population import Client

CAPACITY, NUM_ITEMS = 16, 24
WIDTH = 64  # Elements that one compiled permutation is asked for.

permute_jit = jax.jit(permute)
permute_many = jax.jit(jax.vmap(permute, in_axes=(0, None, None)))
nth_absent_jit = jax.jit(nth_absent)


@functools.cache
def drawing(num_negatives, many=False):
  draw = functools.partial(
      draw_examples, num_items=NUM_ITEMS, num_negatives=num_negatives)
  return jax.jit(jax.vmap(draw, in_axes=(None, 0)) if many else draw)


def keys(n, seed=0):
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
      jax.random.key(seed), jnp.arange(n))


def make_client(items, capacity=CAPACITY):
  items = np.array(sorted(items), np.int32)
  padding = capacity - len(items)
  return Client(
      jnp.int32(0), jnp.int32(len(items)),
      jnp.asarray(np.pad(items, (0, padding), constant_values=NUM_ITEMS)),
      # A label that tells its item.
      jnp.asarray(np.pad(items + 0.5, (0, padding)), jnp.float32))


def too_uneven(observed, expected, scale=1.0):
  """Whether counts differ from their expectation beyond chance of 1e-6.

  Args:
    observed: Counts of equally likely cells whose total is fixed.
    expected: What each cell expects.
    scale: A cell's variance over that of a multinomial's.
  """
  observed = np.asarray(observed)
  statistic = ((observed - expected)**2 / expected).sum() / scale
  return statistic > scipy.stats.chi2.isf(1e-6, observed.size - 1)


# --- permute -----------------------------------------------------------------


@hypothesis.given(st.integers(1, WIDTH), st.integers(0, 2**31 - 1))
def test_permute_is_one_to_one_for_every_size(size, seed):
  image = permute_jit(
      jax.random.key(seed), jnp.arange(WIDTH), jnp.int32(size))
  assert sorted(np.asarray(image[:size])) == list(range(size))


@hypothesis.given(
    st.integers(WIDTH, 2**31 - 1), st.integers(0, 2**31 - 1), st.booleans())
@hypothesis.example(2**31 - 1, 0, True)
def test_permute_stays_one_to_one_in_the_largest_catalogues(size, seed, end):
  """Sums modulo the size must not overflow 32 bits."""
  x = np.arange(WIDTH) + (size - WIDTH if end else 0)
  image = np.asarray(permute_jit(
      jax.random.key(seed), jnp.asarray(x, jnp.int32), jnp.int32(size)))
  assert len(set(image)) == WIDTH
  assert 0 <= image.min() and image.max() < size


@pytest.mark.parametrize('size', [2, 7, 13])
def test_images_and_pairs_of_images_are_uniform(size):
  num_keys = 30_000
  image = np.asarray(permute_many(
      keys(num_keys, size), jnp.arange(size), jnp.int32(size)))
  for x in range(size):
    counts = np.bincount(image[:, x], minlength=size)
    assert not too_uneven(counts, num_keys / size), x
  # Neighbours, the ends of the range, and two in between.
  for x, y in {(0, 1), (0, size - 1), (size // 3, size // 2 + 1)}:
    if x == y or y >= size:
      continue
    cells = np.bincount(
        image[:, x] * size + image[:, y], minlength=size * size)
    cells = cells.reshape(size, size)[~np.eye(size, dtype=bool)]
    assert cells.sum() == num_keys  # Never the same image twice.
    assert not too_uneven(cells, num_keys / cells.size), (x, y)


def test_an_image_is_uniform_and_not_nearly_so():
  """Swaps alone leave 0 in its place 2^-9 too often; the shift mends that."""
  num_keys = 2**22
  words = np.random.default_rng(0).integers(
      0, 2**32, (num_keys, 2), dtype=np.uint32)
  image = permute_many(
      jax.random.wrap_key_data(jnp.asarray(words)), jnp.zeros(1, jnp.int32),
      jnp.int32(2))
  # An excess of 2^-9 would be 8 standard deviations.
  assert abs(int(image.sum()) - num_keys / 2) < 5 * np.sqrt(num_keys) / 2


def test_the_test_of_pairs_would_see_a_mere_rotation():
  num_keys, size = 30_000, 7
  shift = np.random.default_rng(0).integers(0, size, num_keys)
  image = (np.arange(size)[None, :] + shift[:, None]) % size
  cells = np.bincount(image[:, 0] * size + image[:, 1], minlength=size * size)
  cells = cells.reshape(size, size)[~np.eye(size, dtype=bool)]
  assert too_uneven(cells, num_keys / cells.size)


def test_different_keys_give_different_permutations():
  image = np.asarray(permute_many(keys(50), jnp.arange(20), jnp.int32(20)))
  assert len({tuple(row) for row in image}) == 50


# --- nth_absent --------------------------------------------------------------


@hypothesis.given(
    st.sets(st.integers(0, NUM_ITEMS - 1), max_size=CAPACITY),
    st.sampled_from([NUM_ITEMS, 0, -1, 2**31 - 1]))
def test_nth_absent_counts_the_items_that_are_not_there(present, fill):
  absent = [i for i in range(NUM_ITEMS) if i not in present]
  padded = sorted(present) + [fill] * (CAPACITY - len(present))
  found = nth_absent_jit(
      jnp.array(padded, jnp.int32), jnp.int32(len(present)),
      jnp.arange(NUM_ITEMS, dtype=jnp.int32).reshape(4, -1))
  assert found.shape == (4, NUM_ITEMS // 4)
  np.testing.assert_array_equal(found.reshape(-1)[:len(absent)], absent)


# --- draw_examples -----------------------------------------------------------


@hypothesis.given(
    st.sets(st.integers(0, NUM_ITEMS - 1), max_size=CAPACITY),
    st.sampled_from([0, 1, 3]), st.integers(0, 1000))
def test_a_draw_is_a_shuffle_and_distinct_absent_negatives(
    items, num_negatives, seed):
  count, num_absent = len(items), NUM_ITEMS - len(items)
  drawn = drawing(num_negatives)(make_client(items), jax.random.key(seed))
  rows, labels = np.asarray(drawn.rows), np.asarray(drawn.labels)
  assert rows.shape == (CAPACITY, 1 + num_negatives)
  np.testing.assert_array_equal(drawn.used, rows < NUM_ITEMS)
  # The interactions, in another order, each with its own label.
  assert sorted(rows[:count, 0]) == sorted(items)
  np.testing.assert_array_equal(labels[:count], rows[:count, 0] + 0.5)
  # Beyond them nothing.
  np.testing.assert_array_equal(rows[count:], NUM_ITEMS)
  np.testing.assert_array_equal(labels[count:], 0)
  negatives = rows[:count, 1:]
  used = negatives[negatives < NUM_ITEMS]
  assert len(set(used)) == len(used)
  assert not set(used) & items
  # All that are wanted, or every absent item, spread evenly.
  assert len(used) == min(num_negatives * count, num_absent)
  if count:
    per_interaction = (negatives < NUM_ITEMS).sum(1)
    assert per_interaction.max(initial=0) - per_interaction.min() <= 1


def test_a_draw_does_not_depend_on_the_padding():
  items, key = [0, 3, 4, 9, 23], jax.random.key(1)
  wide = drawing(3)(make_client(items), key)
  exact = drawing(3)(make_client(items, len(items)), key)
  for name in ('rows', 'labels', 'used'):
    np.testing.assert_array_equal(
        getattr(wide, name)[:len(items)], getattr(exact, name))


def test_the_order_of_the_interactions_is_uniform():
  num_keys = 20_000
  drawn = drawing(0, many=True)(make_client([2, 5, 11]), keys(num_keys))
  order = np.searchsorted([2, 5, 11], drawn.rows[:, :3, 0])
  counts = np.bincount(order @ [9, 3, 1], minlength=27)
  assert (counts > 0).sum() == 6
  assert not too_uneven(counts[counts > 0], num_keys / 6)


@pytest.fixture(scope='module')
def negative_counts():
  """How often each item is a negative, for a client and with a leak."""
  train, held_out, num_keys = [1, 4, 7, 12], [2, 20], 20_000

  def count(items):
    drawn = drawing(3, many=True)(make_client(items), keys(num_keys))
    negatives = np.asarray(drawn.rows)[:, :len(items), 1:]
    return np.bincount(negatives.reshape(-1), minlength=NUM_ITEMS)

  return train, held_out, num_keys, count(train), count(train + held_out)


def test_negatives_exclude_training_items_only(negative_counts):
  """A held-out item is drawn as often as any other that the client lacks."""
  train, held_out, num_keys, counts, leaking = negative_counts
  absent = np.setdiff1d(np.arange(NUM_ITEMS), train)
  assert not counts[train].any()
  # 12 of 20 absent items a key, without replacement: a cell's variance is
  # (1 - 12/20) 20/19 that of a multinomial's.
  expected = num_keys * 12 / 20
  assert not too_uneven(counts[absent], expected, 0.4 * 20 / 19)
  deviation = np.abs(counts[held_out] - expected)
  assert (deviation < 5 * np.sqrt(num_keys * 0.6 * 0.4)).all()
  # The control: a list that holds the held-out items shows the leak.
  assert not leaking[held_out].any()
  assert leaking[np.setdiff1d(absent, held_out)].all()


def test_negatives_do_not_follow_the_order():
  """As many interactions as absent items: a shared permutation would show."""
  num_keys, items = 5000, np.arange(0, NUM_ITEMS, 2)
  drawn = drawing(1, many=True)(make_client(items), keys(num_keys))
  rows = np.asarray(drawn.rows)[:, :len(items)] // 2  # Ranks among their kind.
  share = 1 / len(items)
  limit = 5 * np.sqrt(num_keys * share * (1 - share))
  for place in range(len(items)):
    same = (rows[:, place, 0] == rows[:, place, 1]).sum()
    assert abs(same - num_keys * share) < limit


@pytest.mark.parametrize('k', [0, 2])
def test_each_place_of_a_negative_is_uniform(k):
  """Not only the set: the first negative of the first interaction as well."""
  num_keys, items = 20_000, [1, 4, 7, 12]
  drawn = drawing(3, many=True)(make_client(items), keys(num_keys))
  absent = np.setdiff1d(np.arange(NUM_ITEMS), items)
  for place in (0, 3):
    counts = np.bincount(drawn.rows[:, place, 1 + k], minlength=NUM_ITEMS)
    assert counts[absent].sum() == num_keys
    assert not too_uneven(counts[absent], num_keys / len(absent))
