"""Reports tell two items apart by e^epsilon at most, and add up to counts."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.transforms.reports import (
  epsilon_of_reports,
  make_count_mean_sketch,
  make_hadamard_response,
  make_randomized_response,
  make_unary_encoding,
  pad_and_sample,
)

NUM_ITEMS = 4
NUM_HASHES, WIDTH = 3, 3
NAMES = ('randomized', 'unary', 'hadamard', 'sketch')


def make(name, epsilon, num_items=NUM_ITEMS):
  if name == 'sketch':
    return make_count_mean_sketch(
        num_items, epsilon, NUM_HASHES, WIDTH, jax.random.key(7))
  return {'randomized': make_randomized_response, 'unary': make_unary_encoding,
          'hadamard': make_hadamard_response}[name](num_items, epsilon)


def buckets_of(num_items):
  """The hash functions of `make`, read off a tally of reports without flips."""
  return np.asarray(jax.random.randint(
      jax.random.key(7), (NUM_HASHES, num_items + 1), 0, WIDTH))


def bits_table(ones, keep, flip):
  """P(message) of independent bits, over all messages in counting order."""
  table = []
  for message in itertools.product((0, 1), repeat=len(ones)):
    prob = [(keep if one else flip) if bit else 1 - (keep if one else flip)
            for one, bit in zip(ones, message)]
    table.append(math.prod(prob))
  return table


def sylvester(log_size):
  matrix = np.ones((1, 1))
  for _ in range(log_size):
    matrix = np.block([[matrix, matrix], [matrix, -matrix]])
  return matrix


def probability_table(name, oracle):
  """P(message | item), [items and none, messages], by the mechanism's words."""
  keep, flip = oracle.keep_prob, oracle.flip_prob
  values = NUM_ITEMS + 1
  if name == 'randomized':
    return np.where(np.eye(values), keep, flip)
  if name == 'unary':
    return np.array([
        bits_table(np.arange(NUM_ITEMS) == item, keep, flip)
        for item in range(values)])
  if name == 'hadamard':
    signs = sylvester(3)  # Room for none and the row without a minus.
    return np.where(signs[1:values + 1] > 0, keep, flip) / 4
  buckets = buckets_of(NUM_ITEMS)
  return np.array([
      np.concatenate([
          np.array(bits_table(np.arange(WIDTH) == row[item], keep, flip))
          for row in buckets]) / NUM_HASHES
      for item in range(values)])


def message_index(name, messages):
  """The column of `probability_table` of each message."""
  number = lambda bits: np.asarray(bits) @ (
      2 ** np.arange(bits.shape[-1])[::-1])
  if name == 'unary':
    return number(messages)
  if name == 'sketch':
    return np.asarray(messages[0]) * 2**WIDTH + number(messages[1])
  return np.asarray(messages)


def reports_of(oracle, items, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(items))
  return jax.jit(jax.vmap(oracle.report))(jnp.asarray(items, jnp.int32), keys)


def largest_log_ratio(table):
  logs = np.log(table)
  return (logs.max(0) - logs.min(0)).max()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('epsilon', [0.1, 1.0, 4.0])
def test_any_two_items_make_a_message_likely_within_e_to_the_epsilon(
    name, epsilon):
  table = probability_table(name, make(name, epsilon))
  np.testing.assert_allclose(table.sum(1), 1, rtol=1e-6)
  ratio = largest_log_ratio(table)
  # Probabilities are rounded to 2^-23, to the private side: where the sketch
  # flips, e^-(epsilon / 2), twice in a message.
  assert epsilon * (1 - 1e-4) <= ratio <= epsilon * (1 + 1e-9)
  # Positive control: half of the privacy passes it.
  assert largest_log_ratio(
      probability_table(name, make(name, 2 * epsilon))) > 1.5 * epsilon


@pytest.mark.parametrize('name', NAMES)
def test_messages_are_drawn_as_the_table_says(name):
  oracle, num_reports = make(name, 1.0), 60_000
  table = probability_table(name, oracle)
  items = np.arange(num_reports) % (NUM_ITEMS + 1)
  index = message_index(name, reports_of(oracle, items))
  counts = np.zeros(table.shape)
  np.add.at(counts, (items, index), 1)
  expected = table * (num_reports / (NUM_ITEMS + 1))
  assert expected.min() > 50
  chi2, freedom = (
      (counts - expected) ** 2 / expected).sum(), table.size - len(table)
  # Chi-square has mean f and variance 2 f; a normal's tail at 6.
  assert abs(chi2 - freedom) < 6 * math.sqrt(2 * freedom) + 36
  # Positive control: the table of another epsilon does not fit.
  other = probability_table(name, make(name, 1.3)) * (
      num_reports / (NUM_ITEMS + 1))
  assert ((counts - other) ** 2 / other).sum() > (
      freedom + 12 * math.sqrt(2 * freedom) + 36)


def variance_by_the_formula(name, epsilon, num_reports, num_items):
  e = math.exp(epsilon)
  return num_reports * {
      'randomized': (e + num_items - 1) / (e - 1) ** 2,
      'unary': 4 * e / (e - 1) ** 2,
      'hadamard': (e + 1) ** 2 / (e - 1) ** 2,
      'sketch': math.sqrt(e) / (math.sqrt(e) - 1) ** 2 * (
          WIDTH / (WIDTH - 1)) ** 2}[name]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('epsilon', [0.5, 2.0])
def test_the_variance_is_that_of_the_papers(name, epsilon):
  np.testing.assert_allclose(
      make(name, epsilon).stddev(6040) ** 2,
      variance_by_the_formula(name, epsilon, 6040, NUM_ITEMS), rtol=1e-5)


@pytest.mark.parametrize('name', ['randomized', 'unary', 'hadamard'])
def test_a_report_of_the_item_itself_varies_as_its_table_says(name):
  oracle = make(name, 1.0)
  p, q = oracle.keep_prob, oracle.flip_prob
  # One report is 1 with probability p (Hadamard: +1, else -1), then scaled.
  spread = 4 * p * (1 - p) if name == 'hadamard' else p * (1 - p)
  np.testing.assert_allclose(
      oracle.stddev(7, 7) ** 2, 7 * spread / (p - q) ** 2, rtol=1e-9)


def test_unary_counts_of_a_known_population_have_the_known_error():
  oracle = make_unary_encoding(3706, 1.0)
  assert round(oracle.stddev(6040)) == 149
  assert round(make_unary_encoding(3706, 4.0).stddev(6040)) == 21


@pytest.mark.parametrize('name', NAMES)
def test_counts_are_right_on_average_and_spread_as_told(name):
  num_items, trials = 6, 1200
  counts = np.array([30, 0, 12, 0, 5, 3, 10])  # The last: none.
  oracle = make(name, 1.0, num_items)
  items = jnp.asarray(np.repeat(np.arange(7), counts), jnp.int32)

  def one(key):
    messages = jax.vmap(oracle.report)(
        items, jax.random.split(key, counts.sum()))
    return oracle.estimate(oracle.tally(messages), counts.sum())

  estimates = np.asarray(jax.jit(jax.vmap(one))(
      jax.random.split(jax.random.key(0), trials)), np.float64)
  told = np.array([oracle.stddev(60, c) for c in counts[:num_items]])
  wanted = counts[:num_items].astype(float)
  if name == 'sketch':
    # Given the hash functions, items share buckets: known from the table; and
    # the choice of the function adds its variance to the flips'.
    same = buckets_of(num_items)
    shares = (same[:, :num_items, None] == same[:, None, :]).astype(float)
    mean_share = shares.mean(0)
    factor = WIDTH / (WIDTH - 1)
    wanted = factor * (mean_share @ counts - 60 / WIDTH)
    told = np.sqrt(told**2 + factor**2 * (
        (mean_share - mean_share**2) @ counts))
  error = estimates.mean(0) - wanted
  assert np.abs(error / told).max() < 6 / math.sqrt(trials)
  ratio = estimates.std(0) / told
  assert np.abs(ratio - 1).max() < 6 / math.sqrt(2 * trials)


def test_the_sketch_is_unbiased_over_the_choice_of_its_hashes():
  counts, num_items = np.array([40.0, 5.0, 0.0, 15.0]), 4
  items = jnp.asarray(np.repeat(np.arange(4), counts.astype(int)), jnp.int32)

  def one(key):
    hash_key, report_key = jax.random.split(key)
    oracle = make_count_mean_sketch(num_items, 6.0, 2, 4, hash_key)
    messages = jax.vmap(oracle.report)(
        items, jax.random.split(report_key, 60))
    return oracle.estimate(oracle.tally(messages), 60)

  estimates = np.asarray(jax.jit(jax.vmap(one))(
      jax.random.split(jax.random.key(0), 2000)), np.float64)
  error = (estimates.mean(0) - counts) / estimates.std(0)
  assert np.abs(error).max() < 6 / math.sqrt(2000)


@pytest.mark.parametrize('name', NAMES)
def test_tallies_add_over_clients_as_whole_numbers(name):
  oracle = make(name, 1.0)
  messages = reports_of(oracle, np.arange(20) % NUM_ITEMS)
  halves = [oracle.tally(jax.tree.map(lambda x, s=s: x[s], messages))
            for s in (slice(0, 7), slice(7, 20))]
  whole = oracle.tally(messages)
  assert whole.dtype == jnp.int32
  np.testing.assert_array_equal(whole, halves[0] + halves[1])


@hypothesis.given(
    st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31 - 1))
@hypothesis.settings(max_examples=20)
def test_a_sampled_item_is_the_users_own_or_none(count, list_length, seed):
  items = jnp.arange(10, 16)
  item = int(pad_and_sample(
      items, jnp.int32(count), list_length, 99, jax.random.key(seed)))
  assert item in range(10, 10 + count) or (
      item == 99 and count < list_length)


def test_sampled_items_count_every_short_list_without_bias():
  items, draws = jnp.array([3, 5, 8, 0, 0]), 20_000
  keys = jax.random.split(jax.random.key(0), draws)
  for count, chance in ((3, 1 / 4), (2, 1 / 4), (0, 1 / 4)):
    drawn = np.asarray(jax.vmap(lambda key, n=count: pad_and_sample(
        items, jnp.int32(n), 4, 9, key))(keys))
    for place in range(3):
      share = (drawn == [3, 5, 8][place]).mean()
      wanted = chance if place < count else 0
      assert abs(share - wanted) <= 6 * math.sqrt(wanted / draws)
  drawn = np.asarray(jax.vmap(lambda key: pad_and_sample(
      items[:3], jnp.int32(3), 2, 9, key))(keys))
  assert abs((drawn == 5).mean() - 1 / 3) < 6 * math.sqrt(1 / 3 / draws)


def test_each_report_of_a_user_is_paid_for():
  assert epsilon_of_reports(0.5, 67) == 33.5
  # Two reports of one user about different items, by the table: twice epsilon.
  table = probability_table('randomized', make('randomized', 1.0))
  pairs = [np.outer(table[a], table[b]).ravel()
           for a, b in ((0, 1), (2, 3))]
  np.testing.assert_allclose(
      largest_log_ratio(np.array(pairs)), epsilon_of_reports(1.0, 2),
      rtol=1e-4)


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: make_unary_encoding(0, 1.0), 'num_items=0'),
  (lambda: make_unary_encoding(5, 0.0), 'epsilon=0.0'),
  (lambda: make_hadamard_response(5, -1.0), 'epsilon=-1.0'),
  (lambda: make_randomized_response(5, 16.0), 'epsilon=16.0'),
  (lambda: make_randomized_response(5, math.nan), 'epsilon=nan'),
  (lambda: make_randomized_response(10**8, 0.1), 'num_items=100000000'),
  (lambda: make_count_mean_sketch(5, 1.0, 0, 4, jax.random.key(0)),
   'num_hashes=0'),
  (lambda: make_count_mean_sketch(5, 1.0, 2, 1, jax.random.key(0)), 'width=1'),
  (lambda: epsilon_of_reports(-1.0, 2), 'epsilon=-1.0'),
])
def test_what_reports_nothing_or_hides_nothing_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
