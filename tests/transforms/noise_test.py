"""The noise has the standard deviation it was asked for, and fresh draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.transforms.noise import (
  add_gaussian_noise,
  groups_noise_multiplier,
)

NUM_DRAWS = 10**6


def test_the_noise_on_the_sum_has_the_stddev_it_was_asked_for():
  tree = {'a': jnp.full((NUM_DRAWS // 10, 5), 2.0),
          'b': jnp.full(NUM_DRAWS // 2, 2.0)}
  transform = add_gaussian_noise(0.7, jax.random.key(0))
  out, _ = transform.update(tree, transform.init(tree))
  noise = np.concatenate(
      [np.asarray(x).ravel() for x in jax.tree.leaves(out)]) - 2.0
  # Of n normal draws the mean has the s.e. s / sqrt(n), the stddev
  # s / sqrt(2 n); six of them are passed once in 500 million runs.
  assert abs(noise.mean()) < 6 * 0.7 / np.sqrt(NUM_DRAWS)
  assert abs(noise.std() / 0.7 - 1) < 6 / np.sqrt(2 * NUM_DRAWS)
  # Kurtosis 3: normal, and not of another shape with the same variance.
  kurtosis = np.mean(noise**4) / np.mean(noise**2) ** 2
  assert abs(kurtosis - 3) < 6 * np.sqrt(24 / NUM_DRAWS)


def test_no_two_updates_and_no_two_leaves_share_a_draw():
  tree = {'a': jnp.zeros(1000), 'b': jnp.zeros(1000)}
  transform = add_gaussian_noise(1.0, jax.random.key(0))
  first, state = transform.update(tree, transform.init(tree))
  second, _ = transform.update(tree, state)
  draws = np.array([first['a'], first['b'], second['a'], second['b']])
  off = np.abs(np.corrcoef(draws) - np.eye(4))
  assert off.max() < 6 / np.sqrt(1000)
  again, _ = transform.update(tree, transform.init(tree))
  np.testing.assert_array_equal(again['a'], first['a'])  # Positive control.


@pytest.mark.parametrize('stddev', [-1.0, float('nan')])
def test_a_stddev_that_is_none_is_refused(stddev):
  with pytest.raises(ValueError, match='noise_stddev='):
    add_gaussian_noise(stddev, jax.random.key(0))


def test_each_group_has_the_stddev_of_its_own():
  tree = ({'a': jnp.zeros(NUM_DRAWS // 2)}, jnp.zeros(NUM_DRAWS // 2))
  transform = add_gaussian_noise((0.2, 3.0), jax.random.key(1))
  out, _ = transform.update(tree, transform.init(tree))
  within = 6 / np.sqrt(2 * NUM_DRAWS // 2)
  assert abs(np.std(out[0]['a']) / 0.2 - 1) < within
  assert abs(np.std(out[1]) / 3.0 - 1) < within


def test_one_stddev_for_all_groups_draws_as_one_for_the_whole():
  tree = ({'a': jnp.zeros(3)}, jnp.zeros(2))
  one, each = (
      transform.update(tree, transform.init(tree))[0] for transform in (
          add_gaussian_noise(0.5, jax.random.key(0)),
          add_gaussian_noise((0.5, 0.5), jax.random.key(0))))
  jax.tree.map(np.testing.assert_array_equal, one, each)


def test_groups_cost_what_their_multipliers_cost_together():
  # One group: its own. Two alike: sqrt(2) less.
  assert groups_noise_multiplier(2.0, 3.0) == pytest.approx(1.5)
  assert groups_noise_multiplier((2.0, 1.0), (3.0, 1.5)) == pytest.approx(
      1.5 / np.sqrt(2))
  assert groups_noise_multiplier((0.0, 1.0), (0.0, 2.0)) == pytest.approx(2.0)
  assert groups_noise_multiplier((1.0, 1.0), (0.0, 2.0)) == 0.0
  assert groups_noise_multiplier((0.0,), (1.0,)) == np.inf
