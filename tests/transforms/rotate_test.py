"""The rotation is a rotation, and it helps where one entry is large."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjaxrec.transforms.quantize import qsgd
from fedjaxrec.transforms.rotate import (
    hadamard,
    rotation_signs,
    with_rotation,
)

KEY = jax.random.key(4)


def hadamard_matrix(n):
  """Sylvester's construction."""
  h = np.ones((1, 1))
  while len(h) < n:
    h = np.block([[h, h], [h, -h]])
  return h / np.sqrt(n)


@pytest.mark.parametrize('n', [1, 2, 8, 64])
def test_hadamard_is_the_matrix(n):
  x = np.random.default_rng(n).normal(size=(3, n)).astype(np.float32)
  y = hadamard(x)
  # Two sums of at most 8 numbers of size 1.
  np.testing.assert_allclose(
      y, x.astype(np.float64) @ hadamard_matrix(n), atol=1e-5)
  np.testing.assert_allclose(hadamard(y), x, atol=1e-5)


def test_nothing_is_lost_without_a_quantizer():
  tree = {'a': np.random.default_rng(0).normal(size=(13, 5)).astype(
      np.float32), 'b': np.float32(3)}
  transform = with_rotation(optax.identity(), KEY, 16)
  out, _ = jax.jit(transform.update)(tree, transform.init(tree))
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), out, tree)


def test_the_inner_one_sees_the_rotated_chunks():
  seen = []

  def look(updates, state, params=None, *, mask):
    del params
    seen.append((updates, mask))
    return updates, state

  inner = optax.GradientTransformationExtraArgs(lambda params: (), look)
  x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
  x[6:] = 0
  transform = with_rotation(inner, KEY, 8)
  state = transform.init({'a': x})
  transform.update({'a': x}, state, None, mask={'a': np.arange(9) < 6})
  (updates, mask), = seen
  # The key of the first draw is the second half of the split.
  signs, = rotation_signs(jax.random.split(KEY)[1], {'a': x}, 8)
  padded = np.zeros(24)
  padded[:18] = x.reshape(-1)
  expected = (padded.reshape(3, 8) * signs) @ hadamard_matrix(8)
  np.testing.assert_allclose(updates['a'], expected, atol=1e-6)
  # Twelve entries in use fill a chunk and a half.
  np.testing.assert_array_equal(mask['a'], [True, True, False])
  assert set(np.unique(signs)) == {-1, 1}


def test_one_large_entry_no_longer_hides_the_others():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(4, 256)).astype(np.float32)
  x[:, 7] = 100

  def error(make):
    def one(key):
      transform = make(key)
      out, _ = transform.update({'a': x}, transform.init({'a': x}))
      return jnp.sum(jnp.square(out['a'] - x))
    return np.mean(jax.jit(jax.vmap(one))(jax.random.split(KEY, 50)))

  plain = error(lambda key: qsgd(4, key))
  rotated = error(lambda key: with_rotation(
      qsgd(4, key), jax.random.fold_in(key, 1)))
  # Without: nearly every entry is rounded to 0 or 100 / 7, a variance of about
  # 0.8 * 100 / 7 each, 11,000 in all. With: |chunk| = 101, so entries of about
  # 6.3 and steps of at most 6.3 * 4 / 7, a variance of at most 13 / 4 each.
  assert plain > 10_000 * 0.7
  assert rotated < 1024 * 13 / 4


def test_the_next_update_rotates_otherwise():
  x = {'a': np.ones((2, 8), np.float32)}
  transform = with_rotation(qsgd(2, KEY), jax.random.fold_in(KEY, 1), 8)
  state = transform.init(x)
  _, later = jax.jit(transform.update)(x, state)
  assert not np.array_equal(state[0].key_data, later[0].key_data)
  assert not np.array_equal(state[1].key_data, later[1].key_data)


@pytest.mark.parametrize('size', [0, 3, 100, -8])
def test_a_size_that_is_no_power_of_two_is_refused(size):
  with pytest.raises(ValueError, match='chunk_size='):
    with_rotation(optax.identity(), KEY, size)
