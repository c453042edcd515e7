"""Projections on what all clients share, and hashed sums."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.transforms.quantize import qsgd
from fedjaxrec.transforms.sketch import (
    count_sketch,
    low_rank,
    random_basis,
    round_bases,
)

KEY = jax.random.key(6)
RANK, DIM = 3, 8
_rng = np.random.default_rng(3)
ROWS = _rng.normal(size=(5, 2, DIM)).astype(np.float32)
DELTA = ({'item': ROWS, 'bias': ROWS[..., 0]}, {'w': ROWS[0]})
MASK = (np.arange(10).reshape(5, 2) < 7, True)


def test_a_basis_is_orthonormal():
  basis = np.asarray(random_basis(KEY, RANK, DIM), np.float64)
  np.testing.assert_allclose(basis @ basis.T, np.eye(RANK), atol=1e-6)


def test_bases_point_everywhere_alike():
  bases = jax.jit(jax.vmap(lambda key: random_basis(key, RANK, DIM)))(
      jax.random.split(KEY, 2000))
  projections = np.einsum('nrd,nre->nde', bases, bases)
  # E[B' B] = rank / dim I; entries are below 1, so six standard errors are.
  assert np.abs(projections.mean(0) - RANK / DIM * np.eye(DIM)).max() < (
      6 / np.sqrt(2000))
  # And no direction of its own: signs are as likely either way.
  assert np.abs(np.mean(np.asarray(bases), 0)).max() < 6 / np.sqrt(2000)


def test_low_rank_by_hand():
  transform = low_rank(RANK, KEY)
  out, _ = transform.update(DELTA, transform.init(DELTA), None, mask=MASK)
  draw_key = jax.random.split(KEY)[1]
  bases = round_bases(draw_key, DELTA, MASK, RANK)
  assert [b is None for b in bases] == [True, False, True]
  basis = np.asarray(bases[1], np.float64)
  np.testing.assert_allclose(
      out[0]['item'], ROWS @ basis.T @ basis, atol=1e-5)
  # Rows of one entry, and what has no rows, are sent whole.
  np.testing.assert_array_equal(out[0]['bias'], ROWS[..., 0])
  np.testing.assert_array_equal(out[1]['w'], ROWS[0])


def test_all_that_is_needed_of_a_round_are_the_summed_coordinates():
  """Ten clients' coordinates, summed, are lifted once."""
  deltas = _rng.normal(size=(10, 6, DIM)).astype(np.float32)
  sent = []

  def record(updates, state, params=None, **extra_args):
    del params, extra_args
    sent.append(np.asarray(updates['a']))
    return updates, state

  inner = optax.GradientTransformationExtraArgs(lambda p: (), record)
  outputs = []
  for delta in deltas:
    transform = low_rank(RANK, KEY, inner=inner)
    out, _ = transform.update({'a': delta}, transform.init({'a': delta}))
    outputs.append(out['a'])
  assert {x.shape for x in sent} == {(6, RANK)}
  basis = round_bases(
      jax.random.split(KEY)[1], {'a': deltas[0]}, None, RANK)[0]
  np.testing.assert_allclose(
      sum(sent) @ np.asarray(basis), sum(outputs), atol=1e-5)
  # Positive control: with a seed for each client they mean nothing together.
  other = low_rank(RANK, jax.random.key(7))
  out, _ = other.update({'a': deltas[0]}, other.init({'a': deltas[0]}))
  assert np.abs(out['a'] - outputs[0]).max() > 0.1


def test_the_next_round_has_another_basis():
  transform = low_rank(RANK, KEY)
  update = jax.jit(transform.update)
  first, state = update({'a': ROWS}, transform.init({'a': ROWS}))
  second, _ = update({'a': ROWS}, state)
  assert np.abs(first['a'] - second['a']).max() > 0.1


def test_coordinates_can_be_quantized():
  def one(key):
    transform = low_rank(RANK, KEY, inner=qsgd(4, key))
    return transform.update({'a': ROWS}, transform.init({'a': ROWS}))[0]['a']

  many = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 1000)))
  plain = low_rank(RANK, KEY)
  exact, _ = plain.update({'a': ROWS}, plain.init({'a': ROWS}))
  error = np.abs(many.mean(0) - exact['a'])
  assert (error < 6 * many.std(0) / np.sqrt(1000) + 1e-5).all()
  assert many.std(0).max() > 0.01


def test_a_count_sketch_has_the_variance_that_it_states():
  width, depth, num_keys = 16, 2, 4000
  x = {'a': ROWS[:, 0], 'b': np.float32(2)}

  def one(key):
    transform = count_sketch(width, depth, key)
    return transform.update(x, transform.init(x))[0]

  out = jax.jit(jax.vmap(one))(jax.random.split(KEY, num_keys))
  square = np.sum(x['a'].astype(np.float64)**2) + 4
  for leaf in ('a', 'b'):
    errors = np.square(np.asarray(out[leaf], np.float64) - x[leaf])
    exact = (square - np.square(x[leaf])) / (width * depth)
    slack = 6 * errors.std(0) / np.sqrt(num_keys)
    assert (np.abs(errors.mean(0) - exact) < slack).all()


def by_hand(delta, mask, width, depth, key, divisor=1.0):
  """Entry by entry, in float64; the draws alone are the transform's."""
  leaves = jax.tree.leaves(delta)
  masks = jax.tree.leaves(jax.tree.broadcast(mask, delta))
  keys = jax.random.split(jax.random.split(key)[1], len(leaves))
  table = np.zeros((depth, width))
  places = []
  for x, used, k in zip(leaves, masks, keys):
    bits = np.asarray(jax.random.bits(k, (*x.shape, depth), np.uint32))
    for index in np.ndindex(x.shape):
      if np.asarray(used)[index[:np.ndim(used)]]:
        for row in range(depth):
          draw = int(bits[(*index, row)])
          places.append((row, (draw >> 1) % width, 1 - 2 * (draw & 1)))
          table[places[-1][:2]] += places[-1][2] * float(x[index])
  out, places = [], iter(places)
  for x, used in zip(leaves, masks):
    y = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
      if np.asarray(used)[index[:np.ndim(used)]]:
        for _ in range(depth):
          row, bucket, sign = next(places)
          y[index] += sign * table[row, bucket] / depth / divisor
    out.append(y)
  return table, jax.tree.unflatten(jax.tree.structure(delta), out)


def record(sent):
  """An inner transform that keeps what it is given."""
  def update(updates, state, params=None, **extra_args):
    del params, extra_args
    sent.append(np.asarray(updates))
    return updates, state
  return optax.GradientTransformationExtraArgs(lambda p: (), update)


# Sums of 120 numbers of size 3, each off by half an ulp of at most 64.
ATOL = 120 * 64 * 2.0**-24


@pytest.mark.parametrize('unbiased', [True, False])
def test_a_count_sketch_by_hand(unbiased):
  width, depth, sent = 11, 3, []
  transform = count_sketch(
      width, depth, KEY, unbiased=unbiased, inner=record(sent))
  out, _ = transform.update(DELTA, transform.init(DELTA), None, mask=MASK)
  # Seven of the ten rows are in use, of eight entries and of one; and 16.
  size = 7 * (DIM + 1) + ROWS[0].size
  table, expected = by_hand(
      DELTA, MASK, width, depth, KEY,
      1.0 if unbiased else 1 + (size - 1) / (width * depth))
  np.testing.assert_allclose(sent[0], table, atol=ATOL)
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=ATOL), out, expected)
  # Rows that are not in use are neither read nor written.
  assert np.abs(DELTA[0]['item'][~MASK[0]]).min() > 0
  assert not np.asarray(out[0]['item'])[~MASK[0]].any()


def test_all_that_is_needed_of_a_round_is_the_sum_of_the_tables():
  deltas = _rng.normal(size=(10, 6, DIM)).astype(np.float32)
  sent, outputs = [], []
  for delta in deltas:
    transform = count_sketch(16, 2, KEY, inner=record(sent))
    out, _ = transform.update({'a': delta}, transform.init({'a': delta}))
    outputs.append(np.asarray(out['a']))
  assert {x.shape for x in sent} == {(2, 16)}
  total = {'a': deltas.astype(np.float64).sum(0)}
  table, decoded = by_hand(total, np.ones(6, bool), 16, 2, KEY)
  np.testing.assert_allclose(sum(sent), table, atol=10 * ATOL)
  np.testing.assert_allclose(sum(outputs), decoded['a'], atol=10 * ATOL)
  # Positive control: with hashes of its own a table adds up to nothing.
  other = count_sketch(16, 2, jax.random.key(7))
  out, _ = other.update({'a': deltas[0]}, other.init({'a': deltas[0]}))
  assert np.abs(out['a'] - outputs[0]).max() > 0.1


def test_a_count_sketch_is_a_contraction_in_the_mean_over_hashes():
  """As error feedback needs it; by exactly the share that it states."""
  width, depth, num_keys = 16, 2, 4000
  x = {'a': ROWS[:, 0], 'b': np.float32(2)}
  square = float(sum((leaf.astype(np.float64)**2).sum() for leaf in x.values()))
  v = (ROWS[:, 0].size + 1 - 1) / (width * depth)

  def errors(unbiased):
    def one(key):
      transform = count_sketch(width, depth, key, unbiased=unbiased)
      out, _ = transform.update(x, transform.init(x))
      return sum(jnp.sum(jnp.square(out[leaf] - x[leaf])) for leaf in x)
    return np.asarray(
        jax.jit(jax.vmap(one))(jax.random.split(KEY, num_keys)), np.float64)

  for unbiased, exact in [(False, v / (1 + v)), (True, v)]:
    found = errors(unbiased) / square
    slack = 6 * found.std() / np.sqrt(num_keys)
    assert abs(found.mean() - exact) < slack
  # Positive control: what has no bias is no contraction.
  assert v > 1


def test_a_wide_sketch_loses_little_of_a_few_large_entries():
  x = jnp.zeros(1000).at[jnp.array([3, 500])].set(jnp.array([9.0, -7.0]))
  transform = count_sketch(4096, 1, KEY)
  out, _ = jax.jit(transform.update)({'a': x}, transform.init({'a': x}))
  np.testing.assert_allclose(out['a'][jnp.array([3, 500])], [9, -7])


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: low_rank(0, KEY), 'rank=0'),
    (lambda: count_sketch(0, 1, KEY), 'width=0'),
    (lambda: count_sketch(4, 0, KEY), 'depth=0')])
def test_sizes_that_are_none_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
