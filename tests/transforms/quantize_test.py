"""Grids, chances and scales, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.transforms.quantize import qsgd, sign, ternary

KEYS = jax.random.split(jax.random.key(2), 4000)


def draw(make, x):
  """One draw for each key: float64 [keys, *x.shape]."""
  def one(key):
    transform = make(key)
    return transform.update({'a': x}, transform.init(None))[0]['a']
  return np.asarray(jax.jit(jax.vmap(one))(KEYS), np.float64)


def test_sign_by_hand():
  out, _ = sign().update(
      {'a': jnp.array([3.0, -1.0, 0.0, 2.0]), 'b': jnp.array([-5.0])}, None)
  np.testing.assert_array_equal(out['a'], [2, -2, 0, 2])
  np.testing.assert_array_equal(out['b'], [-5])


def test_sign_of_numbers_whose_sum_overflows():
  # The squares still add up, to 4.5e36.
  x = jnp.full(20_000, 1.5e16).at[0].set(0.0)
  out, _ = sign().update({'a': x}, None)
  np.testing.assert_allclose(out['a'][1:], 1.5e16, rtol=1e-4)


@pytest.mark.parametrize('bits', [2, 3, 8, 16])
def test_qsgd_lands_on_the_two_neighbours_in_the_right_shares(bits):
  levels = 2 ** (bits - 1) - 1
  x = np.array([-0.8, 0.3, 0.0, 0.123, -0.05], np.float32)
  step = np.float64(x[0] * -1) / levels
  out = draw(lambda key: qsgd(bits, key), x) / step
  assert np.abs(out - np.rint(out)).max() < 1e-5 * levels
  exact = x / step
  below, above = np.floor(exact + 1e-4), np.ceil(exact - 1e-4)
  assert ((out > below - 0.1) & (out < above + 0.1)).all()
  chance = exact - below
  up = (out > below + 0.5).mean(0)
  slack = 6 * np.sqrt(0.25 / len(KEYS)) + 1e-3
  assert (np.abs(up - chance)[above > below] < slack).all()


def test_the_largest_is_kept_by_every_draw():
  x = np.array([0.7, -0.3, 0.7 - 1e-7], np.float32)
  for bits in (2, 8, 16):
    out = draw(lambda key, bits=bits: qsgd(bits, key), x)
    np.testing.assert_allclose(out[:, 0], x[0], rtol=2e-7)
    assert np.abs(out).max() <= x[0] * (1 + 2e-7)


def test_ternary_keeps_in_proportion():
  x = np.array([2.0, -1.0, 0.5, 0.0], np.float32)
  out = draw(ternary, x)
  assert set(np.unique(out)) == {-2.0, 0.0, 2.0}
  share = (out != 0).mean(0)
  assert (np.abs(share - [1, 0.5, 0.25, 0])
          < 6 * np.sqrt(0.25 / len(KEYS)) * np.array([0, 1, 1, 0]) + 1e-9).all()


def test_a_longer_leaf_gets_the_same_draw():
  x = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4)
  longer = np.concatenate([x, np.zeros_like(x)])
  for transform in (qsgd(3, KEYS[0]), ternary(KEYS[0]), sign()):
    state = transform.init(None)
    np.testing.assert_array_equal(
        jax.jit(transform.update)({'a': longer}, state)[0]['a'][:10],
        jax.jit(transform.update)({'a': x}, state)[0]['a'])


def test_no_two_updates_share_a_draw():
  x = {'a': jnp.full(500, 0.5).at[0].set(1.0)}
  transform = ternary(KEYS[0])
  update = jax.jit(transform.update)
  first, state = update(x, transform.init(x))
  second, _ = update(x, state)
  agree = np.mean(np.asarray(first['a']) == np.asarray(second['a']))
  assert abs(agree - 0.5) < 6 * np.sqrt(0.25 / 499) + 1 / 500


@pytest.mark.parametrize('bits', [0, 1, 17, 4.0])
def test_bits_that_are_none_are_refused(bits):
  with pytest.raises(ValueError, match='bits='):
    qsgd(bits, KEYS[0])
